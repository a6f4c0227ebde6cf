"""TIES and its trimming, by hand."""

import jax.numpy as jnp
import numpy as np
import pytest
from trees_close import assert_trees_close, assert_trees_equal

from symerge_jax.errors import BadInput
from symerge_jax.merge.sparsify import keep_largest
from symerge_jax.merge.ties import AGGREGATES, ties

# Positions: a clear sign, exact cancellation, opposite signs (twice), alone, zeros, opposite signs.
TEN = {
    "w": jnp.array(
        [[1.0, -2, 3, 4, 0.5, 0, 0, 0, 0, 6], [2, 2, -5, 1, 0, 0, 0, 0, 0, -3]], jnp.float32
    )
}


def row(*values):
    return {"w": jnp.array(values, jnp.float32)}


def test_ties_by_hand():
    tau = {"w": jnp.array([[4.0, -1.0, 3.0, 0.1], [2.0, 5.0, -1.0, 0.2]])}
    # j = 2: thresholds 1 and 1, the entries equal to them stay: [4 -1 3 0], [2 5 -1 0];
    # signs of the sums 6, 4, 2, 0: all + (the last takes the majority); means over what agrees
    assert_trees_close(ties(tau, density=0.5), row(3, 5, 3, 0))


@pytest.mark.parametrize(
    ("aggregate", "expected"),
    [
        ("mean", (1.5, 2, -5, 2.5, 0, 0, 0, 0, 0, 6)),
        ("sum", (3, 2, -5, 5, 0, 0, 0, 0, 0, 6)),
        ("max", (2, 2, -5, 4, 0, 0, 0, 0, 0, 6)),
    ],
)
def test_each_aggregate_by_hand(aggregate, expected):
    # density 0.4: j = 6, thresholds 1 and 1, five survive in each; position 1 cancels, majority +
    assert_trees_close(ties(TEN, density=0.4, aggregate=aggregate), row(*expected))


@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_an_exact_cancellation_takes_the_majority_sign(aggregate):
    for sign in (1.0, -1.0):
        tau = {"w": sign * jnp.array([[2.0, 3.0, 1.0], [-2.0, 3.0, 1.0]])}
        assert ties(tau, density=1.0, aggregate=aggregate)["w"][0] == 2.0 * sign


@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_a_majority_that_ties_too_is_negative(aggregate):
    cancels = {"w": jnp.array([[2.0], [-2.0]])}
    assert_trees_close(ties(cancels, density=1.0, aggregate=aggregate), row(-2))
    balanced = {"w": jnp.array([[2.0, 3.0, -3.0], [-2.0, 0.0, 0.0]])}
    assert_trees_close(ties(balanced, density=1.0, aggregate=aggregate), row(-2, 3, -3))


def test_zero_entries_do_not_count_in_the_mean():
    tau = {"w": jnp.array([[2.0, 0.0], [0.0, 0.0], [4.0, 0.0]])}
    assert_trees_close(ties(tau, density=1.0), row(3, 0))


def test_one_task_with_density_one_is_that_task():
    tau = {"w": TEN["w"][:1]}
    for aggregate in AGGREGATES:
        assert_trees_equal(ties(tau, density=1.0, aggregate=aggregate), {"w": TEN["w"][0]})


def test_thresholds_are_global_over_leaves():
    parts = {"a": TEN["w"][:, :3], "b": TEN["w"][:, 3:].reshape(2, 7, 1)}
    whole = ties(TEN, density=0.4)["w"]
    merged = ties(parts, density=0.4)
    assert_trees_equal(merged, {"a": whole[:3], "b": whole[3:].reshape(7, 1)})


def test_entries_equal_to_the_threshold_all_stay():
    tau = jnp.array([[1.0, -1.0, 1.0, 5.0, 0.5]])
    # P = 5, density 0.4: j = 3, threshold 1
    np.testing.assert_array_equal(keep_largest(tau, 0.4), [[1, -1, 1, 5, 0]])


def test_one_more_entry_stays_than_the_density_says():
    tau = jnp.arange(1.0, 11.0)[None]
    assert int((keep_largest(tau, 0.2) != 0).sum()) == 3
    np.testing.assert_array_equal(keep_largest(tau, 1.0), tau)


TAU = jnp.asarray(np.random.default_rng(1).normal(size=(3, 17)), jnp.float32)


@pytest.mark.parametrize("zeros", [3, 40])
@pytest.mark.parametrize("density", [0.1, 0.5])
def test_extra_zeros_are_the_same_as_appended_zeros(density, zeros):
    appended = jnp.concatenate([TAU, jnp.zeros((3, zeros))], axis=1)
    expected = keep_largest(appended, density)[:, :17]
    np.testing.assert_array_equal(keep_largest(TAU, density, extra_zeros=zeros), expected)
    assert zeros == 3 or not np.array_equal(expected, keep_largest(TAU, density))


def test_ties_counts_extra_zeros_in_its_quantile():
    merged = ties({"w": TAU}, density=0.2, quantile_extra_zeros=10)
    padded = ties({"w": TAU, "z": jnp.zeros((3, 10))}, density=0.2)
    np.testing.assert_array_equal(merged["w"], padded["w"])


@pytest.mark.parametrize("density", [0.0, -0.1, 1.5, float("nan")])
def test_a_density_outside_its_range_is_refused(density):
    with pytest.raises(BadInput, match=r"ties: density must lie in \(0, 1\], got"):
        ties(TEN, density=density)


def test_a_percentage_gets_a_hint():
    with pytest.raises(BadInput, match=r"got 20.0; 0.2 for 20 percent"):
        ties(TEN, density=20.0)
