"""Merges image classifiers: SyMerge and its rivals on eight tasks (the paper's Table 1).

    python -m experiments.vision                          the embedded world, seed 0
    python -m experiments.vision --seeds 0 1 2            with standard deviations
    python -m experiments.vision --data DIR --tasks A B   your own image folders or npz packs
    python -m experiments.vision --model ViT-B-32 --checkpoints DIR --data DIR --task-count 8
                                                          the paper's experts and test sets

Without options a tiny CLIP that was pre-trained on generated pictures is fine-tuned on eight
generated tasks; with --data, on your images, each expert with a head of its own. All else is one
code path: task vectors, merging, adaptation on the unlabelled test images, evaluation. The scale
of training-free methods is chosen on validation images (--tune says how). With --data, adaptive
methods are also run on one half of the test images and scored on the other: the held-out accuracy.
--protocol held_out or online makes that, or a single pass over the images, the main run. Intervals
in the record are 95 % bootstrap intervals over test images, p-values of paired tests with SyMerge.
With --checkpoints (layouts: checkpoint_folders.py) nothing is fine-tuned: experts and heads are
read, and the settings are the paper's. `python -m experiments.prepare vision` gets the files.

Expected: the tables in README.md, rendered from experiments/results/vision/. For the paper's
experts its Table 1, 90.1 for SyMerge with ViT-B/32 on 8 tasks; no record of ours holds that yet.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import numpy as np

from experiments import figures, records
from experiments.intervals import interval, paired_p
from experiments.merging import Tune
from experiments.methods import (
    JOINT,
    KNOWN,
    Outcome,
    Protocol,
    Run,
    base_of,
    check_method,
    is_adaptive,
    part_of,
)
from experiments.options import Options
from experiments.scoring import halves
from experiments.tasks.task import Task
from experiments.vision_run import (
    Scene,
    adapt,
    begin,
    chosen_tasks,
    describe,
    expect,
    finish,
    fixed,
)
from experiments.vision_start import Start, depth_of, setting_of
from symerge_jax.adapt.coefficients import as_matrix
from symerge_jax.adapt.symerge import Adapted
from symerge_jax.checkpoints.clip import source_names
from symerge_jax.checkpoints.export import write_model
from symerge_jax.cli.errors import run
from symerge_jax.errors import BadInput
from symerge_jax.files import write_atomically
from symerge_jax.models.heads import unstack_heads
from symerge_jax.verify import write_reference

DEFAULT = (
    "pretrained",
    "individual",
    "weight_average",
    "task_arithmetic",
    "ties",
    "adamerging",
    "symerge_coefficients",
    "symerge_head",
    "symerge",
)


@dataclass(frozen=True)
class Settings(Options):
    """Merges image classifiers and compares methods; see the module for what it expects."""

    retrain: bool = False
    """Pre-train the embedded tiny CLIP again first (about an hour on two cores)."""
    tune: Tune = "labels"
    """How scales of training-free methods are chosen on validation images: by their labels, by
    agreement with the experts, which needs none, or not at all (each method's default)."""
    protocol: Protocol = "transductive"
    """What adaptation sees: the test images, which are then scored (the paper's protocol); one half
    of them, the other being scored; or each of them once."""


def main(settings: Settings) -> int:
    """Runs the experiment; the last line printed is the path of the record."""
    methods = chosen_methods(settings)
    if settings.dry_run:
        return describe(settings, methods)
    with begin("vision", settings, tune=settings.tune, retrain=settings.retrain) as scene:
        expect(scene, methods)
        outcomes = fixed(scene, [method for method in methods if not is_adaptive(method)])
        learning = [method for method in methods if is_adaptive(method)]
        learning.sort(key="symerge_head".__eq__)  # short ones last
        protocols: list[Protocol] = [settings.protocol]
        if setting_of(settings) == "images" and settings.protocol == "transductive":
            protocols.append("held_out")
        for later in (False, True):  # corrections stand on what others have learned
            now = [method for method in learning if (base_of(method) is not None) == later]
            outcomes += adapt(scene, [Run(m, protocol=p) for p in protocols for m in now])
        collect(scene, methods, settings, outcomes)
    return finish(scene, partial(draw, scene, outcomes))


def chosen_methods(settings: Settings) -> list[str]:
    """Returns the methods in table order; the experts are always there, to compare with."""
    names = [name.replace("-", "_") for name in settings.methods or DEFAULT]
    if names == ["all"]:
        names = [name for name in KNOWN if name != "slerp"]
    if "slerp" in names and len(chosen_tasks(settings)) != 2:
        raise BadInput("--methods slerp joins two experts; give two --tasks, or leave it out")
    depth = depth_of(settings)
    for name in names:
        check_method(name, depth)
    rest = [name for name in names if name not in KNOWN]
    return [*(name for name in KNOWN if name in {*names, "individual"}), *rest]


def collect(
    scene: Scene, methods: Sequence[str], settings: Settings, outcomes: Sequence[Outcome]
) -> None:
    """Adds every result to the record, in table order, and how sure the means are."""
    record, tasks, held_out = scene.record, scene.tasks, settings.protocol == "held_out"
    found = {(one.method, one.seed, one.half): one for one in outcomes}
    record["notes"] += [f"seed {one.seed}: {one.note}" for one in outcomes if one.note]
    stored, counted = record.setdefault("stored_encoders", {}), {}
    for method in methods:
        whole = [
            found.get((method, seed, held_out)) or found[method, seed, False]
            for seed in settings.seeds
        ]
        stored[method] = whole[0].stored
        counted[method] = [_counted(whole, k, held_out) for k in range(len(tasks))]
        for one in whole:
            half = found.get((method, one.seed, True), one)
            add_scores(record, one, half, tasks, held_out=held_out)
    record["intervals"] = {method: list(interval(rows)) for method, rows in counted.items()}
    if "symerge" in counted:
        record["paired_p"] = {
            method: paired_p(rows, counted["symerge"])
            for method, rows in counted.items()
            if method != "symerge"
        }


def _counted(outcomes: Sequence[Outcome], k: int, held_out: bool) -> np.ndarray:
    """Returns which test images of task k are right, [seed, n], of those that count."""
    correct = np.stack([one.scores[k].correct for one in outcomes])
    return correct[:, halves(correct.shape[1])[1]] if held_out else correct


def add_scores(
    record: records.Record, one: Outcome, half: Outcome, tasks: Sequence[Task], *, held_out: bool
) -> None:
    """Adds the results of one method and seed."""
    for k, task in enumerate(tasks):
        add = partial(records.add_result, record, method=one.method, seed=one.seed, task=task.name)
        correct = _counted([one], k, held_out)[0]
        add(metric="accuracy", value=100 * correct.mean(), n=len(correct))
        if not held_out:
            add(metric="ece", value=one.scores[k].ece, n=len(correct))
        if record["setting"] == "images" and not held_out:
            rest = _counted([half], k, True)[0]
            add(metric="held_out_accuracy", value=100 * rest.mean(), n=len(rest))


def draw(scene: Scene, outcomes: Sequence[Outcome], folder: Path) -> None:
    """Draws the pictures of the first seed, and stores its coefficients and heads."""
    start, tasks = scene.start, scene.tasks
    figures.accuracy_per_task(scene.record, folder / "accuracy.png")
    firsts: dict[str, Adapted] = {}
    for outcome in sorted(outcomes, key=lambda one: one.half):  # those on all images first
        if outcome.adapted is not None:
            firsts.setdefault(outcome.method, outcome.adapted)
    if not firsts:
        return
    layout = "open_clip" if start.vision.fused_qkv else "hugging_face"
    names = source_names({"vision": start.model.pretrained}, layout)
    paths = [path.removeprefix("vision/") for _, path in names]
    shown = [name for name, _ in names]
    labels = [task.name for task in tasks]
    if "symerge" in firsts:
        lam = as_matrix(firsts["symerge"].coefficients, paths)
        figures.coefficient_heatmap(lam, shown, labels, folder / "coefficients.png")
    curves = {
        method: per_pass(adapted.losses, 2 if method in JOINT else 1, len(tasks))
        for method, adapted in firsts.items()
    }
    figures.learning_curves(curves, len(tasks), folder / "learning_curves.png")
    store(firsts, paths, shown, tasks, start, folder)


def per_pass(losses: np.ndarray, batches: int, tasks: int) -> np.ndarray:
    """Averages the mini-batches that one task has in one iteration: [iteration · task]."""
    return losses.reshape(-1, batches, tasks).mean(axis=1).reshape(-1)


def store(
    adapted: Mapping[str, Adapted],
    paths: Sequence[str],
    names: Sequence[str],
    tasks: Sequence[Task],
    start: Start,
    folder: Path,
) -> None:
    """Writes coefficients [tensor, task] with the tensors' names, and this seed's SyMerge model."""
    keys = [task.name for task in tasks]
    arrays: dict[str, np.ndarray] = {"tensors": np.array(names), "tasks": np.array(keys)}
    for method, one in adapted.items():
        if "all" not in one.coefficients and part_of(method) is None:
            arrays[method] = as_matrix(one.coefficients, paths)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    write_atomically(folder / "coefficients.npz", buffer.getvalue())
    if "symerge" in adapted:
        one = adapted["symerge"]
        heads = unstack_heads(one.heads, start.classes)
        write_model(
            folder / "model",
            {"vision": jax.tree.map(np.asarray, one.params)},
            like=start.like,
            heads=dict(zip(keys, heads, strict=True)),
            classes={task.name: task.classes or None for task in tasks},
            card={"method": "symerge", "kind": "shared", "tasks": keys},
            finish=write_reference,
        )


if __name__ == "__main__":
    sys.exit(run(main, Settings, None, prog="python -m experiments.vision"))
