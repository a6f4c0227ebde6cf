"""A straight line through points, how sure its height is, and Pearson's correlation."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats


class Line(NamedTuple):
    """The least-squares line y = intercept + slope · x.

    Attributes:
        slope: of the line.
        intercept: its height at x = 0.
        r: Pearson's correlation of x and y.
        p: how often points without any correlation would give one so far from 0, two-sided.
        x: of the points, [n].
        y: of the points, [n].
    """

    slope: float
    intercept: float
    r: float
    p: float
    x: np.ndarray
    y: np.ndarray

    def at(self, x: ArrayLike) -> np.ndarray:
        """Returns the line's height at each x."""
        return self.intercept + self.slope * np.asarray(x, float)


def fit_line(x: ArrayLike, y: ArrayLike) -> Line | None:
    """Returns the line through at least three points; None where x or y are all the same."""
    x, y = np.asarray(x, float), np.asarray(y, float)
    assert len(x) >= 3, "two points always lie on a line"
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    from_mean = x - x.mean()
    slope = from_mean @ y / (from_mean @ from_mean)
    found: Any = stats.pearsonr(x, y)
    return Line(
        float(slope), float(y.mean() - slope * x.mean()), float(found.statistic),
        float(found.pvalue), x, y,
    )  # fmt: skip


def band(line: Line, x: ArrayLike, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Returns the lower and the upper end of the confidence interval of the line's height.

    That of the mean of y at x, not of a single point: height ± t · s · √(1/n + (x − x̄)² / Sxx),
    with s² the residuals' sum of squares over n − 2.

    Args:
        line: what `fit_line` returned.
        x: where, [m].
        level: of confidence.
    """
    x, n = np.asarray(x, float), len(line.x)
    residuals = line.y - line.at(line.x)
    s = np.sqrt(np.square(residuals).sum() / (n - 2))
    away = np.square(x - line.x.mean()) / np.square(line.x - line.x.mean()).sum()
    half = stats.t.ppf((1 + level) / 2, n - 2) * s * np.sqrt(1 / n + away)
    return line.at(x) - half, line.at(x) + half
