"""Fine-tunes CLIP on one image task: makes one of the experts that merging starts from.

    python -m experiments.finetune --model ViT-B-32 --pretrained clip-vit-base-patch32 \\
        --task eurosat --data DIR
    python -m experiments.finetune --model tiny-64x3 --task NAME --data DIR      your own folder

`--recipe task_arithmetic` is that of the SyMerge paper's experts (about 2000 steps of 128 images,
a tenth of the training images left out for validation), `fusion_bench` that of the `tanganke`
checkpoints (4000 steps of 32, all training images). The head is frozen: zero-shot from the model's
text tower, or `--head`, or else a linear probe on the pre-trained features.

The expert is `OUT/experts/<model>/<task>`, a model folder with `heads/<task>.safetensors`, and its
record `OUT/finetune/<id>/record.json`, with the loss of each step beside it. What was interrupted
goes on with `--resume` and gives the same bits.

Expected: individual accuracies as in `experiments.tasks.clip_sets.INDIVIDUAL`.
"""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from experiments import records
from experiments.finetune_inputs import (
    Start,
    TaskData,
    from_clip_sets,
    from_own_folder,
    load_start,
    task_head,
)
from experiments.options import keep_programs
from experiments.tasks.clip_sets import clip_set
from experiments.tasks.task import check_known
from symerge_jax.checkpoints import export
from symerge_jax.classifier import encoder, logits_of
from symerge_jax.cli.errors import run
from symerge_jax.cli.progress import Bars, say
from symerge_jax.data.crops import image_batches
from symerge_jax.data.images import find_tasks
from symerge_jax.errors import BadInput
from symerge_jax.evaluate import evaluate
from symerge_jax.files import make_folder, write_atomically
from symerge_jax.finetune import Expert, finetune_batches
from symerge_jax.metrics import accuracy
from symerge_jax.models.clip_config import PRESETS
from symerge_jax.models.heads import Head, normalised_head
from symerge_jax.recipes import Recipe, batch_rows, fusion_bench_recipe, task_arithmetic_recipe
from symerge_jax.verify import write_reference

STEPS = 2000  # about as many as each set of the benchmark has; for a folder of one's own
RECIPES = ("task_arithmetic", "fusion_bench")


@dataclass(frozen=True)
class Settings:
    """Fine-tunes CLIP on one image task and writes the expert; see the module for the recipes."""

    task: str
    """Name of the task: one of the benchmark's sets, or a folder below --data."""
    data: Path
    """Folder with one folder per task."""
    model: str = "ViT-B-32"
    """Name of the model; tiny-64x3 is embedded, the others need --pretrained."""
    pretrained: str | None = None
    """CLIP folder or file, or owner/name on the hub."""
    head: Path | None = None
    """Classification head (weight, bias); otherwise zero-shot or a linear probe."""
    out: Path = Path("runs")
    """Folder of experts and records."""
    cache: Path | None = None
    """Folder of decoded images and of unfinished runs; OUT/cache otherwise."""
    recipe: str = "task_arithmetic"
    """task_arithmetic or fusion_bench."""
    epochs: int | None = None
    """Passes over the training images; the set's own otherwise, or as many as make 2000 steps."""
    steps: int | None = None
    """Optimiser steps, in place of --epochs."""
    batch_size: int | None = None
    """Images per forward and backward pass; the recipe's otherwise."""
    accumulate: int | None = None
    """Passes per optimiser step; the recipe's otherwise."""
    learning_rate: float | None = None
    """Peak learning rate; the recipe's 1e-5 otherwise."""
    seed: int = 0
    """Of the order of images and their crops."""
    limit: int | None = None
    """Largest number of images of each split; all otherwise."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of forward and backward passes; weights, optimiser and loss stay float32."""
    resume: bool = False
    """Go on with an interrupted run of the same settings; otherwise begin anew."""
    overwrite: bool = False
    """Replace an expert that is there already."""

    def cache_folder(self) -> Path:
        """Returns where expensive things are kept."""
        return (self.cache or self.out / "cache").absolute()

    def expert_folder(self) -> Path:
        """Returns where the expert goes."""
        return self.out.absolute() / "experts" / self.model / self.task

    def state_folder(self) -> Path:
        """Returns where an unfinished run is kept."""
        return self.cache_folder() / "training" / f"{self.model}-{self.task}-{self.seed}"


