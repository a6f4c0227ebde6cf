"""The one adaptation loop: SyMerge, AdaMerging and every other test-time method run on it.

A method says what is trainable, how trainables, constants and a mini-batch of unlabelled inputs
give a loss, and which optimiser steps. The loop is one compiled program that runs a chunk of
micro-steps; the host sees one array of losses per chunk, never a value per step.

There is no place for labels here: a mini-batch holds inputs and what an expert said about them.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from symerge_jax import trees
from symerge_jax.adapt import schedule as schedules
from symerge_jax.adapt.schedule import Schedule
from symerge_jax.errors import BadInput
from symerge_jax.notation import Array

RESIDENT_BYTES = 4 * 2**30  # inputs up to this size stay on the device
CHUNK_STEPS = 200

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


class Batch(NamedTuple):
    """One mini-batch of one task, as the loss sees it.

    Attributes:
        task: int [], whose inputs these are.
        inputs: leaves [batch, ...].
        targets: leaves [batch, ...].
        mask: bool [batch], False for padding.
        key: a random key of this step's own.
        step: int [], micro-steps done before this one.
    """

    task: Array
    inputs: Any
    targets: Any
    mask: Array
    key: Array
    step: Array


class Pending(NamedTuple):
    """What joint schedules gather until the next update.

    Attributes:
        gradients: summed, like the trainables.
        touched: bool [task], whose loss is in that sum.
    """

    gradients: Any
    touched: Array


class Carry(NamedTuple):
    """The state of a run between chunks; saving it is saving the run."""

    trainables: Any
    optimiser: Any
    model_state: Any
    key: Array
    step: Array
    seen: Array  # bool [task], which tasks have had an update of their own
    pending: Pending | None  # None if every micro-step updates


# (trainables, constants, model state, batch) → (loss [], model state, extra kept per step)
Loss = Callable[[Any, Any, Any, Batch], tuple[Array, Any, Any]]


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
    chunk_steps: int = CHUNK_STEPS,
    resident: bool | None = None,
    start: Carry | None = None,
    on_chunk: Callable[[Carry, np.ndarray], None] | None = None,
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
        chunk_steps: micro-steps per call of the program.
        resident: whether inputs are kept on the device; None decides by size. Otherwise the next
            chunk's inputs are gathered on the host while the device works.
        start: a carry to go on from; `schedule` is still the whole one.
        on_chunk: called after each chunk with the carry and its losses [chunk], for progress,
            checkpoints. It must not keep the carry's arrays: the next chunk reuses their memory.

    Raises:
        BadInput: a schedule that does not fit the data; a loss that is not finite.
    """
    schedules.check(schedule, data.sizes)
    accumulates = not bool(np.all(schedule.apply_update))
    if per_task is not None and not any(jax.tree.leaves(per_task)):
        per_task = None  # no part has a state per task
    carry = (
        start
        if start is not None
        else _start(trainables, optimiser, per_task, model_state, seed, accumulates, data)
    )
    if accumulates and carry.pending is None:
        raise BadInput(
            "the carry to go on from belongs to a schedule whose apply_update is always True; this "
            "one adds gradients up"
        )
    carry = trees.copied(carry)  # the program reuses the memory of what it is given
    first = int(carry.step)
    size = min(chunk_steps, schedule.steps)
    if resident is None:
        resident = sum(leaf.nbytes for leaf in jax.tree.leaves(data.inputs)) <= RESIDENT_BYTES
    offsets = np.cumsum([0, *data.sizes[:-1]])
    inputs = jax.tree.map(jnp.asarray, data.inputs) if resident else None
    targets = jax.tree.map(jnp.asarray, data.targets)
    rates = jax.tree.map(jnp.asarray, _full_rates(rates, carry.trainables))
    flags = None if per_task is None else _flags(per_task, carry.trainables)

    def load(begin: int) -> tuple[Any, Any, int]:
        steps = schedule.part(begin, begin + size)
        rows = steps.sample_indices + offsets[steps.task_ids][:, None]
        chunk = (steps.task_ids.astype(np.int32), rows.astype(np.int32), *steps[2:])
        own = None if resident else jax.tree.map(lambda x: np.asarray(x)[rows], data.inputs)
        return jax.tree.map(lambda x: _pad(x, size), (chunk, own)) + (steps.steps,)

    losses, extras = [], []
    begins = range(first, schedule.steps, size)
    coming = load(first) if begins else None
    for begin in begins:
        assert coming is not None
        chunk, own, count = coming
        carry, loss_values, extra = _run_chunk(
            carry, constants, inputs, targets, rates, chunk, own, np.int32(count), len(data.sizes),
            loss=loss, optimiser=optimiser, flags=flags, idle=idle,
        )  # fmt: skip
        coming = load(begin + size) if begin + size < schedule.steps else None
        values = np.asarray(loss_values)[:count]
        _check_finite(values, schedule, begin)
        losses.append(values)
        extras.append(jax.tree.map(lambda x, n=count: np.asarray(x)[:n], extra))
        if on_chunk is not None:
            on_chunk(carry, values)
    joined = jax.tree.map(lambda *parts: np.concatenate(parts), *extras) if extras else ()
    return Fitted(
        carry.trainables, np.concatenate(losses) if losses else np.zeros(0), joined, carry
    )


