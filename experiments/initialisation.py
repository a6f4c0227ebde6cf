"""Asks how much the coefficients' start matters (the paper's Figures 6b and E, c).

    python -m experiments.initialisation                  the embedded world, seed 0
    python -m experiments.initialisation --seeds 0 1 2 --coefficients 0.1 0.3 0.5
    python -m experiments.initialisation --data DIR       your own image folders or npz packs
    python -m experiments.initialisation --model ViT-B-32 --checkpoints DIR --data DIR

First, one coefficient for all leaves and tasks, from a list: SyMerge over heads alone, whose
encoder stays where it starts, and over coefficients and heads. Then two starts, the constant one
of the setting and AdaMerging's coefficients, for SyMerge and for Surgery, which trains a module
behind the features and leaves the encoder alone. Surgery's constant start is Task Arithmetic at
the scale that is best on validation images.

Expected: both figures are without numbers in the paper. The accuracies of heads alone lie far
apart, those of both close together; Surgery gains from AdaMerging's start, SyMerge hardly.
Cost: seven runs of SyMerge, six of heads alone, AdaMerging and two of Surgery: about four minutes
on two cores for the embedded world once experts are there.
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
from experiments.training_curves import Curve, Line, curve_of, draw_lines, ramp, spread
from experiments.vision_run import Scene, adapt, add, begin, describe, finish, fixed
from symerge_jax.cli.errors import run
from symerge_jax.errors import BadInput
from symerge_jax.parallel import run_jobs

COEFFICIENTS = (0.1, 0.2, 0.3, 0.4, 0.5, 1.0)
PARTS = {"symerge_head": "heads only", "symerge": "coefficients and heads"}
# Runs of the second question: name → label, whether they start from AdaMerging.
STARTS = {
    "surgery_on_task_arithmetic": ("Surgery, constant start", False),
    "surgery": ("Surgery, AdaMerging's start", True),
    "symerge": ("SyMerge, constant start", False),
    "symerge_from_adamerging": ("SyMerge, AdaMerging's start", True),
}


@dataclass(frozen=True)
class Settings(Options):
    """Starts adaptation from several coefficients; see the module for what it expects."""

    coefficients: tuple[float, ...] = COEFFICIENTS
    """Initial coefficients; the setting's own is added."""
    every: int = 50
    """Iterations between two looks at the accuracy."""


def main(settings: Settings) -> int:
    """Runs the experiment; the last line printed is the path of the record."""
    refuse_methods(settings, ["adamerging", *STARTS])
    check_numbers(settings)
    if settings.dry_run:
        starts = [f"{part} from {c:g}" for part in PARTS for c in settings.coefficients]
        return describe(settings, ["individual", "task_arithmetic", "adamerging", *starts, *STARTS])
    with begin("initialisation", settings) as scene:
        constants = scene.constants
        values = settings.coefficients[-1:] if settings.quick else settings.coefficients
        names = named(values, constants.initial)
        references = fixed(scene, ["individual", "task_arithmetic"])
        befores = starting_points(scene, sorted(set(names.values())))
        outcomes = from_constants(scene, names, settings.every)
        learned = {one.seed: one for one in outcomes if one.method == "adamerging"}
        outcomes += from_adamerging(scene, learned, settings.every)
        add(scene, [*references, *outcomes])
        curves = collected(scene, names, befores, [*references, *outcomes], settings.every)
        scene.record["data"] = described(names, curves)
    return finish(scene, partial(draw, scene.record))


def check_numbers(settings: Settings) -> None:
    """Raises `BadInput` for coefficients or distances between looks that make no sense."""
    values = settings.coefficients
    if not values or min(values) < 0 or max(values) > 1:
        raise BadInput(f"--coefficients must be numbers from 0 to 1, got {list(values)}")
    if settings.every < 1:
        raise BadInput(f"--every must be at least 1, got {settings.every}")


def named(values: Sequence[float], own: float) -> dict[str, float]:
    """Returns a run's name → its initial coefficient, rising, heads alone first.

    The run from the setting's own start has the plain name, `symerge` or `symerge_head`.
    """
    return {
        part if value == own else f"{part}_from_{value:g}": value
        for part in PARTS
        for value in sorted({*values, own})
    }


def part_of(name: str) -> str:
    """Returns what a run of `named` trains, a key of `PARTS`."""
    return "symerge_head" if name.startswith("symerge_head") else "symerge"


def starting_points(scene: Scene, values: Sequence[float]) -> dict[float, list[Outcome]]:
    """Returns what the models before adaptation score: coefficient → one for each seed."""
    jobs = [
        partial(start_row, scene.model, seed, scene.tasks, value)
        for value in values
        for seed in scene.seeds.values()
    ]
    made = iter(run_jobs(jobs, scene.devices))
    return {value: [next(made) for _ in scene.seeds] for value in values}


