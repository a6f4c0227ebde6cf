"""Which layer is each task's own: the classifier, one block, many blocks (Figure 5, Table B).

    python -m experiments.layers                          the embedded world, every choice, seed 0
    python -m experiments.layers --blocks 1 3             these blocks alone
    python -m experiments.layers --block-rates 1e-4 1e-3  learning rates to choose from
    python -m experiments.layers --data DIR               your own image folders or npz packs
    python -m experiments.layers --model ViT-B-32 --checkpoints DIR --data DIR

A block that is a task's own starts at the values of Task Arithmetic, has no coefficient, and is
trained as it is, with a learning rate of its own; all other leaves keep their coefficients, and the
heads stay. `early`, `late` and `all` are the first half of the blocks, the second, and all; of a
tower so short that a half is one block, that half is left out.

The paper does not give the block's learning rate. It is chosen here for the middle block, by the
accuracy on validation images of what was adapted on test images; the record holds all that were
tried. In the embedded world (300 rounds, seed 0): 92.5 with 1e-5, 94.7 with 1e-4, 94.1 with 3e-4,
95.1 with 1e-3, 93.8 with 3e-3. Own settings take 150 rounds of adaptation.

Expected: any single block is about as good as the classifier, many at once are worse. About three
minutes per seed on two cores, experts from the cache, a third of it to compile one program for each
choice.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from experiments import figures_bars, records
from experiments.ablating import (
    chosen_rows,
    in_order,
    references,
    run_of,
    scores_of,
    with_fewer_rounds,
)
from experiments.labels import method_label
from experiments.methods import Outcome, Run, part_of
from experiments.options import Options, check
from experiments.records import Record
from experiments.scoring import validation_scores
from experiments.vision_run import Scene, adapt, add, begin, chosen_tasks, describe, finish
from experiments.vision_start import depth_of, setting_of
from symerge_jax.cli.errors import run
from symerge_jax.errors import BadInput

# What the block's learning rate is chosen from.
RATES = {
    "tiny": (1e-4, 3e-4, 1e-3, 3e-3),
    "images": (1e-4, 3e-4, 1e-3, 3e-3),
    "checkpoints": (1e-6, 1e-5, 1e-4),
}

# Table B: the mean over 8 tasks, ViT-B/32. Coefficients only: Table 5.
PAPER = {
    **{
        f"symerge_block_{block}": mean
        for block, mean in enumerate(
            (90.1, 90.2, 90.4, 90.4, 90.4, 90.2, 90.2, 90.1, 90.4, 90.4, 90.5, 90.0), start=1
        )
    },
    "symerge": 90.1,
    "symerge_late": 88.4,
    "symerge_early": 89.4,
    "symerge_all": 86.2,
    "symerge_coefficients": 84.6,
}


@dataclass(frozen=True)
class Settings(Options):
    """Adapts coefficients with one layer, or many; see the module for what it expects."""

    blocks: tuple[int, ...] | None = None
    """Blocks of the image tower, from 1; all of them otherwise, and early, late and all."""
    block_rates: tuple[float, ...] | None = None
    """Learning rates of the block to choose from on validation images; a few otherwise."""


def main(settings: Settings) -> int:
    """Runs the experiment; the last line printed is the path of the record."""
    settings = with_fewer_rounds(settings)
    check(settings)
    chosen_tasks(settings)  # refuses an unknown model before its depth is asked for
    rates = chosen_rates(settings)
    rows = chosen_rows(settings.methods, rows_of(depth_of(settings), settings.blocks))
    if settings.dry_run:
        return describe(settings, rows)
    with begin("layers", settings) as scene:
        outcomes = references(scene, rows)
        single = [row for row in rows if part_of(row) is not None]
        data: dict[str, Any] = {"block_rate": None, "rates_tried": None}
        constants = scene.constants
        if single:
            swept = middle(single)
            tried, of_block = sweep(scene, swept, rates)
            constants = constants._replace(block_rate=best_rate(tried))
            outcomes += [one._replace(method=swept) for one in of_block[constants.block_rate]]
            data = {"block_rate": constants.block_rate, "rates_tried": as_data(swept, tried)}
        done = {one.method for one in outcomes}
        jobs = [
            run_of(scene, seed, Run(row), constants)
            for row in rows
            if row not in done
            for seed in scene.seeds.values()
        ]
        outcomes += scores_of(scene, jobs)
        add(scene, in_order(outcomes, rows))
        scene.record["data"] = data
    return finish(scene, partial(draw, scene.record))


def rows_of(depth: int, blocks: Sequence[int] | None) -> list[str]:
    """Returns the rows for a tower of `depth` blocks, or for some of its blocks.

    Raises:
        BadInput: a block that the tower does not have, or one named twice.
    """
    for block in blocks or ():
        if not 1 <= block <= depth:
            raise BadInput(
                f"--blocks {block}: the image tower has blocks 1 to {depth}; choose among them"
            )
    if blocks is not None and len(set(blocks)) < len(blocks):
        raise BadInput(f"--blocks names one thing twice: {' '.join(map(str, blocks))}")
    single = [f"symerge_block_{block}" for block in sorted(blocks or range(1, depth + 1))]
    half = depth // 2
    sizes = {"early": half, "late": depth - half, "all": depth}
    groups = [] if blocks else [f"symerge_{part}" for part, size in sizes.items() if size > 1]
    return [
        "individual", "task_arithmetic", "symerge_coefficients", "symerge", *single, *groups,
    ]  # fmt: skip


def chosen_rates(settings: Settings) -> tuple[float, ...]:
    """Returns the learning rates to choose from, ascending.

    Raises:
        BadInput: one that is no positive number.
    """
    rates = settings.block_rates or RATES[setting_of(settings)]
    for rate in rates:
        if not 0 < rate < math.inf:
            raise BadInput(f"--block-rates must be positive numbers, got {rate:g}")
    if settings.quick and settings.block_rates is None:
        rates = rates[1:3]
    return tuple(sorted(set(rates)))


def middle(rows: Sequence[str]) -> str:
    """Returns the middle one of the single blocks, of which the rate is chosen; else the first."""
    single = [row for row in rows if row.startswith("symerge_block_")] or rows[:1]
    return single[(len(single) - 1) // 2]


def sweep(
    scene: Scene, row: str, rates: Sequence[float]
) -> tuple[dict[float, list[float]], dict[float, list[Outcome]]]:
    """Adapts on test images with each learning rate.

    Returns:
        By rate: the accuracies on validation images, in percent, a mean over tasks per seed; and
        the outcomes.
    """
    constants = [scene.constants._replace(block_rate=rate) for rate in rates]
    outcomes = adapt(scene, [Run(row, name=f"{row}, rate {rate:g}") for rate in rates], constants)
    each = len(scene.seeds)
    by_rate = {rate: outcomes[i * each : (i + 1) * each] for i, rate in enumerate(rates)}
    tried = {rate: [validated(scene, one) for one in some] for rate, some in by_rate.items()}
    return tried, {
        rate: [one._replace(adapted=None) for one in some] for rate, some in by_rate.items()
    }


def validated(scene: Scene, outcome: Outcome) -> float:
    """Returns the mean accuracy on validation images, in percent."""
    adapted, classes = outcome.adapted, scene.seeds[outcome.seed].experts.classes
    assert adapted is not None, "a block that is each task's own was adapted"
    own = [adapted.encoder(k) for k in range(len(scene.tasks))]
    found = validation_scores(scene.model, own, adapted.heads, classes, scene.tasks)
    return float(found.mean())


def best_rate(tried: dict[float, list[float]]) -> float:
    """Returns the rate with the highest mean over seeds; of equal ones the lowest."""
    return max(sorted(tried), key=lambda rate: np.mean(tried[rate]))


def as_data(row: str, tried: dict[float, list[float]]) -> dict[str, Any]:
    """Returns what was tried, [rate, seed]."""
    return {"row": row, "rates": list(tried), "validation_accuracy": list(tried.values())}


def draw(record: Record, folder: Path) -> None:
    """Draws the mean of each choice, and the block's learning rates."""
    references = (records.EXPERT, "task_arithmetic")
    rows = [method for method in records.methods(record) if method not in references]
    mean, std = figures_bars.over_tasks(record, rows, "accuracy")
    levels, _ = figures_bars.over_tasks(record, references, "accuracy")
    if rows:
        figures_bars.grouped_bars(
            [_short(row) for row in rows], {"mean over tasks": mean}, folder / "layers.png",
            title="Which layer is each task's own, beside the coefficients",
            colours=[figures_bars.BLUE],
            spread={"mean over tasks": std},
            lines=dict(zip(map(method_label, references), levels, strict=True)),
        )  # fmt: skip
    data = record.get("data", {})
    tried = data.get("rates_tried")
    if tried is not None and len(tried["rates"]) > 1:
        of_seeds = np.array(tried["validation_accuracy"])
        figures_bars.curves(
            tried["rates"], {"validation images": of_seeds.mean(axis=1).tolist()},
            folder / "block_rates.png",
            title=f"{method_label(tried['row'])}: the learning rate is chosen on validation images",
            xlabel="learning rate of the block's weights",
            logarithmic=True,
            marked=data["block_rate"],
        )  # fmt: skip


def _short(row: str) -> str:
    """`symerge_block_3` → `block 3`."""
    names = {"symerge": "classifier", "symerge_coefficients": "none"}
    rest = row.removeprefix("symerge_").replace("_", " ")
    return names.get(row) or (rest if rest.startswith("block") else f"{rest}\nblocks")


if __name__ == "__main__":
    sys.exit(run(main, Settings, None, prog="python -m experiments.layers"))
