"""Fisher merging against its definition in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from trees_close import assert_trees_close, assert_trees_equal

from symerge_jax.errors import BadInput
from symerge_jax.merge.fisher import DELTA, fisher, fisher_norms
from symerge_jax.second_moments import Moment

RNG = np.random.default_rng(0)
SHAPES = {"w": (3, 4, 5), "b": (3, 4), "s": (3,)}


def drawn(positive=False):
    numbers = {name: RNG.normal(size=shape) for name, shape in SHAPES.items()}
    return {k: jnp.asarray(v**2 if positive else v, jnp.float32) for k, v in numbers.items()}


TAU, FISHER = drawn(), drawn(positive=True)


@pytest.mark.parametrize("normalise", [True, False])
def test_it_is_its_definition_on_weights_as_on_task_vectors(normalise):
    norms = np.sqrt(sum(np.square(f).reshape(3, -1).sum(axis=1) for f in FISHER.values()))
    np.testing.assert_allclose(fisher_norms(FISHER), norms, rtol=1e-5)
    weight = 1 / (norms + DELTA) if normalise else np.ones(3)
    found = fisher(TAU, moments=FISHER, normalise=normalise)
    for name, tau in TAU.items():
        start = RNG.normal(size=tau.shape[1:])
        w = weight.reshape(3, *[1] * (tau.ndim - 1)) * (np.asarray(FISHER[name]) + DELTA)
        merged = (w * (start + np.asarray(tau))).sum(0) / w.sum(0)
        np.testing.assert_allclose(found[name], merged - start, atol=1e-5)


def test_equal_diagonals_give_the_mean():
    equal = jax.tree.map(lambda f: jnp.stack([f[0]] * 3), FISHER)
    expected = jax.tree.map(lambda tau: tau.mean(axis=0), TAU)
    assert_trees_close(fisher(TAU, moments=equal), expected, atol=1e-5)
    zero = jax.tree.map(jnp.zeros_like, FISHER)
    assert_trees_close(fisher(TAU, moments=zero), expected, atol=1e-5)


def test_one_task_alone_comes_back():
    alone, own = (jax.tree.map(lambda x: x[:1], tree) for tree in (TAU, FISHER))
    assert_trees_close(fisher(alone, moments=own), jax.tree.map(lambda x: x[0], TAU))


def test_the_only_task_that_cares_decides():
    diagonals = jax.tree.map(lambda f: jnp.zeros_like(f).at[1].set(1.0), FISHER)
    found = fisher(TAU, moments=diagonals, normalise=False)
    assert_trees_close(found, jax.tree.map(lambda tau: tau[1], TAU), atol=1e-5)


def test_a_task_with_large_gradients_does_not_decide_alone():
    scales = jnp.array([1.0, 1e3, 1e12])
    scaled = jax.tree.map(lambda f: f * scales.reshape(3, *[1] * (f.ndim - 1)), FISHER)
    assert_trees_close(fisher(TAU, moments=scaled), fisher(TAU, moments=FISHER), atol=1e-4)
    assert not np.allclose(
        fisher(TAU, moments=scaled, normalise=False)["w"], fisher(TAU, moments=FISHER)["w"]
    )


def test_huge_and_tiny_diagonals_stay_finite():
    for scale in (1e30, 1e-30):
        found = fisher(TAU, moments=jax.tree.map(lambda f, s=scale: f * s, FISHER))
        assert all(np.isfinite(leaf).all() for leaf in found.values())


def test_leaf_by_leaf_with_known_norms_gives_the_same_bits():
    whole, norms = fisher(TAU, moments=FISHER), fisher_norms(FISHER)
    for name in TAU:
        alone = fisher({name: TAU[name]}, moments={name: FISHER[name]}, norms=norms)
        assert_trees_equal(alone, {name: whole[name]})


def test_jit_changes_nothing():
    jitted = jax.jit(lambda tau, moments: fisher(tau, moments=moments))
    assert_trees_close(jitted(TAU, FISHER), fisher(TAU, moments=FISHER))


def test_leaves_that_take_no_part_may_have_statistics():
    found = fisher(TAU | {"b": None}, moments=FISHER)
    assert found["b"] is None
    assert_trees_equal(found["w"], fisher(TAU, moments=FISHER)["w"])


@pytest.mark.parametrize(
    ("moments", "message"),
    [
        (None, "fisher: needs statistics of each expert"),
        ({}, "fisher: there are no statistics of b"),
        ({"b": FISHER["b"], "s": FISHER["s"]}, "fisher: there are no statistics of w"),
        (FISHER | {"v": FISHER["b"]}, "of another model, they have the leaf v"),
        (FISHER | {"w": FISHER["w"][:, :3]}, r"w have shape \(3, 3, 5\), expected \(3, 4, 5\)"),
        (FISHER | {"w": FISHER["w"] * jnp.nan}, "fisher: the statistics of w are not finite"),
        (FISHER | {"w": Moment(FISHER["w"], jnp.ones(3))}, "w have shape of a Gram matrix"),
    ],
)
def test_bad_statistics_are_refused(moments, message):
    with pytest.raises(BadInput, match=message):
        fisher(TAU, moments=moments)
