"""AdaMerging on a linear world."""

import inspect
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import linear_world
import numpy as np
import pytest
from linear_world import classify, encode
from trees_close import assert_trees_close, assert_trees_equal

from symerge_jax import trees
from symerge_jax.adapt import adamerging as module
from symerge_jax.adapt.adamerging import adamerging
from symerge_jax.adapt.coefficients import clamp_all, interpolate, per_task
from symerge_jax.adapt.objectives import entropy
from symerge_jax.adapt.schedule import Schedule
from symerge_jax.errors import BadInput
from symerge_jax.merge.ties import elected


@pytest.fixture(scope="module")
def world():
    return linear_world.make()


def run(world, **options):
    return adamerging(
        encode, classify, *world[:-1], **({"iterations": 8, "batch_size": 4} | options)
    )


both_ways = pytest.mark.parametrize(
    ("granularity", "update"), [("leaf", "joint"), ("task", "sequential")]
)


def mean_entropy(world, params):
    """Over all inputs of all tasks."""
    rows = [
        entropy(classify(jax.tree.map(lambda x, k=k: x[k], world.heads), encode(params, own)))
        for k, own in enumerate(world.inputs)
    ]
    return float(jnp.concatenate(rows).mean())


@both_ways
def test_it_gets_surer_and_heads_stay(world, update, granularity):
    adapted = run(world, update=update, granularity=granularity, learning_rate=0.03)
    assert adapted.losses.shape == (8 * 3 * (2 if update == "joint" else 1),)
    start = interpolate(world.pretrained, world.task_vectors, per_task(world.task_vectors, 0.3))
    assert mean_entropy(world, adapted.params) < mean_entropy(world, start)
    assert_trees_equal(adapted.heads, world.heads)
    assert jax.tree.structure(adapted.params) == jax.tree.structure(world.pretrained)
    lam = clamp_all(adapted.coefficients)
    assert_trees_close(adapted.params, interpolate(world.pretrained, world.task_vectors, lam))


def test_one_coefficient_per_task_is_one_array(world):
    adapted = run(world, granularity="task")
    assert adapted.coefficients.shape == (3,)
    assert (adapted.coefficients != 0.3).all()


def test_with_one_leaf_per_task_and_per_leaf_are_the_same(world):
    world = world._replace(task_vectors=world.task_vectors | {"bias": None})
    by_task, by_leaf = (run(world, granularity=kind) for kind in ("task", "leaf"))
    np.testing.assert_allclose(by_task.coefficients, by_leaf.coefficients["kernel"], rtol=1e-6)
    assert_trees_close(by_task.params, by_leaf.params)
    np.testing.assert_array_equal(by_leaf.params["bias"], world.pretrained["bias"])


@both_ways
def test_zero_task_vectors_change_nothing(world, update, granularity):
    zeros = jax.tree.map(jnp.zeros_like, world.task_vectors)
    adapted = run(world._replace(task_vectors=zeros), update=update, granularity=granularity)
    assert_trees_equal(adapted.params, world.pretrained)
    for lam in jax.tree.leaves(adapted.coefficients):
        np.testing.assert_array_equal(lam, np.full(3, 0.3, np.float32))


def test_without_a_step_it_is_task_arithmetic(world):
    adapted = run(world, learning_rate=0.0)
    expected = interpolate(world.pretrained, world.task_vectors, per_task(world.task_vectors, 0.3))
    assert_trees_close(adapted.params, expected)


def test_a_joint_run_steps_once_per_iteration(world):
    adapted = run(world, iterations=1, learning_rate=0.01)
    for lam in jax.tree.leaves(adapted.coefficients):  # Adam's first step is the rate
        np.testing.assert_allclose(abs(lam - 0.3), 0.01, rtol=1e-3)


def test_batches_are_two_of_sixteen_if_joint_and_one_of_thirty_two_if_not(world, monkeypatch):
    monkeypatch.setattr(module, "adapt", lambda *_, schedule, **__: schedule)
    unchecked = inspect.unwrap(adamerging)  # it returns a schedule here
    call = partial(unchecked, encode, classify, *world[:-1], iterations=1)
    assert call().sample_indices.shape == (6, 16)
    assert call(update="sequential").sample_indices.shape == (3, 32)


