"""Images → pixels of one size: files, the bytes of files, or pixels that are decoded already."""

import io
import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from symerge_jax.data.preprocess import resize_and_crop, resized_shape
from symerge_jax.errors import BadInput

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff")

# What those suffixes stand for. PIL is told so, since it goes by content, not by name, and would
# hand a PostScript program named x.png to an interpreter.
_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "PPM", "TIFF")

# A photograph has up to 50 megapixels; more than that is a scan, a map or a decompression bomb.
MAX_PIXELS = 50_000_000

# More than 8 bits a value: PIL would clip these to 255 instead of scaling them.
_DEEP_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")


def decode_images(
    sources: Sequence[Path | np.ndarray],
    wheres: Sequence[str],
    *,
    size: int,
    workers: int | None = None,
) -> np.ndarray:
    """Decodes, resizes and crops every image.

    Args:
        sources: files, uint8 [bytes] each with the content of one, or pixels, uint8 [height,
            width] grey or [height, width, 3].
        wheres: for each, how to name it in an error.
        size: edge of the squares, in pixels.
        workers: threads; one per core otherwise, at most 8.

    Returns:
        uint8 [n, size, size, 3].

    Raises:
        BadInput: an image is unreadable, truncated, too large or has more than 8 bits a value.
    """
    images = np.empty((len(sources), size, size, 3), np.uint8)

    def work(row: int) -> None:
        pixels = read_pixels(sources[row], wheres[row], size=size)
        images[row] = resize_and_crop(pixels, size)

    # PIL decodes outside the GIL: on two cores, processes are no faster (137 and 143 photographs
    # of 600 x 800 pixels a second) and cost a copy of every image.
    pool = ThreadPoolExecutor(workers or min(8, os.cpu_count() or 1))
    try:
        with warnings.catch_warnings():  # odd metadata and palettes; the pixels are checked below
            warnings.simplefilter("ignore")
            for _ in pool.map(work, range(len(sources))):
                pass
    finally:
        pool.shutdown(cancel_futures=True)
    return images


def check_size(where: str, height: int, width: int, *, size: int) -> None:
    """Refuses an image that has no pixels, or too many of them before or after the resize."""
    if min(height, width) == 0:
        raise BadInput(f"{where}: expected an image, found {width} x {height} pixels; remove it.")
    resized_height, resized_width = resized_shape(height, width, size)
    if max(height * width, resized_height * resized_width) > MAX_PIXELS:
        raise BadInput(
            f"{where}: {width} x {height} pixels are more than can be read (at most "
            f"{MAX_PIXELS // 1_000_000} megapixels, also after resizing the short edge to {size}); "
            "make the image smaller or crop it."
        )


def read_pixels(source: Path | np.ndarray, where: str, *, size: int) -> np.ndarray:
    """Reads one image at the size it was stored with.

    Args:
        source: as one of those of `decode_images`.
        where: how to name it in an error.
        size: edge of the square that it will become, in pixels: the limit depends on it.

    Returns:
        uint8 [height, width] grey or [height, width, 3].

    Raises:
        BadInput: as `decode_images`.
    """
    from PIL import Image

    if isinstance(source, np.ndarray) and source.ndim > 1:
        check_size(where, *source.shape[:2], size=size)
        return source
    try:
        with Image.open(
            source if isinstance(source, Path) else io.BytesIO(source.tobytes()), formats=_FORMATS
        ) as image:
            check_size(where, image.height, image.width, size=size)
            if image.mode in _DEEP_MODES:
                raise BadInput(
                    f"{where}: expected 8 bits a value, found more (mode {image.mode}); convert "
                    "the image to 8 bits."
                )
            image.load()
            return np.asarray(image.convert("L" if image.mode in ("1", "L", "LA") else "RGB"))
    except BadInput:
        raise
    except Image.DecompressionBombError as error:
        raise BadInput(
            f"{where}: has more pixels than can be read (at most {MAX_PIXELS // 1_000_000} "
            "megapixels); make the image smaller."
        ) from error
    except Exception as error:  # PIL's plugins raise OSError, SyntaxError, ValueError and others
        raise BadInput(
            f"{where}: the image cannot be read ({_reason(error)}); replace or remove it."
        ) from error


def _reason(error: Exception) -> str:
    from PIL import UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):
        return f"not one of {', '.join(_FORMATS)}, or damaged"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
