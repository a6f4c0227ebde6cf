"""WEMoE: per input, a router says how much of each task's MLP goes into the merged MLP.

Tang et al., "Merging Multi-Task Models via Weight-Ensembling Mixture of Experts", ICML 2024.
https://arxiv.org/abs/2402.00433. All other leaves are merged by task arithmetic and stay, heads
too; the routers learn by making predictions certain. Joint: one Adam step per iteration on the sum
over tasks of the mean entropy of a mini-batch, with a rate that follows a cosine to zero.

What a router is belongs to the network, which comes as `encode`. Departure: each pass over the
inputs has an order of its own; the authors' loader repeats that of the first.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from symerge_jax import trees
from symerge_jax.adapt import schedule as schedules
from symerge_jax.adapt.coefficients import interpolate, per_task
from symerge_jax.adapt.fit import ADAM, Batch, Keep, Loss, fit, pool
from symerge_jax.adapt.merged import Classify, pick
from symerge_jax.adapt.objectives import entropy, exclude, masked_mean
from symerge_jax.adapt.schedule import Schedule
from symerge_jax.adapt.symerge import OnChunk, all_rows, check_has_classes, check_option, sizes_of
from symerge_jax.errors import BadInput
from symerge_jax.notation import Array, Bool, Float, Params, PyTree, TaskVectors

# (params, τ of what is mixed, router, inputs, mask bool [batch] or None) → features [batch, ...]
RoutedEncode = Callable[[Params, TaskVectors, Params, Any, Array | None], Array]


class Mixture(NamedTuple):
    """What a routed encoder reads beside its router.

    Attributes:
        params: θ₀ where a router mixes, θ₀ + λ Σ_k τ_k elsewhere.
        task_vectors: τ, leaves [task, ...], where a router mixes; None elsewhere.
    """

    params: Params
    task_vectors: TaskVectors


class Routed(NamedTuple):
    """The result of a run.

    Attributes:
        router: as trained.
        losses: float [step], before each micro-step's update.
    """

    router: Params
    losses: Float[np.ndarray, " step"]


class Constants(NamedTuple):
    """What the run reads.

    Attributes:
        mixture: see there.
        heads: leaves [task, ...], padded to one number of classes.
        classes: bool [task, classes], which rows of the padded heads exist.
    """

    mixture: Mixture
    heads: Params
    classes: Bool[Array, "task classes"]


def mixture(
    pretrained: Params, task_vectors: TaskVectors, routed: PyTree, *, coefficient: float = 0.3
) -> Mixture:
    """Merges what no router mixes by task arithmetic, and leaves the rest to the routers.

    Args:
        pretrained: θ₀.
        task_vectors: τ, leaves [task, ...]; None where no expert changed θ₀.
        routed: a tree like θ₀ with True where a router mixes.
        coefficient: λ of the leaves that are merged.

    Raises:
        BadInput: `routed` has another structure than θ₀, or marks no leaf.
    """
    if jax.tree.structure(routed) != jax.tree.structure(pretrained):
        raise BadInput("routed: expected True or False for each leaf of θ₀, got another structure")
    if not any(jax.tree.leaves(routed)):
        raise BadInput("routed: expected at least one leaf that a router mixes, got none")
    count = trees.task_count(task_vectors)

    def inside(flag: bool, theta0: Array, tau: Array | None) -> Array | None:
        if flag and tau is None:
            return jnp.zeros((count, *theta0.shape), trees.wide(theta0.dtype))
        return tau if flag else None

    outside = jax.tree.map(lambda flag, tau: None if flag else tau, routed, task_vectors)
    return Mixture(
        jax.jit(interpolate)(pretrained, outside, per_task(task_vectors, coefficient)),
        jax.tree.map(inside, routed, pretrained, task_vectors),
    )


@cache
def router_loss(encode: RoutedEncode, classify: Classify) -> Loss:
    """Returns the mean entropy of the predictions, as a loss of the router alone."""

    def loss(router: Params, constants: Constants, state: Any, batch: Batch) -> Any:
        features = encode(*constants.mixture, router, batch.inputs, batch.mask)
        logits = classify(pick(constants.heads, batch.task), features)
        logits = exclude(logits, constants.classes[batch.task][None])
        return masked_mean(entropy(logits), batch.mask), state, ()

    return loss


@cache
def cosine_adam(updates: int) -> optax.GradientTransformation:
    """Returns Adam of rate (1 + cos(π n / updates)) / 2 at update n = 0, 1, ….

    The count is a part of its state, so a run that goes on keeps its place.
    """
    return optax.adam(optax.cosine_decay_schedule(1.0, updates))


def wemoe(
    encode: RoutedEncode,
    classify: Classify,
    params: Params,
    task_vectors: TaskVectors,
    router: Params,
    heads: Params,
    inputs: Sequence[Any],
    *,
    classes: Bool[Array, "task classes"] | None = None,
    iterations: int = 1000,
    batch_size: int = 16,
    learning_rate: float = 1e-4,
    schedule_kind: Literal["cosine", "constant"] = "cosine",
    seed: int = 0,
    schedule: Schedule | None = None,
    chunk_steps: int | None = None,
    on_chunk: OnChunk | None = None,
    keep: Keep | None = None,
) -> Routed:
    """Adapts the router to unlabelled inputs; encoder and heads stay.

    Args:
        encode: (params, τ of what is mixed, router, inputs [batch, ...], mask) → features
            [batch, features]; `mask`, bool [batch], is False for padding. Pass the same function
            objects again to reuse the compiled program.
        classify: (head, features) → logits [batch, classes].
        params: the encoder, as `mixture` gives it.
        task_vectors: τ of what is mixed, as `mixture` gives it.
        router: where to start, a pytree of float arrays.
        heads: leaves [task, ...], padded to one number of classes.
        inputs: one pytree per task, leaves [n, ...]: the unlabelled inputs.
        classes: which rows of the padded heads exist; None for all.
        iterations: optimiser steps, each on a mini-batch of every task.
        batch_size: inputs per mini-batch.
        learning_rate: Adam's, at first. The authors take 1e-3 for a router of depth 0.
        schedule_kind: of the learning rate: "cosine" falls to zero over the optimiser steps.
        seed: of the batches.
        schedule: of the micro-steps; replaces `iterations`, `batch_size` and `seed`.
        chunk_steps: micro-steps between two calls of `on_chunk`; None for a few seconds' worth.
        on_chunk: see `fit`.
        keep: where the state is kept; see `fit`.

    Raises:
        BadInput: shapes that do not fit together, an unknown option, a loss that is not finite.
    """
    check_option("schedule_kind", schedule_kind, ("cosine", "constant"))
    count = trees.task_count(task_vectors)
    if not len(inputs) == trees.task_count(heads) == count:
        raise BadInput(
            f"got {count} task vectors, {trees.task_count(heads)} heads and inputs of "
            f"{len(inputs)} tasks; expected one of each per task"
        )

    def unmasked(model: tuple[Mixture, Params], x: Any) -> Array:
        return encode(*model[0], model[1], x, None)

    parts = Mixture(params, task_vectors)
    all_classes = all_rows(classify, unmasked, (parts, router), heads, inputs)
    if classes is not None and np.shape(classes) != all_classes.shape:
        raise BadInput(
            f"classes: expected [task, classes] of shape {all_classes.shape} as the heads have, "
            f"got {np.shape(classes)}"
        )
    check_has_classes(all_classes if classes is None else classes)
    sizes = sizes_of(inputs)
    if schedule is None:
        schedule = schedules.joint(sizes, iterations=iterations, batch_size=batch_size, seed=seed)
    schedules.check(schedule, sizes)  # before its updates are counted
    updates = int(np.sum(schedule.apply_update))
    fitted = fit(
        router_loss(encode, classify), router, pool(inputs), schedule,
        rates=learning_rate,
        constants=Constants(
            parts, heads, all_classes if classes is None else jnp.asarray(classes)
        ),
        optimiser=cosine_adam(updates) if schedule_kind == "cosine" else ADAM,
        seed=seed,
        chunk_steps=chunk_steps,
        on_chunk=on_chunk,
        keep=keep,
    )  # fmt: skip
    return Routed(fitted.trainables, fitted.losses)
