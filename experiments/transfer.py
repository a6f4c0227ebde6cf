"""Do heads that SyMerge adapted fit encoders it has never seen? (the paper's Table 4)

    python -m experiments.transfer                        the embedded world, 8 tasks, seed 0
    python -m experiments.transfer --scale 0.3            another coefficient of Task Arithmetic
    python -m experiments.transfer --data DIR             your own image folders or npz packs
    python -m experiments.transfer --model ViT-B-32 --checkpoints DIR --data DIR

SyMerge's heads take the place of the original ones on the encoders of Task Arithmetic and of
layer-wise AdaMerging; nothing is trained any further. Merged: each task's head on the merged
encoder, the accuracies of the record. Cross: encoder θ₀ + λ_i τ_i of one task, head and test images
of another, the mean over all ordered pairs; `cross_accuracy` of a task is the mean over the others'
encoders. λ of Task Arithmetic is what SyMerge starts from, 0.3 in the paper, unless --scale gives
another; for AdaMerging it is the learned column of task i.

Expected: in the paper both rise with the adapted heads. In the embedded world (seed 0) merged
rises, by 3.8 and 7.3 points, and cross does not: 76.3 becomes 74.7, 76.4 becomes 75.3. About a
minute per seed on two cores, experts from the cache.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import figures_bars, records
from experiments.ablating import chosen_rows
from experiments.experts import Model
from experiments.labels import method_label
from experiments.methods import Outcome, Run, Seed
from experiments.options import Options
from experiments.records import Record, phase
from experiments.scoring import Scored, scored
from experiments.tasks.task import Task
from experiments.vision_run import Scene, adapt, add, begin, describe, finish, fixed
from symerge_jax.adapt.coefficients import per_leaf
from symerge_jax.adapt.symerge import merged_encoder
from symerge_jax.cli.errors import run
from symerge_jax.errors import BadInput
from symerge_jax.evaluate import predict
from symerge_jax.models.heads import Head, normalised_head, unstack_heads
from symerge_jax.notation import Coefficients, Params
from symerge_jax.parallel import run_jobs

ENCODERS = ("task_arithmetic", "adamerging")
ADAPTED = "_adapted_heads"

# Table 4: merged and cross, ViT-B/32, 8 tasks.
PAPER = {
    "task_arithmetic": (69.1, 49.8),
    "task_arithmetic_adapted_heads": (79.6, 54.8),
    "adamerging": (80.1, 50.1),
    "adamerging_adapted_heads": (87.7, 54.1),
}


@dataclass(frozen=True)
class Settings(Options):
    """Puts adapted heads on encoders of other methods; see the module."""

    scale: float | None = None
    """λ of Task Arithmetic; what SyMerge starts from otherwise."""


class Crossed(NamedTuple):
    """One set of heads on one method's encoders.

    Attributes:
        method: name in the record.
        seed: of the experts.
        merged: of the merged encoder, per task.
        cross: accuracy in percent of encoder i with head and test images of j, float [i, j]; the
            diagonal is the encoder's own task.
    """

    method: str
    seed: int
    merged: list[Scored]
    cross: np.ndarray


def main(settings: Settings) -> int:
    """Runs the experiment; the last line printed is the path of the record."""
    if settings.scale is not None and not math.isfinite(settings.scale):
        raise BadInput(f"--scale must be a finite number, got {settings.scale}")
    encoders = chosen_rows(settings.methods, ENCODERS)
    if settings.dry_run:
        return describe(settings, [name for one in encoders for name in (one, one + ADAPTED)])
    with begin("transfer", settings) as scene:
        learning = ["symerge", *(one for one in encoders if one == "adamerging")]
        learned = adapt(scene, [Run(method) for method in learning])
        scale = scene.constants.initial if settings.scale is None else settings.scale
        jobs = [
            partial(crossed, scene, scene.seeds[number], encoder, learned, scale)
            for encoder in encoders
            for number in scene.seeds
        ]
        with phase(scene.record, "cross"):
            found = [one for pair in run_jobs(jobs, scene.devices) for one in pair]
        add(scene, [*fixed(scene, ["individual"]), *_of(learned, "symerge")])
        for one in sorted(found, key=lambda one: one.method.endswith(ADAPTED)):
            add_crossed(scene, one)
        scene.record["data"] = {
            "scale": scale,
            "cross": {name: mean_matrix(found, name) for name in _names(found)},
        }
    return finish(scene, partial(draw, scene.record))


def crossed(
    scene: Scene, seed: Seed, encoder: str, learned: Sequence[Outcome], scale: float
) -> tuple[Crossed, Crossed]:
    """Scores original and adapted heads on one method's encoders.

    Args:
        scene: of the experiment.
        seed: whose experts are merged.
        encoder: one of `ENCODERS`.
        learned: SyMerge, whose heads are taken, and AdaMerging.
        scale: λ of Task Arithmetic.
    """
    own = {one.method: one.adapted for one in learned if one.seed == seed.number}
    source, experts = own["symerge"], seed.experts
    assert source is not None, "SyMerge adapts heads"
    if encoder == "adamerging":
        base = own[encoder]
        assert base is not None, "AdaMerging adapts coefficients"
        lam = base.coefficients
    else:
        lam = per_leaf(experts.task_vectors, scale)
    heads = {
        encoder: experts.heads,
        encoder + ADAPTED: unstack_heads(source.heads, experts.classes),
    }
    whole = merged_encoder(scene.model.pretrained, experts.task_vectors, lam)
    merged = {
        name: [heads_on(scene.model, whole, k, task, [some])[0] for k, task in _numbered(scene)]
        for name, some in heads.items()
    }
    cross = {name: np.zeros((len(scene.tasks), len(scene.tasks))) for name in heads}
    for i, _ in _numbered(scene):
        single = merged_encoder(scene.model.pretrained, experts.task_vectors, only(lam, i))
        for j, task in _numbered(scene):
            pair = heads_on(scene.model, single, j, task, list(heads.values()))
            for name, one in zip(heads, pair, strict=True):
                cross[name][i, j] = one.accuracy
    first, second = (Crossed(name, seed.number, merged[name], cross[name]) for name in heads)
    return first, second


def _numbered(scene: Scene) -> list[tuple[int, Task]]:
    return list(enumerate(scene.tasks))


def only(coefficients: Coefficients, task: int) -> Coefficients:
    """Returns λ with zeros for all tasks but one; leaves [task]."""

    def leaf(lam: Any) -> Any:
        lam = jnp.asarray(lam)
        return jnp.where(jnp.arange(lam.shape[0]) == task, lam, jnp.zeros_like(lam))

    return jax.tree.map(leaf, coefficients)


def heads_on(
    model: Model, params: Params, k: int, task: Task, heads: Sequence[Sequence[Head]]
) -> list[Scored]:
    """Scores task k's head of several sets on one encoder, whose features are worked out once."""
    features = predict(model.encode, params, task.test.inputs)
    return [scored(np.asarray(normalised_head(own[k], features)), task) for own in heads]


