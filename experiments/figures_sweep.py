"""The picture of a sweep: a line over one setting, shades over two, bars in order over more."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from experiments import figures_bars, records
from experiments.figures import _FAINT, _HIGHLIGHT, _INK, _START, _figure, _save
from experiments.figures_pairs import _ACCURACY, _readable
from experiments.grids import KEYS
from experiments.labels import method_label, number
from experiments.records import EXPERT, Record

_MOST_BARS = 40
_LEAST_POINTS = 2.0  # the width of a colour bar: no mountain out of a tenth of a point
_CHOSEN = "chosen without labels"


def draw(record: Record, folder: Path) -> None:
    """Draws test accuracy over the grid, and which point was chosen without labels."""
    data = record.get("data", {})
    axes = [key for key, values in data["grid"].items() if len(values) > 1]
    path = folder / "sweep.png"
    if len(axes) == 1:
        _line(record, axes[0], path)
    elif len(axes) == 2:
        _shades(record, axes, path)
    else:
        _bars(record, path)


def _line(record: Record, key: str, path: Path) -> None:
    data, summary = record.get("data", {}), records.summarise(record)
    values = sorted(data["grid"][key])
    series, spread = {}, {}
    for method in data["chosen"]:
        names = [_at(data, method, {key: value}) for value in values]
        series[method_label(method)] = [summary[name]["mean"] for name in names]
        spread[method_label(method)] = [summary[name]["std"] for name in names]
    only = list(data["chosen"].values())
    marked = data["points"][only[0]][key] if len(only) == 1 and only[0] else None
    figures_bars.curves(
        values, series, path,
        title=_title(record),
        xlabel=KEYS[key],
        spread=spread,
        lines={method_label(EXPERT): summary[EXPERT]["mean"]},
        ylabel="accuracy, mean over tasks (%)",
        logarithmic=key != "init",
        marked=marked,
    )  # fmt: skip


def _shades(record: Record, keys: Sequence[str], path: Path) -> None:
    """A panel per method: rows and columns are the values of two settings."""
    data, summary = record.get("data", {}), records.summarise(record)
    rows, columns = (sorted(data["grid"][key]) for key in keys)
    means = [summary[name]["mean"] for name in data["points"]]
    known = [mean for mean in means if mean is not None]
    low, high = (min(known), max(known)) if known else (0.0, 100.0)
    wider = max(0.0, _LEAST_POINTS - (high - low)) / 2
    count = len(data["chosen"])
    width, height = 0.9 + 0.95 * len(columns), 0.6 * len(rows)
    figure = _figure(1.3 + width * count, 1.7 + height)
    panels = figure.subplots(1, count, sharey=True, squeeze=False)[0]
    cells: Any = None
    for axes, (method, chosen) in zip(panels, data["chosen"].items(), strict=True):
        names = [[_at(data, method, dict(zip(keys, (r, c), strict=True))) for c in columns]
                 for r in rows]  # fmt: skip
        values = np.array([[_nan(summary[name]["mean"]) for name in row] for row in names])
        cells = axes.imshow(
            values, cmap=_ACCURACY, vmin=low - wider, vmax=high + wider, aspect="auto"
        )
        axes.set_facecolor(_FAINT)  # of what diverged
        for (i, j), value in np.ndenumerate(values):
            text = "diverged"
            if np.isfinite(value):
                std = summary[names[i][j]]["std"]
                text = number(float(value)) + ("" if std is None else f"\n± {std:.1f}")
            ground = cells.to_rgba(value) if np.isfinite(value) else (0.85, 0.85, 0.85, 1)
            axes.text(j, i, text, ha="center", va="center", fontsize=8, color=_readable(ground))
            if names[i][j] == chosen:
                axes.add_patch(Rectangle((j - 0.47, i - 0.45), 0.94, 0.9, fill=False, linewidth=2.2,
                                         edgecolor=_HIGHLIGHT, label=_CHOSEN))  # fmt: skip
        axes.set_xticks(range(len(columns)), [f"{value:g}" for value in columns])
        axes.set_yticks(range(len(rows)), [f"{value:g}" for value in rows])
        axes.set_xlabel(KEYS[keys[1]])
        axes.set_title(method_label(method), fontsize=10)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    panels[0].set_ylabel(KEYS[keys[0]])
    bar = figure.colorbar(cells, ax=panels, fraction=0.05, pad=0.02)
    bar.set_label("accuracy (%)")
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    _legend(figure, panels)
    figure.suptitle(_title(record), fontsize=10)
    _save(figure, path)


def _bars(record: Record, path: Path) -> None:
    """A bar per point, the best on top."""
    data, summary = record.get("data", {}), records.summarise(record)
    ranked = sorted(data["points"], key=lambda name: -_nan(summary[name]["mean"], -np.inf))
    shown = ranked[:_MOST_BARS]
    best = set(data["chosen"].values())
    figure = _figure(7.2, 1.5 + 0.26 * len(shown))
    axes = figure.subplots()
    at = np.arange(len(shown))[::-1]
    values = np.array([_nan(summary[name]["mean"]) for name in shown])
    spread = np.array([_nan(summary[name]["std"]) for name in shown])
    for is_chosen, colour, label in ((False, _START, None), (True, _HIGHLIGHT, _CHOSEN)):
        here = np.array([(name in best) == is_chosen for name in shown])
        if here.any():
            axes.barh(at[here], values[here], 0.76, color=colour, label=label,
                      xerr=spread[here] if np.isfinite(spread[here]).any() else None,
                      error_kw={"elinewidth": 1, "ecolor": _INK, "capsize": 2})  # fmt: skip
    expert = summary[EXPERT]["mean"]
    if expert is not None:
        axes.axvline(expert, color=_INK, linewidth=1.2, label=method_label(EXPERT))
    known = values[np.isfinite(values)]
    if known.size:
        axes.set_xlim(left=max(0.0, 10 * np.floor((known.min() - 5) / 10)))
    for y, value in zip(at, values, strict=True):  # at the axis, clear of the whiskers
        text, colour = (f"{value:.1f}", "white") if np.isfinite(value) else ("diverged", _INK)
        axes.annotate(text, (0, y), (4, 0), xycoords=("axes fraction", "data"), va="center",
                      textcoords="offset points", fontsize=7.5, color=colour)  # fmt: skip
    axes.set_ylim(-0.6, len(shown) - 0.4)
    axes.set_yticks(at, [method_label(name) for name in shown], fontsize=8)
    axes.set_xlabel("accuracy, mean over tasks (%)")
    axes.grid(axis="x", color=_FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right"]].set_visible(False)
    left_out = len(ranked) - len(shown)
    more = f"; {left_out} lower ones are left out" if left_out else ""
    axes.set_title(_title(record) + more, fontsize=10)
    _legend(figure, [axes])
    _save(figure, path)


def _legend(figure: Any, panels: Sequence[Axes]) -> None:
    """What is marked, once for all panels."""
    found = {
        label: handle
        for axes in panels
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    if found:
        figure.legend(found.values(), found.keys(), loc="outside lower center", ncols=3,
                      frameon=False, fontsize=9)  # fmt: skip


def _at(data: dict[str, Any], method: str, wanted: dict[str, float]) -> str:
    """Returns the name of the point with these values; other settings have one value each."""
    return next(
        name
        for name, point in data["points"].items()
        if point["method"] == method and all(point[key] == wanted[key] for key in wanted)
    )


def _title(record: Record) -> str:
    data = record.get("data", {})
    tasks = len({result["task"] for result in record["results"]})
    seeds = len({result["seed"] for result in record["results"]})
    points = len(data["points"])
    return (
        f"{points} point{'s' * (points > 1)}, {tasks} tasks merged, {seeds} seed{'s' * (seeds > 1)}"
    )


def _nan(value: float | None, instead: float = np.nan) -> float:
    return instead if value is None else value
