"""Scores of image classifiers: where the vision experiments compare with labels.

What adapts receives images and what experts say about them. Beside this, `pairs` scores experts two
by two, `proxy_loss` looks at the true loss, and `pilot` and `losses` train with labels on purpose.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from experiments.experts import Model
from experiments.tasks.images import Split, Task
from symerge_jax.classifier import logits_of
from symerge_jax.evaluate import predict
from symerge_jax.metrics import accuracy, expected_calibration_error
from symerge_jax.models.heads import Head
from symerge_jax.notation import Array, Params


class Scored(NamedTuple):
    """A model on one task's test images: which are right, bool [n], and its calibration error."""

    correct: np.ndarray
    ece: float

    @property
    def accuracy(self) -> float:
        """In percent."""
        return 100 * float(self.correct.mean())


def padded(heads: Head, classes: Array, k: int) -> tuple[Head, Array]:
    """Returns task k's padded head and which of its rows exist."""
    return {name: leaf[k] for name, leaf in heads.items()}, classes[k]


def logits_on(
    model: Model, params: Params, head: Head, classes: Array, images: np.ndarray
) -> np.ndarray:
    """Returns logits [n, classes]."""
    return predict(logits_of(model.encode, model.classify), (params, head, classes), images)


def scored(logits: np.ndarray, test: Split) -> Scored:
    """Compares logits [n, classes] with the labels."""
    ece = expected_calibration_error(jax.nn.softmax(logits, axis=-1), test.labels)
    return Scored(logits.argmax(axis=1) == test.labels, float(ece))


def score(
    model: Model, params: Iterable[Params], heads: Head, classes: Array, tasks: Sequence[Task]
) -> list[Scored]:
    """Scores each task's test images with its own encoder (often one and the same) and head.

    Encoders are taken one at a time, so that they need not exist together.
    """
    return [
        scored(logits_on(model, own, *padded(heads, classes, k), task.test.inputs), task.test)
        for k, (task, own) in enumerate(zip(tasks, params, strict=True))
    ]


def validation_accuracies(
    model: Model, params: Sequence[Params], heads: Head, classes: Array, tasks: Sequence[Task]
) -> np.ndarray:
    """Returns accuracy in percent on the validation images, [task]."""
    return np.array([
        float(accuracy(
            logits_on(model, params[k], *padded(heads, classes, k), task.validation.inputs),
            task.validation.labels,
        ))
        for k, task in enumerate(tasks)
    ])  # fmt: skip


def halves(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Splits test inputs in two random halves: one to adapt on, one to score."""
    order = np.random.default_rng(0).permutation(count)
    return np.sort(order[: count // 2]), np.sort(order[count // 2 :])
