"""The merged classifier under adaptation: its trainables and the loss of one mini-batch.

Shared by SyMerge and AdaMerging, which differ in the objective and in what has a learning rate;
with equal shapes they are one compiled program.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from symerge_jax.adapt.coefficients import clamp_all, interpolate
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

# (params, inputs) → features [batch, ...]
Encode = Callable[[Params, Any], Array]
# (head of one task, features) → logits [batch, classes]
Classify = Callable[[Params, Array], Array]

# What the loss can be, by number, so that a change of objective is no new program.
OBJECTIVES = {**{name: i for i, name in enumerate(FILTERS)}, "entropy": len(FILTERS)}


class Trainables(NamedTuple):
    """What adaptation moves.

    Attributes:
        coefficients: λ, leaves [task] (or one array [task]).
        heads: leaves [task, ...]; heads of unequal size are padded (see `Constants.classes`).
    """

    coefficients: Coefficients
    heads: Params


class Constants(NamedTuple):
    """What adaptation reads.

    Attributes:
        pretrained: θ₀.
        task_vectors: τ, leaves [task, ...].
        classes: bool [task, classes], which rows of the padded heads exist.
        objective: int [task], an entry of `OBJECTIVES` per task.
    """

    pretrained: Params
    task_vectors: TaskVectors
    classes: Bool[Array, "task classes"]
    objective: Int[Array, " task"]


class Extra(NamedTuple):
    """Per step, for curves and comparisons: which samples counted, bool [batch]."""

    kept: Bool[Array, " batch"]


def pick(tree: Params, task: Array) -> Params:
    """Returns one task's part of leaves [task, ...]."""
    return jax.tree.map(lambda x: x[task], tree)


@cache
def encoder_loss(encode: Encode, classify: Classify, clamp: bool = True) -> Loss:
    """Returns the loss in which each step merges the encoder anew: θ = θ₀ + Σ clip(λ) τ."""

    def loss(trainables: Trainables, constants: Constants, state: Any, batch: Batch) -> Any:
        lam = clamp_all(trainables.coefficients) if clamp else trainables.coefficients
        theta = interpolate(constants.pretrained, constants.task_vectors, lam)
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
    logits = exclude(logits, constants.classes[batch.task][None])
    expert: ExpertLabels = batch.targets

    def labelled(keep: Any) -> Callable[[], tuple[Array, Array]]:
        def branch() -> tuple[Array, Array]:
            kept = batch.mask & jax.lax.stop_gradient(keep(logits, expert))
            return masked_mean(self_label(logits, expert), kept), kept

        return branch

    def unlabelled() -> tuple[Array, Array]:
        return masked_mean(entropy(logits), batch.mask), batch.mask

    branches = [*(labelled(keep) for keep in FILTERS.values()), unlabelled]
    value, kept = jax.lax.switch(constants.objective[batch.task], branches)
    return value, Extra(kept)


def objective_ids(name: str, tasks: int) -> Array:
    """Returns one objective for all tasks, int [task]."""
    return jnp.full((tasks,), OBJECTIVES[name], jnp.int32)
