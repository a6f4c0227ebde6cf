"""Image tasks of a person's own, as npz packs or folders of image files.

    DIR/<task>/{train,test}.npz               `images` (or `jpeg` and `offsets`), `labels` optional
    DIR/<task>/{train,test}/<class>/*.png     class folders, numbered in sorted order
    DIR/<task>/{train,test}/*.png             no class folders: unlabelled
    DIR/<task>/meta.json                      optional: `classes`, `clip_classes`, `templates`

`classes` in meta.json sets the label order, also for class folders. Images come out square by
CLIP's rule (data/preprocess.py). Files whose name starts with a dot and files of other kinds are
passed over.
"""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from symerge_jax.data.decode import SUFFIXES, decode_images
from symerge_jax.data.meta import read_meta
from symerge_jax.data.packs import holds_images, read_labels, read_pack, read_rows
from symerge_jax.errors import BadInput

# Of the rows of train, one in ten (rounded down, at least one) is for validation.
_VALIDATION_SHARE = 10


class ImageSplit(NamedTuple):
    """Images of one size with their labels."""

    images: np.ndarray  # uint8 [n, height, width, 3]
    labels: np.ndarray | None  # int32 [n], from 0; None where they are not known
    classes: tuple[str, ...] | None  # in label order; None where they are not known


class ImageTask(NamedTuple):
    """A task with its splits."""

    name: str
    train: ImageSplit | None  # without the rows of validation; None if not asked for
    validation: ImageSplit | None  # a tenth of train, drawn with seed 0
    test: ImageSplit
    classes: tuple[str, ...] | None  # in label order
    clip_classes: tuple[tuple[str, ...], ...] | None  # names for prompts: synonyms of each class
    templates: tuple[str, ...] | None  # prompts with {} for the name


def find_tasks(folder: str | Path) -> tuple[str, ...]:
    """Names of the sub-folders that hold an image task, sorted; other sub-folders are ignored.

    A task has images in `test.npz` or below `test/`. Only the file lists are read here.

    Raises:
        BadInput: the folder does not exist.
    """
    folder = Path(folder)
    return tuple(sub.name for sub in _folders(folder) if _is_task(sub))


def read_task(folder: str | Path, name: str, *, size: int, need_train: bool = True) -> ImageTask:
    """Reads one task.

    Validation holds the rows that `np.random.default_rng(0).permutation(n)` puts first, n // 10 of
    them and at least one; train holds the others. Both keep the order of the file. Without
    `classes` in meta.json, packs name their classes "0", "1", … up to the largest label of either
    split, and folders by the class folders of train (of test, if there is no train).

    Args:
        folder: where the tasks are.
        name: the task's sub-folder.
        size: edge of the squares the images are made into, in pixels.
        need_train: whether to read train; if not, `train` and `validation` are None.

    Raises:
        BadInput: a file or folder is missing, unreadable, or not what is described above.
    """
    task = _task_folder(Path(folder), name)
    meta = read_meta(task / "meta.json")
    train_path, test_path = _split_path(task, "train"), _split_path(task, "test")
    if test_path is None or (need_train and train_path is None):
        absent = "test" if test_path is None else "train"
        raise BadInput(f"{task}: has neither {absent}.npz nor a folder {absent}; add one of them.")
    _check_class_folders(train_path, test_path)
    classes = meta.classes or _find_classes(train_path, test_path)
    if classes and meta.clip_classes and len(classes) != len(meta.clip_classes):
        raise BadInput(
            f"{task / 'meta.json'}: {len(meta.clip_classes)} `clip_classes`, but the images have "
            f"{len(classes)} classes; give one entry for each class, in label order."
        )
    test = read_images(test_path, size=size, classes=classes)
    train = validation = None
    if need_train and train_path is not None:
        train, validation = _split_off(read_images(train_path, size=size, classes=classes))
    return ImageTask(name, train, validation, test, classes, meta.clip_classes, meta.templates)


