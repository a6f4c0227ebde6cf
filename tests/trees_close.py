"""Comparisons of pytrees, leaf by leaf."""

import jax
import numpy as np

from symerge_jax import trees


def assert_trees_close(actual, expected, *, rtol=1e-6, atol=1e-6):
    """Same structure, shapes and dtypes; values within the tolerance."""
    _compare(actual, expected, lambda a, b, name: np.testing.assert_allclose(
        a, b, rtol=rtol, atol=atol, err_msg=name))  # fmt: skip


def assert_trees_equal(actual, expected):
    """Same structure, shapes and dtypes; bit-identical values."""
    _compare(actual, expected, lambda a, b, name: np.testing.assert_array_equal(a, b, err_msg=name))


def _compare(actual, expected, compare):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    names = trees.paths(expected)
    for name, a, b in zip(names, jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert (a.shape, a.dtype) == (b.shape, b.dtype), name
        compare(a, b, name)
