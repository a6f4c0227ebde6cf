"""Fine-tunes a model on one task: makes one of the experts that merging starts from.

    python -m experiments.finetune --model ViT-B-32 --pretrained clip-vit-base-patch32 \\
        --task eurosat --data DIR
    python -m experiments.finetune --model tiny-64x3 --task NAME --data DIR      your own folder
    python -m experiments.finetune --model roberta-base --pretrained roberta-base \\
        --task cola --data DIR                                                   texts
    python -m experiments.finetune --model resnet50 --pretrained resnet50-19c8e357.pth \\
        --task depth --data DIR                                                  scenes

CLIP on images: `--recipe task_arithmetic` is that of the SyMerge paper's experts (about 2000 steps
of 128 images, a tenth of the training images left out for validation), `fusion_bench` that of the
`tanganke` checkpoints (4000 steps of 32, all training images). The head is frozen: zero-shot from
the model's text tower, or `--head`, or else a linear probe on the pre-trained features.

RoBERTa on texts: see `experiments.finetune_texts`; a ResNet on scenes with maps of classes, depths
or normals: see `experiments.finetune_dense`.

The expert is `OUT/experts/<model>/<task>`, a model folder with `heads/<task>.safetensors`, and its
record `OUT/finetune/<id>/record.json`, with the loss of each step beside it. What was interrupted
goes on with `--resume` and gives the same bits.

Expected: individual scores as in `experiments.tasks.clip_sets.INDIVIDUAL` and, for texts, in
`experiments.tasks.glue.INDIVIDUAL`.
"""

from __future__ import annotations

import sys
from typing import Any

import jax
import numpy as np

from experiments import finetune_dense, finetune_texts, records
from experiments.finetune_inputs import (
    Start,
    TaskData,
    from_clip_sets,
    from_own_folder,
    load_start,
    task_head,
)
from experiments.finetune_run import (
    Settings,
    begun_state,
    check,
    expert_card,
    finish,
    recipe_name,
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
from symerge_jax.files import make_folder
from symerge_jax.finetune import Expert, finetune_batches
from symerge_jax.metrics import accuracy
from symerge_jax.models.heads import Head, normalised_head
from symerge_jax.recipes import Recipe, batch_rows, fusion_bench_recipe, task_arithmetic_recipe
from symerge_jax.verify import write_reference

STEPS = 2000  # about as many as each set of the benchmark has; for a folder of one's own


def main(settings: Settings) -> int:
    """Fine-tunes, scores and writes; the last line printed is the path of the record."""
    check(settings)
    if settings.texts:
        return finetune_texts.finetune_texts(settings)
    if settings.dense:
        return finetune_dense.finetune_dense(settings)
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
    record["settings"] |= {
        "recipe": recipe_name(settings),
        "constants": recipe._asdict(),
        "head_from": origin,
    }

    with records.phase(record, "pretrained"):
        add_accuracy(record, "pretrained", settings, encode, start.params, head, data)
    with records.phase(record, "fine-tuning"), Bars() as bars:
        expert = train(settings, start, data, head, encode, recipe, bars)
    with records.phase(record, "individual"):
        add_accuracy(record, records.EXPERT, settings, encode, expert.params, head, data)
    scores = {r["method"]: r["value"] for r in record["results"]}
    record["notes"].append(f"the expert is {folder}")
    write_expert(settings, start, data, expert, recipe, scores)
    before, after = (scores[name] for name in ("pretrained", records.EXPERT))
    finish(settings, record, expert, f"accuracy: {before:.2f} before, {after:.2f} after")
    return 0


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
        state_folder=begun_state(settings),
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


def write_expert(
    settings: Settings,
    start: Start,
    data: TaskData,
    expert: Expert,
    recipe: Recipe,
    scores: dict[str, Any],
) -> None:
    """Writes the expert in the layout of the pre-trained model."""
    pretrained = settings.pretrained or f"embedded {settings.model}"
    card = expert_card(settings, recipe, pretrained, {"accuracy": scores})
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