def main(settings: Settings) -> int:
    """Fine-tunes, scores and writes; the last line printed is the path of the record."""
    check(settings)
    folder = settings.expert_folder()
    export.check_output(folder, overwrite=settings.overwrite)
    cache = make_folder(settings.cache_folder())
    keep_programs(cache / "compiled")
    setting = "tiny" if settings.pretrained is None else "checkpoints"
    record = records.new_record("finetune", setting, settings)

    with records.phase(record, "inputs"):
        start = load_start(settings.model, settings.pretrained)
        data = read_data(settings, start)
        encode = encoder(start.vision, settings.dtype)
        head, origin = task_head(start, data, encode, settings.head)
    recipe = chosen_recipe(settings, len(data.labels))
    say(
        f"{settings.task}: {len(data.labels)} training and {len(data.test.labels)} test images, "
        f"{len(data.classes)} classes; head: {origin}; {recipe.steps} steps of "
        f"{recipe.accumulate * recipe.batch_size}"
    )
    record["settings"]["constants"] = recipe._asdict()
    record["settings"]["head_from"] = origin

    with records.phase(record, "pretrained"):
        add_accuracy(record, "pretrained", settings, encode, start.params, head, data)
    with records.phase(record, "fine-tuning"), Bars() as bars:
        expert = train(settings, start, data, head, encode, recipe, bars)
    with records.phase(record, "individual"):
        add_accuracy(record, records.EXPERT, settings, encode, expert.params, head, data)
    scores = {r["method"]: r["value"] for r in record["results"]}
    record["notes"].append(f"the expert is {folder}")
    write_expert(settings, start, data, expert, recipe, scores)
    path = write_record(record, expert, settings.out)
    shutil.rmtree(settings.state_folder(), ignore_errors=True)
    say(f"accuracy: {scores['pretrained']:.2f} before, {scores[records.EXPERT]:.2f} after")
    say(f"expert: {folder}")
    print(path)
    return 0


def check(settings: Settings) -> None:
    """Raises `BadInput` for options that cannot be."""
    check_known(settings.model, tuple(PRESETS), "model")
    check_known(recipe_name(settings), RECIPES, "recipe")
    for name in ("epochs", "steps", "batch_size", "accumulate", "limit"):
        value = getattr(settings, name)
        if value is not None and value < 1:
            raise BadInput(f"--{name.replace('_', '-')} must be at least 1, got {value}")
    if settings.limit == 1:
        raise BadInput("--limit must be at least 2: two classes need an image each")
    if settings.learning_rate is not None and not 0 < settings.learning_rate < 1:
        raise BadInput(f"--learning-rate must be between 0 and 1, got {settings.learning_rate:g}")
    if settings.seed < 0:
        raise BadInput(f"--seed must be a number from 0 upwards, got {settings.seed}")
    if settings.epochs is not None and settings.steps is not None:
        raise BadInput("--epochs and --steps both say how long to train; give one of them")
    if Path(settings.task).name != settings.task or settings.task in ("", ".", ".."):
        raise BadInput(f"--task must be a name, not a path, got {settings.task!r}")


