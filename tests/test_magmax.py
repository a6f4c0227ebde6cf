"""MagMax by hand."""

import jax
import jax.numpy as jnp
import numpy as np
from trees_close import assert_trees_equal
from two_tasks import APART, TEN, row

from symerge_jax.merge.magmax import magmax


def test_the_largest_magnitude_wins_and_of_equal_ones_the_later_task():
    assert_trees_equal(magmax(TEN), row(2, 2, -5, 4, 0.5, 0, 0, 0, 0, 6))
    swapped = {"w": TEN["w"][::-1]}
    assert_trees_equal(magmax(swapped), row(2, -2, -5, 4, 0.5, 0, 0, 0, 0, 6))


def test_tasks_that_touch_different_entries_keep_them_all():
    assert_trees_equal(magmax(APART), row(1, 3, 0, 2))


def test_magnitudes_are_the_largest_of_all_tasks():
    tau = jnp.asarray(np.random.default_rng(0).normal(size=(5, 6, 7)), jnp.float32)
    merged = magmax({"w": tau})["w"]
    np.testing.assert_array_equal(jnp.abs(merged), jnp.abs(tau).max(axis=0))
    assert (merged[None] == tau).any(axis=0).all()


def test_one_task_is_returned_as_it_is():
    assert_trees_equal(magmax({"w": TEN["w"][:1]}), {"w": TEN["w"][0]})


def test_jit_gives_the_same_bits():
    assert_trees_equal(jax.jit(magmax)(TEN), magmax(TEN))
