"""SLERP: its ends, its symmetry, the arc by hand, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from trees_close import assert_trees_close, assert_trees_equal

from symerge_jax.errors import BadInput
from symerge_jax.merge.slerp import slerp

RNG = np.random.default_rng(9)
START = {"w": jnp.asarray(RNG.normal(size=(6, 5)), jnp.float32), "b": jnp.zeros(4), "ids": None}
TAU = {
    "w": jnp.asarray(RNG.normal(size=(2, 6, 5)), jnp.float32),
    "b": jnp.asarray(RNG.normal(size=(2, 4)), jnp.float32),
    "ids": None,
}


def weights(tau, start, **options):
    """The merged weights themselves."""
    merged = slerp(tau, pretrained=start, **options)
    return jax.tree.map(jnp.add, start, merged)


def test_a_quarter_circle_by_hand():
    # experts [1, 0] and [0, 2] from θ₀ = [1, 1]: at t = 1/3 of a right angle, 30 degrees
    start = {"w": jnp.ones(2)}
    tau = {"w": jnp.array([[0.0, -1.0], [-1.0, 1.0]])}
    expected = {"w": jnp.array([np.cos(np.pi / 6), 2 * np.sin(np.pi / 6)], jnp.float32)}
    assert_trees_close(weights(tau, start, t=1 / 3), expected)


def test_the_ends_are_the_experts():
    for t, k in ((0.0, 0), (1.0, 1)):
        assert_trees_close(
            slerp(TAU, pretrained=START, t=t), jax.tree.map(lambda x, k=k: x[k], TAU), atol=2e-6
        )


def test_the_other_way_round_it_is_the_same_arc():
    swapped = jax.tree.map(lambda x: x[::-1], TAU)
    assert_trees_close(
        slerp(TAU, pretrained=START, t=0.3), slerp(swapped, pretrained=START, t=0.7), atol=2e-6
    )


def test_equal_norms_are_kept_on_the_arc():
    a, b = RNG.normal(size=(2, 50))
    experts = np.stack([a / np.linalg.norm(a), b / np.linalg.norm(b)]).astype(np.float32)
    merged = slerp({"w": jnp.asarray(experts)}, pretrained={"w": jnp.zeros(50)}, t=0.4)["w"]
    np.testing.assert_allclose(np.linalg.norm(merged), 1, rtol=1e-6)


def test_experts_close_to_each_other_are_interpolated():
    near = jax.tree.map(lambda x: x * 1e-3, {"w": TAU["w"]})
    merged = slerp(near, pretrained={"w": START["w"]}, t=0.25)
    np.testing.assert_allclose(merged["w"], 0.75 * near["w"][0] + 0.25 * near["w"][1], atol=1e-9)


def test_on_task_vectors_the_angle_is_theirs():
    tau = {"w": jnp.array([[2.0, 0.0], [0.0, 2.0]])}
    merged = slerp(tau, variant="task_vectors")["w"]
    np.testing.assert_allclose(merged, [2**0.5, 2**0.5], rtol=1e-6)


def test_a_leaf_nobody_changed_stays():
    zeros = jax.tree.map(jnp.zeros_like, TAU)
    for variant in ("weights", "task_vectors"):
        merged = slerp(zeros, pretrained=START, variant=variant)
        assert not any(leaf.any() for leaf in jax.tree.leaves(merged))


def test_a_long_leaf_is_added_up_in_blocks():
    tau = {"w": jnp.asarray(RNG.normal(size=(2, 20_001)), jnp.float32)}
    start = {"w": jnp.zeros(20_001)}
    a, b = np.asarray(tau["w"], np.float64)
    angle = np.arccos(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    expected = (np.sin(0.5 * angle) * (a + b)) / np.sin(angle)
    np.testing.assert_allclose(slerp(tau, pretrained=start)["w"], expected, atol=2e-6)


def test_jit_changes_nothing():
    jitted = jax.jit(lambda tau, start: slerp(tau, pretrained=start))(TAU, START)
    assert_trees_equal(jitted, slerp(TAU, pretrained=START))


@pytest.mark.parametrize(
    ("tasks", "options", "message"),
    [
        (3, {}, "slerp: needs exactly two experts, got 3"),
        (1, {}, "slerp: needs exactly two experts, got 1"),
        (2, {"t": 1.5}, r"slerp: t must lie in \[0, 1\], got 1.5"),
        (2, {}, "slerp: needs the pre-trained weights"),
    ],
)
def test_what_it_cannot_do_is_refused(tasks, options, message):
    with pytest.raises(BadInput, match=message):
        slerp({"w": jnp.ones((tasks, 3))}, **options)
