"""Permuted image towers: the same function, in another basin."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from experiments.permuted import Permutation, drawn, inverse, permuted, permuted_head
from symerge_jax.classifier import encoder
from symerge_jax.errors import BadInput
from symerge_jax.finetune import Recipe, finetune
from symerge_jax.models.clip import initial_params
from symerge_jax.models.clip_config import VisionConfig
from symerge_jax.models.heads import normalised_head

VISION = VisionConfig(
    image_size=16, patch_size=8, width=12, depth=2, heads=3, mlp_width=20, projection=5
)


def tower(config=VISION, seed=0):
    """A tower none of whose leaves is constant, so that every misplaced entry shows."""
    params = initial_params(config, jax.random.key(seed))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: x + rng.normal(0, 0.3, x.shape).astype(np.float32), params)


def pictures(n=6):
    return np.random.default_rng(1).integers(0, 256, (n, 16, 16, 3), dtype=np.uint8)


def features(params, config=VISION):
    return np.asarray(jax.jit(encoder(config))(params, pictures()))


@pytest.mark.parametrize("changes", [{}, {"fused_qkv": False}, {"projection": None}])
def test_a_permuted_tower_computes_the_same_features_in_another_order(changes):
    config = replace(VISION, **changes)
    params, order = tower(config), drawn(config, 0)
    moved = permuted(params, config, order)
    expected = features(params, config)[:, order.features]
    np.testing.assert_allclose(features(moved, config), expected, atol=1e-5)


def test_the_permuted_classifier_gives_the_same_logits():
    params, order = tower(), drawn(VISION, 0)
    rng = np.random.default_rng(0)
    head = {"weight": rng.normal(size=(3, 5)).astype(np.float32), "bias": np.ones(3, np.float32)}
    moved = features(permuted(params, VISION, order))
    logits = normalised_head(head, features(params))
    theirs = normalised_head(permuted_head(head, order), moved)
    np.testing.assert_allclose(theirs, logits, atol=1e-5)
    assert np.abs(normalised_head(head, moved) - logits).max() > 0.1


def test_every_leaf_keeps_its_entries_and_changes_their_order():
    params = tower()
    moved = permuted(params, VISION, drawn(VISION, 0))
    for before, after in zip(jax.tree.leaves(params), jax.tree.leaves(moved), strict=True):
        assert after.dtype == before.dtype
        np.testing.assert_array_equal(np.sort(after, axis=None), np.sort(before, axis=None))
        assert (after != before).any()


def test_the_mean_of_both_computes_something_else():
    params = tower()
    moved = permuted(params, VISION, drawn(VISION, 0))
    mean = jax.tree.map(lambda a, b: (a + b) / 2, params, moved)
    a, b = features(params), features(mean)
    assert np.linalg.norm(a - b) > 0.5 * np.linalg.norm(a)


def test_the_inverse_gives_the_same_bits_back():
    params, order = tower(), drawn(VISION, 3)
    back = permuted(permuted(params, VISION, order), VISION, inverse(order))
    jax.tree.map(np.testing.assert_array_equal, back, params)


def test_a_swap_of_two_heads_by_hand():
    still = Permutation(
        np.arange(12), np.array([[1, 0, 2]] * 2), np.array([np.arange(20)] * 2), np.arange(5)
    )
    params = tower()
    moved = permuted(params, VISION, still)
    bias, swapped = (x["blocks_0"]["attention"]["in_proj"]["bias"] for x in (params, moved))
    columns = [*range(4, 8), *range(4), *range(8, 12)]  # heads are four wide
    for part in range(3):
        own = slice(12 * part, 12 * part + 12)
        np.testing.assert_array_equal(swapped[own], bias[own][np.array(columns)])
    np.testing.assert_array_equal(moved["class_embedding"], params["class_embedding"])


def test_a_seed_draws_one_permutation():
    np.testing.assert_array_equal(drawn(VISION, 1).hidden, drawn(VISION, 1).hidden)
    assert (drawn(VISION, 1).channels != drawn(VISION, 2).channels).any()
    assert (np.sort(drawn(VISION, 1).heads, axis=1) == np.arange(3)).all()


def test_fine_tuning_commutes_with_a_permutation():
    config = replace(VISION, depth=1)
    params, order = tower(config), drawn(config, 0)
    rng = np.random.default_rng(2)
    head = {"weight": rng.normal(0, 3, (3, 5)).astype(np.float32), "bias": np.zeros(3, np.float32)}
    labels = np.arange(6, dtype=np.int32) % 3
    recipe = Recipe(steps=6, batch_size=4, learning_rate=0.05, optimiser="sgd", clip=0.5)

    def tuned(start, head):
        return finetune(encoder(config), normalised_head, start, head, pictures(), labels,
                        recipe, seed=0).params  # fmt: skip

    ours = tuned(permuted(params, config, order), permuted_head(head, order))
    theirs = permuted(tuned(params, head), config, order)
    moved = [
        np.abs(a - b).max()
        for a, b in zip(
            jax.tree.leaves(theirs), jax.tree.leaves(permuted(params, config, order)), strict=True
        )
    ]
    assert max(moved) > 1e-2  # it did learn
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), ours, theirs)


def test_an_unknown_leaf_is_refused():
    with pytest.raises(BadInput, match="the leaf blocks_0/gate is none of"):
        permuted({"blocks_0": {"gate": np.zeros(12)}}, VISION, drawn(VISION, 0))
