"""Breadcrumbs by hand, against sorting, and along either axis."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from trees_close import assert_trees_equal
from two_tasks import TEN, row

from symerge_jax.errors import BadInput
from symerge_jax.merge.breadcrumbs import breadcrumbs
from symerge_jax.merge.leaves import Leaf

RNG = np.random.default_rng(2)


def test_by_hand():
    # ten entries: the largest goes, the next four stay
    one, two = ({"w": TEN["w"][k : k + 1]} for k in (0, 1))
    assert_trees_equal(breadcrumbs(one, keep=0.4, remove=0.1), row(1, -2, 3, 4, 0, 0, 0, 0, 0, 0))
    assert_trees_equal(breadcrumbs(two, keep=0.4, remove=0.1), row(2, 2, 0, 1, 0, 0, 0, 0, 0, -3))
    assert_trees_equal(breadcrumbs(TEN, keep=0.4, remove=0.1), row(3, 0, 3, 5, 0, 0, 0, 0, 0, -3))


def test_of_equal_magnitudes_the_earlier_count_as_larger():
    tau = {"w": jnp.array([[1.0, -1.0, 1.0, -1.0, 0.5]])}
    # one goes, two stay
    assert_trees_equal(breadcrumbs(tau, keep=0.4, remove=0.2), row(0, -1, 1, 0, 0))


def test_all_entries_stay_when_all_are_kept_and_none_removed():
    tau = {"w": jnp.asarray(RNG.normal(size=(1, 7, 9)), jnp.float32), "s": jnp.array([2.0])}
    assert_trees_equal(breadcrumbs(tau, keep=1.0, remove=0.0), jax.tree.map(lambda x: x[0], tau))


def by_sorting(tau, keep, remove):
    """Along the last axis, by a stable sort of each row."""
    n = tau.shape[-1]
    first, last = int(n * remove), int(n * remove) + int(n * keep)
    order = np.argsort(-np.abs(tau), axis=-1, kind="stable")
    mask = np.zeros(tau.shape, bool)
    np.put_along_axis(mask, order[..., first:last], True, axis=-1)
    return (tau * mask).sum(axis=0, dtype=tau.dtype)


@pytest.mark.parametrize("shape", [(5,), (700,), (13, 40), (60, 101), (3, 4, 2, 9)])
@pytest.mark.parametrize("fractions", [(0.15, 0.006), (0.4, 0.1), (0.3, 0.5), (0.6, 0.6)])
@pytest.mark.parametrize("ties", [False, True])
def test_it_equals_sorting_each_row(shape, fractions, ties):
    tau = RNG.integers(-3, 4, (2, *shape)) / 2 if ties else RNG.normal(size=(2, *shape))
    tau = tau.astype(np.float32)
    keep, remove = fractions
    merged = breadcrumbs({"w": jnp.asarray(tau)}, keep=keep, remove=remove)["w"]
    np.testing.assert_array_equal(merged, by_sorting(tau, keep, remove))
    whole = breadcrumbs({"w": jnp.asarray(tau)}, keep=keep, remove=remove, variant="tensor")["w"]
    expected = by_sorting(tau.reshape(2, -1), keep, remove).reshape(shape)
    np.testing.assert_array_equal(whole, expected)


def test_rows_run_along_the_inputs_wherever_that_axis_lies():
    tau = jnp.asarray(RNG.normal(size=(3, 8, 20)), jnp.float32)
    rows = breadcrumbs({"w": tau}, leaves={"w": Leaf("out_in")})["w"]
    flipped = {"w": tau.swapaxes(1, 2)}
    columns = breadcrumbs(flipped, leaves={"w": Leaf("in_out")})["w"]
    np.testing.assert_array_equal(columns, rows.T)
    assert not np.array_equal(breadcrumbs(flipped)["w"], columns)


def test_a_kernel_in_either_layout_is_the_same():
    tau = jnp.asarray(RNG.normal(size=(2, 4, 3, 2, 8)), jnp.float32)  # out, in, height, width
    oihw = breadcrumbs({"w": tau}, keep=0.5, leaves={"w": Leaf("conv_oihw")})["w"]
    hwio = {"w": tau.transpose(0, 3, 4, 2, 1)}
    other = breadcrumbs(hwio, keep=0.5, leaves={"w": Leaf("conv_hwio")})["w"]
    np.testing.assert_array_equal(other, oihw.transpose(2, 3, 1, 0))


@pytest.mark.parametrize("variant", ["rows", "tensor"])
def test_jit_gives_the_same_bits(variant):
    tau = {"w": jnp.asarray(RNG.normal(size=(3, 8, 21)), jnp.float32)}
    jitted = jax.jit(lambda x: breadcrumbs(x, variant=variant))(tau)
    assert_trees_equal(jitted, breadcrumbs(tau, variant=variant))


def test_float64_is_ranked_in_float64():
    with jax.enable_x64(True):
        tau = {"w": jnp.array([[1.0, 1.0 + 1e-12, 1.0 - 1e-12, 0.5, 0.25]])}
        merged = breadcrumbs(tau, keep=0.2, remove=0.2)["w"]
        np.testing.assert_array_equal(merged, [1, 0, 0, 0, 0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": 0.0}, r"breadcrumbs: keep must lie in \(0, 1\], got 0.0"),
        ({"keep": 15.0}, "0.15 for 15 percent"),
        ({"remove": 1.0}, r"breadcrumbs: remove must lie in \[0, 1\), got 1.0"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(BadInput, match=message):
        breadcrumbs(TEN, **options)
