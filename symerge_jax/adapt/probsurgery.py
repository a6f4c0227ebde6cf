"""ProbSurgery: Representation Surgery whose correction is a distribution while it is trained.

Wei et al., "Representation Surgery in Model Merging with Probabilistic Modeling", ICML 2025.
https://github.com/1998v7/ProbSurgery. As Surgery (`adapt.surgery`), but a module gives a mean μ and
a log-variance v of what to subtract from the merged feature h:

    u = relu(A h),  μ = M u,  v = V u
    trained with  h' = h − (μ + exp(v/2) ε),  ε ~ N(0, I)
    used with     h' = h − μ

The loss is the mean |h' − g| to the expert's feature g, plus β times the Kullback-Leibler
divergence of N(μ, exp(v)) to N(0, I), a sum over the features.

Defaults are those of the comparison in the SyMerge paper: as many inputs per task as SyMerge sees,
1000 mini-batches of 16. The authors' own run: `iterations=500, shuffle_tasks=False`. Departures
from it: the result is that of the last step, where the authors report the round whose test accuracy
is best; mini-batches come from a persistent shuffled stream, which the authors start anew every 100
iterations. On maps [n, height, width, d] each position has a correction and noise of its own, and
the divergence is averaged over positions.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from symerge_jax.adapt import schedule as schedules
from symerge_jax.adapt.fit import Batch, Keep, Loss, fit
from symerge_jax.adapt.merged import pick
from symerge_jax.adapt.objectives import masked_mean
from symerge_jax.adapt.schedule import Schedule
from symerge_jax.adapt.surgery import (
    IDLE,
    Corrected,
    Idle,
    OnChunk,
    check_idle,
    check_positive,
    checked,
    distance,
    paired,
    uniform_start,
)
from symerge_jax.notation import Array, Float

# What a step draws: its mini-batch → ε, shaped like batch.inputs. Never called in evaluation.
Noise = Callable[[Batch], Array]


class ProbSurgery(NamedTuple):
    """The modules of all tasks; without the task axis, one task's.

    Attributes:
        down: A.
        mean: M.
        log_variance: V.
    """

    down: Float[Array, "*task hidden features"]
    mean: Float[Array, "*task features hidden"]
    log_variance: Float[Array, "*task features hidden"]


def initial(
    tasks: int, features: int, *, hidden: int = 128, seed: int = 0, dtype: Any = jnp.float32
) -> ProbSurgery:
    """Returns modules of mean 0 and variance 1: A as a layer of PyTorch starts, M = V = 0.

    Args:
        tasks: number of tasks.
        features: d, the length of a feature vector.
        hidden: m, the width of the hidden layer; the authors' code takes 128.
        seed: of A.
        dtype: of all three.

    Raises:
        BadInput: a width below 1.
    """
    check_positive("hidden", hidden)
    down = uniform_start((tasks, hidden, features), seed, dtype)
    zeros = jnp.zeros((tasks, features, hidden), dtype)
    return ProbSurgery(down, zeros, zeros)


def moments(part: ProbSurgery, features: Float[Array, "*batch features"]) -> tuple[Array, Array]:
    """Returns μ and v, [..., features], of what to subtract; `part` is one task's module."""
    u = jax.nn.relu(features @ part.down.T)
    return u @ part.mean.T, u @ part.log_variance.T


def correct(part: ProbSurgery, features: Float[Array, "*batch features"]) -> Array:
    """Returns h' = h − μ in the module's dtype, [..., features]: what is used after training.

    Args:
        part: one task's module, leaves without the task axis; see `merged.pick`.
        features: h of the merged encoder, as its head takes it.
    """
    h = jnp.asarray(features).astype(part.down.dtype)
    return h - moments(part, h)[0]


def divergence(
    mean: Float[Array, "batch *rest"], log_variance: Float[Array, "batch *rest"]
) -> Float[Array, " batch"]:
    """KL of N(μ, exp(v)) to N(0, I): ½ Σ (μ² + exp(v) − 1 − v) of each sample.

    The sum goes over the features (the last axis); positions between are averaged.
    """
    # exp(v) − 1 at once: for small v the difference of both would be all rounding, and negative.
    terms = jnp.square(mean) + (jnp.expm1(log_variance) - log_variance)
    return terms.sum(axis=-1).reshape(len(mean), -1).mean(axis=1) / 2


