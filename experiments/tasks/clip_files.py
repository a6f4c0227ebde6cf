"""Data sets as files of their own: npz packs, class folders, and the layouts of their authors.

    <set>/{train,test}.npz, <set>/{train,test}/<class>/*.png    packs and class folders
    GTSRB/Training or GTSRB/Final_Training/Images, GT-final_test.csv
    fer2013.csv                                                  emotion, pixels, Usage
    rendered-sst2/{train,test}/{negative,positive}               class folders one folder deeper
    *-images-idx3-ubyte[.gz], *-labels-idx1-ubyte[.gz]           MNIST and its relatives

EMNIST's images lie on their side in its files. They stay so, as torchvision and tensorflow-datasets
leave them: the experts were trained on them like that.
"""

from __future__ import annotations

import csv
import gzip
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from experiments.tasks.clip_rows import Found, Rows, reading
from experiments.tasks.clip_sets import ClipSet
from symerge_jax.data.decode import SUFFIXES
from symerge_jax.data.image_cache import Image
from symerge_jax.data.meta import read_meta
from symerge_jax.data.packs import holds_images, read_labels
from symerge_jax.errors import BadInput

# Goodfellow et al. 2013; `Usage` has two halves of the test images.
_FER2013_LABELS = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
_FER2013_SPLITS = {"Training": "train", "PublicTest": "test", "PrivateTest": "test"}

# Sets of MNIST's file format: the first words of their files, for train and test.
_IDX_FILES = {
    "mnist": ("train", "t10k"),
    "fashion_mnist": ("train", "t10k"),
    "kmnist": ("train", "t10k"),
    "emnist": ("emnist-digits-train", "emnist-digits-test"),
}


def open_project(row: ClipSet, folder: Path) -> Found | None:
    """Packs `{train,test}.npz` or class folders `{train,test}/<class>/`; None if there are none.

    Raises:
        BadInput: unreadable files, no labels, or a class folder that `classes` lacks.
    """
    if not _holds_split(folder, "test"):
        return None
    present = [split for split in ("train", "test") if _holds_split(folder, split)]
    folders = [folder / split for split in present if (folder / split).is_dir()]
    names = read_meta(folder / "meta.json").classes
    if names is None and folders:
        names = tuple(sub.name for sub in _class_folders(folders[0]))
    splits = {
        split: _class_rows(folder / split, names or ())
        if (folder / split).is_dir()
        else _pack_rows(folder / f"{split}.npz")
        for split in present
    }
    return Found("project", folder, names, splits)


def open_raw(row: ClipSet, folder: Path) -> Found | None:
    """The layouts of the data sets' authors; None if there is none of them.

    Raises:
        BadInput: unreadable files.
    """
    if row.key == "gtsrb":
        return _open_gtsrb(folder)
    if row.key == "fer2013":
        return _open_fer2013(folder)
    if row.key == "rendered_sst2":
        found = open_project(row, folder / "rendered-sst2")
        return None if found is None else found._replace(form="raw")
    return _open_idx(row, folder)


def file_rows(files: Sequence[Path], labels: Sequence[int]) -> Rows:
    """A split of one file per image."""

    def images(chosen: np.ndarray) -> Iterator[tuple[Image, str]]:
        for i in chosen:
            yield files[i], str(files[i])

    return Rows(len(files), lambda: np.asarray(labels, np.int64), images, tuple(files))


# --- packs and class folders --------------------------------------------------------------------


def _holds_split(folder: Path, split: str) -> bool:
    if holds_images(folder / f"{split}.npz"):
        return True
    return any(_images_in(sub) for sub in _class_folders(folder / split))


def _class_folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(sub for sub in folder.iterdir() if sub.is_dir() and sub.name[0] not in "._")


def _images_in(folder: Path) -> list[Path]:
    return sorted(
        file
        for file in folder.iterdir()
        if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")
    )


def _class_rows(folder: Path, names: tuple[str, ...]) -> Rows:
    files, labels = [], []
    for sub in _class_folders(folder):
        here = _images_in(sub)
        if here and sub.name not in names:
            raise BadInput(
                f"{sub}: is not one of the {len(names)} classes ({', '.join(names[:5])}, …); "
                "rename or remove the folder"
            )
        files += here
        labels += [names.index(sub.name)] * len(here) if here else []
    return file_rows(files, labels)


def _pack_rows(path: Path) -> Rows:
    labels = read_labels(path)
    if labels is None:
        raise BadInput(f"{path}: has no `labels`; the benchmark's tasks are scored with them")
    return Rows(len(labels), lambda: labels, partial(_pack_images, path, len(labels)), (path,))


