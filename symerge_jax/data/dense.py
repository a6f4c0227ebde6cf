"""Scenes for dense prediction: images with maps of classes, depths and surface normals.

MTAN's folders of NYUv2, the hub's parquet files, npz scenes, or a folder of one's own; see
`dense_files` for how they lie on disk. A folder may hold splits, as folders or in the names of its
parquet files. With a cache, scenes are checked and converted once and then mapped into memory:
NYUv2's take 2.2 MB each, its 1,449 a good 3 GB.

To adapt needs images alone: `read_scene_images` opens nothing else.
"""

import logging
import shutil
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

import numpy as np

from symerge_jax.cache import digest
from symerge_jax.data.dense_checks import CHECKS, IGNORE
from symerge_jax.data.dense_files import (
    FOLDERS,
    Map,
    SceneFiles,
    entries,
    find_scenes,
    scenes_in,
)
from symerge_jax.data.image_cache import files_key
from symerge_jax.errors import BadInput
from symerge_jax.files import make_folder, writable_folder, write_atomically

FORMAT = 1  # part of the names in the cache
MAPS = ("labels", "depths", "normals")

_SPLITS = {"train": ("train",), "test": ("test", "val", "validation")}
_DTYPES = {"images": np.uint8, "labels": np.int8, "depths": np.float32, "normals": np.float32}
_LOG = logging.getLogger(__name__)


class Scenes(NamedTuple):
    """Scenes of one size.

    Attributes:
        images: uint8 [n, height, width, 3].
        labels: int8 [n, height, width], NYUv2's classes from 0 to 12; -1 does not count.
        depths: float32 [n, height, width], metres straight ahead; 0 does not count.
        normals: float32 [n, height, width, 3], of length 1; 0 does not count.
    """

    images: np.ndarray
    labels: np.ndarray
    depths: np.ndarray
    normals: np.ndarray


def read_scenes(
    path: str | Path,
    *,
    split: Literal["train", "test"] | None = None,
    need: Collection[str] = MAPS,
    size: tuple[int, int] | None = None,
    cache: str | Path | None = None,
    report: Callable[[str], object] = _LOG.warning,
) -> Scenes:
    """Reads images and maps.

    Args:
        path: a folder of scenes or of splits, an npz or a parquet file.
        split: which of the folder's splits; MTAN and the hub call the test split val. None if the
            path has none.
        need: which of `MAPS` every scene must have; pixels of others that are missing do not count.
        size: height and width to bring scenes to: images smoothly, maps by the nearest pixel. None
            keeps their size, which must then be one for all.
        cache: root of the cache; None reads everything into memory.
        report: receives one line when a damaged cache file is found and made again.

    Raises:
        BadInput: a file is missing, unreadable or damaged, lacks a map that is needed, or holds
            something else than `dense_checks` expects; maps of a scene differ in size.
    """
    files = find_split(Path(path), split)
    convert = _Converter(files, frozenset(need), size)
    if cache is None:
        return Scenes(**{kind: _gathered(files.count, convert(kind)) for kind in _DTYPES})
    return _through_cache(Path(cache), files, convert, report)


def read_scene_images(
    path: str | Path,
    *,
    split: Literal["train", "test"] | None = None,
    size: tuple[int, int] | None = None,
) -> np.ndarray:
    """Reads the images alone, as those for `read_scenes`; maps need not be there.

    Returns:
        uint8 [n, height, width, 3].

    Raises:
        BadInput: as for `read_scenes`.
    """
    files = find_split(Path(path), split)
    return _gathered(files.count, _Converter(files, frozenset(), size)("images"))


def find_split(path: Path, split: Literal["train", "test"] | None) -> SceneFiles:
    """A path's scenes, or those of its split.

    A split is looked for in the folder itself, and in `data` and `default` as in the hub's copies.
    """
    if split is None:
        return find_scenes(path)
    names = _SPLITS[split]
    tops = [top for top in (path, path / "data", path / "default") if top.is_dir()]
    for top in tops:
        there = entries(top)
        for name in names:
            if (top / name).is_dir():
                return find_scenes(top / name)
            # train.parquet, or train-00000-of-00008.parquet and its like
            shards = [p for p in there if p.suffix == ".parquet" and p.stem.split("-")[0] == name]
            if shards:
                return scenes_in(top, shards)
    there = ", ".join(p.name for p in (entries(path) if tops else ())[:10])
    raise BadInput(
        f"{path}: expected a folder {' or '.join(names)} (or parquet files of that name), found "
        f"{there or 'nothing'}; check the path."
    )


