"""What a run of the vision experiments starts from: settings, data, the model and its experts.

Three settings share all code after this: the embedded world ("tiny"), image folders of one's own
("images"), and the paper's sets with public experts ("checkpoints").
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from experiments import checkpoint_folders, records
from experiments.experts import Experts
from experiments.methods import Constants
from experiments.options import Options
from experiments.scene import Start
from experiments.tasks import clip_data
from experiments.tasks.clip_sets import ORDER8, ORDER14, ORDER20, ClipSet, clip_set
from experiments.tasks.images import from_folders, generated
from experiments.tasks.task import Task
from experiments.tiny import base as tiny
from symerge_jax.errors import BadInput
from symerge_jax.finetune import Recipe
from symerge_jax.models.clip_config import PRESETS

MODEL = tiny.Settings.model

# Chosen on validation images: experiments/LOG.md says what was tried, and that the rates of routers
# and corrections on real images were not.
GENERATED = Constants(
    recipe=Recipe(
        steps=300, batch_size=32, learning_rate=0.01, optimiser="sgd", clip=2.0, weight_decay=0.0
    ),
    iterations=300,
    batch_size=32,
    rate=0.01,
    coefficient_rate=0.01,
    entropy_rate=3e-4,
    initial=0.1,
    block_rate=3e-4,
    correction_rate=3e-3,
    router_rate=3e-3,
    router_initial=0.1,
)
FOLDERS = Constants(
    recipe=Recipe(
        steps=700, batch_size=32, learning_rate=5e-4, head_rate=5e-3, weight_decay=0.02, shift=2
    ),
    iterations=300,
    batch_size=32,
    rate=0.01,
    coefficient_rate=0.01,
    entropy_rate=1e-4,
    initial=0.1,
    block_rate=3e-4,
    router_rate=1e-3,
    router_initial=0.1,
)

# The paper's section 5 and appendix B, for CLIP; `initial` is 0.1 for 14 and 20 tasks.
CHECKPOINTS = Constants(
    recipe=None,
    iterations=500,
    batch_size=32,
    rate=0.01,
    coefficient_rate=1e-3,
    entropy_rate=1e-3,
    initial=0.3,
)


def adjusted(settings: Options, tasks: int) -> Constants:
    """Returns the constants of this kind of data, with the options applied."""
    by_setting = {"tiny": GENERATED, "images": FOLDERS, "checkpoints": CHECKPOINTS}
    constants = by_setting[setting_of(settings)]
    if constants.recipe is None and tasks > 8:
        constants = constants._replace(initial=0.1)
    if settings.quick:
        recipe = constants.recipe and constants.recipe._replace(steps=60)
        constants = constants._replace(recipe=recipe, iterations=10)
    if settings.iterations is not None:
        constants = constants._replace(iterations=settings.iterations)
    return constants


def setting_of(settings: Options) -> str:
    """Returns what a run works on: "tiny", "images" or "checkpoints"."""
    if settings.model not in (None, MODEL):
        return "checkpoints"
    return "images" if settings.data else "tiny"


def depth_of(settings: Options) -> int:
    """Returns the number of blocks of the image tower."""
    model = MODEL if settings.model is None else settings.model
    return PRESETS[model].vision.depth if model in PRESETS else 0


def chosen_sets(settings: Options) -> tuple[ClipSet, ...]:
    """Returns the benchmark's sets that were asked for.

    Raises:
        BadInput: no checkpoints or no data were named, or a set is unknown.
    """
    for name in ("checkpoints", "data"):
        if getattr(settings, name) is None:
            raise BadInput(
                f"--model {settings.model} needs --{name} DIR; `python -m experiments.prepare "
                f"vision --model {settings.model}` says what belongs there"
            )
    if settings.tasks:
        return tuple(clip_set(name) for name in settings.tasks)
    order = {8: ORDER8, 14: ORDER14, 20: ORDER20}[settings.task_count]
    return tuple(clip_set(name) for name in order)


def from_checkpoints(
    settings: Options, names: Sequence[str], record: records.Record, cache: Path
) -> tuple[Start, list[Task], dict[int, Experts]]:
    """Reads the benchmark's data and public experts; every seed has the same ones."""
    assert settings.checkpoints is not None
    assert settings.data is not None
    assert settings.model is not None
    sets = [clip_set(name) for name in names]
    found = checkpoint_folders.find(settings.checkpoints, settings.model, sets)
    limit = min(settings.limit or 100, 100) if settings.quick else settings.limit
    size = PRESETS[settings.model].vision.image_size
    with records.phase(record, "tasks"):
        readers = [clip_data.find_set(settings.data, name) for name in names]
        tasks = []
        for reader in readers:
            record["notes"] += clip_data.differences(reader)
            validation, test = (
                clip_data.read_split(reader, part, size=size, cache=cache, limit=limit)
                for part in ("validation", "test")
            )
            tasks.append(Task(reader.set.key, reader.names or (), None, validation, test, None))
    with records.phase(record, "experts"):
        read = checkpoint_folders.read(found, settings.model, sets, readers, settings.dtype)
    record["settings"]["layout"] = found.layout
    experts = dict.fromkeys(settings.seeds, read.experts)
    return Start(read.model, read.loaded.source), tasks, experts


def read_tasks(settings: Options, names: Sequence[str], base: tiny.Base) -> list[Task]:
    """Reads or draws the tasks."""
    limit = min(settings.limit or 100, 100) if settings.quick else settings.limit
    if settings.data is None:
        return generated(names, base, limit=limit, cache=settings.cache_folder())
    return from_folders(settings.data, names, size=base.config.vision.image_size, limit=limit)
