"""Data sets as tables of encoded images: the hub's parquet files and tensorflow-datasets' records.

Both hold the bytes of an image file and a class number per row. They are read piece by piece, and
decoded by PIL like any other image. Neither needs the network, nor TensorFlow.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from experiments.tasks.clip_rows import Found, Rows, reading
from experiments.tasks.clip_sets import ClipSet, Hub
from symerge_jax.data.image_cache import Image
from symerge_jax.errors import BadInput

# Other names of the two columns, tried in this order.
_IMAGE_COLUMNS = ("image", "img", "img_bytes", "jpg", "png")
_LABEL_COLUMNS = ("label", "labels", "fine_label", "cls")

# `test-00000-of-00002.parquet`, also with a hash at the end; the hub's converter writes
# `test/0000.parquet`.
_SHARD = re.compile(r"(?P<split>[\w-]+?)-\d{5}-of-\d{5}.*")

# `emnist-test.array_record-00000-of-00001`
_RECORDS = re.compile(r"\.(array_record|parquet)-\d+-of-\d+$")

_BATCH = 64


# --- parquet ------------------------------------------------------------------------------------


def open_parquet(row: ClipSet, folder: Path) -> Found | None:
    """A snapshot of a data set repository of the hub; None if no parquet file of a split is there.

    Raises:
        BadInput: unreadable files, a column is missing, or several sets lie in the folder.
    """
    hub = row.hub or Hub("")
    shards = _shards(folder, hub.config)
    if hub.test not in shards:
        return None
    renamed = {hub.train: "train", hub.test: "test"}
    splits = {renamed.get(name, name): files for name, files in shards.items()}
    first = splits["test"][0]
    with reading(first):
        image, label = _columns(first, hub)
        names = _names(first, label) or _names_in_card(folder / "README.md", hub.config, label)
    return Found(
        "parquet",
        folder,
        names,
        {name: _parquet_rows(files, image, label) for name, files in splits.items()},
    )


def _shards(folder: Path, config: str | None) -> dict[str, list[Path]]:
    """Split → its files, of one configuration."""
    files = [
        file
        for file in sorted(folder.rglob("*.parquet"))
        if not any(part.startswith(".") for part in file.relative_to(folder).parts)
    ]
    inside = [file for file in files if config in file.relative_to(folder).parts]
    shards: dict[str, list[Path]] = {}
    for file in inside or files:
        shards.setdefault(split_of(file), []).append(file)
    for split, found in shards.items():
        parents = sorted({str(file.parent) for file in found})
        if len(parents) > 1:
            raise BadInput(
                f"{folder}: the split {split} lies in several folders ({', '.join(parents)}); keep "
                "the one of this data set"
            )
    return shards


def split_of(file: PurePath) -> str:
    """The split that a parquet file holds, by its name or that of its folder."""
    match = _SHARD.fullmatch(file.stem)
    if match:
        return match["split"]
    return file.parent.name if file.stem.isdecimal() else file.stem


def _columns(file: Path, hub: Hub) -> tuple[str, str]:
    import pyarrow.parquet as pq

    present = pq.read_schema(file).names
    found = []
    for what, known in (
        ("images", (hub.image, *_IMAGE_COLUMNS)),
        ("labels", (hub.label, *_LABEL_COLUMNS)),
    ):
        column = next((name for name in known if name in present), None)
        if column is None:
            raise BadInput(
                f"{file}: expected a column of {what} ({', '.join(dict.fromkeys(known))}), found "
                f"{', '.join(present)}; use the copy of the data set that is in the table"
            )
        found.append(column)
    return found[0], found[1]


def _names(file: Path, label: str) -> tuple[str, ...] | None:
    """Class names from the features that the hub's `datasets` library leaves in the schema."""
    import pyarrow.parquet as pq

    metadata = pq.read_schema(file).metadata or {}
    features = json.loads(metadata.get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    names = features.get(label, {}).get("names")
    return tuple(map(str, names)) if names else None


def _names_in_card(card: Path, config: str | None, label: str) -> tuple[str, ...] | None:
    """Class names from the YAML head of README.md."""
    if not card.is_file():
        return None
    import yaml

    parts = card.read_text(encoding="utf-8").split("---\n")
    head = yaml.safe_load(parts[1]) if len(parts) > 2 else None
    infos = (head or {}).get("dataset_info") or []
    for info in infos if isinstance(infos, list) else [infos]:
        if config is not None and info.get("config_name", config) != config:
            continue
        for feature in info.get("features", []):
            kind = feature.get("dtype")
            if feature.get("name") == label and isinstance(kind, dict) and "class_label" in kind:
                names = kind["class_label"]["names"]  # number, as text → name
                return tuple(str(names[key]) for key in sorted(names, key=int))
    return None


def _parquet_rows(files: Sequence[Path], image: str, label: str) -> Rows:
    import pyarrow.parquet as pq

    counts = []
    for file in files:
        with reading(file):
            counts.append(pq.read_metadata(file).num_rows)

    def labels() -> np.ndarray:
        found = []
        for file in files:
            with reading(file):
                column = pq.read_table(file, columns=[label]).column(label)
                found.append(np.asarray(column.to_numpy(), np.int64))
        return np.concatenate(found)

    def images(chosen: np.ndarray) -> Iterator[tuple[Image, str]]:
        start = 0
        for file, count in zip(files, counts, strict=True):
            here = chosen[(chosen >= start) & (chosen < start + count)] - start
            yield from _parquet_images(file, image, here)
            start += count

    return Rows(sum(counts), labels, images, tuple(files))


def _parquet_images(file: Path, column: str, chosen: np.ndarray) -> Iterator[tuple[Image, str]]:
    """The chosen rows, ascending; groups of rows without one are passed over."""
    import pyarrow.parquet as pq

    with reading(file), pq.ParquetFile(file) as table:
        start = 0
        for group in range(table.num_row_groups):
            stop = start + table.metadata.row_group(group).num_rows
            wanted = set(chosen[(chosen >= start) & (chosen < stop)].tolist())
            if wanted:
                batches = table.iter_batches(_BATCH, row_groups=[group], columns=[column])
                for i, value in enumerate((v for b in batches for v in b.column(0)), start):
                    if i in wanted:
                        yield _bytes(file, i, value), f"{file}: row {i}"
            start = stop


def _bytes(file: Path, row: int, value: Any) -> np.ndarray:
    """The image file in a cell: a struct {bytes, path}, or the bytes themselves."""
    cell = value.as_py()
    content = cell.get("bytes") if isinstance(cell, dict) else cell
    if not isinstance(content, bytes) or not content:
        raise BadInput(f"{file}: row {row} holds no image, only {cell}; copy the data again")
    return np.frombuffer(content, np.uint8)


# --- tensorflow-datasets ------------------------------------------------------------------------


def open_prepared(row: ClipSet, folder: Path) -> Found | None:
    """A folder that tensorflow-datasets prepared with `file_format="array_record"`; or None.

    Raises:
        BadInput: it was prepared in another file format, or is unreadable.
    """
    if row.prepared is None or not folder.is_dir():
        return None
    config = row.prepared.name.partition("/")[2]
    builds = [
        info.parent
        for info in sorted(folder.rglob("dataset_info.json"))
        if (info.parent / "features.json").is_file() and (not config or config in info.parent.parts)
    ]
    if not builds:
        return None
    logging.getLogger("absl").setLevel(logging.ERROR)  # it advertises OpenCV, which is not used
    import tensorflow_datasets as tfds

    build = builds[-1]  # the newest version
    with reading(build):
        builder = tfds.builder_from_directory(str(build))
        features: Any = builder.info.features
        present = set(builder.info.splits)
        splits = {
            name: _prepared_rows(builder, build, rule)
            for name, rule in (("train", row.prepared.train), ("test", row.prepared.test))
            if set(rule.split("+")) <= present
        }
    names = getattr(features["label"], "names", None)
    return Found("tfds", build, tuple(names) if names else None, splits)


def _prepared_rows(builder: Any, build: Path, split: str) -> Rows:
    import tensorflow_datasets as tfds

    if builder.info.file_format.value not in ("array_record", "parquet"):
        raise BadInput(
            f"{build}: was prepared as {builder.info.file_format.value}, which needs TensorFlow to "
            'be read; prepare it again with tfds.builder(..., file_format="array_record")'
        )
    source = builder.as_data_source(split=split, decoders={"image": tfds.decode.SkipDecoding()})
    files = tuple(sorted(file for file in build.iterdir() if _RECORDS.search(file.name)))

    def labels() -> np.ndarray:
        with reading(build):
            return np.array([int(source[i]["label"]) for i in range(len(source))], np.int64)

    return Rows(len(source), labels, partial(_prepared_images, source, build, split), files)


def _prepared_images(
    source: Any, build: Path, split: str, chosen: np.ndarray
) -> Iterator[tuple[Image, str]]:
    for i in chosen.tolist():
        with reading(build):
            content = np.frombuffer(source[i]["image"], np.uint8)
        yield content, f"{build}: {split} row {i}"