def chosen_recipe(settings: Settings, images: int) -> Recipe:
    """Returns the recipe with the options applied, for a training set of this many images."""
    rest: dict[str, Any] = {}
    if settings.learning_rate is not None:
        rest["learning_rate"] = settings.learning_rate
    if recipe_name(settings) == "fusion_bench":
        recipe = fusion_bench_recipe(batch_size=settings.batch_size or 32)
        recipe = recipe._replace(accumulate=settings.accumulate or 1)
        if settings.epochs is not None:
            batches = settings.epochs * -(-images // recipe.batch_size)
            rest["steps"] = max(1, batches // recipe.accumulate)
    else:
        large = settings.model == "ViT-L-14" and settings.batch_size is None
        batch = settings.batch_size or (64 if large else 128)
        accumulate = settings.accumulate or (2 if large else 1)
        known = clip_set(settings.task).epochs if is_clip_set(settings) else None
        guess = max(1, round(STEPS * batch * accumulate / images))
        epochs = settings.epochs or known or guess
        recipe = task_arithmetic_recipe(images, epochs, batch_size=batch, accumulate=accumulate)
    if settings.steps is not None:
        rest["steps"] = settings.steps
    return recipe._replace(**rest)


def recipe_name(settings: Settings) -> str:
    """Returns the recipe's name as it is in `RECIPES`."""
    return settings.recipe.replace("-", "_")


def is_clip_set(settings: Settings) -> bool:
    """Whether the task is one of the benchmark's sets."""
    try:
        clip_set(settings.task)
    except BadInput:
        return False
    return True


def read_data(settings: Settings, start: Start) -> TaskData:
    """Reads the task, from the benchmark's sets or a person's own folder.

    Raises:
        BadInput: there is no such task, or it is unreadable.
    """
    size, whole = start.vision.image_size, recipe_name(settings) == "fusion_bench"
    options = {"size": size, "whole": whole, "limit": settings.limit}
    if is_clip_set(settings):
        return from_clip_sets(
            settings.data, settings.task, cache=settings.cache_folder(), **options
        )
    if not (settings.data / settings.task).is_dir():
        check_known(settings.task, find_tasks(settings.data), "task")
    return from_own_folder(settings.data, settings.task, **options)


def train(
    settings: Settings,
    start: Start,
    data: TaskData,
    head: Head,
    encode: Any,
    recipe: Recipe,
    bars: Bars,
) -> Expert:
    """Trains, or goes on where an interrupted run stopped."""
    if not settings.resume:
        shutil.rmtree(settings.state_folder(), ignore_errors=True)
    crop = recipe_name(settings) == "task_arithmetic"
    images = recipe.batch_size * recipe.accumulate
    batches = image_batches(
        data.train, data.labels, batch_rows(len(data.labels), recipe, settings.seed),
        size=start.vision.image_size, seed=settings.seed, crop=crop,
    )  # fmt: skip
    return finetune_batches(
        encode, normalised_head, start.params, head, batches, recipe,
        seed=settings.seed,
        on_chunk=bars.follow(f"expert {settings.task}", recipe.steps, images),
        state_folder=settings.state_folder(),
        data=f"{data.key} crops {crop} {settings.dtype}",
    )  # fmt: skip


def add_accuracy(
    record: records.Record,
    method: str,
    settings: Settings,
    encode: Any,
    params: Any,
    head: Head,
    data: TaskData,
) -> None:
    """Scores a model on the test images."""
    every = np.ones(len(head["bias"]), bool)
    score = evaluate(
        logits_of(encode), (params, head, every), data.test.inputs, data.test.labels,
        {"accuracy": accuracy}, batch_size=min(250, max(1, len(data.test.labels))),
    )  # fmt: skip
    records.add_result(
        record, method=method, seed=settings.seed, task=settings.task, metric="accuracy",
        value=score["accuracy"], n=len(data.test.labels),
    )  # fmt: skip


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


def write_expert(
    settings: Settings,
    start: Start,
    data: TaskData,
    expert: Expert,
    recipe: Recipe,
    scores: dict[str, Any],
) -> None:
    """Writes the expert in the layout of the pre-trained model."""
    card = {
        "method": "finetune",
        "task": settings.task,
        "recipe": {"name": recipe_name(settings), **recipe._asdict()},
        "seed": settings.seed,
        "pretrained": settings.pretrained or f"embedded {settings.model}",
        "scores": {"accuracy": scores},
    }
    output, name = settings.expert_folder(), settings.task
    vision, head = jax.tree.map(np.asarray, (expert.params, expert.head))
    export.write_model(
        output,
        {"vision": vision},
        like=start.vision if start.loaded is None else start.loaded.source,
        heads={name: head},
        classes={name: data.classes},
        card=card,
        overwrite=settings.overwrite,
        finish=write_reference,
    )


if __name__ == "__main__":
    sys.exit(run(main, Settings, None, prog="python -m experiments.finetune"))
