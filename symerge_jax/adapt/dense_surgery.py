"""Surgery and ProbSurgery for dense prediction: 1×1 convolutions on the features of a trunk.

As `adapt.surgery` and `adapt.probsurgery`, whose modules act on each position. The features of an
image are maps of thousands of channels, so they are not kept: each step works out what the merged
encoder and the task's expert make of its mini-batch, both in evaluation mode. One expert's weights
exist at a time, θ₀ + τ_k.

Table 2 of SyMerge (arXiv 2412.19098) has both on Task Arithmetic, without saying how; batches of 16
and 25 iterations are SyMerge's own there. Decoders stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from symerge_jax import trees
from symerge_jax.adapt import probsurgery, surgery
from symerge_jax.adapt import schedule as schedules
from symerge_jax.adapt.dense import held, images_at
from symerge_jax.adapt.fit import Batch, Keep, Loss, fit, pool
from symerge_jax.adapt.merged import pick
from symerge_jax.adapt.schedule import Schedule
from symerge_jax.adapt.surgery import IDLE, Corrected, Idle, OnChunk, check_idle
from symerge_jax.errors import BadInput
from symerge_jax.notation import Array, Params, TaskVectors
from symerge_jax.task_vectors import add


def dense_surgery(
    encode: Callable[[Any, Array], Array],
    merged: Params,
    pretrained: Params,
    task_vectors: TaskVectors,
    images: Sequence[Array],
    *,
    probabilistic: bool = False,
    width: int | None = None,
    beta: float = 1e-4,
    iterations: int = 25,
    batch_size: int = 16,
    learning_rate: float = 1e-3,
    idle: Idle = "dense",
    seed: int = 0,
    schedule: Schedule | None = None,
    chunk_steps: int | None = None,
    on_chunk: OnChunk | None = None,
    keep: Keep | None = None,
) -> Corrected:
    """Trains one module per task on unlabelled images.

    Args:
        encode: (variables, images [batch, ...]) → features [batch, height, width, d].
        merged: variables of the merged encoder, which stay as they are.
        pretrained: θ₀ with its running statistics.
        task_vectors: τ of the same leaves, [task, ...].
        images: one array per task, uint8 [n, height, width, 3].
        probabilistic: ProbSurgery instead of Surgery.
        width: of the bottleneck; 16, or 128 if probabilistic.
        beta: weight of the divergence, if probabilistic.
        iterations: rounds over the tasks.
        batch_size: images per step.
        learning_rate: Adam's.
        idle: "dense", modules of other tasks move by momentum; "masked", only by own steps.
        seed: of the start, task order, batches and noise.
        schedule: replaces `iterations` and `batch_size`.
        chunk_steps: steps between two calls of `on_chunk`; None for a few seconds' worth.
        on_chunk: see `fit`.
        keep: where the state is kept; see `fit`.

    Returns:
        The modules, leaves [task, ...], for `surgery.correct` or `probsurgery.correct`.

    Raises:
        BadInput: shapes that do not fit together, an option out of range, a loss that is not
            finite.
    """
    check_idle(idle)
    tasks = trees.task_count(task_vectors)
    if len(images) != tasks:
        raise BadInput(f"got {tasks} task vectors, but images of {len(images)} tasks")
    example = jax.ShapeDtypeStruct((1, *np.shape(images[0])[1:]), images[0].dtype)
    features = jax.eval_shape(encode, merged, example)
    channels, dtype = features.shape[-1], features.dtype
    module: Any
    if probabilistic:
        hidden = 128 if width is None else width
        module = probsurgery.initial(tasks, channels, hidden=hidden, seed=seed, dtype=dtype)
    else:
        rank = 16 if width is None else width
        module = surgery.initial(tasks, channels, rank=rank, seed=seed, dtype=dtype)
    sizes = [len(own) for own in images]
    if schedule is None:
        schedule = schedules.sequential(
            sizes, iterations=iterations, batch_size=batch_size, seed=seed
        )
    fitted = fit(
        _loss(encode, probabilistic),
        module,
        pool([np.arange(n, dtype=np.int32) for n in sizes]),
        schedule,
        rates=learning_rate,
        constants=(merged, pretrained, task_vectors, held(images), jnp.asarray(beta, dtype)),
        per_task=True,
        idle=IDLE[idle],
        seed=seed,
        chunk_steps=chunk_steps,
        on_chunk=on_chunk,
        keep=keep,
    )
    return Corrected(fitted.trainables, fitted.losses)


@cache
def _loss(encode: Callable[..., Array], probabilistic: bool) -> Loss:
    inner = probsurgery.module_loss() if probabilistic else surgery.module_loss

    def loss(module: Any, constants: Any, state: Any, batch: Batch) -> Any:
        merged, pretrained, task_vectors, images, beta = constants
        seen = images_at(images, batch.task, batch.inputs)
        expert = add(pretrained, pick(task_vectors, batch.task))
        wide = batch._replace(inputs=encode(merged, seen), targets=encode(expert, seen))
        return inner(module, beta, state, wide)

    return loss
