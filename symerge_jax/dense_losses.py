"""Losses on maps of pixels: segmentation, depth and surface normals.

With labels, for experts, as MTAN and FusionBench train them (Liu et al., "End-to-End Multi-Task
Learning with Attention", 2019, https://arxiv.org/abs/1803.10704, section 4.1); to what an expert
says, without labels, as SyMerge adapts (arXiv 2412.19098: cross-entropy to its classes, L1 for the
regressions). Labelled losses are means over the pixels that count; those to an expert give one
value per image, since an expert has a say on every pixel.

Departures: a normal does not count where all three of its components are 0 (there: where they add
up to 0), and a batch of which no pixel counts gives 0 (there: NaN).
"""

import jax
import jax.numpy as jnp

from symerge_jax.notation import Array, Bool, Float, Int

IGNORE = -1  # the label of pixels that do not count; for depths and normals it is 0

# A prediction shorter than this has no direction to be compared.
_SHORTEST = 1e-6


def segmentation_loss(
    logits: Float[Array, "batch height width classes"], labels: Int[Array, "batch height width"]
) -> Float[Array, ""]:
    """Mean cross-entropy over the pixels whose label is not -1."""
    counts = labels != IGNORE
    return _mean(_cross_entropy(logits, jnp.where(counts, labels, jnp.zeros_like(labels))), counts)


def depth_loss(
    depths: Float[Array, "batch height width 1"], truth: Float[Array, "batch height width"]
) -> Float[Array, ""]:
    """Mean |p - g| in metres over the pixels whose true depth is not 0."""
    return _mean(jnp.abs(depths[..., 0] - truth), truth != 0)


def normal_loss(
    normals: Float[Array, "batch height width 3"], truth: Float[Array, "batch height width 3"]
) -> Float[Array, ""]:
    """Mean 1 - cos(p, g) over the pixels whose true normal, of length 1, is not 0.

    Predictions may have any length.
    """
    return _mean(1 - (unit(normals) * truth).sum(axis=-1), (truth != 0).any(axis=-1))


def self_segmentation(
    logits: Float[Array, "batch height width classes"], expert: Int[Array, "batch height width"]
) -> Float[Array, " batch"]:
    """Mean cross-entropy to the class that the expert predicts, over all pixels of each image."""
    return _cross_entropy(logits, expert).mean(axis=(1, 2))


def self_depth(
    depths: Float[Array, "batch height width 1"], expert: Float[Array, "batch height width 1"]
) -> Float[Array, " batch"]:
    """Mean |p - t| to the expert's depth, over all pixels of each image."""
    return jnp.abs(depths - expert).mean(axis=(1, 2, 3))


def self_normal(
    normals: Float[Array, "batch height width 3"],
    expert: Float[Array, "batch height width 3"],
    *,
    normalise: bool = True,
) -> Float[Array, " batch"]:
    """Mean |p - t| to the expert's normals, over all pixels and components of each image.

    Args:
        normals: of any length.
        expert: of any length.
        normalise: whether both are brought to length 1 first; the paper does not say.
    """
    if normalise:
        normals, expert = unit(normals), unit(expert)
    return jnp.abs(normals - expert).mean(axis=(1, 2, 3))


def unit(vectors: Float[Array, "*shape 3"]) -> Float[Array, "*shape 3"]:
    """Vectors brought to length 1; next to nothing stays next to nothing."""
    squares = jnp.square(vectors).sum(axis=-1, keepdims=True)
    # The bound on the square, not on its root, whose gradient at 0 is not a number.
    least = jnp.asarray(_SHORTEST**2, squares.dtype)
    return vectors * jax.lax.rsqrt(jnp.maximum(squares, least))


def _cross_entropy(logits: Array, labels: Array) -> Float[Array, "batch height width"]:
    log_p = jax.nn.log_softmax(logits, axis=-1)
    return -jnp.take_along_axis(log_p, labels[..., None].astype(jnp.int32), axis=-1)[..., 0]


def _mean(values: Array, counts: Bool[Array, "batch height width"]) -> Float[Array, ""]:
    """Mean over the pixels that count; 0 if there is none."""
    kept = jnp.where(counts, values, jnp.zeros_like(values))
    number = counts.sum(dtype=values.dtype)
    return kept.sum() / jnp.maximum(number, jnp.ones_like(number))
