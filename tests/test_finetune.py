"""Fine-tuning: it learns, it repeats, a frozen head stays, and it says when it cannot go on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from symerge_jax.errors import BadInput
from symerge_jax.finetune import Recipe, finetune, moved

PIXELS, FEATURES, CLASSES = 6, 5, 3
RECIPE = Recipe(steps=60, batch_size=16, learning_rate=0.1, head_rate=0.1, optimiser="sgd")


def encode(params, images):
    return images @ params["kernel"]


def classify(head, features):
    return features @ head["weight"].T + head["bias"][None]


def problem(seed=0, count=200):
    """Classes that a linear rule tells apart."""
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(count, PIXELS)).astype(np.float32)
    labels = (images @ rng.normal(size=(PIXELS, CLASSES))).argmax(axis=1).astype(np.int32)
    params = {"kernel": jnp.asarray(rng.normal(size=(PIXELS, FEATURES)) / 3, jnp.float32)}
    head = {
        "weight": jnp.asarray(rng.normal(size=(CLASSES, FEATURES)) / 3, jnp.float32),
        "bias": jnp.zeros(CLASSES, jnp.float32),
    }
    return params, head, images, labels


def right(expert, images, labels):
    logits = classify(expert.head, encode(expert.params, images))
    return float((np.asarray(logits).argmax(axis=1) == labels).mean())


def same(a, b):
    return all(map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b)))


@pytest.mark.parametrize(
    "recipe", [RECIPE, RECIPE._replace(optimiser="adamw", learning_rate=0.03, head_rate=0.03)]
)
def test_it_learns(recipe):
    params, head, images, labels = problem()
    expert = finetune(encode, classify, params, head, images, labels, recipe)
    assert expert.losses.shape == (60,)
    assert expert.losses[-10:].mean() < 0.5 * expert.losses[:5].mean()
    assert right(expert, images, labels) > 0.85


def test_what_it_is_given_is_left_alone():
    params, head, images, labels = problem()
    before = jax.tree.map(np.array, (params, head))
    finetune(encode, classify, params, head, images, labels, RECIPE)
    assert same((params, head), before)


def test_a_head_without_a_rate_stays_bit_identical():
    params, head, images, labels = problem()
    recipe = RECIPE._replace(head_rate=0.0)
    expert = finetune(encode, classify, params, head, images, labels, recipe)
    assert same(expert.head, head)
    assert not same(expert.params, params)


def test_the_seed_and_nothing_else_decides_the_result():
    params, head, images, labels = problem()
    one, again, other = (
        finetune(encode, classify, params, head, images, labels, RECIPE, seed=s, chunk_steps=c)
        for s, c in ((1, 50), (1, 20), (2, 50))
    )
    assert same(one, again)  # also however the steps are cut into calls
    assert not same(one.params, other.params)


def test_chunks_are_reported():
    params, head, images, labels = problem()
    seen = []
    expert = finetune(
        encode, classify, params, head, images, labels, RECIPE, chunk_steps=25, on_chunk=seen.append
    )
    assert [len(losses) for losses in seen] == [25, 25, 10]
    np.testing.assert_array_equal(np.concatenate(seen), expert.losses)


def test_a_loss_that_is_not_finite_is_refused():
    params, head, images, labels = problem()
    images[7, 2] = np.nan
    with pytest.raises(BadInput, match="diverged before step 50; lower the learning rate"):
        finetune(encode, classify, params, head, images, labels, RECIPE)


def test_unequal_counts_and_unknown_optimisers_are_refused():
    params, head, images, labels = problem()
    with pytest.raises(BadInput, match="200 images, but 199 labels"):
        finetune(encode, classify, params, head, images, labels[1:], RECIPE)
    with pytest.raises(BadInput, match="sgd or adamw, got 'adagrad'"):
        finetune(
            encode, classify, params, head, images, labels, RECIPE._replace(optimiser="adagrad")
        )


def test_few_images_are_used_again_and_again():
    params, head, images, labels = problem(count=5)
    recipe = RECIPE._replace(steps=20)
    expert = finetune(encode, classify, params, head, images, labels, recipe)
    assert right(expert, images, labels) > 0.5


def test_a_moved_image_is_a_window_of_the_padded_one():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (12, 5, 7, 3), dtype=np.uint8)
    shifted = np.asarray(moved(jnp.asarray(images), jax.random.key(3), 2))
    assert shifted.dtype == np.uint8
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="edge")
    offsets = set()
    for before, after in zip(padded, shifted, strict=True):
        fits = [
            (y, x)
            for y in range(5)
            for x in range(5)
            if np.array_equal(before[y : y + 5, x : x + 7], after)
        ]
        assert len(fits) == 1
        offsets.add(fits[0])
    assert len(offsets) > 5
