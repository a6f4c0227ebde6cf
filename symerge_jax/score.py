"""What a network and a head say about inputs, and how good that is; nothing here adapts."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from symerge_jax.classifier import logits_of
from symerge_jax.data.text_columns import rules_of
from symerge_jax.data.text_lengths import inverse_order, length_order
from symerge_jax.evaluate import predict
from symerge_jax.metrics import expected_calibration_error
from symerge_jax.networks import TEXTS, Network, outputs_of
from symerge_jax.notation import Params
from symerge_jax.text_metrics import METRICS
from symerge_jax.trees import wide

REGRESSION = "pearson_spearman"


def computable(params: Params) -> Params:
    """Returns stored weights in float32 (float64 where they are), on the host."""
    return jax.tree.map(lambda x: np.asarray(x).astype(wide(x.dtype), copy=False), params)


def logits_on(
    network: Network,
    params: Params,
    head: Params,
    inputs: np.ndarray,
    *,
    batch_size: int = 250,
) -> np.ndarray:
    """Returns logits [n, outputs].

    Args:
        network: what computes.
        params: its weights, in float32 or wider.
        head: of its family.
        inputs: images uint8 [n, height, width, 3], or tokens int32 [n, length].
        batch_size: inputs at a time.
    """
    model = (params, jax.tree.map(jnp.asarray, head), jnp.ones(outputs_of(head), bool))
    apply = logits_of(network.encode, network.classify)
    if network.family is not TEXTS:
        return predict(apply, model, inputs, batch_size=batch_size)
    order = length_order(inputs)  # batches of short texts are little work
    sorted_logits = predict(apply, model, inputs[order], batch_size=batch_size)
    return sorted_logits[inverse_order(order)]


def accuracy_and_ece(logits: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Returns accuracy and expected calibration error of logits [n, classes], both in percent."""
    ece = expected_calibration_error(jax.nn.softmax(logits, axis=-1), labels)
    return float(100 * (logits.argmax(axis=1) == labels).mean()), float(ece)


def text_metric(name: str, outputs: int) -> str:
    """Returns by what a text task is scored, a name in `text_metrics.METRICS`.

    Args:
        name: of the task; GLUE's have their own metrics.
        outputs: of its head.
    """
    stated = rules_of(name).metric
    if outputs == 1:
        return REGRESSION
    return "accuracy" if stated in (None, REGRESSION) else stated


def text_scores(logits: np.ndarray, labels: np.ndarray, metric: str) -> dict[str, float]:
    """Returns the metrics of a text task in percent, the main one first.

    Accuracy stands beside another metric of classes, F1 where there are two.
    """
    names = [metric]
    if metric != REGRESSION:
        names += ["accuracy"] + (["f1"] if logits.shape[1] == 2 else [])
    return {name: float(METRICS[name](logits, labels)) for name in names}


def agreement(logits: np.ndarray, expert: np.ndarray) -> float:
    """Returns how far two models say the same, in percent.

    The share of rows with one class; of a regression, the mean of Pearson's and Spearman's
    correlation.

    Args:
        logits: [n, outputs].
        expert: likewise.
    """
    if logits.shape[1] == 1:
        return float(METRICS[REGRESSION](logits, expert[:, 0]))
    return 100 * float((logits.argmax(axis=1) == expert.argmax(axis=1)).mean())
