"""The adaptation loop against loops written by hand, on a linear regression per task."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from trees_close import assert_trees_close, assert_trees_equal

from symerge_jax.adapt.fit import ADAM, Batch, Data, fit, pool
from symerge_jax.adapt.schedule import Schedule, joint, sequential
from symerge_jax.errors import BadInput

SIZES = [7, 5, 6]
WIDTH = 3


class Both(NamedTuple):
    """What all tasks train together, and one row per task."""

    shared: jax.Array
    heads: jax.Array


START = Both(jnp.full(WIDTH, 0.3), jnp.zeros((3, WIDTH)))
RATES = Both(0.05, 0.1)
PER_TASK = Both(False, True)


def loss(trainables, constants, state, batch):
    """Half the mean squared distance of x·(shared + own head) to what the expert says."""
    weights = trainables.shared + trainables.heads[batch.task]
    errors = batch.inputs["x"] @ weights - batch.targets
    count = batch.mask.sum(dtype=errors.dtype)
    value = jnp.where(batch.mask, errors**2, jnp.zeros_like(errors)).sum() / (2 * count)
    return value * constants, state, errors


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    inputs = [{"x": rng.normal(size=(n, WIDTH)).astype(np.float32)} for n in SIZES]
    targets = [rng.normal(size=n).astype(np.float32) for n in SIZES]
    return pool(inputs, targets)


IN_TURN = sequential(SIZES, iterations=6, batch_size=4, seed=0)
JOINT = joint(SIZES, iterations=4, batch_size=4, seed=0, batches=2)
every_schedule = pytest.mark.parametrize("schedule", [IN_TURN, JOINT], ids=["in turn", "joint"])
# One state over the whole tree; one per head that other tasks' steps skip, or feed with zeros.
ONE, SKIP, ZERO = {}, {"per_task": PER_TASK}, {"per_task": PER_TASK, "idle": "zero"}
every_state = pytest.mark.parametrize("state", [ONE, SKIP, ZERO], ids=["one", "skip", "zero"])


def run(data, schedule=IN_TURN, trainables=START, **options):
    options = {"rates": RATES, "constants": jnp.float32(1)} | options
    return fit(loss, trainables, data, schedule, **options)


def batches(data, schedule):
    """The mini-batches of a schedule, one by one."""
    offsets = np.cumsum([0, *SIZES[:-1]])
    for step in range(schedule.steps):
        task = int(schedule.task_ids[step])
        rows = offsets[task] + schedule.sample_indices[step]
        yield schedule.apply_update[step], Batch(
            task, {"x": data.inputs["x"][rows]}, data.targets[rows],
            schedule.sample_mask[step], jax.random.key(0), step,
        )  # fmt: skip


@jax.jit
def value_and_gradient(trainables, batch):
    return jax.value_and_grad(lambda t: loss(t, jnp.float32(1), (), batch)[0])(trainables)


def by_hand_one(data, schedule):
    """One optax state over the whole tree; a group of rates as two labelled optimisers."""
    adam = optax.partition(
        {"shared": optax.adam(RATES.shared), "heads": optax.adam(RATES.heads)},
        Both("shared", "heads"),
    )
    trainables, state = START, adam.init(START)
    total, losses = jax.tree.map(jnp.zeros_like, START), []
    for update, batch in batches(data, schedule):
        value, gradients = value_and_gradient(trainables, batch)
        losses.append(value)
        total = jax.tree.map(jnp.add, total, gradients)
        if update:
            updates, state = adam.update(total, state, trainables)
            trainables = optax.apply_updates(trainables, updates)
            total = jax.tree.map(jnp.zeros_like, START)
    return trainables, np.array(losses)


def by_hand_skip(data, schedule, *, zero=False):
    """One optax state for what is shared and one per head, moved only by its own task's loss.

    With `zero`, heads that have had an own step see zero gradients in the others' steps.
    """
    adam, head_adam = optax.adam(RATES.shared), optax.adam(RATES.heads)
    shared, heads = START.shared, list(START.heads)
    state, states = adam.init(shared), [head_adam.init(head) for head in heads]
    total, touched, seen, losses = jax.tree.map(jnp.zeros_like, START), set(), set(), []
    for update, batch in batches(data, schedule):
        value, gradients = value_and_gradient(Both(shared, jnp.stack(heads)), batch)
        losses.append(value)
        total = jax.tree.map(jnp.add, total, gradients)
        touched.add(batch.task)
        if update:
            updates, state = adam.update(total.shared, state)
            shared = optax.apply_updates(shared, updates)
            seen |= touched
            for k in seen if zero else touched:
                updates, states[k] = head_adam.update(total.heads[k], states[k])
                heads[k] = optax.apply_updates(heads[k], updates)
            total, touched = jax.tree.map(jnp.zeros_like, START), set()
    return Both(shared, jnp.stack(heads)), np.array(losses)


def by_hand_zero(data, schedule):
    return by_hand_skip(data, schedule, zero=True)


@every_schedule
@pytest.mark.parametrize(
    ("state", "by_hand"),
    [(ONE, by_hand_one), (SKIP, by_hand_skip), (ZERO, by_hand_zero)],
    ids=["one", "skip", "zero"],
)
def test_it_is_the_loop_one_would_write_by_hand(data, schedule, state, by_hand):
    fitted = run(data, schedule, **state)
    trainables, losses = by_hand(data, schedule)
    np.testing.assert_allclose(fitted.losses, losses, rtol=1e-5)
    assert_trees_close(fitted.trainables, trainables, rtol=1e-5)


def test_states_per_task_follow_a_joint_schedule_that_visits_some_tasks(data):
    tasks = np.array([0, 1, 0, 0, 2, 1], np.int32)
    schedule = Schedule(
        tasks,
        np.tile(np.arange(4, dtype=np.int32), (6, 1)),
        np.ones((6, 4), bool),
        np.array([False, True, False, True, True, True]),
    )
    found = []
    for state, by_hand in ((ONE, by_hand_one), (SKIP, by_hand_skip), (ZERO, by_hand_zero)):
        found.append(run(data, schedule, **state).trainables)
        assert_trees_close(found[-1], by_hand(data, schedule)[0], rtol=1e-5)
    one, skip, zero = (trainables.heads for trainables in found)
    assert not np.allclose(one, skip)
    assert not np.allclose(skip, zero)
    assert not np.allclose(one, zero)


def one_update(data, task_order):
    tasks = np.array(task_order, np.int32)
    count = len(tasks)
    return Schedule(
        tasks,
        np.tile(np.arange(5, dtype=np.int32), (count, 1)),
        np.ones((count, 5), bool),
        np.arange(count) == count - 1,
    )


def test_a_joint_step_is_one_step_on_the_sum_of_the_tasks_gradients(data):
    schedule = one_update(data, [0, 1, 2])
    gradients = [value_and_gradient(START, batch)[1] for _, batch in batches(data, schedule)]
    total = jax.tree.map(lambda *g: jnp.stack(g).sum(axis=0), *gradients)
    sgd = optax.sgd(1.0)
    updates, _ = sgd.update(total, sgd.init(START))
    fitted = run(data, schedule, rates=1.0, optimiser=sgd)
    assert_trees_close(fitted.trainables, optax.apply_updates(START, updates))


def test_the_order_of_tasks_within_a_joint_step_does_not_matter(data):
    ours, theirs = (run(data, one_update(data, order)) for order in ([0, 1, 2], [2, 0, 1]))
    assert_trees_close(ours.trainables, theirs.trainables)


@every_state
@every_schedule
def test_the_chunk_size_changes_nothing(data, schedule, state):
    whole = run(data, schedule, **state)
    parts = run(data, schedule, **state, chunk_steps=5)
    assert_trees_equal(parts.trainables, whole.trainables)
    np.testing.assert_array_equal(parts.losses, whole.losses)
    assert_trees_equal(parts.extra, whole.extra)
    assert parts.losses.shape == (schedule.steps,)


@every_schedule
def test_streamed_inputs_give_what_resident_ones_give(data, schedule):
    resident = run(data, schedule, resident=True, chunk_steps=5)
    streamed = run(data, schedule, resident=False, chunk_steps=5)
    assert_trees_equal(streamed.trainables, resident.trainables)
    np.testing.assert_array_equal(streamed.losses, resident.losses)


@every_state
@every_schedule
def test_a_run_goes_on_from_a_carry_as_if_never_interrupted(data, schedule, state):
    carries = []
    whole = run(
        data, schedule, **state, chunk_steps=5,
        on_chunk=lambda carry, _: carries.append(jax.tree.map(jnp.array, carry)),
    )  # fmt: skip
    assert len(carries) == -(-schedule.steps // 5)
    for number, carry in enumerate(carries[:2], start=1):
        for _ in range(2):  # a carry can be used again
            rest = run(data, schedule, **state, chunk_steps=5, start=carry)
            assert_trees_equal(rest.trainables, whole.trainables)
            np.testing.assert_array_equal(rest.losses, whole.losses[5 * number :])
    done = run(data, schedule, **state, chunk_steps=5, start=whole.carry)
    assert_trees_equal(done.trainables, whole.trainables)
    assert len(done.losses) == 0


def test_a_carry_of_another_kind_of_schedule_is_refused(data):
    carry = run(data, IN_TURN.part(0, 3)).carry
    with pytest.raises(BadInput, match="apply_update"):
        run(data, JOINT, start=carry)


@every_state
def test_a_part_with_rate_zero_stays_bit_identical(data, state):
    start = Both(jnp.array([-0.0, -0.0, 1 / 3]), START.heads - 0.0)
    fitted = run(data, trainables=start, rates=Both(0.0, 0.1), **state)
    assert fitted.trainables.shared.tobytes() == start.shared.tobytes()
    assert not np.array_equal(fitted.trainables.heads, start.heads)


def test_the_callers_arrays_stay_usable(data):
    own = Both(jnp.full(WIDTH, 0.3), jnp.zeros((3, WIDTH)))
    run(data, trainables=own)
    assert_trees_equal(own, START)


def test_idle_heads_move_by_momentum_or_stay(data):
    schedule = one_update(data, [0, 1, 1])._replace(apply_update=np.ones(3, bool))
    first = run(data, schedule.part(0, 1)).trainables.heads[0]
    one, skip, zero = (run(data, schedule, **state).trainables for state in (ONE, SKIP, ZERO))
    for moved in (one, zero):
        assert not np.allclose(moved.heads[0], first)
    np.testing.assert_allclose(skip.heads[0], first, rtol=1e-6)
    for trained in (one, skip, zero):  # task 2 never came
        np.testing.assert_array_equal(trained.heads[2], START.heads[2])


def test_all_parts_may_be_per_task_or_none(data):
    none = run(data, per_task=Both(False, False))
    assert_trees_equal(none.trainables, run(data).trainables)
    heads = jax.tree.map(jnp.zeros_like, START)._replace(shared=jnp.zeros((3, WIDTH)))

    def own(trainables, constants, state, batch):
        alone = Both(trainables.shared[batch.task], trainables.heads)
        return loss(alone, constants, state, batch)

    fitted = fit(own, heads, data, IN_TURN, constants=jnp.float32(1), rates=0.1, per_task=True)
    assert fitted.losses[-3:].mean() < fitted.losses[:3].mean()


def test_a_per_task_part_without_a_task_axis_is_refused(data):
    with pytest.raises(BadInput, match="leading axis of the 3 tasks"):
        fit(loss, START._replace(heads=jnp.zeros((2, WIDTH))), data, IN_TURN, per_task=PER_TASK)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_is_named_with_task_and_step(data, bad):
    task, sample = int(IN_TURN.task_ids[7]), int(IN_TURN.sample_indices[7, 0])
    targets = data.targets.copy()
    targets[sum(SIZES[:task]) + sample] = bad
    hit = (IN_TURN.task_ids == task) & (
        (IN_TURN.sample_indices == sample) & IN_TURN.sample_mask
    ).any(axis=1)
    step = int(np.argmax(hit))
    with pytest.raises(BadInput, match=rf"loss of task {task} is (nan|inf) at step {step};"):
        run(data._replace(targets=targets), chunk_steps=5)


def test_padding_is_not_looked_at(data):
    wild = IN_TURN._replace(
        sample_indices=np.where(IN_TURN.sample_mask, IN_TURN.sample_indices, 1).astype(np.int32)
    )
    assert not np.array_equal(wild.sample_indices, IN_TURN.sample_indices)
    assert_trees_equal(run(data, wild).trainables, run(data).trainables)


def test_a_second_run_and_further_chunks_reuse_the_program(data):
    traces = []

    def counted(*arguments):
        traces.append(1)
        return loss(*arguments)

    def again(seed, rate):
        schedule = sequential(SIZES, iterations=6, batch_size=4, seed=seed)
        return fit(
            counted, START, data, schedule, constants=jnp.float32(1), rates=rate, chunk_steps=5
        )

    fit(
        counted, START, data, IN_TURN.part(0, 5), constants=jnp.float32(1), rates=0.1, chunk_steps=5
    )
    once = len(traces)
    assert once > 0
    again(0, 0.1)  # four chunks, the last one short
    again(1, 0.01)
    assert len(traces) == once


def test_model_state_key_and_step_go_through_the_run(data):
    def noting(trainables, constants, state, batch):
        value, _, _ = loss(trainables, constants, state, batch)
        noise = jax.random.uniform(batch.key)
        return value, state + 1, {"noise": noise, "step": batch.step, "task": batch.task}

    def go(seed, **options):
        return fit(noting, START, data, IN_TURN, constants=jnp.float32(1),
                   model_state=jnp.int32(10), seed=seed, **options)  # fmt: skip

    fitted = go(0, chunk_steps=5)
    assert fitted.carry.model_state == 10 + IN_TURN.steps
    np.testing.assert_array_equal(fitted.extra["step"], np.arange(IN_TURN.steps))
    np.testing.assert_array_equal(fitted.extra["task"], IN_TURN.task_ids)
    assert len(set(fitted.extra["noise"].tolist())) == IN_TURN.steps
    np.testing.assert_array_equal(go(0).extra["noise"], fitted.extra["noise"])
    assert not np.array_equal(go(1).extra["noise"], fitted.extra["noise"])


def test_any_optimiser_steps(data):
    trained = run(data, rates=1.0, optimiser=optax.sgd(0.1)).trainables
    value = START
    for _, batch in batches(data, IN_TURN):
        gradients = value_and_gradient(value, batch)[1]
        value = jax.tree.map(lambda x, g: x - 0.1 * g, value, gradients)
    assert_trees_close(trained, value, rtol=1e-5)


def test_there_is_no_place_for_labels():
    assert Data._fields == ("inputs", "targets", "sizes")
    assert Batch._fields == ("task", "inputs", "targets", "mask", "key", "step")


def test_pooled_inputs_stay_as_they_came():
    images = [np.full((n, 2, 2), n, np.uint8) for n in (3, 2)]
    pooled = pool(images)
    assert pooled.inputs.dtype == np.uint8
    assert (pooled.sizes, pooled.targets) == ((3, 2), ())
    np.testing.assert_array_equal(pooled.inputs[:, 0, 0], [3, 3, 3, 2, 2])


@pytest.mark.parametrize(
    ("inputs", "targets", "message"),
    [
        ([np.zeros((3, 2)), np.zeros((0, 2))], None, "task 1: .*at least one input.*lengths"),
        ([np.zeros((3, 2))], [np.zeros(4)], r"task 0: .*arrays of lengths \[3, 4\]"),
        ([np.zeros((3, 2))] * 2, [np.zeros(3)], "inputs of 2 tasks, but expert outputs of 1"),
    ],
)
def test_counts_that_do_not_fit_are_refused(inputs, targets, message):
    with pytest.raises(BadInput, match=message):
        pool(inputs, targets)


def test_the_default_optimiser_is_adam_with_the_papers_settings():
    state = ADAM.init(jnp.ones(2))
    ours, _ = ADAM.update(jnp.array([3.0, -1e-3]), state)
    expected = [-g / (abs(g) + 1e-8) for g in (3.0, -1e-3)]  # the first step of Adam, rate 1
    np.testing.assert_allclose(ours, expected, rtol=1e-5)
