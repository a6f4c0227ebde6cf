"""Statements that hold for every entry of METHODS; a new method is tested once it is listed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from trees_close import assert_trees_close, assert_trees_equal

from symerge_jax import trees
from symerge_jax.merge import METHODS
from symerge_jax.merge.fisher import fisher
from symerge_jax.second_moments import Moment

TASKS = 3

# law → method → why the law does not hold for it
EXEMPT = {
    "task order does not matter": {
        "dare": "each task has its own random entries",
        "slerp": "takes the first two experts",
    },
    "one task alone is that task": {
        "ties": "keeps the largest fifth of one task's entries; see test_ties.py for density 1",
        "pcb": "keeps the largest twentieth",
        "consensus": "keeps what at least two tasks use",
        "iso_c": "flattens the spectrum",
        "iso_cts": "flattens the spectrum",
        "breadcrumbs": "keeps 15 % of each row",
        "dare": "drops half of the entries at random",
        "slerp": "takes exactly two experts",
        "lot": "leaves scalars as they are, such as the logit scale",
    },
    "scaling the task vectors scales the result": {
        "pcb": "takes tanh of the raw numbers",
        "slerp": "works on the weights",
    },
}


def every_method(law=None):
    """Runs a law over METHODS without those that `EXEMPT` lists under its name."""
    return over([name for name in METHODS if name not in EXEMPT.get(law, {})])


def over(names):
    return pytest.mark.parametrize("method", [METHODS[n] for n in names], ids=names)


def merged_by(method, task_vectors):
    """Calls a method with what it needs: statistics that all tasks share, a random θ₀."""
    more = {}
    if "pretrained" in method.needs:
        more["pretrained"] = jax.tree.map(  # the same for a leaf wherever it stands
            lambda tau: jnp.asarray(np.random.default_rng(1).normal(size=tau.shape[1:]), tau.dtype),
            task_vectors,
        )
        task_vectors = jax.tree.map(lambda tau: tau[:2], task_vectors)  # such take two experts
    if "moments" in method.needs:
        make = diagonals if method.merge is fisher else grams
        more["moments"] = make(task_vectors)
    return method.merge(task_vectors, **more)


def diagonals(task_vectors):
    rng = np.random.default_rng(2)

    def leaf(tau):
        one = rng.uniform(0.5, 2, size=tau.shape[1:])
        return jnp.asarray(np.broadcast_to(one, tau.shape), jnp.float32)

    return jax.tree.map(leaf, task_vectors)


def grams(task_vectors):
    """One Gram matrix for all tasks, at leaves with two axes [out, in]."""
    rng = np.random.default_rng(3)

    def leaf(tau):
        if tau.ndim != 3:
            return None
        x = rng.normal(size=(2 * tau.shape[2], tau.shape[2]))
        gram = np.broadcast_to(x.T @ x / len(x), (len(tau), tau.shape[2], tau.shape[2]))
        return Moment(jnp.asarray(gram, jnp.float32), jnp.full(len(tau), len(x), jnp.float32))

    return jax.tree.map(leaf, task_vectors)


@pytest.fixture
def task_vectors():
    rng = np.random.default_rng(0)
    shapes = {"bias": (4,), "kernel": (4, 5), "patches": (3, 2, 2, 2), "temperature": ()}
    leaves = {k: jnp.asarray(rng.normal(size=(TASKS, *s)), jnp.float32) for k, s in shapes.items()}
    return {"block": leaves, "ids": None}


def test_every_exemption_names_a_method():
    assert {name for names in EXEMPT.values() for name in names} <= set(METHODS)


@every_method()
def test_structure_and_shapes_are_those_of_one_task(method, task_vectors):
    merged = merged_by(method, task_vectors)
    expected = task_vectors
    if method.kind == "shared":
        expected = jax.tree.map(lambda tau: tau[0], task_vectors)
    assert jax.tree.structure(merged) == jax.tree.structure(expected)
    for ours, theirs in zip(jax.tree.leaves(merged), jax.tree.leaves(expected), strict=True):
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)


@every_method()
def test_each_leaf_keeps_its_dtype(method, task_vectors):
    task_vectors["block"]["bias"] = task_vectors["block"]["bias"].astype(jnp.bfloat16)
    merged = merged_by(method, task_vectors)
    assert merged["block"]["bias"].dtype == jnp.bfloat16
    assert merged["block"]["kernel"].dtype == jnp.float32


@every_method("task order does not matter")
def test_task_order_does_not_matter(method, task_vectors):
    order = jnp.array([2, 0, 1])
    shuffled = merged_by(method, jax.tree.map(lambda tau: tau[order], task_vectors))
    merged = merged_by(method, task_vectors)
    if method.kind == "per_task":
        merged = jax.tree.map(lambda tau: tau[order], merged)
    assert_trees_close(shuffled, merged)


@every_method()
def test_jit_changes_nothing(method, task_vectors):
    compiled = jax.jit(lambda tau: merged_by(method, tau))
    assert_trees_close(compiled(task_vectors), merged_by(method, task_vectors))


@every_method()
def test_a_second_call_gives_the_same_bits(method, task_vectors):
    assert_trees_equal(merged_by(method, task_vectors), merged_by(method, task_vectors))


@every_method("one task alone is that task")
def test_one_task_alone_is_that_task(method, task_vectors):
    alone = jax.tree.map(lambda tau: tau[:1], task_vectors)
    expected = jax.tree.map(lambda tau: tau[0], task_vectors) if method.kind == "shared" else alone
    assert_trees_close(merged_by(method, alone), expected)


@every_method()
def test_zero_task_vectors_give_zero(method, task_vectors):
    merged = merged_by(method, jax.tree.map(jnp.zeros_like, task_vectors))
    assert all(not leaf.any() for leaf in jax.tree.leaves(merged))


@every_method()
def test_a_leaf_no_task_changed_stays_unchanged(method, task_vectors):
    task_vectors["block"]["kernel"] = jnp.zeros_like(task_vectors["block"]["kernel"])
    assert not merged_by(method, task_vectors)["block"]["kernel"].any()


@every_method("scaling the task vectors scales the result")
@pytest.mark.parametrize("scale", [0.01, 4.0, -1.0])
def test_scaling_the_task_vectors_scales_the_result(method, task_vectors, scale):
    scaled = merged_by(method, jax.tree.map(lambda tau: tau * scale, task_vectors))
    expected = jax.tree.map(lambda tau: tau * scale, merged_by(method, task_vectors))
    assert_trees_close(scaled, expected)


@over([name for name, method in METHODS.items() if method.streams])
def test_methods_that_stream_treat_each_leaf_alone(method, task_vectors):
    merged = merged_by(method, task_vectors)
    for name, leaf in task_vectors["block"].items():
        assert_trees_equal(merged_by(method, {name: leaf}), {name: merged["block"][name]})


@every_method()
def test_no_value_becomes_infinite_or_nan(method, task_vectors):
    huge = jax.tree.map(lambda tau: tau * 1e18, task_vectors)
    for tau in (huge, jax.tree.map(lambda tau: tau * 1e-36, huge)):
        assert trees.paths(tau) == trees.paths(merged_by(method, tau))
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(merged_by(method, tau)))


@every_method()
def test_the_record_makes_sense(method):
    assert method.scale > 0
    assert method.kind in ("shared", "per_task")
