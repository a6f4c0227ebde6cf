"""Makes, or finds in the cache, an expert per text task and seed; heads begin at random.

All of the encoder and the head are trained: with cross-entropy, or with the squared error where the
task is a regression.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import jax
import numpy as np

from experiments.experts import Experts, Model, fine_tuned
from experiments.tasks.task import Task
from symerge_jax.cli.progress import Bars
from symerge_jax.models.roberta import classify, initial_head
from symerge_jax.models.roberta_config import RobertaConfig
from symerge_jax.models.roberta_heads import stack_text_heads
from symerge_jax.parallel import Device
from symerge_jax.recipes import Recipe

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
    heads = {seed: [fresh_head(config, task, seed) for task in tasks] for seed in seeds}
    return fine_tuned(
        model, tasks, heads, recipe, stack_text_heads, devices=devices, cache=cache, bars=bars
    )
