"""Metrics on maps of pixels: mIoU, pixel accuracy, depth errors, the angle between normals.

In two halves. Sums over the pixels of each image go through a compiled program, batch by batch, so
that no set of maps is ever held; padded images at the end are cut off like any other output:

    sums = predict(lambda p, x: depth_sums(model(p, x[0]), x[1]), params, (images, depths))
    depth_scores(sums)

Scores then add up images in float64 on the host. Depth errors and angles are means over all pixels
of the set that count, as in FusionBench; with `batch_size` the mean over batches of each batch's
mean, as in MTAN (Liu et al., 2019, https://arxiv.org/abs/1803.10704), where a pixel of a batch with
many gaps weighs more. Both have one confusion matrix over the whole set.

Departures: a class that neither the labels nor the predictions have is left out of mIoU, and a
batch of which no pixel counts out of the mean (NaN there); predicted normals may have any length
(MTAN expects 1); a normal does not count where all three components are 0 (there: where they add
up to 0).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from symerge_jax.dense_losses import IGNORE, unit
from symerge_jax.notation import Array, Float, Int


class DepthSums(NamedTuple):
    """Of the pixels of each image whose true depth is known.

    Attributes:
        absolute: sum of |p - g|, in metres.
        relative: sum of |p - g| / g.
        pixels: how many there are.
    """

    absolute: Float[Array, " batch"]
    relative: Float[Array, " batch"]
    pixels: Int[Array, " batch"]


class AngleSums(NamedTuple):
    """Of the pixels of each image whose true normal is known.

    Attributes:
        degrees: sum of the angles between both normals.
        pixels: how many there are.
    """

    degrees: Float[Array, " batch"]
    pixels: Int[Array, " batch"]


# --- sums of each image -------------------------------------------------------------------------


def confusions(
    logits: Float[Array, "batch height width classes"], labels: Int[Array, "batch height width"]
) -> Int[Array, "batch classes classes"]:
    """Counts pixels of each image by label (rows) and prediction; label -1 does not count."""
    classes = logits.shape[-1]
    labels = labels.astype(jnp.int32)
    cell = classes * labels + jnp.argmax(logits, axis=-1).astype(jnp.int32)
    # One cell more than there are, for the pixels that do not count.
    cell = jnp.where(labels == IGNORE, jnp.full_like(cell, classes**2), cell)
    batch = labels.shape[0]
    image = jnp.arange(batch, dtype=jnp.int32)[:, None]
    counts = jnp.zeros((batch, classes**2 + 1), jnp.int32)
    counts = counts.at[image, cell.reshape(batch, -1)].add(1)
    return counts[:, :-1].reshape(batch, classes, classes)


def depth_sums(
    depths: Float[Array, "batch height width 1"], truth: Float[Array, "batch height width"]
) -> DepthSums:
    """Adds up depth errors; a true depth of 0 does not count."""
    counts = truth != 0
    error = jnp.where(counts, jnp.abs(depths[..., 0] - truth), jnp.zeros_like(truth))
    relative = error / jnp.where(counts, truth, jnp.ones_like(truth))
    return DepthSums(error.sum((1, 2)), relative.sum((1, 2)), counts.sum((1, 2), dtype=jnp.int32))


def angle_sums(
    normals: Float[Array, "batch height width 3"], truth: Float[Array, "batch height width 3"]
) -> AngleSums:
    """Adds up angles between normals; a true normal of 0 does not count, a predicted 0 is 90°."""
    p, g = unit(normals), unit(truth)
    counts = (truth != 0).any(axis=-1)
    # The arc cosine of p · g would turn the last bit of float32 into 0.03°.
    angle = 2 * jnp.arctan2(_length(p - g), _length(p + g))
    degrees = jnp.where(counts, jnp.rad2deg(angle), jnp.zeros_like(angle))
    return AngleSums(degrees.sum((1, 2)), counts.sum((1, 2), dtype=jnp.int32))


def _length(vectors: Array) -> Array:
    return jnp.sqrt(jnp.square(vectors).sum(axis=-1))


# --- scores of a set ----------------------------------------------------------------------------


def segmentation_scores(
    confusions: Int[Array, "n classes classes"], *, batch_size: int | None = None
) -> dict[str, float]:
    """Returns `miou` and `pixel_accuracy` in percent.

    Args:
        confusions: of all images; rows are labels.
        batch_size: takes no part: MTAN, too, has one matrix for the whole set.

    Returns:
        The scores; not a number if no pixel counts.
    """
    del batch_size
    matrix = np.asarray(confusions).sum(axis=0, dtype=np.float64)
    hits = np.diagonal(matrix)
    union = matrix.sum(axis=0) + matrix.sum(axis=1) - hits
    present = union > 0
    if not present.any():
        return {"miou": float("nan"), "pixel_accuracy": float("nan")}
    return {
        "miou": 100 * float(np.mean(hits[present] / union[present])),
        "pixel_accuracy": 100 * float(hits.sum() / matrix.sum()),
    }


def depth_scores(sums: DepthSums, *, batch_size: int | None = None) -> dict[str, float]:
    """Returns `depth_abs_error` in metres and `depth_rel_error`, a ratio; tables print both x 100.

    Args:
        sums: of all images, in their order.
        batch_size: images per batch for MTAN's mean; None for that of all pixels.

    Returns:
        The scores; not a number if no pixel counts.
    """
    return {
        "depth_abs_error": _mean(sums.absolute, sums.pixels, batch_size),
        "depth_rel_error": _mean(sums.relative, sums.pixels, batch_size),
    }


def normal_scores(sums: AngleSums, *, batch_size: int | None = None) -> dict[str, float]:
    """Returns `normal_mean_angle` in degrees.

    Args:
        sums: of all images, in their order.
        batch_size: images per batch for MTAN's mean; None for that of all pixels.

    Returns:
        The score; not a number if no pixel counts.
    """
    return {"normal_mean_angle": _mean(sums.degrees, sums.pixels, batch_size)}


def _mean(sums: Array, pixels: Array, batch_size: int | None) -> float:
    """Mean of all pixels, or of batches of images."""
    images = len(pixels)
    begins = np.arange(0, images, batch_size or images)
    sums, pixels = (
        np.add.reduceat(np.asarray(each, np.float64), begins) for each in (sums, pixels)
    )
    known = pixels > 0
    return float(np.mean(sums[known] / pixels[known])) if known.any() else float("nan")


class DenseMetric(NamedTuple):
    """How a dense task is scored.

    Attributes:
        names: of the scores, the main one first.
        sums: (outputs [batch, height, width, channels], truth [batch, height, width, ...]) → sums
            of each image.
        scores: (sums of all images, batch_size=) → score by name.
    """

    names: tuple[str, ...]
    sums: Callable[..., Array | DepthSums | AngleSums]
    scores: Callable[..., dict[str, float]]


DENSE_METRICS = {
    "segmentation": DenseMetric(("miou", "pixel_accuracy"), confusions, segmentation_scores),
    "depth": DenseMetric(("depth_abs_error", "depth_rel_error"), depth_sums, depth_scores),
    "normal": DenseMetric(("normal_mean_angle",), angle_sums, normal_scores),
}
