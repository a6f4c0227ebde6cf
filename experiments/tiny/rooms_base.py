"""The embedded world of rooms' pre-trained model: a small ResNet that knows furniture.

    python -m experiments.tiny.rooms_base          makes it, and says how much it knows

It tells thirteen pieces of furniture apart in single pictures, as ImageNet's networks do, and has
seen neither a furnished room nor a depth. Made once and kept in the cache.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import cache as once
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.tiny import rooms
from symerge_jax.cache import cached, digest
from symerge_jax.cli.errors import run
from symerge_jax.cli.progress import Bars, say
from symerge_jax.evaluate import predict
from symerge_jax.finetune import finetune_with_state
from symerge_jax.finetune_steps import Forward
from symerge_jax.kept_run import discard, unfinished
from symerge_jax.models.resnet import (
    ResNetConfig,
    classify,
    encode_images,
    encode_in_training,
    initial_variables,
)
from symerge_jax.models.resnet_config import PRESETS
from symerge_jax.notation import Array, Params
from symerge_jax.recipes import Recipe

MODEL = "tiny-resnet"
PICTURES = 12_000
HELD_OUT = 500  # of them, to see what was learned
RECIPE = Recipe(
    steps=1000, batch_size=64, learning_rate=3e-3, head_rate=3e-3, weight_decay=0.01, warmup=0.05,
    shift=2,
)  # fmt: skip


class Base(NamedTuple):
    """A pre-trained trunk.

    Attributes:
        config: its sizes.
        variables: {'params', 'batch_stats'}, float32 on the host.
        accuracy: in percent, of pictures it has not seen.
        name: tells it apart in the keys of caches.
    """

    config: ResNetConfig
    variables: Params
    accuracy: float
    name: str


def load(
    cache: Path | None,
    *,
    model: str = MODEL,
    recipe: Recipe = RECIPE,
    pictures: int = PICTURES,
    seed: int = 0,
    bars: Bars | None = None,
) -> Base:
    """Pre-trains the world's trunk, or finds that done in the cache.

    Args:
        cache: root of the cache; None keeps nothing.
        model: name of its sizes.
        recipe: of the training.
        pictures: how many to draw.
        seed: of weights and order.
        bars: to show progress on.
    """
    config = PRESETS[model]

    def draw() -> dict[str, np.ndarray]:
        images, labels = rooms.pretraining_images(pictures)
        return {"images": images, "labels": labels}

    def make() -> dict[str, Any]:
        pictured = {"world": rooms.rooms_digest(), "pictures": pictures}
        drawn = cached(cache, "furniture", pictured, draw, report=say)
        images, labels = drawn["images"], drawn["labels"]
        start = initial_variables(config, jax.random.key(seed))
        classes = len(rooms.PRETRAINING_CLASSES)
        head = {
            "weight": np.zeros((classes, config.features), np.float32),
            "bias": np.zeros(classes, np.float32),
        }
        follow = bars and bars.follow("pre-training", recipe.steps, recipe.batch_size)
        made = finetune_with_state(
            classifying(config), start["params"], head, start["batch_stats"], images[:-HELD_OUT],
            labels[:-HELD_OUT], recipe,
            seed=seed,
            on_chunk=follow,
            state_folder=folder,
        )  # fmt: skip
        variables = {"params": made.params, "batch_stats": made.state}
        features = predict(encode_images(config), variables, images[-HELD_OUT:])
        said = np.asarray(classify(made.head, features)).argmax(axis=1)
        right = 100 * (said == labels[-HELD_OUT:]).mean()
        return {"variables": variables, "accuracy": np.float32(right)}

    key = {
        "world": rooms.rooms_digest(), "pictures": pictures, "recipe": recipe._asdict(),
        "config": str(config), "seed": seed,
    }  # fmt: skip
    folder = unfinished(cache, "rooms-base", key)
    found = cached(cache, "rooms-base", key, make, report=say)
    if folder is not None and folder.is_dir():
        discard(folder)
    accuracy = float(found["accuracy"])
    return Base(config, found["variables"], accuracy, digest(found["variables"]))


@once
def classifying(config: ResNetConfig) -> Forward:
    """Returns what `finetune_with_state` takes to train trunk and classifier."""
    encode = encode_in_training(config)

    def forward(
        params: Params, head: Any, state: Any, images: Array, mask: Any, key: Any
    ) -> tuple[Array, Any]:
        del key
        features, moved = encode({"params": params, "batch_stats": state}, images, mask)
        return classify(head, features), moved

    return forward


@dataclass(frozen=True)
class Settings:
    """Pre-trains the trunk of the embedded world of rooms, if the cache does not hold it."""

    cache: Path = Path("runs/cache")
    """Folder of what is made once."""
    steps: int = RECIPE.steps
    """Optimiser steps."""
    seed: int = 0
    """Of weights and order."""


def main(settings: Settings) -> int:
    """Makes or finds the base, and says how much it knows."""
    with Bars() as bars:
        recipe = RECIPE._replace(steps=settings.steps)
        base = load(settings.cache.absolute(), recipe=recipe, seed=settings.seed, bars=bars)
    say(f"{MODEL}: {base.accuracy:.1f} % of unseen pictures right; {base.name}")
    return 0


if __name__ == "__main__":
    sys.exit(run(main, Settings, None, prog="python -m experiments.tiny.rooms_base"))
