"""Figures of ablations: bars side by side, a curve over one setting, a table of shades."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import NullLocator

from experiments import records
from experiments.figures import _COLOURS, _FAINT, _HIGHLIGHT, _INK, _START, _figure, _save
from experiments.records import Record

BEFORE, AFTER = _START, _HIGHLIGHT  # what a comparison starts from; SyMerge
BLUE, ORANGE, GREEN = _COLOURS[:3]
_NUMBER_INCHES = 0.27  # a bar this wide carries its value

_LEAST_POINTS = 4.0  # height of a curve's axis

Values = Sequence[float | None]


def over_tasks(record: Record, rows: Sequence[str], metric: str) -> tuple[Values, Values]:
    """Returns the means over tasks and seeds of a metric, and their std over seeds, by row."""
    summary = records.summarise(record)
    none = {"mean": None, "std": None}
    found = [summary.get(row, {"metrics": {}})["metrics"].get(metric, none) for row in rows]
    return [one["mean"] for one in found], [one["std"] for one in found]


def grouped_bars(
    groups: Sequence[str],
    series: Mapping[str, Values],
    path: str | Path,
    *,
    title: str,
    colours: Sequence[str] = _COLOURS,
    spread: Mapping[str, Values] | None = None,
    lines: Mapping[str, float | None] | None = None,
    ylabel: str = "accuracy (%)",
) -> Path:
    """Draws bars in groups, one of each series in a group.

    Args:
        groups: names along the axis; a line break is kept.
        series: label → a value per group; no bar where there is none.
        path: of the PNG.
        title: what is seen.
        colours: of the series.
        spread: label → half the length of each bar's whisker.
        lines: label → a level across all groups, dashed.
        ylabel: of the values, with their unit.

    Returns:
        The path.
    """
    lines = {label: level for label, level in (lines or {}).items() if level is not None}
    turned = max(map(len, groups)) > 11 and not any("\n" in name for name in groups)
    inches = _width(len(groups), len(series))
    figure = _figure(inches, 4.3 if turned else 3.9)
    axes = figure.subplots()
    width = 0.8 / len(series)
    numbers = width * (inches - 0.9) / (len(groups) + 0.2) >= _NUMBER_INCHES
    for i, (label, values) in enumerate(series.items()):
        at = np.arange(len(groups)) + (i - (len(series) - 1) / 2) * width
        heights = _floats(values)
        whiskers = _floats((spread or {}).get(label, [None] * len(groups)))
        axes.bar(
            at, heights, 0.92 * width, label=label, color=colours[i % len(colours)],
            yerr=whiskers if np.isfinite(whiskers).any() else None,
            error_kw={"elinewidth": 1, "ecolor": _INK, "capsize": 2},
        )  # fmt: skip
        if numbers:
            _write_numbers(axes, at, heights, np.nan_to_num(whiskers))
    for (label, level), style in zip(lines.items(), ("--", ":", "-."), strict=False):
        axes.axhline(level, color=_INK, linestyle=style, linewidth=1.3, label=label, zorder=0)
    every = [value for values in series.values() for value in values] + list(lines.values())
    bottom, top = _limits(_floats(every))
    axes.set_ylim(bottom, top)
    if bottom > 0:
        ylabel = f"{ylabel}, axis from {bottom:g}"
    turn = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if turned else {}
    axes.set_xticks(range(len(groups)), groups, **turn)
    axes.set_xlim(-0.6, len(groups) - 0.4)
    _plain(axes, ylabel, title)
    _legend_below(figure, axes, alone=not lines)
    return _save(figure, path)


def curves(
    settings: Sequence[float],
    series: Mapping[str, Values],
    path: str | Path,
    *,
    title: str,
    xlabel: str,
    colours: Sequence[str] = _COLOURS,
    spread: Mapping[str, Values] | None = None,
    lines: Mapping[str, float | None] | None = None,
    ylabel: str = "accuracy (%)",
    logarithmic: bool = False,
    marked: float | None = None,
) -> Path:
    """Draws values against one setting that was varied.

    Args:
        settings: the values of that setting, ascending.
        series: label → a value per setting.
        path: of the PNG.
        title: what is seen.
        xlabel: of the setting.
        colours: of the series.
        spread: label → half the length of each point's whisker.
        lines: label → a level, dashed.
        ylabel: of the values, with their unit.
        logarithmic: whether the setting has a logarithmic axis.
        marked: the setting that was chosen.

    Returns:
        The path.
    """
    figure = _figure(6.4, 4.2)
    axes = figure.subplots()
    for i, (label, values) in enumerate(series.items()):
        colour = colours[i % len(colours)]
        heights = _floats(values)
        axes.plot(settings, heights, marker="o", markersize=4.5, color=colour, label=label)
        whiskers = np.nan_to_num(_floats((spread or {}).get(label, [None] * len(settings))))
        axes.fill_between(
            settings, heights - whiskers, heights + whiskers, color=colour, alpha=0.2, linewidth=0
        )
    levels = [(label, level) for label, level in (lines or {}).items() if level is not None]
    for (label, level), style in zip(levels, ("--", ":", "-."), strict=False):
        axes.axhline(level, color=_INK, linestyle=style, linewidth=1.3, label=label, zorder=0)
    if marked is not None:
        axes.axvline(marked, color=_FAINT, linewidth=6, zorder=0, label="chosen")
    if logarithmic:
        axes.set_xscale("log")
        axes.set_xticks(settings, [f"{setting:g}" for setting in settings])
        axes.xaxis.set_minor_locator(NullLocator())
    low, high = axes.get_ylim()
    if high - low < _LEAST_POINTS:  # no mountain out of a tenth of a point
        axes.set_ylim((low + high - _LEAST_POINTS) / 2, (low + high + _LEAST_POINTS) / 2)
    axes.set_xlabel(xlabel)
    _plain(axes, ylabel, title)
    _legend_below(figure, axes)
    return _save(figure, path)


def shaded_table(
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Values],
    path: str | Path,
    *,
    title: str,
) -> Path:
    """Draws a table of percentages whose cells are the darker the higher, within each column.

    Args:
        rows: names of the rows.
        columns: names of the columns.
        values: [row, column]; an empty cell where there is none.
        path: of the PNG.
        title: what is seen.

    Returns:
        The path.
    """
    cells = np.array([_floats(row) for row in values])
    figure = _figure(2.6 + 0.78 * len(columns), 1.5 + 0.32 * len(rows))
    axes = figure.subplots()
    axes.imshow(_shades(cells), cmap="Blues", vmin=0, vmax=2, aspect="auto")
    for (i, j), value in np.ndenumerate(cells):
        if np.isfinite(value):
            axes.text(j, i, f"{value:.1f}", ha="center", va="center", fontsize=9, color=_INK)
    axes.set_yticks(range(len(rows)), rows)
    axes.set_xticks(range(len(columns)), columns, rotation=30, ha="right", rotation_mode="anchor")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(title, fontsize=10)
    return _save(figure, path)


def _shades(cells: np.ndarray) -> np.ndarray:
    """From 0 for the lowest of a column to 1 for its highest; 1/2 where all are equal."""
    shades = np.full(cells.shape, 0.5)
    for shade, column in zip(shades.T, cells.T, strict=True):
        known = column[np.isfinite(column)]
        if known.size and known.max() > known.min():
            shade[:] = (column - known.min()) / (known.max() - known.min())
    return np.nan_to_num(shades)


def _width(groups: int, series: int) -> float:
    """Inches: room for the numbers of bars, but no wider than a page."""
    return float(np.clip(1.4 + groups * max(0.4 * series + 0.1, 0.62), 5.2, 9.0))


def _limits(values: np.ndarray) -> tuple[float, float]:
    """From a round number well below the lowest value; room for numbers above the highest."""
    values = values[np.isfinite(values)]
    if not values.size:
        return 0.0, 100.0
    low, high = float(values.min()), float(values.max())
    floor = max(0.0, 10 * np.floor((low - 0.25 * (high - low) - 2) / 10))
    return floor, high + 0.12 * max(high - floor, 1.0)


def _write_numbers(axes: Axes, at: np.ndarray, heights: np.ndarray, above: np.ndarray) -> None:
    for x, y, lift in zip(at, heights, above, strict=True):
        if np.isfinite(y):
            axes.annotate(
                f"{y:.1f}", (x, y + lift), (0, 1.5), textcoords="offset points", ha="center",
                va="bottom", fontsize=7.5, color=_INK, zorder=5,
                path_effects=[withStroke(linewidth=2.5, foreground="white")],
            )  # fmt: skip


def _plain(axes: Axes, ylabel: str, title: str) -> None:
    axes.set_ylabel(ylabel)
    axes.set_title(title, fontsize=10)
    axes.grid(axis="y", color=_FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(axis="x", length=0)
    axes.spines[["top", "right"]].set_visible(False)


def _legend_below(figure: Figure, axes: Axes, *, alone: bool = False) -> None:
    """A legend under the axes; none where there is but one thing to see, if that is `alone`."""
    handles, labels = axes.get_legend_handles_labels()
    if alone and len(labels) == 1:
        return
    columns = min(len(labels), 4 if max(map(len, labels)) < 22 else 2)
    figure.legend(
        handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=9
    )


def _floats(values: Values) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values], dtype=float)