def read_images(path: str | Path, *, size: int, classes: Sequence[str] | None = None) -> ImageSplit:
    """Reads one npz pack, one folder of class folders, or one folder of images.

    Args:
        path: the file or folder.
        size: edge of the squares the images are made into, in pixels.
        classes: names in label order. Default: sorted class folders, none for a pack.

    Returns:
        The images, in the order of the pack, or sorted by class folder and file name. `labels` is
        None for a pack without labels and for a folder without class folders.

    Raises:
        BadInput: the path is missing, unreadable, or not what is described above.
    """
    path = Path(path)
    classes = None if classes is None else tuple(classes)
    if path.is_file():
        images, labels = read_pack(path, size=size)
    elif class_folders := _class_folders(path):
        folder_names = tuple(sub.name for sub in class_folders)
        classes = folder_names if classes is None else classes
        images, labels = _read_class_folders(path, class_folders, classes, size)
    else:
        images, labels = _read_files(_require_files(path), size), None
    if len(images) < 2:
        raise BadInput(f"{path}: expected at least 2 images, found {len(images)}; add more.")
    if labels is not None and classes is not None:
        _check_labels(path, labels, classes)
    return ImageSplit(images, labels, classes)


def draw_images(path: str | Path, count: int, *, size: int, seed: int = 0) -> np.ndarray:
    """Reads images drawn at random, without a look at labels.

    Args:
        path: as for `read_images`.
        count: how many; all of them where there are fewer.
        size: edge of the squares, in pixels.
        seed: of the draw.

    Returns:
        uint8 [n, size, size, 3], in the order of `read_images`.

    Raises:
        BadInput: as for `read_images`; no image at all.
    """

    def choose(total: int) -> np.ndarray:
        return np.sort(np.random.default_rng(seed).permutation(total)[:count])

    path = Path(path)
    if path.is_file():
        images = read_rows(path, choose, size=size)
    else:
        folders = _class_folders(path) or [path]
        files = [file for folder in folders for file in _require_files(folder)]
        images = _read_files([files[row] for row in choose(len(files))], size)
    if not len(images):
        raise BadInput(f"{path}: expected at least one image, found none; add some.")
    return images