def over_others(cross: np.ndarray) -> np.ndarray:
    """Returns, for each task j, the mean of cross [i, j] over the encoders i ≠ j.

    Their mean is that over all ordered pairs: each task has equally many.
    """
    count = len(cross)
    others = ~np.eye(count, dtype=bool)
    return (cross * others).sum(axis=0) / (count - 1)


def add_crossed(scene: Scene, one: Crossed) -> None:
    """Adds the accuracies on the merged encoder and on those of single tasks to the record."""
    for task, merged, cross in zip(scene.tasks, one.merged, over_others(one.cross), strict=True):
        count = len(merged.correct)
        add_one = partial(
            records.add_result, scene.record, method=one.method, seed=one.seed, task=task.name
        )
        add_one(metric="accuracy", value=merged.accuracy, n=count)
        add_one(metric="ece", value=merged.ece, n=count)
        add_one(metric="cross_accuracy", value=float(cross), n=count * (len(scene.tasks) - 1))


def mean_matrix(found: Sequence[Crossed], name: str) -> list[list[float]]:
    """Returns [encoder, head] over seeds, in percent."""
    return np.mean([one.cross for one in found if one.method == name], axis=0).tolist()


def _names(found: Sequence[Crossed]) -> list[str]:
    return list(dict.fromkeys(one.method for one in found))


def _of(outcomes: Sequence[Outcome], method: str) -> list[Outcome]:
    return [one for one in outcomes if one.method == method]


def draw(record: Record, folder: Path) -> None:
    """Draws merged and cross accuracies with original and with adapted heads."""
    encoders = [name for name in ENCODERS if name in records.methods(record)]
    metrics = {"accuracy": "merged", "cross_accuracy": "cross"}
    groups = [f"{method_label(one)},\n{what}" for what in metrics.values() for one in encoders]
    series, spread = {}, {}
    for label, ending in {"original heads": "", "heads adapted by SyMerge": ADAPTED}.items():
        rows = [one + ending for one in encoders]
        found = [figures_bars.over_tasks(record, rows, metric) for metric in metrics]
        series[label] = [value for mean, _ in found for value in mean]
        spread[label] = [value for _, std in found for value in std]
    figures_bars.grouped_bars(
        groups, series, folder / "transfer.png",
        title="Heads that SyMerge adapted, on other methods' encoders",
        colours=[figures_bars.BEFORE, figures_bars.AFTER],
        spread=spread,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(run(main, Settings, None, prog="python -m experiments.transfer"))
