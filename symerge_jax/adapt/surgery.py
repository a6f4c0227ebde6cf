"""Representation Surgery: subtract from merged features what sets them apart from the expert's.

Yang et al., "Representation Surgery for Multi-Task Model Merging", ICML 2024.
https://arxiv.org/abs/2402.02705. Behind the merged encoder, which stays as it is, each task has a
small module of its own, h' = h − U relu(D h), trained on unlabelled inputs so that h' comes close
to the expert's feature g in the mean absolute difference. Any way to merge can be the base.

The encoder does not change, so features are worked out once and given; training takes seconds.
Features of more axes than [n, d], such as maps [n, height, width, d], are corrected along the last
one (a pair of 1×1 convolutions) and compared at all positions.

Defaults are those of the comparison in the SyMerge paper: one mini-batch of 16 per task and
iteration, tasks in random order, 1000 iterations. The authors' own run: `iterations=500, batches=2,
shuffle_tasks=False`. Departure from it: mini-batches come from a persistent shuffled stream; the
authors shuffle anew each iteration. On what Adam does to the modules of other tasks ("dense",
"masked"), see `adapt.symerge`.

`normalised` is the variant of FusionBench (https://github.com/tanganke/fusion_bench): the module
acts on features of length 1, and logits are W h' + b without normalising h' again.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from symerge_jax import trees
from symerge_jax.adapt import schedule as schedules
from symerge_jax.adapt.fit import Batch, Carry, Data, Keep, fit, pool
from symerge_jax.adapt.merged import pick
from symerge_jax.adapt.objectives import masked_mean
from symerge_jax.adapt.schedule import Schedule
from symerge_jax.errors import BadInput
from symerge_jax.notation import Array, Float

Idle = Literal["dense", "masked"]
IDLE: dict[str, Literal["zero", "skip"]] = {"dense": "zero", "masked": "skip"}
OnChunk = Callable[[Carry, np.ndarray], None]

# Random numbers of a start come from a key that no step of a run has; steps are numbered from 0.
_START = 2**32 - 1


class Surgery(NamedTuple):
    """The modules of all tasks; without the task axis, one task's.

    Attributes:
        down: D.
        up: U.
    """

    down: Float[Array, "*task rank features"]
    up: Float[Array, "*task features rank"]


class Corrected(NamedTuple):
    """The result of a run.

    Attributes:
        module: after the last step, leaves [task, ...]: `Surgery`, or `ProbSurgery`.
        losses: float [step], before each step's update.
    """

    module: Any
    losses: Float[np.ndarray, " step"]


def initial(
    tasks: int, features: int, *, rank: int = 16, seed: int = 0, dtype: Any = jnp.float32
) -> Surgery:
    """Returns modules that change nothing yet: D as a layer of PyTorch starts, U = 0.

    Args:
        tasks: number of tasks.
        features: d, the length of a feature vector.
        rank: r, the width of the bottleneck; the paper takes 16, and more is better.
        seed: of D.
        dtype: of both.

    Raises:
        BadInput: a rank below 1.
    """
    check_positive("rank", rank)
    down = uniform_start((tasks, rank, features), seed, dtype)
    return Surgery(down, jnp.zeros((tasks, features, rank), dtype))


def correct(part: Surgery, features: Float[Array, "*batch features"]) -> Array:
    """Returns h' = h − U relu(D h) in the module's dtype, [..., features].

    Args:
        part: one task's module, D [rank, features] and U [features, rank]; see `merged.pick`.
        features: h of the merged encoder, as its head takes it.
    """
    h = jnp.asarray(features).astype(part.down.dtype)
    return h - jax.nn.relu(h @ part.down.T) @ part.up.T


def unit(features: Float[Array, "*batch features"]) -> Float[Array, "*batch features"]:
    """Divides features by their L2 norm along the last axis; no epsilon, as in the reference."""
    return features / (features * features).sum(axis=-1, keepdims=True) ** 0.5


def distance(
    features: Float[Array, "batch *rest"], expert_features: Float[Array, "batch *rest"]
) -> Float[Array, " batch"]:
    """Mean |h' − g| of each sample, over the features and all positions."""
    difference = features - expert_features
    # The derivative at 0 is 0, as in PyTorch; that of `jnp.abs` is 1, and what agrees would move.
    absolute = difference * jnp.sign(difference)
    return absolute.reshape(len(features), -1).mean(axis=1)


