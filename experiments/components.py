"""What SyMerge trains, taken apart: coefficients alone, heads alone, both (the paper's Table 5).

    python -m experiments.components                      the embedded world, 8 tasks, seed 0
    python -m experiments.components --task-count 20      14 or 20 tasks: one run for each number
    python -m experiments.components --data DIR           your own image folders or npz packs
    python -m experiments.components --model ViT-B-32 --checkpoints DIR --data DIR

All three learn from the experts' classes on unlabelled test images. Coefficients alone have a
learning rate of their own (0.001 in the paper); heads alone stand on the encoder that the others
start from. The row of Task Arithmetic is that start.

Expected: both > heads only > coefficients only for 8 tasks; with 20, the paper's heads alone fall
behind the coefficients alone. About a minute per seed on two cores, experts from the cache.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from experiments import figures_bars, records
from experiments.ablating import chosen_rows, in_order, references
from experiments.labels import method_label
from experiments.methods import Run, is_adaptive
from experiments.options import Options
from experiments.records import Record
from experiments.vision_run import adapt, add, begin, describe, finish
from symerge_jax.cli.errors import run

ROWS = ("individual", "task_arithmetic", "symerge_coefficients", "symerge_head", "symerge")
START = "task_arithmetic"

# Table 5: the mean over 8, 14 and 20 tasks, ViT-B/32.
PAPER = {
    8: {"symerge_coefficients": 84.6, "symerge_head": 88.2, "symerge": 90.1},
    14: {"symerge_coefficients": 82.4, "symerge_head": 83.0, "symerge": 88.7},
    20: {"symerge_coefficients": 81.6, "symerge_head": 75.0, "symerge": 88.6},
}


@dataclass(frozen=True)
class Settings(Options):
    """Adapts coefficients alone, heads alone, and both; see the module for what it expects."""


def main(settings: Settings) -> int:
    """Runs the experiment; the last line printed is the path of the record."""
    rows = chosen_rows(settings.methods, ROWS)
    if settings.dry_run:
        return describe(settings, rows)
    with begin("components", settings) as scene:
        outcomes = references(scene, rows)
        learning = [row for row in rows if is_adaptive(row)]
        learning.sort(key="symerge_head".__eq__)  # a short one last
        outcomes += adapt(scene, [Run(row) for row in learning])
        add(scene, in_order(outcomes, rows))
        record = scene.record
        record["data"] = {"task_count": len(scene.tasks), "gain": gains(record)}
    return finish(scene, partial(draw, record))


def gains(record: Record) -> dict[str, float]:
    """Returns how many points each method is above Task Arithmetic, by the mean over tasks."""
    means = {method: found["mean"] for method, found in records.summarise(record).items()}
    if means.get(START) is None:
        return {}
    return {
        method: mean - means[START]
        for method, mean in means.items()
        if mean is not None and is_adaptive(method)
    }


def draw(record: Record, folder: Path) -> None:
    """Draws the bars of each task and of their mean."""
    rows = [method for method in records.methods(record) if method != records.EXPERT]
    tasks = list(dict.fromkeys(result["task"] for result in record["results"]))
    series, spread = {}, {}
    for row in rows:
        found = [records.over_seeds(record, row, task, "accuracy") for task in tasks]
        mean, std = figures_bars.over_tasks(record, [row], "accuracy")
        series[method_label(row)] = [*(value for value, _ in found), mean[0]]
        spread[method_label(row)] = [*(value for _, value in found), std[0]]
    expert, _ = figures_bars.over_tasks(record, [records.EXPERT], "accuracy")
    figures_bars.grouped_bars(
        [*tasks, "mean"], series, folder / "components.png",
        title=f"Coefficients, heads, or both: {len(tasks)} tasks merged",
        colours=[
            {
                START: figures_bars.BEFORE,
                "symerge_coefficients": figures_bars.ORANGE,
                "symerge_head": figures_bars.GREEN,
                "symerge": figures_bars.AFTER,
            }[row]
            for row in rows
        ],
        spread=spread,
        lines={"Individual experts, mean": expert[0]},
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(run(main, Settings, None, prog="python -m experiments.components"))
