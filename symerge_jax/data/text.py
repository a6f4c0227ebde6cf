"""Text tasks: GLUE's, and those of a person's own.

    DIR/<task>/{train,dev}.tsv        or .csv, .jsonl, .parquet; .txt for texts without labels
    DIR/columns.json                  optional: names of the columns of files without a header
    DIR/<task>/meta.json              optional: `classes`, the label order

The columns are GLUE's or the hub's (data/text_columns.py). GLUE's dev set of MNLI is
`dev_matched`; the hub's `validation` and `validation_matched`, and names of its single shards
(`train-00000-of-00001.parquet`), are read as well. Texts come out as RoBERTa's tokens.
"""

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from symerge_jax.data.meta import read_meta
from symerge_jax.data.roberta_tokenizer import RobertaTokenizer
from symerge_jax.data.text_cache import tokens_of
from symerge_jax.data.text_columns import (
    TextColumns,
    TextRules,
    find_columns,
    glue_name,
    names_without_header,
    rules_of,
    text_names,
)
from symerge_jax.data.text_files import FORMATS, Table, read_table
from symerge_jax.data.text_labels import read_labels
from symerge_jax.errors import BadInput

_TRAIN = ("train",)
_DEV = ("dev", "dev_matched", "validation", "validation_matched")

# The hub's name of a file that is one of several, or the only one.
_SHARD = re.compile(r"(?P<split>.+)-\d{5}-of-\d{5}")


class TextSplit(NamedTuple):
    """Tokens of texts with their labels."""

    tokens: np.ndarray  # int32 [n, length], padded at the end with 1
    labels: np.ndarray | None  # int32 [n], or float32 [n] to predict; None where not known
    classes: tuple[str, ...] | None = None  # in label order; None for numbers, and if not known


class TextTask(NamedTuple):
    """A task with its splits."""

    name: str  # of its folder
    columns: TextColumns  # of dev
    classes: tuple[str, ...] | None  # in label order; None for numbers, and if not known
    train: TextSplit | None  # without the rows of validation; None if not asked for
    validation: TextSplit | None  # a tenth of train
    dev: TextSplit
    metric: str | None  # a name in text_metrics.METRICS; None where nothing tells which


def list_text_tasks(folder: str | Path) -> tuple[str, ...]:
    """Names of the sub-folders that hold a text task, sorted; other sub-folders are ignored.

    A task has a dev file of a known type. Only names are read here.

    Raises:
        BadInput: the folder cannot be read.
    """
    return tuple(sub.name for sub in _folders(Path(folder)) if _split_files(sub, _DEV))


def read_text_task(
    folder: str | Path,
    name: str,
    tokenizer: RobertaTokenizer,
    *,
    max_length: int = 128,
    need_train: bool = True,
    cache: str | Path | None = None,
) -> TextTask:
    """Reads one task.

    Validation holds the rows that `np.random.RandomState(0).permutation(n)` puts last, those after
    the first ⌊0.9 n⌋, and train the others, as in the code that the published GLUE experts were
    made with (Yu et al., "Language Models are Super Mario", 2024, github.com/yule-BUAA/MergeLM,
    utils/glue_data_loader.py). Both keep the order of the file.

    Args:
        folder: where the tasks are.
        name: the task's sub-folder; those of GLUE in its own spelling (STS-B) or the hub's (stsb).
        tokenizer: encodes the texts.
        max_length: longer rows of tokens are cut to it.
        need_train: whether to read train; if not, `train` and `validation` are None.
        cache: folder to keep tokens in; None keeps none.

    Raises:
        BadInput: a file is missing, unreadable, or not what is described above.
    """
    task = _task_folder(Path(folder), name)
    rules = rules_of(task.name)
    paths = [_require_split(task, _DEV)]
    paths += [_require_split(task, _TRAIN)] if need_train else []
    tables, columns = zip(*(_read(path, rules) for path in paths), strict=True)
    _check_pairs(tables, columns)
    labels = read_labels(tables, columns, rules, read_meta(task / "meta.json").classes)
    splits = [
        TextSplit(
            tokens_of(table, column, tokenizer, max_length=max_length, cache=cache),
            values,
            labels.classes,
        )
        for table, column, values in zip(tables, columns, labels.values, strict=True)
    ]
    train, validation = _split_off(splits[1], paths[1]) if need_train else (None, None)
    name, classes = task.name, labels.classes
    return TextTask(name, columns[0], classes, train, validation, splits[0], labels.metric)


def count_dev_texts(folder: str | Path, name: str, *, need_train: bool = False) -> tuple[Path, int]:
    """Returns a task's dev file and how many examples it holds; nothing is encoded.

    Args:
        folder: where the tasks are.
        name: the task's sub-folder, as for `read_text_task`.
        need_train: whether there must be a train file too; it is not opened.

    Raises:
        BadInput: as `read_text_task`, as far as the dev file goes.
    """
    task = _task_folder(Path(folder), name)
    path = _require_split(task, _DEV)
    if need_train:
        _require_split(task, _TRAIN)
    table, _ = _read(path, rules_of(task.name))
    return path, len(table.places)


