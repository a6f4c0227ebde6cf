"""Does an encoder that serves other tasks merge well? Figure 2, and the matrix of figure A(a).

    python -m experiments.cross_task                      the embedded world, its 20 tasks
    python -m experiments.cross_task --seeds 0 1 2 --task-count 8
    python -m experiments.cross_task --data DIR           your own image folders, three or more
    python -m experiments.cross_task --model ViT-B-32 --checkpoints DIR --data DIR

For each ordered pair A ≠ B of experts, two accuracies on B's test images under B's classifier: of
A's encoder (cross-task), and of the mean of both encoders (merge). A point per model A is the mean
over B of each; Pearson's r, its p-value and the regression line are over the points. "A model's
average cross-task performance" is read so, by source; two other readings are there as well: a point
per target B, and one per pair. Pairs share experts, so the p-value of the last is too small.
Test labels are read to score; nothing is adapted, so --iterations has no effect.

Expected, for ViT-B/32 on 20 tasks: r = 0.863, p < 0.001 (figure 2); zero-shot classifiers under
other encoders lose much (figure A(a): GTSRB's under SVHN's encoder 31.4).

Cost: the experts once, 6 s of CPU each in the embedded world, then a minute per seed for 210
encoders; what was measured is kept in the cache, where `experiments.proposition` finds it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from experiments import figures_pairs as figures
from experiments.options import Options, check
from experiments.own_runs import refuse_methods
from experiments.pairs import ROWS, Pairs, add_rows, measure, others_mean
from experiments.regression import Line, fit_line
from experiments.vision_run import begin, chosen_tasks, describe, finish
from symerge_jax.cli.errors import run
from symerge_jax.cli.progress import say
from symerge_jax.errors import BadInput

# ViT-B/32, 20 tasks: figure 2.
PAPER = {"by": "source", "r": 0.863, "p_below": 0.001}
AGGREGATES = ("source", "target", "pairs")


@dataclass(frozen=True)
class Settings(Options):
    """Relates cross-task accuracy to merge accuracy; see the module for what it expects."""

    task_count: Literal[8, 14, 20] = 20
    """How many tasks, if none is named."""


def main(settings: Settings) -> int:
    """Runs the experiment; the last line printed is the path of the record."""
    check(settings)
    refuse_methods(settings, ROWS)
    names = chosen_tasks(settings)
    if len(names) < 3:
        raise BadInput(f"a correlation needs at least three tasks, got {' '.join(names)}")
    if settings.dry_run:
        return describe(settings, ROWS)
    with begin("cross_task", settings) as scene:
        found = measure(scene)
        add_rows(scene, found)
        scene.record["data"] = data = collected(found)
        data["tasks"] = names = [task.name for task in scene.tasks]
        for by in AGGREGATES:
            say(sentence(by, data["correlations"][by]["mean"]))
    return finish(scene, lambda folder: draw(found, names, folder))


def points(cross: np.ndarray, merged: np.ndarray, by: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the points x and y of a correlation.

    Args:
        cross: [encoder, task].
        merged: [encoder, task].
        by: "source", a point per encoder; "target", per task; "pairs", per ordered pair.
    """
    if by == "pairs":
        apart = ~np.eye(len(cross), dtype=bool)
        return cross[apart], merged[apart]
    axis = {"source": 1, "target": 0}[by]
    return others_mean(cross, axis), others_mean(merged, axis)


def collected(found: dict[int, Pairs]) -> dict[str, Any]:
    """Returns the matrices of each seed and the correlations, as the record stores them."""
    mean = over_seeds(found)
    return {
        "cross": {str(seed): pairs.cross.tolist() for seed, pairs in found.items()},
        "merged": {str(seed): pairs.merged.tolist() for seed, pairs in found.items()},
        "correlations": {
            by: {
                "mean": stored(*points(mean.cross, mean.merged, by)),
                "seeds": {
                    str(seed): stored(*points(pairs.cross, pairs.merged, by))
                    for seed, pairs in found.items()
                },
            }
            for by in AGGREGATES
        },
        "paper": PAPER,
    }


def over_seeds(found: dict[int, Pairs]) -> Pairs:
    """Returns the mean over seeds of every number."""
    return Pairs(*(np.mean(each, axis=0) for each in zip(*found.values(), strict=True)))


def stored(x: np.ndarray, y: np.ndarray) -> dict[str, Any]:
    """Returns points and their line; null where all x or all y are the same."""
    line = fit_line(x, y)
    numbers = dict.fromkeys(("slope", "intercept", "r", "p"))
    if line is not None:
        numbers |= {name: getattr(line, name) for name in numbers}
    return {**numbers, "x": x.tolist(), "y": y.tolist()}


def sentence(by: str, found: dict[str, Any]) -> str:
    """Says how the two accuracies go together."""
    what = {"source": "by encoder", "target": "by task", "pairs": "over pairs"}[by]
    if found["r"] is None:
        return f"cross-task and merge accuracy {what}: all the same, no correlation"
    return f"cross-task and merge accuracy {what}: r = {found['r']:.3f}, p = {found['p']:.2g}"


def draw(found: dict[int, Pairs], names: Sequence[str], folder: Path) -> None:
    """Draws means over seeds: figure 2 by encoder, the other readings, and figure A(a)."""
    mean = over_seeds(found)
    lines: dict[str, Line] = {}
    for by in AGGREGATES:
        line = fit_line(*points(mean.cross, mean.merged, by))
        if line is not None:
            lines[by] = line
    if "source" in lines:
        figures.correlation(lines["source"], names, folder / "correlation.png")
    others = {
        title: lines[by]
        for by, title in (("target", "one point per task"), ("pairs", "one point per pair"))
        if by in lines
    }
    if others:
        figures.correlations(others, folder / "correlation_others.png")
    title = "accuracy (%) of each encoder under each task's own classifier"
    figures.matrix(mean.cross, names, title, folder / "cross_task.png")


if __name__ == "__main__":
    sys.exit(run(main, Settings, None, prog="python -m experiments.cross_task"))
