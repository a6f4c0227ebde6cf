"""Raw maps of a scene → the dtypes, ranges and shapes that the library works with.

Each function names the first thing wrong with a map, in one sentence.
"""

from collections.abc import Callable

import numpy as np

from symerge_jax.errors import BadInput

CLASSES = 13  # of NYUv2's smaller set
IGNORE = -1

# Indoors nothing is this many metres away; maps beyond it are in millimetres or centimetres.
_FAR = 100
_TOO_LONG = 1.1  # a component of a unit vector, with room for rounding
_TOO_SHORT = 1e-3  # what a normal's length is called 0 below


def checked_image(raw: np.ndarray, where: str) -> np.ndarray:
    """Pixels of 8 bits, or shares from 0 to 1 → uint8 [height, width, 3].

    Raises:
        BadInput: another shape, dtype or range.
    """
    image = _channels_last(raw)
    if image.ndim != 3 or image.shape[-1] != 3 or image.dtype.kind not in "uf" or not image.size:
        raise BadInput(
            f"{where}: expected an image as uint8 [height, width, 3] (or as floats from 0 to 1), "
            f"found {_kind(raw)}; save it like that."
        )
    if image.dtype == np.uint8:
        return image
    low, high = float(image.min()), float(image.max())
    if image.dtype.kind == "u" or not (low >= -1e-3 and high <= 1 + 1e-3):
        raise BadInput(
            f"{where}: expected an image as uint8, or as floats from 0 to 1, found {image.dtype} "
            f"from {low:g} to {high:g}; scale it, and do not normalise it."
        )
    return np.rint(255 * np.clip(image, 0, 1)).astype(np.uint8)


def checked_labels(raw: np.ndarray, where: str) -> np.ndarray:
    """Whole numbers from -1 to 12 (255 in maps of 8 bits is -1) → int8 [height, width].

    Raises:
        BadInput: another shape, dtype or range.
    """
    labels = _one_channel(raw)
    if labels.ndim != 2 or labels.dtype.kind not in "iuf" or not labels.size:
        raise BadInput(
            f"{where}: expected labels as integers [height, width], found {_kind(raw)}; save one "
            "class number for each pixel."
        )
    if labels.dtype == np.uint8:
        labels = np.where(labels == 255, np.int16(IGNORE), labels.astype(np.int16))
    wrong = ~((labels >= IGNORE) & (labels < CLASSES))  # also for what is not a number
    if labels.dtype.kind == "f":
        wrong |= labels != np.rint(labels)
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        raise BadInput(
            f"{where}: expected labels from 0 to {CLASSES - 1}, or -1 for pixels to ignore, found "
            f"{labels[row, column]:g} in row {row}, column {column}; map the classes to NYUv2's "
            f"{CLASSES}."
        )
    return labels.astype(np.int8)


def checked_depth(raw: np.ndarray, where: str) -> np.ndarray:
    """Metres, 0 where not known → float32 [height, width].

    Raises:
        BadInput: another shape or dtype, negative values or not numbers, or another unit.
    """
    depth = _one_channel(raw)
    if depth.ndim != 2 or depth.dtype.kind not in "iuf" or not depth.size:
        raise BadInput(
            f"{where}: expected a depth map as floats [height, width], found {_kind(raw)}; save "
            "one distance for each pixel."
        )
    wrong = ~(np.isfinite(depth) & (depth >= 0))
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        raise BadInput(
            f"{where}: expected depths in metres, 0 where not known, found {depth[row, column]:g} "
            f"in row {row}, column {column}; set what is not known to 0."
        )
    known = depth[depth > 0]
    if known.size and known.min() > _FAR:
        raise BadInput(
            f"{where}: expected depths in metres, found {known.min():g} to {known.max():g}, all "
            f"above {_FAR}; divide by 1000 if they are millimetres."
        )
    return depth.astype(np.float32)


def checked_normals(raw: np.ndarray, where: str) -> np.ndarray:
    """Vectors, 0 where not known → float32 [height, width, 3] of length 1.

    Raises:
        BadInput: another shape or dtype, or components beyond 1.
    """
    normals = _channels_last(raw)
    if normals.ndim != 3 or normals.shape[-1] != 3 or normals.dtype.kind != "f":
        raise BadInput(
            f"{where}: expected normals as floats [height, width, 3], found {_kind(raw)}; save one "
            "vector for each pixel (2 * x / 255 - 1 of a map of 8 bits)."
        )
    wrong = ~(np.abs(normals) <= _TOO_LONG).all(axis=-1)
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        found = ", ".join(f"{x:g}" for x in normals[row, column])
        raise BadInput(
            f"{where}: expected normals of length 1, 0 where not known, found ({found}) in row "
            f"{row}, column {column}; bring them to length 1."
        )
    normals = normals.astype(np.float32)
    length = np.linalg.norm(normals, axis=-1, keepdims=True)
    known = length > _TOO_SHORT
    return np.where(known, normals / np.where(known, length, 1), 0).astype(np.float32)


CHECKS: dict[str, Callable[[np.ndarray, str], np.ndarray]] = {
    "images": checked_image,
    "labels": checked_labels,
    "depths": checked_depth,
    "normals": checked_normals,
}


def _kind(raw: np.ndarray) -> str:
    return f"{raw.dtype} {raw.shape}"


def _channels_last(raw: np.ndarray) -> np.ndarray:
    """[3, height, width] → [height, width, 3]; others as they are."""
    first = raw.ndim == 3 and raw.shape[0] == 3 and raw.shape[-1] != 3
    return np.moveaxis(raw, 0, -1) if first else raw


def _one_channel(raw: np.ndarray) -> np.ndarray:
    """[height, width, 1] or [1, height, width] → [height, width]; others as they are."""
    if raw.ndim == 3 and raw.shape[-1] == 1:
        return raw[..., 0]
    return raw[0] if raw.ndim == 3 and raw.shape[0] == 1 else raw
