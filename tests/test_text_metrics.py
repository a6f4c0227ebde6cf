"""GLUE's metrics: by hand, against scikit-learn and SciPy, and where they are not defined."""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from symerge_jax.evaluate import evaluate
from symerge_jax.text_metrics import METRICS, f1, matthews_correlation, pearson_spearman


def test_matthews_by_hand():
    # TP 3, TN 1, FP 1, FN 1: (3·1 - 1·1) / √(4·4·2·2) = 2 / 8.
    predicted = np.array([1, 1, 1, 0, 1, 0])
    truth = np.array([1, 1, 1, 0, 0, 1])
    assert matthews_correlation(predicted, truth) == pytest.approx(25)


def test_f1_by_hand():
    # TP 3, FP 1, FN 1: 6 / 8.
    predicted = np.array([1, 1, 1, 0, 1, 0])
    truth = np.array([1, 1, 1, 0, 0, 1])
    assert f1(predicted, truth) == 75


def test_pearson_and_spearman_by_hand():
    # Values about their means: (-2, -1, 3) and (-1, 0, 1), so r = 5 / √(14·2); the ranks agree.
    expected = 100 * (5 / np.sqrt(28) + 1) / 2
    found = pearson_spearman(np.array([[0.0], [1.0], [5.0]]), np.array([1.0, 2.0, 3.0]))
    assert found == pytest.approx(expected)


def test_tied_values_share_their_mean_rank():
    # Ranks 1.5 1.5 3 against 1 2 3: (-.5, -.5, 1) and (-1, 0, 1), r = 1.5 / √(1.5·2), and the
    # values are spread like the ranks.
    found = pearson_spearman(np.array([2.0, 2.0, 3.0]), np.array([1.0, 2.0, 3.0]))
    assert found == pytest.approx(100 * 1.5 / np.sqrt(3))


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_matthews_agrees_with_scikit_learn(classes):
    rng = np.random.default_rng(classes)
    logits = rng.normal(size=(500, classes)).astype(np.float32)
    truth = np.where(rng.random(500) < 0.5, logits.argmax(-1), rng.integers(0, classes, 500))
    expected = 100 * sklearn.metrics.matthews_corrcoef(truth, logits.argmax(-1))
    assert matthews_correlation(logits, truth) == pytest.approx(expected)


def test_f1_agrees_with_scikit_learn():
    rng = np.random.default_rng(1)
    logits, truth = rng.normal(size=(500, 2)), (rng.random(500) < 0.7).astype(np.int32)
    expected = 100 * sklearn.metrics.f1_score(truth, logits.argmax(-1))
    assert f1(logits, truth) == pytest.approx(expected)


def test_correlations_agree_with_scipy():
    rng = np.random.default_rng(2)
    truth = rng.integers(0, 11, 300).astype(np.float32) / 2  # many ties
    predicted = (truth + rng.normal(size=300)).astype(np.float32).round(1)
    expected = (
        scipy.stats.pearsonr(predicted, truth)[0] + scipy.stats.spearmanr(predicted, truth)[0]
    )
    assert pearson_spearman(predicted[:, None], truth) == pytest.approx(50 * expected, rel=1e-6)


@pytest.mark.parametrize("metric", [matthews_correlation, pearson_spearman, f1])
def test_constant_predictions_give_0_without_a_warning(metric):
    outputs = np.full((7, 1), 0.1, np.float32)
    truth = np.arange(7) % 2
    if metric is not pearson_spearman:
        outputs = np.tile(np.array([2.0, 1.0]), (7, 1))
    assert metric(outputs, truth) == 0


@pytest.mark.parametrize("metric", [matthews_correlation, pearson_spearman])
def test_constant_labels_give_0_without_a_warning(metric):
    assert metric(np.array([0, 1, 2, 1]), np.ones(4, np.int32)) == 0


def test_f1_of_a_class_that_is_nowhere_is_0():
    assert f1(np.zeros(4, np.int32), np.zeros(4, np.int32)) == 0


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_tiny_and_huge_predictions_correlate_like_others(scale):
    truth = np.array([1.0, 4.0, 2.0, 3.0], np.float32)
    assert pearson_spearman(truth * np.float32(scale), truth) == pytest.approx(100)
    assert pearson_spearman(-truth, truth) == pytest.approx(-100)


def test_an_output_that_is_no_number_is_not_hidden():
    assert np.isnan(pearson_spearman(np.array([1.0, np.nan, 2.0]), np.arange(3.0)))


def test_perfect_predictions_give_100_in_every_metric():
    logits = np.eye(3, dtype=np.float32)[[0, 1, 1, 0, 2]]
    for name, metric in METRICS.items():
        outputs = np.arange(5.0)[:, None] if name == "pearson_spearman" else logits
        truth = np.arange(5.0) if name == "pearson_spearman" else np.array([0, 1, 1, 0, 2])
        assert float(metric(outputs, truth)) == pytest.approx(100), name


def test_evaluation_takes_them_as_they_are():
    inputs = np.eye(3, 2, dtype=np.float32)
    found = evaluate(
        lambda params, x: params * x, jnp.float32(2), inputs, np.array([0, 1, 0]),
        {name: METRICS[name] for name in ("accuracy", "matthews", "f1")},
    )  # fmt: skip
    assert found == {"accuracy": 100, "matthews": 100, "f1": 100}
