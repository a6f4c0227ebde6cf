"""Metrics: pure functions on arrays, usable inside a compiled program. Values in percent."""

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike


def accuracy(logits_or_predictions: ArrayLike, labels: ArrayLike) -> Array:
    """Share of rows whose predicted class is the label.

    Args:
        logits_or_predictions: logits or probabilities [..., n, classes] in floating point, or
            predicted classes [..., n] as integers.
        labels: true classes [..., n], integers.

    Returns:
        Percent, float32 [].
    """
    predicted, labels = jnp.asarray(logits_or_predictions), jnp.asarray(labels)
    if predicted.ndim == labels.ndim + 1:
        predicted = jnp.argmax(predicted, axis=-1)
    assert predicted.shape == labels.shape, (predicted.shape, labels.shape)
    hits = predicted.astype(labels.dtype) == labels
    return 100 * jnp.mean(hits, dtype=jnp.float32)


def expected_calibration_error(
    probabilities: ArrayLike, labels: ArrayLike, bins: int = 15
) -> Array:
    """Mean distance between confidence and accuracy, over bins of equal width.

    ECE = Σ_b (n_b / n) · |acc_b − conf_b| of Guo et al., "On Calibration of Modern Neural
    Networks", 2017 (https://arxiv.org/abs/1706.04599, eq. 3). Bins are right-closed: bin b holds
    the rows with confidence in (b / bins, (b + 1) / bins]. Since n_b · acc_b and n_b · conf_b are
    sums over the rows of the bin, each term is |Σ (hit − confidence)| / n and an empty bin adds 0.

    Args:
        probabilities: [n, classes], floating point, rows sum to 1 (softmax of the logits).
        labels: true classes [n], integers.
        bins: number of bins.

    Returns:
        Percent, float32 [].
    """
    probabilities = jnp.asarray(probabilities).astype(jnp.float32)
    labels = jnp.asarray(labels)
    confidence = jnp.max(probabilities, axis=-1)
    hit = jnp.argmax(probabilities, axis=-1).astype(labels.dtype) == labels
    edges = jnp.asarray(np.linspace(0, 1, bins + 1, dtype=np.float64).astype(np.float32))
    # Comparing with the edges, not ceil(confidence · bins), keeps 0.2 in the bin that ends at 0.2;
    # the clip takes in a softmax that rounds to just above 1.
    index = jnp.clip(jnp.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    gaps = jnp.zeros(bins, jnp.float32).at[index].add(hit.astype(jnp.float32) - confidence)
    return 100 * jnp.sum(jnp.abs(gaps)) / labels.shape[0]