def from_constants(scene: Scene, names: Mapping[str, float], every: int) -> list[Outcome]:
    """Runs AdaMerging, and SyMerge from each constant."""
    constants = scene.constants
    longest_first = sorted(names, key=lambda name: part_of(name) == "symerge_head")
    return adapt(
        scene,
        [Run("adamerging"), *(Run(part_of(n), name=n, every=every) for n in longest_first)],
        [constants, *(constants._replace(initial=names[n]) for n in longest_first)],
    )


def from_adamerging(scene: Scene, learned: Mapping[int, Outcome], every: int) -> list[Outcome]:
    """Runs SyMerge from the coefficients that AdaMerging learned, and Surgery on both starts.

    Args:
        scene: of the experiment.
        learned: seed → AdaMerging's outcome.
        every: iterations between two looks.
    """
    outcomes = []
    for number, seed in scene.seeds.items():
        adapted = learned[number].adapted
        assert adapted is not None
        start = adapted.coefficients
        outcomes += adapt(
            scene._replace(seeds={number: seed}),
            [
                Run("symerge", name="symerge_from_adamerging", every=every, start=start),
                Run("surgery_on_task_arithmetic", every=every),
                Run("surgery", every=every),
            ],
        )
    return outcomes


def collected(
    scene: Scene,
    names: Mapping[str, float],
    befores: Mapping[float, Sequence[Outcome]],
    outcomes: Sequence[Outcome],
    every: int,
) -> dict[str, Curve]:
    """Returns the curve of each run, over seeds.

    Args:
        scene: of the experiment.
        names: of the runs from constants, and these.
        befores: constant → the models that start from it.
        outcomes: of all methods.
        every: iterations between two looks.
    """
    of_run: dict[str, list[Outcome]] = {}
    for one in outcomes:
        of_run.setdefault(one.method, []).append(one)
    first = {name: befores[value] for name, value in names.items()}
    # Surgery's modules change nothing before their first step.
    first["surgery_on_task_arithmetic"] = of_run["task_arithmetic"]
    first["surgery"] = first["symerge_from_adamerging"] = of_run["adamerging"]
    return {
        name: curve_of(
            of_run[name], first[name], every=every, iterations=scene.constants.iterations
        )
        for name in {**names, **STARTS}
    }


def described(names: Mapping[str, float], curves: Mapping[str, Curve]) -> dict[str, Any]:
    """Returns what the pictures show, as the record has it.

    `spread`: at each point, the best of the constants' curves less the worst, in points.
    """
    parts = {part: [curves[name] for name in names if part_of(name) == part] for part in PARTS}
    return {
        "coefficients": dict(names),
        "iterations": {name: curve.iterations.tolist() for name, curve in curves.items()},
        "accuracy": {name: curve.rows() for name, curve in curves.items()},
        "spread": {part: np.round(spread(own), 3).tolist() for part, own in parts.items()},
    }


def draw(record: Record, folder: Path) -> None:
    """Draws the constants' curves, heads alone beside both, and the two starts."""
    data = record.get("data", {})
    curves = {
        name: Curve(np.array(data["iterations"][name]), np.array(rows))
        for name, rows in data["accuracy"].items()
    }
    expert = records.summarise(record)["individual"]["mean"]

    figure = figures._figure(9.0, 4.2)
    panels = figure.subplots(1, 2, sharey=True)
    for axes, (part, title) in zip(panels, PARTS.items(), strict=True):
        own = {name: c for name, c in data["coefficients"].items() if part_of(name) == part}
        lines = [
            Line(f"from {value:g}", curves[name], colour)
            for (name, value), colour in zip(own.items(), ramp(len(own)), strict=True)
        ]
        draw_lines(axes, lines, expert=expert)
        axes.set_title(f"{title}: {data['spread'][part][-1]:.1f} points apart at the end",
                       fontsize=10)  # fmt: skip
    panels[0].set_ylabel("accuracy, mean over tasks (%)")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)),
                  frameon=False, fontsize=9)  # fmt: skip
    figure.suptitle("SyMerge from one initial coefficient for all leaves and tasks", fontsize=11)
    figures._save(figure, folder / "initial_coefficients.png")

    colours = {"surgery": figures._COLOURS[0], "symerge": figures._HIGHLIGHT}
    lines = [
        Line(label, curves[name], colours[name.split("_")[0]], dashed=not learned)
        for name, (label, learned) in STARTS.items()
    ]
    figure = figures._figure(7.6, 4.0)
    axes = figure.subplots()
    draw_lines(axes, lines, expert=expert)
    axes.set_ylabel("accuracy, mean over tasks (%)")
    axes.set_title("From one coefficient for all (dashed), and from AdaMerging's", fontsize=10)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    figures._save(figure, folder / "adamerging_start.png")


if __name__ == "__main__":
    sys.exit(run(main, Settings, None, prog="python -m experiments.initialisation"))
