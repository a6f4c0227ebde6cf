"""A run that was interrupted and goes on ends with the bits of one that never was."""

import jax
import linear_world
import numpy as np
import pytest
from trees_close import assert_trees_equal

from symerge_jax.adapt.keeping import Keep
from symerge_jax.adapt.schedule import sequential
from symerge_jax.adapt.symerge import symerge
from symerge_jax.checkpoints.training_state import TrainingState
from symerge_jax.errors import BadInput
from symerge_jax.kept_run import kept_run


@pytest.fixture(scope="module")
def world():
    return linear_world.make()


def run(world, keep=None, **options):
    options = {"iterations": 20, "batch_size": 4, "seed": 3} | options
    return symerge(
        linear_world.encode, linear_world.classify, world.pretrained, world.task_vectors,
        world.heads, world.inputs, world.experts, keep=keep, **options,
    )  # fmt: skip


class Stop(Exception):
    """What ends a run in the middle."""


def stopping(after):
    """Raises after so many steps of this life."""
    seen = 0

    def on_chunk(carry, losses):
        nonlocal seen
        seen += len(losses)
        if seen >= after:
            raise Stop

    return on_chunk


def interrupted(world, folder, *, after, **options):
    with pytest.raises(Stop), kept_run(folder, {"run": 1}, resume=True) as keep:
        run(world, keep._replace(every=5), on_chunk=stopping(after), chunk_steps=5, **options)


def test_an_interrupted_run_goes_on_with_the_same_bits(world, tmp_path):
    whole = run(world)
    interrupted(world, tmp_path / "run", after=25)
    interrupted(world, tmp_path / "run", after=40)  # what was found counts too
    lengths = []
    with kept_run(tmp_path / "run", {"run": 1}, resume=True) as keep:
        resumed = run(world, keep, on_chunk=lambda carry, losses: lengths.append(len(losses)))
    assert lengths[0] >= 35  # the losses of what had been done
    assert sum(lengths) == len(whole.losses)
    for part, other in zip(whole, resumed, strict=True):
        assert_trees_equal(part, other)
    assert not (tmp_path / "run").exists()


def test_without_resume_a_run_begins_anew(world, tmp_path):
    interrupted(world, tmp_path / "run", after=25)
    lengths = []
    with kept_run(tmp_path / "run", {"run": 1}, resume=False) as keep:
        run(world, keep, chunk_steps=20, on_chunk=lambda carry, losses: lengths.append(len(losses)))
    assert lengths == [20, 20, 20]


def test_the_state_of_another_run_is_refused(world, tmp_path):
    interrupted(world, tmp_path / "run", after=25)
    with (
        pytest.raises(BadInput, match="holds the state of a run with another run"),
        kept_run(tmp_path / "run", {"run": 2}, resume=True) as keep,
    ):
        run(world, keep)


def test_a_short_run_touches_no_folder(world, tmp_path):
    with kept_run(tmp_path / "run", {}, resume=True) as keep:
        run(world, keep)
        assert not (tmp_path / "run" / "state").exists()
    assert list(tmp_path.iterdir()) == []


def test_what_is_joint_over_steps_is_kept_too(tmp_path, world):
    from symerge_jax.adapt.adamerging import adamerging

    start = linear_world.encode, linear_world.classify, *world[:4]
    options = {"iterations": 8, "batch_size": 3}
    whole = adamerging(*start, **options)
    # 5 micro-steps of 6: in the middle of a sum
    with pytest.raises(Stop), kept_run(tmp_path / "run", {}, resume=True) as keep:
        adamerging(*start, **options, keep=keep._replace(every=5), chunk_steps=5,
                   on_chunk=stopping(15))  # fmt: skip
    with kept_run(tmp_path / "run", {}, resume=True) as keep:
        resumed = adamerging(*start, **options, keep=keep)
    assert_trees_equal(whole.params, resumed.params)
    np.testing.assert_array_equal(whole.losses, resumed.losses)


def first_seen_late(schedule):
    """A step after the second, its task, and an input that no step before it has seen."""
    for at in range(3, schedule.steps):
        task = schedule.task_ids[at]
        earlier = schedule.sample_indices[:at][schedule.task_ids[:at] == task]
        rows = schedule.sample_indices[at][schedule.sample_mask[at]]
        for row in rows:
            if row not in earlier:
                return at, task, row
    raise AssertionError("all inputs are seen at once")


def test_a_loss_that_is_no_number_leaves_the_state_before_it(world, tmp_path):
    schedule = sequential([len(x) for x in world.inputs], iterations=20, batch_size=4, seed=3)
    good = run(world, schedule=schedule)
    inputs = [x.copy() for x in world.inputs]
    at, task, row = first_seen_late(schedule)
    inputs[task][row] = np.nan
    broken = world._replace(inputs=inputs)
    with (
        pytest.raises(BadInput, match=rf"task {task} .* at step {at};.*is kept"),
        TrainingState(tmp_path / "state", {}) as state,
    ):
        run(broken, Keep(state), schedule=schedule)
    with TrainingState(tmp_path / "state", {}) as state:
        assert state.latest() == at
        resumed = run(world, Keep(state), schedule=schedule)
    assert_trees_equal(good.params, resumed.params)
    np.testing.assert_array_equal(good.losses, resumed.losses)


def test_a_gradient_that_is_no_number_ends_the_run_where_it_is():
    from symerge_jax.adapt.fit import fit, pool

    def loss(trainables, constants, state, batch):
        del constants
        at_kink = jax.numpy.sqrt(abs(trainables - trainables)).sum()  # its slope is 0 · ∞
        return at_kink + 0 * batch.inputs.sum(), state, ()

    data = pool([np.ones((4, 1), np.float32)])
    schedule = sequential([4], iterations=3, batch_size=2, seed=0)
    with pytest.raises(BadInput, match=r"gradient \(its loss is 0\) of task 0 holds NaN .* step 0"):
        fit(loss, jax.numpy.ones(2), data, schedule)
