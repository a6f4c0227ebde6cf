"""Experts of scenes: trunks and decoders, fine-tuned here."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.experts import Experts, Model, fine_tuned
from experiments.tasks.task import Task
from symerge_jax.adapt.dense import Network
from symerge_jax.cli.progress import Bars
from symerge_jax.dense import training
from symerge_jax.finetune import finetune_with_state
from symerge_jax.models.dense_heads import initial_decoder, stack_decoders
from symerge_jax.models.resnet_config import DecoderConfig
from symerge_jax.notation import Array
from symerge_jax.parallel import Device
from symerge_jax.recipes import Recipe


def dense_model(own: Network, variables: Any, name: str) -> Model:
    """Returns the trunk all experts start from, with its running statistics."""
    return Model(own.encode, variables, name, classify=own.decode, family="ResNet", dense=own)


def make_dense_experts(
    model: Model,
    config: DecoderConfig,
    tasks: Sequence[Task],
    recipe: Recipe,
    seeds: Sequence[int],
    *,
    devices: Sequence[Device],
    cache: Path | None,
    bars: Bars,
) -> dict[int, Experts]:
    """Fine-tunes what the cache does not hold, one expert per device at a time."""
    decoders = {seed: [fresh_decoder(config, task, seed) for task in tasks] for seed in seeds}
    return fine_tuned(
        model, tasks, decoders, recipe, stacked,
        train=train_dense, devices=devices, cache=cache, bars=bars,
    )  # fmt: skip


def fresh_decoder(config: DecoderConfig, task: Task, seed: int) -> dict[str, Any]:
    """Draws the decoder that an expert's training begins with; depth begins at its mean."""
    assert task.train is not None, "an expert is made from training scenes"
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(task.name.encode()))
    drawn = jax.tree.map(np.asarray, initial_decoder(config, len(task.classes), key))
    if task.name == "depth":
        depths = task.train.labels
        known = max(1, np.count_nonzero(depths))
        bias = np.full(1, depths.sum(dtype=np.float64) / known, np.float32)
        drawn["params"]["out"]["bias"] = bias
    return drawn


def train_dense(
    model: Model,
    task: Task,
    head: Any,
    recipe: Recipe,
    seed: int,
    on_chunk: Callable[[np.ndarray], None],
    state_folder: Path | None,
) -> dict[str, Any]:
    """Fine-tunes trunk and decoder of one task, in training mode of batch normalisation."""
    assert model.dense is not None
    assert task.train is not None
    loss: Any = task.name
    expert = finetune_with_state(
        training(model.dense), model.pretrained["params"], head["params"],
        {"trunk": model.pretrained["batch_stats"], "decoder": head["batch_stats"]},
        task.train.inputs, task.train.labels, recipe,
        loss=loss,
        seed=seed,
        on_chunk=on_chunk,
        state_folder=state_folder,
    )  # fmt: skip
    return {
        "params": {"params": expert.params, "batch_stats": expert.state["trunk"]},
        "head": {"params": expert.head, "batch_stats": expert.state["decoder"]},
    }


def stacked(decoders: Sequence[Any]) -> tuple[Any, Array]:
    """Returns decoders with leaves [task, ...], and which of their maps exist, bool [task, map]."""
    whole, outputs = stack_decoders(decoders)
    return whole, jnp.arange(max(outputs))[None] < jnp.asarray(outputs)[:, None]
