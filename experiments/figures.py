"""Figures of a run, as PNG: scores per task, merging coefficients, learning curves.

Drawn with matplotlib's objects, without pyplot's global state. Colours are Okabe and Ito's, which
colour-blind readers can tell apart; markers differ too.
"""

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from experiments import records
from experiments.labels import method_label, metric_label
from experiments.records import Record
from symerge_jax.files import write_atomically

_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#8C6D31", "#5B4B9A")
_MARKERS = ("s", "D", "^", "v", "P", "X", "<", ">")
_HIGHLIGHT, _START = "#D55E00", "#888888"  # the method the project is about; what it starts from
_COLUMNS_PER_ROW = 11
_LABEL_INCHES = 0.14  # height of a row label
_INK, _FAINT = "#333333", "#D9D9D9"
# All warm, so that exact zeros, drawn in a cool grey, stand apart from small values.
_COEFFICIENTS = LinearSegmentedColormap.from_list(
    "coefficients", ["#FDE9C9", "#E69F00", "#D55E00", "#6A1B3A"]
)


def accuracy_per_task(record: Record, path: str | Path) -> Path:
    """Draws each method's score on each task, and the expert's as a line across the task.

    Args:
        record: of an experiment whose tasks' main metrics have one unit.
        path: of the PNG.

    Returns:
        The path.
    """
    scores = _scores_by_column(record)
    metrics = {metric for _, metric in _main_columns(record)}
    names = list(scores)
    rows = -(-len(names) // _COLUMNS_PER_ROW)
    per_row = -(-len(names) // rows)
    legend = 0.2 * len(records.methods(record)) + 0.3  # inches
    figure = _figure(3.2 + 0.95 * per_row, max(1.0 + 3.6 * rows, legend))
    panels = figure.subplots(rows, 1, sharey=True, squeeze=False)[:, 0]
    for row, axes in enumerate(panels):
        _draw_scores(axes, {n: scores[n] for n in names[row * per_row : (row + 1) * per_row]})
        axes.set_xlim(-0.55, per_row - 0.45)
        axes.set_ylabel(metric_label(*metrics) if len(metrics) == 1 else "score (%)")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=9)
    return _save(figure, path)


def coefficient_heatmap(
    coefficients: ArrayLike, names: Sequence[str], tasks: Sequence[str], path: str | Path
) -> Path:
    """Draws merging coefficients as used, clamped to [0, 1]: a row per tensor, a column per task.

    Args:
        coefficients: λ [tensors, tasks], raw.
        names: of the tensors, in the rows' order; neighbours of one block share a label.
        tasks: names of the columns.
        path: of the PNG.

    Returns:
        The path.

    Raises:
        ValueError: the names do not fit the array.
    """
    lam = np.clip(np.asarray(coefficients, dtype=float), 0.0, 1.0)
    if lam.shape != (len(names), len(tasks)):
        raise ValueError(
            f"coefficients {lam.shape}: expected {len(names)} tensors × {len(tasks)} tasks"
        )
    height = min(9.0, max(2.5, 0.12 * len(names)))
    groups = _groups(names, shortest=_LABEL_INCHES * len(names) / height)
    figure = _figure(2.6 + 0.55 * len(tasks), 1.6 + height)
    axes = figure.subplots()
    cells = axes.imshow(
        np.ma.masked_equal(lam, 0.0),
        cmap=_COEFFICIENTS,
        vmin=0.0,
        vmax=1.0,
        aspect="auto",
        interpolation="nearest",
    )
    axes.set_facecolor("#EEF1F4")  # exact zeros
    edges = [start for _, start, _ in groups][1:]
    row_points = 72 * height / len(names)
    width = min(1.5, 0.4 * row_points)  # thinner than a row
    axes.hlines(np.array(edges) - 0.5, -0.5, len(tasks) - 0.5, color="white", linewidth=width)
    axes.vlines(np.arange(1, len(tasks)) - 0.5, -0.5, len(names) - 0.5, color="white", linewidth=1)
    axes.set_yticks([(start + stop - 1) / 2 for _, start, stop in groups])
    axes.set_yticklabels([label for label, _, _ in groups])
    axes.set_xticks(range(len(tasks)), tasks, rotation=40, ha="right", rotation_mode="anchor")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    zeros, ones = 100 * np.mean(lam == 0), 100 * np.mean(lam == 1)
    axes.set_title(f"{zeros:.0f} % of coefficients are 0 (grey), {ones:.0f} % are 1", fontsize=10)
    bar = figure.colorbar(cells, ax=axes, fraction=0.05, pad=0.03)
    bar.set_label("merging coefficient λ")
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    return _save(figure, path)


def learning_curves(
    curves: Mapping[str, ArrayLike], tasks_per_iteration: int, path: str | Path
) -> Path:
    """Draws each method's loss against iterations: averaged over an iteration, then smoothed.

    Args:
        curves: losses [steps] by method, one per task and iteration, in the order they came.
        tasks_per_iteration: steps of one iteration.
        path: of the PNG.

    Returns:
        The path.
    """
    figure = _figure(7.2, 4.0)
    axes = figure.subplots()
    styles = _styles(list(curves))
    for method, losses in curves.items():
        means = _iteration_means(np.asarray(losses, dtype=float), tasks_per_iteration)
        iterations = np.arange(1, len(means) + 1)
        colour, _ = styles[method]
        axes.plot(iterations, means, color=colour, linewidth=0.7, alpha=0.25)
        label = method_label(method)
        axes.plot(iterations, _smooth(means), color=colour, linewidth=1.9, label=label)
    axes.set_xlabel("iteration")
    axes.set_ylabel("loss, mean over tasks")
    axes.margins(x=0.01)
    axes.grid(axis="y", color=_FAINT, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    if curves:
        axes.legend(edgecolor="none", framealpha=0.85, fontsize=9)
    return _save(figure, path)


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Figure, path: str | Path) -> Path:
    png = io.BytesIO()
    # No software stamp: the same record gives the same file whatever matplotlib's version says.
    figure.savefig(png, format="png", metadata={"Software": None})
    return write_atomically(path, png.getvalue())


def _styles(methods: Sequence[str]) -> dict[str, tuple[str, str]]:
    """A colour and a marker for each method; where colours repeat, markers still differ."""
    others = [m for m in methods if m not in ("symerge", "pretrained")]
    styles = {
        method: (_COLOURS[i % len(_COLOURS)], _MARKERS[i % len(_MARKERS)])
        for i, method in enumerate(others)
    }
    return {**styles, "pretrained": (_START, "o"), "symerge": (_HIGHLIGHT, "*")}


def _main_columns(record: Record) -> list[tuple[str, str]]:
    """The first metric of each task."""
    main: dict[str, str] = {}
    for task, metric in records.columns(record):
        main.setdefault(task, metric)
    return list(main.items())


def _scores_by_column(record: Record) -> dict[str, dict[str, float | None]]:
    """Each method's score on each task, over seeds; the mean over tasks is the last column."""
    methods = records.methods(record)
    summary = records.summarise(record)
    scores = {
        task: {m: records.over_seeds(record, m, task, metric)[0] for m in methods}
        for task, metric in _main_columns(record)
    }
    return {**scores, "mean": {m: summary[m]["mean"] for m in methods}}


def _draw_scores(axes: Axes, scores: Mapping[str, Mapping[str, float | None]]) -> None:
    """One shaded band per column, the methods side by side in it and the expert across it."""
    every = list(next(iter(scores.values())))
    methods = [m for m in every if m != records.EXPERT]
    styles = _styles(methods)
    positions = np.arange(len(scores))
    for position in positions[::2]:
        axes.axvspan(position - 0.5, position + 0.5, color="#F4F4F4", linewidth=0, zorder=0)
    for method, offset in zip(methods, np.linspace(-0.34, 0.34, len(methods)), strict=True):
        colour, marker = styles[method]
        axes.scatter(
            positions + offset,
            _floats(scores, method),
            s=120 if marker == "*" else 36,
            color=colour,
            marker=marker,
            linewidths=0.6,
            edgecolors="white",
            zorder=4 if marker == "*" else 3,
            label=method_label(method),
        )
    if records.EXPERT in every:
        left, right = positions - 0.42, positions + 0.42
        label = method_label(records.EXPERT)
        levels = _floats(scores, records.EXPERT)
        axes.hlines(levels, left, right, color=_INK, linewidth=1.5, zorder=2, label=label)
    axes.set_xticks(positions, list(scores), rotation=30, ha="right", rotation_mode="anchor")
    for tick, name in zip(axes.get_xticklabels(), scores, strict=True):
        tick.set_fontweight("bold" if name == "mean" else "normal")
    axes.grid(axis="y", color=_FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)


def _floats(scores: Mapping[str, Mapping[str, float | None]], method: str) -> np.ndarray:
    """A method's score in each column; NaN, which is not drawn, where there is none."""
    values = [of_column[method] for of_column in scores.values()]
    return np.array([np.nan if value is None else value for value in values])


def _groups(names: Sequence[str], shortest: float) -> list[tuple[str, int, int]]:
    """Runs of neighbouring tensors of one block: label, first row, row after the last.

    Where a run outside the blocks has fewer than `shortest` rows, too few for a label, all runs on
    its side of the blocks become one.
    """
    groups = _runs([_block(name) for name in names])
    if all(stop - start >= shortest for _, start, stop in groups):
        return groups
    blocks = [i for i, name in enumerate(names) if _block(name).startswith("block ")]
    if not blocks:
        return groups
    return _runs(
        [
            "input" if i < blocks[0] else "output" if i > blocks[-1] else _block(name)
            for i, name in enumerate(names)
        ]
    )


def _runs(labels: Sequence[str]) -> list[tuple[str, int, int]]:
    runs: list[tuple[str, int, int]] = []
    for row, label in enumerate(labels):
        if runs and runs[-1][0] == label:
            runs[-1] = (label, runs[-1][1], row + 1)
        else:
            runs.append((label, row, row + 1))
    return runs


def _block(name: str) -> str:
    """`vision_model.encoder.layers.3.mlp.fc1.weight` → `block 3`; else its own part."""
    block = re.search(r"(?:^|[./])(?:\w*blocks?|\w*layers?\d?)[._/](\d+)(?=[./]|$)", name)
    if block:
        return f"block {block[1]}"
    parts = [p for p in re.split(r"[./]", name) if p not in ("weight", "bias", "kernel", "scale")]
    return parts[-1] if parts else name


def _iteration_means(losses: np.ndarray, tasks_per_iteration: int) -> np.ndarray:
    """The mean loss of each whole iteration; steps of an unfinished last one are left out."""
    whole = len(losses) // tasks_per_iteration
    return losses[: whole * tasks_per_iteration].reshape(whole, tasks_per_iteration).mean(axis=1)


def _smooth(values: np.ndarray) -> np.ndarray:
    """A moving average over about a twentieth of the curve, one-sided at its ends."""
    half = max(1, len(values) // 40)
    total = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    start, stop = np.maximum(index - half, 0), np.minimum(index + half + 1, len(values))
    return (total[stop] - total[start]) / (stop - start)