def _pack_images(path: Path, count: int, chosen: np.ndarray) -> Iterator[tuple[Image, str]]:
    with reading(path), np.load(path, allow_pickle=False) as pack:
        if "images" in pack:
            images, offsets = pack["images"], None
            fits = images.ndim == 3 or (images.ndim == 4 and images.shape[-1] == 3)
        else:
            images, offsets = pack["jpeg"], pack["offsets"]
            fits = images.ndim == offsets.ndim == 1 and offsets.dtype.kind in "iu"
    rows = len(images) if offsets is None else len(offsets) - 1
    if not fits or images.dtype != np.uint8 or rows != count:
        raise BadInput(
            f"{path}: expected `images` uint8 [{count},H,W] or [{count},H,W,3], or `jpeg` uint8 "
            f"and `offsets` [{count + 1}], one image per label; save the pack again"
        )
    for i in chosen:
        image = images[i] if offsets is None else images[offsets[i] : offsets[i + 1]]
        yield image, f"{path}: row {i}"


# --- the layouts of their authors ---------------------------------------------------------------


def _open_gtsrb(folder: Path) -> Found | None:
    """The files of https://benchmark.ini.rub.de, or torchvision's copy of them."""
    splits = {}
    for base in (folder, folder / "GTSRB"):
        for train in (base / "Training", base / "Final_Training" / "Images"):
            if "train" not in splits and (subs := _class_folders(train)):
                numbered = [(file, int(sub.name)) for sub in subs for file in _images_in(sub)]
                splits["train"] = file_rows(*zip(*numbered, strict=True))
        images = base / "Final_Test" / "Images"
        places = (folder, base, images, images.parent)
        lists = [place / "GT-final_test.csv" for place in places]
        if images.is_dir() and (found := [path for path in lists if path.is_file()]):
            splits["test"] = _listed_rows(images, found[0])
    return Found("raw", folder, None, splits) if "test" in splits else None


def _listed_rows(folder: Path, table: Path) -> Rows:
    with reading(table), open(table, encoding="utf-8", newline="") as file:
        listed = [
            (folder / line["Filename"], int(line["ClassId"]))
            for line in csv.DictReader(file, delimiter=";", skipinitialspace=True)
        ]
        return file_rows(*zip(*listed, strict=True))


def _open_fer2013(folder: Path) -> Found | None:
    table = next((path for path in folder.glob("**/fer2013.csv")), None)
    if table is None:
        return None
    labels: dict[str, list[int]] = {"train": [], "test": []}
    with reading(table):
        for split, label, _ in _fer2013_lines(table):
            labels[split].append(label)
    splits = {
        split: Rows(
            len(found),
            partial(np.asarray, found, np.int64),
            partial(_fer2013_images, table, split),
            (table,),
        )
        for split, found in labels.items()
        if found
    }
    return Found("raw", folder, _FER2013_LABELS, splits)


def _fer2013_lines(table: Path) -> Iterator[tuple[str, int, str]]:
    with open(table, encoding="utf-8", newline="") as file:
        for line in csv.DictReader(file):
            yield _FER2013_SPLITS[line["Usage"]], int(line["emotion"]), line["pixels"]


def _fer2013_images(table: Path, wanted: str, chosen: np.ndarray) -> Iterator[tuple[Image, str]]:
    rows, i = set(chosen.tolist()), -1
    with reading(table):
        for split, _, pixels in _fer2013_lines(table):
            i += split == wanted
            if split == wanted and i in rows:
                image = np.array(pixels.split(), np.uint8).reshape(48, 48)
                yield image, f"{table}: {wanted} image {i}"


def _open_idx(row: ClipSet, folder: Path) -> Found | None:
    """MNIST's file format, see http://yann.lecun.com/exdb/mnist."""
    splits = {}
    for split, first in zip(("train", "test"), _IDX_FILES.get(row.key, ()), strict=False):
        images = _idx_file(row, folder, f"{first}-images-idx3-ubyte")
        labels = _idx_file(row, folder, f"{first}-labels-idx1-ubyte")
        if images is not None and labels is not None:
            found = _read_idx(labels)
            splits[split] = Rows(
                len(found),
                partial(found.astype, np.int64),
                partial(_idx_images, images),
                (images, labels),
            )
    return Found("raw", folder, None, splits) if "test" in splits else None


def _idx_file(row: ClipSet, folder: Path, name: str) -> Path | None:
    for place in (folder, folder / "raw", folder / row.name / "raw", folder / "gzip"):
        for path in (place / name, place / f"{name}.gz"):
            if path.is_file():
                return path
    return None


def _read_idx(path: Path) -> np.ndarray:
    """Unsigned bytes: two zeros, 8, the number of axes, each axis in four bytes, the content."""
    with reading(path):
        data = path.read_bytes()
        data = gzip.decompress(data) if path.suffix == ".gz" else data
        axes = data[3]
        if data[:3] != b"\0\0\x08" or not axes:
            raise BadInput(f"{path}: is not an idx file of bytes; copy the data again")
        shape = np.frombuffer(data, ">i4", axes, offset=4)
        return np.frombuffer(data, np.uint8, offset=4 + 4 * axes).reshape(shape)


def _idx_images(path: Path, chosen: np.ndarray) -> Iterator[tuple[Image, str]]:
    images = _read_idx(path)
    for i in chosen:
        yield images[i], f"{path}: image {i}"
