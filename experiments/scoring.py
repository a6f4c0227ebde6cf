"""Scores: where the experiments compare with labels.

What adapts receives inputs and what experts say about them. Beside this, `pairs` scores experts two
by two, `proxy_loss` looks at the true loss, and `pilot` and `losses` train with labels on purpose.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.experts import Model
from experiments.tasks.task import Split, Task
from symerge_jax.adapt.dense import Network
from symerge_jax.classifier import logits_of
from symerge_jax.dense import dense_scores, predict_maps
from symerge_jax.evaluate import predict
from symerge_jax.metrics import expected_calibration_error
from symerge_jax.notation import Array, Params
from symerge_jax.text_metrics import METRICS

SAMPLE = 4  # test scenes whose maps are kept


class Scored(NamedTuple):
    """A model on one task's test inputs.

    Attributes:
        correct: which are right, bool [n]; of a regression and of maps, empty.
        ece: the calibration error; of a regression and of maps, not a number.
        value: the task's metric in percent where it is not accuracy; errors of maps in their unit.
        metrics: of maps, all of them by name, the main one first; empty otherwise.
        sample: maps [scene, height, width, output] of the first test scenes, to look at.
    """

    correct: np.ndarray
    ece: float
    value: float | None = None
    metrics: Mapping[str, float] = MappingProxyType({})
    sample: np.ndarray | None = None

    @property
    def accuracy(self) -> float:
        """In percent."""
        return 100 * float(self.correct.mean())

    @property
    def score(self) -> float:
        """The task's metric."""
        return self.accuracy if self.value is None else self.value


def padded(heads: Any, classes: Array, k: int) -> tuple[Any, Array]:
    """Returns task k's padded head and which of its rows exist."""
    return jax.tree.map(lambda leaf: leaf[k], heads), classes[k]


def logits_on(
    model: Model, params: Params, head: Any, classes: Array, inputs: np.ndarray
) -> np.ndarray:
    """Returns logits [n, classes]."""
    return predict(logits_of(model.encode, model.classify), (params, head, classes), inputs)


def scored(logits: np.ndarray, task: Task) -> Scored:
    """Compares logits [n, classes], padded or not, with the labels of the test inputs."""
    labels = task.test.labels
    value = None if task.metric == "accuracy" else metric_of(logits, labels, task)
    if task.regression:
        return Scored(np.zeros(0, bool), float("nan"), value)
    ece = expected_calibration_error(jax.nn.softmax(logits, axis=-1), labels)
    return Scored(logits.argmax(axis=1) == labels, float(ece), value)


def metric_of(logits: np.ndarray, labels: np.ndarray, task: Task) -> float:
    """Returns the task's metric in percent; logits of padded rows are never the largest."""
    outputs = logits[:, :1] if task.regression else logits
    return float(METRICS[task.metric](outputs, labels))


def score(
    model: Model, params: Iterable[Params], heads: Any, classes: Array, tasks: Sequence[Task]
) -> list[Scored]:
    """Scores each task's test inputs with its own encoder (often one and the same) and head.

    Encoders are taken one at a time, so that they need not exist together.
    """
    return [
        _score_one(model, own, *padded(heads, classes, k), task)
        for k, (task, own) in enumerate(zip(tasks, params, strict=True))
    ]


def _score_one(model: Model, params: Params, head: Any, classes: Array, task: Task) -> Scored:
    if model.dense is None:
        return scored(logits_on(model, params, head, classes, task.test.inputs), task)
    return scored_maps(model.dense, params, head, task)


def scored_maps(network: Network, encoder: Any, decoder: Any, task: Task) -> Scored:
    """Compares the maps of an encoder and a decoder with those of the test scenes."""
    found = map_scores(network, encoder, decoder, task, task.test)
    few = task.test.inputs[:SAMPLE]
    sample = predict_maps(network, encoder, decoder, few, len(task.classes))
    return Scored(np.zeros(0, bool), float("nan"), found[task.metric], found, sample)


def map_scores(
    network: Network, encoder: Any, decoder: Any, task: Task, split: Split
) -> dict[str, float]:
    """Returns the metrics of maps on a split, the main one first."""
    return dense_scores(
        network, encoder, decoder, *split, len(task.classes), task.name,
        batch_mean=task.batch_mean,
    )  # fmt: skip


def validation_scores(
    model: Model, params: Sequence[Params], heads: Any, classes: Array, tasks: Sequence[Task]
) -> np.ndarray:
    """Returns each task's metric on its validation inputs, [task]."""
    if (network := model.dense) is not None:
        own = [padded(heads, classes, k)[0] for k in range(len(tasks))]
        return np.array([
            map_scores(network, params[k], own[k], task, task.validation)[task.metric]
            for k, task in enumerate(tasks)
        ])  # fmt: skip
    return np.array([
        metric_of(
            logits_on(model, params[k], *padded(heads, classes, k), task.validation.inputs),
            task.validation.labels,
            task,
        )
        for k, task in enumerate(tasks)
    ])  # fmt: skip


def halves(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Splits test inputs in two random halves: one to adapt on, one to score."""
    order = np.random.default_rng(0).permutation(count)
    return np.sort(order[: count // 2]), np.sort(order[count // 2 :])
