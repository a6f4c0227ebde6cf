"""What every vision experiment does before and after its own work.

with begin("components", settings) as run:      experts, their predictions, a record
    ...                                         the experiment's own lines
return finish(run, draw)                        record.json, table.csv, pictures
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments import records, report
from experiments.adapting import Around
from experiments.adaptive import adaptive
from experiments.expert_outputs import label
from experiments.experts import Experts, Model, make_experts
from experiments.merging import Tune, training_free
from experiments.methods import Constants, Outcome, Run, Seed
from experiments.options import Options, check, keep_programs
from experiments.prepare_needs import MODELS
from experiments.tasks.task import Task, check_known
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
from symerge_jax.classifier import encoder
from symerge_jax.cli.errors import nearest
from symerge_jax.cli.progress import Bars, say
from symerge_jax.data.images import find_tasks
from symerge_jax.errors import BadInput
from symerge_jax.files import make_folder
from symerge_jax.parallel import Device, run_jobs, use_devices


class Scene(NamedTuple):
    """All that an experiment works with.

    Attributes:
        record: of the run; results go there.
        settings: its options.
        constants: hyper-parameters of this kind of data.
        start: the model and where it came from.
        tasks: with their images.
        seeds: number → experts and what they say of the test images.
        devices: that jobs share.
        around: precision, cache, progress.
    """

    record: records.Record
    settings: Options
    constants: Constants
    start: Start
    tasks: list[Task]
    seeds: dict[int, Seed]
    devices: Sequence[Device]
    around: Around

    @property
    def model(self) -> Model:
        """The encoder all experts start from."""
        return self.start.model


@contextmanager
def begin(
    experiment: str,
    settings: Options,
    *,
    default: Sequence[str] | None = None,
    tune: Tune = "labels",
    retrain: bool = False,
) -> Iterator[Scene]:
    """Reads or makes tasks, experts and their predictions, and opens a record.

    Args:
        experiment: its name.
        settings: the options, checked here.
        default: the experiment's own tasks of the embedded world; the first `task_count` otherwise.
        tune: how scales of training-free methods are chosen.
        retrain: whether the embedded model is pre-trained again first.
    """
    check(settings)
    names = chosen_tasks(settings, default)
    devices = use_devices(settings.devices)
    constants = adjusted(settings, len(names))
    cache = make_folder(settings.cache_folder())
    make_folder(settings.out.absolute())  # found out now, not after the work
    keep_programs(cache / "compiled")
    record = records.new_record(experiment, setting_of(settings), settings)
    recipe = constants.recipe
    record["settings"]["constants"] = {
        **constants._asdict(), "recipe": None if recipe is None else recipe._asdict(),
    }  # fmt: skip
    record["settings"]["tasks"] = list(names)
    with Bars() as bars:
        around = Around(settings.dtype, cache, settings.resume, bars, tune)
        if recipe is None:
            start, tasks, experts = from_checkpoints(settings, names, record, cache)
        else:
            start, tasks, experts = _made(settings, names, record, constants, devices, around,
                                          retrain)  # fmt: skip
        start = start._replace(classes=experts[settings.seeds[0]].classes)
        say(f"{len(tasks)} tasks: {', '.join(task.name for task in tasks)}")
        with records.phase(record, "predictions"):
            seeds = {
                seed: Seed(seed, found, label(start.model, found, tasks, cache))
                for seed, found in experts.items()
            }
        yield Scene(record, settings, constants, start, tasks, seeds, devices, around)


def _made(
    settings: Options,
    names: Sequence[str],
    record: records.Record,
    constants: Constants,
    devices: Sequence[Device],
    around: Around,
    retrain: bool,
) -> tuple[Start, list[Task], dict[int, Experts]]:
    """Fine-tunes the embedded model, or finds that done in the cache."""
    assert constants.recipe is not None
    with records.phase(record, "tasks"):
        base = pretrain_again(settings) if retrain else tiny.load()
        tasks = read_tasks(settings, names, base)
    model = Model(
        encoder(base.config.vision, settings.dtype),
        base.params["vision"],
        f"{base.card['sha256']} {settings.dtype}",
        base.config.vision,
    )
    with records.phase(record, "experts"):
        experts = make_experts(
            model, tasks, constants.recipe, settings.seeds,
            devices=devices, cache=around.cache, bars=around.bars,
        )  # fmt: skip
    return Start(model, base.config.vision, base.config.vision), tasks, experts


def describe(
    settings: Options, methods: Sequence[str], default: Sequence[str] | None = None
) -> int:
    """Says what a run would do: the answer to --dry-run."""
    check(settings)
    names = chosen_tasks(settings, default)
    constants, devices = adjusted(settings, len(names)), use_devices(settings.devices)
    print(f"tasks: {', '.join(names)} ({settings.data or 'embedded world'})")
    print(f"methods: {', '.join(methods)}")
    print(f"seeds: {', '.join(map(str, settings.seeds))}; devices: {len(devices)}")
    if constants.recipe is None:
        print(f"checkpoints: {settings.checkpoints}")
    else:
        print(f"fine-tuning: {constants.recipe}")
    print(f"adaptation: {constants.iterations} rounds over the tasks, batch {constants.batch_size}")
    return 0


def pretrain_again(settings: Options) -> tiny.Base:
    """Makes the base anew, in the cache folder, and returns it."""
    folder = settings.cache_folder() / "base"
    tiny.main(tiny.Settings(out=folder, devices=len(jax.devices())))
    return tiny.load(folder)


def chosen_tasks(settings: Options, default: Sequence[str] | None = None) -> list[str]:
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
        own = default or world.TASKS[: settings.task_count]
        names = list(settings.tasks or own)
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


def fixed(scene: Scene, methods: Sequence[str]) -> list[Outcome]:
    """Runs training-free methods, each under each seed."""
    jobs = [
        partial(training_free, scene.model, seed, scene.tasks, method, scene.around.tune)
        for seed in scene.seeds.values()
        for method in methods
    ]
    with records.phase(scene.record, "training-free"):
        return run_jobs(jobs, scene.devices)


def adapt(
    scene: Scene,
    runs: Sequence[Run],
    constants: Constants | Sequence[Constants] | None = None,
) -> list[Outcome]:
    """Runs adaptive methods, each under each seed.

    Args:
        scene: of the experiment.
        runs: what to run.
        constants: other than the scene's: for all runs, or for each.
    """
    given = scene.constants if constants is None else constants
    each = [given] * len(runs) if isinstance(given, Constants) else given
    jobs = [
        partial(adaptive, scene.model, seed, scene.tasks, run, own, scene.around)
        for run, own in zip(runs, each, strict=True)
        for seed in scene.seeds.values()
    ]
    with records.phase(scene.record, "adaptation"):
        return run_jobs(jobs, scene.devices)


def add(scene: Scene, outcomes: Sequence[Outcome]) -> None:
    """Adds the accuracy and calibration error of each task to the record, and the notes."""
    record = scene.record
    for one in outcomes:
        if one.note:
            record["notes"].append(f"seed {one.seed}: {one.note}")
        record.setdefault("stored_encoders", {}).setdefault(one.method, one.stored)
        for task, scored in zip(scene.tasks, one.scores, strict=True):
            add_one = partial(
                records.add_result, record, method=one.method, seed=one.seed, task=task.name,
                n=len(scored.correct),
            )  # fmt: skip
            add_one(metric="accuracy", value=scored.accuracy)
            add_one(metric="ece", value=scored.ece)


def mean_accuracy(outcome: Outcome) -> float:
    """Returns the mean over tasks, in percent."""
    return float(np.mean([one.accuracy for one in outcome.scores]))


def finish(scene: Scene, draw: Callable[[Path], Any] | None = None) -> int:
    """Writes record, table and pictures; the last line printed is the path of the record.

    Args:
        scene: with its results in the record.
        draw: puts pictures and files into the run's folder.
    """
    record = scene.record
    folder = records.new_folder(record, scene.settings.out)
    try:
        if draw is not None:
            draw(folder)
        path = records.write(record, folder)
    except BaseException:  # a full disk, an interruption: no half run stays behind
        shutil.rmtree(folder, ignore_errors=True)
        raise
    report.print_table(record)
    times = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in record["phases_s"].items())
    say(f"time: {times}")
    print(path)
    return 0