def surgery(
    features: Sequence[Array],
    expert_features: Sequence[Array],
    *,
    rank: int = 16,
    module: Surgery | None = None,
    iterations: int = 1000,
    batch_size: int = 16,
    batches: int = 1,
    learning_rate: float = 1e-3,
    idle: Idle = "dense",
    shuffle_tasks: bool = True,
    normalised: bool = False,
    seed: int = 0,
    schedule: Schedule | None = None,
    chunk_steps: int | None = None,
    on_chunk: OnChunk | None = None,
    keep: Keep | None = None,
) -> Corrected:
    """Trains one module per task on unlabelled inputs' features.

    Args:
        features: one array per task, [n, ..., d]: what the merged encoder makes of that task's
            inputs, before any normalisation. Tasks agree but in n. Narrow floats are widened to
            float32.
        expert_features: what the tasks' experts make of the same inputs, in the same order.
        rank: r, the width of the bottleneck.
        module: modules to start from instead of `initial`.
        iterations: rounds over the tasks.
        batch_size: inputs per step.
        batches: mini-batches per task and iteration, with an Adam step after each.
        learning_rate: Adam's.
        idle: "dense", modules of other tasks move by momentum; "masked", only by own steps.
        shuffle_tasks: False visits tasks in their given order.
        normalised: train on `unit(features)`, towards `unit(expert_features)`. The module is then
            for `unit(h)`, and the head must not normalise its result.
        seed: of D, task order and batches.
        schedule: replaces `iterations`, `batch_size`, `batches` and `shuffle_tasks`.
        chunk_steps: steps between two calls of `on_chunk`; None for a few seconds' worth.
        on_chunk: see `fit`.
        keep: where the state is kept; see `fit`.

    Raises:
        BadInput: shapes that do not fit together, an option out of range, a loss that is not
            finite.
    """
    check_idle(idle)
    data = paired(features, expert_features, normalised=normalised)
    count, width = len(data.sizes), data.inputs.shape[-1]
    if module is None:
        module = initial(count, width, rank=rank, seed=seed, dtype=data.inputs.dtype)
    else:
        rank = np.shape(module.down)[1] if np.ndim(module.down) == 3 else rank
        module = checked(module, [(count, rank, width), (count, width, rank)], data)
    if schedule is None:
        schedule = in_turn(
            data.sizes,
            iterations=iterations,
            batch_size=batch_size,
            batches=batches,
            seed=seed,
            shuffle_tasks=shuffle_tasks,
        )
    fitted = fit(
        module_loss, module, data, schedule,
        rates=learning_rate,
        per_task=True,
        idle=IDLE[idle],
        seed=seed,
        chunk_steps=chunk_steps,
        on_chunk=on_chunk,
        keep=keep,
    )  # fmt: skip
    return Corrected(fitted.trainables, fitted.losses)


def in_turn(
    sizes: Sequence[int],
    *,
    iterations: int,
    batch_size: int,
    batches: int,
    seed: int,
    shuffle_tasks: bool,
) -> Schedule:
    """`schedule.sequential` with several steps in a row per task and iteration.

    Args:
        sizes: number of inputs of each task.
        iterations: rounds over the tasks; there are iterations · tasks · batches steps.
        batch_size: samples per step.
        batches: steps per task and iteration, each on a mini-batch of its own.
        seed: of task order and data order.
        shuffle_tasks: False visits tasks in their given order.
    """
    check_positive("batches", batches)
    rows = schedules.sequential(
        sizes,
        iterations=iterations * batches,
        batch_size=batch_size,
        seed=seed,
        shuffle_tasks=False,
    )
    tasks = len(sizes)
    order = schedules.sequential(
        sizes, iterations=iterations, batch_size=1, seed=seed, shuffle_tasks=shuffle_tasks
    ).task_ids.reshape(iterations, tasks)
    numbers = np.arange(rows.steps).reshape(iterations, batches, tasks)
    chosen = numbers.transpose(0, 2, 1)[np.arange(iterations)[:, None], order].reshape(-1)
    return Schedule(*(field[chosen] for field in rows))


