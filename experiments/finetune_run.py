"""What fine-tuning on images, texts and scenes has in common: options, their check, the outputs."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from experiments import records
from experiments.tasks.task import Split, check_known
from symerge_jax.checkpoints import export
from symerge_jax.cli.progress import say
from symerge_jax.errors import BadInput
from symerge_jax.files import write_atomically
from symerge_jax.finetune import Expert
from symerge_jax.models import clip_config, resnet_config, roberta_config
from symerge_jax.recipes import Recipe

MODELS = (*clip_config.PRESETS, *roberta_config.PRESETS, *resnet_config.PRESETS)
IMAGE_RECIPES = ("task_arithmetic", "fusion_bench")
TEXT_RECIPES = ("glue", "small")
DENSE_RECIPES = ("fusion_bench",)


@dataclass(frozen=True)
class Settings:
    """Fine-tunes CLIP on images, RoBERTa on texts or a ResNet on scenes, and writes the expert."""

    task: str
    """Name of the task: one of the benchmark's sets, or a folder below --data; for a ResNet
    segmentation, depth or normal."""
    data: Path
    """Folder with one folder per task; for a ResNet with scenes in train and in test or val."""
    model: str = "ViT-B-32"
    """Name of the model; tiny-64x3 is embedded, roberta-base is to be had from the hub, the others
    need --pretrained."""
    pretrained: str | None = None
    """Folder or file of CLIP, RoBERTa or a ResNet, or owner/name on the hub."""
    vocabulary: Path | None = None
    """RoBERTa's vocabulary files; otherwise those beside its weights."""
    head: Path | None = None
    """Classification head (weight, bias) for images; otherwise zero-shot or a linear probe."""
    out: Path = Path("runs")
    """Folder of experts and records."""
    cache: Path | None = None
    """Folder of decoded images, of tokens and of unfinished runs; OUT/cache otherwise."""
    recipe: str | None = None
    """For images task_arithmetic (the default) or fusion_bench; for texts glue (that of
    roberta-base) or small; for scenes fusion_bench."""
    epochs: int | None = None
    """Passes over the training inputs; the task's own otherwise, or as many as make the recipe's
    steps."""
    steps: int | None = None
    """Optimiser steps, in place of --epochs."""
    batch_size: int | None = None
    """Inputs per forward and backward pass; the recipe's otherwise."""
    accumulate: int | None = None
    """Passes per optimiser step; the recipe's otherwise."""
    learning_rate: float | None = None
    """Peak learning rate; the recipe's otherwise."""
    seed: int = 0
    """Of the order of inputs, the crops of images, dropout and the fresh head of texts or
    scenes."""
    limit: int | None = None
    """Largest number of inputs of each split; all otherwise."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of forward and backward passes; weights, optimiser and loss stay float32."""
    resume: bool = False
    """Go on with an interrupted run of the same settings; otherwise begin anew."""
    overwrite: bool = False
    """Replace an expert that is there already."""

    @property
    def texts(self) -> bool:
        """Whether the model is one of texts."""
        return self.model in roberta_config.PRESETS

    @property
    def dense(self) -> bool:
        """Whether the model is one of dense prediction."""
        return self.model in resnet_config.PRESETS

    def cache_folder(self) -> Path:
        """Returns where expensive things are kept."""
        return (self.cache or self.out / "cache").absolute()

    def experts_folder(self) -> Path:
        """Returns where all experts of the model go."""
        return self.out.absolute() / "experts" / self.model

    def expert_folder(self) -> Path:
        """Returns where the expert goes."""
        return self.experts_folder() / self.task

    def state_folder(self) -> Path:
        """Returns where an unfinished run is kept."""
        name = f"{self.model}-{self.task}-{self.seed}"
        if self.dtype != "float32":
            name += f"-{self.dtype}"
        return self.cache_folder() / "training" / name


