"""Fine-tunes a ResNet on one dense task: what `experiments.finetune` does for models of scenes.

All of the trunk and a fresh decoder are trained, from ImageNet weights in a file, on all training
scenes of NYUv2 or of one's own, without augmentation; the test split (val) is scored. The recipe is
that of FusionBench (https://github.com/tanganke/fusion_bench), which SyMerge follows: 40 passes in
batches of 16, Adam at 1e-4, halved each ten passes. Batch normalisation sees a batch's own
statistics and moves the running ones, and the decoder drops half of its channels.

What departs: the last batch of a pass is filled up by the next one; the first numbers of a decoder
are normal, not uniform, of PyTorch's deviation; scenes lie on the device as bytes.

The expert is a folder with the trunk in torchvision's names, its output stride in `config.json` and
the decoder in `heads/<task>.safetensors`. Beside all experts of a model lies what they started
from, in `pretrained/`: `experiments.resnet_folders` reads them together.

Expected on NYUv2, as FusionBench and SyMerge report their experts: mIoU 52.0 and pixel accuracy
74 %; depth errors 0.415 to 0.425 m and 0.173 to 0.177; normals 24.2 to 24.7 degrees off.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments import records
from experiments.finetune_run import (
    Settings,
    begun_state,
    expert_card,
    finish,
    keep_pretrained,
    recipe_name,
    some,
)
from experiments.options import keep_programs
from experiments.resnet_folders import BASES
from experiments.tasks.rooms import KINDS, TASKS
from experiments.tasks.task import Split, check_known
from symerge_jax.adapt.dense import Network
from symerge_jax.cache import digest
from symerge_jax.checkpoints import export
from symerge_jax.checkpoints.decoders import Decoder
from symerge_jax.checkpoints.resnet import LoadedResNet, load_resnet
from symerge_jax.checkpoints.resnet_export import save_resnet
from symerge_jax.checkpoints.resnet_layout import decoder_rules, trunk_rules
from symerge_jax.checkpoints.resnet_tensors import counters_of
from symerge_jax.cli.progress import Bars, say
from symerge_jax.data.dense import read_scenes
from symerge_jax.dense import dense_scores, network, training
from symerge_jax.errors import BadInput
from symerge_jax.files import make_folder
from symerge_jax.finetune import Expert, finetune_with_state
from symerge_jax.models.dense_heads import initial_decoder
from symerge_jax.models.resnet_config import DECODERS, PRESETS
from symerge_jax.notation import Params
from symerge_jax.recipes import Recipe, dense_recipe
from symerge_jax.score import computable
from symerge_jax.verify import write_reference

CHUNK = 10  # steps of one call of the compiled program


class Start(NamedTuple):
    """The pre-trained trunk.

    Attributes:
        loaded: the checkpoint.
        variables: {'params', 'batch_stats'}, float32.
        name: what the person named.
    """

    loaded: LoadedResNet
    variables: Params
    name: str


def finetune_dense(settings: Settings) -> int:
    """Fine-tunes, scores and writes; the last line printed is the path of the record."""
    check_known(settings.task, TASKS, "task")
    folder = settings.expert_folder()
    export.check_output(folder, overwrite=settings.overwrite)
    cache = make_folder(settings.cache_folder())
    keep_programs(cache / "compiled")
    record = records.new_record("finetune", "checkpoints", settings)

    with records.phase(record, "inputs"):
        start = load_start(settings)
        train_split, test_split = read_data(settings)
        keep_start(settings, start)
    recipe = chosen_recipe(settings, len(train_split.labels))
    size = train_split.inputs.shape[1:3]
    own = network(start.loaded.config, DECODERS[settings.model], size, settings.dtype)
    say(
        f"{settings.task}: {len(train_split.labels)} training and {len(test_split.labels)} test "
        f"scenes of {size[0]} x {size[1]} pixels; {recipe.steps} steps of "
        f"{recipe.accumulate * recipe.batch_size}"
    )
    record["settings"] |= {"recipe": recipe_name(settings), "constants": recipe._asdict()}

    with records.phase(record, "fine-tuning"), Bars() as bars:
        expert = train(settings, start, train_split, own, recipe, bars)
    with records.phase(record, "individual"):
        scores = add_scores(record, settings, own, expert, test_split)
    record["notes"].append(f"the expert is {folder}")
    write_expert(settings, start, expert, recipe, scores)
    shown = ((name, score[records.EXPERT]) for name, score in scores.items())
    finish(
        settings, record, expert,
        ", ".join(f"{name} {'–' if value is None else f'{value:.4g}'}" for name, value in shown),
    )  # fmt: skip
    return 0


def load_start(settings: Settings) -> Start:
    """Reads the pre-trained trunk.

    Raises:
        BadInput: nothing was named, it cannot be read, or it is another model than `--model`.
    """
    model, name = settings.model, settings.pretrained
    if name is None:
        raise BadInput(
            f"--model {model} needs --pretrained: a file or folder with a ResNet of these sizes in "
            "torchvision's names, such as resnet50-19c8e357.pth"
        )
    loaded = load_resnet(name)
    for note in loaded.notes:
        say(f"{name}: {note}")
    for size in ("blocks", "planes", "expansion", "stem"):
        found, wanted = getattr(loaded.config, size), getattr(PRESETS[model], size)
        if found != wanted:
            raise BadInput(f"{name}: its {size} is {found}, but that of {model} is {wanted}")
    return Start(loaded, computable(loaded.variables), name)


def read_data(settings: Settings) -> tuple[Split, Split]:
    """Reads training and test scenes with the task's maps.

    Raises:
        BadInput: they are unreadable, lack the maps, or differ in size.
    """
    maps = KINDS[settings.task].maps
    splits = []
    for name in ("train", "test"):
        scenes = read_scenes(
            settings.data, split=name, need=(maps,), cache=settings.cache_folder(), report=say
        )
        splits.append(some(Split(scenes.images, getattr(scenes, maps)), settings.limit))
    train_split, test_split = splits
    sizes = [split.inputs.shape[1:3] for split in splits]
    if sizes[0] != sizes[1]:
        raise BadInput(
            f"{settings.data}: expected scenes of one size, found {sizes[0]} in train and "
            f"{sizes[1]} in test; bring them to one"
        )
    return train_split, test_split


def chosen_recipe(settings: Settings, count: int) -> Recipe:
    """Returns the recipe with the options applied, for this many training scenes."""
    given = {"epochs": settings.epochs, "batch_size": settings.batch_size}
    options = {name: value for name, value in given.items() if value is not None}
    recipe = dense_recipe(count, **options)
    accumulate = settings.accumulate or 1
    rate = settings.learning_rate or recipe.learning_rate
    return recipe._replace(
        steps=settings.steps or max(1, recipe.steps // accumulate),
        accumulate=accumulate,
        learning_rate=rate,
        head_rate=rate,
        halve_every=max(1, recipe.halve_every // accumulate),
    )


def first_decoder(settings: Settings) -> Params:
    """Draws the decoder that training begins with."""
    key = jax.random.fold_in(jax.random.key(settings.seed), zlib.crc32(settings.task.encode()))
    return initial_decoder(DECODERS[settings.model], len(KINDS[settings.task].classes), key)


def train(
    settings: Settings, start: Start, split: Split, own: Network, recipe: Recipe, bars: Bars
) -> Expert:
    """Trains, or goes on where an interrupted run stopped."""
    trunk, decoder = start.variables, first_decoder(settings)
    return finetune_with_state(
        training(own), trunk["params"], decoder["params"],
        {"trunk": trunk["batch_stats"], "decoder": decoder["batch_stats"]},
        split.inputs, split.labels, recipe,
        loss=settings.task,  # pyright: ignore[reportArgumentType]  # checked: one of TASKS
        seed=settings.seed,
        chunk_steps=CHUNK,
        on_chunk=bars.follow(
            f"expert {settings.task}", recipe.steps, recipe.batch_size * recipe.accumulate
        ),
        state_folder=begun_state(settings),
    )  # fmt: skip


def variables_of(expert: Expert) -> tuple[Params, Params]:
    """Returns trunk and decoder, {'params', 'batch_stats'} each."""
    return (
        {"params": expert.params, "batch_stats": expert.state["trunk"]},
        {"params": expert.head, "batch_stats": expert.state["decoder"]},
    )


def add_scores(
    record: records.Record, settings: Settings, own: Network, expert: Expert, test: Split
) -> dict[str, dict[str, float | None]]:
    """Scores the expert on the test scenes; returns metric → 'individual' → value."""
    trunk, decoder = variables_of(expert)
    outputs = len(KINDS[settings.task].classes)
    found = dense_scores(own, trunk, decoder, test.inputs, test.labels, outputs, settings.task)
    for name, value in found.items():
        records.add_result(
            record, method=records.EXPERT, seed=settings.seed, task=settings.task, metric=name,
            value=value, n=len(test.labels),
        )  # fmt: skip
    return {one["metric"]: {records.EXPERT: one["value"]} for one in record["results"]}


def keep_start(settings: Settings, start: Start) -> None:
    """Writes what experts start from beside them, unless it is there.

    Raises:
        BadInput: another model is there.
    """

    def is_same(there: Path) -> bool:
        return digest(computable(load_resnet(there).variables)) == digest(start.variables)

    def write(folder: Path) -> None:
        loaded = start.loaded
        save_resnet(
            folder, start.variables, loaded.config, counts=loaded.counts, like=loaded.source
        )
        write_reference(folder)
        export.write_card(folder, {"method": "pretrained", "pretrained": start.name})

    keep_pretrained(settings, start.name, BASES, is_same, write)


def write_expert(
    settings: Settings, start: Start, expert: Expert, recipe: Recipe, scores: Mapping[str, Any]
) -> None:
    """Writes trunk and decoder, whole or not at all."""
    trunk, variables = jax.tree.map(np.asarray, variables_of(expert))
    config, classes = DECODERS[settings.model], KINDS[settings.task].classes
    batches = recipe.steps * recipe.accumulate
    decoder = Decoder(
        variables, config,
        classes if settings.task == "segmentation" else None,
        _counts(counters_of(decoder_rules(len(config.rates))), {}, batches),
    )  # fmt: skip
    loaded = start.loaded
    seen = counters_of(trunk_rules(loaded.config.blocks))
    with export.new_folder(settings.expert_folder(), overwrite=settings.overwrite) as folder:
        save_resnet(
            folder, trunk, loaded.config,
            decoders={settings.task: decoder},
            counts=_counts(seen, loaded.counts, batches),
            like=loaded.source,
        )  # fmt: skip
        write_reference(folder)
        export.write_card(folder, expert_card(settings, recipe, start.name, scores))


def _counts(
    names: Iterable[str], before: Mapping[str, np.ndarray], batches: int
) -> dict[str, np.ndarray]:
    """Returns how many batches each running statistic has seen."""
    return {name: np.asarray(int(before.get(name, 0)) + batches, np.int64) for name in names}
