"""Merges text classifiers: SyMerge and its rivals on eight tasks (the paper's Table 3, Figure B).

    python -m experiments.language                        the embedded world, seed 0
    python -m experiments.language --seeds 0 1 2          with standard deviations
    python -m experiments.language --data DIR             GLUE's files, or your own text tasks
    python -m experiments.language --model roberta-base --checkpoints DIR --data DIR
                                                          the paper's experts and GLUE

Without options a tiny RoBERTa that has read generated text is fine-tuned on eight generated tasks;
with --data, one that has read the tasks' own training texts. All else is one code path, shared with
images: task vectors, merging, adaptation on the unlabelled dev texts, evaluation. Tasks are scored
by their own metric: Matthews correlation, the mean of Pearson's and Spearman's, or accuracy. The
scale of training-free methods is chosen on validation texts. SyMerge takes cross-entropy to the
experts' classes and, for a regression, the mean absolute difference from the expert's value;
methods that minimise entropy refuse tasks without classes.

Expected: for the paper's experts its Table 3, 83.9 on average for SyMerge and 85.6 for the
experts; no record of ours holds that yet. Figure B: both parts > heads > coefficients on average.
Cost: about five minutes for model and experts and as long per seed on two cores.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import jax
import numpy as np

from experiments import figures, figures_bars, records
from experiments.forecasting import forecast, lines
from experiments.labels import method_label
from experiments.language_start import (
    TextOptions,
    adjusted,
    chosen_tasks,
    expected,
    make,
    setting_of,
    vocabulary_of,
)
from experiments.methods import ENTROPY, KNOWN, Outcome, Run, base_of, check_method, is_adaptive
from experiments.options import check
from experiments.records import Record
from experiments.scene import Scene, adapt, describe, finish, fixed, staged
from experiments.scoring import Scored
from experiments.tables import main_metrics
from experiments.tasks.task import Task
from symerge_jax.adapt.symerge import Adapted
from symerge_jax.checkpoints.export import write_model
from symerge_jax.cli.errors import run
from symerge_jax.errors import BadInput
from symerge_jax.models.roberta_config import PRESETS
from symerge_jax.models.roberta_heads import unstack_text_heads
from symerge_jax.parallel import use_devices
from symerge_jax.text_inputs import write_vocabulary
from symerge_jax.text_metrics import f1
from symerge_jax.verify import write_reference

DEFAULT = (
    "individual",
    "weight_average",
    "task_arithmetic",
    "ties",
    "magmax",
    "lines",
    "tsv_m",
    "iso_c",
    "emr",
    "surgery_on_task_arithmetic",
    "probsurgery_on_task_arithmetic",
    "symerge_coefficients",
    "symerge_head",
    "symerge",
)
# What needs the inside of an image tower, or a head before fine-tuning.
NOT_HERE = ("pretrained", "lot", "fisher", "regmean", "wemoe")
PARTS = ("symerge_coefficients", "symerge_head", "symerge")  # Figure B

Settings = TextOptions


def main(settings: TextOptions) -> int:
    """Runs the experiment; the last line printed is the path of the record."""
    check(settings)
    methods, names, constants = chosen_methods(settings), chosen_tasks(settings), adjusted(settings)
    if settings.dry_run:
        code = describe(settings, constants, names, methods)
        one, tests = expected(settings, names, constants)
        found = forecast(one, constants, methods, settings, tests, use_devices(settings.devices))
        print("\n".join(lines(found)))
        return code
    setting = setting_of(settings)
    build = partial(make, settings, names, constants)
    with staged("language", setting, settings, constants, build) as scene:
        refuse_entropy(methods, scene.tasks)
        outcomes = fixed(scene, [method for method in methods if not is_adaptive(method)])
        learning = [method for method in methods if is_adaptive(method)]
        for later in (False, True):  # corrections stand on what others have learned
            now = [method for method in learning if (base_of(method) is not None) == later]
            outcomes += adapt(scene, [Run(method) for method in now])
        collect(scene, methods, outcomes)
    return finish(scene, partial(draw, scene, outcomes))


def chosen_methods(settings: TextOptions) -> list[str]:
    """Returns the methods in table order; the experts are always there, to compare with."""
    names = [name.replace("-", "_") for name in settings.methods or DEFAULT]
    if names == ["all"]:
        rest = (*NOT_HERE, *ENTROPY, "slerp", "surgery", "probsurgery")
        names = [name for name in KNOWN if name not in rest]
        names += [name for name in DEFAULT if name not in names]
    model = settings.model if settings.model in PRESETS else "tiny-roberta-64x3"
    for name in names:
        check_method(name, PRESETS[model].depth)
        if name in NOT_HERE:
            raise BadInput(f"--methods {name}: not available for texts; leave it out")
    if "slerp" in names and len(chosen_tasks(settings)) != 2:
        raise BadInput("--methods slerp joins two experts; give two --tasks, or leave it out")
    order = [*KNOWN, *DEFAULT]
    wanted = {*names, "individual"}
    return sorted(wanted, key=lambda name: order.index(name) if name in order else len(order))


def refuse_entropy(methods: Sequence[str], tasks: Sequence[Task]) -> None:
    """Raises `BadInput` where a method that minimises entropy meets a task without classes."""
    needing = [m for m in methods if m in ENTROPY or base_of(m) == "adamerging"]
    numbers = [task.name for task in tasks if task.regression]
    if needing and numbers:
        raise BadInput(
            f"--methods {needing[0]}: {numbers[0]} is a regression, whose one output has no "
            "entropy to minimise; leave the task or the method out, or put the correction on "
            "another base, such as surgery_on_task_arithmetic"
        )


def collect(scene: Scene, methods: Sequence[str], outcomes: Sequence[Outcome]) -> None:
    """Adds every result to the record, in table order."""
    record = scene.record
    record["notes"] += [f"seed {one.seed}: {one.note}" for one in outcomes if one.note]
    for method in methods:
        for one in (one for one in outcomes if one.method == method):
            record.setdefault("stored_encoders", {}).setdefault(method, one.stored)
            for task, scored in zip(scene.tasks, one.scores, strict=True):
                for metric, value in metrics(task, scored).items():
                    records.add_result(
                        record, method=method, seed=one.seed, task=task.name, metric=metric,
                        value=value, n=len(task.test.labels),
                    )  # fmt: skip


def metrics(task: Task, scored: Scored) -> dict[str, float]:
    """Returns a task's metrics in percent, the main one first; of two classes, accuracy and F1."""
    found = {task.metric: scored.score}
    if not task.regression:
        found["accuracy"] = scored.accuracy
    if len(task.classes) == 2:
        truth = task.test.labels
        found["f1"] = f1(np.where(scored.correct, truth, 1 - truth), truth)
    return found


