"""Metrics, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from symerge_jax.metrics import accuracy, expected_calibration_error


def test_accuracy_counts_logits_and_predictions_alike():
    logits = jnp.array([[2.0, 1.0], [0.0, 3.0], [5.0, 4.0], [1.0, 0.0]])
    labels = jnp.array([0, 1, 1, 0])
    assert accuracy(logits, labels) == 75.0
    assert accuracy(logits.argmax(-1), labels) == 75.0
    assert accuracy(logits, labels).dtype == jnp.float32


def test_accuracy_takes_host_arrays_of_any_integer_type():
    assert accuracy(np.array([1, 2, 3, 4]), np.array([1, 2, 0, 0], np.uint8)) == 50.0


def test_calibration_error_by_hand():
    # Five bins of width 0.2. Confidences .55 (hit), .6 (miss) fall in (.4, .6]; .9 (hit) and .85
    # (hit) in (.8, 1]; n = 4.
    # First bin: |(1 + 0) - (.55 + .6)| = .15; last: |2 - 1.75| = .25; ECE = .4 / 4 = 10 %.
    probabilities = jnp.array([[0.55, 0.45], [0.6, 0.4], [0.1, 0.9], [0.85, 0.15]])
    labels = jnp.array([0, 1, 1, 0])
    found = expected_calibration_error(probabilities, labels, bins=5)
    np.testing.assert_allclose(found, 10.0, rtol=1e-5)


def test_a_confidence_on_an_edge_belongs_to_the_bin_below():
    # Two bins: .5 is in (0, .5] and .6 in (.5, 1]: |1 - .5| + |0 - .6| = 1.1 over 2 rows. In one
    # bin they would give |1 - 1.1| = .1.
    probabilities = jnp.array([[0.5, 0.3, 0.2], [0.6, 0.3, 0.1]])
    found = expected_calibration_error(probabilities, jnp.array([0, 1]), bins=2)
    np.testing.assert_allclose(found, 55.0, rtol=1e-5)


def reference_calibration_error(probabilities, labels, bins):
    """The definition, bin after bin, in float64 but for the comparison with the edges."""
    confidence, hit = probabilities.max(-1), probabilities.argmax(-1) == labels
    edges = np.linspace(0, 1, bins + 1).astype(np.float32)
    total = 0.0
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            gap = hit[inside].mean() - confidence[inside].astype(np.float64).mean()
            total += inside.mean() * abs(gap)
    return 100 * total


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_calibration_error_agrees_with_the_definition(bins):
    rng = np.random.default_rng(3)
    logits = rng.normal(size=(2000, 7)) * 2
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    probabilities = probabilities.round(1).astype(np.float32)  # many exactly on an edge
    labels = rng.integers(0, 7, 2000).astype(np.int32)
    expected = reference_calibration_error(probabilities, labels, bins)
    found = expected_calibration_error(probabilities, labels, bins)
    np.testing.assert_allclose(found, expected, rtol=1e-3)


def test_certain_and_right_is_perfectly_calibrated_even_if_softmax_rounds_up():
    above = np.float32(1) + np.finfo(np.float32).eps
    probabilities = jnp.array([[1.0, 0.0], [0.0, above]], jnp.float32)
    assert expected_calibration_error(probabilities, jnp.array([0, 1])) < 1e-3


def test_metrics_work_inside_a_compiled_program():
    probabilities, labels = jnp.array([[0.9, 0.1], [0.2, 0.8]]), jnp.array([0, 0])
    for metric in (accuracy, expected_calibration_error):
        found = jax.jit(metric)(probabilities, labels)
        np.testing.assert_allclose(found, metric(probabilities, labels), rtol=1e-6)
