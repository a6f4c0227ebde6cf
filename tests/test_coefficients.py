"""Merging coefficients and the model they make."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from trees_close import assert_trees_close, assert_trees_equal

from symerge_jax import trees
from symerge_jax.adapt.coefficients import (
    as_matrix,
    clamp,
    clamp_all,
    from_matrix,
    interpolate,
    per_leaf,
    per_task,
    stored,
)
from symerge_jax.errors import BadInput
from symerge_jax.merge.task_arithmetic import task_arithmetic
from symerge_jax.task_vectors import add, subtract


def model(seed):
    rng = np.random.default_rng(seed)
    return {
        "ids": jnp.arange(3),
        "net": {
            "bias": jnp.asarray(rng.normal(size=2), jnp.float32),
            "kernel": jnp.asarray(rng.normal(size=(2, 3)), jnp.float32),
        },
        "scale": jnp.asarray(rng.normal(), jnp.float32),
    }


PRETRAINED = model(0)
EXPERTS = [model(1), model(2), model(3)]
TAU = subtract(EXPERTS, PRETRAINED)


def random_coefficients(seed=5):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda tau: jnp.asarray(rng.uniform(size=3), jnp.float32), TAU)


@pytest.mark.parametrize(
    ("x", "value", "slope"),
    [(-0.1, 0, 0), (0.0, 0, 1), (0.4, 0.4, 1), (1.0, 1, 1), (1.0000001, 1, 0), (7.0, 1, 0)],
)
def test_the_clamps_gradient_is_one_on_the_closed_interval_and_zero_outside(x, value, slope):
    x = jnp.float32(x)
    assert clamp(x) == jnp.float32(value)
    assert jax.grad(clamp)(x) == slope
    assert jax.jit(jax.vmap(jax.grad(clamp)))(x[None])[0] == slope


def test_the_clamp_hands_the_gradient_on_as_it_is():
    x = jnp.array([-1.0, 0.0, 0.5, 1.0, 2.0])
    weights = jnp.array([3.0, -5.0, 7.0, 11.0, 13.0])
    gradient = jax.grad(lambda x: clamp(x) @ weights)(x)
    np.testing.assert_array_equal(gradient, [0, -5, 7, 11, 0])


def test_coefficients_of_zero_give_the_pretrained_model_bit_for_bit():
    assert_trees_equal(interpolate(PRETRAINED, TAU, per_leaf(TAU, 0.0)), PRETRAINED)
    assert_trees_equal(interpolate(PRETRAINED, TAU, per_task(TAU, 0.0)), PRETRAINED)


def test_one_hot_coefficients_give_the_expert():
    for k, expert in enumerate(EXPERTS):
        one_hot = jax.tree.map(lambda lam, k=k: lam.at[k].set(1.0), per_leaf(TAU, 0.0))
        assert_trees_close(interpolate(PRETRAINED, TAU, one_hot), expert)


def test_a_constant_coefficient_is_task_arithmetic():
    merged = interpolate(PRETRAINED, TAU, per_leaf(TAU, 0.3))
    assert_trees_close(merged, add(PRETRAINED, task_arithmetic(TAU), scale=0.3))


def test_one_coefficient_per_task_is_a_constant_column_per_leaf():
    lam = jnp.array([0.1, 0.5, 0.9])
    by_leaf = jax.tree.map(lambda _: lam, TAU)
    assert_trees_equal(interpolate(PRETRAINED, TAU, lam), interpolate(PRETRAINED, TAU, by_leaf))
    numpy = np.asarray(lam)
    assert_trees_equal(interpolate(PRETRAINED, TAU, numpy), interpolate(PRETRAINED, TAU, lam))


def floats(tree):
    return trees.split(tree, trees.is_floating)[0]


def loss(lam):
    theta = floats(interpolate(PRETRAINED, TAU, lam))
    return sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(theta))


def test_the_gradient_is_the_inner_product_with_the_task_vector():
    lam = random_coefficients()
    theta = interpolate(PRETRAINED, TAU, lam)
    slope = jax.tree.map(jnp.cos, floats(theta))
    expected = jax.tree.map(lambda g, tau: (g * tau).reshape(3, -1).sum(axis=1), *broadcast(slope))
    assert_trees_close(jax.grad(loss)(lam), expected)


def broadcast(slope):
    """The slope with a task axis, so that ranks are equal, and τ."""
    return jax.tree.map(lambda g: g[None], slope), TAU


def test_it_works_inside_jit_grad_and_vmap():
    lam = random_coefficients()
    merged = interpolate(PRETRAINED, TAU, lam)
    assert_trees_close(jax.jit(interpolate)(PRETRAINED, TAU, lam), merged)
    assert_trees_close(jax.jit(jax.grad(loss))(lam), jax.grad(loss)(lam))
    two = trees.stack([lam, per_leaf(TAU, 0.3)])
    both = jax.vmap(interpolate, in_axes=(None, None, 0))(PRETRAINED, TAU, two)
    assert_trees_close(jax.tree.map(lambda x: x[0], both), merged)


def test_leaves_without_task_vectors_are_returned_as_they_are():
    merged = interpolate(PRETRAINED, TAU, random_coefficients())
    assert merged["ids"] is PRETRAINED["ids"]
    taken_out = floats(PRETRAINED)  # θ₀ without them
    assert interpolate(taken_out, TAU, random_coefficients())["ids"] is None


def test_a_leaf_outside_the_interval_has_no_gradient():
    lam = random_coefficients()
    lam["scale"] = jnp.array([-0.5, 0.5, 1.5])
    gradient = jax.grad(lambda lam: loss(clamp_all(lam)))(lam)["scale"]
    assert gradient[0] == gradient[2] == 0
    assert gradient[1] != 0


def test_narrow_task_vectors_are_summed_in_the_width_of_the_coefficients():
    narrow = jax.tree.map(lambda tau: tau.astype(jnp.bfloat16), TAU)
    wide = jax.tree.map(lambda tau: tau.astype(jnp.float32), narrow)
    lam = random_coefficients()
    assert per_leaf(narrow, 0.3)["scale"].dtype == jnp.float32
    assert_trees_equal(interpolate(PRETRAINED, narrow, lam), interpolate(PRETRAINED, wide, lam))


def test_the_result_has_the_dtypes_of_the_pretrained_model():
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), floats(PRETRAINED))
    half["ids"] = PRETRAINED["ids"]
    merged = interpolate(half, TAU, per_leaf(TAU, 0.3))
    assert jax.tree.map(lambda x: x.dtype, merged) == jax.tree.map(lambda x: x.dtype, half)


def test_rows_of_the_matrix_follow_the_given_order():
    lam = random_coefficients()
    order = ["scale", "net/kernel", "net/bias"]
    matrix = as_matrix(lam, order)
    assert matrix.shape == (3, 3)
    np.testing.assert_array_equal(matrix[0], lam["scale"])
    np.testing.assert_array_equal(matrix[2], lam["net"]["bias"])
    assert_trees_equal(from_matrix(matrix, order, TAU), lam)


@pytest.mark.parametrize(
    ("order", "message"),
    [
        (["scale", "net/kernel"], "first difference: net/bias"),
        (["scale", "net/kernel", "net/bias", "odd"], "first difference: odd"),
        (["scale", "net/kernel", "net/bias", "scale"], "a tensor named twice"),
    ],
)
def test_an_order_that_is_not_the_set_of_leaves_is_refused(order, message):
    with pytest.raises(BadInput, match=message):
        as_matrix(random_coefficients(), order)


def test_a_matrix_of_another_shape_is_refused():
    order = ["scale", "net/kernel", "net/bias"]
    with pytest.raises(BadInput, match="got 2 rows for 3 names, expected the 3 leaves"):
        from_matrix(np.zeros((2, 3), np.float32), order, TAU)
    with pytest.raises(BadInput, match="got 2 columns, expected 3 tasks"):
        from_matrix(np.zeros((3, 2), np.float32), order, TAU)


@pytest.mark.parametrize(("dtype", "step"), [("bfloat16", 2.0**-8), ("int8", 1 / 127)])
def test_task_vectors_stored_in_less_are_close_in_value_and_gradient(dtype, step):
    rng = np.random.default_rng(0)
    theta = {"kernel": rng.normal(size=(5, 7)).astype(np.float32)}
    tau = {"kernel": rng.normal(size=(3, 5, 7)).astype(np.float32)}
    lam = {"kernel": jnp.array([0.3, 0.5, 0.1])}
    narrow = stored(tau, dtype)
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(narrow)) <= tau["kernel"].nbytes // 2

    def value(lam, tau):
        return jnp.sin(interpolate(theta, tau, lam)["kernel"]).sum()

    ours, exact = (interpolate(theta, t, lam)["kernel"] for t in (narrow, tau))
    largest = np.abs(tau["kernel"]).max()
    np.testing.assert_allclose(ours, exact, atol=0.9 * step * largest)
    slopes = [jax.grad(value)(lam, t)["kernel"] for t in (narrow, tau)]
    np.testing.assert_allclose(*slopes, atol=35 * step * largest)
    assert not np.array_equal(*slopes)


def test_int8_keeps_zeros_and_the_largest_of_each_task():
    tau = {"bias": jnp.array([[0.0, 0.0], [-2.0, 1.0]])}
    rounded = stored(tau, "int8")["bias"]
    assert rounded.values.dtype == jnp.int8
    np.testing.assert_array_equal(rounded.values, [[0, 0], [-127, 64]])
    np.testing.assert_allclose(rounded.scale, [1.0, 2 / 127], rtol=1e-6)


def test_the_gradient_keeps_nothing_but_what_it_was_given():
    shape = jax.ShapeDtypeStruct
    theta, tau = shape((64, 32), jnp.float32), shape((8, 64, 32), jnp.bfloat16)
    lam = shape((8,), jnp.float32)

    def kept(theta, tau, lam):
        return jax.vjp(lambda x: interpolate(theta, tau, x), lam)[1]

    residuals = jax.tree.leaves(jax.eval_shape(kept, theta, tau, lam))
    wide = [leaf for leaf in residuals if leaf.dtype == jnp.float32]
    assert sum(leaf.size for leaf in wide) <= 2 * 8  # λ; τ stays in its own type
