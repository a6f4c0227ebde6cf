"""Finds the sets of the CLIP benchmark below one folder and reads them as pixels of one size.

A set lies in `DIR/<name>`, where the name is its key (`eurosat`), its name in checkpoint folders
(`EuroSAT`) or tanganke's (`stanford-cars`); what tensorflow-datasets prepared may keep the name
that it has there. Four forms are read, tried in this order: packs and class folders, parquet files
of the hub, prepared folders of tensorflow-datasets, and the layouts of the authors (clip_files.py,
clip_tables.py). Labels come out in the benchmark's order whatever the form.

Validation images are 10 % of the training images, at most 5,000, drawn with seed 0; only EuroSAT
brings its own. They are not the very images that public experts were not trained on: those were
drawn with PyTorch's generator.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.tasks import clip_labels
from experiments.tasks.clip_files import open_project, open_raw
from experiments.tasks.clip_rows import Form, Found, Rows
from experiments.tasks.clip_sets import ClipSet, clip_set
from experiments.tasks.clip_tables import open_parquet, open_prepared
from experiments.tasks.task import Split
from symerge_jax.cli.progress import say
from symerge_jax.data.image_cache import decode_all, files_key
from symerge_jax.errors import BadInput

# The most validation images (TALL-masks' code).
MOST_VALIDATION = 5000

_FORMS: tuple[Callable[[ClipSet, Path], Found | None], ...] = (
    open_project,
    open_parquet,
    open_prepared,
    open_raw,
)


class Reader(NamedTuple):
    """A set of the benchmark that was found.

    Attributes:
        set: its row of the table.
        form: in which form it lies there.
        folder: where.
        names: of the classes in label order, as the data gives them; None where it gives none.
        splits: before decoding; labels in the data's own order.
        order: the benchmark's label of each label of the data; None if they are the same.
    """

    set: ClipSet
    form: Form
    folder: Path
    names: tuple[str, ...] | None
    splits: dict[str, Rows]
    order: tuple[int, ...] | None

    def labels(self, split: str) -> np.ndarray:
        """Returns the labels of a split in the benchmark's order, int32 [n].

        Raises:
            BadInput: there is no such split, or a label is out of range.
        """
        labels = rows_of(self, split).labels()
        classes = len(self.names) if self.names is not None else self.set.classes
        outside = np.flatnonzero((labels < 0) | (labels >= classes))
        if outside.size:
            raise BadInput(
                f"{self.folder}: the label of {split} image {outside[0]} is {labels[outside[0]]}, "
                f"but {self.set.key} has {classes} classes (labels 0 to {classes - 1})"
            )
        labels = labels if self.order is None else np.asarray(self.order)[labels]
        return labels.astype(np.int32)


def find_set(
    data: str | Path,
    task: str,
    *,
    keep_order: bool = False,
    report: Callable[[str], object] = say,
) -> Reader:
    """Finds one set; images stay unread.

    Args:
        data: the folder with a folder per set.
        task: the set's key, or one of its other names.
        keep_order: leave the labels as the data numbers them, for heads that were trained so.
        report: receives a line on what was found, and warnings.

    Raises:
        BadInput: no set of that name, nothing readable there, or labels in an order that is not
            the benchmark's and cannot be put right.
    """
    row = clip_set(task)
    for place in places(Path(data), row):
        for form in _FORMS:
            found = form(row, place)
            if found is not None:
                return _reader(row, found, keep_order, report)
    names = dict.fromkeys((row.key, row.name, row.suffix))
    raise BadInput(
        f"{data}: no data of {row.key} found; looked into {', '.join(names)} for packs or class "
        "folders, parquet files, what tensorflow-datasets prepares, and the authors' files; "
        f"`python -m experiments.prepare vision --tasks {row.key} --data {data}` fetches them or "
        "says where they are"
    )


def read_split(
    reader: Reader,
    part: str,
    *,
    size: int,
    cache: Path,
    limit: int | None = None,
    workers: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> Split:
    """Reads one part of a set, decoded once and then found in the cache.

    Args:
        reader: what `find_set` returned.
        part: 'train' (without validation), 'validation', 'test', or another split of the data such
            as those of `clip_sets.CORRUPTIONS`.
        size: edge of the squares, in pixels.
        cache: root of the cache.
        limit: largest number of images, drawn with seed 0 (many sets are sorted by class).
        workers: threads that decode; one per core otherwise.
        progress: receives the number of images decoded.

    Returns:
        images uint8 [n, size, size, 3], mapped from the cache, and labels int32 [n]; both in the
        order of the data.

    Raises:
        BadInput: the part is missing or unreadable, or the cache is not writable.
    """
    split, chosen = part_rows(reader, part)
    if limit is not None and limit < len(chosen):
        chosen = np.sort(np.random.default_rng(0).permutation(chosen)[:limit])
    rows = reader.splits[split]
    labels = reader.labels(split)[chosen]
    root = reader.folder
    images = decode_all(
        rows.images(chosen),
        len(chosen),
        size=size,
        cache=cache,
        key={"files": files_key(rows.files, root=root), "split": split, "rows": chosen},
        workers=workers,
        progress=progress,
        report=say,
    )
    return Split(images, labels)


def part_rows(reader: Reader, part: str) -> tuple[str, np.ndarray]:
    """The split that a part is taken from, and its rows there, ascending int64 [n].

    Raises:
        BadInput: the data has no such part.
    """
    own = reader.set.key == "eurosat" and "validation" in reader.splits
    if part not in ("train", "validation") or own:
        return part, np.arange(rows_of(reader, part).count)
    count = rows_of(reader, "train").count
    held_out = np.zeros(count, bool)
    most = max(1, min(count // 10, MOST_VALIDATION))
    held_out[np.random.default_rng(0).permutation(count)[:most]] = True
    return "train", np.flatnonzero(held_out if part == "validation" else ~held_out)


def rows_of(reader: Reader, split: str) -> Rows:
    """Returns a split before decoding.

    Raises:
        BadInput: the data has no such split.
    """
    if split not in reader.splits:
        raise BadInput(
            f"{reader.folder}: {reader.set.key} has no split {split} there, only "
            f"{', '.join(sorted(reader.splits))}"
        )
    return reader.splits[split]


def differences(reader: Reader) -> list[str]:
    """Says how the data differs from the table in classes and images; nothing if it does not.

    Whoever uses a subset on purpose may print this as a warning.
    """
    row, found = reader.set, []

    def compare(what: str, have: int, accepted: tuple[int, ...]) -> None:
        if have not in accepted:
            expected = " or ".join(f"{count:,}" for count in accepted)
            found.append(f"{row.key}: expected {expected} {what}, found {have:,}")

    classes = len(reader.names) if reader.names else int(rows_of(reader, "test").labels().max()) + 1
    compare("classes", classes, (row.classes,))
    compare("test images", rows_of(reader, "test").count, row.test)
    if "train" in reader.splits:
        compare("training images", rows_of(reader, "train").count, (row.train,))
    return found


def places(data: Path, row: ClipSet) -> list[Path]:
    """The folders in which a set is looked for, those that exist, nearest name first."""
    names = [row.key, row.name, row.suffix]
    if row.prepared is not None:
        names.append(row.prepared.name.partition("/")[0])
    return [data / name for name in dict.fromkeys(names) if (data / name).is_dir()]


def _reader(
    row: ClipSet, found: Found, keep_order: bool, report: Callable[[str], object]
) -> Reader:
    form, folder, names, splits = found
    order = None if keep_order else clip_labels.order(row, names, folder, report=report)
    if order is not None and names is not None:
        names = tuple(names[order.index(label)] for label in range(len(names)))
    counts = ", ".join(f"{rows.count:,} {split}" for split, rows in splits.items())
    report(f"{row.key}: {folder} ({form}: {counts})")
    return Reader(row, form, folder, names, splits, order)
