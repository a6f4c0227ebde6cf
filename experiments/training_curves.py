"""Accuracy on the way of an adaptation: curves over seeds, what is read off them, their picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex

from experiments import figures
from experiments.methods import Outcome


class Curve(NamedTuple):
    """Accuracies of one run.

    Attributes:
        iterations: int [point]; 0 is the model before the first step.
        accuracy: in percent, mean over tasks, [seed, point].
    """

    iterations: np.ndarray
    accuracy: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        """Over seeds, [point]."""
        return self.accuracy.mean(axis=0)

    def rows(self) -> list[list[float]]:
        """Returns the accuracies as a record holds them, a list per seed."""
        return np.round(self.accuracy, 3).tolist()


class Line(NamedTuple):
    """A curve as it is drawn."""

    label: str
    curve: Curve
    colour: str
    dashed: bool = False
    wide: bool = False


def curve_of(
    outcomes: Sequence[Outcome], starts: Sequence[Outcome], *, every: int, iterations: int
) -> Curve:
    """Returns the curve of one run.

    Args:
        outcomes: one per seed.
        starts: the models before the first step, one per seed.
        every: iterations between two looks.
        iterations: of the whole run, at whose end is the last look.
    """
    rows = [course(one, start) for one, start in zip(outcomes, starts, strict=True)]
    points = np.minimum(every * np.arange(len(rows[0])), iterations)
    points[-1] = iterations
    return Curve(points, np.stack([row.mean(axis=1) for row in rows]))


def course(outcome: Outcome, start: Outcome) -> np.ndarray:
    """Returns accuracies in percent from the start on, [point, task].

    Of a method that nobody looked at on the way there are start and end.
    """
    after = accuracies(outcome)[None] if outcome.curve is None else outcome.curve
    return np.vstack([accuracies(start)[None], after])


def accuracies(outcome: Outcome) -> np.ndarray:
    """Returns the accuracy of each task in percent, [task]."""
    return np.array([one.accuracy for one in outcome.scores])


def settled(curve: Curve, within: float = 1.0) -> int:
    """Returns the iteration from which the mean stays `within` points of where it ends."""
    far = np.flatnonzero(np.abs(curve.mean - curve.mean[-1]) > within)
    return int(curve.iterations[far[-1] + 1] if far.size else curve.iterations[0])


def spread(curves: Sequence[Curve]) -> np.ndarray:
    """Returns, at each point, by how many points the best mean is above the worst, [point]."""
    return np.ptp([curve.mean for curve in curves], axis=0)


def ramp(count: int) -> list[str]:
    """Returns colours from dark to bright, for a quantity with an order."""
    return [to_hex(colour) for colour in colormaps["viridis"](np.linspace(0.0, 0.86, count))]


def draw_lines(axes: Axes, lines: Sequence[Line], *, expert: float | None = None) -> None:
    """Draws curves, their standard deviation over seeds, and the experts' mean as a level.

    Args:
        axes: to draw on.
        lines: in the legend's order.
        expert: accuracy of the experts, in percent.
    """
    if expert is not None:
        axes.axhline(expert, color=figures._INK, linewidth=1.2, label="Individual experts")
    for label, curve, colour, dashed, wide in lines:
        x, mean = curve.iterations, curve.mean
        if len(curve.accuracy) > 1:
            std = curve.accuracy.std(axis=0, ddof=1)
            axes.fill_between(x, mean - std, mean + std, color=colour, alpha=0.15, linewidth=0)
        axes.plot(
            x, mean, color=colour, label=label, linestyle="--" if dashed else "-",
            linewidth=2.4 if wide else 1.6, marker="o", zorder=4 if wide else 3,
            markersize=3.2, markerfacecolor="white" if dashed else colour, clip_on=False,
        )  # fmt: skip
    axes.set_xlabel("iteration")
    axes.margins(x=0.02)
    axes.grid(axis="y", color=figures._FAINT, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
