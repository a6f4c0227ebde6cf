"""TALL masks by hand, their laws, and their compressed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from from_disk import over_disk
from trees_close import assert_trees_equal
from two_tasks import APART, TEN

from symerge_jax.errors import BadInput
from symerge_jax.merge.bits import pack, unpack
from symerge_jax.merge.tall_masks import compress_tall_masks, plan, tall_masks
from symerge_jax.merge.ties import ties

RNG = np.random.default_rng(4)
TAU = {
    "a": jnp.asarray(RNG.normal(size=(3, 13, 7)), jnp.float32),
    "b": jnp.asarray(RNG.normal(size=(3,)), jnp.float32),
}


def masks_of(small, name, task):
    return np.asarray(unpack(small.masks[name][task], small.vector[name].shape))


def test_by_hand():
    small = compress_tall_masks(TEN, mask_scale=0.4)
    np.testing.assert_array_equal(small.vector["w"], [3, 0, -2, 5, 0.5, 0, 0, 0, 0, 3])
    np.testing.assert_array_equal(masks_of(small, "w", 0), [1, 1, 1, 1, 1, 0, 0, 0, 0, 1])
    np.testing.assert_array_equal(masks_of(small, "w", 1), [1, 1, 1, 0, 0, 0, 0, 0, 0, 1])
    np.testing.assert_array_equal(
        tall_masks(TEN)["w"],
        [[3, 0, -2, 5, 0.5, 0, 0, 0, 0, 3], [3, 0, -2, 0, 0, 0, 0, 0, 0, 3]],
    )


def test_the_comparison_is_strict():
    # |τ_1| = 1 and 0.5 · |τ_M − τ_1| = 0.5 · 2: not larger, not in the mask
    tau = {"w": jnp.array([[1.0], [2.0]])}
    np.testing.assert_array_equal(tall_masks(tau, mask_scale=0.5)["w"], [[0], [3]])
    np.testing.assert_array_equal(tall_masks(tau, mask_scale=0.49)["w"], [[3], [3]])


def test_one_task_is_returned_exactly():
    alone = jax.tree.map(lambda tau: tau[:1], TAU)
    assert_trees_equal(tall_masks(alone), alone)


@pytest.mark.parametrize("scale", [0.2, 0.6, 50.0])
def test_tasks_that_touch_different_entries_are_recovered_for_any_scale(scale):
    assert_trees_equal(tall_masks(APART, mask_scale=scale), APART)


def test_a_smaller_scale_keeps_at_least_as_much():
    few, many = (compress_tall_masks(TAU, mask_scale=s) for s in (0.6, 0.2))
    kept = [np.stack([masks_of(m, "a", k) for k in range(3)]) for m in (few, many)]
    assert (kept[0] <= kept[1]).all()
    assert (kept[0] < kept[1]).any()


def test_each_task_may_have_its_own_scale():
    each = tall_masks(TAU, mask_scale=[0.2, 0.4, 0.6])
    for k, scale in enumerate((0.2, 0.4, 0.6)):
        common = tall_masks(TAU, mask_scale=scale)
        assert_trees_equal(*(jax.tree.map(lambda x, k=k: x[k], tree) for tree in (each, common)))


def test_masks_do_not_change_when_all_task_vectors_are_scaled():
    assert_trees_equal(
        compress_tall_masks(jax.tree.map(lambda x: -4 * x, TAU)).masks,
        compress_tall_masks(TAU).masks,
    )


def test_the_base_ties_is_the_sum_of_what_agrees():
    small = compress_tall_masks(TAU, base="ties", density=0.5)
    assert_trees_equal(small.vector, ties(TAU, density=0.5, aggregate="sum"))
    merged = tall_masks(TAU, base="ties", density=0.5)
    for k in range(3):
        assert_trees_equal(small.materialise(k), jax.tree.map(lambda x, k=k: x[k], merged))


def test_its_size_is_one_vector_and_a_bit_per_entry_and_task():
    assert compress_tall_masks(TAU).nbytes == 4 * (91 + 1) + 3 * (12 + 1) + 3 * 4


@pytest.mark.parametrize("shape", [(), (1,), (8,), (9,), (3, 5, 7)])
def test_packed_bits_come_back(shape):
    masks = jnp.asarray(RNG.random((2, *shape)) > 0.5)
    packed = pack(masks)
    assert packed.nbytes == 2 * -(-int(np.prod(shape)) // 8)
    for k in (0, 1):
        np.testing.assert_array_equal(unpack(packed[k], shape), masks[k])


@pytest.mark.parametrize("base", ["task_arithmetic", "ties"])
def test_jit_and_leaves_from_disk_change_nothing(base):
    merged = tall_masks(TAU, base=base)
    assert_trees_equal(over_disk(plan, TAU, base=base), merged)
    assert_trees_equal(jax.jit(lambda tau: tall_masks(tau, base=base))(TAU), merged)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base": "slerp"}, "tall_masks: base must be one of task_arithmetic, ties, got 'slerp'"),
        ({"mask_scale": 0.0}, "tall_masks: mask_scale must be positive, got"),
        (
            {"mask_scale": [0.1, 0.2, 0.3]},
            "mask_scale must be one number or one per task, 2, got 3",
        ),
        ({"base": "ties", "density": 2.0}, r"density must lie in \(0, 1\]"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(BadInput, match=message):
        over_disk(plan, TEN, **options)