class _Converter:
    """Reads maps of one kind after the other: images first, for the others have their sizes."""

    def __init__(self, files: SceneFiles, need: frozenset[str], size: tuple[int, int] | None):
        assert need <= set(MAPS), need
        self.files, self.need, self.size = files, need, size
        self._sizes: list[tuple[int, int]] = []

    def __call__(self, kind: str) -> Iterator[np.ndarray]:
        if kind == "images":
            self._sizes.clear()
            return self._images()
        return self._maps(kind)

    def _images(self) -> Iterator[np.ndarray]:
        for found in self.files.maps("images"):
            assert found.raw is not None
            image = CHECKS["images"](found.raw, found.where)
            height, width = image.shape[:2]
            if self.size is None and self._sizes and self._sizes[0] != (height, width):
                first = self._sizes[0]
                raise BadInput(
                    f"{found.where}: expected {first[0]} x {first[1]} pixels as in the first scene"
                    f", found {height} x {width}; ask for one size, or resize the scenes."
                )
            self._sizes.append((height, width))
            yield image if self.size is None else _resized_image(image, self.size)

    def _maps(self, kind: str) -> Iterator[np.ndarray]:
        for found, image_size in zip(self.files.maps(kind), self._sizes, strict=True):
            if found.raw is None:
                if kind in self.need:
                    raise BadInput(
                        f"{found.where}: expected {FOLDERS[kind]} maps of the scenes, found none; "
                        "add them, or leave that task out."
                    )
                map_ = _unknown(kind, self.size or image_size)
            else:
                map_ = self._checked(kind, found, image_size)
            yield map_

    def _checked(self, kind: str, found: Map, image_size: tuple[int, int]) -> np.ndarray:
        assert found.raw is not None
        map_ = CHECKS[kind](found.raw, found.where)
        for what, array in (("a map", map_), ("`valid`", found.valid)):
            if array is not None and array.shape[:2] != image_size:
                shape = " x ".join(map(str, array.shape)) or "a single number"
                raise BadInput(
                    f"{found.where}: expected {what} of {image_size[0]} x {image_size[1]} pixels "
                    f"like its image, found {shape}; save both at one size."
                )
        if found.valid is not None:
            map_ = map_.copy()
            map_[~found.valid] = IGNORE if kind == "labels" else 0
        return map_ if self.size is None else _nearest(map_, self.size)


def _unknown(kind: str, size: tuple[int, int]) -> np.ndarray:
    shape = (*size, 3) if kind == "normals" else size
    return np.full(shape, IGNORE if kind == "labels" else 0, _DTYPES[kind])


def _resized_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if image.shape[:2] == size:
        return image
    from PIL import Image

    # PIL widens the filter where images become smaller, so that nothing is skipped.
    return np.asarray(Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BILINEAR))


def _nearest(map_: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(np.intp)
        for new, old in zip(size, map_.shape[:2], strict=True)
    )
    return map_[rows[:, None], columns]


def _gathered(count: int, maps: Iterator[np.ndarray]) -> np.ndarray:
    first = next(maps)
    whole = np.empty((count, *first.shape), first.dtype)
    whole[0] = first
    for i, each in enumerate(maps, start=1):
        whole[i] = each
    return whole


# --- the cache ----------------------------------------------------------------------------------


def _through_cache(
    cache: Path, files: SceneFiles, convert: _Converter, report: Callable[[str], object]
) -> Scenes:
    """Maps converted scenes into memory, read-only; converts them first if they are not there."""
    root = files.path if files.path.is_dir() else files.path.parent
    key = {
        "format": FORMAT,
        "files": files_key(files.files, root=root),
        "need": sorted(convert.need),
        "size": list(convert.size or ()),
    }
    folder = make_folder(cache / "scenes" / digest(key))
    paths = {kind: folder / f"{kind}.npy" for kind in _DTYPES}
    if all(path.exists() for path in paths.values()):
        try:
            return Scenes(**{kind: _open(path, files.count) for kind, path in paths.items()})
        except Exception as error:  # a damaged header can raise nearly anything
            report(f"{folder}: damaged cache files ({error}); making them again.")
    writable_folder(folder)
    for kind, path in paths.items():
        _write(path, files.count, convert(kind))
    return Scenes(**{kind: _open(path, files.count) for kind, path in paths.items()})


def _open(path: Path, count: int) -> np.ndarray:
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(array, np.ndarray) or array.ndim < 3:  # NumPy opens zip files too
        raise ValueError(f"{path.name} holds no maps")
    if len(array) != count or array.dtype != _DTYPES[path.stem]:
        raise ValueError(f"{path.name} holds {array.dtype} {array.shape}")
    return array


def _write(path: Path, count: int, maps: Iterator[np.ndarray]) -> None:
    first = next(maps)
    needed, free = count * first.nbytes, shutil.disk_usage(path.parent).free
    if needed > free:
        raise BadInput(
            f"{path.parent}: {count} scenes need {needed / 1e9:.1f} GB for their {path.stem}, but "
            f"{free / 1e9:.1f} GB are free there; free some, or choose another cache folder."
        )

    def write(file: BinaryIO) -> None:
        header = {
            "descr": np.lib.format.dtype_to_descr(first.dtype),
            "fortran_order": False,
            "shape": (count, *first.shape),
        }
        np.lib.format.write_array_header_1_0(file, header)
        file.write(np.ascontiguousarray(first).data)
        for each in maps:
            file.write(np.ascontiguousarray(each).data)

    write_atomically(path, write)
