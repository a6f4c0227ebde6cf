"""The embedded world of rooms: generated indoor scenes with segmentation, depth and normals.

It stands in for NYUv2: the same thirteen classes, the same camera at a quarter of the resolution,
depth straight ahead in metres, normals in the camera's axes. A room is ray-cast, so its labels,
depths and normals are exact; windows alone have neither depth nor normal, as to a depth camera.

Normals have x to the right, y straight ahead and z up, and point to the camera's side, as in the
surface normals that go with NYUv2's labels (https://github.com/ankurhanda/nyuv2-meta-data).

A small ResNet learns pieces of furniture first, one in the middle of a picture, in any colours,
and thus has seen neither a furnished room nor the rooms' colours.

There is one world. The experiments take `scenes("train", TRAIN)` and `scenes("test", TEST)`.
"""

from __future__ import annotations

import hashlib
import zlib
from pathlib import Path
from typing import Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from experiments.tiny import rooms_furniture, rooms_layout
from experiments.tiny.rooms_furniture import CLASSES
from experiments.tiny.rooms_layout import Stage
from experiments.tiny.rooms_paint import colours
from experiments.tiny.rooms_render import SIDES, Floats, Seen, cast
from symerge_jax.data.dense import Scenes

VERSION = 1
HEIGHT, WIDTH = 72, 96
TRAIN, TEST = 1500, 200
PRETRAINING_SIZE = (48, 48)
# A low table is a table that is further away.
PRETRAINING_CLASSES = tuple(kind for kind in rooms_furniture.PIECES if kind != "low table")

Split: TypeAlias = Literal["train", "test"]

_SIDE_LABELS = tuple(CLASSES.index(side if side in CLASSES else "wall") for side in SIDES)


def scenes(
    split: Split, count: int, *, seed: int = 0, height: int = HEIGHT, width: int = WIDTH
) -> Scenes:
    """Draws furnished rooms; scene i is the same whatever `count` is.

    Args:
        split: "train" or "test"; no room is in both.
        count: of rooms.
        seed: any non-negative integer.
        height: in pixels.
        width: in pixels.

    Raises:
        ValueError: no such split, or a negative count or seed.
    """
    if split not in get_args(Split):
        raise ValueError(f"expected a split of {', '.join(get_args(Split))}; got {split!r}")
    _check(count, seed)
    images = np.empty((count, height, width, 3), np.uint8)
    labels = np.empty((count, height, width), np.int8)
    depths = np.empty((count, height, width), np.float32)
    normals = np.empty((count, height, width, 3), np.float32)
    for i in range(count):
        rng = _generator(seed, split, i)
        stage = rooms_layout.furnished(rng)
        seen = cast(stage.room, stage.boxes, stage.camera, height, width)
        images[i] = _photograph(rng, stage, seen, height, width)
        found = _truth(stage, seen)
        labels[i], depths[i], normals[i] = (
            each.reshape(height, width, *each.shape[1:]) for each in found
        )
    return Scenes(images, labels, depths, normals)


def pretraining_images(
    count: int, *, seed: int = 0, size: tuple[int, int] = PRETRAINING_SIZE
) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """Draws single pieces of furniture in bare rooms, in any colours, to learn their kinds.

    Args:
        count: of pictures; picture i is the same whatever `count` is.
        seed: any non-negative integer.
        size: height and width in pixels.

    Returns:
        Pictures uint8 [count, height, width, 3] and labels int32 [count], which of
        `PRETRAINING_CLASSES`; the classes take turns, so shuffle before training.

    Raises:
        ValueError: a negative count or seed.
    """
    _check(count, seed)
    images = np.empty((count, *size, 3), np.uint8)
    labels = np.arange(count, dtype=np.int32) % len(PRETRAINING_CLASSES)
    for i, label in enumerate(labels.tolist()):
        rng = _generator(seed, "pretraining", i)
        stage = rooms_layout.portrait(rng, PRETRAINING_CLASSES[label])
        seen = cast(stage.room, stage.boxes, stage.camera, *size)
        images[i] = _photograph(rng, stage, seen, *size)
    return images, labels


def rooms_digest() -> str:
    """A sha256 in hex over the code that draws the rooms, for the keys of caches."""
    state = hashlib.sha256(str(VERSION).encode())
    for part in ("rooms_render", "rooms_paint", "rooms_furniture", "rooms_layout", "rooms"):
        state.update((Path(__file__).parent / f"{part}.py").read_bytes())
    return state.hexdigest()


def _check(count: int, seed: int) -> None:
    if count < 0 or seed < 0:
        raise ValueError(f"count and seed are at least 0; got count {count} and seed {seed}")


def _generator(seed: int, split: str, index: int) -> np.random.Generator:
    key = (seed, zlib.crc32(f"rooms {split}".encode()), index)
    return np.random.default_rng(np.random.SeedSequence(key))


def _photograph(
    rng: np.random.Generator, stage: Stage, seen: Seen, height: int, width: int
) -> NDArray[np.uint8]:
    light = colours(seen, stage.room, stage.boxes, stage.paints, stage.light)
    exposed = light * np.float32(rng.uniform(0.8, 1.1))
    noise = rng.standard_normal(exposed.shape, np.float32) * np.float32(0.02)
    # Highlights fade out instead of being cut off.
    picture = np.where(exposed < 0.8, exposed, 1 - 0.2 * np.exp((0.8 - exposed) / 0.2)) + noise
    return np.rint(255 * np.clip(picture, 0, 1)).astype(np.uint8).reshape(height, width, 3)


def _truth(stage: Stage, seen: Seen) -> tuple[NDArray[np.int8], Floats, Floats]:
    """Labels [n], depths [n] and normals [n, 3] in camera axes."""
    by_box = np.array([*_SIDE_LABELS, *(box.label for box in stage.boxes)], np.int8)
    labels = by_box[seen.box]
    normals = seen.normal.T @ stage.camera.axes()
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    glass = labels == CLASSES.index("window")
    depths = np.where(glass, np.float32(0), seen.depth)
    return labels, depths, np.where(glass[:, None], np.float32(0), normals)