def uniform_start(shape: tuple[int, ...], seed: int, dtype: Any) -> Array:
    """Draws weights [..., out, in] from U(−1/√in, 1/√in): Kaiming-uniform with a = √5."""
    key = jax.random.fold_in(jax.random.key(seed), _START)
    bound = shape[-1] ** -0.5
    return jax.random.uniform(key, shape, dtype, -bound, bound)


def paired(
    features: Sequence[Array], expert_features: Sequence[Array], *, normalised: bool = False
) -> Data:
    """Puts merged (inputs) and experts' features (targets) of all tasks end to end.

    Args:
        features: one array per task, [n, ..., d].
        expert_features: one array per task, of the same shapes.
        normalised: whether to divide both by their lengths.

    Returns:
        Both in float32, or in float64 if one of them is.

    Raises:
        BadInput: no task, or shapes or dtypes that do not fit together.
    """
    if not len(features) == len(expert_features) > 0:
        raise BadInput(
            f"got merged features of {len(features)} tasks and expert features of "
            f"{len(expert_features)}; expected one array of each per task"
        )
    rest = np.shape(features[0])[1:]
    for k, (own, expert) in enumerate(zip(features, expert_features, strict=True)):
        if np.shape(own) != np.shape(expert):
            raise BadInput(
                f"task {k}: the merged features have shape {np.shape(own)}, the expert's "
                f"{np.shape(expert)}; expected the same, from the same inputs in the same order"
            )
        if np.ndim(own) < 2 or np.shape(own)[1:] != rest:
            raise BadInput(
                f"task {k}: expected features [n, ..., d] that differ from those of task 0, of "
                f"shape {np.shape(features[0])}, only in n; got shape {np.shape(own)}"
            )
        for array in (own, expert):
            if not jnp.issubdtype(jnp.result_type(array), jnp.floating):
                raise BadInput(f"task {k}: expected features as floats, got {array.dtype}")
    dtype = trees.wide(*(jnp.result_type(x) for x in (*features, *expert_features)))

    def prepared(arrays: Sequence[Array]) -> list[np.ndarray]:
        wide = [np.asarray(x).astype(jnp.dtype(dtype), copy=False) for x in arrays]
        return [np.asarray(unit(x)) for x in wide] if normalised else wide

    return pool(prepared(features), prepared(expert_features))


def checked(module: Any, shapes: Sequence[tuple[int, ...]], data: Data) -> Any:
    """Returns a module to start from in the data's dtype.

    Args:
        module: a named tuple of arrays.
        shapes: that the arrays should have, in the order of the module's fields.
        data: what it is to be trained on.

    Raises:
        BadInput: an array has another shape (the first is named).
    """
    for name, leaf, shape in zip(module._fields, module, shapes, strict=True):
        if np.shape(leaf) != shape:
            raise BadInput(
                f"module: expected {name!r} of shape {shape} for these features, got "
                f"{np.shape(leaf)}"
            )
    return jax.tree.map(lambda x: jnp.asarray(x, data.inputs.dtype), module)


def check_positive(name: str, value: int) -> None:
    """Refuses a number below 1 with BadInput."""
    if value < 1:
        raise BadInput(f"{name} must be at least 1, got {value}")


def check_idle(idle: str) -> None:
    """Refuses all but the keys of `IDLE` with BadInput."""
    if idle not in IDLE:
        raise BadInput(f"idle must be one of {', '.join(IDLE)}, got {idle!r}")


def module_loss(trainables: Surgery, constants: Any, state: Any, batch: Batch) -> Any:
    """Gives `fit` the distance of corrected features (inputs) to the expert's (targets)."""
    del constants
    corrected = correct(pick(trainables, batch.task), batch.inputs)
    return masked_mean(distance(corrected, batch.targets), batch.mask), state, ()
