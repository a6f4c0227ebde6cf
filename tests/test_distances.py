"""Distances to an expert's outputs, on a few rows of numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.distance import cosine as scipy_cosine
from scipy.spatial.distance import jensenshannon
from scipy.special import rel_entr, softmax

from symerge_jax.adapt.distances import DISTANCES, ExpertOutputs, Pair

every_distance = pytest.mark.parametrize("distance", DISTANCES.values(), ids=DISTANCES.keys())
MERGED = np.array([[1.0, -2, 0.5], [0, 3, -1]], np.float32)
EXPERT = np.array([[2.5, -1, 0.5], [0, -1, 2]], np.float32)


def outputs(logits):
    logits = jnp.asarray(logits)
    return ExpertOutputs(logits, logits[:, :2])


def pair(merged, expert, classes=(True, True, True)):
    return Pair(outputs(merged), outputs(expert), jnp.array(classes))


def test_distances_by_hand():
    found = {name: np.asarray(one(pair(MERGED, EXPERT))) for name, one in DISTANCES.items()}
    d = np.abs(MERGED - EXPERT)  # [[1.5 1 0], [0 4 3]]
    np.testing.assert_allclose(found["l1"], [2.5 / 3, 7 / 3], rtol=1e-6)
    np.testing.assert_allclose(found["l2"], (d**2).mean(axis=1), rtol=1e-6)
    np.testing.assert_allclose(found["smooth_l1"], [(1.0 + 0.5) / 3, (3.5 + 2.5) / 3], rtol=1e-6)
    np.testing.assert_allclose(found["features_l1"], [1.25, 2.0], rtol=1e-6)
    cosines = [scipy_cosine(*rows) for rows in zip(MERGED, EXPERT, strict=True)]
    np.testing.assert_allclose(found["cosine"], cosines, rtol=1e-5)
    p, q = softmax(EXPERT, axis=1), softmax(MERGED, axis=1)
    np.testing.assert_allclose(found["kl"], rel_entr(p, q).sum(axis=1), rtol=1e-5)
    np.testing.assert_allclose(found["js"], jensenshannon(p, q, axis=1) ** 2, rtol=1e-5)
    np.testing.assert_allclose(found["soft_ce"], -(p * np.log(q)).sum(axis=1), rtol=1e-5)
    np.testing.assert_allclose(found["hard_ce"], -np.log([q[0, 0], q[1, 2]]), rtol=1e-5)


@every_distance
def test_equal_outputs_are_at_the_least_distance(distance):
    same, apart = distance(pair(EXPERT, EXPERT)), distance(pair(MERGED, EXPERT))
    assert np.all(same < apart)
    # The least of cross-entropies is the expert's entropy, or what it lacks in sureness.
    if distance not in (DISTANCES["soft_ce"], DISTANCES["hard_ce"]):
        np.testing.assert_allclose(same, 0, atol=1e-6)


@every_distance
def test_classes_that_do_not_exist_change_nothing(distance):
    def padded(logits, value):
        return np.concatenate([logits, np.full((2, 2), value, np.float32)], axis=1)

    wide = pair(padded(MERGED, 7.0), padded(EXPERT, -9.0), (True, True, True, False, False))
    np.testing.assert_allclose(distance(wide), distance(pair(MERGED, EXPERT)), rtol=1e-6)


@every_distance
def test_gradients_are_finite_also_where_outputs_agree_or_vanish(distance):
    def total(logits, expert):
        return distance(pair(logits, expert)).sum()

    for expert in (EXPERT, MERGED, 1e4 * EXPERT):
        for merged in (MERGED, np.zeros_like(MERGED)):
            assert np.isfinite(jax.grad(total)(jnp.asarray(merged), expert)).all()


@pytest.mark.parametrize("name", ["l1", "smooth_l1", "l2", "features_l1"])
def test_what_agrees_does_not_move(name):
    gradient = jax.grad(lambda z: DISTANCES[name](pair(z, EXPERT)).sum())(jnp.asarray(EXPERT))
    assert not gradient.any()
