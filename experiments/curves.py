"""Follows SyMerge's accuracy while it adapts, at several learning rates (Figure E, a and b).

    python -m experiments.curves                          the embedded world, seed 0
    python -m experiments.curves --seeds 0 1 2 --rates 1e-3 1e-2
    python -m experiments.curves --data DIR               your own image folders or npz packs
    python -m experiments.curves --model ViT-B-32 --checkpoints DIR --data DIR

The test accuracy after every twentieth of the iterations, for a learning rate of coefficients and
heads from each of a list; the setting's own rate is always among them. The paper does not name the
rates of its sweep. Looking at the accuracy changes nothing in the run.

Expected (`PAPER`): near the end's accuracy after 100 of 500 iterations, for ViT-B/32 and ViT-L/14;
all rates but the lowest end alike.
Cost: five adaptations, about two and a half minutes on two cores for the embedded world once
experts are there.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from experiments import figures, records
from experiments.methods import Outcome, Run
from experiments.options import Options
from experiments.own_runs import refuse_methods
from experiments.records import Record
from experiments.starts import start_row
from experiments.training_curves import (
    Curve,
    Line,
    course,
    curve_of,
    draw_lines,
    ramp,
    settled,
)
from experiments.vision_run import Scene, adapt, add, begin, describe, finish, fixed
from symerge_jax.cli.errors import run
from symerge_jax.errors import BadInput

RATES = (1e-4, 1e-3, 5e-3, 1e-2, 5e-2)

# Accuracy at the end, in percent (Table 1), and the iteration by which it is nearly there (D.3).
PAPER = {"ViT-B-32": (90.1, 100), "ViT-L-14": (94.1, 100)}


@dataclass(frozen=True)
class Settings(Options):
    """Follows the accuracy of SyMerge while it adapts, at several rates; see the module."""

    rates: tuple[float, ...] = RATES
    """Learning rates of coefficients and heads; the setting's own is added."""
    points: int = 20
    """How many times the accuracy is looked at."""


def main(settings: Settings) -> int:
    """Runs the experiment; the last line printed is the path of the record."""
    refuse_methods(settings, ("symerge",))
    check_numbers(settings)
    if settings.dry_run:
        return describe(settings, ["individual", *(f"symerge, {r:g}" for r in settings.rates)])
    with begin("curves", settings) as scene:
        own = scene.constants
        every = max(1, own.iterations // settings.points)
        names = named(settings.rates[:1] if settings.quick else settings.rates, own.rate)
        individual = fixed(scene, ["individual"])
        starts = [start_row(scene.model, s, scene.tasks, own.initial) for s in scene.seeds.values()]
        outcomes = adapt(
            scene,
            [Run("symerge", name=name, every=every) for name in names],
            [own._replace(rate=rate) for rate in names.values()],
        )
        add(scene, [*individual, *starts, *outcomes])
        curves = {
            name: curve_of(
                [one for one in outcomes if one.method == name], starts,
                every=every, iterations=own.iterations,
            )
            for name in names
        }  # fmt: skip
        scene.record["data"] = described(scene, names, curves, starts, outcomes)
    return finish(scene, partial(draw, scene.record))


def check_numbers(settings: Settings) -> None:
    """Raises `BadInput` for rates or numbers of points that make no sense."""
    if not settings.rates or min(settings.rates) <= 0:
        raise BadInput(f"--rates must be numbers above 0, got {list(settings.rates)}")
    if settings.points < 1:
        raise BadInput(f"--points must be at least 1, got {settings.points}")


def named(rates: Sequence[float], own: float) -> dict[str, float]:
    """Returns a run's name → its rate, rising; the setting's own rate is plain `symerge`."""
    return {
        "symerge" if rate == own else f"symerge_rate_{rate:g}": rate
        for rate in sorted({*rates, own})
    }


def described(
    scene: Scene,
    names: Mapping[str, float],
    curves: Mapping[str, Curve],
    starts: Sequence[Outcome],
    outcomes: Sequence[Outcome],
) -> dict[str, Any]:
    """Returns what the pictures show, as the record has it."""
    own = [one for one in outcomes if one.method == "symerge"]
    per_task = np.mean([course(one, s) for s, one in zip(starts, own, strict=True)], axis=0)
    return {
        "tasks": [task.name for task in scene.tasks],
        "iterations": curves["symerge"].iterations.tolist(),
        "rates": dict(names),
        "accuracy": {name: curve.rows() for name, curve in curves.items()},
        "accuracy_per_task": np.round(per_task, 3).T.tolist(),
        "within_one_point_from": {name: settled(curve) for name, curve in curves.items()},
    }


def draw(record: Record, folder: Path) -> None:
    """Draws the run at the setting's own rate, with its tasks, and all rates."""
    data = record.get("data", {})
    expert = records.summarise(record)["individual"]["mean"]
    iterations = np.array(data["iterations"])
    curves = {name: Curve(iterations, np.array(rows)) for name, rows in data["accuracy"].items()}

    figure = figures._figure(7.6, 4.0)
    axes = figure.subplots()
    for i, values in enumerate(data["accuracy_per_task"]):
        axes.plot(iterations, values, color="#9AA5AD", linewidth=0.9,
                  label="SyMerge, each task" if i == 0 else None)  # fmt: skip
    mean = Line("SyMerge, mean", curves["symerge"], figures._HIGHLIGHT, wide=True)
    draw_lines(axes, [mean], expert=expert)
    axes.set_ylabel("accuracy (%)")
    axes.set_title(f"SyMerge while it adapts, learning rate {data['rates']['symerge']:g}",
                   fontsize=10)  # fmt: skip
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    figures._save(figure, folder / "learning_curve.png")

    lines = [
        Line(f"rate {data['rates'][name]:g}", curve, colour, wide=name == "symerge")
        for (name, curve), colour in zip(curves.items(), ramp(len(curves)), strict=True)
    ]
    figure = figures._figure(7.6, 4.0)
    axes = figure.subplots()
    draw_lines(axes, lines, expert=expert)
    axes.set_ylabel("accuracy, mean over tasks (%)")
    own = f"{data['rates']['symerge']:g}"
    axes.set_title(f"SyMerge at several learning rates; thick: the setting's own, {own}",
                   fontsize=10)  # fmt: skip
    figure.legend(loc="outside right center", frameon=False, fontsize=9)
    figures._save(figure, folder / "learning_rates.png")


if __name__ == "__main__":
    sys.exit(run(main, Settings, None, prog="python -m experiments.curves"))
