"""The schedule of an adaptation run, as data: which task, which samples, when to update.

A schedule is a pure function of a seed, or anything passed in: a run can be replayed against
another implementation, resumed at any step, or sharded. It is made and checked on the host.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from symerge_jax.errors import BadInput
from symerge_jax.notation import Bool, Int


class Schedule(NamedTuple):
    """Micro-steps in order; gradients add up until `apply_update` is true.

    Attributes:
        task_ids: whose mini-batch this is.
        sample_indices: positions within that task's own inputs.
        sample_mask: False pads a short batch.
        apply_update: whether the optimiser steps after this micro-step.
    """

    task_ids: Int[np.ndarray, " step"]
    sample_indices: Int[np.ndarray, "step batch"]
    sample_mask: Bool[np.ndarray, "step batch"]
    apply_update: Bool[np.ndarray, " step"]

    @property
    def steps(self) -> int:
        """Number of micro-steps."""
        return len(self.task_ids)

    @property
    def batch_size(self) -> int:
        """Inputs per micro-step."""
        return self.sample_indices.shape[1]

    def part(self, start: int, stop: int) -> "Schedule":
        """Returns micro-steps start to stop."""
        return Schedule(*(field[start:stop] for field in self))


def check(schedule: Schedule, sizes: Sequence[int]) -> None:
    """Compares a schedule with the data it indexes.

    Args:
        schedule: micro-steps.
        sizes: number of inputs of each task.

    Raises:
        BadInput: shapes or dtypes do not fit, or an index lies outside (the first such step is
            named), or the last micro-step leaves gradients unused.
    """
    steps = schedule.steps
    if steps == 0:
        raise BadInput("schedule: expected at least one step, got none")
    shapes = [np.shape(field) for field in schedule]
    batch = shapes[1][1:] if len(shapes[1]) == 2 else ()
    if not batch or shapes != [(steps,), (steps, *batch), (steps, *batch), (steps,)]:
        raise BadInput(
            "schedule: expected task_ids [step], sample_indices [step, batch], sample_mask "
            f"[step, batch], apply_update [step]; got shapes {shapes}"
        )
    kinds = [np.asarray(field).dtype.kind for field in schedule]
    if kinds[0] not in "iu" or kinds[1] not in "iu" or kinds[2] != "b" or kinds[3] != "b":
        raise BadInput(
            "schedule: task_ids and sample_indices must be integers, sample_mask and "
            f"apply_update booleans; got dtypes {[str(np.asarray(f).dtype) for f in schedule]}"
        )
    tasks, indices = np.asarray(schedule.task_ids), np.asarray(schedule.sample_indices)
    wrong = (tasks < 0) | (tasks >= len(sizes))
    if wrong.any():
        step = int(np.argmax(wrong))
        raise BadInput(
            f"schedule: step {step} is for task {tasks[step]}, but there are {len(sizes)} tasks "
            f"(0 to {len(sizes) - 1})"
        )
    outside = (indices < 0) | (indices >= np.asarray(sizes)[tasks][:, None])
    if outside.any():
        step = int(np.argmax(outside.any(axis=1)))
        index = indices[step][outside[step]][0]
        raise BadInput(
            f"schedule: step {step} asks for sample {index} of task {tasks[step]}, which has "
            f"{sizes[tasks[step]]} samples (0 to {sizes[tasks[step]] - 1})"
        )
    empty = ~np.asarray(schedule.sample_mask).any(axis=1)
    if empty.any():
        raise BadInput(f"schedule: step {int(np.argmax(empty))} has no sample at all")
    if not schedule.apply_update[-1]:
        raise BadInput(
            "schedule: the last step has apply_update False, so its gradient would be lost"
        )


def sequential(
    sizes: Sequence[int], *, iterations: int, batch_size: int, seed: int, shuffle_tasks: bool = True
) -> Schedule:
    """One optimiser step per task and iteration, tasks in a new random order each time (SyMerge).

    Each task streams through its own inputs in a random order and starts over, newly shuffled,
    when they are used up; the last short batch of a pass is kept and padded.

    Args:
        sizes: number of inputs of each task.
        iterations: rounds over the tasks; there are iterations · tasks steps.
        batch_size: samples per step.
        seed: of task order and data order, which have independent streams.
        shuffle_tasks: False visits tasks in their given order.
    """
    _check_sizes(sizes, iterations=iterations, batch_size=batch_size)
    tasks = len(sizes)
    order = _task_order(tasks, iterations, seed, shuffle_tasks)
    streams = [_stream(n, iterations, batch_size, seed, k) for k, n in enumerate(sizes)]
    rounds = np.arange(iterations)[:, None]
    indices = np.stack([s[0] for s in streams])[order, rounds]
    mask = np.stack([s[1] for s in streams])[order, rounds]
    return Schedule(
        order.reshape(-1).astype(np.int32),
        indices.reshape(-1, batch_size),
        mask.reshape(-1, batch_size),
        np.ones(iterations * tasks, bool),
    )


def joint(
    sizes: Sequence[int], *, iterations: int, batch_size: int, seed: int, batches: int = 1
) -> Schedule:
    """One optimiser step per iteration on the sum over tasks and mini-batches (AdaMerging).

    Args:
        sizes: number of inputs of each task.
        iterations: optimiser steps; there are iterations · tasks · batches micro-steps.
        batch_size: samples per micro-step.
        seed: of the data order; tasks are visited in their given order.
        batches: mini-batches per task and iteration.
    """
    _check_sizes(sizes, iterations=iterations, batch_size=batch_size, batches=batches)
    schedule = sequential(
        sizes,
        iterations=iterations * batches,
        batch_size=batch_size,
        seed=seed,
        shuffle_tasks=False,
    )
    group = len(sizes) * batches
    last = np.arange(schedule.steps) % group == group - 1
    return schedule._replace(apply_update=last)


def one_pass(sizes: Sequence[int], *, batch_size: int, seed: int, joint: bool = False) -> Schedule:
    """Each input once, as they would arrive: a task takes no more part when its own are used up.

    Args:
        sizes: number of inputs of each task.
        batch_size: samples per micro-step.
        seed: of task order and data order.
        joint: one optimiser step per round over the tasks instead of one per mini-batch.
    """
    _check_sizes(sizes, batch_size=batch_size)
    batches = [-(-size // batch_size) for size in sizes]
    whole = sequential(
        sizes, iterations=max(batches), batch_size=batch_size, seed=seed, shuffle_tasks=not joint
    )
    rounds = np.arange(whole.steps) // len(sizes)
    first = rounds < np.asarray(batches)[whole.task_ids]
    steps = Schedule(*(field[first] for field in whole))
    if not joint:
        return steps
    last = np.append(np.diff(rounds[first]) != 0, True)
    return steps._replace(apply_update=last)


def _task_order(tasks: int, iterations: int, seed: int, shuffle: bool) -> np.ndarray:
    if not shuffle:
        return np.tile(np.arange(tasks), (iterations, 1))
    rng = np.random.default_rng([seed, 0])
    return np.stack([rng.permutation(tasks) for _ in range(iterations)])


def _stream(
    size: int, batches: int, batch_size: int, seed: int, task: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns sample indices and mask, [batches, batch], of a persistent shuffled iterator."""
    rng = np.random.default_rng([seed, 1, task])
    per_pass = -(-size // batch_size)
    padding = per_pass * batch_size - size
    indices, mask = [], []
    for _ in range(-(-batches // per_pass)):
        row = np.concatenate([rng.permutation(size), np.zeros(padding, np.int64)])
        indices.append(row.reshape(per_pass, batch_size))
        mask.append((np.arange(per_pass * batch_size) < size).reshape(per_pass, batch_size))
    return (
        np.concatenate(indices)[:batches].astype(np.int32),
        np.concatenate(mask)[:batches],
    )


def _check_sizes(sizes: Sequence[int], **counts: int) -> None:
    if len(sizes) == 0 or min(sizes) < 1:
        raise BadInput(f"schedule: each task needs at least one input, got sizes {list(sizes)}")
    for name, value in counts.items():
        if value < 1:
            raise BadInput(f"schedule: {name} must be at least 1, got {value}")
