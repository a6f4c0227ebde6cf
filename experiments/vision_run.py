"""What every vision experiment does before and after its own work.

with begin("components", settings) as run:      experts, their predictions, a record
    ...                                         the experiment's own lines
return finish(run, draw)                        record.json, table.csv, pictures
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import jax

from experiments import records
from experiments.adapting import Around
from experiments.experts import Model, make_experts
from experiments.forecasting import cost, forecast, lines, test_counts
from experiments.merging import Tune
from experiments.methods import Constants
from experiments.options import Options, check
from experiments.prepare_needs import MODELS
from experiments.scene import (
    Made,
    Scene,
    Start,
    adapt,
    add,
    finish,
    fixed,
    mean_accuracy,
    staged,
)
from experiments.scene import describe as describe_run
from experiments.tasks.task import check_known
from experiments.tiny import base as tiny
from experiments.tiny import world
from experiments.vision_start import (
    MODEL,
    adjusted,
    chosen_sets,
    from_checkpoints,
    read_tasks,
    setting_of,
)
from symerge_jax.classifier import encoder
from symerge_jax.cli.errors import nearest
from symerge_jax.data.images import find_tasks
from symerge_jax.errors import BadInput
from symerge_jax.models.clip import PRESETS
from symerge_jax.parallel import Device, use_devices

__all__ = [
    "Scene", "adapt", "add", "begin", "chosen_tasks", "describe", "finish", "fixed",
    "mean_accuracy",
]  # fmt: skip


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
    constants = adjusted(settings, len(names))

    def make(record: records.Record, devices: Sequence[Device], around: Around) -> Made:
        if constants.recipe is None:
            return from_checkpoints(settings, names, record, around.cache)
        return _made(settings, names, record, constants, devices, around, retrain)

    with staged(experiment, setting_of(settings), settings, constants, make, tune=tune) as scene:
        yield scene


def _made(
    settings: Options,
    names: Sequence[str],
    record: records.Record,
    constants: Constants,
    devices: Sequence[Device],
    around: Around,
    retrain: bool,
) -> Made:
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
    return Start(model, base.config.vision), tasks, experts


def expect(scene: Scene, methods: Sequence[str]) -> None:
    """Puts into the record what the run should need; what it needed is written beside it."""
    tests = {task.name: len(task.test.labels) for task in scene.tasks}
    one = cost(scene.start.vision, scene.constants.batch_size, scene.settings.dtype)
    scene.record["forecast"] = forecast(
        one, scene.constants, methods, scene.settings, tests, scene.devices
    )


def describe(
    settings: Options, methods: Sequence[str], default: Sequence[str] | None = None
) -> int:
    """Says what a run would do and need: the answer to --dry-run."""
    check(settings)
    names = chosen_tasks(settings, default)
    constants = adjusted(settings, len(names))
    code = describe_run(settings, constants, names, methods)
    tests = test_counts(settings, names)
    if tests is not None:
        config = PRESETS[settings.model or MODEL].vision
        devices = use_devices(settings.devices)
        one = cost(config, constants.batch_size, settings.dtype)
        found = forecast(one, constants, methods, settings, tests, devices)
        print("\n".join(lines(found)))
    return code


def pretrain_again(settings: Options) -> tiny.Base:
    """Makes the base anew, in the cache folder, and returns it."""
    folder = settings.cache_folder() / "base"
    tiny.main(tiny.Settings(out=folder, devices=len(jax.devices()), resume=settings.resume))
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
