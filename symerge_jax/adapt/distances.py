"""How far merged outputs are from the expert's: the alternatives to self-labels.

SyMerge, arXiv 2412.19098, figure C. Distances act on logits, divergences on probabilities, and one
on the features before the head; the paper does not say which. Like the objectives of
`objectives`, each gives one value per sample, and none takes a label.

Logits of classes that do not exist take no part: `classes` is the row of those that do.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from symerge_jax.adapt.objectives import exclude
from symerge_jax.notation import Array, Bool, Float


class ExpertOutputs(NamedTuple):
    """What an expert gives for inputs. Not the truth.

    Attributes:
        logits: of its head, padded to one number of classes.
        features: of its encoder, before the head.
    """

    logits: Float[Array, "*batch classes"]
    features: Float[Array, "*batch features"]


class Pair(NamedTuple):
    """Two outputs to compare, and which classes exist.

    Attributes:
        merged: the merged model's.
        expert: the expert's.
        classes: bool [classes].
    """

    merged: ExpertOutputs
    expert: ExpertOutputs
    classes: Bool[Array, " classes"]


Distance = Callable[[Pair], Array]  # → [batch]


def hard_cross_entropy(pair: Pair) -> Float[Array, " batch"]:
    """−log q_c for the expert's class c, all samples counted: self-labels among distances.

    For runs in which other tasks, such as regression, compare outputs.
    """
    label = exclude(pair.expert.logits, pair.classes[None]).argmax(axis=-1)
    log_q = jax.nn.log_softmax(exclude(pair.merged.logits, pair.classes[None]), axis=-1)
    return -jnp.take_along_axis(log_q, label[..., None], axis=-1)[..., 0]


def soft_cross_entropy(pair: Pair) -> Float[Array, " batch"]:
    """−Σ_c p_c log q_c with the expert's probabilities p and the merged ones q."""
    log_p, log_q = _log_probabilities(pair)
    return -_expected(log_p, log_q)


def kl(pair: Pair) -> Float[Array, " batch"]:
    """KL(expert ‖ merged) = Σ_c p_c (log p_c − log q_c)."""
    log_p, log_q = _log_probabilities(pair)
    return _expected(log_p, log_p - log_q)


def js(pair: Pair) -> Float[Array, " batch"]:
    """Jensen-Shannon: half of KL(p ‖ m) + KL(q ‖ m) with m = (p + q) / 2."""
    log_p, log_q = _log_probabilities(pair)
    half = jnp.asarray(jnp.log(2), log_p.dtype)
    log_m = jnp.logaddexp(log_p, log_q) - half
    return (_expected(log_p, log_p - log_m) + _expected(log_q, log_q - log_m)) / 2


def l1(pair: Pair) -> Float[Array, " batch"]:
    """Mean |z − t| over the classes."""
    return _mean(_absolute(_difference(pair)), pair)


def smooth_l1(pair: Pair) -> Float[Array, " batch"]:
    """Mean of d² / 2 where d = |z − t| is below 1, of d − 1/2 elsewhere."""
    d = jnp.abs(_difference(pair))
    return _mean(jnp.where(d < 1, d * d / 2, d - 0.5), pair)


def l2(pair: Pair) -> Float[Array, " batch"]:
    """Mean (z − t)² over the classes."""
    return _mean(jnp.square(_difference(pair)), pair)


def cosine(pair: Pair) -> Float[Array, " batch"]:
    """1 − cos(z, t); the product of the norms is at least 1e-8, as in PyTorch."""
    z, t = (_existing(outputs.logits, pair) for outputs in (pair.merged, pair.expert))
    squares = (z * z).sum(axis=-1) * (t * t).sum(axis=-1)
    least = jnp.asarray(1e-16, squares.dtype)
    return 1 - (z * t).sum(axis=-1) * jax.lax.rsqrt(jnp.maximum(squares, least))


def features_l1(pair: Pair) -> Float[Array, " batch"]:
    """Mean |h − g| over the features before the head."""
    return _absolute(pair.merged.features - pair.expert.features).mean(axis=-1)


DISTANCES: dict[str, Distance] = {
    "soft_ce": soft_cross_entropy,
    "kl": kl,
    "js": js,
    "l1": l1,
    "smooth_l1": smooth_l1,
    "l2": l2,
    "cosine": cosine,
    "features_l1": features_l1,
    "hard_ce": hard_cross_entropy,
}


def _log_probabilities(pair: Pair) -> tuple[Array, Array]:
    """Returns log p of the expert and log q of the merged model, [batch, classes]."""
    log_p, log_q = (
        jax.nn.log_softmax(exclude(outputs.logits, pair.classes[None]), axis=-1)
        for outputs in (pair.expert, pair.merged)
    )
    return log_p, log_q


def _expected(log_p: Array, values: Array) -> Array:
    """Returns Σ_c p_c v_c; classes of probability 0 give 0."""
    p = jnp.exp(log_p)
    return jnp.where(p > 0, p * values, jnp.zeros_like(p)).sum(axis=-1)


def _absolute(difference: Array) -> Array:
    """|d| with derivative 0 at 0, as in PyTorch; that of `jnp.abs` is 1: what agrees would move."""
    return difference * jnp.sign(difference)


def _existing(logits: Array, pair: Pair) -> Array:
    return jnp.where(pair.classes[None], logits, jnp.zeros_like(logits))


def _difference(pair: Pair) -> Array:
    return _existing(pair.merged.logits - pair.expert.logits, pair)


def _mean(values: Array, pair: Pair) -> Array:
    return values.sum(axis=-1) / pair.classes.sum(dtype=values.dtype)
