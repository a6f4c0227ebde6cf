"""What every experiment does before and after its own work, whatever the data.

with staged("components", ...) as scene:        experts, their predictions, a record
    ...                                         the experiment's own lines
return finish(scene, draw)                      record.json, table.csv, pictures
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np

from experiments import records, report
from experiments.adapting import Around
from experiments.adaptive import adaptive
from experiments.expert_outputs import label
from experiments.experts import Experts, Model
from experiments.merging import Tune, training_free
from experiments.methods import Constants, Outcome, Run, Seed
from experiments.options import Options, keep_programs
from experiments.scoring import Scored
from experiments.tasks.task import Task
from symerge_jax import __version__
from symerge_jax.cache import cached, digest
from symerge_jax.cli.progress import Bars, say
from symerge_jax.errors import BadInput
from symerge_jax.files import make_folder
from symerge_jax.forecast import peak_memory
from symerge_jax.models.clip_config import VisionConfig
from symerge_jax.models.resnet_config import DecoderConfig
from symerge_jax.parallel import Device, run_jobs, use_devices


class Start(NamedTuple):
    """What a run merges.

    Attributes:
        model: the encoder.
        like: its checkpoint, or its sizes where it was made here: what a written model looks like.
        classes: bool [task, classes], which head rows exist.
        decoders: sizes of the decoders of dense prediction.
    """

    model: Model
    like: Any
    classes: Any = None
    decoders: DecoderConfig | None = None

    @property
    def vision(self) -> VisionConfig:
        """Sizes of the image tower."""
        assert self.model.vision is not None, "no image tower"
        return self.model.vision


Made: TypeAlias = tuple[Start, list[Task], dict[int, Experts]]


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
def staged(
    experiment: str,
    setting: str,
    settings: Options,
    constants: Constants,
    make: Callable[[records.Record, Sequence[Device], Around], Made],
    *,
    tune: Tune = "labels",
    said: Callable[..., Sequence[Any]] = label,
) -> Iterator[Scene]:
    """Opens a record, and lets tasks, experts and their predictions be made or read.

    Args:
        experiment: its name.
        setting: what it runs on, such as "tiny".
        settings: the options.
        constants: hyper-parameters of this kind of data.
        make: gives the model, the tasks, and the experts of each seed.
        tune: how scales of training-free methods are chosen.
        said: (model, experts, tasks, cache) → what experts say of their test inputs.
    """
    everywhere = use_devices(settings.devices)
    if jax.process_count() > 1 and settings.parallel != "data":
        raise BadInput(
            f"{jax.process_count()} processes were started: these share every mini-batch of one "
            "run, with --parallel data; independent runs need no more than one process per host"
        )
    devices = [device for device in everywhere if device.process_index == jax.process_index()]
    cache = make_folder(settings.cache_folder())
    make_folder(settings.out.absolute())  # found out now, not after the work
    keep_programs(cache / "compiled")
    record = records.new_record(experiment, setting, settings)
    recipe = constants.recipe
    record["settings"]["constants"] = {
        **constants._asdict(), "recipe": None if recipe is None else recipe._asdict(),
    }  # fmt: skip
    with Bars() as bars:
        together = everywhere if settings.parallel == "data" else None
        around = Around(settings.dtype, cache, settings.resume, bars, tune, together)
        start, tasks, experts = make(record, devices, around)
        record["settings"]["tasks"] = [task.name for task in tasks]
        start = start._replace(classes=experts[settings.seeds[0]].classes)
        say(f"{len(tasks)} tasks: {', '.join(task.name for task in tasks)}")
        with records.phase(record, "predictions"):
            seeds = {
                seed: Seed(seed, found, list(said(start.model, found, tasks, cache)))
                for seed, found in experts.items()
            }
        yield Scene(record, settings, constants, start, tasks, seeds, devices, around)
        record["measured"] = peak_memory(devices)


def fixed(scene: Scene, methods: Sequence[str]) -> list[Outcome]:
    """Runs training-free methods, each under each seed."""
    maps = scene.model.dense is not None  # whose scores come with maps to look at: not kept
    basis = {} if maps else {seed.number: _basis(scene, seed) for seed in scene.seeds.values()}
    jobs = [
        partial(training_free, scene.model, seed, scene.tasks, method, scene.around.tune)
        if maps
        else partial(_row, scene, seed, method, basis[seed.number])
        for seed in scene.seeds.values()
        for method in methods
    ]
    with records.phase(scene.record, "training-free"):
        return run_jobs(jobs, scene.devices)


def _basis(scene: Scene, seed: Seed) -> str:
    """Returns a digest of all that training-free rows of a seed are made from."""
    experts = seed.experts
    splits = ((task.train, task.validation, task.test, task.metric) for task in scene.tasks)
    return digest(
        __version__, scene.model.program, experts.task_vectors, experts.stacked,
        experts.first_heads, *splits,
    )  # fmt: skip


def _row(scene: Scene, seed: Seed, method: str, basis: str) -> Outcome:
    """A training-free row; with --resume, as an earlier equal run has scored it."""
    run = partial(training_free, scene.model, seed, scene.tasks, method, scene.around.tune)
    key = {"method": method, "seed": seed.number, "tune": scene.around.tune, "basis": basis}

    def make() -> dict[str, Any]:
        made = run()
        return {
            "scores": {f"{k:03d}": _arrays(one) for k, one in enumerate(made.scores)},
            "stored": np.float64(made.stored),
            "note": np.frombuffer((made.note or "").encode(), np.uint8),
        }

    kept = cached(scene.around.cache, "rows", key, make, report=say, renew=not scene.around.resume)
    scores = [
        Scored(one["correct"], float(one["ece"]), float(one["value"]) if "value" in one else None)
        for one in kept["scores"].values()
    ]
    note = bytes(kept["note"]).decode() or None
    return Outcome(method, seed.number, False, scores, note=note, stored=float(kept["stored"]))


def _arrays(one: Scored) -> dict[str, Any]:
    found = {"correct": one.correct, "ece": np.float64(one.ece)}
    return found if one.value is None else found | {"value": np.float64(one.value)}


def adapt(
    scene: Scene,
    runs: Sequence[Run],
    constants: Constants | Sequence[Constants] | None = None,
    run_one: Callable[..., Outcome] = adaptive,
) -> list[Outcome]:
    """Runs adaptive methods, each under each seed.

    Args:
        scene: of the experiment.
        runs: what to run.
        constants: other than the scene's: for all runs, or for each.
        run_one: runs one of them.
    """
    given = scene.constants if constants is None else constants
    each = [given] * len(runs) if isinstance(given, Constants) else given
    jobs = [
        partial(run_one, scene.model, seed, scene.tasks, run, own, scene.around)
        for run, own in zip(runs, each, strict=True)
        for seed in scene.seeds.values()
    ]
    # Runs that share all devices go one after the other.
    free = scene.devices if scene.around.together is None else scene.devices[:1]
    with records.phase(scene.record, "adaptation"):
        return run_jobs(jobs, free)


def add(scene: Scene, outcomes: Sequence[Outcome]) -> None:
    """Adds the accuracy and calibration error of each task to the record, and the notes.

    For tasks that are scored by accuracy.
    """
    record = scene.record
    for one in outcomes:
        if one.note:
            record["notes"].append(f"seed {one.seed}: {one.note}")
        record.setdefault("stored_encoders", {}).setdefault(one.method, one.stored)
        for task, scored in zip(scene.tasks, one.scores, strict=True):
            assert task.metric == "accuracy", task.name
            add_one = partial(
                records.add_result, record, method=one.method, seed=one.seed, task=task.name,
                n=len(scored.correct),
            )  # fmt: skip
            add_one(metric="accuracy", value=scored.accuracy)
            add_one(metric="ece", value=scored.ece)


def mean_accuracy(outcome: Outcome) -> float:
    """Returns the mean over tasks of their metric, in percent."""
    return float(np.mean([one.score for one in outcome.scores]))


def finish(
    scene: Scene,
    draw: Callable[[Path], Any] | None = None,
    show: Callable[[records.Record], Any] = report.print_table,
) -> int:
    """Writes record, table and pictures; the last line printed is the path of the record.

    Args:
        scene: with its results in the record.
        draw: puts pictures and files into the run's folder.
        show: prints what it has found.
    """
    record = scene.record
    if jax.process_index() > 0:  # the first process writes for all
        return 0
    folder = records.new_folder(record, scene.settings.out)
    try:
        if draw is not None:
            draw(folder)
        path = records.write(record, folder)
    except BaseException:  # a full disk, an interruption: no half run stays behind
        shutil.rmtree(folder, ignore_errors=True)
        raise
    show(record)
    times = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in record["phases_s"].items())
    say(f"time: {times}")
    print(path)
    return 0


def describe(
    settings: Options, constants: Constants, names: Sequence[str], methods: Sequence[str]
) -> int:
    """Says what a run would do: the answer to --dry-run.

    Args:
        settings: the options.
        constants: hyper-parameters.
        names: of the tasks.
        methods: in table order.
    """
    devices = use_devices(settings.devices)
    print(f"tasks: {', '.join(names)} ({settings.data or 'embedded world'})")
    print(f"methods: {', '.join(methods)}")
    print(f"seeds: {', '.join(map(str, settings.seeds))}; devices: {len(devices)}")
    if constants.recipe is None:
        print(f"checkpoints: {settings.checkpoints}")
    else:
        print(f"fine-tuning: {constants.recipe}")
    print(f"adaptation: {constants.iterations} rounds over the tasks, batch {constants.batch_size}")
    return 0
