"""Schedules: which task, which samples, when to update."""

import numpy as np
import pytest

from symerge_jax.adapt.schedule import Schedule, check, joint, one_pass, sequential
from symerge_jax.errors import BadInput

SIZES = [10, 7, 4]


def make(**options):
    return sequential(SIZES, **({"iterations": 12, "batch_size": 4, "seed": 0} | options))


def assert_same(a, b):
    for ours, theirs in zip(a, b, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_each_task_comes_exactly_once_per_iteration():
    rounds = make().task_ids.reshape(12, 3)
    np.testing.assert_array_equal(np.sort(rounds, axis=1), np.tile([0, 1, 2], (12, 1)))


def test_task_order_differs_between_iterations():
    assert len({tuple(row) for row in make().task_ids.reshape(12, 3)}) > 1
    given = make(shuffle_tasks=False).task_ids.reshape(12, 3)
    np.testing.assert_array_equal(given, np.tile([0, 1, 2], (12, 1)))


def test_a_seed_is_a_schedule():
    assert_same(make(seed=3), make(seed=3))
    assert not np.array_equal(make(seed=3).task_ids, make(seed=4).task_ids)
    assert not np.array_equal(make(seed=3).sample_indices, make(seed=4).sample_indices)


def test_a_longer_run_begins_like_a_shorter_one():
    assert_same(make(iterations=12).part(0, 15), make(iterations=5))


def test_task_order_does_not_change_which_samples_come():
    shuffled, given = make(), make(shuffle_tasks=False)
    for task in range(3):
        ours, theirs = (s.sample_indices[s.task_ids == task] for s in (shuffled, given))
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(("task", "batches_per_pass"), [(0, 3), (1, 2), (2, 1)])
def test_every_sample_of_a_pass_comes_exactly_once(task, batches_per_pass):
    schedule = make()
    own = schedule.task_ids == task
    indices, mask = schedule.sample_indices[own], schedule.sample_mask[own]
    orders = set()
    for begin in range(0, 12, batches_per_pass):
        one_pass = slice(begin, begin + batches_per_pass)
        samples = indices[one_pass][mask[one_pass]]
        np.testing.assert_array_equal(np.sort(samples), np.arange(SIZES[task]))
        orders.add(tuple(samples))
    assert len(orders) > 1, "each pass is shuffled anew"


def test_the_last_batch_of_a_pass_is_short_and_masked():
    schedule = make()
    counts = schedule.sample_mask.sum(axis=1)
    for task, expected in enumerate(([4, 4, 2], [4, 3], [4])):
        own = counts[schedule.task_ids == task]
        np.testing.assert_array_equal(own, np.tile(expected, 12 // len(expected)))


def test_a_batch_larger_than_the_data_is_all_of_it():
    schedule = sequential([3], iterations=2, batch_size=5, seed=0)
    assert schedule.sample_indices.shape == (2, 5)
    np.testing.assert_array_equal(schedule.sample_mask.sum(axis=1), [3, 3])
    check(schedule, [3])


def test_a_sequential_schedule_updates_at_each_step():
    assert make().apply_update.all()
    assert make().steps == 36


@pytest.mark.parametrize("batches", [1, 2])
def test_a_joint_schedule_updates_once_per_round(batches):
    schedule = joint(SIZES, iterations=4, batch_size=4, seed=0, batches=batches)
    assert schedule.steps == 4 * 3 * batches
    rounds = schedule.apply_update.reshape(4, 3 * batches)
    assert rounds[:, -1].all()
    assert not rounds[:, :-1].any()
    tasks = schedule.task_ids.reshape(4, 3 * batches)
    for task in range(3):
        np.testing.assert_array_equal((tasks == task).sum(axis=1), batches)


@pytest.mark.parametrize("batches", [1, 2])
def test_made_schedules_pass_the_check(batches):
    check(make(), SIZES)
    check(joint(SIZES, iterations=2, batch_size=3, seed=1, batches=batches), SIZES)


GOOD = Schedule(
    np.array([0, 1], np.int32),
    np.array([[0, 1], [2, 0]], np.int32),
    np.array([[True, True], [True, False]]),
    np.array([True, True]),
)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task_ids": np.zeros(0, np.int32)}, "at least one step, got none"),
        ({"sample_mask": np.ones((2, 3), bool)}, r"expected task_ids \[step\].*got shapes"),
        ({"apply_update": np.ones(3, bool)}, "got shapes"),
        ({"sample_indices": np.zeros(2, np.int32)}, "got shapes"),
        ({"task_ids": np.array([0.0, 1.0])}, "must be integers.*got dtypes .*float64"),
        ({"sample_mask": np.ones((2, 2), np.int32)}, "must be integers.*booleans; got dtypes"),
        ({"task_ids": np.array([0, 2])}, r"step 1 is for task 2, but there are 2 tasks \(0 to 1\)"),
        ({"task_ids": np.array([-1, 1])}, "step 0 is for task -1"),
        (
            {"sample_indices": np.array([[0, 1], [2, 3]])},
            r"step 1 asks for sample 3 of task 1, which has 3 samples \(0 to 2\)",
        ),
        ({"sample_indices": np.array([[0, -1], [2, 0]])}, "step 0 asks for sample -1 of task 0"),
        ({"sample_mask": np.array([[True, True], [False, False]])}, "step 1 has no sample at all"),
        ({"apply_update": np.array([True, False])}, "last step has apply_update False"),
    ],
)
def test_a_bad_schedule_is_refused_with_the_first_offending_step(change, message):
    check(GOOD, [2, 3])
    with pytest.raises(BadInput, match=f"schedule: .*{message}"):
        check(GOOD._replace(**change), [2, 3])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sizes": []}, r"at least one input, got sizes \[\]"),
        ({"sizes": [3, 0]}, r"got sizes \[3, 0\]"),
        ({"iterations": 0}, "iterations must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"batches": 0}, "batches must be at least 1, got 0"),
    ],
)
def test_numbers_that_make_no_schedule_are_refused(change, message):
    good = {"sizes": SIZES, "iterations": 1, "batch_size": 2, "seed": 0, "batches": 1}
    with pytest.raises(BadInput, match=message):
        joint(**(good | change))


@pytest.mark.parametrize("joined", [False, True])
def test_in_one_pass_each_sample_comes_exactly_once(joined):
    made = one_pass(SIZES, batch_size=4, seed=0, joint=joined)
    check(made, SIZES)
    for task, size in enumerate(SIZES):
        own = made.task_ids == task
        seen = made.sample_indices[own][made.sample_mask[own]]
        np.testing.assert_array_equal(np.sort(seen), np.arange(size))


def test_one_pass_begins_like_a_longer_run_and_goes_on_with_the_larger_tasks():
    made = one_pass(SIZES, batch_size=4, seed=0)
    assert_same(made.part(0, 3), make().part(0, 3))
    assert made.apply_update.all()
    # 3, 2 and 1 mini-batches
    assert [set(made.task_ids[a:b]) for a, b in ((0, 3), (3, 5), (5, 6))] == [
        {0, 1, 2},
        {0, 1},
        {0},
    ]


def test_a_joint_pass_updates_after_each_round():
    made = one_pass(SIZES, batch_size=4, seed=0, joint=True)
    np.testing.assert_array_equal(made.task_ids, [0, 1, 2, 0, 1, 0])
    np.testing.assert_array_equal(made.apply_update, [False, False, True, False, True, True])
