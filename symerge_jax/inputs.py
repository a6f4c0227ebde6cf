"""Reads the images of a task for a head: where they lie, and labels that count the head's rows.

Shared by adaptation and evaluation, so that both give the same accuracy for the same images.
`text_inputs` is its counterpart for texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from symerge_jax.data.images import read_images
from symerge_jax.data.meta import read_meta
from symerge_jax.errors import BadInput
from symerge_jax.networks import AnyHead, outputs_of


def read_inputs(
    path: Path, head: AnyHead, *, size: int, limit: int | None = None
) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns images uint8 [n, size, size, 3] and, where they are known, labels int [n].

    Classes that the images name (class folders, or `classes` in meta.json) become rows of the head
    by name if the head knows all of them, else in their order, if there are as many.

    Args:
        path: a pack, a folder of images or of class folders, or a task's folder with its test
            split, as pack or folder.
        head: that the labels are for.
        size: edge of the images in pixels.
        limit: take only the first images.

    Raises:
        BadInput: unreadable images, or classes that are not the head's.
    """
    path = find_inputs(path)
    images, labels, classes = read_images(path, size=size, classes=_classes(path))
    if labels is not None:
        labels = rows_of(head, labels, classes, path)[:limit]
    return images[:limit], labels


def find_inputs(path: Path, *, splits: Sequence[str] = ("test",)) -> Path:
    """Returns the folder or pack itself, `path`.npz, or the first split of a task's folder."""
    if path.is_dir():
        for split in splits:
            pack, folder = path / f"{split}.npz", path / split
            if pack.is_file() or folder.is_dir():
                return pack if pack.is_file() else folder
        return path
    pack = path.with_name(path.name + ".npz")
    return pack if pack.is_file() and not path.exists() else path


def _classes(path: Path) -> tuple[str, ...] | None:
    """Returns the class names in label order, or None where the images do not tell them."""
    if stated := read_meta(path.parent / "meta.json").classes:
        return stated
    # Test images may lack a class that train has.
    splits = [path, path.parent / "train"] if path.name == "test" else [path]
    folders = [_class_folders(split) for split in splits]
    return tuple(sorted(set().union(*folders))) if folders[0] else None


def _class_folders(split: Path) -> set[str]:
    if not split.is_dir():
        return set()
    return {
        sub.name
        for sub in split.iterdir()
        if sub.is_dir() and not sub.name.startswith((".", "__MACOSX"))
    }


def rows_of(
    head: AnyHead, labels: np.ndarray, classes: tuple[str, ...] | None, where: Path
) -> np.ndarray:
    """Returns labels as rows of the head.

    Args:
        head: that the labels are for.
        labels: int [n].
        classes: their names in label order, if they have any.
        where: they come from.

    Raises:
        BadInput: the head has another number of classes, and not all of these by name.
    """
    count = outputs_of(head.head)
    if classes is not None and head.classes is not None and set(classes) <= set(head.classes):
        return np.array([head.classes.index(name) for name in classes], labels.dtype)[labels]
    if classes is not None and len(classes) != count:
        raise BadInput(
            f"{where}: has {len(classes)} classes, but {head.path} has {count}; the head belongs "
            "to other classes"
        )
    if labels.max(initial=-1) >= count:
        raise BadInput(
            f"{where}: has labels up to {labels.max()}, but {head.path} has {count} classes; the "
            "head belongs to other classes"
        )
    return labels
