"""How sure a mean accuracy is: bootstrap intervals over test inputs, and paired tests.

Test inputs are drawn again within each task, seeds stay together: the question is what another test
set would have given, not what another training run would.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

RESAMPLES = 2000


def interval(correct: Sequence[np.ndarray]) -> tuple[float, float]:
    """Returns the 95 % percentile interval of the mean over tasks of the accuracy, in percent.

    Args:
        correct: per task, [n] or [seed, n]: which test inputs are right.
    """
    samples = [_over_seeds(one) for one in correct]

    def mean(*parts: np.ndarray, axis: int) -> np.ndarray:
        return np.mean([part.mean(axis=axis) for part in parts], axis=0)

    found = stats.bootstrap(
        samples, mean, vectorized=True, method="percentile", n_resamples=RESAMPLES,
        rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    return 100 * float(found.low), 100 * float(found.high)


def paired_p(correct: Sequence[np.ndarray], other: Sequence[np.ndarray]) -> float:
    """Returns how often chance alone makes two methods differ so much, two-sided.

    Args:
        correct: per task, [n] or [seed, n].
        other: of another method, on the same test inputs.
    """
    weighted = [[_over_seeds(one) / one.shape[-1] for one in method] for method in (correct, other)]
    differences = np.subtract(*(np.concatenate(parts) for parts in weighted))
    differences = differences[differences != 0]
    if not differences.size:
        return 1.0
    signs = np.random.default_rng(0).integers(0, 2, (RESAMPLES, differences.size), dtype=np.int8)
    by_chance = np.abs((2.0 * signs - 1) @ differences)
    # The sample itself is one of the ways the signs can fall.
    return float((1 + (by_chance >= abs(differences.sum()) - 1e-12).sum()) / (1 + RESAMPLES))


def _over_seeds(correct: np.ndarray) -> np.ndarray:
    """Returns, for each test input, the share of seeds that are right."""
    return np.atleast_2d(correct).mean(axis=0, dtype=np.float64)
