"""What fine-tuning on images and on texts have in common: options, their check, the record."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from experiments import records
from experiments.tasks.task import check_known
from symerge_jax.errors import BadInput
from symerge_jax.files import write_atomically
from symerge_jax.finetune import Expert
from symerge_jax.models import clip_config, roberta_config

MODELS = (*clip_config.PRESETS, *roberta_config.PRESETS)
IMAGE_RECIPES = ("task_arithmetic", "fusion_bench")
TEXT_RECIPES = ("glue", "small")


@dataclass(frozen=True)
class Settings:
    """Fine-tunes CLIP on an image task, or RoBERTa on a text task, and writes the expert."""

    task: str
    """Name of the task: one of the benchmark's sets, or a folder below --data."""
    data: Path
    """Folder with one folder per task."""
    model: str = "ViT-B-32"
    """Name of the model; tiny-64x3 is embedded, roberta-base is to be had from the hub, the others
    need --pretrained."""
    pretrained: str | None = None
    """Folder or file of CLIP or RoBERTa, or owner/name on the hub."""
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
    roberta-base) or small."""
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
    """Of the order of inputs, the crops of images and the fresh head of texts."""
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
    known = TEXT_RECIPES if settings.texts else IMAGE_RECIPES
    check_known(recipe_name(settings), known, "recipe")
    for name in ("epochs", "steps", "batch_size", "accumulate", "limit"):
        value = getattr(settings, name)
        if value is not None and value < 1:
            raise BadInput(f"--{name.replace('_', '-')} must be at least 1, got {value}")
    if settings.limit == 1:
        raise BadInput("--limit must be at least 2: two classes need an input each")
    if settings.learning_rate is not None and not 0 < settings.learning_rate < 1:
        raise BadInput(f"--learning-rate must be between 0 and 1, got {settings.learning_rate:g}")
    if settings.seed < 0:
        raise BadInput(f"--seed must be a number from 0 upwards, got {settings.seed}")
    if settings.epochs is not None and settings.steps is not None:
        raise BadInput("--epochs and --steps both say how long to train; give one of them")
    if Path(settings.task).name != settings.task or settings.task in ("", ".", ".."):
        raise BadInput(f"--task must be a name, not a path, got {settings.task!r}")
    if settings.texts and settings.head is not None:
        raise BadInput("--head goes with images; the head of a text expert is trained from scratch")
    if settings.vocabulary is not None and not settings.texts:
        raise BadInput(f"--vocabulary goes with texts, but {settings.model} is a model of images")


def recipe_name(settings: Settings) -> str:
    """Returns the recipe's name as it is in `IMAGE_RECIPES` or `TEXT_RECIPES`."""
    if settings.recipe is not None:
        return settings.recipe.replace("-", "_")
    if settings.texts:
        return "glue" if settings.model == "roberta-base" else "small"
    return "task_arithmetic"


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