def draw(scene: Scene, outcomes: Sequence[Outcome], folder: Path) -> None:
    """Draws the record, and stores the first seed's SyMerge model."""
    figures.accuracy_per_task(scene.record, folder / "scores.png")
    draw_parts(scene.record, folder / "parts.png")
    first = scene.settings.seeds[0]
    for one in outcomes:
        if one.method == "symerge" and one.seed == first and one.adapted is not None:
            store(scene, one.adapted, folder)


def draw_parts(record: Record, path: Path) -> None:
    """Draws Figure B: coefficients, heads, and both, as far as they were run."""
    summary = records.summarise(record)
    parts = [part for part in PARTS if part in summary]
    if len(parts) < 2:
        return
    metrics = main_metrics(record)
    main = {task: metrics[task] for task, _ in records.columns(record)}
    series, spread = {}, {}
    for part in parts:
        cells = [records.over_seeds(record, part, task, metric) for task, metric in main.items()]
        series[method_label(part)] = [*(mean for mean, _ in cells), summary[part]["mean"]]
        spread[method_label(part)] = [*(std for _, std in cells), summary[part]["std"]]
    figures_bars.grouped_bars(
        [*main, "mean"], series, path,
        title="Coefficients, heads, or both",
        spread=spread,
        lines={"Individual experts, mean": summary["individual"]["mean"]},
        ylabel="score (%)",
    )  # fmt: skip


def store(scene: Scene, adapted: Adapted, folder: Path) -> None:
    """Writes a model with its heads; with the vocabulary, where that is not the world's own."""
    settings, tasks = scene.settings, scene.tasks
    assert isinstance(settings, TextOptions)
    heads = unstack_text_heads(adapted.heads, scene.start.classes)

    def complete(made: Path) -> None:
        if settings.data is not None:
            write_vocabulary(vocabulary_of(settings), made)
        write_reference(made)

    write_model(
        folder / "model",
        jax.tree.map(np.asarray, adapted.params),
        like=scene.start.like,
        heads={task.name: head for task, head in zip(tasks, heads, strict=True)},
        classes={task.name: None if task.regression else task.classes for task in tasks},
        card={"method": "symerge", "kind": "shared", "tasks": [task.name for task in tasks]},
        finish=complete,
    )


if __name__ == "__main__":
    sys.exit(run(main, Settings, None, prog="python -m experiments.language"))
