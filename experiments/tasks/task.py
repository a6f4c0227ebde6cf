"""A task of an experiment: its inputs and labels, in three splits, and how it is scored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from symerge_jax.cli.errors import nearest
from symerge_jax.errors import BadInput


class Split(NamedTuple):
    """Inputs of a task, such as images uint8 [n, 32, 32, 3], and their labels.

    Labels are classes, int32 [n], or the values of a regression, float32 [n].
    """

    inputs: np.ndarray
    labels: np.ndarray


class Task(NamedTuple):
    """One task: `train` makes its expert, `validation` chooses settings, `test` is looked at once.

    `train` is None where the expert is read, not made. `head` is the zero-shot head, or None where
    no text tower knows the class names. `classes` has one entry for a regression. `metric` is what
    tables show: "accuracy", or another of `symerge_jax.text_metrics.METRICS`; of maps, one of
    `symerge_jax.dense_metrics`. `batch_mean` is for those: see `symerge_jax.dense.dense_scores`.
    """

    name: str
    classes: tuple[str, ...]
    train: Split | None
    validation: Split
    test: Split
    head: Any = None
    metric: str = "accuracy"
    batch_mean: int | None = None

    @property
    def regression(self) -> bool:
        """Whether its labels are numbers."""
        return len(self.classes) == 1


def hold_out(train: Split) -> tuple[Split, Split]:
    """Returns 90 % for training and 10 % for validation, drawn with seed 0."""
    order = np.random.default_rng(0).permutation(len(train.labels))
    count = max(1, len(order) // 10)
    chosen, rest = np.sort(order[:count]), np.sort(order[count:])
    return Split(*(x[rest] for x in train)), Split(*(x[chosen] for x in train))


def first(split: Split, limit: int | None) -> Split:
    """Returns at most `limit` inputs."""
    return split if limit is None else Split(*(x[:limit] for x in split))


def check_known(name: str, known: Sequence[str], what: str) -> None:
    """Raises `BadInput`, with the nearest known name, for a name that is not known."""
    if name not in known:
        raise BadInput(f"unknown {what} {name!r}{nearest(name, known)}; known: {', '.join(known)}")
