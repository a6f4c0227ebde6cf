"""npz packs of images: pixel arrays, or encoded files end to end. No pickle is ever opened."""

import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from symerge_jax.data.decode import check_size, decode_images
from symerge_jax.data.npz import read_member
from symerge_jax.data.preprocess import resize_and_crop
from symerge_jax.errors import BadInput


def holds_images(path: Path) -> bool:
    """Whether the file is an npz with the members of an image pack; reads only its directory."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = set(archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False
    return "images.npy" in members or {"jpeg.npy", "offsets.npy"} <= members


def read_pack(path: Path, *, size: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Reads `images`, or `jpeg` with `offsets` where there is no `images`, and `labels` if present.

    Args:
        path: the npz file.
        size: edge of the squares, in pixels.

    Returns:
        images uint8 [n, size, size, 3] and labels int32 [n] (at least 0), or None without labels.

    Raises:
        BadInput: naming the file, the array and the first bad row.
    """
    with _open(path) as pack:
        images = _images(path, pack, size, np.arange)
        labels = _labels(path, pack)
    if labels is not None and len(labels) != len(images):
        raise BadInput(
            f"{path}: expected one label for each image, found {len(images)} images and "
            f"{len(labels)} labels; save the pack again."
        )
    return images, labels


def read_rows(path: Path, choose: Callable[[int], np.ndarray], *, size: int) -> np.ndarray:
    """Reads some images and no labels.

    Args:
        path: the npz file.
        choose: number of images → int [n], the rows to read.
        size: edge of the squares, in pixels.

    Returns:
        uint8 [n, size, size, 3].

    Raises:
        BadInput: as for `read_pack`.
    """
    with _open(path) as pack:
        return _images(path, pack, size, choose)


def read_labels(path: Path) -> np.ndarray | None:
    """The labels alone, int32 [n], or None where the pack has none."""
    with _open(path) as pack:
        return _labels(path, pack)


@contextmanager
def _open(path: Path) -> Iterator[np.lib.npyio.NpzFile]:
    try:
        file = open(path, "rb")  # noqa: SIM115 (closed below, where the `except` does not reach)
    except OSError as error:
        raise BadInput(
            f"{path}: cannot be read ({error.strerror}); check its name and permissions."
        ) from error
    with file:  # not left to np.load, which forgets to close a file that it refuses
        try:
            pack = np.load(file, allow_pickle=False)
        except Exception as error:  # NumPy and zipfile raise ValueError, EOFError, BadZipFile, ...
            raise BadInput(
                f"{path}: is damaged or not an npz file; copy it again or save it with "
                "numpy.savez_compressed."
            ) from error
        if not isinstance(pack, np.lib.npyio.NpzFile):
            raise BadInput(
                f"{path}: expected an npz file with named arrays, found a single array; save it "
                "with numpy.savez_compressed(path, images=..., labels=...)."
            )
        with pack:
            yield pack


def _array(path: Path, pack: np.lib.npyio.NpzFile, name: str) -> np.ndarray:
    try:
        return read_member(pack, name)
    except Exception as error:  # as above; zlib.error for flipped bytes, MemoryError for shapes
        if "Object arrays" in str(error):
            raise BadInput(
                f"{path}: `{name}` holds Python objects, which are never opened; save it as a "
                "plain array of integers, all images of one size (or use a folder of images)."
            ) from error
        raise BadInput(
            f"{path}: `{name}` is damaged ({str(error) or type(error).__name__}); copy the file "
            "again."
        ) from error


def _images(
    path: Path, pack: np.lib.npyio.NpzFile, size: int, choose: Callable[[int], np.ndarray]
) -> np.ndarray:
    if "images" in pack:
        return _resize_all(path, _array(path, pack, "images"), size, choose)
    if "jpeg" in pack and "offsets" in pack:
        arrays = _array(path, pack, "jpeg"), _array(path, pack, "offsets")
        return _decode_all(path, *arrays, size, choose)
    raise BadInput(
        f"{path}: expected an array `images` (or `jpeg` and `offsets`), found "
        f"{', '.join(pack.files) or 'no array'}; save the images under that name."
    )


def _labels(path: Path, pack: np.lib.npyio.NpzFile) -> np.ndarray | None:
    if "labels" not in pack:
        return None
    labels = _array(path, pack, "labels")
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise BadInput(
            f"{path}: expected `labels` as integers [N], found {labels.dtype} {labels.shape}; save "
            "one class number for each image."
        )
    # Checked before the cast, which would wrap a huge label around.
    wrong = np.flatnonzero((labels < 0) | (labels > np.iinfo(np.int32).max))
    if wrong.size:
        raise BadInput(
            f"{path}: the label of row {wrong[0]} is {labels[wrong[0]]}, expected 0 or more; "
            "number the classes from 0."
        )
    return labels.astype(np.int32)


def _resize_all(
    path: Path, images: np.ndarray, size: int, choose: Callable[[int], np.ndarray]
) -> np.ndarray:
    rank_ok = images.ndim == 3 or (images.ndim == 4 and images.shape[-1] == 3)
    if images.dtype != np.uint8 or not rank_ok:
        raise BadInput(
            f"{path}: expected `images` as uint8 [N,H,W] or [N,H,W,3], found {images.dtype} "
            f"{images.shape}; convert them (0 to 255, channels last)."
        )
    check_size(f"{path}: `images`", *images.shape[1:3], size=size)
    rows = choose(len(images))
    resized = np.empty((len(rows), size, size, 3), np.uint8)
    for out, row in zip(resized, rows, strict=True):
        out[...] = resize_and_crop(images[row], size)
    return resized


def _decode_all(
    path: Path,
    jpeg: np.ndarray,
    offsets: np.ndarray,
    size: int,
    choose: Callable[[int], np.ndarray],
) -> np.ndarray:
    if jpeg.dtype != np.uint8 or jpeg.ndim != 1:
        raise BadInput(
            f"{path}: expected `jpeg` as uint8 [bytes], found {jpeg.dtype} {jpeg.shape}; save the "
            "files' bytes end to end."
        )
    if offsets.dtype.kind not in "iu" or offsets.ndim != 1 or not len(offsets):
        raise BadInput(
            f"{path}: expected `offsets` as integers [N+1], found {offsets.dtype} "
            f"{offsets.shape}; save where each file starts and where the last one ends."
        )
    falls = np.flatnonzero(offsets[1:] <= offsets[:-1])
    if falls.size:
        row = falls[0]
        raise BadInput(
            f"{path}: `offsets` must increase, but row {row} goes from {offsets[row]} to "
            f"{offsets[row + 1]}; save the pack again."
        )
    if offsets[0] != 0 or offsets[-1] != len(jpeg):
        raise BadInput(
            f"{path}: `offsets` must go from 0 to the {len(jpeg)} bytes of `jpeg`, found "
            f"{offsets[0]} to {offsets[-1]}; save the pack again."
        )
    rows = choose(len(offsets) - 1)
    spans = list(zip(offsets[rows].tolist(), offsets[rows + 1].tolist(), strict=True))
    wheres = [
        f"{path}: row {row} (bytes {start} to {end} of `jpeg`)"
        for row, (start, end) in zip(rows, spans, strict=True)
    ]
    return decode_images([jpeg[start:end] for start, end in spans], wheres, size=size)
