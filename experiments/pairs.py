"""Experts two by two: each encoder under each task's classifier, and the mean of each two encoders.

SyMerge, section 2.2 and figure 2: `cross[A, B]` is expert A's encoder with expert B's classifier on
B's test images, `merged[A, B]` the encoder ½ θ_A + ½ θ_B with that classifier on those images.
An encoder looks at a test set once. Like `scoring`, this compares with the labels of test images.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import records
from experiments.experts import Experts, Model
from experiments.methods import Seed
from experiments.scoring import logits_on, padded
from experiments.tasks.task import Task
from experiments.vision_run import Scene
from symerge_jax.cache import cached, digest
from symerge_jax.cli.progress import say
from symerge_jax.notation import Array, Params, TaskVectors
from symerge_jax.parallel import run_jobs
from symerge_jax.task_vectors import add


class Pairs(NamedTuple):
    """What all encoders score; accuracies in percent, losses are mean cross-entropies in nats.

    Attributes:
        cross: [encoder, task]; the diagonal holds the experts.
        cross_loss: [encoder, task].
        merged: of the mean with the task's own encoder, [encoder, task]; the diagonal is that of
            `cross`.
        merged_loss: [encoder, task].
        pretrained: of θ₀ under each expert's classifier, [task].
        pretrained_loss: [task].
    """

    cross: np.ndarray
    cross_loss: np.ndarray
    merged: np.ndarray
    merged_loss: np.ndarray
    pretrained: np.ndarray
    pretrained_loss: np.ndarray


Score = tuple[float, float]  # accuracy in percent, loss
# What the record calls the rows of `add_rows`.
ROWS = ("pretrained", "individual", "cross_task", "pairwise_average")


def measure(scene: Scene) -> dict[int, Pairs]:
    """Returns the pairs of each seed; what the cache holds is not worked out again."""
    with records.phase(scene.record, "pairs"):
        return {number: _kept(scene, seed) for number, seed in scene.seeds.items()}


def add_rows(scene: Scene, found: dict[int, Pairs]) -> None:
    """Adds the accuracies to the record, per task: means over the other tasks' encoders.

    The rows: `pretrained` and `individual` as references, `cross_task` for the other encoders as
    they are, `pairwise_average` for their means with the task's own.
    """
    for number, pairs in found.items():
        rows = (
            pairs.pretrained,
            np.diagonal(pairs.cross),
            others_mean(pairs.cross, 0),
            others_mean(pairs.merged, 0),
        )
        for method, values in zip(ROWS, rows, strict=True):
            for task, value in zip(scene.tasks, values, strict=True):
                records.add_result(
                    scene.record, method=method, seed=number, task=task.name, metric="accuracy",
                    value=float(value), n=len(task.test.labels),
                )  # fmt: skip


def others_mean(matrix: np.ndarray, axis: int) -> np.ndarray:
    """Returns the mean along an axis of a square matrix, its diagonal left out."""
    return (matrix.sum(axis=axis) - np.diagonal(matrix)) / (len(matrix) - 1)


def compare(logits: np.ndarray, labels: np.ndarray) -> Score:
    """Returns accuracy in percent and mean cross-entropy of logits [n, classes]."""
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    log_p = wide[np.arange(len(labels)), labels] - np.log(np.exp(wide).sum(axis=1))
    return 100 * float(np.mean(logits.argmax(axis=1) == labels)), -float(log_p.mean())


@jax.jit
def halfway(pretrained: Params, task_vectors: TaskVectors, first: int, second: int) -> Params:
    """Returns ½ θ_first + ½ θ_second."""
    return add(pretrained, jax.tree.map(lambda x: (x[first] + x[second]) / 2, task_vectors))


def gather(tasks: int, score: Callable[[int | None, int | None], Sequence[Score]]) -> Pairs:
    """Puts the scores of all encoders in order.

    Args:
        tasks: number of tasks.
        score: for (A, A) the scores of expert A on every task; for (A, B) those of the mean of
            both on A's task and on B's; for (None, None) those of θ₀ on every task.
    """
    cross, merged = np.zeros((2, tasks, tasks)), np.zeros((2, tasks, tasks))
    for a in range(tasks):
        cross[:, a] = np.transpose(score(a, a))
        for b in range(a + 1, tasks):
            merged[:, b, a], merged[:, a, b] = score(a, b)
    own = np.arange(tasks)
    merged[:, own, own] = cross[:, own, own]
    return Pairs(cross[0], cross[1], merged[0], merged[1], *np.transpose(score(None, None)))


def _kept(scene: Scene, seed: Seed) -> Pairs:
    model, experts, tasks = scene.model, seed.experts, scene.tasks
    key = {
        "program": f"CLIP, {model.name}", "jax": jax.__version__,
        "experts": digest(experts.task_vectors, experts.stacked, experts.classes),
        "tests": digest(*(tuple(task.test) for task in tasks)),
    }  # fmt: skip

    def make() -> dict[str, np.ndarray]:
        return _measured(scene, seed)._asdict()

    return Pairs(**cached(scene.around.cache, "pairs", key, make, report=say))


def _measured(scene: Scene, seed: Seed) -> Pairs:
    """Scores θ₀, every expert and every mean of two, one encoder per device at a time."""
    count = len(scene.tasks)
    wanted: list[tuple[int | None, int | None]] = [(None, None)]
    wanted += [(a, b) for a in range(count) for b in range(a, count)]
    images = sum(len(task.test.labels) for task in scene.tasks)
    follow = scene.around.bars.follow(
        f"pairs, seed {seed.number}", len(wanted), images * (2 * count + 1) // len(wanted)
    )
    lock = threading.Lock()

    def job(a: int | None, b: int | None) -> list[Score]:
        scores = _scores(scene.model, seed.experts, scene.tasks, a, b)
        with lock:
            follow(np.array([np.mean([loss for _, loss in scores])]))
        return scores

    found = run_jobs([partial(job, *pair) for pair in wanted], scene.devices)
    by_pair = dict(zip(wanted, found, strict=True))
    return gather(count, lambda a, b: by_pair[a, b])


def _scores(
    model: Model, experts: Experts, tasks: Sequence[Task], a: int | None, b: int | None
) -> list[Score]:
    targets = range(len(tasks))
    if a is None or b is None:
        params = model.pretrained
    elif a == b:
        params = experts.params[a]
    else:
        params, targets = halfway(model.pretrained, experts.task_vectors, a, b), (a, b)
    params = jax.tree.map(jnp.asarray, params)  # once, not for each test set
    return [_score(model, params, experts, tasks[k], k) for k in targets]


def _score(model: Model, params: Params, experts: Experts, task: Task, k: int) -> Score:
    head: tuple[dict[str, Array], Array] = padded(experts.stacked, experts.classes, k)
    return compare(logits_on(model, params, *head, task.test.inputs), task.test.labels)
