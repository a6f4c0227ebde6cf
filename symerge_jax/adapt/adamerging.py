"""AdaMerging: learn the merging coefficients by making predictions certain (entropy minimisation).

Yang et al., "AdaMerging: Adaptive Model Merging for Multi-Task Learning", ICLR 2024.
https://arxiv.org/abs/2310.02575, equation 5. Joint by default, as the authors: one Adam step per
iteration on the sum over tasks of the mean entropy of two mini-batches of 16. `update="sequential"`
is the SyMerge paper's re-run: one step per task, batch 32, tasks in random order. AdaMerging++ is
the same on task vectors that TIES has trimmed and whose disagreeing entries it has dropped:
`merge.ties.elected`.

Departure: mini-batches come from a persistent shuffled stream; the authors shuffle anew each
iteration.
"""

from collections.abc import Sequence
from typing import Any, Literal

import jax
import numpy as np

from symerge_jax.adapt import schedule as schedules
from symerge_jax.adapt.coefficients import STORED, per_leaf, per_task
from symerge_jax.adapt.fit import Keep
from symerge_jax.adapt.merged import Classify, Encode, Trainables
from symerge_jax.adapt.objectives import ExpertLabels
from symerge_jax.adapt.schedule import Schedule
from symerge_jax.adapt.symerge import Adapted, OnChunk, adapt, check_option, sizes_of
from symerge_jax.notation import Array, Bool, Coefficients, Params, TaskVectors
from symerge_jax.parallel import Device


def adamerging(
    encode: Encode,
    classify: Classify,
    pretrained: Params,
    task_vectors: TaskVectors,
    heads: Params,
    inputs: Sequence[Any],
    *,
    classes: Bool[Array, "task classes"] | None = None,
    granularity: Literal["leaf", "task"] = "leaf",
    update: Literal["joint", "sequential"] = "joint",
    iterations: int = 500,
    batch_size: int | None = None,
    learning_rate: float = 1e-3,
    initial_coefficient: float = 0.3,
    coefficients: Coefficients | None = None,
    clamp: bool = True,
    seed: int = 0,
    schedule: Schedule | None = None,
    chunk_steps: int | None = None,
    on_chunk: OnChunk | None = None,
    keep: Keep | None = None,
    devices: Sequence[Device] | None = None,
    split_task_vectors: bool = False,
    stored_as: str = "float32",
) -> Adapted:
    """Adapts coefficients to unlabelled inputs; heads stay.

    Args:
        encode: (θ, inputs [batch, ...]) → features [batch, features].
        classify: (head, features) → logits [batch, classes].
        pretrained: θ₀.
        task_vectors: τ, leaves [task, ...].
        heads: leaves [task, ...], padded to one number of classes.
        inputs: one pytree per task, leaves [n, ...]: the unlabelled inputs.
        classes: which rows of the padded heads exist; None for all.
        granularity: one λ per task and leaf ("leaf", the paper's layer-wise) or per task ("task").
        update: "joint" or "sequential"; see above.
        iterations: rounds over the tasks.
        batch_size: inputs per mini-batch; None for 16 (twice per task) if joint, 32 if sequential.
        learning_rate: Adam's, for λ.
        initial_coefficient: of every task (and leaf).
        coefficients: λ to start from instead.
        clamp: whether λ is clipped to [0, 1] in the forward pass.
        seed: of task order and batches.
        schedule: replaces `update`, `iterations`, `batch_size` and `seed`.
        chunk_steps: micro-steps between two calls of `on_chunk`; None for a few seconds' worth.
        on_chunk: see `fit`.
        keep: where the state is kept; see `fit`.
        devices: that share every mini-batch; as for `symerge`, like what follows.
        split_task_vectors: whether each keeps its share of θ₀ and τ.
        stored_as: type in which τ is kept in memory.

    Raises:
        BadInput: shapes that do not fit together, an unknown option, a loss that is not finite.
    """
    check_option("granularity", granularity, ("leaf", "task"))
    check_option("update", update, ("joint", "sequential"))
    check_option("stored_as", stored_as, STORED)
    if coefficients is None:
        start = per_leaf if granularity == "leaf" else per_task
        coefficients = start(task_vectors, initial_coefficient)
    sizes = sizes_of(inputs)
    if schedule is None and update == "joint":
        schedule = schedules.joint(
            sizes, iterations=iterations, batch_size=batch_size or 16, batches=2, seed=seed
        )
    elif schedule is None:
        schedule = schedules.sequential(
            sizes, iterations=iterations, batch_size=batch_size or 32, seed=seed
        )
    # The objective reads no expert; these stand where SyMerge's run has its targets.
    dtype = jax.tree.leaves(coefficients)[0].dtype
    nobody = [ExpertLabels(np.zeros(n, np.int32), np.zeros(n, dtype)) for n in sizes]
    return adapt(
        encode, classify, pretrained, task_vectors, heads, inputs, nobody,
        classes=classes,
        objectives=["entropy"] * len(sizes),
        rates=Trainables(learning_rate, 0.0, 0.0),
        coefficients=coefficients,
        idle="skip",
        clamp=clamp,
        seed=seed,
        schedule=schedule,
        chunk_steps=chunk_steps,
        on_chunk=on_chunk,
        keep=keep,
        devices=devices,
        split_task_vectors=split_task_vectors,
        stored_as=stored_as,
    )  # fmt: skip
