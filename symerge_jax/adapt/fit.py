"""The one adaptation loop: SyMerge, AdaMerging and every other test-time method run on it.

A method says what is trainable, how trainables, constants and a mini-batch of unlabelled inputs
give a loss, and which optimiser steps. The loop is one compiled program that runs a chunk of
micro-steps (`steps`); the host sees one array of losses per chunk, never a value per step.

There is no place for labels here: a mini-batch holds inputs and what an expert said about them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from symerge_jax import interrupt, trees
from symerge_jax.adapt import across
from symerge_jax.adapt import schedule as schedules
from symerge_jax.adapt.keeping import Done, Keep, Keeper
from symerge_jax.adapt.schedule import Schedule
from symerge_jax.adapt.steps import Batch, Carry, Chunk, Loss, Rules, nothing, parts, run_chunk
from symerge_jax.errors import BadInput, Diverged
from symerge_jax.notation import Array

__all__ = [
    "ADAM", "CHUNK_STEPS", "Batch", "Carry", "Data", "Fitted", "Keep", "Loss", "fit", "pool",
]  # fmt: skip

RESIDENT_BYTES = 4 * 2**30  # inputs up to this size stay on the device
CHUNK_STEPS = 200
# The host looks at a run this often if it may choose; a signal waits no longer.
CHUNK_SECONDS = 4.0
# Inputs of one chunk that the host has gathered; two chunks of them are in memory.
FEED_BYTES = 2**29

# Learning rates are given to `fit`, so that runs which differ in them share one program.
ADAM = optax.adam(1.0)


class Data(NamedTuple):
    """Unlabelled inputs of all tasks end to end, and the experts' outputs on them.

    Attributes:
        inputs: a pytree with leaves [sample, ...]; images stay uint8.
        targets: a pytree with leaves [sample, ...]: experts' predictions, or () if none is needed.
        sizes: samples of each task, in the tasks' order.
    """

    inputs: Any
    targets: Any
    sizes: tuple[int, ...]


class Fitted(NamedTuple):
    """The result of a run.

    Attributes:
        trainables: after the last step.
        losses: float [step], before each micro-step's update.
        extra: what the loss returned beside, leaves [step, ...].
        carry: to go on from here.
    """

    trainables: Any
    losses: np.ndarray
    extra: Any
    carry: Carry


def pool(inputs: Sequence[Any], targets: Sequence[Any] | None = None) -> Data:
    """Puts the tasks' inputs, and what their experts said, end to end.

    Args:
        inputs: one pytree per task, leaves [sample, ...]; tasks agree but in the number of samples.
        targets: one pytree per task, leaves [sample, ...], or None.

    Raises:
        BadInput: a task without samples, or counts that do not fit together.
    """
    if targets is not None and len(targets) != len(inputs):
        raise BadInput(f"got inputs of {len(inputs)} tasks, but expert outputs of {len(targets)}")
    sizes = []
    for k, own in enumerate(inputs):
        lengths = {np.shape(leaf)[0] for leaf in jax.tree.leaves(own)}
        if targets is not None:
            lengths |= {np.shape(leaf)[0] for leaf in jax.tree.leaves(targets[k])}
        if len(lengths) != 1 or 0 in lengths:
            raise BadInput(
                f"task {k}: expected one expert output per input and at least one input, got "
                f"arrays of lengths {sorted(lengths)}"
            )
        sizes.append(lengths.pop())

    def join(parts: Sequence[Any]) -> Any:
        return jax.tree.map(lambda *leaves: np.concatenate([np.asarray(x) for x in leaves]), *parts)

    return Data(join(inputs), () if targets is None else join(targets), tuple(sizes))


def fit(
    loss: Loss,
    trainables: Any,
    data: Data,
    schedule: Schedule,
    *,
    rates: Any = 1.0,
    constants: Any = (),
    model_state: Any = (),
    optimiser: optax.GradientTransformation = ADAM,
    per_task: Any = None,
    idle: Literal["skip", "zero"] = "skip",
    seed: int = 0,
    chunk_steps: int | None = None,
    resident: bool | None = None,
    start: Carry | None = None,
    on_chunk: Callable[[Carry, np.ndarray], None] | None = None,
    keep: Keep | None = None,
    split: across.Split | None = None,
) -> Fitted:
    """Runs a schedule.

    The compiled program is reused by every call with the same `loss`, `optimiser` and shapes: pass
    the same function objects.

    Args:
        loss: gives the loss of one mini-batch; see `Loss`.
        trainables: a pytree of float arrays, such as a named tuple of coefficients and heads.
        data: unlabelled inputs and experts' outputs.
        schedule: micro-steps; checked against the data.
        rates: learning rates that multiply the optimiser's updates: a number, or a pytree that is
            a prefix of `trainables`. A part with rate 0 stays bit-identical.
        constants: whatever else the loss needs (θ₀, τ, …), handed through.
        model_state: the network's own changing state, such as batch-norm statistics.
        optimiser: whose updates are added, times `rates`.
        per_task: a prefix of `trainables` with True for parts [task, ...] that have an optimiser
            state and step count per task. None for one optimiser over the whole tree.
        idle: what happens to such a part in other tasks' steps. "skip": nothing. "zero": from its
            first own step on it sees zero gradients, so momentum still moves it.
        seed: of the random keys in the batches.
        chunk_steps: micro-steps per call of the program; None for as many as take a few seconds.
        resident: whether inputs are kept on the device; None decides by size. Otherwise the next
            chunk's inputs are gathered on the host while the device works.
        start: a carry to go on from; `schedule` is still the whole one.
        on_chunk: called after each chunk with the carry and its losses [chunk], for progress,
            checkpoints. It must not keep the carry's arrays: the next chunk reuses their memory.
        keep: where the state is kept, so that an interrupted run can go on. A run that finds its
            state there does, and `on_chunk` first gets the losses of what was done before.
        split: devices that share every mini-batch, and how constants lie on them. The loss must
            average over the batch by `objectives.masked_mean`; each `extra` has a leading batch
            axis, padded to a multiple of the devices; `key` is the same on all of them.

    Raises:
        BadInput: a schedule that does not fit the data; a kept state of another run.
        Diverged: a loss or gradient that is not finite; the state before that step is kept.
        KeyboardInterrupt: a signal asked for it; the chunk was finished and the state is kept.
    """
    schedules.check(schedule, data.sizes)
    assert start is None or keep is None, "a kept state holds its run from the first step"
    accumulates = not bool(np.all(schedule.apply_update))
    if per_task is not None and not any(jax.tree.leaves(per_task)):
        per_task = None  # no part has a state per task
    carry = (
        start
        if start is not None
        else starting_carry(trainables, optimiser, per_task, model_state, seed, accumulates, data)
    )
    if accumulates and carry.pending is None:
        raise BadInput(
            "the carry to go on from belongs to a schedule whose apply_update is always True; this "
            "one adds gradients up"
        )
    carry = trees.copied(carry)  # the program reuses the memory of what it is given
    flags = None if per_task is None else flags_of(per_task, carry.trainables)
    rules = Rules(loss, optimiser, flags, idle, len(data.sizes), split)
    rates = full_rates(rates, carry.trainables)
    feed = Feed(data, schedule, chunk_steps, resident, split)
    if split is None:
        # Once, and not with every chunk, what lies on the host.
        constants, *given = jax.tree.map(jnp.asarray, (constants, feed.inputs, data.targets, rates))
    else:
        carry, *given = (across.place(x, split) for x in (carry, feed.inputs, data.targets, rates))
        constants = across.place(constants, split, split.axes)
    keeper = Keeper(keep)
    done = keeper.found(carry, lambda: _outputs(loss, carry, constants, data, feed))
    if done is not None and on_chunk is not None:
        on_chunk(done.carry, done.losses[0])
    with interrupt.deferred():
        done = _run(feed, rules, done or Done(carry, [], []), (constants, *given), on_chunk, keeper)
    carry, extras = done.carry, done.extras
    if split is not None:
        carry = across.brought_home(carry)
    joined = jax.tree.map(lambda *each: np.concatenate(each), *extras) if extras else ()
    losses = np.concatenate(done.losses) if done.losses else np.zeros(0)
    return Fitted(carry.trainables, losses, joined, carry)


def _run(
    feed: Feed,
    rules: Rules,
    done: Done,
    given: tuple[Any, ...],
    on_chunk: Callable[[Carry, np.ndarray], None] | None,
    keeper: Keeper,
) -> Done:
    """Runs chunk after chunk from where `done` is."""
    constants, inputs, targets, rates = given
    steps = feed.schedule.steps
    begin = int(done.carry.step)
    coming = feed.chunk(begin) if begin < steps else None
    while coming is not None:
        chunk, count = coming
        since = time.monotonic()
        made = run_chunk(
            done.carry, constants, inputs, targets, rates, chunk, np.int32(count), rules=rules
        )
        # Gathered while the device works.
        coming = feed.chunk(begin + count) if begin + count < steps else None
        good = int(made.count)
        values = np.asarray(made.losses)
        feed.took(time.monotonic() - since, good)
        done.losses.append(values[:good])
        done.extras.append(jax.tree.map(lambda x, n=good: np.asarray(x)[:n], made.extra))
        done = done._replace(carry=made.carry)
        if good < count:
            keeper.save(done)
            _refuse(float(values[good]), feed.schedule, begin + good, keeper.says)
        begin += count
        keeper.chunk_done(done)
        if on_chunk is not None:
            on_chunk(done.carry, values[:good])
        if interrupt.asked():
            keeper.save(done)
            raise KeyboardInterrupt
    return done


class Feed:
    """Cuts the schedule in chunks of one shape, and decides how many steps of it are run."""

    def __init__(
        self,
        data: Data,
        schedule: Schedule,
        chunk_steps: int | None,
        resident: bool | None,
        split: across.Split | None,
    ) -> None:
        """Begins at step 0; arguments as for `fit`."""
        self.schedule = schedule
        self._data, self._split = data, split
        leaves = jax.tree.leaves(data.inputs)
        if resident is None:
            resident = sum(leaf.nbytes for leaf in leaves) <= RESIDENT_BYTES
        self.inputs = data.inputs if resident else None
        self.size = min(chunk_steps or CHUNK_STEPS, schedule.steps)
        if not resident and chunk_steps is None:
            step = schedule.batch_size * sum(leaf.nbytes // len(leaf) for leaf in leaves)
            self.size = max(1, min(self.size, FEED_BYTES // max(step, 1)))
        # Processes that share a run must cut it alike.
        self._free = chunk_steps is None and jax.process_count() == 1
        # The first chunk also compiles, so that what it takes says nothing.
        self._count = min(2, self.size) if self._free else self.size
        self._chunks = 0
        self._offsets = np.cumsum([0, *data.sizes[:-1]])

    def chunk(self, begin: int) -> tuple[Chunk, int]:
        """Returns the next chunk and how many of its steps are to be run."""
        count = min(self._count, self.schedule.steps - begin)
        steps = self.schedule.part(begin, begin + count)
        rows = steps.sample_indices + self._offsets[steps.task_ids][:, None]
        mask = steps.sample_mask
        if self._split is not None:  # each device gets equally many rows
            missing = -rows.shape[1] % len(self._split.devices)
            rows = np.concatenate([rows, np.repeat(rows[:, :1], missing, axis=1)], axis=1)
            mask = np.pad(mask, ((0, 0), (0, missing)))
        own = None
        if self.inputs is None:
            own = jax.tree.map(lambda x: np.asarray(x)[rows], self._data.inputs)
        chunk = Chunk(
            steps.task_ids.astype(np.int32), rows.astype(np.int32), mask, steps.apply_update, own
        )
        chunk = jax.tree.map(lambda x: _pad(x, self.size), chunk)
        if self._split is not None:
            each = [across.place(x, self._split) for x in (chunk.task_ids, chunk.apply_update)]
            batches = across.place_batches((chunk.rows, chunk.mask, chunk.own_inputs), self._split)
            chunk = Chunk(each[0], batches[0], batches[1], each[1], batches[2])
        elif own is not None:
            chunk = jax.device_put(chunk)  # on its way while the device works on the one before
        return chunk, count

    def took(self, seconds: float, steps: int) -> None:
        """Learns how long a chunk took, waiting included."""
        self._chunks += 1
        if self._free and self._chunks > 1 and steps:
            wanted = CHUNK_SECONDS * steps / max(seconds, 1e-6)
            self._count = int(np.clip(wanted, 1, self.size))


def _outputs(loss: Loss, carry: Carry, constants: Any, data: Data, feed: Feed) -> tuple[Any, Any]:
    """Returns the shapes of one step's loss and extra."""
    chunk, _ = feed.chunk(0)

    def first(carry: Carry) -> tuple[Array, Any]:
        rows = jnp.asarray(chunk.rows[0])
        inputs, targets = jax.tree.map(
            lambda x: jnp.asarray(x[:1])[rows], (data.inputs, data.targets)
        )
        key, step = carry.key, carry.step
        task, mask = jnp.asarray(chunk.task_ids[0]), jnp.asarray(chunk.mask[0])
        batch = Batch(task, inputs, targets, mask, key, step)
        value, _, extra = loss(carry.trainables, constants, carry.model_state, batch)
        return value, extra

    return jax.eval_shape(first, carry)


