"""CLIP's preprocessing: against Hugging Face's where margins are even, by hand elsewhere."""

import jax
import numpy as np
import pytest
from PIL import Image

from symerge_jax.data.preprocess import CLIP_MEAN, CLIP_STD, normalise, resize_and_crop


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize(
    "shape", [(300, 400, 3), (400, 300, 3), (28, 28, 3), (64, 64, 3), (100, 302, 3)]
)
@pytest.mark.parametrize("size", [32, 224])
def test_equals_hugging_face_where_the_margin_is_even(shape, size):
    transformers = pytest.importorskip("transformers")
    image = noise(*shape)
    long = int(size * max(shape[:2]) / min(shape[:2]))
    assert (long - size) % 2 == 0, "an odd margin, for which the two crop rules differ"
    theirs = transformers.CLIPImageProcessorPil(
        size={"shortest_edge": size}, crop_size={"height": size, "width": size}
    )
    expected = theirs(Image.fromarray(image), return_tensors="np")["pixel_values"][0]
    ours = normalise(resize_and_crop(image, size))
    np.testing.assert_allclose(ours, expected.transpose(1, 2, 0), atol=1e-5)


def test_an_odd_margin_is_cropped_as_torchvision_does():
    # 4 x 7 at size 4: nothing to scale, margin 3, left edge round(1.5) = 2.
    image = noise(4, 7, 3)
    np.testing.assert_array_equal(resize_and_crop(image, 4), image[:, 2:6])
    # margin 5: round(2.5) = 2, for Python rounds half to even, as torchvision does through it
    image = noise(9, 4, 3)
    np.testing.assert_array_equal(resize_and_crop(image, 4), image[2:6])


def test_the_long_edge_is_rounded_down():
    image = noise(30, 40, 3)
    scaled = Image.fromarray(image).resize((42, 32), Image.Resampling.BICUBIC)  # 42.67
    np.testing.assert_array_equal(resize_and_crop(image, 32), np.asarray(scaled)[:, 5:37])


@pytest.mark.parametrize("shape", [(28, 28), (32, 32), (48, 64)])
def test_grey_becomes_three_equal_channels(shape):
    grey = noise(*shape)
    found = resize_and_crop(grey, 32)
    assert found.shape == (32, 32, 3)
    assert found.dtype == np.uint8
    colour = np.repeat(grey[..., None], 3, axis=-1)
    np.testing.assert_array_equal(found, resize_and_crop(colour, 32))


def test_an_image_of_the_right_size_keeps_its_pixels():
    image = noise(32, 32, 3)
    np.testing.assert_array_equal(resize_and_crop(image, 32), image)


def test_normalise_by_hand_and_compiled():
    images = noise(2, 4, 4, 3)
    expected = (images / 255 - np.array(CLIP_MEAN)) / np.array(CLIP_STD)
    for found in (normalise(images), jax.jit(normalise)(images), normalise(images[0])[None]):
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected[: len(found)], atol=1e-5)