def check(settings: Settings) -> None:
    """Raises `BadInput` for options that cannot be."""
    check_known(settings.model, MODELS, "model")
    texts, dense = settings.texts, settings.dense
    known = TEXT_RECIPES if texts else DENSE_RECIPES if dense else IMAGE_RECIPES
    check_known(recipe_name(settings), known, "recipe")
    for name in ("epochs", "steps", "batch_size", "accumulate", "limit"):
        value = getattr(settings, name)
        if value is not None and value < 1:
            raise BadInput(f"--{name.replace('_', '-')} must be at least 1, got {value}")
    if settings.limit == 1:
        why = "a batch is of two scenes or more" if dense else "two classes need an input each"
        raise BadInput(f"--limit must be at least 2: {why}")
    if dense and settings.batch_size == 1:
        raise BadInput(
            "--batch-size must be at least 2: batch normalisation in training has no variance of "
            "one scene; --accumulate makes larger batches in little memory"
        )
    if settings.learning_rate is not None and not 0 < settings.learning_rate < 1:
        raise BadInput(f"--learning-rate must be between 0 and 1, got {settings.learning_rate:g}")
    if settings.seed < 0:
        raise BadInput(f"--seed must be a number from 0 upwards, got {settings.seed}")
    if settings.epochs is not None and settings.steps is not None:
        raise BadInput("--epochs and --steps both say how long to train; give one of them")
    if Path(settings.task).name != settings.task or settings.task in ("", ".", ".."):
        raise BadInput(f"--task must be a name, not a path, got {settings.task!r}")
    if settings.head is not None and texts:
        raise BadInput("--head goes with images; the head of a text expert is trained from scratch")
    if settings.head is not None and dense:
        raise BadInput("--head goes with CLIP; the decoder of a ResNet is trained from scratch")
    if settings.vocabulary is not None and not texts:
        raise BadInput(f"--vocabulary goes with texts, but {settings.model} is a model of images")


def recipe_name(settings: Settings) -> str:
    """Returns the recipe's name as it is in the list of its kind, such as `IMAGE_RECIPES`."""
    if settings.recipe is not None:
        return settings.recipe.replace("-", "_")
    if settings.texts:
        return "glue" if settings.model == "roberta-base" else "small"
    return "fusion_bench" if settings.dense else "task_arithmetic"


def some(split: Split, limit: int | None) -> Split:
    """Returns at most `limit` inputs, drawn with seed 0: files may be sorted by label."""
    if limit is None or limit >= len(split.labels):
        return split
    rows = np.sort(np.random.default_rng(0).permutation(len(split.labels))[:limit])
    return Split(split.inputs[rows], split.labels[rows])


def begun_state(settings: Settings) -> Path:
    """Returns where an unfinished run is kept; nothing is there unless it is to be resumed.

    Raises:
        BadInput: another process is at work there.
    """
    if not settings.resume:
        _discard_state(settings)
    return settings.state_folder()


def keep_pretrained(
    settings: Settings,
    pretrained: str,
    names: Sequence[str],
    is_same: Callable[[Path], bool],
    write: Callable[[Path], None],
) -> None:
    """Writes what experts start from beside them, as `pretrained`, unless it is there.

    Args:
        settings: say where experts go.
        pretrained: what to call it.
        names: of folders in which it may be.
        is_same: whether the model in a folder is the one to start from.
        write: into a folder.

    Raises:
        BadInput: another model is there.
    """
    experts = settings.experts_folder()
    there = next((experts / name for name in names if (experts / name).is_dir()), None)
    if there is None:
        with export.new_folder(experts / "pretrained") as folder:
            write(folder)
    elif not is_same(there):
        raise BadInput(
            f"{there}: is another pre-trained model than {pretrained}; experts that are to be "
            "merged start from one model, so give the same --pretrained or another --out"
        )


def expert_card(
    settings: Settings, recipe: Recipe, pretrained: str, scores: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns what an expert's card says beside versions and hashes."""
    return {
        "method": "finetune",
        "task": settings.task,
        "recipe": {"name": recipe_name(settings), **recipe._asdict()},
        "seed": settings.seed,
        "pretrained": pretrained,
        "scores": scores,
    }


def finish(settings: Settings, record: records.Record, expert: Expert, scores: str) -> None:
    """Writes the record and says where all is; the last line printed is the record's path."""
    path = write_record(record, expert, settings.out)
    _discard_state(settings)
    say(scores)
    say(f"expert: {settings.expert_folder()}")
    print(path)


def _discard_state(settings: Settings) -> None:
    from symerge_jax.checkpoints.training_state import discard  # orbax takes half a second

    discard(settings.state_folder())


def write_record(record: records.Record, expert: Expert, out: Path) -> Path:
    """Writes the record, with the loss of each step in losses.csv beside it."""
    folder = records.new_folder(record, out)
    try:
        lines = [f"{step},{loss:.6g}\n" for step, loss in enumerate(expert.losses, start=1)]
        write_atomically(folder / "losses.csv", "".join(["step,loss\n", *lines]))
        return records.write(record, folder)
    except BaseException:  # a full disk, an interruption: no half run stays behind
        shutil.rmtree(folder, ignore_errors=True)
        raise
