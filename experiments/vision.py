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
With --checkpoints (layouts: checkpoint_folders.py) nothing is fine-tuned: experts and heads are
read, and the settings are the paper's. `python -m experiments.prepare vision` gets the files.

Expected: the tables in README.md, rendered from experiments/results/vision/. For the paper's
experts its Table 1, 90.1 for SyMerge with ViT-B/32 on 8 tasks; no record of ours holds that yet.
"""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments import figures, records, report
from experiments.experts import Model, make_experts
from experiments.methods import (
    ADAPTIVE,
    JOINT,
    KNOWN,
    Constants,
    Outcome,
    Seed,
    Tune,
    adaptive,
    halves,
    label,
    training_free,
)
from experiments.options import Options, check, keep_programs
from experiments.prepare_needs import MODELS
from experiments.tasks.images import Task, check_known
from experiments.tiny import base as tiny
from experiments.tiny import world
from experiments.vision_start import (
    MODEL,
    Start,
    adjusted,
    chosen_sets,
    from_checkpoints,
    read_tasks,
    setting_of,
)
from symerge_jax.adapt.coefficients import as_matrix
from symerge_jax.adapt.symerge import Adapted
from symerge_jax.checkpoints.clip import source_names
from symerge_jax.checkpoints.export import write_model
from symerge_jax.classifier import encoder
from symerge_jax.cli.errors import nearest, run
from symerge_jax.cli.progress import Bars, say
from symerge_jax.data.images import find_tasks
from symerge_jax.errors import BadInput
from symerge_jax.files import make_folder, write_atomically
from symerge_jax.models.heads import unstack_heads
from symerge_jax.parallel import run_jobs, use_devices
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


def main(settings: Settings) -> int:
    """Runs the experiment; the last line printed is the path of the record."""
    check(settings)
    methods, names = chosen_methods(settings), chosen_tasks(settings)
    devices = use_devices(settings.devices)
    constants = adjusted(settings, len(names))
    if settings.dry_run:
        return describe(names, settings, methods, constants, devices)
    cache = make_folder(settings.cache_folder())
    make_folder(settings.out.absolute())  # found out now, not after the work
    keep_programs(cache / "compiled")
    setting = setting_of(settings)
    record = records.new_record("vision", setting, settings)
    recipe = constants.recipe
    record["settings"]["constants"] = {
        **constants._asdict(), "recipe": None if recipe is None else recipe._asdict(),
    }  # fmt: skip
    record["settings"]["tasks"] = list(names)

    with Bars() as bars:
        if recipe is None:
            start, tasks, experts = from_checkpoints(settings, names, record, cache)
        else:
            with records.phase(record, "tasks"):
                base = pretrain_again(settings) if settings.retrain else tiny.load()
                tasks = read_tasks(settings, names, base)
            start = Start(
                Model(
                    encoder(base.config.vision, settings.dtype),
                    base.params["vision"],
                    f"{base.card['sha256']} {settings.dtype}",
                    base.config.vision,
                ),
                base.config.vision,
                base.config.vision,
            )
            with records.phase(record, "experts"):
                experts = make_experts(
                    start.model, tasks, recipe, settings.seeds,
                    devices=devices, cache=cache, bars=bars,
                )  # fmt: skip
        model = start.model
        start = start._replace(classes=experts[settings.seeds[0]].classes)
        say(f"{len(tasks)} tasks: {', '.join(task.name for task in tasks)}")
        with records.phase(record, "predictions"):
            seeds = {
                seed: Seed(seed, found, label(model, found, tasks, cache))
                for seed, found in experts.items()
            }
        with records.phase(record, "training-free"):
            jobs = [
                partial(training_free, model, seeds[seed], tasks, method, settings.tune)
                for seed in settings.seeds
                for method in methods
                if method not in ADAPTIVE
            ]
            fixed = run_jobs(jobs, devices)
        with records.phase(record, "adaptation"):
            learning = [method for method in methods if method in ADAPTIVE]
            jobs = [
                partial(
                    adaptive,
                    model,
                    seeds[seed],
                    tasks,
                    method,
                    constants,
                    half=half,
                    dtype=settings.dtype,
                    cache=cache,
                    resume=settings.resume,
                    bars=bars,
                )
                for half in ((False, True) if setting == "images" else (False,))
                for method in sorted(learning, key="symerge_head".__eq__)  # short ones last
                for seed in settings.seeds
            ]
            learned = run_jobs(jobs, devices)
    collect(record, methods, settings, tasks, [*fixed, *learned])
    folder = records.new_folder(record, settings.out)
    try:
        draw(record, learned, tasks, start, folder)
        path = records.write(record, folder)
    except BaseException:  # a full disk, an interruption: no half run stays behind
        shutil.rmtree(folder, ignore_errors=True)
        raise
    report.print_table(record)
    times = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in record["phases_s"].items())
    say(f"time: {times}")
    print(path)
    return 0


def chosen_methods(settings: Settings) -> list[str]:
    """Returns the methods in table order; the experts are always there, to compare with."""
    names = [name.replace("-", "_") for name in settings.methods or DEFAULT]
    if names == ["all"]:
        names = [name for name in KNOWN if name != "slerp"]
    if "slerp" in names and len(chosen_tasks(settings)) != 2:
        raise BadInput("--methods slerp joins two experts; give two --tasks, or leave it out")
    for name in names:
        check_known(name, KNOWN, "method")
    return [name for name in KNOWN if name in {*names, "individual"}]


def chosen_tasks(settings: Settings) -> list[str]:
    """Returns the names of the tasks.

    Raises:
        BadInput: an unknown task, fewer than two, or an option that this experiment cannot serve.
    """
    if settings.model in (None, MODEL):
        if settings.checkpoints is not None:
            raise BadInput(
                f"--checkpoints needs --model, one of {', '.join(MODELS)}: whose experts they are"
            )
    elif settings.model not in MODELS:
        known = (MODEL, *MODELS)
        raise BadInput(f"--model must be one of {', '.join(known)}; got {settings.model}"
                       f"{nearest(settings.model, known)}")  # fmt: skip
    else:
        return [row.key for row in chosen_sets(settings)]
    if settings.data is None:
        names = list(settings.tasks or world.TASKS[: settings.task_count])
        for name in names:
            check_known(name, world.TASKS, "task")
        return names
    if settings.limit == 1:
        raise BadInput("--limit must be at least 2 with --data: one half is adapted on, one scored")
    found = find_tasks(settings.data)
    names = list(settings.tasks or found)
    for name in names:
        if not (settings.data / name).is_dir():
            check_known(name, found, "task")
    if not names:
        raise BadInput(
            f"{settings.data}: no task found; expected folders with train.npz and test.npz, or "
            "with train/ and test/ holding a folder per class"
        )
    if len(names) < 2:
        raise BadInput(f"{settings.data}: merging needs at least two tasks, found only {names[0]}")
    return names


def pretrain_again(settings: Settings) -> tiny.Base:
    """Makes the base anew, in the cache folder, and returns it."""
    folder = settings.cache_folder() / "base"
    tiny.main(tiny.Settings(out=folder, devices=len(jax.devices())))
    return tiny.load(folder)


def collect(
    record: records.Record,
    methods: Sequence[str],
    settings: Settings,
    tasks: Sequence[Task],
    outcomes: Sequence[Outcome],
) -> None:
    """Adds every result to the record, in table order."""
    found = {(one.method, one.seed, one.half): one for one in outcomes}
    record["notes"] += [f"seed {one.seed}: {one.note}" for one in outcomes if one.note]
    record["stored_encoders"] = {method: found[method, settings.seeds[0], False].stored
                                 for method in methods}  # fmt: skip
    for method in methods:
        for seed in settings.seeds:
            whole = found[(method, seed, False)]
            for k, task in enumerate(tasks):
                add_one = partial(
                    records.add_result, record, method=method, seed=seed, task=task.name
                )
                correct = whole.scores[k].correct
                add_one(metric="accuracy", value=100 * correct.mean(), n=len(correct))
                add_one(metric="ece", value=whole.scores[k].ece, n=len(correct))
                if record["setting"] == "images":
                    rest = halves(len(correct))[1]
                    half = found.get((method, seed, True), whole).scores[k].correct[rest]
                    add_one(metric="held_out_accuracy", value=100 * half.mean(), n=len(rest))


def draw(
    record: records.Record,
    outcomes: Sequence[Outcome],
    tasks: Sequence[Task],
    start: Start,
    folder: Path,
) -> None:
    """Draws the pictures of the first seed, and stores its coefficients and heads."""
    figures.accuracy_per_task(record, folder / "accuracy.png")
    firsts: dict[str, Adapted] = {}
    for outcome in outcomes:
        if outcome.adapted is not None and not outcome.half:
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
        if not ("all" in one.coefficients and len(one.coefficients) == 1):
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


def describe(
    names: Sequence[str],
    settings: Settings,
    methods: Sequence[str],
    constants: Constants,
    devices: Sequence[Any],
) -> int:
    """Says what a run would do."""
    print(f"tasks: {', '.join(names)} ({settings.data or 'embedded world'})")
    print(f"methods: {', '.join(methods)}")
    print(f"seeds: {', '.join(map(str, settings.seeds))}; devices: {len(devices)}")
    if constants.recipe is None:
        print(f"checkpoints: {settings.checkpoints}")
    else:
        print(f"fine-tuning: {constants.recipe}")
    print(f"adaptation: {constants.iterations} rounds over the tasks, batch {constants.batch_size}")
    return 0


if __name__ == "__main__":
    sys.exit(run(main, Settings, None, prog="python -m experiments.vision"))
