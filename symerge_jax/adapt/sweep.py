"""Sweeps: many runs of SyMerge or AdaMerging that differ in numbers only, as one program.

Learning rates, where λ and heads start and the order of the batches are numbers to the program
(`many`), so that a grid of them is compiled once. Experts' predictions, images, θ₀ and τ are there
once for all runs; where only heads train, so are the features. What comes back is λ and the heads
of each run: a merged model is made when somebody wants to score it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from symerge_jax import trees
from symerge_jax.adapt import schedule as schedules
from symerge_jax.adapt.coefficients import per_leaf, per_task
from symerge_jax.adapt.distances import ExpertOutputs
from symerge_jax.adapt.fit import Data, Keep, pool
from symerge_jax.adapt.many import FittedMany, Numbers, fit_many
from symerge_jax.adapt.merged import (
    OUTPUT_OBJECTIVES,
    Classify,
    Constants,
    Encode,
    Trainables,
    encoder_loss,
    head_loss,
    objective_ids,
)
from symerge_jax.adapt.objectives import FILTERS, ExpertLabels
from symerge_jax.adapt.schedule import Schedule
from symerge_jax.adapt.symerge import (
    all_rows,
    check_coefficients,
    check_has_classes,
    check_option,
    check_targets,
    merged_encoder,
    sizes_of,
)
from symerge_jax.errors import BadInput
from symerge_jax.evaluate import predict
from symerge_jax.notation import Array, Bool, Coefficients, Float, Params, TaskVectors
from symerge_jax.parallel import Device


class Point(NamedTuple):
    """The numbers of one run; as for `symerge`.

    Attributes:
        coefficient_rate: Adam's learning rate for λ.
        head_rate: Adam's learning rate for the heads.
        initial_coefficient: of every leaf and task.
        seed: of task order and batches.
        coefficients: λ to start from instead, of one structure in all points.
        heads: to start from, leaves [task, ...]; those of the sweep if None.
    """

    coefficient_rate: float = 0.01
    head_rate: float = 0.01
    initial_coefficient: float = 0.3
    seed: int = 0
    coefficients: Coefficients | None = None
    heads: Params | None = None


class Diverged(NamedTuple):
    """Where a run ended before its time.

    Attributes:
        step: the micro-step whose loss or gradient was not finite; it was not made.
        task: whose batch that was.
        loss: of that batch; finite if only the gradient was not.
    """

    step: int
    task: int
    loss: float


class Swept(NamedTuple):
    """The result of one run of a sweep.

    Attributes:
        point: its numbers.
        coefficients: λ as trained, not clamped, leaves [task]; `merged_encoder` makes θ of it.
        heads: leaves [task, ...].
        losses: float [step], of the steps that were made, before each one's update.
        diverged: None if all steps were made.
    """

    point: Point
    coefficients: Coefficients
    heads: Params
    losses: Float[np.ndarray, " step"]
    diverged: Diverged | None = None


def sweep(
    encode: Encode,
    classify: Classify,
    pretrained: Params,
    task_vectors: TaskVectors,
    heads: Params,
    inputs: Sequence[Any],
    experts: Sequence[ExpertLabels] | Sequence[ExpertOutputs] | None,
    points: Sequence[Point],
    *,
    classes: Bool[Array, "task classes"] | None = None,
    objective: str | Sequence[str] = "self_label",
    granularity: Literal["leaf", "task"] = "leaf",
    iterations: int = 500,
    batch_size: int = 32,
    schedule: Callable[[int], Schedule] | None = None,
    confidence_filter: Literal["none", "code", "paper"] = "code",
    idle_heads: Literal["dense", "masked"] = "dense",
    clamp: bool = True,
    chunk_steps: int | None = None,
    on_chunk: Callable[[np.ndarray], None] | None = None,
    keep: Keep | None = None,
    devices: Sequence[Device] | None = None,
    lanes: int | None = None,
) -> list[Swept]:
    """Adapts coefficients and heads once for each point.

    Each run is what `symerge` makes of the same numbers. AdaMerging is `objective="entropy"` with
    head rates of 0 and, if it is joint, `schedules.joint` for `schedule`.

    Args:
        encode: (θ, inputs [batch, ...]) → features [batch, features]. Pass the same function
            objects again to reuse the compiled program.
        classify: (head, features) → logits [batch, classes].
        pretrained: θ₀.
        task_vectors: τ, leaves [task, ...].
        heads: leaves [task, ...], padded to one number of classes.
        inputs: one pytree per task, leaves [n, ...]: the unlabelled inputs.
        experts: what each task's expert says about those inputs; None if no objective asks it.
        points: the numbers of each run. If no point has a learning rate for λ, the features of each
            start are worked out once.
        classes: which rows of the padded heads exist; None for all.
        objective: of all tasks, or of each; as for `symerge`.
        granularity: one λ per task and leaf or per task, where a point does not bring its own.
        iterations: rounds over the tasks.
        batch_size: inputs per step.
        schedule: gives the micro-steps of a seed, in place of `iterations` and `batch_size`.
        confidence_filter: which samples count; as for `symerge`.
        idle_heads: as for `symerge`.
        clamp: whether λ is clipped to [0, 1] in the forward pass.
        chunk_steps: steps between two calls of `on_chunk`; None for a few seconds' worth.
        on_chunk: called after each chunk with its losses [run, step]; NaN where a run has stopped.
        keep: where the state of all runs is kept; see `fit`.
        devices: of this process, over which runs are spread; None for JAX's default one.
        lanes: runs that a device takes through the steps together, at most. None for 1 on a CPU
            (if only heads train, as many as its cache holds) and, on an accelerator, for as many
            as its memory holds.

    Returns:
        One result per point, in their order. Runs that diverge are among them.

    Raises:
        BadInput: shapes that do not fit together, an unknown option, no point at all.
    """
    objectives = [objective] * len(inputs) if isinstance(objective, str) else list(objective)
    for one in objectives:
        check_option("objective", one, ("self_label", "entropy", *OUTPUT_OBJECTIVES))
    check_option("granularity", granularity, ("leaf", "task"))
    check_option("confidence_filter", confidence_filter, FILTERS)
    check_option("idle_heads", idle_heads, ("dense", "masked"))
    _check_points(points, lanes, devices)
    count, sizes = trees.task_count(task_vectors), sizes_of(inputs)
    if not len(inputs) == trees.task_count(heads) == count:
        raise BadInput(
            f"got {count} task vectors, {trees.task_count(heads)} heads and inputs of "
            f"{len(inputs)} tasks; expected one of each per task"
        )
    starts = _starts(points, task_vectors, heads, granularity, count)
    if experts is None:
        experts = _nobody(objectives, sizes, starts)
    rows = all_rows(classify, encode, pretrained, heads, inputs)
    if classes is None:
        classes = rows
    elif np.shape(classes) != rows.shape:
        raise BadInput(
            f"classes: expected [task, classes] of shape {rows.shape} as the heads have, got "
            f"{np.shape(classes)}"
        )
    check_targets(experts, objectives, classes.shape[-1])
    if "entropy" in objectives:
        check_has_classes(classes, [k for k, x in enumerate(objectives) if x == "entropy"])
    objectives = [confidence_filter if x == "self_label" else x for x in objectives]
    ids = objective_ids(objectives)
    heads_only = all(point.coefficient_rate == 0 for point in points)
    if heads_only:
        data, offset = _features(
            encode, pretrained, task_vectors, starts.coefficients, clamp, inputs, experts
        )
        constants = Constants((), (), jnp.asarray(classes), ids)
        loss = head_loss(classify)
    else:
        data, offset = pool(inputs, experts), np.zeros(len(points), np.int32)
        constants = Constants(pretrained, task_vectors, jnp.asarray(classes), ids)
        loss = encoder_loss(encode, classify, clamp)
    seeds = list(dict.fromkeys(point.seed for point in points))
    each = [
        schedules.sequential(sizes, iterations=iterations, batch_size=batch_size, seed=seed)
        if schedule is None
        else schedule(seed)
        for seed in seeds
    ]
    rates = ([getattr(p, name) for p in points] for name in ("coefficient_rate", "head_rate"))
    numbers = Numbers(
        Trainables(*map(np.array, rates), layers=np.zeros(len(points))),
        [point.seed for point in points],
        [seeds.index(point.seed) for point in points],
        offset,
    )
    fitted = fit_many(
        loss, starts, data, each, numbers,
        constants=constants,
        per_task=Trainables(False, True, True),
        idle="zero" if idle_heads == "dense" else "skip",
        chunk_steps=chunk_steps,
        on_chunk=on_chunk,
        keep=keep,
        devices=devices,
        lanes=lanes,
        short=heads_only,
    )  # fmt: skip
    return [_result(fitted, r, point, each[numbers.schedule[r]]) for r, point in enumerate(points)]


def _result(fitted: FittedMany, r: int, point: Point, schedule: Schedule) -> Swept:
    own: Trainables = jax.tree.map(lambda x: x[r], fitted.trainables)
    at, losses = int(fitted.stopped[r]), fitted.losses[r]
    diverged = None
    if at < schedule.steps:
        diverged = Diverged(at, int(schedule.task_ids[at]), float(losses[at]))
    return Swept(point, own.coefficients, own.heads, losses[:at], diverged)


def _check_points(
    points: Sequence[Point], lanes: int | None, devices: Sequence[Device] | None
) -> None:
    if not points:
        raise BadInput("a sweep needs at least one point, got none")
    if lanes is not None and lanes < 1:
        raise BadInput(f"lanes must be at least 1, got {lanes}")
    if devices is not None and not devices:
        raise BadInput("devices: expected at least one, got none; None takes JAX's default one")
    for i, point in enumerate(points):
        for name in ("coefficient_rate", "head_rate", "initial_coefficient"):
            value = getattr(point, name)
            if not np.isfinite(value) or (value < 0 and name != "initial_coefficient"):
                wanted = "a number" if name == "initial_coefficient" else "a number from 0 upwards"
                raise BadInput(f"point {i}: {name} must be {wanted}, got {value}")
        if not 0 <= point.seed < 2**32:
            raise BadInput(f"point {i}: seed must be from 0 to 2³² − 1, got {point.seed}")


def _starts(
    points: Sequence[Point],
    task_vectors: TaskVectors,
    heads: Params,
    granularity: str,
    count: int,
) -> Trainables:
    """Returns where the runs start, leaves [run, ...]; heads that all share exist once."""
    spread = per_leaf if granularity == "leaf" else per_task
    like = spread(task_vectors, 0.0)

    def constant(value: float) -> Coefficients:
        return jax.tree.map(lambda x: np.full(x.shape, value, x.dtype), like)

    lam = [
        constant(point.initial_coefficient) if point.coefficients is None else point.coefficients
        for point in points
    ]
    for i, point in enumerate(points):
        if point.coefficients is not None:
            check_coefficients(point.coefficients, task_vectors, count)
        if jax.tree.structure(lam[i]) != jax.tree.structure(lam[0]):
            raise BadInput(
                f"point {i}: coefficients have another structure than those of point 0; all runs "
                "of a sweep have one λ per task and leaf, or all one per task"
            )
        if point.heads is not None:
            trees.check_same(
                point.heads, heads, name=f"the heads of point {i}", reference_name="the others"
            )
    return Trainables(_stack(lam), _stack([heads if p.heads is None else p.heads for p in points]))


def _stack(each: Sequence[Any]) -> Any:
    """Returns leaves [run, ...] on the host; one that all have is there once."""
    if all(one is each[0] for one in each):
        return jax.tree.map(lambda x: np.broadcast_to(x, (len(each), *np.shape(x))), each[0])
    return jax.tree.map(lambda *leaves: np.stack([np.asarray(x) for x in leaves]), *each)


def _nobody(
    objectives: Sequence[str], sizes: Sequence[int], starts: Trainables
) -> list[ExpertLabels]:
    """Returns what stands in the place of experts that no objective reads."""
    if set(objectives) != {"entropy"}:
        raise BadInput("experts: only the objective entropy does without them; got None")
    dtype = jax.tree.leaves(starts.coefficients)[0].dtype
    return [ExpertLabels(np.zeros(n, np.int32), np.zeros(n, dtype)) for n in sizes]


def _features(
    encode: Encode,
    pretrained: Params,
    task_vectors: TaskVectors,
    coefficients: Any,
    clamp: bool,
    inputs: Sequence[Any],
    experts: Sequence[Any],
) -> tuple[Data, np.ndarray]:
    """Returns the features under each different start, end to end, and where a run's own begin.

    Args:
        encode: (θ, inputs) → features.
        pretrained: θ₀.
        task_vectors: τ.
        coefficients: where λ starts and stays, leaves [run, task].
        clamp: whether it is clipped.
        inputs: of each task.
        experts: what each says, which is repeated for each start.
    """
    flat = np.concatenate([np.asarray(x) for x in jax.tree.leaves(coefficients)], axis=1)
    _, first, which = np.unique(flat, axis=0, return_index=True, return_inverse=True)
    sets = []
    for r in first:
        lam = jax.tree.map(lambda x, r=r: jnp.asarray(x[r]), coefficients)
        theta = merged_encoder(pretrained, task_vectors, lam, clamp)
        sets.append(pool([predict(encode, theta, own) for own in inputs], experts))
    own, targets = jax.tree.map(
        lambda *x: np.concatenate(x), *((one.inputs, one.targets) for one in sets)
    )
    size = sum(sets[0].sizes)
    return Data(own, targets, sets[0].sizes), (which.reshape(-1) * size).astype(np.int32)
