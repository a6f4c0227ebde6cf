"""What length buckets save in the adaptation of text encoders, and the forward beside PyTorch's.

    python -m benchmarks.roberta_step
    python -m benchmarks.roberta_step --model roberta-base --steps 8 --json FILE

Two questions, on random weights and tokens:

buckets: SyMerge's rule in one compiled loop over texts padded to 128 tokens, once as they are and
    once with `by_length`, which cuts each batch to the shortest bucket its longest text fits in.
    Lengths are drawn as in CoLA and SST-2 (mean 11 and 25 tokens). Both runs see the same batches,
    so their losses must agree; tokens are counted without padding.
forward: features of batches of 128 tokens, the last text half padding, ours and `transformers`' on
    the same weights, mask and number of threads, in turns, where PyTorch is installed (it is no
    requirement of ours). Ours works out no more of the last block than the first position, which
    is all that a classifier reads.

Ratios are taken pair by pair of neighbouring runs. The exit code is 1 if the losses, or the
features, differ.
"""

import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from experiments.environment import environment
from symerge_jax import trees
from symerge_jax.adapt import schedule as schedules
from symerge_jax.adapt.coefficients import per_leaf
from symerge_jax.adapt.fit import Data, fit, pool
from symerge_jax.adapt.merged import Constants, Encode, Trainables, encoder_loss, objective_ids
from symerge_jax.adapt.objectives import ExpertLabels
from symerge_jax.checkpoints.roberta import to_hugging_face
from symerge_jax.checkpoints.roberta_layout import config_json
from symerge_jax.cli.errors import CHECK_FAILED, DONE, nearest, run
from symerge_jax.errors import BadInput
from symerge_jax.files import write_atomically
from symerge_jax.models.roberta import (
    by_length,
    classify,
    encode_tokens,
    initial_head,
    initial_params,
)
from symerge_jax.models.roberta_config import PRESETS, RobertaConfig

LONGEST = 128
# Mean and deviation of the logarithm of the number of tokens, <s> and </s> included.
LENGTHS = {"cola": (2.35, 0.35), "sst2": (3.1, 0.55)}
TOLERANCE = 1e-3


@dataclasses.dataclass(frozen=True)
class Settings:
    """Times adaptation with and without length buckets, and the forward beside PyTorch's."""

    model: str = "tiny-roberta-64x3"
    """Preset of symerge_jax.models.roberta_config."""
    tasks: int = 4
    """Tasks that are merged, CoLA-like and SST-2-like in turns."""
    steps: int = 40
    """Optimiser steps of a run."""
    batch_size: int = 32
    """Texts per step, and per batch of the forward."""
    repeats: int = 5
    """Timed runs of each, taken in turns."""
    texts: int = 256
    """Unlabelled texts of each task."""
    json: Path | None = None
    """A file for the figures and the environment."""


class Problem(NamedTuple):
    """What adaptation is given."""

    config: RobertaConfig
    trainables: Trainables
    constants: Constants
    data: Data
    schedule: schedules.Schedule


def main(settings: Settings) -> int:
    """Measures, prints the tables, writes the JSON file; returns 1 if results differ."""
    check(settings)
    begun_in = environment()
    problem = make_problem(settings)
    found: dict[str, Any] = {"benchmark": "roberta_step", "settings": _plain(settings)}
    found["buckets"] = buckets(problem, settings.repeats)
    found["forward"] = forward(problem.config, settings, threads=begun_in["cpu_count"])
    print_tables(found)
    if settings.json:
        text = json.dumps({**found, "environment": begun_in}, indent=2)
        write_atomically(settings.json, f"{text}\n")
    agree = all(part["agree"] for part in (found["buckets"], found["forward"]) if part)
    return DONE if agree else CHECK_FAILED


