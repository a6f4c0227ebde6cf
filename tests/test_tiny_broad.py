"""The broad picture families: same seed same pictures, balanced labels, every class drawable."""

import numpy as np
import pytest

from experiments.tiny import broad

every_family = pytest.mark.parametrize("name", broad.BROAD)


@every_family
def test_a_family_is_named_as_in_the_table_and_its_captions_are_distinct_words(name):
    family = broad.BROAD[name]
    assert family.name == name
    assert 8 <= len(family.classes) <= 60
    assert len(set(family.classes)) == len(family.classes)
    assert all(
        len(caption.split()) <= 8 and caption == caption.lower() for caption in family.classes
    )


def test_no_caption_belongs_to_two_families():
    captions = [caption for family in broad.BROAD.values() for caption in family.classes]
    shared = {caption for caption in captions if captions.count(caption) > 1}
    assert not shared


@every_family
def test_every_class_can_be_drawn_and_is_not_flat(name):
    family = broad.BROAD[name]
    rng = np.random.default_rng(3)
    for label in range(len(family.classes)):
        pictures = [family.draw(rng, label) for _ in range(3)]
        assert all(picture.size == (64, 64) and picture.mode == "RGB" for picture in pictures)
        assert max(np.asarray(picture).std() for picture in pictures) > 2, family.classes[label]


@every_family
def test_pictures_are_shaped_typed_and_balanced(name):
    classes = len(broad.BROAD[name].classes)
    images, labels = broad.broad_images(name, count=classes + 3, seed=1)
    assert images.shape == (classes + 3, 32, 32, 3)
    assert images.dtype == np.uint8
    assert labels.dtype == np.int32
    counts = np.bincount(labels, minlength=classes)
    assert counts.max() - counts.min() <= 1
    assert (np.diff(labels) < 0).any()


@every_family
def test_the_seed_decides_the_pictures(name):
    first, labels = broad.broad_images(name, count=12, seed=5)
    again, labels_again = broad.broad_images(name, count=12, seed=5)
    other, _ = broad.broad_images(name, count=12, seed=6)
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(labels, labels_again)
    assert (first != other).any()


def test_pictures_of_one_class_differ():
    draw = broad.BROAD["beasts"].draw
    rng = np.random.default_rng(0)
    first, second = (np.asarray(draw(rng, 0), np.int32) for _ in range(2))
    assert np.abs(first - second).mean() > 5


def test_the_digest_is_a_sha256_of_the_sources():
    assert len(broad.broad_digest()) == 64
    assert broad.broad_digest() == broad.broad_digest()
