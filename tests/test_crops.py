"""Random resized crops: where they may lie, what they look like, and in which order they come."""

import io

import numpy as np
import pytest
from PIL import Image

from symerge_jax.data.crops import (
    Box,
    Originals,
    crop_box,
    image_batches,
    random_resized_crop,
)
from symerge_jax.data.preprocess import resize_and_crop
from symerge_jax.errors import BadInput


def pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def boxes(height, width, count=300, **options):
    rng = np.random.default_rng(0)
    return [crop_box(height, width, rng, **options) for _ in range(count)]


@pytest.mark.parametrize(("height", "width"), [(224, 224), (300, 400), (64, 50)])
def test_a_box_lies_in_the_image_with_the_right_area_and_shape(height, width):
    found = boxes(height, width)
    for top, left, tall, wide in found:
        assert 0 <= top <= height - tall
        assert 0 <= left <= width - wide
        assert 0.88 <= tall * wide / (height * width) <= 1.0  # sizes are rounded to whole pixels
        assert 0.73 <= wide / tall <= 1.36
    assert len(set(found)) > 100


def test_what_no_attempt_can_place_is_the_largest_part_in_the_middle():
    # 0.9 of a strip is longer than 4/3 of its height: no attempt fits.
    assert set(boxes(30, 100)) == {Box(0, 30, 30, 40)}
    assert set(boxes(100, 30)) == {Box(30, 0, 40, 30)}
    # 1:1 exactly, and a scale that only the whole image has
    assert set(boxes(50, 50, scale=(1.0, 1.0), ratio=(1.0, 1.0))) == {Box(0, 0, 50, 50)}


def test_a_crop_is_the_part_resized_by_pil():
    image = pixels(60, 80, 3)
    got = random_resized_crop(image, np.random.default_rng(5), size=32)
    top, left, tall, wide = crop_box(60, 80, np.random.default_rng(5))
    part = Image.fromarray(image).crop((left, top, left + wide, top + tall))
    np.testing.assert_array_equal(got, np.asarray(part.resize((32, 32), Image.Resampling.BICUBIC)))
    assert got.dtype == np.uint8


def test_a_crop_is_never_mirrored():
    image = np.repeat(np.linspace(0, 255, 64).astype(np.uint8)[None], 64, axis=0)
    for seed in range(20):
        columns = random_resized_crop(image, np.random.default_rng(seed), size=16).mean(axis=(0, 2))
        assert (np.diff(columns) > 0).all()


def test_grey_becomes_three_equal_channels():
    got = random_resized_crop(pixels(20, 30), np.random.default_rng(0), size=8)
    assert got.shape == (8, 8, 3)
    assert (got == got[..., :1]).all()


IMAGES = [pixels(20 + i, 30 - i, 3, seed=i) for i in range(10)]
LABELS = np.arange(10, dtype=np.int64) % 3
ROWS = np.random.default_rng(1).permutation(np.repeat(np.arange(10), 4)).reshape(5, 2, 4)


def batches(**options):
    return image_batches(IMAGES, LABELS, ROWS, size=8, threads=2, **options)


def assert_equal(ours, theirs):
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(one, other)


def test_batches_come_in_the_order_of_the_rows():
    found = list(batches(crop=False))
    assert len(found) == 10
    for (images, labels, mask), rows in zip(found, ROWS.reshape(10, 4), strict=True):
        np.testing.assert_array_equal(images, [resize_and_crop(IMAGES[r], 8) for r in rows])
        np.testing.assert_array_equal(labels, LABELS[rows])
        assert mask.all()
        assert (images.dtype, labels.dtype, mask.dtype) == (np.uint8, np.int32, np.bool_)


def test_the_seed_decides_the_crops_whatever_the_threads():
    one, again, other = (
        [images for images, _, _ in image_batches(IMAGES, LABELS, ROWS, size=8, seed=s, threads=n)]
        for s, n in ((0, 1), (0, 3), (1, 3))
    )
    assert_equal(one, again)
    assert not all(map(np.array_equal, one, other))


def test_each_use_of_an_image_has_its_own_crop():
    rows = np.full((4, 2), 5)  # 25 x 25 pixels: nearly every attempt's shape fits
    found = [x for images, _, _ in image_batches(IMAGES, LABELS, rows, size=8) for x in images]
    assert len({x.tobytes() for x in found}) > 4


def test_batches_go_on_from_a_state():
    first = batches()
    for _ in range(3):
        next(first)
    state = first.get_state()
    rest = list(first)
    later = batches()
    later.set_state(state)
    assert len(rest) == 7
    for ours, theirs in zip(later, rest, strict=True):
        assert_equal(ours, theirs)


def test_an_empty_place_is_masked():
    images, labels, mask = next(image_batches(IMAGES, LABELS, np.array([[3, -1]]), size=8))
    np.testing.assert_array_equal(mask, [True, False])
    np.testing.assert_array_equal(labels, [0, 0])
    assert images[0].any()
    assert not images[1].any()


class Unreadable:
    def __len__(self):
        return 2

    def __getitem__(self, row):
        if row == 1:
            raise BadInput("x.png: cannot be read")
        return IMAGES[0]


def test_an_image_that_cannot_be_read_is_named():
    with pytest.raises(BadInput, match=r"^x\.png: cannot be read"):
        list(image_batches(Unreadable(), LABELS, np.array([[0], [1]]), size=8))


def test_originals_are_read_as_they_were_stored(tmp_path):
    Image.fromarray(IMAGES[0]).save(tmp_path / "a.png")
    buffer = io.BytesIO()
    Image.fromarray(IMAGES[1][..., 0]).save(buffer, "PNG")
    encoded = np.frombuffer(buffer.getvalue(), np.uint8)
    sources = [tmp_path / "a.png", encoded, IMAGES[2], encoded[:40]]
    found = Originals(sources, ["a", "b", "c", "d"], size=8)
    assert len(found) == 4
    np.testing.assert_array_equal(found[0], IMAGES[0])
    np.testing.assert_array_equal(found[1], IMAGES[1][..., 0])
    np.testing.assert_array_equal(found[2], IMAGES[2])
    with pytest.raises(BadInput, match="^d: the image cannot be read"):
        found[3]
