"""Figures of experts and classifiers in pairs: heat maps, scatters with a line, paths between two.

Style and colours are those of `figures`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap

from experiments.figures import _COLOURS, _FAINT, _HIGHLIGHT, _INK, _figure, _save
from experiments.regression import Line, band

_ACCURACY = LinearSegmentedColormap.from_list(
    "accuracy", ["#FFFFFF", "#E4EFF7", "#B5D5EA", "#5BA4D3", "#08507D"]
)
_CHANGE = LinearSegmentedColormap.from_list(
    "change", ["#083A5E", "#0072B2", "#A9CFE5", "#FFFFFF", "#F6C3A0", "#D55E00", "#7A2E00"]
)
_MOST_WITH_DIFFERENCES = 10  # more columns leave no room for a second number
_PLACES = ((5, 4, "left"), (-5, 4, "right"), (5, -10, "left"), (-5, -10, "right"))


def matrix(values: np.ndarray, names: Sequence[str], title: str, path: Path) -> Path:
    """Draws accuracies in percent [encoder, classifier] with their numbers.

    With up to ten tasks the difference to the diagonal entry of the same classifier stands below.

    Args:
        values: percent, square.
        names: of the tasks.
        title: of the picture.
        path: of the PNG.
    """
    size = 2.4 + (0.36 if len(names) > _MOST_WITH_DIFFERENCES else 0.6) * len(names)
    figure = _figure(size + 0.6, size)
    axes = figure.subplots()
    _draw_matrix(axes, values, names, size=7.5)
    axes.set_xlabel("classifier and test images of")
    axes.set_ylabel("encoder of")
    axes.set_title(title, fontsize=10)
    return _save(figure, path)


def matrices(values: Mapping[str, np.ndarray], names: Sequence[str], path: Path) -> Path:
    """Draws several matrices like that of `matrix`, two in a row.

    Args:
        values: title → percent [encoder, classifier].
        names: of the tasks.
        path: of the PNG.
    """
    rows = -(-len(values) // 2)
    cell = 0.46 * max(4, len(names))
    figure = _figure(2 * (cell + 0.9), rows * (cell + 1.1))
    panels = figure.subplots(rows, 2, squeeze=False)
    for axes in panels.flat[len(values) :]:
        axes.remove()
    for axes, (title, one) in zip(panels.flat, values.items(), strict=False):
        _draw_matrix(axes, one, names, size=6.5)
        axes.set_title(title, fontsize=10)
    for axes in panels[:, 0]:
        axes.set_ylabel("encoder of")
    return _save(figure, path)


def gains(
    values: np.ndarray, rows: Sequence[str], names: Sequence[str], label: str, path: Path
) -> Path:
    """Draws changes [row, task] in points, red where something is gained.

    Args:
        values: points.
        rows: labels of the rows.
        names: of the tasks.
        label: of the rows' axis.
        path: of the PNG.
    """
    figure = _figure(2.4 + 0.72 * len(names), 1.9 + 0.4 * len(rows))
    axes = figure.subplots()
    most = max(1.0, float(np.abs(values).max()))
    cells = axes.imshow(values, cmap=_CHANGE, vmin=-most, vmax=most, aspect="auto")
    for (i, j), value in np.ndenumerate(values):
        axes.text(j, i, _signed(value), ha="center", va="center", fontsize=8,
                  color=_readable(cells.to_rgba(value)))  # fmt: skip
    _label(axes, rows, names)
    axes.set_ylabel(label)
    share = 100 * (values > 0).mean()
    title = f"{share:.0f} % of trained classifiers do better under other encoders"
    axes.set_title(title, fontsize=10)
    bar = figure.colorbar(cells, ax=axes, fraction=0.05, pad=0.02)
    bar.set_label("change of accuracy (points)")
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    return _save(figure, path)


def correlation(line: Line, names: Sequence[str], path: Path) -> Path:
    """Draws named points, their regression line and its 95 % band."""
    figure = _figure(7.0, 5.0)
    axes = figure.subplots()
    _draw_line(axes, line, size=34)
    _name_points(axes, line.x, line.y, names)
    axes.set_xlabel("cross-task accuracy, mean over the other tasks (%)")
    axes.set_ylabel("merge accuracy, mean over the other tasks (%)")
    return _save(figure, path)


def correlations(lines: Mapping[str, Line], path: Path) -> Path:
    """Draws points, lines and bands side by side, one panel per title."""
    figure = _figure(4.4 * len(lines), 4.0)
    panels = figure.subplots(1, len(lines), squeeze=False)[0]
    for axes, (title, line) in zip(panels, lines.items(), strict=True):
        _draw_line(axes, line, size=30 if len(line.x) < 50 else 10)
        axes.set_title(f"{title}: {axes.get_title()}", fontsize=10)
        axes.set_xlabel("cross-task accuracy (%)")
        axes.set_ylabel("merge accuracy (%)")
    return _save(figure, path)


def bound(right: np.ndarray, left: np.ndarray, synergy: np.ndarray, title: str, path: Path) -> Path:
    """Draws losses of merges over the bound on them, with the line on which both are equal.

    Args:
        right: the bound, nats, [pair].
        left: the merge's loss, nats, [pair].
        synergy: bool [pair]; these have a colour of their own.
        title: of the picture.
        path: of the PNG.
    """
    figure = _figure(6.4, 5.4)
    axes = figure.subplots()
    kinds = (("no synergy", ~synergy, _COLOURS[0], "o"), ("synergy", synergy, _HIGHLIGHT, "^"))
    for name, chosen, colour, marker in kinds:
        if chosen.any():
            axes.scatter(right[chosen], left[chosen], s=16, color=colour, marker=marker, alpha=0.7,
                         linewidths=0, label=f"{name}, {chosen.sum()} pairs")  # fmt: skip
    (x0, x1), (y0, y1) = (
        (max(side.min(), 1e-6) / 1.25, max(side.max(), 1e-6) * 1.25) for side in (right, left)
    )
    line = np.array([min(x0, y0), max(x1, y1)])
    axes.plot(line, line, color=_INK, linewidth=1, label="equal; above, the bound is broken")
    axes.fill_between(line, line, line[1], color=_FAINT, alpha=0.5, linewidth=0, zorder=0)
    axes.set(xscale="log", yscale="log", xlim=(x0, x1), ylim=(y0, y1))
    axes.set_xlabel("bound: half the loss of each of the two (nats)")
    axes.set_ylabel("loss of the merge (nats)")
    axes.set_title(title, fontsize=10)
    _open(axes)
    axes.legend(loc="upper left", frameon=False, fontsize=9)
    return _save(figure, path)


def interpolations(
    t: Sequence[float], curves: Mapping[str, np.ndarray], names: Sequence[str], path: Path
) -> Path:
    """Draws accuracies on the straight way between two encoders, a panel per kind of way.

    Args:
        t: from 0 to 1, [point].
        curves: title → percent [point, task].
        names: of the two tasks; the way leads from the encoder of the second to that of the first.
        path: of the PNG.
    """
    figure = _figure(8.4, 3.6)
    panels = figure.subplots(1, len(curves), sharey=True, squeeze=False)[0]
    styles = ((_COLOURS[0], "s"), (_COLOURS[1], "D"))
    for axes, (title, values) in zip(panels, curves.items(), strict=True):
        for k, (name, (colour, marker)) in enumerate(zip(names, styles, strict=True)):
            axes.plot(t, values[:, k], color=colour, marker=marker, markersize=4, label=name)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("part of the way")
        axes.set_xticks([0, 0.5, 1], [f"0\n{names[1]}", "½", f"1\n{names[0]}"])
        axes.get_xticklabels()[0].set_ha("left")
        axes.get_xticklabels()[2].set_ha("right")
        axes.set_ylim(0, 102)
        _open(axes)
    panels[0].set_ylabel("accuracy (%)")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=9)
    return _save(figure, path)


def _draw_matrix(axes: Axes, values: np.ndarray, names: Sequence[str], *, size: float) -> None:
    cells = axes.imshow(values, cmap=_ACCURACY, vmin=0, vmax=100)
    own = np.diagonal(values)
    for (i, j), value in np.ndenumerate(values):
        text = f"{value:.0f}"
        if len(names) <= _MOST_WITH_DIFFERENCES:
            text = f"{value:.1f}" + ("" if i == j else f"\n({_signed(value - own[j])})")
        axes.text(j, i, text, ha="center", va="center", fontsize=size,
                  color=_readable(cells.to_rgba(value)))  # fmt: skip
    _label(axes, names, names)


def _signed(value: float) -> str:
    return f"{value:+.1f}".replace("-", "−")


def _readable(ground: Any) -> str:
    """Returns the colour of text on a ground (red, green, blue, alpha)."""
    return _INK if np.dot(ground[:3], (0.3, 0.59, 0.11)) > 0.5 else "white"


def _label(axes: Axes, rows: Sequence[str], columns: Sequence[str]) -> None:
    axes.set_yticks(range(len(rows)), rows)
    axes.set_xticks(range(len(columns)), columns, rotation=40, ha="right", rotation_mode="anchor")
    axes.tick_params(length=0, labelsize=8)
    axes.spines[:].set_visible(False)


def _draw_line(axes: Axes, line: Line, *, size: float) -> None:
    margin = 0.09 * np.ptp(line.x)
    x = np.linspace(line.x.min() - margin, line.x.max() + margin, 100)
    low, high = band(line, x)
    axes.fill_between(x, low, high, color=_HIGHLIGHT, alpha=0.15, linewidth=0)
    axes.plot(x, line.at(x), color=_HIGHLIGHT, linewidth=1.8)
    axes.scatter(line.x, line.y, s=size, color=_COLOURS[0], linewidths=0.5, edgecolors="white",
                 zorder=3, alpha=1.0 if len(line.x) < 50 else 0.6)  # fmt: skip
    axes.set_xlim(x[0], x[-1])
    axes.set_ylim(top=min(axes.get_ylim()[1], 101.5))  # points are percentages, whatever the band
    axes.set_title(f"r = {line.r:.3f}, p = {line.p:.2g}", fontsize=10)
    _open(axes)


def _name_points(axes: Axes, x: np.ndarray, y: np.ndarray, names: Sequence[str]) -> None:
    """Writes each name at that corner of its point which is farthest from points and names."""
    units = np.array([np.ptp(axes.get_xlim()) / 20, np.ptp(axes.get_ylim()) / 20])
    taken = [np.array([a, b]) for a, b in zip(x, y, strict=True)]
    for a, b, name in zip(x, y, names, strict=True):
        here = np.array([a, b])

        def room(place: tuple[int, int, str], here: np.ndarray = here) -> float:
            there = here + units * np.array(place[:2]) / 6
            others = [one for one in taken if one is not here and (one != here).any()]
            return min((np.abs((there - one) / units).sum() for one in others), default=1.0)

        best = max(_PLACES, key=room)
        taken.append(here + units * np.array(best[:2]) / 6)
        axes.annotate(name, (here[0], here[1]), xytext=best[:2], textcoords="offset points",
                      ha=best[2], fontsize=7.5, color=_INK)  # fmt: skip


def _open(axes: Axes) -> None:
    axes.grid(color=_FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