def read_texts(
    path: str | Path,
    tokenizer: RobertaTokenizer,
    *,
    name: str | None = None,
    classes: Sequence[str] | None = None,
    max_length: int = 128,
    cache: str | Path | None = None,
) -> TextSplit:
    """Reads one file of inputs, with labels or without.

    Args:
        path: the file.
        tokenizer: encodes the texts.
        name: the task whose columns the file has. Default: the name of its folder.
        classes: names in label order. Default: those of GLUE's task, meta.json beside the file, or
            what the labels tell.
        max_length: longer rows of tokens are cut to it.
        cache: folder to keep tokens in; None keeps none.

    Raises:
        BadInput: the file is missing, unreadable, or not what is described above.
    """
    path = Path(path)
    rules = rules_of(path.absolute().parent.name if name is None else name)
    table, columns = _read(path, rules)
    known = read_meta(path.parent / "meta.json").classes if classes is None else tuple(classes)
    labels = read_labels([table], [columns], rules, known)
    tokens = tokens_of(table, columns, tokenizer, max_length=max_length, cache=cache)
    return TextSplit(tokens, labels.values[0], labels.classes)


def _read(path: Path, rules: TextRules) -> tuple[Table, TextColumns]:
    table = read_table(
        path,
        names=names_without_header(path.absolute().parent, rules),
        header_has=text_names(rules),
        skip_broken=rules.broken_lines,
    )
    if path.suffix.lower() == ".txt":
        return table, _plain_columns(path, rules)
    return table, find_columns(rules, tuple(table.columns), path)


def _plain_columns(path: Path, rules: TextRules) -> TextColumns:
    if all(len(names) == 2 for names in rules.texts):
        raise BadInput(
            f"{path}: expected pairs of texts, found plain text with one a line; save the pairs as "
            f"tsv with the columns {' and '.join(rules.texts[0])}"
        )
    return TextColumns(("text",), None)


def _check_pairs(tables: Sequence[Table], columns: Sequence[TextColumns]) -> None:
    counts = [len(column.texts) for column in columns]
    if len(set(counts)) > 1:
        pair, single = tables[counts.index(2)].path, tables[counts.index(1)].path
        raise BadInput(
            f"{single}: has one text a row, but {pair.name} has two; give both files the same "
            "columns"
        )


def _split_off(train: TextSplit, path: Path) -> tuple[TextSplit, TextSplit]:
    """Train without its validation rows, and those rows."""
    n = len(train.tokens)
    if n < 2:
        raise BadInput(
            f"{path}: expected at least 2 rows, one of them for validation, found 1; add more"
        )
    chosen = np.zeros(n, bool)
    chosen[np.random.RandomState(0).permutation(n)[n * 9 // 10 :]] = True

    def rows(mask: np.ndarray) -> TextSplit:
        labels = None if train.labels is None else train.labels[mask]
        return TextSplit(train.tokens[mask], labels, train.classes)

    return rows(~chosen), rows(chosen)


# --- where things are ---------------------------------------------------------------------------


def _folders(folder: Path) -> list[Path]:
    try:
        return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    except OSError as error:
        raise BadInput(
            f"{folder}: cannot be read as a folder of tasks ({error.strerror or error}); check the "
            "path"
        ) from error


def _files(task: Path, splits: tuple[str, ...]) -> list[Path]:
    """Files named after one of the splits, of any type."""
    found = []
    for path in sorted(task.iterdir()):
        shard = _SHARD.fullmatch(path.stem)
        if (shard["split"] if shard else path.stem) in splits and path.is_file():
            found.append(path)
    return found


def _split_files(task: Path, splits: tuple[str, ...]) -> list[Path]:
    return [path for path in _files(task, splits) if path.suffix.lower() in FORMATS]


def _require_split(task: Path, splits: tuple[str, ...]) -> Path:
    match _split_files(task, splits):
        case [path]:
            return path
        case [first, second, *_]:
            raise BadInput(
                f"{task}: has both {first.name} and {second.name}; keep one of them, all rows in it"
            )
    others = _files(task, splits)
    found = f", only {others[0].name}, whose type is not known" if others else ""
    raise BadInput(
        f"{task}: has no file {' or '.join(splits[:2])} of type {', '.join(FORMATS)}{found}; add "
        "one"
    )


def _task_folder(folder: Path, name: str) -> Path:
    folders = _folders(folder)
    for sub in folders:
        if sub.name == name:
            return sub
    same = [sub for sub in folders if glue_name(name) and glue_name(sub.name) == glue_name(name)]
    if len(same) > 1:
        raise BadInput(
            f"{folder}: has both {same[0].name} and {same[1].name} for {name!r}; give one of them"
        )
    if same:
        return same[0]
    tasks = list_text_tasks(folder)
    near = difflib.get_close_matches(name, tasks, n=1)
    hint = f"did you mean {near[0]}" if near else "give one of those"
    if not tasks and _split_files(folder, _DEV):
        hint = f"{folder} itself is a task, so give the folder above it"
    raise BadInput(
        f"{folder}: has no task {name!r}, only {', '.join(tasks) or 'folders without texts'}; "
        f"{hint}"
    )