def standard_normal(batch: Batch) -> Array:
    """Draws ε ~ N(0, I) with the step's own key."""
    return jax.random.normal(batch.key, batch.inputs.shape, batch.inputs.dtype)


def probsurgery(
    features: Sequence[Array],
    expert_features: Sequence[Array],
    *,
    hidden: int = 128,
    module: ProbSurgery | None = None,
    beta: float = 1e-4,
    shared: bool = False,
    iterations: int = 1000,
    batch_size: int = 16,
    learning_rate: float = 1e-3,
    idle: Idle = "dense",
    shuffle_tasks: bool = True,
    seed: int = 0,
    schedule: Schedule | None = None,
    noise: Noise = standard_normal,
    chunk_steps: int | None = None,
    on_chunk: OnChunk | None = None,
    keep: Keep | None = None,
) -> Corrected:
    """Trains one module per task, or one for all, on unlabelled inputs' features.

    Args:
        features: one array per task, [n, ..., d]: what the merged encoder makes of that task's
            inputs, before any normalisation. Tasks agree but in n. Narrow floats are widened to
            float32.
        expert_features: what the tasks' experts make of the same inputs, in the same order.
        hidden: m, the width of the hidden layer.
        module: modules to start from instead of `initial`; of one task if `shared`.
        beta: weight of the divergence.
        shared: one module for all tasks (the authors' `one`); in the result all tasks' parts are
            equal.
        iterations: rounds over the tasks.
        batch_size: inputs per step.
        learning_rate: Adam's.
        idle: "dense", modules of other tasks move by momentum; "masked", only by own steps. Nothing
            is idle if `shared`.
        shuffle_tasks: False visits tasks in their given order.
        seed: of A, task order, batches and ε.
        schedule: replaces `iterations`, `batch_size` and `shuffle_tasks`.
        noise: draws ε; another function replays a run. Pass the same object to reuse the program.
        chunk_steps: steps between two calls of `on_chunk`; None for a few seconds' worth.
        on_chunk: see `fit`.
        keep: where the state is kept; see `fit`.

    Raises:
        BadInput: shapes that do not fit together, an option out of range, a loss that is not
            finite.
    """
    check_idle(idle)
    data = paired(features, expert_features)
    tasks, width = len(data.sizes), data.inputs.shape[-1]
    count = 1 if shared else tasks
    if module is None:
        module = initial(count, width, hidden=hidden, seed=seed, dtype=data.inputs.dtype)
    else:
        hidden = np.shape(module.down)[1] if np.ndim(module.down) == 3 else hidden
        out = (count, width, hidden)
        module = checked(module, [(count, hidden, width), out, out], data)
    if schedule is None:
        schedule = schedules.sequential(
            data.sizes,
            iterations=iterations,
            batch_size=batch_size,
            seed=seed,
            shuffle_tasks=shuffle_tasks,
        )
    fitted = fit(
        module_loss(noise), module, data, schedule,
        rates=learning_rate,
        constants=jnp.asarray(beta, data.inputs.dtype),
        per_task=None if shared else True,
        idle=IDLE[idle],
        seed=seed,
        chunk_steps=chunk_steps,
        on_chunk=on_chunk,
        keep=keep,
    )  # fmt: skip
    trained = jax.tree.map(lambda x: jnp.broadcast_to(x, (tasks, *x.shape[1:])), fitted.trainables)
    return Corrected(trained, fitted.losses)


@cache
def module_loss(noise: Noise = standard_normal) -> Loss:
    """Returns what gives `fit` distance and divergence of features (inputs, targets)."""

    def loss(trainables: ProbSurgery, beta: Array, state: Any, batch: Batch) -> Any:
        # A module that all tasks share has one row, and every task number means that row.
        part = pick(trainables, batch.task % trainables.down.shape[0])
        mean, log_variance = moments(part, batch.inputs)
        corrected = batch.inputs - (mean + jnp.exp(log_variance / 2) * noise(batch))
        far = masked_mean(distance(corrected, batch.targets), batch.mask)
        wide = masked_mean(divergence(mean, log_variance), batch.mask)
        return far + beta * wide, state, ()

    return loss
