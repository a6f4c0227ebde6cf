"""Arithmetic on pytrees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from trees_close import assert_trees_equal

from symerge_jax import trees
from symerge_jax.errors import BadInput


def tree(scale=1.0):
    return {
        "block": {"bias": jnp.arange(2.0) * scale, "kernel": jnp.arange(6.0).reshape(2, 3) * scale},
        "temperature": jnp.asarray(3.0 * scale),
    }


def without(params, name):
    return {key: leaf for key, leaf in params.items() if key != name}


def check(ours):
    trees.check_same(ours, tree(), name="expert 2", reference_name="the base")


def test_paths_are_keys_joined_with_slashes_in_the_order_of_leaves():
    assert trees.paths(tree()) == ["block/bias", "block/kernel", "temperature"]


def test_equal_trees_pass_whatever_their_values():
    check(tree(7.0))
    check(jax.tree.map(np.asarray, tree()))


@pytest.mark.parametrize(
    ("ours", "message"),
    [
        (without(tree(), "temperature"), "expert 2 lacks the leaf 'temperature' that the base has"),
        (tree() | {"extra": jnp.ones(1)}, "expert 2 has the leaf 'extra' that the base lacks"),
        (
            tree() | {"block": {"bias": jnp.ones(4), "kernel": jnp.ones((9, 9))}},
            r"block/bias: expert 2 has shape \(4,\), the base has shape \(2,\)",
        ),
        (
            tree() | {"temperature": jnp.asarray(3)},
            "temperature: expert 2 has dtype int32, the base has dtype float32",
        ),
    ],
    ids=["missing", "unknown", "shape", "dtype"],
)
def test_a_mismatch_names_the_first_path_and_both_sides(ours, message):
    with pytest.raises(BadInput, match=message):
        check(ours)


def test_other_containers_with_the_same_paths_are_a_mismatch():
    with pytest.raises(BadInput, match="a and b nest the same leaves in different containers"):
        trees.check_same([jnp.ones(2)], (jnp.ones(2),), name="a", reference_name="b")


def test_unstack_undoes_stack():
    models = [tree(1.0), tree(2.0), tree(3.0)]
    stacked = trees.stack(models)
    assert trees.task_count(stacked) == 3
    for model, again in zip(models, trees.unstack(stacked), strict=True):
        assert_trees_equal(again, model)


def test_stacking_names_the_tree_that_differs():
    with pytest.raises(BadInput, match="tree 1 lacks the leaf 'temperature'"):
        trees.stack([tree(), without(tree(), "temperature")])
    with pytest.raises(BadInput, match="at least one pytree"):
        trees.stack([])


@pytest.mark.parametrize(
    ("stacked", "message"),
    [
        ({}, "without leaves"),
        ({"a": None}, "without leaves"),
        ({"a": jnp.ones((2, 3)), "b": jnp.ones((3, 3))}, r"b has shape \(3, 3\).* 2 as a has"),
        ({"a": jnp.asarray(1.0)}, "a is a scalar"),
    ],
)
def test_a_task_axis_that_is_not_shared_is_refused(stacked, message):
    with pytest.raises(BadInput, match=message):
        trees.task_count(stacked)


def test_unravel_undoes_ravel_for_each_task():
    stacked = trees.stack([tree(1.0), tree(2.0)])
    flat, unravel = trees.ravel_stacked(stacked)
    assert flat.shape == (2, 9)
    for row, model in zip(flat, trees.unstack(stacked), strict=True):
        assert_trees_equal(unravel(row), model)


def test_raveling_widens_and_unraveling_restores_each_leafs_dtype():
    stacked = {"a": jnp.ones((2, 3), jnp.bfloat16), "b": jnp.ones((2, 1)), "c": None}
    flat, unravel = trees.ravel_stacked(stacked)
    assert flat.dtype == jnp.float32
    one = unravel(flat[0])
    assert (one["a"].dtype, one["b"].dtype, one["c"]) == (jnp.bfloat16, jnp.float32, None)


def test_combine_undoes_split():
    kept, rest = trees.split(tree(), lambda path, leaf: path.endswith("bias") or leaf.ndim == 0)
    assert trees.paths(kept) == ["block/bias", "temperature"]
    assert trees.paths(rest) == ["block/kernel"]
    assert_trees_equal(trees.combine(kept, rest), tree())


@pytest.mark.parametrize(
    ("dtypes", "expected"),
    [
        (["bfloat16"], "float32"),
        (["float16", "bfloat16", "float32"], "float32"),
        (["float64", "bfloat16"], "float64"),
    ],
)
def test_half_precision_is_computed_in_single_and_double_stays_double(dtypes, expected):
    assert trees.wide(*dtypes) == jnp.dtype(expected)


@pytest.mark.parametrize(
    ("dtype", "floating"),
    [("float32", True), ("bfloat16", True), ("int32", False), ("bool", False)],
)
def test_only_floating_leaves_take_part(dtype, floating):
    assert trees.is_floating("any", jnp.zeros(2, dtype)) is floating
