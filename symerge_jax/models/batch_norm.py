"""Batch normalisation as PyTorch computes it.

Ioffe and Szegedy, "Batch Normalization", 2015 (https://arxiv.org/abs/1502.03167). In training a
batch is normalised by its own biased variance, while the running variance takes the unbiased one
with momentum 0.1; the epsilon is 1e-5. Flax's own differs in both.

Learned scale and bias are in the collection `params`, running mean and variance in `batch_stats`,
under the same path.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from symerge_jax.errors import BadInput
from symerge_jax.models.transformer import unset
from symerge_jax.notation import Array
from symerge_jax.trees import wide

MOMENTUM = 0.1
EPSILON = 1e-5


class BatchNorm(nn.Module):
    """Normalises each channel, in float32 or wider; returns the input's dtype."""

    train: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """Returns an array like x [batch, height, width, channels].

        Args:
            x: what to normalise.
            mask: bool [batch], which images count in training; None for all.
        """
        shape = (x.shape[-1],)
        scale, bias = self.param("scale", unset, shape), self.param("bias", unset, shape)
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
        var = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)
        precise = wide(x.dtype)
        y = x.astype(precise)
        if self.train:
            centre, spread, count = moments(y, mask)
            if not self.is_initializing():
                # One value says nothing of a variance; then the statistics stay as they are.
                rate = jnp.where(count > 1, MOMENTUM, 0.0).astype(precise)
                unbiased = spread * (count / jnp.maximum(count - 1, 1))
                mean.value = _moved(mean.value, centre, rate)
                var.value = _moved(var.value, unbiased, rate)
        else:
            centre, spread = jnp.asarray(mean.value, precise), jnp.asarray(var.value, precise)
        factor = jnp.asarray(scale, precise) * jax.lax.rsqrt(spread + EPSILON)
        y = (y - _rank4(centre)) * _rank4(factor) + _rank4(jnp.asarray(bias, precise))
        return y.astype(x.dtype)


def moments(x: jax.Array, mask: jax.Array | None) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns mean and biased variance of each channel, and how many values each has.

    Args:
        x: float [batch, height, width, channels].
        mask: bool [batch], which images count; None for all.

    Raises:
        BadInput: there is one value per channel, whose variance is zero.
    """
    batch, height, width, _ = x.shape
    if batch * height * width == 1:
        raise BadInput(
            "batch normalisation in training: a batch of one image gives one value per channel, "
            "which has no variance; take batches of at least two images, or evaluation mode"
        )
    seen = jnp.full((batch,), True) if mask is None else mask
    weight = seen.astype(x.dtype)[:, None, None, None]
    count = weight.sum() * (height * width)
    total = jnp.maximum(count, 1)
    centre = (x * weight).sum(axis=(0, 1, 2)) / total
    spread = (jnp.square(x - _rank4(centre)) * weight).sum(axis=(0, 1, 2)) / total
    return centre, spread, count


def _rank4(x: jax.Array) -> jax.Array:
    return x[None, None, None]


def _moved(old: Array, new: jax.Array, rate: jax.Array) -> jax.Array:
    wider = jnp.asarray(old, new.dtype)
    return (wider + rate * (new - wider)).astype(old.dtype)
