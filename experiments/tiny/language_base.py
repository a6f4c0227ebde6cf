"""The embedded language world's pre-trained model: a tiny RoBERTa that has read generated text.

    python -m experiments.tiny.language_base       makes it, and says how well it guesses words

Made once, in about three minutes on two cores, and kept in the cache.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache as once
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.tiny import language_corpus as corpus
from experiments.tiny import language_world as world
from experiments.tiny.language_pretraining import Schedule, pretrain
from symerge_jax.cache import cached, digest
from symerge_jax.cli.errors import run
from symerge_jax.cli.progress import Bars, say
from symerge_jax.kept_run import Saver, kept_run, unfinished
from symerge_jax.models.roberta import by_length, encode_tokens
from symerge_jax.models.roberta_config import PRESETS, RobertaConfig
from symerge_jax.notation import Array, Params
from symerge_jax.parallel import use_devices

MODEL = "tiny-roberta-64x3"
LENGTHS = (18, 24)
TEXTS = 120_000
EASY = 30_000  # of them, in front, say one thing twice in the same order
# Comparing sentences is learned soon from the easy texts, and hardly ever from all at once.
SCHEDULE = Schedule(steps=2600, lengths=LENGTHS, easy_steps=700, easy_texts=EASY)


class Base(NamedTuple):
    """A pre-trained encoder of texts.

    Attributes:
        config: its sizes.
        params: θ₀, float32 on the host.
        name: tells it apart in the keys of caches.
    """

    config: RobertaConfig
    params: Params
    name: str


def config() -> RobertaConfig:
    """Returns the sizes of the world's encoder."""
    return replace(PRESETS[MODEL], vocabulary=world.VOCABULARY, positions=world.LENGTH + 2)


def load(
    cache: Path | None,
    *,
    schedule: Schedule = SCHEDULE,
    texts: int = TEXTS,
    seed: int = 0,
    devices: Sequence[Any] | None = None,
    bars: Bars | None = None,
) -> Base:
    """Pre-trains the world's encoder, or finds that done in the cache.

    Args:
        cache: root of the cache; None keeps nothing.
        schedule: hyper-parameters of pre-training.
        texts: how many to write and read.
        seed: of texts, weights and masks.
        devices: that share the work; all by default.
        bars: to show progress on.
    """

    def write() -> tuple[np.ndarray, np.ndarray]:
        written, sense = corpus.texts(
            texts, easy=schedule.easy_texts, longest=world.LENGTH, seed=seed
        )
        return world.tokens(written), sense

    key = {"world": world.world_digest(), "texts": texts, "language": "generated"}
    return made(config(), write, key, schedule, cache=cache, seed=seed, devices=devices, bars=bars)


def made(
    config: RobertaConfig,
    write: Callable[[], tuple[np.ndarray, np.ndarray | None]],
    key: dict[str, object],
    schedule: Schedule,
    *,
    cache: Path | None,
    seed: int = 0,
    devices: Sequence[Any] | None = None,
    bars: Bars | None = None,
) -> Base:
    """Pre-trains an encoder, or finds that done in the cache.

    Args:
        config: its sizes.
        write: gives the texts, int32 [n, length], and whether each makes sense, if they are needed.
        key: all that the texts depend on.
        schedule: hyper-parameters of pre-training.
        cache: root of the cache; None keeps nothing.
        seed: of weights and masks.
        devices: that share the work; all by default.
        bars: to show progress on.
    """

    def make() -> dict[str, Any]:
        follow = bars and bars.follow("pre-training", schedule.steps, schedule.batch_size)
        tokens, sense = write()
        run = partial(
            pretrain, config, tokens, schedule,
            sense=sense, seed=seed, devices=devices, on_chunk=follow,
        )  # fmt: skip
        if folder is None:
            return run()
        keep = until_stored.enter_context(kept_run(folder, {"key": folder.name}, resume=True))
        return run(saver=Saver(keep))

    sizes = {"vocabulary": config.vocabulary, "positions": config.positions,
             "width": config.width, "depth": config.depth, "heads": config.heads}  # fmt: skip
    whole = key | {"schedule": schedule._asdict(), "sizes": sizes, "seed": seed}
    count = len(devices or jax.local_devices())  # whose copies are part of the state
    folder = unfinished(cache, "language-base", {**whole, "devices": count})
    with ExitStack() as until_stored:
        params = cached(cache, "language-base", whole, make, report=say)
    return Base(config, params["encoder"], digest(params["encoder"]))


@once
def encoder(config: RobertaConfig, lengths: tuple[int, ...] = LENGTHS) -> Callable[..., Array]:
    """Returns (θ, tokens int32 [batch, length]) → features [batch, width], the same each time."""
    return by_length(encode_tokens(config), lengths)


@dataclass(frozen=True)
class Settings:
    """Pre-trains the embedded language model, if the cache does not hold it."""

    cache: Path = Path("runs/cache")
    """Folder of what is made once."""
    steps: int = SCHEDULE.steps
    """Optimiser steps."""
    seed: int = 0
    """Of texts, weights and masks."""
    devices: int | None = None
    """Devices to use; all otherwise."""


def main(settings: Settings) -> int:
    """Makes or finds the base, and says which."""
    devices = use_devices(settings.devices)
    with Bars() as bars:
        schedule = SCHEDULE._replace(steps=settings.steps)
        base = load(
            settings.cache.absolute(), schedule=schedule, seed=settings.seed, devices=devices,
            bars=bars,
        )  # fmt: skip
    say(f"{MODEL}, {base.config.vocabulary} words: {base.name}")
    return 0


if __name__ == "__main__":
    sys.exit(run(main, Settings, None, prog="python -m experiments.tiny.language_base"))
