"""Objectives: what a mini-batch of merged outputs is asked to be. None takes a label.

Every function returns one value per sample, and `masked_mean` averages those that count. Masked
classes (heads padded to the largest) have logits of `EXCLUDED` and take no part.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from symerge_jax.adapt.across import total
from symerge_jax.notation import Array, Bool, Float, Int

EXCLUDED = -1e9  # logit of a class that does not exist: probability exactly 0 in float32 and 64


class ExpertLabels(NamedTuple):
    """What an expert says about inputs: its class, and how sure it is. Not the truth.

    Attributes:
        label: argmax of the expert's logits.
        confidence: the largest softmax probability.
    """

    label: Int[Array, "*batch"]
    confidence: Float[Array, "*batch"]


def exclude(logits: Float[Array, "*b classes"], classes: Bool[Array, "*c classes"]) -> Array:
    """Sets the logits of classes that do not exist to `EXCLUDED`."""
    classes = jnp.broadcast_to(classes, logits.shape)
    return jnp.where(classes, logits, jnp.asarray(EXCLUDED, logits.dtype))


def masked_mean(values: Float[Array, " batch"], mask: Bool[Array, " batch"]) -> Float[Array, ""]:
    """Returns the mean over the rows in `mask`; 0 if there is none (NaN in the reference).

    Where devices share the batch, over the rows of all of them.
    """
    kept = jnp.where(mask, values, jnp.zeros_like(values))
    count = total(mask.sum(dtype=values.dtype))
    return total(kept.sum()) / jnp.maximum(count, jnp.ones_like(count))


def self_label(
    logits: Float[Array, "batch classes"], expert: ExpertLabels
) -> Float[Array, " batch"]:
    """Cross-entropy to the class that the expert predicts: SyMerge's self-labels."""
    log_p = jax.nn.log_softmax(logits, axis=-1)
    return -jnp.take_along_axis(log_p, expert.label[:, None], axis=-1)[:, 0]


def entropy(logits: Float[Array, "batch classes"]) -> Float[Array, " batch"]:
    """−Σ_c p_c log p_c of the merged prediction (AdaMerging, eq. 5); excluded classes give 0."""
    log_p = jax.nn.log_softmax(logits, axis=-1)
    p = jnp.exp(log_p)
    return -jnp.where(p > 0, p * log_p, jnp.zeros_like(p)).sum(axis=-1)


# Which samples count: (logits, expert) → bool [batch]. Not differentiated.
Filter = Callable[[Array, ExpertLabels], Array]


def keep_all(logits: Array, expert: ExpertLabels) -> Bool[Array, " batch"]:
    """Every sample counts."""
    del logits
    return jnp.ones(expert.label.shape, bool)


def keep_unless_surer(logits: Array, expert: ExpertLabels) -> Bool[Array, " batch"]:
    """Drops samples of which the merged model is surer than the expert (the paper's text)."""
    confidence, _ = _prediction(logits)
    return confidence <= expert.confidence


def keep_agreeing_or_unsure(logits: Array, expert: ExpertLabels) -> Bool[Array, " batch"]:
    """Drops samples on which both disagree and the merged model is surer (the released code)."""
    confidence, label = _prediction(logits)
    return (label == expert.label) | (confidence <= expert.confidence)


def _prediction(logits: Array) -> tuple[Array, Array]:
    p = jax.lax.stop_gradient(jax.nn.softmax(logits, axis=-1))
    return p.max(axis=-1), p.argmax(axis=-1).astype(jnp.int32)


FILTERS: dict[str, Filter] = {
    "none": keep_all,
    "code": keep_agreeing_or_unsure,
    "paper": keep_unless_surer,
}
