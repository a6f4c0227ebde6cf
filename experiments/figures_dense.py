"""Figures of scenes: images beside their segmentation, depth and surface normals.

Style is that of `figures`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.patches import Patch

from experiments import records
from experiments.figures import _COLOURS, _HIGHLIGHT, _INK, _figure, _save
from experiments.labels import method_label, metric_label
from experiments.records import Record
from experiments.tasks.task import Task
from symerge_jax.data.dense import Scenes

# Neighbours in a room differ most in brightness: walls light, floors brown, furniture dark.
_CLASS_COLOURS = (
    "#0072B2", "#E69F00", "#F0F0E8", "#CC79A7", "#A98B6B", "#5B4B9A", "#D55E00", "#009E73",
    "#7A2E00", "#F0E442", "#111111", "#C9D3DC", "#56B4E9",
)  # fmt: skip
_IGNORED = (0.5, 0.5, 0.5)
_DEPTHS = colormaps["viridis_r"].with_extremes(bad=_IGNORED)
_TITLES = ("image", "segmentation", "depth (m)", "normals")


def contact_sheet(
    scenes: Scenes, classes: Sequence[str], path: str | Path, *, columns: int = 2
) -> Path:
    """Draws each scene's image, segmentation, depth and normals side by side.

    Pixels that do not count are grey. Normals have red for right, green for ahead, blue for up.

    Args:
        scenes: to draw, all of them.
        classes: names of the labels.
        path: of the PNG.
        columns: scenes per row.

    Returns:
        The path.
    """
    count, height, width = scenes.labels.shape
    rows = -(-count // columns)
    cell = 1.5
    figure = _figure(4 * columns * cell, rows * cell * height / width + 0.9)
    panels = figure.subplots(rows, 4 * columns, squeeze=False)
    far = max(1.0, float(np.percentile(scenes.depths, 99.5)))
    for place in range(rows * columns):
        row, column = divmod(place, columns)
        four = panels[row, 4 * column : 4 * column + 4]
        for axes, title in zip(four, _TITLES, strict=True):
            axes.set_axis_off()
            if row == 0:
                axes.set_title(title, fontsize=8, color=_INK)
        if place < count:
            four[0].imshow(scenes.images[place])
            four[1].imshow(label_colours(scenes.labels[place]))
            depth = np.ma.masked_equal(scenes.depths[place], 0)
            four[2].imshow(depth, cmap=_DEPTHS, vmin=0, vmax=far)
            four[3].imshow((scenes.normals[place] + 1) / 2)
    handles = [
        Patch(facecolor=colour, edgecolor=_INK, linewidth=0.4, label=name)
        for name, colour in zip(classes, _CLASS_COLOURS, strict=False)
    ]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=7, frameon=False, fontsize=7,
        title=f"depth from 0 (light) to {far:.1f} m (dark)", title_fontsize=7,
    )  # fmt: skip
    return _save(figure, path)


def label_colours(labels: np.ndarray) -> np.ndarray:
    """Labels [height, width] → colours, float [height, width, 3]; grey where ignored."""
    table = np.array([*(to_rgb(colour) for colour in _CLASS_COLOURS), _IGNORED])
    return table[labels]


def metric_panels(record: Record, path: str | Path) -> Path:
    """Draws a panel per metric: a bar per method, the expert's score as a line.

    Args:
        record: of the dense experiment.
        path: of the PNG.

    Returns:
        The path.
    """
    rows, pairs = records.methods(record), records.columns(record)
    figure = _figure(1.7 + 1.75 * len(pairs), 1.1 + 0.24 * len(rows))
    panels = figure.subplots(1, len(pairs), sharey=True, squeeze=False)[0]
    places = np.arange(len(rows))[::-1]
    for axes, (task, metric) in zip(panels, pairs, strict=True):
        found = [records.over_seeds(record, row, task, metric) for row in rows]
        means = np.array([np.nan if mean is None else mean for mean, _ in found])
        spread = np.array([0.0 if std is None else std for _, std in found])
        colours = [_HIGHLIGHT if row == "symerge" else _COLOURS[0] for row in rows]
        axes.barh(places, means, xerr=spread, color=colours, ecolor=_INK, height=0.7)
        if records.EXPERT in rows:
            axes.axvline(means[rows.index(records.EXPERT)], color=_INK, linewidth=0.8, ls="--")
        axes.set_xlim(left=0.0)
        better = "less is better" if records.lower_is_better(metric) else "more is better"
        axes.set_title(f"{metric_label(metric)}\n{better}", fontsize=8, color=_INK)
        axes.set_yticks(places, [method_label(row) for row in rows], fontsize=8)
        axes.tick_params(axis="x", labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    return _save(figure, path)


def side_by_side(task: Task, maps: Mapping[str, np.ndarray | None], path: str | Path) -> Path:
    """Draws the images of some test scenes, the truth and what each method makes of them, in rows.

    Args:
        task: whose first test scenes are drawn.
        maps: method → its maps of them, [scene, height, width, output].
        path: of the PNG.

    Returns:
        The path.
    """
    known = {method: np.asarray(own) for method, own in maps.items() if own is not None}
    truth = task.test.labels[: max((len(own) for own in known.values()), default=0)]
    far = max(1.0, float(np.percentile(truth, 99.5))) if task.name == "depth" else 1.0
    height, width = truth.shape[1:3]
    rows = {"image": None, "truth": truth} | known
    cell = 1.15
    figure = _figure(2.0 + cell * len(truth), cell * height / width * len(rows) + 0.1)
    panels = figure.subplots(len(rows), len(truth), squeeze=False)
    for line, (name, own) in enumerate(rows.items()):
        title = name if name in ("image", "truth") else method_label(name)
        panels[line, 0].set_ylabel(
            title, fontsize=8, color=_INK, rotation=0, ha="right", va="center"
        )
        for scene, axes in enumerate(panels[line]):
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_visible(False)
            if own is None:
                axes.imshow(task.test.inputs[scene])
                continue
            shown = own[scene] if name == "truth" else _as_truth(own[scene], task)
            _show(axes, shown, task.name, far)
    return _save(figure, path)


def _as_truth(maps: np.ndarray, task: Task) -> np.ndarray:
    """Maps [height, width, output] in the form of labels."""
    if task.name == "segmentation":
        return maps.argmax(axis=-1)
    if task.name == "depth":
        return maps[..., 0]
    return maps / np.maximum(np.linalg.norm(maps, axis=-1, keepdims=True), 1e-6)


def _show(axes: Axes, shown: np.ndarray, kind: str, far: float) -> None:
    if kind == "segmentation":
        axes.imshow(label_colours(shown))
    elif kind == "depth":
        axes.imshow(np.ma.masked_equal(shown, 0), cmap=_DEPTHS, vmin=0, vmax=far)
    else:
        axes.imshow(np.clip((shown + 1) / 2, 0, 1))
