"""Exact selection against sorting."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from symerge_jax.merge import quantiles
from symerge_jax.merge.quantiles import smallest

RNG = np.random.default_rng(0)


def weights(dtype, size=40_000):
    return (RNG.normal(size=(2, size)) * 5e-4 * (RNG.random((2, size)) > 0.2)).astype(dtype)


CASES = {
    "like weights": weights(np.float32),
    "few distinct values": np.round(weights(np.float32) * 2000) / np.float32(2000),
    "all zero": np.zeros((2, 300), np.float32),
    "one entry": np.array([[-3.5], [2.0]], np.float32),
    "all magnitudes": (
        10.0 ** RNG.uniform(-44, 38, (2, 5000)) * RNG.choice([-1, 1], (2, 5000))
    ).astype(np.float32),
    "both zeros and infinities": np.array(
        [[0.0, -0.0, np.inf, -np.inf, 1, -1], [-0.0] * 6], np.float32
    ),
    "float64": weights(np.float64, 5000),
}


def in_leaves(flat):
    """Passes over the rows cut into leaves of uneven sizes."""
    cuts = sorted({0, 1, flat.shape[1] // 3, flat.shape[1]})
    return lambda: (
        (f"leaf{i}", flat[:, a:b]) for i, (a, b) in enumerate(zip(cuts, cuts[1:], strict=False))
    )


def some_ranks(total):
    return sorted({1, 2, total // 5, total // 2, total * 4 // 5, total - 1, total} & set(
        range(1, total + 1)
    ))  # fmt: skip


def expected(flat, signed, extra):
    padded = np.concatenate([flat, np.zeros((2, extra), flat.dtype)], axis=1)
    ordered = np.sort(padded if signed else np.abs(padded), axis=1)
    return [ordered[:, j - 1] for j in some_ranks(padded.shape[1])]


def every_case(test):
    for name, values in (
        ("extra", [0, 7, 100_000]),
        ("signed", [False, True]),
        ("case", list(CASES)),
    ):
        test = pytest.mark.parametrize(name, values)(test)
    return test


@every_case
def test_it_equals_sorting(case, signed, extra):
    flat = CASES[case]
    found = smallest(in_leaves(flat), some_ranks, signed=signed, extra_zeros=extra)
    np.testing.assert_array_equal(found, expected(flat, signed, extra))
    assert all(row.dtype == flat.dtype for row in found)


@every_case
def test_it_equals_sorting_under_jit(case, signed, extra):
    flat = CASES[case]

    @jax.jit
    def select(x):
        return smallest(in_leaves(x), some_ranks, signed=signed, extra_zeros=extra)

    with jax.enable_x64(flat.dtype == np.float64):
        found = select(jnp.asarray(flat))
    # XLA takes numbers below the smallest normal one for zero
    tiny = 2e-38 if case == "all magnitudes" else 0
    np.testing.assert_allclose(found, expected(flat, signed, extra), rtol=0, atol=tiny)
    assert all(row.dtype == flat.dtype for row in found)


def test_a_sample_that_misleads_costs_a_pass_and_nothing_else():
    # Everything but the sampled entries is a thousand times larger.
    flat = weights(np.float32) * 1000
    flat[:, :: quantiles._STRIDE] /= 1000
    count, passes = 0, in_leaves(flat)

    def counted():
        nonlocal count
        count += 1
        return passes()

    found = smallest(counted, some_ranks)
    np.testing.assert_array_equal(found, expected(flat, False, 0))
    assert count <= 6  # one look at the dtype, the sample, and what the bits need at most


def test_a_large_leaf_takes_a_sample_and_two_more_passes():
    flat = RNG.normal(size=(2, 1_500_000)).astype(np.float32)
    count = 0

    def passes():
        nonlocal count
        count += 1
        yield "w", flat

    (found,) = smallest(passes, lambda total: [total * 4 // 5])
    np.testing.assert_array_equal(found, np.sort(np.abs(flat), axis=1)[:, 1_200_000 - 1])
    assert count == 4  # the first only looks at what kind of array it is


def test_a_histogram_is_emptied_when_much_lies_between(monkeypatch):
    monkeypatch.setattr(quantiles, "_FLUSH", 100)
    flat = CASES["like weights"]
    np.testing.assert_array_equal(smallest(in_leaves(flat), some_ranks), expected(flat, False, 0))


def test_ranks_are_of_what_a_function_makes_of_a_leaf():
    flat = CASES["like weights"]
    passes = in_leaves(jnp.asarray(flat))
    found = smallest(passes, some_ranks, values=lambda x: -3 * x, signed=True)
    np.testing.assert_array_equal(found, expected(-3 * flat, True, 0))


def test_half_precision_leaves_are_ranked_in_single():
    flat = jnp.asarray(CASES["like weights"][:, :999]).astype(jnp.bfloat16)
    found = smallest(in_leaves(flat), some_ranks)
    np.testing.assert_array_equal(found, expected(np.asarray(flat, np.float32), False, 0))


def test_large_leaves_are_counted_in_blocks_under_jit():
    flat = RNG.normal(size=(2, 70_003)).astype(np.float32)
    select = jax.jit(lambda x: smallest(lambda: iter([("w", x)]), some_ranks))
    np.testing.assert_array_equal(select(flat), expected(flat, False, 0))


def test_a_rank_beyond_the_entries_cannot_be():
    with pytest.raises(AssertionError):
        smallest(in_leaves(CASES["one entry"]), lambda total: [total + 1])
