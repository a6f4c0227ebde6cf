"""Scores a classifier on labelled images; nothing here adapts."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from symerge_jax.classifier import encoder, logits_of
from symerge_jax.evaluate import predict
from symerge_jax.metrics import expected_calibration_error
from symerge_jax.models.clip import VisionConfig
from symerge_jax.models.heads import Head
from symerge_jax.notation import Params
from symerge_jax.trees import wide


def computable(params: Params) -> Params:
    """Returns stored weights in float32 (float64 where they are), on the host."""
    return jax.tree.map(lambda x: np.asarray(x).astype(wide(x.dtype), copy=False), params)


def logits_on(
    config: VisionConfig,
    params: Params,
    head: Head,
    images: np.ndarray,
    *,
    dtype: str = "float32",
    batch_size: int = 250,
) -> np.ndarray:
    """Returns logits [n, classes] of images uint8 [n, height, width, 3]."""
    classes = jnp.ones(len(head["bias"]), bool)
    head = {name: jnp.asarray(head[name]) for name in ("weight", "bias")}
    apply = logits_of(encoder(config, dtype))
    return predict(apply, (params, head, classes), images, batch_size=batch_size)


def accuracy_and_ece(
    config: VisionConfig,
    params: Params,
    head: Head,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    dtype: str = "float32",
    batch_size: int = 250,
) -> tuple[float, float]:
    """Returns accuracy and expected calibration error, both in percent."""
    logits = logits_on(config, params, head, images, dtype=dtype, batch_size=batch_size)
    ece = expected_calibration_error(jax.nn.softmax(logits, axis=-1), labels)
    return float(100 * (logits.argmax(axis=1) == labels).mean()), float(ece)
