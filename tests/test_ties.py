"""TIES and its trimming, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from from_disk import over_disk
from trees_close import assert_trees_close, assert_trees_equal
from two_tasks import TEN, row

from symerge_jax.errors import BadInput
from symerge_jax.merge.sparsify import trim, trim_thresholds
from symerge_jax.merge.ties import AGGREGATES, elected, plan, ties


def keep_largest(tau, density, **options):
    return jnp.stack(trim(tau, trim_thresholds(lambda: iter([("w", tau)]), density, **options)))


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


def test_thresholds_are_those_of_sorting():
    size = np.sort(np.abs(np.asarray(TAU)), axis=1)
    for density in (0.05, 0.2, 0.5, 0.99):
        found = trim_thresholds(lambda: iter([("w", TAU)]), density)
        np.testing.assert_array_equal(found, size[:, 17 - int(17 * density) - 1])


LEAVES = {"a": TAU, "b": TAU.swapaxes(0, 1)[:3, :, None] * 2, "c": TAU[:, 0]}


@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_jit_and_leaves_from_disk_change_nothing(aggregate):
    merged = ties(LEAVES, density=0.3, aggregate=aggregate)
    assert_trees_equal(over_disk(plan, LEAVES, density=0.3, aggregate=aggregate), merged)
    jitted = jax.jit(lambda tau: ties(tau, density=0.3, aggregate=aggregate))(LEAVES)
    assert_trees_close(jitted, merged)


def test_the_majority_counts_all_positions_of_large_leaves():
    # one cancelling entry; the rest of a leaf of many blocks decides its sign
    rest = np.full((2, 40_000), 1.0, np.float32)
    rest[:, :19_999] = -1
    cancels = np.array([[2.0], [-2.0]], np.float32)
    tau = {"a": jnp.asarray(cancels), "b": jnp.asarray(rest)}
    assert ties(tau, density=1.0)["a"][0] == 2
    tau["b"] = -tau["b"]
    assert ties(tau, density=1.0)["a"][0] == -2


def test_an_unknown_aggregate_is_refused():
    with pytest.raises(BadInput, match="ties: aggregate must be one of mean, sum, max, got 'min'"):
        over_disk(plan, TEN, aggregate="min")


@pytest.mark.parametrize("density", [0.0, -0.1, 1.5, float("nan")])
def test_a_density_outside_its_range_is_refused(density):
    with pytest.raises(BadInput, match=r"ties: density must lie in \(0, 1\], got"):
        ties(TEN, density=density)


def test_a_percentage_gets_a_hint():
    with pytest.raises(BadInput, match=r"got 20.0; 0.2 for 20 percent"):
        ties(TEN, density=20.0)


def test_elected_entries_stay_apart():
    # as above: density 0.4, thresholds 1 and 1, majority +
    first = (1, 0, 0, 4, 0, 0, 0, 0, 0, 6)
    second = (2, 2, -5, 1, 0, 0, 0, 0, 0, 0)
    assert_trees_close(elected(TEN, density=0.4), {"w": jnp.array([first, second], jnp.float32)})


def test_elected_task_vectors_add_up_to_ties_and_never_disagree():
    rng = np.random.default_rng(0)
    tau = {name: jnp.asarray(rng.normal(size=(3, *shape)), jnp.float32)
           for name, shape in {"a": (40, 5), "b": (60,)}.items()}  # fmt: skip
    apart = elected(tau)
    together = jax.tree.map(lambda leaf: leaf.sum(axis=0), apart)
    assert_trees_close(together, ties(tau, aggregate="sum"))
    flat = np.concatenate([np.asarray(leaf).reshape(3, -1) for leaf in jax.tree.leaves(apart)], 1)
    assert not ((flat > 0).any(axis=0) & (flat < 0).any(axis=0)).any()
    assert ((flat != 0).sum(axis=1) <= 0.2 * flat.shape[1] + 1).all()