def _start(
    trainables: Any,
    optimiser: optax.GradientTransformation,
    per_task: Any,
    model_state: Any,
    seed: int,
    accumulates: bool,
    data: Data,
) -> Carry:
    # A dtype that is given is not "weak": a weak one would be another program after the first step.
    trainables = jax.tree.map(lambda x: jnp.asarray(x, jnp.result_type(x)), trainables)
    if per_task is None:
        state = jax.jit(optimiser.init)(trainables)
    else:
        own, shared = _parts(trainables, _flags(per_task, trainables))
        if own and {leaf.shape[0] for leaf in own} != {len(data.sizes)}:
            raise BadInput(
                f"per-task trainables need a leading axis of the {len(data.sizes)} tasks, got "
                f"shapes {[leaf.shape for leaf in own]}"
            )
        state = (jax.jit(optimiser.init)(shared), jax.jit(jax.vmap(optimiser.init))(own))
    pending = _nothing(trainables, len(data.sizes)) if accumulates else None
    seen = jnp.zeros((len(data.sizes),), bool)
    return Carry(trainables, state, model_state, jax.random.key(seed), jnp.int32(0), seen, pending)


def _nothing(trainables: Any, tasks: int) -> Pending:
    return Pending(jax.tree.map(jnp.zeros_like, trainables), jnp.zeros((tasks,), bool))


def _full_rates(rates: Any, trainables: Any) -> Any:
    """Spreads a prefix tree of rates over all leaves, in the leaves' dtypes."""
    return jax.tree.map(
        lambda rate, part: jax.tree.map(lambda x: np.asarray(rate, x.dtype), part),
        rates,
        trainables,
    )


def _flags(per_task: Any, trainables: Any) -> tuple[bool, ...]:
    spread = jax.tree.map(lambda f, part: jax.tree.map(lambda _: f, part), per_task, trainables)
    return tuple(bool(flag) for flag in jax.tree.leaves(spread))


def _parts(tree: Any, flags: tuple[bool, ...]) -> tuple[list, list]:
    """Splits the leaves in those of one task each and those that all tasks share."""
    leaves = jax.tree.leaves(tree)
    own = [leaf for leaf, flag in zip(leaves, flags, strict=True) if flag]
    shared = [leaf for leaf, flag in zip(leaves, flags, strict=True) if not flag]
    return own, shared


def _pad(x: np.ndarray, size: int) -> np.ndarray:
    """Repeats the first row at the end, so that each chunk has one shape; those are not run."""
    missing = size - len(x)
    return np.concatenate([x, np.repeat(x[:1], missing, axis=0)]) if missing else x


def _check_finite(values: np.ndarray, schedule: Schedule, begin: int) -> None:
    if not np.isfinite(values).all():
        at = begin + int(np.argmin(np.isfinite(values)))
        raise BadInput(
            f"the loss of task {schedule.task_ids[at]} is {values[at - begin]} at step {at}; "
            "expected a finite number: lower the learning rate, or look for NaN in the inputs or "
            "weights"
        )


