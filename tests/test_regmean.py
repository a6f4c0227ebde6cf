"""RegMean against its definition in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from trees_close import assert_trees_close, assert_trees_equal

from symerge_jax.errors import BadInput
from symerge_jax.merge.leaves import Leaf
from symerge_jax.merge.regmean import regmean
from symerge_jax.second_moments import Moment

RNG = np.random.default_rng(0)
KERNEL = {"w": Leaf("in_out")}
GRAMS = np.stack([x.T @ x / 20 for x in RNG.normal(size=(3, 20, 6))])
TAU = RNG.normal(size=(3, 6, 4)).astype(np.float32)


def moments_of(grams):
    rows = jnp.full(len(grams), 20.0)
    return {"w": Moment(jnp.asarray(grams, jnp.float32), rows)}


def merged(tau, grams, **options):
    tau = {"w": jnp.asarray(tau, jnp.float32)}
    return np.asarray(regmean(tau, moments=moments_of(grams), leaves=KERNEL, **options)["w"])


@pytest.mark.parametrize("a", [0.0, 0.7, 0.95, 1.0])
def test_it_is_its_definition_on_weights_as_on_task_vectors(a):
    shrunk = GRAMS * (a + (1 - a) * np.eye(6))
    start = RNG.normal(size=(6, 4))
    weights = np.linalg.solve(shrunk.sum(0), (shrunk @ (start + TAU)).sum(0))
    np.testing.assert_allclose(merged(TAU, GRAMS, off_diagonal=a), weights - start, atol=1e-5)


def test_equal_gram_matrices_give_the_mean():
    grams = GRAMS[:1].repeat(3, axis=0)
    np.testing.assert_allclose(merged(TAU, grams), TAU.mean(axis=0), atol=1e-6)


def test_the_diagonal_alone_weighs_each_input_feature():
    weights = np.einsum("kii->ki", GRAMS)[:, :, None]
    expected = (weights * TAU).sum(0) / weights.sum(0)
    np.testing.assert_allclose(merged(TAU, GRAMS, off_diagonal=0.0), expected, atol=1e-5)


def test_one_task_alone_comes_back_even_where_its_inputs_lack_directions():
    low = RNG.normal(size=(2, 6))
    for gram in (GRAMS[:1], (low.T @ low)[None], np.zeros((1, 6, 6))):
        np.testing.assert_allclose(merged(TAU[:1], gram, off_diagonal=1.0), TAU[0], atol=1e-5)


def test_inputs_of_no_task_give_the_mean():
    np.testing.assert_allclose(merged(TAU, np.zeros((3, 6, 6))), TAU.mean(axis=0), atol=1e-6)


def test_orientations_give_the_transposed_result():
    weight = regmean({"w": jnp.asarray(TAU.transpose(0, 2, 1))}, moments=moments_of(GRAMS))["w"]
    np.testing.assert_allclose(weight.T, merged(TAU, GRAMS), atol=1e-6)


def test_scale_changes_nothing_but_the_scale():
    np.testing.assert_allclose(merged(TAU, 1e-12 * GRAMS), merged(TAU, GRAMS), atol=1e-5)
    np.testing.assert_allclose(merged(4 * TAU, GRAMS), 4 * merged(TAU, GRAMS), rtol=1e-5)


def test_norms_biases_and_convolutions_are_averaged():
    tau = {
        "scale": jnp.array([[1.0, 2.0], [3.0, 4.0]]),
        "bias": jnp.array([[1.0], [5.0]]),
        "conv": jnp.asarray(RNG.normal(size=(2, 1, 1, 2, 3)), jnp.float32),
    }
    moments = {
        "scale": Moment(jnp.array([[1.0, 2.0], [3.0, 9.0]]), jnp.ones(2)),
        "conv": Moment(jnp.ones((2, 2, 2)), jnp.ones(2)),
        "bias": None,
    }
    expected = jax.tree.map(lambda x: x.mean(axis=0), tau)
    assert_trees_close(regmean(tau, moments=moments), expected)


def test_a_leaf_alone_gives_the_same_bits_and_jit_changes_little():
    tau = {"w": jnp.asarray(TAU), "b": jnp.ones((3, 2))}
    facts = KERNEL | {"b": Leaf()}
    whole = regmean(tau, moments=moments_of(GRAMS), leaves=facts)
    alone = regmean({"w": tau["w"]}, moments=moments_of(GRAMS), leaves=KERNEL)
    assert_trees_equal(alone, {"w": whole["w"]})
    jitted = jax.jit(lambda tau, moments: regmean(tau, moments=moments, leaves=facts))
    assert_trees_close(jitted(tau, moments_of(GRAMS)), whole, atol=1e-6)


def test_bad_options_and_statistics_are_refused():
    for options, message in (
        ({"off_diagonal": 1.5}, r"regmean: off_diagonal must lie in \[0, 1\], got 1.5"),
        ({"ridge": 0.0}, r"regmean: ridge must lie in \(0, 1\), got 0.0"),
    ):
        with pytest.raises(BadInput, match=message):
            merged(TAU, GRAMS, **options)
    with pytest.raises(BadInput, match="regmean: the statistics of w are not finite"):
        merged(TAU, GRAMS * np.nan)
    with pytest.raises(BadInput, match="regmean: needs statistics of each expert"):
        regmean({"w": jnp.asarray(TAU)}, moments=None)
