"""The runs of a sweep in an experiment: a method's points under one seed, and what they gave."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.adapting import chosen, key_of, made, objectives, present, schedule_of
from experiments.expert_outputs import label, outputs
from experiments.grids import Cell, point_of
from experiments.methods import Outcome, Run, Seed
from experiments.scene import Scene
from experiments.scoring import logits_on, padded, score
from symerge_jax.adapt.keeping import Keep
from symerge_jax.adapt.merged import OUTPUT_OBJECTIVES
from symerge_jax.adapt.objectives import ExpertLabels
from symerge_jax.adapt.sweep import Diverged, Swept, sweep
from symerge_jax.adapt.symerge import merged_encoder


class Looked(NamedTuple):
    """What one run gave.

    Attributes:
        name: of its point.
        seed: of its experts.
        outcome: its scores; None if it stopped.
        agreement: how often it says what the experts say about validation images, in percent, mean
            over tasks; None if it stopped.
        held_out_loss: cross-entropy to what they say, nats, mean over tasks.
        final_loss: mean over the last round of its adaptation, nats.
        stopped_at: task and step whose loss or gradient was not finite; None if none was.
    """

    name: str
    seed: int
    outcome: Outcome | None
    agreement: float | None = None
    held_out_loss: float | None = None
    final_loss: float | None = None
    stopped_at: tuple[str, int] | None = None


def swept(scene: Scene, seed: Seed, points: Sequence[Cell]) -> list[Swept]:
    """Runs all points of one method; from the cache, where an earlier run will do."""
    model, around, constants = scene.model, scene.around, scene.constants
    method = points[0].method
    run = Run(method)
    inputs, labels = chosen(scene.tasks, seed.labels, run.protocol)
    numbers = [point_of(cell, constants, seed.number) for cell in points]
    sizes = [len(own) for own in inputs]
    schedule = schedule_of(run, sizes, constants, seed.number)

    def make(keep: Keep | None) -> dict[str, Any]:
        name = f"{method}, {len(points)} points, seed {seed.number}"
        inputs_per_step = schedule.batch_size * len(points)
        follow = around.bars.follow(name, schedule.steps, inputs_per_step)
        targets: Sequence[Any] = labels
        if constants.objective in OUTPUT_OBJECTIVES:
            targets = outputs(model, seed.experts, scene.tasks, around.cache)
        runs = sweep(
            model.encode, model.classify, model.pretrained, seed.experts.task_vectors,
            seed.experts.stacked, inputs, targets, numbers,
            classes=seed.experts.classes,
            objective=objectives(constants, seed.experts.classes),
            schedule=lambda _: schedule,
            on_chunk=lambda losses: follow(over_runs(losses)),
            keep=keep,
            devices=scene.devices,
        )  # fmt: skip
        return stored(runs, schedule.steps)

    key = key_of(model, seed, run, constants, around, inputs, labels)
    key["points"] = [[p.coefficient_rate, p.head_rate, p.initial_coefficient] for p in numbers]
    found = made(around, "swept", key, make)
    return [_run_of(found, r, point, schedule.task_ids) for r, point in enumerate(numbers)]


def over_runs(losses: np.ndarray) -> np.ndarray:
    """Returns the mean over the runs that are still going, [step]."""
    going = np.isfinite(losses)
    total = np.where(going, losses, 0).sum(axis=0)
    return np.where(going.any(axis=0), total / np.maximum(going.sum(axis=0), 1), np.nan)


def stored(runs: Sequence[Swept], steps: int) -> dict[str, Any]:
    """Returns the runs as the cache has them: leaves [run, ...], losses padded with NaN."""
    losses = np.full((len(runs), steps), np.nan, runs[0].losses.dtype)
    for row, one in zip(losses, runs, strict=True):
        row[: len(one.losses)] = one.losses

    def stacked(*leaves: Any) -> np.ndarray:
        return np.stack(leaves)

    return {
        "coefficients": present(jax.tree.map(stacked, *(one.coefficients for one in runs))),
        "heads": jax.tree.map(stacked, *(one.heads for one in runs)),
        "losses": losses,
        "made": np.array([len(one.losses) for one in runs]),
        "loss_of_stop": np.array([np.nan if x.diverged is None else x.diverged.loss for x in runs]),
    }


def _run_of(found: dict[str, Any], r: int, point: Any, task_ids: np.ndarray) -> Swept:
    """Returns one run of what `stored` made."""
    lam, heads = jax.tree.map(lambda x: x[r], (found["coefficients"], found["heads"]))
    count = int(found["made"][r])
    diverged = None
    if count < len(task_ids):
        diverged = Diverged(count, int(task_ids[count]), float(found["loss_of_stop"][r]))
    return Swept(point, lam, heads, found["losses"][r, :count], diverged)


def look(scene: Scene, seed: Seed, said: Sequence[ExpertLabels], cell: Cell, one: Swept) -> Looked:
    """Merges one run's model, scores it, and compares it with the experts on validation images.

    Args:
        scene: of the experiment.
        seed: of the experts.
        said: what those say; see `held_out`.
        cell: the point.
        one: its run.
    """
    tasks, experts, model = scene.tasks, seed.experts, scene.model
    looked = partial(Looked, cell.name, seed.number)
    if one.diverged is not None:
        return looked(None, stopped_at=(tasks[one.diverged.task].name, one.diverged.step))
    theta = merged_encoder(model.pretrained, experts.task_vectors, one.coefficients)
    scores = score(model, [theta] * len(tasks), one.heads, experts.classes, tasks)
    agreement, loss = [], []
    for k, expert in enumerate(said):
        own = padded(one.heads, experts.classes, k)
        logits = logits_on(model, theta, *own, tasks[k].validation.inputs)
        log_p = np.asarray(jax.nn.log_softmax(logits, axis=-1))
        agreement.append(100 * float((logits.argmax(axis=1) == expert.label).mean()))
        loss.append(-float(log_p[np.arange(len(log_p)), expert.label].mean()))
    return looked(
        Outcome(cell.name, seed.number, False, scores, losses=one.losses),
        agreement=float(np.mean(agreement)),
        held_out_loss=float(np.mean(loss)),
        final_loss=float(np.mean(one.losses[-len(tasks) :])),
    )


def held_out(scene: Scene, seed: Seed) -> list[ExpertLabels]:
    """Returns what each expert says about validation images of its task; no label is read."""
    validation = [task._replace(test=task.validation) for task in scene.tasks]
    return label(scene.model, seed.experts, validation, scene.around.cache)
