"""Labels of text tasks: classes by name or number, or numbers to predict."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from symerge_jax.data.text_columns import TextColumns, TextRules
from symerge_jax.data.text_files import Table
from symerge_jax.errors import BadInput

REGRESSION_METRIC = "pearson_spearman"
CLASS_METRIC = "accuracy"

# What the hub's files have in place of each label that is kept secret.
_HIDDEN = "-1"

# A task of one's own with numbered classes has no more of them than this, or than rows.
_MOST_CLASSES = 1000


class Labels(NamedTuple):
    """The labels of some files of one task."""

    values: tuple[np.ndarray | None, ...]  # int32 or float32 [n] for each file; None without
    classes: tuple[str, ...] | None  # in label order; None for numbers and without labels
    metric: str | None  # None without labels


def read_labels(
    tables: Sequence[Table],
    columns: Sequence[TextColumns],
    rules: TextRules,
    classes: tuple[str, ...] | None = None,
) -> Labels:
    """Reads the labels of a task's files together, for they share their classes.

    A label is the name of a class or its number, from 0. Where neither `rules` nor `classes` say
    what the classes are, the column `score`, or labels that are numbers but not all whole ones,
    are numbers to predict; whole numbers name the classes "0" to the largest; and texts are
    classes in sorted order. Labels that are all -1, as where the hub hides them, are none.

    Args:
        tables: the files.
        columns: of each.
        rules: of the task.
        classes: in label order, if the person gave them.

    Raises:
        BadInput: one file has labels and another none, a class is not among the classes, or a
            number to predict is no finite number.
    """
    found = [_values(table, column) for table, column in zip(tables, columns, strict=True)]
    if any(values is None for values in found):
        _check_all_absent(tables, found)
        return Labels((None,) * len(tables), classes or rules.classes, rules.metric)
    classes = classes or rules.classes
    everything = [value for values in found for value in values or ()]
    scores = any(column.label == "score" for column in columns)
    metric = rules.metric
    if metric is None:
        classes = classes or (None if scores else _own_classes(everything))
        metric = REGRESSION_METRIC if classes is None else CLASS_METRIC
    read = _numbers if classes is None else _class_numbers
    values = tuple(
        read(table, values or [], classes) for table, values in zip(tables, found, strict=True)
    )
    return Labels(values, classes, metric)


def _values(table: Table, columns: TextColumns) -> list[Any] | None:
    """Each row's label as it stands in the file, texts without space around; None without."""
    if columns.label is None:
        return None
    values = [v.strip() if isinstance(v, str) else v for v in table.columns[columns.label]]
    for row, value in enumerate(values):
        if value is None or value == "":
            raise BadInput(
                f"{table.place(row)} has no {columns.label}; add it, or remove the whole column"
            )
        if not isinstance(value, str | int | float):
            raise BadInput(
                f"{table.place(row)}: expected a text or a number as {columns.label}, found "
                f"{value!r}; correct it"
            )
    return None if all(str(value) == _HIDDEN for value in values) else values


def _check_all_absent(tables: Sequence[Table], found: Sequence[list[Any] | None]) -> None:
    with_labels = [t for t, values in zip(tables, found, strict=True) if values is not None]
    without = [t for t, values in zip(tables, found, strict=True) if values is None]
    if with_labels:
        raise BadInput(
            f"{without[0].path}: has no labels, but {with_labels[0].path.name} has; give both "
            "files a column of labels, or neither"
        )


def _own_classes(values: list[Any]) -> tuple[str, ...] | None:
    whole = [_whole(value) for value in values]
    if all(number is not None for number in whole):
        largest = max(number for number in whole if number is not None)
        if largest < max(_MOST_CLASSES, len(values)):
            return tuple(str(i) for i in range(max(largest, 0) + 1))
    elif all(_number(value) is not None for value in values):
        return None
    return tuple(sorted({str(value) for value in values}))


def _class_numbers(table: Table, values: list[Any], classes: tuple[str, ...] | None) -> np.ndarray:
    assert classes is not None
    numbers = {name: i for i, name in enumerate(classes)}
    labels = np.empty(len(values), np.int32)
    for row, value in enumerate(values):
        number = numbers.get(str(value))
        number = _whole(value) if number is None else number
        if number is None or not 0 <= number < len(classes):
            shown = ", ".join(classes[:5]) + (", …" if len(classes) > 5 else "")
            raise BadInput(
                f"{table.place(row)}: the label {value!r} is outside the {len(classes)} classes "
                f"({shown}; or 0 to {len(classes) - 1}); correct the label, or name the classes in "
                "meta.json"
            )
        labels[row] = number
    return labels


def _numbers(table: Table, values: list[Any], classes: tuple[str, ...] | None) -> np.ndarray:
    assert classes is None
    numbers = np.empty(len(values), np.float32)
    for row, value in enumerate(values):
        number = _number(value)
        if number is None:
            raise BadInput(
                f"{table.place(row)}: expected a number to predict, found {value!r}; correct it"
            )
        numbers[row] = number
    return numbers


def _whole(value: Any) -> int | None:
    number = _number(value)
    return None if number is None or not number.is_integer() else int(number)


def _number(value: Any) -> float | None:
    if not isinstance(value, str | int | float):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