def starting_carry(
    trainables: Any,
    optimiser: optax.GradientTransformation,
    per_task: Any,
    model_state: Any,
    seed: int,
    accumulates: bool,
    data: Data,
) -> Carry:
    """Returns the state before the first step; arguments as for `fit`.

    Args:
        trainables: leaves of any float type.
        optimiser: whose state it holds.
        per_task: a prefix of `trainables`, or None.
        model_state: the network's own.
        seed: of the random keys.
        accumulates: whether the schedule has steps without an update.
        data: whose tasks are counted.

    Raises:
        BadInput: a part with a state per task has no leading axis of the tasks.
    """
    # A dtype that is given is not "weak": a weak one would be another program after the first step.
    trainables = jax.tree.map(lambda x: jnp.asarray(x, jnp.result_type(x)), trainables)
    if per_task is None:
        state = jax.jit(optimiser.init)(trainables)
    else:
        own, shared = parts(trainables, flags_of(per_task, trainables))
        if own and {leaf.shape[0] for leaf in own} != {len(data.sizes)}:
            raise BadInput(
                f"per-task trainables need a leading axis of the {len(data.sizes)} tasks, got "
                f"shapes {[leaf.shape for leaf in own]}"
            )
        state = (jax.jit(optimiser.init)(shared), jax.jit(jax.vmap(optimiser.init))(own))
    pending = nothing(trainables, len(data.sizes)) if accumulates else None
    seen = jnp.zeros((len(data.sizes),), bool)
    return Carry(trainables, state, model_state, jax.random.key(seed), jnp.int32(0), seen, pending)


