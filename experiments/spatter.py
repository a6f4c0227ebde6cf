"""Splashes of water or mud on a lens, one of the common corruptions of images.

Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations", 2019. https://arxiv.org/abs/1903.12261

Smoothed Gaussian noise above a threshold is the liquid. Mud covers it with one brown; water adds
light to it, brightest where an emboss filter sees the slope of the distance to its outline. The
original finds outlines and distances with OpenCV; `outlines` and `distances` do the same here,
pixel for pixel.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

MUD = (63, 42, 20)
WATER = (175, 238, 238)

_LEAST_COVER = 0.8  # thinner mud is left out
_OUTLINE_THRESHOLDS = (50, 150)
_FURTHEST = 20  # distances count up to this many pixels
_EMBOSS = ((-2, -1, 0), (-1, 1, 1), (0, 1, 2))
_STEPS = {(0, 1): 1.0, (1, 1): 1.4, (1, 2): 2.1969}  # lengths of moves, up to turns and mirroring
_TAN_22 = 13573  # tan 22.5° · 2^15


class Liquid(NamedTuple):
    """What a splash is made of."""

    mean: float  # of the noise, on the scale 0..1
    std: float
    smoothing: float  # σ in pixels of the blur that makes drops of it
    threshold: float  # liquid is where the blurred noise exceeds this
    amount: float  # water: its largest opacity; mud: σ in pixels of the blur of its outline
    mud: bool


def splash(
    images: NDArray[np.uint8], noise: NDArray[np.floating], liquid: Liquid
) -> NDArray[np.floating]:
    """Returns the images with liquid on them.

    Args:
        images: uint8 [n, h, w, 3].
        noise: standard normal [n, h, w].
        liquid: its constants.

    Returns:
        Floats [n, h, w, 3] on the scale 0..255, which water may exceed. Pixels without liquid are
        as they were.
    """
    drawn = liquid.mean + liquid.std * noise
    layer = ndimage.gaussian_filter(drawn, liquid.smoothing, mode="nearest", axes=(1, 2))
    if liquid.mud:
        cover = mud_cover(layer, threshold=liquid.threshold, softness=liquid.amount)[..., None]
        return images * (1 - cover) + cover * np.array(MUD)
    light = water_light(layer, threshold=liquid.threshold, opacity=liquid.amount)
    return images + light[..., None] * np.array(WATER)


def mud_cover(
    layer: NDArray[np.floating], *, threshold: float, softness: float
) -> NDArray[np.floating]:
    """Returns how much of each pixel is mud: 0, or from 0.8 to 1, as `layer` [n, h, w]."""
    covered = (layer > threshold).astype(float)
    cover = ndimage.gaussian_filter(covered, softness, mode="nearest", axes=(1, 2))
    cover[cover < _LEAST_COVER] = 0
    return cover


def water_light(
    layer: NDArray[np.floating], *, threshold: float, opacity: float
) -> NDArray[np.floating]:
    """Returns the light that water adds to each pixel.

    Args:
        layer: blurred noise [n, h, w].
        threshold: water is where the layer reaches this.
        opacity: the light of the brightest pixel of each image.

    Returns:
        0 without water, up to `opacity`; as `layer`.
    """
    wet = np.where(layer < threshold, 0, layer)
    levels = ((wet * 255).astype(int) % 256).astype(np.uint8)  # as there: beyond 255 comes 0 again
    depth = distances(outlines(levels, *_OUTLINE_THRESHOLDS), _FURTHEST)
    # In float32, because what should be 13 is 12.9999998, but 0.99966 is less than 1.
    depth = equalised(_mean_of_nine(depth).astype(np.float32).astype(np.uint8))
    slope = ndimage.correlate(depth.astype(float), np.array([_EMBOSS], float), mode="mirror")
    light = levels * np.rint(_mean_of_nine(np.clip(slope, 0, 255)))
    brightest = light.max(axis=(1, 2), keepdims=True)
    # An image without water is left as it is; the original divides 0 by 0 there.
    return light * (opacity / np.where(brightest > 0, brightest, 1))


def outlines(levels: NDArray[np.uint8], low: float, high: float) -> NDArray[np.bool_]:
    """Canny's edges: ridges of the gradient above `low` that are joined to one above `high`.

    Args:
        levels: uint8 [n, h, w]; its border pixels go on outwards.
        low: smallest |∂x| + |∂y| (Sobel, 3 × 3) of an edge, exclusive.
        high: what at least one pixel of a connected edge must exceed.

    Returns:
        Whether a pixel is on an edge [n, h, w].
    """
    dx, dy = _derivative(levels, along=2), _derivative(levels, along=1)
    x, y = np.abs(dx), np.abs(dy)
    size = x + y
    outside = np.pad(size, ((0, 0), (1, 1), (1, 1)))  # beyond the border there is no gradient

    def neighbour(down: int, right: int) -> NDArray[np.integer]:
        h, w = size.shape[1:]
        return outside[:, 1 + down : 1 + down + h, 1 + right : 1 + right + w]

    # Of two equal neighbours across an edge, the one to the left or above is taken.
    level = y << 15 < x * _TAN_22
    upright = y << 15 > x * _TAN_22 + (x << 16)  # tan 67.5° is tan 22.5° + 2
    falling = (dx < 0) == (dy < 0)
    is_ridge = np.where(
        level,
        (size > neighbour(0, -1)) & (size >= neighbour(0, 1)),
        np.where(
            upright,
            (size > neighbour(-1, 0)) & (size >= neighbour(1, 0)),
            np.where(
                falling,
                (size > neighbour(-1, -1)) & (size > neighbour(1, 1)),
                (size > neighbour(-1, 1)) & (size > neighbour(1, -1)),
            ),
        ),
    )
    weak = is_ridge & (size > low)
    within_image = np.zeros((3, 3, 3), bool)
    within_image[1] = True
    edges = ndimage.binary_propagation(weak & (size > high), within_image, weak)
    return np.asarray(edges, dtype=bool)


def distances(targets: NDArray[np.bool_], furthest: float) -> NDArray[np.floating]:
    """Lengths of the shortest ways to a target, in moves of a 5 × 5 chamfer.

    Args:
        targets: [n, h, w].
        furthest: distance of whatever is further away, or in an image without targets.

    Returns:
        float32 [n, h, w]; straight moves are 1 long, diagonal ones 1.4, a knight's 2.1969.
    """
    n, h, w = targets.shape
    padded = np.full((n, h + 4, w + 4), furthest, np.float32)
    inner = padded[:, 2:-2, 2:-2]
    inner[targets] = 0
    moves = {
        (sign_down * down, sign_right * right): np.float32(length)
        for (a, b), length in _STEPS.items()
        for down, right in ((a, b), (b, a))
        for sign_down in (-1, 1)
        for sign_right in (-1, 1)
    }
    while True:
        before = inner.copy()
        for (down, right), length in moves.items():
            there = padded[:, 2 + down : 2 + down + h, 2 + right : 2 + right + w]
            np.minimum(inner, there + length, out=inner)
        if np.array_equal(inner, before):
            return before


def equalised(levels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Spreads each image's levels over 0..255, so that their distribution is even.

    Args:
        levels: uint8 [n, h, w]; images of a single level stay as they are.
    """
    n, height, width = levels.shape
    flat = levels.reshape(n, height * width)
    rows = np.arange(n)[:, None]
    counts = np.bincount((flat + 256 * rows).ravel(), minlength=256 * n).reshape(n, 256)
    lowest = np.take_along_axis(counts, flat.min(axis=1, keepdims=True).astype(int), axis=1)
    others = height * width - lowest
    spread = np.rint((counts.cumsum(axis=1) - lowest) * 255 / np.maximum(others, 1))
    mapped = np.where(others > 0, np.maximum(spread, 0), np.arange(256))
    return mapped[rows, flat].astype(np.uint8).reshape(levels.shape)


def _derivative(levels: NDArray[np.uint8], *, along: int) -> NDArray[np.int32]:
    """Sobel's derivative along one axis of [n, h, w], smoothed along the other."""
    smooth = ndimage.correlate1d(levels.astype(np.int32), [1, 2, 1], axis=3 - along, mode="nearest")
    slope = ndimage.correlate1d(smooth, [-1, 0, 1], axis=along, mode="nearest")
    return np.asarray(slope, dtype=np.int32)


def _mean_of_nine(values: NDArray[np.floating]) -> NDArray[np.floating]:
    """Mean over each pixel and its neighbours; the border mirrors without repeating itself."""
    return ndimage.correlate(values.astype(float), np.ones((1, 3, 3)), mode="mirror") / 9
