"""The metrics of GLUE, on the host and over a whole set at once. Values in percent.

Wang et al., "GLUE: A Multi-Task Benchmark and Analysis Platform for Natural Language
Understanding", 2018 (https://arxiv.org/abs/1804.07461, section 3 and table 1): Matthews correlation
for CoLA, the mean of Pearson's and Spearman's correlation for STS-B, accuracy for the others, F1
beside it for MRPC and QQP. Where a correlation is not defined, because all predictions or all
labels are alike, it counts as 0, as in scikit-learn's `matthews_corrcoef`.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from jax.typing import ArrayLike

from symerge_jax.metrics import accuracy


def matthews_correlation(outputs: ArrayLike, labels: ArrayLike) -> float:
    """Correlation of predicted and true classes, for any number of classes.

    Matthews, "Comparison of the predicted and observed secondary structure of T4 phage lysozyme",
    1975; for more than two classes Gorodkin's R_K, 2004, eq. 2, with counts in place of means.

    Args:
        outputs: logits [n, classes], floating point, or predicted classes [n], integers.
        labels: true classes [n], integers.

    Returns:
        Percent, -100 to 100; 0 if all rows have one predicted, or one true, class.
    """
    predicted, truth = _classes(outputs, labels)
    count = 1 + max(predicted.max(), truth.max())
    p = np.bincount(predicted, minlength=count).astype(np.float64)  # rows predicted as each class
    t = np.bincount(truth, minlength=count).astype(np.float64)  # rows of each class
    n, hits = len(truth), np.count_nonzero(predicted == truth)
    spread = (n**2 - p @ p) * (n**2 - t @ t)
    return 0.0 if spread == 0 else 100 * float((hits * n - p @ t) / np.sqrt(spread))


def f1(outputs: ArrayLike, labels: ArrayLike) -> float:
    """Harmonic mean of precision and recall of class 1: 2 TP / (2 TP + FP + FN).

    Args:
        outputs: logits [n, classes], floating point, or predicted classes [n], integers.
        labels: true classes [n], integers.

    Returns:
        Percent; 0 if class 1 is neither predicted nor true anywhere.
    """
    predicted, truth = (classes == 1 for classes in _classes(outputs, labels))
    found = np.count_nonzero(predicted & truth)
    marked = np.count_nonzero(predicted) + np.count_nonzero(truth)  # 2 TP + FP + FN
    return 0.0 if marked == 0 else 100 * 2 * found / marked


def pearson_spearman(outputs: ArrayLike, labels: ArrayLike) -> float:
    """Mean of Pearson's correlation and Spearman's, that of the ranks (ties share their mean rank).

    Args:
        outputs: predicted values [n, 1] or [n].
        labels: true values [n].

    Returns:
        Percent, -100 to 100; 0 if all predictions, or all labels, are one value. Not a number if
        an output is none.
    """
    from scipy.stats import rankdata

    predicted, truth = np.asarray(outputs, np.float64), np.asarray(labels, np.float64)
    if predicted.ndim == 2:
        assert predicted.shape[1] == 1, predicted.shape
        predicted = predicted[:, 0]
    assert predicted.shape == truth.shape, (predicted.shape, truth.shape)
    if not np.isfinite(predicted).all():
        return float("nan")
    ranks = _pearson(rankdata(predicted), rankdata(truth))
    return 100 * (_pearson(predicted, truth) + ranks) / 2


# name → function (outputs [n, classes], labels [n]) → percent.
METRICS: dict[str, Callable[[Any, Any], Any]] = {
    "accuracy": accuracy,
    "f1": f1,
    "matthews": matthews_correlation,
    "pearson_spearman": pearson_spearman,
}


def _classes(outputs: ArrayLike, labels: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    predicted, truth = np.asarray(outputs), np.asarray(labels)
    if predicted.ndim == 2:
        predicted = predicted.argmax(axis=-1)
    assert predicted.shape == truth.shape, (predicted.shape, truth.shape)
    return predicted.astype(np.int64), truth.astype(np.int64)


def _pearson(x: np.ndarray, y: np.ndarray) -> float:
    if np.ptp(x) == 0 or np.ptp(y) == 0:  # exact, where a sum of squares may round to above 0
        return 0.0
    x, y = x - x.mean(), y - y.mean()
    # Each by its norm first: the product of tiny norms could be 0.
    return float(np.clip((x / np.linalg.norm(x)) @ (y / np.linalg.norm(y)), -1, 1))
