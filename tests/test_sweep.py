"""Sweeps: each run is what it is alone, whatever runs beside it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import linear_world
import numpy as np
import pytest

from symerge_jax.adapt import lanes, many, schedule
from symerge_jax.adapt import sweep as module
from symerge_jax.adapt.adamerging import adamerging
from symerge_jax.adapt.keeping import Keep
from symerge_jax.adapt.sweep import Point, sweep
from symerge_jax.adapt.symerge import symerge
from symerge_jax.checkpoints.training_state import TrainingState
from symerge_jax.errors import BadInput

WORLD = linear_world.make()
FEW = {"iterations": 6, "batch_size": 4}
POINTS = [
    Point(rate, head, start, seed)
    for rate, head, start in ((0.01, 0.02, 0.3), (0.1, 0.01, 0.1))
    for seed in (0, 7)
] + [Point(0.05, 0.0, 0.2)]


def swept(points, world=WORLD, **options):
    return sweep(linear_world.encode, linear_world.classify, *world, points, **FEW | options)


def alone(point, world=WORLD, **options):
    numbers = {
        "coefficient_rate": point.coefficient_rate,
        "head_rate": point.head_rate,
        "initial_coefficient": point.initial_coefficient,
        "coefficients": point.coefficients,
        "seed": point.seed,
    }
    return symerge(linear_world.encode, linear_world.classify, *world, **FEW | numbers | options)


def results(one):
    return one.coefficients, one.heads, one.losses


def assert_near(found, expected, tolerance):
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    for a, b in pairs:
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance)


@pytest.fixture
def compiled():
    """Names of the programs that are compiled meanwhile."""
    names = []

    def listen(event, seconds, fun_name="", **_):
        if event == "/jax/core/compile/backend_compile_duration":
            names.append(fun_name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield names
    jax.monitoring.unregister_event_duration_listener(listen)


PROGRAM = "jit(_fun)"  # what JAX calls a function that is mapped over devices


@pytest.mark.parametrize("lanes", [None, 2])
def test_a_sweep_gives_what_its_runs_give_alone(lanes):
    found = swept(POINTS, lanes=lanes, chunk_steps=5)  # five points in lanes of two: one is padding
    assert [one.point for one in found] == POINTS
    for one in found:
        assert one.diverged is None
        assert len(one.losses) == 18
        assert_near(results(one), results(alone(one.point)), 1e-6)
    for path, leaf in jax.tree_util.tree_leaves_with_path(found[-1].heads):
        np.testing.assert_array_equal(leaf, WORLD.heads[path[0].key])  # its rate is 0


def test_one_program_serves_all_points_and_other_experts(compiled):
    swept(POINTS)
    assert compiled.count(PROGRAM) <= 1  # none, if a test before has compiled it
    compiled.clear()
    other = linear_world.make(seed=1)
    again = [point._replace(head_rate=0.3, seed=point.seed + 1) for point in POINTS]
    for one in swept(again, other):
        assert_near(results(one), results(alone(one.point, other)), 1e-6)
    assert compiled.count(PROGRAM) == 0


def test_where_only_heads_train_features_are_worked_out_once_per_start(monkeypatch):
    seen = []

    def predict(encode, theta, own):
        seen.append(len(own))
        return original(encode, theta, own)

    original = module.predict
    monkeypatch.setattr(module, "predict", predict)
    points = [Point(0.0, head, start) for start in (0.3, 0.1) for head in (0.01, 0.02, 0.03)]
    found = swept(points)
    assert seen == 2 * list(linear_world.SIZES)
    for one in found:
        assert_near(results(one), results(alone(one.point)), 1e-6)


def test_a_run_that_diverges_stops_and_the_others_go_on():
    bad = Point(0.01, 3e38)
    for together in (1, 3):
        first, stopped, last = swept([POINTS[0], bad, POINTS[1]], lanes=together, chunk_steps=2)
        assert_near(results(first), results(alone(POINTS[0])), 1e-6)
        assert_near(results(last), results(alone(POINTS[1])), 1e-6)
        with pytest.raises(BadInput) as refused:
            alone(bad)
        assert stopped.diverged is not None
        step, task, _ = stopped.diverged
        assert f"of task {task}" in str(refused.value)
        assert f"at step {step};" in str(refused.value)
        assert len(stopped.losses) == step
        assert np.isfinite(stopped.losses).all()


def test_a_sweep_of_runs_that_all_diverge_ends():
    seen = []
    found = swept([Point(0.01, 3e38)] * 2, on_chunk=seen.append, chunk_steps=6)
    assert all(one.diverged for one in found)
    assert sum(losses.shape[1] for losses in seen) < 18


def test_losses_are_told_on_the_way():
    seen = []
    found = swept(POINTS, on_chunk=lambda losses: seen.append(losses.copy()), chunk_steps=7)
    assert [losses.shape for losses in seen] == [(5, 7), (5, 7), (5, 4)]
    np.testing.assert_array_equal(np.concatenate(seen, axis=1), [one.losses for one in found])


def test_entropy_in_joint_steps_is_adamerging():
    def joint(seed):
        return schedule.joint(linear_world.SIZES, iterations=3, batch_size=4, batches=2, seed=seed)

    points = [Point(rate, 0.0, 0.2, seed) for rate in (0.01, 0.1) for seed in (0, 1)]
    options = {"objective": "entropy", "idle_heads": "masked", "granularity": "task"}
    for one in swept(points, WORLD._replace(experts=None), schedule=joint, lanes=2, **options):
        single = adamerging(
            linear_world.encode, linear_world.classify, *WORLD[:-1],
            learning_rate=one.point.coefficient_rate, initial_coefficient=0.2,
            granularity="task", schedule=joint(one.point.seed), seed=one.point.seed,
        )  # fmt: skip
        assert_near(results(one), results(single), 1e-6)


def test_runs_start_where_they_are_told():
    lam = jax.tree.map(lambda tau: jnp.linspace(0.1, 0.5, 3, dtype=tau.dtype), WORLD.task_vectors)
    heads = jax.tree.map(lambda x: x * jnp.float32(0.5), WORLD.heads)
    one, two = swept([Point(coefficients=lam), Point(heads=heads)])
    assert_near(results(one), results(alone(one.point)), 1e-6)
    assert_near(results(two), results(alone(Point(), WORLD._replace(heads=heads))), 1e-6)


def test_inputs_that_do_not_stay_on_the_device(monkeypatch):
    monkeypatch.setattr("symerge_jax.adapt.fit.RESIDENT_BYTES", 0)
    for one in swept(POINTS[:2]):
        assert_near(results(one), results(alone(one.point)), 1e-6)


def test_an_interrupted_sweep_goes_on_with_the_same_bits(tmp_path):
    class Enough(Exception):
        pass

    def stop(losses):
        raise Enough

    whole = swept(POINTS, chunk_steps=5)
    with pytest.raises(Enough), TrainingState(tmp_path, {}) as state:
        swept(POINTS, chunk_steps=5, keep=Keep(state, every=5), on_chunk=stop)
    seen = []
    with TrainingState(tmp_path, {}) as state:
        assert state.latest() == 5
        found = swept(POINTS, chunk_steps=5, keep=Keep(state), on_chunk=seen.append)
    assert [losses.shape[1] for losses in seen] == [5, 5, 5, 3]
    for one, other in zip(whole, found, strict=True):
        assert_near(results(one), results(other), 0)


def test_runs_are_laid_out_with_little_room_left():
    layout = lanes.laid_out(16, range(8), 16)
    assert (len(layout.devices), layout.groups, layout.lanes, layout.shape) == (8, 1, 2, (8, 1, 2))
    layout = lanes.laid_out(5, range(8), 4)
    assert (len(layout.devices), layout.places, layout.shape) == (5, 5, (5, 1))
    layout = lanes.laid_out(9, range(4), 2)
    assert (len(layout.devices), layout.groups, layout.places) == (3, 2, 12)


def test_lanes_are_what_memory_holds(monkeypatch):
    asked = []

    class Accelerator:
        platform = "gpu"

        def __init__(self, limit):
            self.limit = limit

        def memory_stats(self):
            return {"bytes_limit": self.limit}

    def note(device, rules, carry, shared, feed, most, short):
        asked.append((rules, carry, shared, feed))
        return 1

    monkeypatch.setattr(many, "lanes_that_fit", note)
    swept(POINTS)
    rules, carry, shared, feed = given = asked[0]
    kept = lanes.kept_bytes(rules.loss, carry, shared, feed)
    # A batch of 4 with 3 features and 3 classes, and an encoder of 15 numbers: below a kilobyte
    # each; constants, such as 45 numbers of τ, are not among it.
    assert 100 < kept < 4000
    most = 10
    fixed = lanes._bytes(shared) + most * lanes._bytes(carry._replace(key=()))

    def fit(limit):
        return lanes.lanes_that_fit(Accelerator(limit), *given, most)

    assert fit(100 * (fixed + 10 * kept)) == 10
    assert fit((fixed + 2 * kept * 5.5) / 0.8) == 5
    assert fit((fixed + 2 * kept * 4.5) / 0.8) == 4  # three groups: 4, 4, 2
    assert fit(0) == 1
    cpu = jax.devices()[0]
    assert lanes.lanes_that_fit(cpu, *given, most) == 1
    assert lanes.lanes_that_fit(cpu, *given, most, short=True) == 10


@pytest.mark.parametrize(
    ("points", "options", "says"),
    [
        ([], {}, "at least one point"),
        ([Point(), Point(head_rate=-1.0)], {}, "point 1: head_rate must be a number from 0"),
        ([Point(initial_coefficient=float("nan"))], {}, "initial_coefficient must be a number"),
        ([Point(seed=-1)], {}, "point 0: seed must be from 0"),
        ([Point()], {"lanes": 0}, "lanes must be at least 1, got 0"),
        ([Point()], {"devices": []}, "expected at least one, got none"),
        ([Point()], {"objective": "entropie"}, "objective must be one of self_label, entropy"),
        ([Point(), Point(coefficients=jnp.zeros(3))], {}, "point 1: coefficients have another"),
        ([Point(coefficients=jnp.zeros(2))], {}, "expected arrays of shape (3,), got [(2,)]"),
        ([Point(heads={"bias": jnp.zeros((3, 3))})], {}, "the heads of point 0"),
    ],
)
def test_bad_points_are_refused(points, options, says):
    with pytest.raises(BadInput) as refused:
        swept(points, **options)
    assert says in str(refused.value)


def test_experts_are_needed_where_they_are_asked():
    with pytest.raises(BadInput, match="only the objective entropy does without them"):
        swept(POINTS, WORLD._replace(experts=None))


def test_seeds_with_schedules_of_other_lengths_are_refused():
    def odd(seed):
        return schedule.sequential(linear_world.SIZES, iterations=2 + seed, batch_size=4, seed=seed)

    with pytest.raises(BadInput, match=r"equally many steps .* got \[6, 9\] steps"):
        swept([Point(), Point(seed=1)], schedule=odd)


def test_eight_devices_give_what_one_gives():
    script = Path(__file__).with_name("many_sweeps.py")
    environment = {**os.environ, "PYTHONPATH": str(script.parents[1])}
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, env=environment, timeout=120
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["programs"] == {"8": 1, "2": 1, "1": 1}
    assert found["8 and 2 devices"] == 0
    assert found["8 and 1 devices"] < 1e-12
    assert found["one by one"] < 1e-12
    assert found["heads only, 8 and 1 devices"] < 1e-12
