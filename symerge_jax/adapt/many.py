"""Many runs that differ in numbers only, as one compiled program.

Runs are arranged [device, group, lane]: devices work side by side (`jax.pmap`), each takes one
group after the other (`jax.lax.map`), and the lanes of a group go through the steps together
(`jax.vmap`). With one lane there is no `vmap`, and a run costs what it costs alone. Inputs, targets
and constants are there once per device, for all runs; states stay where they are from chunk to
chunk.

On a given number of devices it makes no difference to a run where it is. XLA compiles a program for
one device and for several differently, so that between those the last digit may differ.

A run whose loss or gradient is not finite stops there, with its state as it was before that step;
the others go on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from symerge_jax import interrupt
from symerge_jax.adapt import schedule as schedules
from symerge_jax.adapt.fit import ADAM, Data, Feed, flags_of, full_rates, starting_carry
from symerge_jax.adapt.keeping import Keep
from symerge_jax.adapt.lanes import (
    AXIS,
    Layout,
    arranged,
    by_run,
    laid_out,
    lanes_that_fit,
    replicated,
)
from symerge_jax.adapt.schedule import Schedule
from symerge_jax.adapt.steps import Carry, Chunk, Loss, Rules, steps
from symerge_jax.errors import BadInput
from symerge_jax.notation import Array, Float, Int
from symerge_jax.parallel import Device


class Numbers(NamedTuple):
    """What each run has of its own and keeps.

    Attributes:
        rates: learning rates, a prefix of the trainables with leaves [run].
        seed: int [run], of the random keys in the batches.
        schedule: int [run], which of the schedules it follows.
        offset: int [run], added to the rows it reads of inputs and targets.
    """

    rates: Any
    seed: Any
    schedule: Any
    offset: Any


class State(NamedTuple):
    """A run between chunks.

    Attributes:
        carry: without its key, which never changes.
        alive: bool [], whether all steps so far were finite.
    """

    carry: Carry
    alive: Array


class Progress(NamedTuple):
    """What has been done of all runs, on the host.

    Attributes:
        state: of each run, leaves [run, ...].
        losses: float [run, step], of the steps so far.
        stopped: int [run], as for `FittedMany`.
    """

    state: State
    losses: np.ndarray
    stopped: np.ndarray


class FittedMany(NamedTuple):
    """The result of many runs.

    Attributes:
        trainables: leaves [run, ...], after each run's last good step.
        losses: float [run, step], before each step's update; NaN where no step was made, but that
            of a step that was not finite is there.
        stopped: int [run], the step that was not finite; the number of steps where all were.
    """

    trainables: Any
    losses: Float[np.ndarray, "run step"]
    stopped: Int[np.ndarray, " run"]


def fit_many(
    loss: Loss,
    trainables: Any,
    data: Data,
    each: Sequence[Schedule],
    numbers: Numbers,
    *,
    constants: Any = (),
    per_task: Any = None,
    idle: Literal["skip", "zero"] = "skip",
    chunk_steps: int | None = None,
    on_chunk: Callable[[np.ndarray], None] | None = None,
    keep: Keep | None = None,
    devices: Sequence[Device] | None = None,
    lanes: int | None = None,
    short: bool = False,
) -> FittedMany:
    """Runs schedules with Adam, one per run; what `fit` does with each.

    The program is compiled once for a `loss`, shapes and a layout, and used again by later calls.

    Args:
        loss: gives the loss of one mini-batch; see `fit`.
        trainables: where the runs start, leaves [run, ...].
        data: as for `fit`. It may hold several sets of inputs end to end, each with its targets, of
            the same `sizes`; `numbers.offset` tells where a run's own begins.
        each: schedules that runs follow; of equally many steps and equal updates.
        numbers: of each run.
        constants: whatever else the loss needs.
        per_task: as for `fit`.
        idle: as for `fit`.
        chunk_steps: micro-steps per call of the program; None for a few seconds' worth.
        on_chunk: called after each chunk with its losses [run, step].
        keep: where the state of all runs is kept, as for `fit`; the devices and lanes of a run that
            goes on may be others.
        devices: of this process, over which runs are spread; None for JAX's default one.
        lanes: runs of a group, at most; None for what `lanes_that_fit` says.
        short: whether steps are too short to keep a CPU busy.

    Raises:
        BadInput: schedules that do not fit the data or each other.
        KeyboardInterrupt: a signal asked for it; the chunk was finished and the state is kept.
    """
    total = each[0].steps
    for one in each:
        schedules.check(one, data.sizes)
        if one.steps != total or not np.array_equal(one.apply_update, each[0].apply_update):
            raise BadInput(
                "schedules of one sweep: expected equally many steps and the same apply_update "
                f"in all, got {sorted({one.steps for one in each})} steps"
            )
    runs = len(numbers.seed)
    first = jax.tree.map(lambda x: x[0], trainables)
    accumulates = not bool(np.all(each[0].apply_update))
    carry = starting_carry(first, ADAM, per_task, (), 0, accumulates, data)
    flags = None if per_task is None else flags_of(per_task, first)
    rules = Rules(loss, ADAM, flags, idle, len(data.sizes))
    # Rows of one's own: inputs that the host gathers would be those of the first set.
    several = bool(np.any(np.asarray(numbers.offset)))
    feeds = [Feed(data, one, chunk_steps, True if several else None, None) for one in each]
    shared = (constants, feeds[0].inputs, data.targets)
    devices = tuple(devices or (_default_device(),))
    if lanes is None:
        most = -(-runs // len(devices))
        lanes = lanes_that_fit(devices[0], rules, carry, shared, feeds[0], most, short)
    layout = laid_out(runs, devices, lanes)
    own = Numbers(
        full_rates(numbers.rates, first),
        np.asarray(numbers.seed, np.uint32),
        np.asarray(numbers.schedule, np.int32),
        np.asarray(numbers.offset, np.int32),
    )
    before = _found(keep, _started(carry, trainables, total))
    if before.losses.size and on_chunk is not None:
        on_chunk(before.losses)
    given = (arranged(own, layout), *replicated(shared, layout))
    with interrupt.deferred():
        return _run(program(rules, layout), layout, feeds, before, given, on_chunk, keep)


@cache
def program(rules: Rules, layout: Layout) -> Callable[..., Any]:
    """Returns the program of a chunk for all runs; see `_run` for what it takes and gives."""

    def one(state: State, own: Numbers, *shared: Any) -> tuple[State, Array, Array]:
        constants, inputs, targets, chunks, count = shared
        chunk = jax.tree.map(lambda x: x[own.schedule], chunks)
        chunk = chunk._replace(rows=chunk.rows + own.offset)
        carry = state.carry._replace(key=jax.random.key(own.seed))
        count = jnp.where(state.alive, count, jnp.zeros_like(count))
        made = steps(carry, constants, inputs, targets, own.rates, chunk, count, rules=rules)
        alive = state.alive & (made.count == count)
        return State(made.carry._replace(key=()), alive), made.count, made.losses

    def group(state: State, own: Numbers, *shared: Any) -> tuple[State, Array, Array]:
        if layout.lanes == 1:
            return one(state, own, *shared)
        return jax.vmap(lambda state, own: one(state, own, *shared))(state, own)

    def sweep(state: State, own: Numbers, *shared: Any) -> tuple[State, Array, Array]:
        return jax.lax.map(lambda given: group(*given, *shared), (state, own))

    return jax.pmap(
        sweep,
        axis_name=AXIS,
        in_axes=(0, 0, *5 * (None,)),
        devices=layout.devices,
        donate_argnums=0,
    )


def _run(
    made: Callable[..., Any],
    layout: Layout,
    feeds: Sequence[Feed],
    before: Progress,
    given: tuple[Any, ...],
    on_chunk: Callable[[np.ndarray], None] | None,
    keep: Keep | None,
) -> FittedMany:
    """Runs chunk after chunk, until all runs are done or have stopped."""
    runs, begin = before.losses.shape
    total, stopped = feeds[0].schedule.steps, before.stopped
    losses = np.full((runs, total), np.nan, before.losses.dtype)
    losses[:, :begin] = before.losses
    alive = np.pad(before.state.alive, (0, layout.places - runs))
    state = arranged(before.state._replace(alive=alive), layout)

    def save() -> None:
        assert keep is not None, "nowhere to keep a state"
        on_host = jax.tree.map(lambda x: by_run(x, layout, runs), state)
        keep.state.save(begin, Progress(on_host, losses[:, :begin], stopped))

    kept, last = begin, time.monotonic()
    coming = _chunks(feeds, begin)
    while coming is not None and (stopped == total).any():
        chunks, count = coming
        since = time.monotonic()
        state, good, values = made(state, *given, chunks, np.int32(count))
        # Gathered while the devices work.
        coming = _chunks(feeds, begin + count)
        good, values = (by_run(x, layout, runs) for x in (good, values))
        now = time.monotonic()
        for feed in feeds:  # all of them cut alike
            feed.took(now - since, count)
        here = stopped == total
        stopped = np.where(here & (good < count), begin + good, stopped).astype(np.int32)
        shown = np.arange(count)[None] <= np.where(here, good, -1)[:, None]
        losses[:, begin : begin + count][shown] = values[:, :count][shown]
        begin += count
        due = keep is not None and (begin - kept >= keep.every or now - last >= keep.seconds)
        if keep is not None and (due or interrupt.asked()):
            save()
            kept, last = begin, now
        if on_chunk is not None:
            on_chunk(losses[:, begin - count : begin])
        if interrupt.asked():
            raise KeyboardInterrupt
    trainables = jax.tree.map(lambda x: by_run(x, layout, runs), state.carry.trainables)
    return FittedMany(trainables, losses, stopped)


def _chunks(feeds: Sequence[Feed], begin: int) -> tuple[Chunk, int] | None:
    """Returns the next chunk of each schedule, leaves [schedule, step, ...], and its length."""
    if begin >= feeds[0].schedule.steps:
        return None
    found = [feed.chunk(begin) for feed in feeds]
    return jax.tree.map(lambda *x: np.stack(x), *(chunk for chunk, _ in found)), found[0][1]


def _started(carry: Carry, trainables: Any, total: int) -> Progress:
    """Returns runs before their first step; where they start, Adam's state does not depend on."""
    runs = len(jax.tree.leaves(trainables)[0])

    def alike(x: Array) -> np.ndarray:
        return np.broadcast_to(np.asarray(x), (runs, *np.shape(x)))

    started = jax.tree.map(lambda x, one: np.asarray(x, one.dtype), trainables, carry.trainables)
    rest = jax.tree.map(alike, carry._replace(key=(), trainables=()))
    state = State(rest._replace(trainables=started), np.ones(runs, bool))
    dtype = jax.tree.leaves(started)[0].dtype
    return Progress(state, np.zeros((runs, 0), dtype), np.full(runs, total, np.int32))


def _found(keep: Keep | None, start: Progress) -> Progress:
    """Returns what an interrupted sweep has done, or its start."""
    step = None if keep is None else keep.state.latest()
    if keep is None or step is None:
        return start
    like = start._replace(losses=np.zeros((len(start.losses), step), start.losses.dtype))
    return jax.tree.map(np.asarray, keep.state.restore(like).tree)


def _default_device() -> Device:
    return next(iter(jnp.zeros(()).devices()))
