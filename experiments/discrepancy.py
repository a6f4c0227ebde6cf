"""Counts on which test images a merged model and the experts differ (the paper's Figure 7).

    python -m experiments.discrepancy                     the embedded world, seed 0
    python -m experiments.discrepancy --seeds 0 1 2 --methods ties symerge
    python -m experiments.discrepancy --data DIR          your own image folders or npz packs
    python -m experiments.discrepancy --model ViT-B-32 --checkpoints DIR --data DIR

Per task, over its test images: U counts those that the expert gets right and the merged model
wrong, which is what merging costs; D those that the expert gets wrong and the merged model right.
U − D is by how many images the expert is ahead.

Expected: the paper draws this without numbers; SyMerge has the smallest U and the smallest U − D.
Cost: four adaptations, about two minutes on two cores for the embedded world once experts are
there.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from experiments import figures
from experiments.labels import method_label
from experiments.methods import Outcome, Run, base_of, check_method, is_adaptive
from experiments.options import Options
from experiments.records import EXPERT, Record
from experiments.vision_run import adapt, add, begin, describe, finish, fixed
from experiments.vision_start import depth_of
from symerge_jax.cli.errors import run

METHODS = (
    "task_arithmetic",
    "ties",
    "tsv_m",
    "adamerging",
    "surgery",
    "wemoe",
    "symerge",
)


@dataclass(frozen=True)
class Settings(Options):
    """Counts what merging breaks and what it mends, image by image; see the module."""


def main(settings: Settings) -> int:
    """Runs the experiment; the last line printed is the path of the record."""
    methods = chosen_methods(settings)
    if settings.dry_run:
        return describe(settings, [EXPERT, *methods])
    with begin("discrepancy", settings) as scene:
        outcomes = fixed(scene, [EXPERT, *(name for name in methods if not is_adaptive(name))])
        for later in (False, True):  # corrections stand on what others have learned
            now = [m for m in methods if is_adaptive(m) and (base_of(m) is not None) == later]
            outcomes += adapt(scene, [Run(method) for method in now])
        order = [EXPERT, *methods]
        add(scene, sorted(outcomes, key=lambda one: order.index(one.method)))
        tasks = [task.name for task in scene.tasks]
        scene.record["data"] = counted(outcomes, methods, list(scene.seeds), tasks)
    return finish(scene, partial(draw, scene.record))


def chosen_methods(settings: Options) -> list[str]:
    """Returns the methods that are compared with the experts; "all" means the figure's."""
    names = [name.replace("-", "_") for name in settings.methods or METHODS]
    if names == ["all"]:
        names = list(METHODS)
    for name in names:
        check_method(name, depth_of(settings))
    return [name for name in names if name != EXPERT]


def counted(
    outcomes: Sequence[Outcome], methods: Sequence[str], seeds: Sequence[int], tasks: Sequence[str]
) -> dict[str, Any]:
    """Returns U and D as the record has them: method → lists over tasks, one for each seed.

    Args:
        outcomes: of the experts and the methods, each under each seed.
        methods: without the experts.
        seeds: in the order of the lists.
        tasks: names, in the order of the scores.
    """
    found = {(one.method, one.seed): one.scores for one in outcomes}
    sizes = np.array([len(one.correct) for one in found[EXPERT, seeds[0]]])
    data: dict[str, Any] = {"tasks": list(tasks), "images": sizes.tolist(), "counts": {}}
    data["percent"] = {}
    for method in methods:
        both = np.array([
            [
                lost_and_gained(expert.correct, merged.correct)
                for expert, merged in zip(found[EXPERT, seed], found[method, seed], strict=True)
            ]
            for seed in seeds
        ])  # fmt: skip
        data["counts"][method] = {"U": both[..., 0].tolist(), "D": both[..., 1].tolist()}
        lost, gained = 100 * both.mean(axis=0).T / sizes
        data["percent"][method] = {
            "U": lost.tolist(), "D": gained.tolist(), "U-D": (lost - gained).tolist(),
        }  # fmt: skip
    return data


def lost_and_gained(expert: np.ndarray, merged: np.ndarray) -> tuple[int, int]:
    """Returns U and D.

    Args:
        expert: bool [n], which images the expert gets right.
        merged: bool [n], which the merged model gets right.

    Returns:
        How many only the expert gets right, and how many only the merged model.
    """
    return int((expert & ~merged).sum()), int((merged & ~expert).sum())


def draw(record: Record, folder: Path) -> None:
    """Draws U upwards and D downwards, and below it U − D, for each task and their mean."""
    data = record.get("data", {})
    methods, names = list(data["percent"]), [*data["tasks"], "mean"]
    rows = {
        method: {key: [*values, float(np.mean(values))] for key, values in one.items()}
        for method, one in data["percent"].items()
    }
    colours = {method: style[0] for method, style in figures._styles(methods).items()}
    figure = figures._figure(max(8.0, 2.2 + 0.11 * len(names) * (len(methods) + 2)), 6.4)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    _bars(top, rows, colours)
    top.set_ylabel("test images (%)")
    top.set_title("only the expert is right (up), only the merged model is right (down, hatched)",
                  fontsize=10)  # fmt: skip
    _net_bars(bottom, rows, colours)
    bottom.set_ylabel("difference (points)")
    bottom.set_title("by how much the expert is ahead", fontsize=10)
    bottom.set_xticks(np.arange(len(names)), names, rotation=30, ha="right",
                      rotation_mode="anchor")  # fmt: skip
    bottom.get_xticklabels()[-1].set_fontweight("bold")
    handles = [Patch(color=colours[method], label=method_label(method)) for method in methods]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    figures._save(figure, folder / "discrepancy.png")


Rows = Mapping[str, Mapping[str, Sequence[float]]]  # method → "U", "D", "U-D" → a value per column


def _bars(axes: Axes, rows: Rows, colours: Mapping[str, str]) -> None:
    width = 0.84 / len(rows)
    for i, (method, one) in enumerate(rows.items()):
        x = _places(len(one["U"]), i, len(rows))
        axes.bar(x, one["U"], width, color=colours[method])
        axes.bar(x, -np.array(one["D"]), width, color=colours[method], alpha=0.6, hatch="/////",
                 edgecolor="white", linewidth=0)  # fmt: skip
    _finish(axes, len(next(iter(rows.values()))["U"]))
    axes.yaxis.set_major_formatter(lambda value, _: f"{abs(value):g}")


def _net_bars(axes: Axes, rows: Rows, colours: Mapping[str, str]) -> None:
    for i, (method, one) in enumerate(rows.items()):
        x = _places(len(one["U-D"]), i, len(rows))
        axes.bar(x, one["U-D"], 0.84 / len(rows), color=colours[method])
    _finish(axes, len(next(iter(rows.values()))["U-D"]))


def _places(columns: int, i: int, count: int) -> np.ndarray:
    """Returns where the i-th of `count` bars stands in each column."""
    return np.arange(columns) + 0.84 * ((i + 0.5) / count - 0.5)


def _finish(axes: Axes, columns: int) -> None:
    for position in range(0, columns, 2):
        axes.axvspan(position - 0.5, position + 0.5, color="#F4F4F4", linewidth=0, zorder=0)
    axes.axhline(0, color=figures._INK, linewidth=0.8)
    axes.set_xlim(-0.5, columns - 0.5)
    axes.grid(axis="y", color=figures._FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)


if __name__ == "__main__":
    sys.exit(run(main, Settings, None, prog="python -m experiments.discrepancy"))
