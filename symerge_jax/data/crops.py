"""Random resized crops, cut on the host while the device trains, in an order that a seed decides.

The training transform of CLIP experts (open_clip's, hence that of the task-arithmetic checkpoints):
a part of 0.9 to 1 of the image's area with an aspect ratio of 3/4 to 4/3, resized to the model's
size (bicubic), no flip. Szegedy et al., "Going Deeper with Convolutions", 2014
(https://arxiv.org/abs/1409.4842), section 6; the rule of torchvision's RandomResizedCrop: ten
attempts to place such a part in the image, then the largest one in its middle. The resize is
PIL's, as in data/preprocess.py.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from symerge_jax.data.decode import read_pixels
from symerge_jax.data.preprocess import resize_and_crop

SCALE = (0.9, 1.0)
RATIO = (3 / 4, 4 / 3)
_ATTEMPTS = 10


class Box(NamedTuple):
    """A part of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int


@runtime_checkable  # the tests check arguments
class Images(Protocol):
    """Images by row: an array, or what reads one from disk. Several threads ask at once."""

    def __len__(self) -> int: ...
    def __getitem__(self, row: int, /) -> np.ndarray: ...


class Originals:
    """Images at the size they were stored with, decoded each time they are asked for."""

    def __init__(self, sources: Sequence[Path | np.ndarray], wheres: Sequence[str], *, size: int):
        """Takes what `decode_images` takes; `size` is what crops of them will have."""
        self._sources, self._wheres, self._size = sources, wheres, size

    def __len__(self) -> int:
        """Number of images."""
        return len(self._sources)

    def __getitem__(self, row: int) -> np.ndarray:
        """Returns uint8 [height, width] or [height, width, 3].

        Raises:
            BadInput: as `decode_images`.
        """
        return read_pixels(self._sources[row], self._wheres[row], size=self._size)


def crop_box(
    height: int,
    width: int,
    rng: np.random.Generator,
    *,
    scale: tuple[float, float] = SCALE,
    ratio: tuple[float, float] = RATIO,
) -> Box:
    """Draws the part of an image to keep.

    Args:
        height: of the image.
        width: of the image.
        rng: two to forty numbers are drawn from it.
        scale: range of the part's area as a share of the image's; uniform.
        ratio: range of the part's width / height; uniform in the logarithm.
    """
    for _ in range(_ATTEMPTS):
        area = height * width * rng.uniform(*scale)
        aspect = np.exp(rng.uniform(*np.log(ratio)))
        tall, wide = round(np.sqrt(area / aspect)), round(np.sqrt(area * aspect))
        if 0 < tall <= height and 0 < wide <= width:
            top, left = rng.integers(height - tall + 1), rng.integers(width - wide + 1)
            return Box(int(top), int(left), tall, wide)
    tall = min(height, round(width / ratio[0]))
    wide = min(width, round(height * ratio[1]))
    return Box((height - tall) // 2, (width - wide) // 2, tall, wide)


def random_resized_crop(
    image: np.ndarray,
    rng: np.random.Generator,
    *,
    size: int,
    scale: tuple[float, float] = SCALE,
    ratio: tuple[float, float] = RATIO,
) -> np.ndarray:
    """Cuts a random part out and resizes it.

    Args:
        image: uint8 [height, width] grey or [height, width, 3] RGB.
        rng: says which part.
        size: edge of the square that comes out, in pixels.
        scale: as for `crop_box`.
        ratio: as for `crop_box`.

    Returns:
        uint8 [size, size, 3]; grey becomes three equal channels.
    """
    from PIL import Image

    top, left, tall, wide = crop_box(image.shape[0], image.shape[1], rng, scale=scale, ratio=ratio)
    # Cut first: PIL's own `box` would let the resize look at pixels outside.
    part = np.ascontiguousarray(image[top : top + tall, left : left + wide])
    resized = Image.fromarray(part).resize((size, size), Image.Resampling.BICUBIC)
    pixels = np.asarray(resized)
    return pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=-1)


def image_batches(
    images: Images,
    labels: np.ndarray,
    rows: np.ndarray,
    *,
    size: int,
    seed: int = 0,
    crop: bool = True,
    threads: int | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Returns batches that background threads make ahead of time.

    Args:
        images: uint8 [height, width] or [height, width, 3] each, of any size.
        labels: int [n].
        rows: int [..., batch], the rows of `images` in the order of training
            (`recipes.batch_rows`); -1 leaves a place empty.
        size: edge of the squares, in pixels.
        seed: of the crops; each use of an image has its own.
        crop: cut at random; otherwise resize and crop as for tests.
        threads: that make batches; None for one per core, up to 16.

    Returns:
        An iterator over images uint8 [batch, size, size, 3], labels int32 [batch] and mask bool
        [batch], as `finetune_batches` takes them. Its `get_state` and `set_state` are those of
        grain: what comes after a state is the same each time.

    Raises:
        BadInput: from the iterator, if `images` raises it.
    """
    import grain

    def make(place: int, row: int) -> tuple[Any, Any, Any]:
        if row < 0:
            return np.zeros((size, size, 3), np.uint8), np.int32(0), np.bool_(False)
        image = images[row]
        if crop:
            pixels = random_resized_crop(image, np.random.default_rng([seed, place]), size=size)
        else:
            pixels = resize_and_crop(image, size)
        return pixels, np.int32(labels[row]), np.bool_(True)

    count = min(16, os.cpu_count() or 1) if threads is None else threads
    ahead = grain.ReadOptions(num_threads=count, prefetch_buffer_size=count)  # in batches
    order = grain.MapDataset.source(rows.reshape(-1).tolist())
    return iter(order.map_with_index(make).batch(rows.shape[-1]).to_iter_dataset(ahead))