def test_a_coefficient_outside_the_interval_moves_only_without_the_clamp(world):
    start = jnp.array([1.5, 0.3, -0.2])
    clamped = run(world, granularity="task", coefficients=start).coefficients
    np.testing.assert_array_equal(clamped[::2], start[::2])
    assert clamped[1] != start[1]
    free = run(world, granularity="task", coefficients=start, clamp=False).coefficients
    assert (free != start).all()


def test_entropies_lie_between_zero_and_log_of_the_classes(world):
    losses = run(world).losses
    assert (losses >= 0).all()
    assert (losses <= np.log(linear_world.CLASSES)).all()


def test_counts_that_do_not_fit_are_refused(world):
    with pytest.raises(BadInput, match="3 task vectors, 3 heads and inputs of 2 tasks"):
        run(world._replace(inputs=world.inputs[:2]))


@pytest.mark.parametrize("options", [{"granularity": "layer"}, {"update": "both"}])
def test_unknown_options_are_refused(world, options):
    (name,) = options
    with pytest.raises(BadInput, match=f"{name} must be one of"):
        inspect.unwrap(adamerging)(encode, classify, *world[:-1], **options)


def test_a_task_without_classes_has_no_entropy(world):
    one_output = jnp.array([[True, True, True], [True, False, False], [True, True, False]])
    says = "task 1 has 1 output instead of logits of at least two classes"
    with pytest.raises(BadInput, match=says):
        run(world, classes=one_output)


# --- the published loop -------------------------------------------------------------------------

GOLDEN = Path(__file__).parent / "golden" / "adamerging.npz"
TENSORS = {"a.weight": ("a", "weight"), "a.bias": ("a", "bias"), "b.weight": ("b", "weight")}


def golden_encode(theta, x):
    h = jnp.tanh(x @ theta["a"]["weight"].T + theta["a"]["bias"][None])
    return h @ theta["b"]["weight"].T


def golden_classify(head, h):
    return h @ head.T


@pytest.mark.parametrize(("precision", "tolerance"), [("f64", 1e-9), ("f32", 1e-5)])
@pytest.mark.parametrize("variant", ["leaf", "task", "plus_plus"])
def test_joint_updates_are_those_of_the_published_loop(variant, precision, tolerance):
    arrays = np.load(GOLDEN)
    dtype = {"f64": np.float64, "f32": np.float32}[precision]

    def tree(prefix):
        found = {"a": {}, "b": {}}
        for name, (layer, leaf) in TENSORS.items():
            found[layer][leaf] = arrays[f"{prefix}/{name}"].astype(dtype)
        return found

    with jax.enable_x64(precision == "f64"):
        tau = trees.stack([tree(f"tau/task{k}") for k in range(3)])
        if variant == "plus_plus":
            expected = trees.stack([tree(f"elected/tau/task{k}") for k in range(3)])
            tau = elected(tau)
            assert_trees_equal(tau, expected)
        rows = 1 if variant == "task" else len(TENSORS)
        start = np.full((rows, 3), 0.3, dtype)
        start[0, 0], start[-1, 1] = 1.2, 0.0
        lam = jnp.asarray(start[0])
        if variant != "task":
            lam = {"a": {}, "b": {}}
            for j, (layer, leaf) in enumerate(TENSORS.values()):
                lam[layer][leaf] = jnp.asarray(start[j])
        indices = arrays["schedule/sample_indices"]
        steps = len(indices)
        schedule = Schedule(
            np.tile(np.repeat(np.arange(3, dtype=np.int32), 2), steps // 6),
            indices,
            np.ones(indices.shape, bool),
            np.arange(steps) % 6 == 5,
        )
        path = []

        def look(carry, losses):
            now = carry.trainables.coefficients
            leaves = [now] if variant == "task" else [now[a][b] for a, b in TENSORS.values()]
            path.append(np.stack([np.asarray(leaf) for leaf in leaves]))

        adapted = adamerging(
            golden_encode,
            golden_classify,
            tree("pretrained"),
            tau,
            jnp.stack([arrays[f"head/task{k}"].astype(dtype) for k in range(3)]),
            [arrays[f"inputs/task{k}"].astype(dtype) for k in range(3)],
            coefficients=lam,
            learning_rate=0.05,
            schedule=schedule,
            chunk_steps=6,
            on_chunk=look,
        )
    for own, key in ((adapted.losses, "loss"), (np.stack(path), "coefficients")):
        golden = arrays[f"{variant}/{precision}/{key}"]
        np.testing.assert_allclose(own, golden, rtol=0, atol=tolerance * np.abs(golden).max())
