"""What a run of the dense experiment starts from: settings, scenes, the model and its experts.

Three settings share all code after this: the embedded world of rooms ("tiny"), a folder of scenes
such as NYUv2 with the small model ("scenes"), and ResNet-50 with experts that are read
("checkpoints").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments import records, resnet_folders
from experiments.adapting import Around
from experiments.dense_experts import dense_model, make_dense_experts
from experiments.experts import Experts, Model
from experiments.forecasting import scene_cost
from experiments.methods import Constants
from experiments.options import Options
from experiments.scene import Made, Start
from experiments.tasks import rooms as tasks_of_rooms
from experiments.tasks.rooms import TASKS
from experiments.tasks.task import Task, check_known
from experiments.tiny import rooms, rooms_base
from symerge_jax.adapt.dense import Statistics
from symerge_jax.cache import cached, digest
from symerge_jax.cli.errors import nearest
from symerge_jax.cli.progress import say
from symerge_jax.dense import expert_maps, network
from symerge_jax.errors import BadInput
from symerge_jax.forecast import Cost
from symerge_jax.models.resnet_config import DECODERS, PRESETS
from symerge_jax.parallel import Device
from symerge_jax.recipes import Recipe

MODELS = ("resnet50",)
SMALL = (72, 96)  # pixels, what the small model has seen
NYUV2_SIZE, NYUV2_TEST = (288, 384), 654  # MTAN's version

# Chosen on validation scenes: experiments/LOG.md says what was tried.
GENERATED = Constants(
    recipe=Recipe(
        steps=500, batch_size=16, learning_rate=2e-3, head_rate=2e-3, optimiser="adam", clip=0.0,
        warmup=0.05,
    ),
    iterations=60,
    batch_size=16,
    rate=1e-3,
    coefficient_rate=1e-2,
    entropy_rate=1e-3,
    initial=0.3,
    correction_rate=3e-3,
)  # fmt: skip
# Section 5 of the paper: 25 iterations, batches of 16, learning rate 1e-4.
CHECKPOINTS = Constants(
    recipe=None,
    iterations=25,
    batch_size=16,
    rate=1e-4,
    coefficient_rate=1e-4,
    entropy_rate=1e-3,
    initial=0.3,
    correction_rate=1e-3,
)


@dataclass(frozen=True)
class DenseOptions(Options):
    """Options of experiments on scenes, beside those that all share."""

    batch_norm: Statistics = "recalibrate"
    """What SyMerge does with running statistics: let them move while it adapts, merge them like
    weights, or take those of the pre-trained model."""
    size: tuple[int, int] | None = None
    """Height and width in pixels to bring scenes to; with --data and the small model 72 96, else
    as they are."""
    batch_mean: int | None = None
    """Average depth errors and angles over batches of so many scenes, as MTAN does, and not over
    all pixels."""


def setting_of(settings: Options) -> str:
    """Returns what a run works on: "tiny", "scenes" or "checkpoints"."""
    if settings.model in MODELS:
        return "checkpoints"
    return "scenes" if settings.data else "tiny"


def adjusted(settings: DenseOptions) -> Constants:
    """Returns the constants of this kind of data, with the options applied."""
    constants = CHECKPOINTS if settings.model in MODELS else GENERATED
    if settings.quick:
        recipe = constants.recipe and constants.recipe._replace(steps=20)
        constants = constants._replace(recipe=recipe, iterations=5)
    if settings.iterations is not None:
        constants = constants._replace(iterations=settings.iterations)
    return constants._replace(batch_norm=settings.batch_norm)


def chosen_tasks(settings: DenseOptions) -> list[str]:
    """Returns the names of the tasks.

    Raises:
        BadInput: an unknown task or model, or options that do not go together.
    """
    known = (rooms_base.MODEL, *MODELS)
    if settings.model not in (None, *known):
        raise BadInput(
            f"--model must be one of {', '.join(known)}; got {settings.model}"
            f"{nearest(settings.model, known)}"
        )
    if settings.model in MODELS:
        for name in ("checkpoints", "data"):
            if getattr(settings, name) is None:
                raise BadInput(
                    f"--model {settings.model} needs --{name} DIR; `python -m experiments.prepare "
                    "dense` says what belongs there"
                )
    elif settings.checkpoints is not None:
        raise BadInput(f"--checkpoints needs --model, one of {', '.join(MODELS)}")
    if settings.data is None and settings.size is not None:
        raise BadInput("--size goes with --data; generated rooms have one size")
    if settings.size is not None and min(settings.size) < 8:
        raise BadInput(f"--size: expected at least 8 pixels, got {settings.size}")
    if settings.batch_mean is not None and settings.batch_mean < 1:
        raise BadInput(f"--batch-mean must be at least 1, got {settings.batch_mean}")
    names = list(settings.tasks or TASKS)
    for name in names:
        check_known(name, TASKS, "task")
    return names


def expected(
    settings: DenseOptions, names: Sequence[str], constants: Constants
) -> tuple[Cost, dict[str, int]]:
    """Returns what a mini-batch costs, and how many test scenes there are at most.

    Scenes of files are counted when they are read: without --limit, as many as NYUv2 has, in the
    size of MTAN's or --size.
    """
    name = settings.model or rooms_base.MODEL
    usual = (rooms.HEIGHT, rooms.WIDTH) if settings.data is None else SMALL
    size = settings.size or (NYUV2_SIZE if settings.model in MODELS else usual)
    limit = min(settings.limit or 32, 32) if settings.quick else settings.limit
    count = limit or (rooms.TEST if settings.data is None else NYUV2_TEST)
    one = scene_cost(PRESETS[name], DECODERS[name], size, constants.batch_size, settings.dtype)
    return one, dict.fromkeys(names, count)


def make(
    settings: DenseOptions,
    names: Sequence[str],
    constants: Constants,
    moving: Sequence[str],
    record: records.Record,
    devices: Sequence[Device],
    around: Around,
) -> Made:
    """Reads or makes the model, the tasks and the experts of each seed.

    Raises:
        BadInput: bad files, or a single test scene for the rows in `moving`, whose statistics move.
    """
    limit = min(settings.limit or 32, 32) if settings.quick else settings.limit
    with records.phase(record, "tasks"):
        tasks = _tasks(settings, names, limit, around)
    if moving and len(tasks[0].test.labels) < 2:
        raise BadInput(
            f"one test scene has no variance for batch normalisation; give --limit 2 or more, or "
            f"leave out --methods {', '.join(moving)}, or take --batch-norm merge_stats"
        )
    if setting_of(settings) == "checkpoints":
        return _from_checkpoints(settings, names, tasks, record)
    with records.phase(record, "pre-training"):
        recipe = rooms_base.RECIPE._replace(steps=20) if settings.quick else rooms_base.RECIPE
        base = rooms_base.load(around.cache, recipe=recipe, bars=around.bars)
    own = network(base.config, DECODERS[rooms_base.MODEL], _size(tasks), settings.dtype)
    sizes = f"{base.config} {DECODERS[rooms_base.MODEL]} {_size(tasks)}"
    model = dense_model(own, base.variables, f"{base.name} {sizes} {settings.dtype}")
    assert constants.recipe is not None
    with records.phase(record, "experts"):
        experts = make_dense_experts(
            model, DECODERS[rooms_base.MODEL], tasks, constants.recipe, settings.seeds,
            devices=devices, cache=around.cache, bars=around.bars,
        )  # fmt: skip
    return Start(model, base.config, decoders=DECODERS[rooms_base.MODEL]), tasks, experts


def _size(tasks: Sequence[Task]) -> tuple[int, int]:
    height, width = tasks[0].test.inputs.shape[1:3]
    return height, width


def _tasks(
    settings: DenseOptions, names: Sequence[str], limit: int | None, around: Around
) -> list[Task]:
    if settings.data is None:
        found = tasks_of_rooms.generated(names, limit=limit, cache=around.cache)
    else:
        size = settings.size or (None if settings.model in MODELS else SMALL)
        found = tasks_of_rooms.from_folder(
            settings.data, names, size=size, limit=limit, cache=around.cache
        )
    return [task._replace(batch_mean=settings.batch_mean) for task in found]


def _from_checkpoints(
    settings: DenseOptions, names: Sequence[str], tasks: list[Task], record: records.Record
) -> Made:
    """Reads the trunk and the experts; every seed has the same ones."""
    assert settings.checkpoints is not None
    with records.phase(record, "experts"):
        found = resnet_folders.find(settings.checkpoints, names)
        read = resnet_folders.read(found, tasks, _size(tasks), settings.dtype)
    # The sizes, not the file: of the output stride only an expert's may say anything.
    start = Start(read.model, read.source.config, decoders=read.decoders)
    return start, tasks, dict.fromkeys(settings.seeds, read.experts)


def said(model: Model, experts: Experts, tasks: Sequence[Task], cache: Path) -> list[np.ndarray]:
    """Returns what experts say of their tasks' test images; no label takes part."""
    own = model.dense
    assert own is not None
    found = []
    for k, task in enumerate(tasks):
        encoder, decoder = experts.params[k], experts.heads[k]

        def make(task: Task = task, encoder: Any = encoder, decoder: Any = decoder) -> Any:
            outputs = len(task.classes)
            maps = expert_maps(own, encoder, decoder, task.test.inputs, outputs, task.name)
            return {"maps": maps}

        key = {
            "program": model.program, "jax": jax.__version__, "kind": task.name,
            "expert": digest(encoder, decoder), "inputs": digest(task.test.inputs),
        }  # fmt: skip
        found.append(cached(cache, "maps", key, make, report=say)["maps"])
    return found
