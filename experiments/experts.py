"""Makes, or finds in the cache, an expert per task and seed, and all that merging needs of them."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.tasks.images import probe
from experiments.tasks.task import Task
from symerge_jax.cache import cached, digest
from symerge_jax.cli.progress import Bars, say
from symerge_jax.evaluate import predict
from symerge_jax.finetune import Recipe, finetune
from symerge_jax.models.clip_config import VisionConfig
from symerge_jax.models.heads import Head, normalised_head, stack_heads
from symerge_jax.notation import Array, Params, TaskVectors
from symerge_jax.parallel import Device, run_jobs
from symerge_jax.task_vectors import subtract

PROBE_SCALE = 20.0


class Model(NamedTuple):
    """The encoder all experts start from.

    Attributes:
        encode: (θ, inputs) → features.
        pretrained: θ₀.
        name: tells encoder and weights apart in cache keys.
        vision: sizes of the image tower, for methods that look inside.
        classify: (head, features) → logits.
        family: of models, such as "CLIP".
    """

    encode: Callable[[Params, Any], Array]
    pretrained: Params
    name: str
    vision: VisionConfig | None = None
    classify: Callable[[Any, Array], Array] = normalised_head
    family: str = "CLIP"

    @property
    def program(self) -> str:
        """What it computes, for keys of what is kept."""
        return f"{self.family}, {self.name}"


class Experts(NamedTuple):
    """All experts of one seed.

    Attributes:
        params: θ_k, one encoder per task.
        heads: the heads they were trained with, unpadded.
        first_heads: the heads before fine-tuning, unpadded (zero-shot, or a probe on θ₀).
        task_vectors: τ.
        stacked: all heads in one pytree, leaves [task, ...].
        classes: bool [task, classes], which rows of `stacked` exist.
    """

    params: Sequence[Params]
    heads: list[Any]
    first_heads: list[Any]
    task_vectors: TaskVectors
    stacked: Any
    classes: Array


def first_heads(model: Model, tasks: Sequence[Task]) -> list[Head]:
    """Returns each task's zero-shot head, or a linear probe on θ₀'s features where it has none."""
    heads = []
    for task in tasks:
        head = task.head
        if head is None:
            assert task.train is not None, "only tasks with training images lack a head"
            features = predict(model.encode, model.pretrained, task.train.inputs)
            head = probe(features, task.train.labels, len(task.classes), scale=PROBE_SCALE)
        heads.append(head)
    return heads


def make_experts(
    model: Model,
    tasks: Sequence[Task],
    recipe: Recipe,
    seeds: Sequence[int],
    *,
    devices: Sequence[Device],
    cache: Path,
    bars: Bars,
) -> dict[int, Experts]:
    """Fine-tunes what the cache does not hold, one expert per device at a time."""
    heads = first_heads(model, tasks)
    jobs = [
        partial(_expert, model, task, head, recipe, seed, cache, bars)
        for seed in seeds
        for task, head in zip(tasks, heads, strict=True)
    ]
    made = iter(run_jobs(jobs, devices))
    return {seed: _together(model, [next(made) for _ in tasks], heads) for seed in seeds}


def _expert(
    model: Model,
    task: Task,
    head: Head,
    recipe: Recipe,
    seed: int,
    cache: Path,
    bars: Bars,
) -> dict[str, Any]:
    train = task.train
    assert train is not None, "an expert is made from training images"

    def make() -> dict[str, Any]:
        name = f"expert {task.name}, seed {seed}"
        expert = finetune(
            model.encode, normalised_head, model.pretrained, head, train.inputs,
            train.labels, recipe,
            seed=seed,
            on_chunk=bars.follow(name, recipe.steps, recipe.batch_size),
        )  # fmt: skip
        return {"params": expert.params, "head": expert.head}

    key = {
        "model": model.name,
        "task": task.name,
        "train": digest(*train),
        "head": digest(head),
        "recipe": recipe._asdict(),
        "seed": seed,
    }
    return cached(cache, "experts", key, make, report=say)


def _together(model: Model, made: Sequence[dict[str, Any]], first: list[Head]) -> Experts:
    params = [one["params"] for one in made]
    heads = [one["head"] for one in made]
    stacked, classes = stack_heads(heads)
    like = jax.tree.map(np.asarray, model.pretrained)
    return Experts(params, heads, first, subtract(params, like), stacked, classes)
