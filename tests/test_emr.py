"""EMR by hand, its rescalers, its compressed form, and from leaves on disk."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from from_disk import over_disk
from trees_close import assert_trees_close, assert_trees_equal
from two_tasks import APART, SPLIT, TEN, row

from symerge_jax.errors import BadInput
from symerge_jax.merge.bits import unpack
from symerge_jax.merge.emr import compress_emr, emr, plan

RNG = np.random.default_rng(3)
TAU = {
    "a": jnp.asarray(RNG.normal(size=(4, 33, 9)) * (RNG.random((4, 33, 9)) > 0.3), jnp.float32),
    "b": {"c": jnp.asarray(RNG.normal(size=(4, 20_001)) * 3, jnp.float32)},
    "d": jnp.asarray(RNG.normal(size=(4,)), jnp.float32),
}


def test_by_hand():
    small = compress_emr(TEN)
    # position 1 cancels: a zero sum counts as negative
    assert_trees_equal(small.vector, row(2, -2, -5, 4, 0.5, 0, 0, 0, 0, 6))
    masks = [unpack(small.masks["w"][k], (10,)) for k in (0, 1)]
    np.testing.assert_array_equal(masks[0], [1, 1, 0, 1, 1, 0, 0, 0, 0, 1])
    np.testing.assert_array_equal(masks[1], [1, 0, 1, 1, 0, 0, 0, 0, 0, 0])
    # |tau| adds up to 16.5 and 13, |u| under the masks to 14.5 and 11
    np.testing.assert_allclose(small.factors, [16.5 / 14.5, 13 / 11], rtol=1e-6)
    np.testing.assert_allclose(small.factors, [1.137931, 1.181818], atol=1e-6)
    second = np.array([2, 0, -5, 4, 0, 0, 0, 0, 0, 0]) * (13 / 11)
    np.testing.assert_allclose(emr(TEN)["w"][1], second, rtol=1e-6)


def test_leaves_weigh_the_same_or_entries_do():
    np.testing.assert_allclose(compress_emr(SPLIT).factors, [1.061538, 2.0], atol=1e-6)
    whole = compress_emr(TEN).factors
    np.testing.assert_allclose(compress_emr(SPLIT, rescale="global").factors, whole, rtol=1e-6)


def test_one_task_is_returned_exactly():
    alone = jax.tree.map(lambda tau: tau[:1], TAU)
    for rescale in ("leaf", "global"):
        assert_trees_equal(emr(alone, rescale=rescale), alone)


def test_tasks_that_touch_different_entries_are_all_recovered_exactly():
    assert_trees_equal(emr(APART), APART)


def test_a_task_vector_of_zeros_has_the_rescaler_one():
    small = compress_emr({"w": TEN["w"].at[1].set(0.0)})
    np.testing.assert_array_equal(small.factors, [1, 1])
    loses = {"w": jnp.array([[3.0, 2.0], [-1.0, -1.0]])}  # a task that is nowhere in the mask
    np.testing.assert_array_equal(compress_emr(loses).factors[1], 1)
    np.testing.assert_array_equal(emr(loses)["w"][1], [0, 0])


@pytest.mark.parametrize("rescale", ["leaf", "global"])
def test_the_rescaled_vector_has_the_size_of_the_task_vector(rescale):
    def size(tree):
        how = np.mean if rescale == "leaf" else np.sum
        return sum(how(np.abs(np.asarray(x, np.float64)).reshape(4, -1), 1) for x in tree)

    merged = emr(TAU, rescale=rescale)
    np.testing.assert_allclose(size(jax.tree.leaves(merged)), size(jax.tree.leaves(TAU)), rtol=1e-5)


def test_the_vector_is_at_least_as_large_as_any_entry_it_stands_for():
    small = compress_emr(TAU)
    for vector, masks, tau in zip(
        *map(jax.tree.leaves, (small.vector, small.masks, TAU)), strict=True
    ):
        kept = np.stack([unpack(masks[k], vector.shape) for k in range(4)])
        assert (np.abs(vector) >= np.abs(kept * np.asarray(tau))).all()
        np.testing.assert_array_equal(vector != 0, kept.any(axis=0))


def test_the_compressed_form_gives_the_same_models():
    small = compress_emr(TAU)
    whole = emr(TAU)
    for k in range(4):
        assert_trees_equal(small.materialise(k), jax.tree.map(lambda x, k=k: x[k], whole))


def test_its_size_is_one_vector_and_a_bit_per_entry_and_task():
    entries, bytes_per_task = 33 * 9 + 20_001 + 1, 38 + 2501 + 1
    assert compress_emr(TAU).nbytes == 4 * entries + 4 * bytes_per_task + 4 * 4


def test_it_is_a_pytree():
    small = compress_emr(TAU)
    again = jax.jit(lambda x: x)(small)
    assert_trees_equal(again.materialise(2), small.materialise(2))


@pytest.mark.parametrize("rescale", ["leaf", "global"])
def test_jit_and_leaves_from_disk_change_nothing(rescale):
    merged = emr(TAU, rescale=rescale)
    assert_trees_equal(over_disk(plan, TAU, rescale=rescale), merged)
    assert_trees_close(jax.jit(lambda tau: emr(tau, rescale=rescale))(TAU), merged)


def test_an_unknown_rescale_is_refused():
    with pytest.raises(BadInput, match="emr: rescale must be one of leaf, global, got 'layer'"):
        over_disk(plan, TEN, rescale="layer")
