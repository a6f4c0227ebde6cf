"""The merged classifier under adaptation: its trainables and the loss of one mini-batch.

Shared by SyMerge and AdaMerging, which differ in the objective and in what has a learning rate;
with equal shapes they are one compiled program.

Leaves of the encoder may be a task's own: "the one layer" of SyMerge can be a block instead of the
classifier (appendix D.1). They have no coefficient; each task has a copy that its own loss moves.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from symerge_jax import trees
from symerge_jax.adapt import across
from symerge_jax.adapt.coefficients import clamp_all, interpolate
from symerge_jax.adapt.distances import DISTANCES, Distance, ExpertOutputs, Pair
from symerge_jax.adapt.fit import Batch, Loss
from symerge_jax.adapt.objectives import (
    FILTERS,
    ExpertLabels,
    entropy,
    exclude,
    masked_mean,
    self_label,
)
from symerge_jax.notation import Array, Bool, Coefficients, Float, Int, Params, TaskVectors

Branch = Callable[[], tuple[Array, Array]]  # → loss [], kept bool [batch]
# (params, inputs) → features [batch, ...]
Encode = Callable[[Params, Any], Array]
# (head of one task, features) → logits [batch, classes]
Classify = Callable[[Params, Array], Array]

# What the loss can be, by number, so that a change of objective is no new program: with experts'
# labels or none as targets, and with experts' outputs.
OBJECTIVES = {**{name: i for i, name in enumerate(FILTERS)}, "entropy": len(FILTERS)}
OUTPUT_OBJECTIVES = {name: i for i, name in enumerate(DISTANCES)}


class Trainables(NamedTuple):
    """What adaptation moves.

    Attributes:
        coefficients: λ, leaves [task] (or one array [task]).
        heads: leaves [task, ...]; heads of unequal size are padded (see `Constants.classes`).
        layers: leaves [task, ...] of the encoder that are each task's own, None for the others; ()
            if all are shared.
    """

    coefficients: Coefficients
    heads: Params
    layers: Params = ()


class Constants(NamedTuple):
    """What adaptation reads.

    Attributes:
        pretrained: θ₀.
        task_vectors: τ, leaves [task, ...]; None for leaves that are each task's own.
        classes: bool [task, classes], which rows of the padded heads exist.
        objective: int [task], an entry of `OBJECTIVES` per task, or of `OUTPUT_OBJECTIVES` where
            the targets are `ExpertOutputs`.
    """

    pretrained: Params
    task_vectors: TaskVectors
    classes: Bool[Array, "task classes"]
    objective: Int[Array, " task"]


class Extra(NamedTuple):
    """Per step, for curves and comparisons: which samples counted, bool [batch]."""

    kept: Bool[Array, " batch"]


def pick(tree: Params, task: Array | int) -> Params:
    """Returns one task's part of leaves [task, ...]."""
    return jax.tree.map(lambda x: x[task], tree)


def with_layers(params: Params, layers: Params, task: Array | int) -> Params:
    """Returns one task's encoder: its own leaves in place of the shared ones."""
    return trees.combine(pick(layers, task), params) if jax.tree.leaves(layers) else params


@cache
def encoder_loss(
    encode: Encode, classify: Classify, clamp: bool = True, axes: tuple[int, ...] = ()
) -> Loss:
    """Returns the loss in which each step merges the encoder anew: θ = θ₀ + Σ clip(λ) τ.

    Args:
        encode: (θ, inputs) → features.
        classify: (head, features) → logits.
        clamp: whether λ is clipped.
        axes: of the leaves of θ₀, along which devices share them; () if each has all.
    """

    def loss(trainables: Trainables, constants: Constants, state: Any, batch: Batch) -> Any:
        lam = clamp_all(trainables.coefficients) if clamp else trainables.coefficients
        theta = interpolate(constants.pretrained, constants.task_vectors, lam)
        theta = with_layers(across.whole(theta, axes), trainables.layers, batch.task)
        features = encode(theta, batch.inputs)
        value, extra = _objective(classify, trainables.heads, constants, features, batch)
        return value, state, extra

    return loss


@cache
def head_loss(classify: Classify) -> Loss:
    """Returns the loss over features that were worked out once: the encoder does not change."""

    def loss(trainables: Trainables, constants: Constants, state: Any, batch: Batch) -> Any:
        value, extra = _objective(classify, trainables.heads, constants, batch.inputs, batch)
        return value, state, extra

    return loss


def _objective(
    classify: Classify,
    heads: Params,
    constants: Constants,
    features: Float[Array, "batch features"],
    batch: Batch,
) -> tuple[Array, Extra]:
    logits = classify(pick(heads, batch.task), features)
    classes = constants.classes[batch.task]
    if isinstance(batch.targets, ExpertOutputs):
        pair = Pair(ExpertOutputs(logits, features), batch.targets, classes)
        branches = _to_outputs(pair, batch.mask)
    else:
        branches = _to_labels(exclude(logits, classes[None]), batch.targets, batch.mask)
    value, kept = jax.lax.switch(constants.objective[batch.task], branches)
    return value, Extra(kept)


def _to_labels(logits: Array, expert: ExpertLabels, mask: Array) -> list[Branch]:
    """Returns the losses of `OBJECTIVES`, in order."""

    def labelled(keep: Any) -> Branch:
        def branch() -> tuple[Array, Array]:
            kept = mask & jax.lax.stop_gradient(keep(logits, expert))
            return masked_mean(self_label(logits, expert), kept), kept

        return branch

    def unlabelled() -> tuple[Array, Array]:
        return masked_mean(entropy(logits), mask), mask

    return [*(labelled(keep) for keep in FILTERS.values()), unlabelled]


def _to_outputs(pair: Pair, mask: Array) -> list[Branch]:
    """Returns the losses of `OUTPUT_OBJECTIVES`, in order."""

    def branch(distance: Distance) -> Branch:
        return lambda: (masked_mean(distance(pair), mask), mask)

    return [branch(distance) for distance in DISTANCES.values()]


def objective_ids(names: Sequence[str]) -> Array:
    """Returns the tasks' objectives as numbers, int [task]."""
    known = {**OBJECTIVES, **OUTPUT_OBJECTIVES}
    return jnp.array([known[name] for name in names], jnp.int32)
