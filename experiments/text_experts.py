"""Makes, or finds in the cache, an expert per text task and seed; heads begin at random.

All of the encoder and the head are trained: with cross-entropy, or with the squared error where the
task is a regression.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import jax
import numpy as np

from experiments.experts import Experts, Model
from experiments.tasks.task import Task
from symerge_jax.cache import cached, digest
from symerge_jax.cli.progress import Bars, say
from symerge_jax.finetune import finetune
from symerge_jax.models.roberta import classify, initial_head
from symerge_jax.models.roberta_config import RobertaConfig
from symerge_jax.models.roberta_heads import stack_text_heads
from symerge_jax.parallel import Device, run_jobs
from symerge_jax.recipes import Recipe
from symerge_jax.task_vectors import subtract

# Of the embedded world and of small encoders on GLUE.
RECIPE = Recipe(
    steps=500, batch_size=32, learning_rate=7e-4, head_rate=2e-3, weight_decay=0.01, warmup=0.06,
    decay="linear",
)  # fmt: skip

TextHead: TypeAlias = dict[str, Any]  # {"dense": …, "out_proj": …} of arrays


def fresh_head(config: RobertaConfig, task: Task, seed: int) -> TextHead:
    """Draws the head that an expert's training begins with.

    Weights have deviation 1 / √width, which for small encoders is more than RoBERTa's 0.02. A
    regression begins at the mean of the training labels.
    """
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(task.name.encode()))
    drawn = initial_head(config, len(task.classes), key)
    head = jax.tree.map(lambda x: np.asarray(x) * np.float32(50 / config.width**0.5), drawn)
    if task.regression:
        assert task.train is not None, "an expert is made from training texts"
        head["out_proj"]["bias"] = np.full(1, task.train.labels.mean(), np.float32)
    return head


def text_model(encode: Any, params: Any, name: str) -> Model:
    """Returns the encoder all experts start from: (θ, tokens) → features, θ₀, and their name."""
    return Model(encode, params, name, classify=classify, family="RoBERTa")


def make_text_experts(
    model: Model,
    config: RobertaConfig,
    tasks: Sequence[Task],
    recipe: Recipe,
    seeds: Sequence[int],
    *,
    devices: Sequence[Device],
    cache: Path | None,
    bars: Bars,
) -> dict[int, Experts]:
    """Fine-tunes what the cache does not hold, one expert per device at a time."""
    pairs = [(seed, task, fresh_head(config, task, seed)) for seed in seeds for task in tasks]
    jobs = [
        partial(_expert, model, task, head, recipe, seed, cache, bars) for seed, task, head in pairs
    ]
    made = iter(run_jobs(jobs, devices))
    return {
        seed: _together(
            model, [next(made) for _ in tasks], [head for s, _, head in pairs if s == seed]
        )
        for seed in seeds
    }


def _expert(
    model: Model,
    task: Task,
    head: TextHead,
    recipe: Recipe,
    seed: int,
    cache: Path | None,
    bars: Bars,
) -> dict[str, Any]:
    train = task.train
    assert train is not None, "an expert is made from training texts"

    def make() -> dict[str, Any]:
        name = f"expert {task.name}, seed {seed}"
        expert = finetune(
            model.encode, model.classify, model.pretrained, head, train.inputs, train.labels,
            recipe,
            seed=seed,
            loss="squared_error" if task.regression else "cross_entropy",
            on_chunk=bars.follow(name, recipe.steps, recipe.batch_size),
        )  # fmt: skip
        return {"params": expert.params, "head": expert.head}

    key = {
        "model": model.program,
        "task": task.name,
        "train": digest(*train),
        "head": digest(head),
        "recipe": recipe._asdict(),
        "seed": seed,
    }
    return cached(cache, "text-experts", key, make, report=say)


def _together(model: Model, made: Sequence[dict[str, Any]], first: list[TextHead]) -> Experts:
    params = [one["params"] for one in made]
    heads = [one["head"] for one in made]
    stacked, classes = stack_text_heads(heads)
    like = jax.tree.map(np.asarray, model.pretrained)
    return Experts(params, heads, first, subtract(params, like), stacked, classes)