def _split_off(train: ImageSplit) -> tuple[ImageSplit, ImageSplit]:
    """Train without its validation rows, and those rows."""
    n = len(train.images)
    chosen = np.zeros(n, bool)
    chosen[np.random.default_rng(0).permutation(n)[: max(1, n // _VALIDATION_SHARE)]] = True

    def rows(mask: np.ndarray) -> ImageSplit:
        labels = None if train.labels is None else train.labels[mask]
        return ImageSplit(train.images[mask], labels, train.classes)

    return rows(~chosen), rows(chosen)


# --- where things are ---------------------------------------------------------------------------


def _is_task(folder: Path) -> bool:
    if holds_images(folder / "test.npz"):
        return True
    try:
        test = folder / "test"
        return test.is_dir() and any(_files(sub) for sub in (test, *_folders(test)))
    except BadInput:
        return False


def _task_folder(folder: Path, name: str) -> Path:
    if name not in (names := [sub.name for sub in _folders(folder)]):
        tasks = find_tasks(folder)
        near = difflib.get_close_matches(name, tasks or names, n=1)
        if near:
            hint = f"did you mean {near[0]}"
        elif _is_task(folder):
            hint = f"{folder} itself is a task, so give the folder above it"
        else:
            hint = "give one of those"
        raise BadInput(
            f"{folder}: has no task {name!r}, only {', '.join(tasks) or 'folders without images'}; "
            f"{hint}."
        )
    return folder / name


def _split_path(task: Path, split: str) -> Path | None:
    pack, folder = task / f"{split}.npz", task / split
    if pack.exists() and folder.is_dir():
        raise BadInput(f"{task}: has both {split}.npz and a folder {split}; keep one of them.")
    if pack.exists():
        return pack
    return folder if folder.is_dir() else None


def _entries(folder: Path) -> list[Path]:
    """What the folder holds, sorted by name, without hidden entries."""
    try:
        return sorted(p for p in folder.iterdir() if not p.name.startswith((".", "__MACOSX")))
    except FileNotFoundError as error:
        raise BadInput(_missing(folder)) from error
    except NotADirectoryError as error:
        raise BadInput(f"{folder}: expected a folder, found a file; give a folder.") from error
    except OSError as error:
        raise BadInput(
            f"{folder}: cannot be read ({error.strerror}); change its permissions."
        ) from error


def _missing(path: Path) -> str:
    """The sentence for a path that does not exist: what there is instead, nearest name first."""
    above = next((p for p in path.parents if p.is_dir()), Path())
    names = [p.name for p in _entries(above) if p.is_dir() or p.suffix == ".npz"]
    missing = path.relative_to(above).parts[0] if above in path.parents else path.name
    near = difflib.get_close_matches(missing, names, n=1)
    hint = f"did you mean {above / near[0]}" if near else "check the path"
    shown = ", ".join(names[:10]) + (", …" if len(names) > 10 else "")
    return f"{path}: does not exist; {above.resolve()} holds {shown or 'no folder'}; {hint}."


def _folders(folder: Path) -> list[Path]:
    return [p for p in _entries(folder) if p.is_dir()]


def _files(folder: Path) -> list[Path]:
    return [p for p in _entries(folder) if p.suffix.lower() in SUFFIXES and not p.is_dir()]


def _class_folders(split: Path) -> list[Path]:
    """The class folders of a split; none if the images lie in the split's folder itself."""
    folders = _folders(split)
    if folders and (files := _files(split)):
        raise BadInput(
            f"{split}: expected class folders or images, found both ({folders[0].name} and "
            f"{files[0].name}); move the images into class folders, or all into one folder."
        )
    return folders


def _require_files(folder: Path) -> list[Path]:
    files = _files(folder)
    if not files:
        raise BadInput(
            f"{folder}: expected images ({' '.join(SUFFIXES)}), found none; add some or remove the "
            "folder."
        )
    return files


# --- labels and classes -------------------------------------------------------------------------


def _check_class_folders(train: Path | None, test: Path) -> None:
    if train is None or train.is_file() or test.is_file():
        return
    known = [sub.name for sub in _class_folders(train)]
    for sub in _class_folders(test) if known else ():
        if sub.name not in known:
            raise BadInput(
                f"{sub}: is a class folder that {train} lacks; add the class there, or remove it "
                "here."
            )


def _find_classes(train: Path | None, test: Path) -> tuple[str, ...] | None:
    splits = [split for split in (train, test) if split is not None]
    for split in splits:
        if split.is_dir() and (folders := _class_folders(split)):
            return tuple(sub.name for sub in folders)
    labels = [read_labels(split) for split in splits if split.is_file()]
    largest = max((found.max() for found in labels if found is not None and found.size), default=-1)
    return tuple(str(i) for i in range(largest + 1)) or None


def _read_class_folders(
    split: Path, folders: list[Path], classes: tuple[str, ...], size: int
) -> tuple[np.ndarray, np.ndarray]:
    files, labels = [], []
    for folder in folders:
        if folder.name not in classes:
            raise BadInput(
                f"{folder}: is not one of the {len(classes)} classes "
                f"({', '.join(classes[:5])}{', …' if len(classes) > 5 else ''}); rename or remove "
                "the folder, or correct `classes` in meta.json."
            )
        here = _require_files(folder)
        files += here
        labels += [classes.index(folder.name)] * len(here)
    return _read_files(files, size), np.array(labels, np.int32)


def _read_files(files: list[Path], size: int) -> np.ndarray:
    return decode_images(files, [str(file) for file in files], size=size)


def _check_labels(path: Path, labels: np.ndarray, classes: tuple[str, ...]) -> None:
    outside = np.flatnonzero(labels >= len(classes))
    if outside.size:
        raise BadInput(
            f"{path}: the label of row {outside[0]} is {labels[outside[0]]}, but there are "
            f"{len(classes)} classes (labels 0 to {len(classes) - 1}); correct the label, or "
            "`classes` in meta.json."
        )
