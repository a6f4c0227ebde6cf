"""Reads the scenes of a task of dense prediction: images to adapt to, maps to score with.

The counterpart of `inputs` and `text_inputs`. Images are read without their maps
(`read_scene_images`), and a folder may hold pictures and nothing else. Several tasks may name the
same scenes, which are then read once.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from symerge_jax.data.decode import SUFFIXES, read_pixels
from symerge_jax.data.dense import Scenes, read_scene_images, read_scenes
from symerge_jax.data.dense_checks import CHECKS, IGNORE
from symerge_jax.data.dense_files import entries
from symerge_jax.errors import BadInput
from symerge_jax.stored_decoders import StoredDecoder

# Kind of task → which of a scene's maps it predicts.
MAPS = {"segmentation": "labels", "depth": "depths", "normal": "normals"}
_TEST = ("test", "val", "validation")


class SceneReader:
    """Reads scenes by their place, each place once."""

    def __init__(self, *, limit: int | None = None) -> None:
        """Reads nothing yet; with a `limit` only the first scenes are kept."""
        self._limit = limit
        self._images: dict[Path, np.ndarray] = {}
        self._maps: dict[Path, Scenes | None] = {}

    def images(self, path: Path) -> np.ndarray:
        """Returns uint8 [n, height, width, 3]; of one place the same array each time.

        Args:
            path: scenes as for `read_scene_images`, a folder with a split test or val, or a folder
                of pictures.

        Raises:
            BadInput: unreadable images, or of several sizes.
        """
        place = path.resolve()
        if place not in self._images:
            pictures = _pictures(path)
            found = _of_pictures(pictures) if pictures else _scene_images(path)
            self._images[place] = found[: self._limit]
        return self._images[place]

    def truth(self, path: Path, head: StoredDecoder, kind: str) -> np.ndarray | None:
        """Returns the maps of one kind, None where not one pixel of them is known.

        Args:
            path: as for `images`.
            head: decoder of the task.
            kind: "segmentation", "depth" or "normal".

        Raises:
            BadInput: unreadable maps, or labels that the decoder has no map for.
        """
        place = path.resolve()
        if place not in self._maps:
            self._maps[place] = None if _pictures(path) else _scenes(path, ())
        scenes = self._maps[place]
        if scenes is None:
            return None
        maps = getattr(scenes, MAPS[kind])[: self._limit]
        return _fitting(maps, head, kind, path) if known(maps, kind).any() else None


def read_labelled(
    path: Path,
    heads: Mapping[str, tuple[StoredDecoder, str]],
    *,
    whole: bool,
    limit: int | None = None,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Reads scenes to score decoders on.

    Args:
        path: as for `SceneReader.images`.
        heads: task → decoder and its kind.
        whole: whether every scene must have the maps of every task; otherwise tasks without a
            single known pixel are left out.
        limit: take only the first scenes.

    Returns:
        Images uint8 [n, height, width, 3], and task → maps [n, height, width, ...].

    Raises:
        BadInput: unreadable scenes, maps that are missing, or nothing to score at all.
    """
    need = {MAPS[kind] for _, kind in heads.values()} if whole else set()
    scenes = None if _pictures(path) else _scenes(path, need)
    found = {}
    for name, (head, kind) in heads.items() if scenes is not None else ():
        maps = getattr(scenes, MAPS[kind])[:limit]
        if known(maps, kind).any():
            found[name] = _fitting(maps, head, kind, path)
    if scenes is None or not found:
        raise BadInput(
            f"{path}: not one pixel of the scenes has {' or '.join(_wanted(heads))}, so there is "
            "nothing to score; add the maps"
        )
    return scenes.images[:limit], found


def known(maps: np.ndarray, kind: str) -> np.ndarray:
    """Returns which scenes have a pixel that counts, bool [n]."""
    counts = maps != (IGNORE if kind == "segmentation" else 0)
    return counts.reshape(len(counts), -1).any(axis=1)


def check_sizes(images: Mapping[str, np.ndarray]) -> None:
    """Looks whether the images of all tasks, by name, have one size.

    Raises:
        BadInput: two differ.
    """
    (first, reference), *others = images.items()
    for name, one in others:
        if one.shape[1:3] != reference.shape[1:3]:
            here, there = (" x ".join(map(str, x.shape[1:3])) for x in (one, reference))
            raise BadInput(
                f"the images of task {name} have {here} pixels, those of {first} {there}; bring "
                "them to one size"
            )


def _wanted(heads: Mapping[str, tuple[StoredDecoder, str]]) -> list[str]:
    words = {"segmentation": "a label", "depth": "a depth", "normal": "a normal"}
    return list(dict.fromkeys(words[kind] for _, kind in heads.values()))


def _fitting(maps: np.ndarray, head: StoredDecoder, kind: str, path: Path) -> np.ndarray:
    """Returns the maps; raises `BadInput` for labels beyond those of the decoder."""
    if kind == "segmentation" and maps.max() >= head.decoder.outputs:
        raise BadInput(
            f"{path}: has labels up to {maps.max()}, but {head.path} has {head.decoder.outputs} "
            "classes; the decoder belongs to other classes"
        )
    return maps


def _split(path: Path) -> str | None:
    """Returns "test" for a folder of splits, None for one of scenes."""
    for top in (path, path / "data", path / "default"):
        for name in _TEST:
            shards = [*top.glob(f"{name}.parquet"), *top.glob(f"{name}-*.parquet")]
            if shards or (top / name).is_dir():
                return "test"
    return None


def _scene_images(path: Path) -> np.ndarray:
    return read_scene_images(path, split="test" if _split(path) else None)


def _scenes(path: Path, need: set[str] | tuple[()]) -> Scenes:
    return read_scenes(path, split="test" if _split(path) else None, need=need)


def _pictures(path: Path) -> list[Path]:
    """Returns the pictures of a folder that holds nothing which says scenes."""
    if not path.is_dir() or _split(path) or (path / "image").is_dir():
        return []
    found = entries(path)
    if any(file.suffix.lower() in (".npz", ".parquet") for file in found):
        return []
    return [file for file in found if file.suffix.lower() in SUFFIXES and file.is_file()]


def _of_pictures(files: list[Path]) -> np.ndarray:
    images: list[np.ndarray] = []
    for file in files:
        pixels = read_pixels(file, str(file), size=1)
        if pixels.ndim == 2:
            pixels = np.repeat(pixels[..., None], 3, axis=-1)
        image = CHECKS["images"](pixels, str(file))
        if images and image.shape != images[0].shape:
            height, width = images[0].shape[:2]
            raise BadInput(
                f"{file}: expected {height} x {width} pixels as in {files[0].name}, found "
                f"{image.shape[0]} x {image.shape[1]}; resize the pictures"
            )
        images.append(image)
    return np.stack(images)
