"""Images decoded once, in parallel, into a file of pixels that later runs map into memory.

One entry is `<cache>/images/<sha256>.npy`, uint8 [n, size, size, 3]; the name is the hash of what
the images came from. It is written chunk by chunk under a temporary name, so any number of images
fits into little memory, and read back without loading: pages come in as they are used. At CLIP's
224 pixels an image takes 150 KB, 10,000 images 1.5 GB.
"""

from __future__ import annotations

import itertools
import logging
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np

from symerge_jax.cache import digest
from symerge_jax.data.decode import decode_images
from symerge_jax.errors import BadInput
from symerge_jax.files import make_folder, writable_folder, write_atomically

# Part of every key: entries of another format, or of another way to resize, are made again.
FORMAT = 1

# Images decoded at a time: 77 MB at 224 pixels.
CHUNK = 512

# Files up to this many bytes in all are hashed by their content, larger ones by size and time.
SMALL = 64 * 2**20

Image = Path | np.ndarray  # a file, its bytes (uint8 [n]), or pixels (uint8 [h, w] or [h, w, 3])

_LOG = logging.getLogger(__name__)


def decode_all(
    images: Iterable[tuple[Image, str]],
    count: int,
    *,
    size: int,
    cache: str | Path,
    key: Mapping[str, object],
    workers: int | None = None,
    progress: Callable[[int], object] | None = None,
    report: Callable[[str], object] = _LOG.warning,
) -> np.ndarray:
    """Decodes images with CLIP's resize and crop, or finds them decoded.

    Args:
        images: each with its name for errors; not touched if they are found.
        count: how many there are.
        size: edge of the squares, in pixels.
        cache: root of the cache.
        key: what the images are: see `files_key`, and which of them.
        workers: threads that decode; one per core otherwise, at most 8.
        progress: receives the number of images done, after each chunk.
        report: receives one line when a damaged file is found and made again.

    Returns:
        uint8 [count, size, size, 3], read-only, mapped from the file.

    Raises:
        BadInput: an image cannot be read, there are more or fewer than `count`, or the cache
            cannot be written.
    """
    shape = (count, size, size, 3)
    name = digest({"format": FORMAT, "count": count, "size": size, "key": dict(key)})
    path = make_folder(Path(cache) / "images") / f"{name}.npy"
    if path.exists():
        try:
            return _open(path, shape)
        except _Damaged as damage:
            report(f"{path}: damaged cache file ({damage}); making it again.")
    writable_folder(path.parent)
    _check_space(path, shape)

    def write(file: BinaryIO) -> None:
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        done = 0
        for chunk in _chunks(images, CHUNK):
            sources, wheres = zip(*chunk, strict=True)
            file.write(decode_images(sources, wheres, size=size, workers=workers).data)
            done += len(chunk)
            if progress is not None:
                progress(done)
        if done != count:
            raise BadInput(f"expected {count} images to decode, found {done}; copy the data again")

    return _open(write_atomically(path, write), shape)


def files_key(files: Sequence[Path], *, root: Path) -> str:
    """A hash of files: of their content if they are small, else of names, sizes and times.

    Args:
        files: in an order that does not change by itself.
        root: names count relative to this folder, so that it can be moved.

    Returns:
        64 hexadecimal digits.

    Raises:
        BadInput: a file cannot be read.
    """
    state = sha256()
    try:
        stats = [file.stat() for file in files]
        how: Literal["content", "time"] = (
            "content" if sum(stat.st_size for stat in stats) <= SMALL else "time"
        )
        state.update(how.encode())
        for file, stat in zip(files, stats, strict=True):
            state.update(f"\0{file.relative_to(root).as_posix()}\0{stat.st_size}\0".encode())
            content = file.read_bytes() if how == "content" else str(stat.st_mtime_ns).encode()
            state.update(content)
    except OSError as error:
        raise BadInput(
            f"{error.filename}: cannot be read ({error.strerror}); check its permissions"
        ) from error
    return state.hexdigest()


class _Damaged(Exception):
    """A cache file whose content is not what was written."""


def _open(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    try:
        images = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # a damaged header can raise nearly anything
        raise _Damaged(str(error)) from error
    if not isinstance(images, np.ndarray):  # NumPy opens zip files too
        raise _Damaged("not a single array")
    if images.shape != shape or images.dtype != np.uint8:
        raise _Damaged(f"expected uint8 {shape}, found {images.dtype} {images.shape}")
    return images


def _check_space(path: Path, shape: tuple[int, ...]) -> None:
    needed, free = int(np.prod(shape, dtype=np.int64)), shutil.disk_usage(path.parent).free
    if needed > free:
        raise BadInput(
            f"{path.parent}: {shape[0]} decoded images need {needed / 1e9:.1f} GB, but "
            f"{free / 1e9:.1f} GB are free there; free some, choose a cache folder on another "
            "disk, or use fewer images"
        )


def _chunks(images: Iterable[tuple[Image, str]], size: int) -> Iterator[list[tuple[Image, str]]]:
    rest = iter(images)
    while chunk := list(itertools.islice(rest, size)):
        yield chunk