@partial(jax.jit, static_argnames=("tasks", "loss", "optimiser", "flags", "idle"), donate_argnums=0)
def _run_chunk(
    carry: Carry,
    constants: Any,
    inputs: Any,
    targets: Any,
    rates: Any,
    chunk: tuple[Array, Array, Array, Array],
    own_inputs: Any,
    count: Any,
    tasks: int,
    *,
    loss: Loss,
    optimiser: optax.GradientTransformation,
    flags: tuple[bool, ...] | None,
    idle: str,
) -> tuple[Carry, Array, Any]:
    """Runs the first `count` micro-steps of a chunk; returns losses and extras [chunk, ...]."""
    size = chunk[0].shape[0]

    def batch_at(carry: Carry, i: Array) -> Batch:
        task, rows, mask, _ = (x[i] for x in chunk)
        return Batch(
            task=task,
            inputs=_rows(inputs, rows) if own_inputs is None else _rows(own_inputs, i),
            targets=_rows(targets, rows),
            mask=mask,
            key=jax.random.fold_in(carry.key, carry.step),
            step=carry.step,
        )

    def micro_step(carry: Carry, i: Array) -> tuple[Carry, Any]:
        batch = batch_at(carry, i)

        def with_aux(trainables: Any) -> tuple[Array, tuple[Any, Any]]:
            value, model_state, extra = loss(trainables, constants, carry.model_state, batch)
            return value, (model_state, extra)

        (value, (model_state, extra)), gradients = jax.value_and_grad(with_aux, has_aux=True)(
            carry.trainables
        )
        carry = carry._replace(model_state=model_state, step=carry.step + 1)
        here = jnp.arange(tasks, dtype=batch.task.dtype) == batch.task
        update = partial(_update, rates=rates, optimiser=optimiser, flags=flags, idle=idle)
        if carry.pending is None:
            return update(carry, gradients, here), (value, extra)
        pending = Pending(
            jax.tree.map(jnp.add, carry.pending.gradients, gradients), carry.pending.touched | here
        )
        empty = _nothing(carry.trainables, tasks)
        carry = jax.lax.cond(
            chunk[3][i],
            lambda c: update(c._replace(pending=empty), *pending),
            lambda c: c._replace(pending=pending),
            carry,
        )
        return carry, (value, extra)

    def kept(carry: Carry) -> tuple[Array, Any]:  # without gradients, which double the tracing
        batch = batch_at(carry, jnp.int32(0))
        value, _, extra = loss(carry.trainables, constants, carry.model_state, batch)
        return value, extra

    shapes = jax.eval_shape(kept, carry)
    outputs = jax.tree.map(lambda s: jnp.zeros((size, *s.shape), s.dtype), shapes)

    def body(i: Array, loop: Any) -> Any:
        carry, outputs = loop
        carry, made = micro_step(carry, i)
        return carry, jax.tree.map(lambda all_, one: all_.at[i].set(one), outputs, made)

    carry, (values, extra) = jax.lax.fori_loop(0, count, body, (carry, outputs))
    return carry, values, extra


def _rows(tree: Any, at: Array) -> Any:
    return jax.tree.map(lambda x: x[at], tree)


def _update(
    carry: Carry,
    gradients: Any,
    touched: Array,
    *,
    rates: Any,
    optimiser: optax.GradientTransformation,
    flags: tuple[bool, ...] | None,
    idle: str,
) -> Carry:
    """One optimiser step on the gradients of the `touched` tasks, bool [task]."""
    trainables = carry.trainables
    seen = carry.seen | touched
    if flags is None:
        updates, state = optimiser.update(gradients, carry.optimiser, trainables)
    else:
        own, shared = _parts(trainables, flags)
        own_gradients, shared_gradients = _parts(gradients, flags)
        shared_state, own_state = carry.optimiser
        shared_updates, shared_state = optimiser.update(shared_gradients, shared_state, shared)
        moved_updates, moved_state = jax.vmap(optimiser.update)(own_gradients, own_state, own)
        active = seen if idle == "zero" else touched

        def where_active(new: Array, old: Array) -> Array:
            return jnp.where(active.reshape(-1, *(1,) * (new.ndim - 1)), new, old)

        state = (shared_state, jax.tree.map(where_active, moved_state, own_state))
        moved_updates = [where_active(u, jnp.zeros_like(u)) for u in jax.tree.leaves(moved_updates)]
        parts = {True: iter(moved_updates), False: iter(jax.tree.leaves(shared_updates))}
        updates = jax.tree.unflatten(
            jax.tree.structure(trainables), [next(parts[flag]) for flag in flags]
        )

    def move(x: Array, u: Array, rate: Array) -> Array:
        return jnp.where(rate == 0, x, x + rate * u)  # x + 0 would lose the sign of −0

    moved = jax.tree.map(move, trainables, updates, rates)
    return carry._replace(trainables=moved, optimiser=state, seen=seen)