def full_rates(rates: Any, trainables: Any) -> Any:
    """Spreads a prefix tree of rates over all leaves, in the leaves' dtypes."""
    return jax.tree.map(
        lambda rate, part: jax.tree.map(lambda x: np.asarray(rate, x.dtype), part),
        rates,
        trainables,
    )


def flags_of(per_task: Any, trainables: Any) -> tuple[bool, ...]:
    """Spreads a prefix tree of flags over all leaves, in their order."""
    spread = jax.tree.map(lambda f, part: jax.tree.map(lambda _: f, part), per_task, trainables)
    return tuple(bool(flag) for flag in jax.tree.leaves(spread))


def _pad(x: np.ndarray, size: int) -> np.ndarray:
    """Repeats the first row at the end, so that each chunk has one shape; those are not run."""
    missing = size - len(x)
    return np.concatenate([x, np.repeat(x[:1], missing, axis=0)]) if missing else x


def _refuse(value: float, schedule: Schedule, at: int, says: str) -> None:
    what = "loss" if not np.isfinite(value) else f"gradient (its loss is {value:g})"
    found = f" is {value}" if not np.isfinite(value) else " holds NaN or infinity"
    task = int(schedule.task_ids[at])
    raise Diverged(
        f"the {what} of task {task}{found} at step {at}; expected finite numbers: "
        f"lower the learning rate, or look for NaN in the inputs or weights{says}",
        task,
    )
