"""The compiled part of adaptation: a chunk of micro-steps as one program.

What surrounds it, the loop over chunks on the host, is `fit`. A step whose loss or gradient is not
finite is not made: the chunk ends there with the state as it was before.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from symerge_jax.adapt import across
from symerge_jax.notation import Array


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


class Rules(NamedTuple):
    """What the program depends on beside the shapes of its arguments; hashable.

    Attributes:
        loss: of one mini-batch.
        optimiser: whose updates are added, times the rates.
        flags: per leaf of the trainables, whether it has an optimiser state per task; None for one
            state over all leaves.
        idle: what happens to such leaves in other tasks' steps, "skip" or "zero".
        tasks: how many there are.
        split: over which devices, and how; None for one device.
    """

    loss: Loss
    optimiser: optax.GradientTransformation
    flags: tuple[bool, ...] | None
    idle: str
    tasks: int
    split: across.Split | None = None


class Chunk(NamedTuple):
    """The micro-steps of a chunk, and what they read.

    Attributes:
        task_ids: int [step].
        rows: int [step, batch], of the pooled inputs.
        mask: bool [step, batch].
        apply_update: bool [step].
        own_inputs: leaves [step, batch, ...] that the host has gathered, or None.
    """

    task_ids: Any
    rows: Any
    mask: Any
    apply_update: Any
    own_inputs: Any


class Made(NamedTuple):
    """What a chunk returns.

    Attributes:
        carry: after its last good step.
        count: int [], micro-steps that were made.
        losses: float [step], of those and, if it is not among them, of the one that failed.
        extra: what the loss returned beside, leaves [step, ...].
    """

    carry: Carry
    count: Array
    losses: Array
    extra: Any


@partial(jax.jit, static_argnames=("rules",), donate_argnums=0)
def run_chunk(
    carry: Carry,
    constants: Any,
    inputs: Any,
    targets: Any,
    rates: Any,
    chunk: Chunk,
    count: Any,
    *,
    rules: Rules,
) -> Made:
    """Runs the first `count` micro-steps of a chunk, on one device or on those of `rules.split`."""
    if rules.split is None:
        return steps(carry, constants, inputs, targets, rates, chunk, count, rules=rules)
    made = across.mapped(lambda *given: tuple(steps(*given, rules=rules)), rules.split)
    return Made(*made(carry, constants, inputs, targets, rates, chunk, count))


def steps(
    carry: Carry,
    constants: Any,
    inputs: Any,
    targets: Any,
    rates: Any,
    chunk: Chunk,
    count: Any,
    *,
    rules: Rules,
) -> Made:
    """The program itself, for `run_chunk` and for whoever maps it over runs."""
    size = chunk.task_ids.shape[0]
    constants = across.varying(constants)

    def batch_at(carry: Carry, i: Array) -> Batch:
        rows = chunk.rows[i]
        return Batch(
            task=chunk.task_ids[i],
            inputs=_rows(inputs, rows) if chunk.own_inputs is None else _rows(chunk.own_inputs, i),
            targets=_rows(targets, rows),
            mask=chunk.mask[i],
            key=jax.random.fold_in(carry.key, carry.step),
            step=carry.step,
        )

    def micro_step(carry: Carry, i: Array) -> tuple[Carry, Array, Any]:
        batch = batch_at(carry, i)

        def with_aux(trainables: Any) -> tuple[Array, tuple[Any, Any]]:
            # From here on each device has its own: the sum over devices is that of the gradients of
            # λ and heads, not of the whole model.
            trainables = across.varying(trainables)
            value, model_state, extra = rules.loss(trainables, constants, carry.model_state, batch)
            return value, (model_state, extra)

        (value, (model_state, extra)), gradients = jax.value_and_grad(with_aux, has_aux=True)(
            carry.trainables
        )
        good = jnp.isfinite(value)
        for leaf in jax.tree.leaves(gradients):
            good &= jnp.isfinite(leaf).all()

        def moved(carry: Carry) -> Carry:
            carry = carry._replace(model_state=model_state, step=carry.step + 1)
            return _gathered(carry, gradients, batch.task, chunk.apply_update[i], rates, rules)

        return _if_good(good, moved(carry), carry), good, (value, extra)

    def kept(carry: Carry) -> tuple[Array, Any]:  # without gradients, which double the tracing
        batch = batch_at(carry, jnp.int32(0))
        value, _, extra = rules.loss(carry.trainables, constants, carry.model_state, batch)
        return value, extra

    outputs = jax.tree.map(
        lambda s: across.like(jnp.zeros((size, *s.shape), s.dtype), s), jax.eval_shape(kept, carry)
    )

    def body(loop: Any) -> Any:
        i, _, carry, outputs = loop
        carry, good, made = micro_step(carry, i)
        outputs = jax.tree.map(lambda all_, one: all_.at[i].set(one), outputs, made)
        return i + good.astype(jnp.int32), good, carry, outputs

    done, _, carry, (values, extra) = jax.lax.while_loop(
        lambda loop: (loop[0] < count) & loop[1],
        body,
        (jnp.int32(0), jnp.bool(True), carry, outputs),
    )
    return Made(carry, done, values, extra)


def nothing(trainables: Any, tasks: int) -> Pending:
    """Returns what is pending after an update."""
    return Pending(jax.tree.map(jnp.zeros_like, trainables), jnp.zeros((tasks,), bool))


def parts(tree: Any, flags: tuple[bool, ...]) -> tuple[list, list]:
    """Splits the leaves in those of one task each and those that all tasks share."""
    leaves = jax.tree.leaves(tree)
    own = [leaf for leaf, flag in zip(leaves, flags, strict=True) if flag]
    shared = [leaf for leaf, flag in zip(leaves, flags, strict=True) if not flag]
    return own, shared


def _if_good(good: Array, new: Carry, old: Carry) -> Carry:
    """Returns the new state or the old one; a selection, as accelerators wait for a branch."""

    def either(a: Array, b: Array) -> Array:
        return a if a is b else jnp.where(good, a, b)

    return jax.tree.map(either, new, old)


def _rows(tree: Any, at: Array) -> Any:
    return jax.tree.map(lambda x: x[at], tree)


def _gathered(
    carry: Carry, gradients: Any, task: Array, update: Array, rates: Any, rules: Rules
) -> Carry:
    """An optimiser step, or in joint schedules perhaps one term of it."""
    here = jnp.arange(rules.tasks, dtype=task.dtype) == task
    if carry.pending is None:
        return _update(carry, gradients, here, rates, rules)
    pending = Pending(
        jax.tree.map(jnp.add, carry.pending.gradients, gradients), carry.pending.touched | here
    )
    empty = nothing(carry.trainables, rules.tasks)
    return jax.lax.cond(
        update,
        lambda c: _update(c._replace(pending=empty), *pending, rates, rules),
        lambda c: c._replace(pending=pending),
        carry,
    )


def _update(carry: Carry, gradients: Any, touched: Array, rates: Any, rules: Rules) -> Carry:
    """One optimiser step on the gradients of the `touched` tasks, bool [task]."""
    optimiser, flags = rules.optimiser, rules.flags
    trainables = carry.trainables
    seen = carry.seen | touched
    if flags is None:
        updates, state = optimiser.update(gradients, carry.optimiser, trainables)
    else:
        own, shared = parts(trainables, flags)
        own_gradients, shared_gradients = parts(gradients, flags)
        shared_state, own_state = carry.optimiser
        shared_updates, shared_state = optimiser.update(shared_gradients, shared_state, shared)
        moved_updates, moved_state = jax.vmap(optimiser.update)(own_gradients, own_state, own)
        active = seen if rules.idle == "zero" else touched

        def where_active(new: Array, old: Array) -> Array:
            return jnp.where(active.reshape(-1, *(1,) * (new.ndim - 1)), new, old)

        state = (shared_state, jax.tree.map(where_active, moved_state, own_state))
        moved_updates = [where_active(u, jnp.zeros_like(u)) for u in jax.tree.leaves(moved_updates)]
        each = {True: iter(moved_updates), False: iter(jax.tree.leaves(shared_updates))}
        updates = jax.tree.unflatten(
            jax.tree.structure(trainables), [next(each[flag]) for flag in flags]
        )

    def move(x: Array, u: Array, rate: Array) -> Array:
        return jnp.where(rate == 0, x, x + rate * u)  # x + 0 would lose the sign of −0

    moved = jax.tree.map(move, trainables, updates, rates)
    return carry._replace(trainables=moved, optimiser=state, seen=seen)