def check(settings: Settings) -> None:
    """Raises `BadInput` for an unknown model and for counts below 1."""
    if settings.model not in PRESETS:
        raise BadInput(
            f"unknown model {settings.model!r}{nearest(settings.model, PRESETS)}; known: "
            f"{', '.join(PRESETS)}"
        )
    for name in ("tasks", "steps", "batch_size", "repeats", "texts"):
        if getattr(settings, name) < 1:
            raise BadInput(f"{name} must be at least 1, got {getattr(settings, name)}")


def make_problem(settings: Settings) -> Problem:
    """Draws weights, texts and expert labels, all of them random."""
    config = replace(PRESETS[settings.model], positions=max(LONGEST + 2, 130))
    keys = jax.random.split(jax.random.key(0), settings.tasks + 2)
    pretrained, *drawn = (initial_params(config, key) for key in keys[1:])
    task_vectors = jax.tree.map(lambda tau: 0.1 * tau, trees.stack(drawn))
    heads = trees.stack([initial_head(config, 2, keys[0])] * settings.tasks)
    rng = np.random.default_rng(0)
    inputs = [texts_like(list(LENGTHS)[k % 2], settings.texts, config, rng)
              for k in range(settings.tasks)]  # fmt: skip
    experts = [
        ExpertLabels(rng.integers(0, 2, len(x), np.int32), np.ones(len(x), np.float32))
        for x in inputs
    ]
    data = pool(inputs, experts)
    iterations = -(-settings.steps // settings.tasks)
    schedule = schedules.sequential(
        data.sizes, iterations=iterations, batch_size=settings.batch_size, seed=0
    ).part(0, settings.steps)
    constants = Constants(
        pretrained,
        task_vectors,
        jnp.ones((settings.tasks, 2), bool),
        objective_ids(["none"] * settings.tasks),
    )
    return Problem(
        config, Trainables(per_leaf(task_vectors, 0.3), heads), constants, data, schedule
    )  # fmt: skip


def texts_like(
    kind: str, count: int, config: RobertaConfig, rng: np.random.Generator
) -> np.ndarray:
    """Returns token ids int32 [text, 128] of a task's lengths, padded at the end."""
    mean, deviation = LENGTHS[kind]
    lengths = np.clip(np.exp(rng.normal(mean, deviation, count)), 4, LONGEST).astype(int)
    tokens = rng.integers(4, config.vocabulary, (count, LONGEST), np.int32)
    return np.where(np.arange(LONGEST)[None] < lengths[:, None], tokens, config.pad_token).astype(
        np.int32
    )


def buckets(problem: Problem, repeats: int) -> dict[str, Any]:
    """Runs the schedule padded and with buckets, in turns."""
    plain = encode_tokens(problem.config)
    ways: dict[str, Encode] = {"padded": plain, "buckets": by_length(plain)}
    losses = {name: adapt(problem, encode) for name, encode in ways.items()}  # these compile
    seconds = in_turns({n: lambda e=e: adapt(problem, e) for n, e in ways.items()}, repeats)
    rows = (
        problem.schedule.sample_indices
        + np.cumsum([0, *problem.data.sizes[:-1]])[problem.schedule.task_ids][:, None]
    )
    tokens = int((np.asarray(problem.data.inputs)[rows] != problem.config.pad_token).sum())
    difference = float(np.abs(losses["padded"] - losses["buckets"]).max())
    return {
        "tokens": tokens,
        "tokens_per_s": {n: tokens / statistics.median(s) for n, s in seconds.items()},
        "seconds": seconds,
        "ratio": _ratio(seconds["padded"], seconds["buckets"]),
        "largest_difference": difference,
        "agree": difference < TOLERANCE,
    }


def adapt(problem: Problem, encode: Encode) -> np.ndarray:
    """Runs the schedule; returns losses [step]."""
    return fit(
        encoder_loss(encode, classify),
        problem.trainables,
        problem.data,
        problem.schedule,
        rates=Trainables(1e-3, 1e-3),
        constants=problem.constants,
        per_task=Trainables(False, True),
        idle="zero",
    ).losses


def forward(config: RobertaConfig, settings: Settings, *, threads: int) -> dict[str, Any] | None:
    """Compares the forward with that of transformers; None where PyTorch is not installed."""
    params = initial_params(config, jax.random.key(0))
    tokens = np.random.default_rng(1).integers(
        4, config.vocabulary, (settings.batch_size, LONGEST), np.int32
    )
    tokens[-1, LONGEST // 2 :] = config.pad_token  # without any, theirs would leave the mask out
    theirs = in_torch(config, params, tokens, threads)
    if theirs is None:
        return None
    ours = jax.jit(encode_tokens(config))
    held, given = jax.tree.map(jnp.asarray, params), jnp.asarray(tokens)
    ways = {"ours": lambda: np.asarray(ours(held, given)), "transformers": theirs}
    features = {name: way() for name, way in ways.items()}  # ours compiles
    seconds = in_turns(ways, settings.repeats)
    difference = float(np.abs(features["ours"] - features["transformers"]).max())
    return {
        "threads": threads,
        "tokens_per_s": {n: tokens.size / statistics.median(s) for n, s in seconds.items()},
        "seconds": seconds,
        "ratio": _ratio(seconds["transformers"], seconds["ours"]),
        "largest_difference": difference,
        "agree": difference < TOLERANCE,
    }


def in_torch(
    config: RobertaConfig, params: Any, tokens: np.ndarray, threads: int
) -> Callable | None:
    """Returns a call of transformers' encoder on the same weights, giving features."""
    try:
        import torch  # pyright: ignore[reportMissingImports]
        from transformers import RobertaConfig as Sizes
        from transformers import RobertaModel
    except ImportError:
        return None
    torch.set_num_threads(threads)  # as many as XLA takes
    model = RobertaModel(Sizes.from_dict(config_json(config)), add_pooling_layer=False).eval()
    state = {
        name.removeprefix("roberta."): torch.from_numpy(np.array(value))
        for name, value in to_hugging_face(jax.tree.map(np.asarray, params)).items()
    }
    model.load_state_dict(state)
    ids = torch.from_numpy(tokens.astype(np.int64))
    mask = (ids != config.pad_token).long()

    def run_once() -> np.ndarray:
        with torch.inference_mode():
            return model(ids, attention_mask=mask).last_hidden_state[:, 0].numpy()

    return run_once


def in_turns(ways: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Runs all ways in turns, the order reversed from pair to pair; returns seconds of each."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(repeats):
        for name in list(ways)[:: -1 if repeat % 2 else 1]:
            begin = time.perf_counter()
            ways[name]()
            seconds[name].append(time.perf_counter() - begin)
    return seconds


def _ratio(slow: list[float], fast: list[float]) -> dict[str, Any]:
    pairs = [a / b for a, b in zip(slow, fast, strict=True)]
    return {
        "pairs": pairs, "median": statistics.median(pairs), "min": min(pairs), "max": max(pairs),
    }  # fmt: skip


def _plain(settings: Settings) -> dict[str, Any]:
    return {k: v for k, v in dataclasses.asdict(settings).items() if k != "json"}


def print_tables(found: dict[str, Any]) -> None:
    """Prints tokens per second and the ratios."""
    console = Console()
    for title, part in (("adaptation", found["buckets"]), ("forward", found["forward"])):
        if part is None:
            console.print("forward: PyTorch is not installed, nothing to compare with")
            continue
        table = Table(title=f"{title}, {found['settings']['model']}")
        for name in ("", "tokens/s"):
            table.add_column(name, justify="right" if name else "left")
        for name, speed in part["tokens_per_s"].items():
            table.add_row(name, f"{speed:,.0f}")
        console.print(table)
        ratio = part["ratio"]
        console.print(
            f"ratio {ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f}); largest "
            f"difference {part['largest_difference']:.1e}"
        )


if __name__ == "__main__":
    sys.exit(run(main, Settings, None, prog="python -m benchmarks.roberta_step"))
