"""Families of written signs: digits, numbers, letters, segments, runes, small letters.

Each `draw_…` takes a generator, the label and a style and returns a picture (side, side, rgb).
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from experiments.tiny.drawing import (
    Pen,
    Picture,
    Point,
    Style,
    between,
    by_hand,
    clutter,
    glyph,
    ground,
    paint,
    place,
    to_mask,
    warp,
)

LETTERS = "ABCDEFGHKLMNPRST"
SMALL_LETTERS = "abdefghkmnqrty"
DIGIT_TEST_ROWS = 55  # of each class, out of about 180

# Segments in the usual order a..g, and the segments each digit lights.
_LEFT, _RIGHT = -0.55, 0.55
_SEGMENTS: tuple[tuple[Point, Point], ...] = (
    ((_LEFT, -1), (_RIGHT, -1)),
    ((_RIGHT, -1), (_RIGHT, 0)),
    ((_RIGHT, 0), (_RIGHT, 1)),
    ((_LEFT, 1), (_RIGHT, 1)),
    ((_LEFT, 0), (_LEFT, 1)),
    ((_LEFT, -1), (_LEFT, 0)),
    ((_LEFT, 0), (_RIGHT, 0)),
)
_LIT = ("abcdef", "bc", "abdeg", "abcdg", "bcfg", "acdfg", "acdefg", "abc", "abcdefg", "abcdfg")

# Twelve runes of the elder futhark as polylines.
RUNES: dict[str, tuple[tuple[Point, ...], ...]] = {
    "fehu": (((-0.4, -1), (-0.4, 1)), ((-0.4, 0), (0.5, -0.8)), ((-0.4, 0.5), (0.5, -0.3))),
    "uruz": (((-0.5, 1), (-0.5, -1), (0.5, -0.4), (0.5, 1)),),
    "thurisaz": (((-0.4, -1), (-0.4, 1)), ((-0.4, -0.5), (0.4, 0), (-0.4, 0.5))),
    "ansuz": (((-0.4, -1), (-0.4, 1)), ((-0.4, -1), (0.5, -0.4)), ((-0.4, -0.3), (0.5, 0.3))),
    "raido": (((-0.5, 1), (-0.5, -1), (0.4, -0.5), (-0.4, 0), (0.5, 1)),),
    "kaunan": (((0.4, -0.9), (-0.4, 0), (0.4, 0.9)),),
    "gebo": (((-0.6, -0.9), (0.6, 0.9)), ((0.6, -0.9), (-0.6, 0.9))),
    "hagal": (((-0.5, -1), (-0.5, 1)), ((0.5, -1), (0.5, 1)), ((-0.5, -0.3), (0.5, 0.3))),
    "isaz": (((0, -1), (0, 1)),),
    "algiz": (((0, -1), (0, 1)), ((-0.6, -0.9), (0, -0.1), (0.6, -0.9))),
    "tiwaz": (((0, -1), (0, 1)), ((-0.6, -0.3), (0, -1), (0.6, -0.3))),
    "odal": (((-0.6, 1), (0.5, -0.3), (0, -1), (-0.5, -0.3), (0.6, 1)),),
}


@cache
def digit_rows() -> tuple[
    NDArray[np.float32], tuple[NDArray[np.int64], ...], tuple[NDArray[np.int64], ...]
]:
    """The recorded digits (row, 8, 8) in 0..1, and per class the train rows and the test rows."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    order = np.random.RandomState(0).permutation(len(labels))
    by_class = [order[labels[order] == c] for c in range(10)]
    scans = (pixels.reshape(-1, 8, 8) / 16).astype(np.float32)
    test = tuple(rows[:DIGIT_TEST_ROWS] for rows in by_class)
    train = tuple(rows[DIGIT_TEST_ROWS:] for rows in by_class)
    return scans, train, test


def draw_digit(rng: np.random.Generator, label: int, style: Style) -> Picture:
    """A recorded handwritten digit; the n-th picture of a class shows the n-th row of its pool."""
    scans, train, test = digit_rows()
    rows = (test if style.held_out else train)[label]
    side = int(rng.integers(26, 31))
    scan = Image.fromarray(scans[rows[style.index % len(rows)]])
    mask = np.zeros((32, 32), np.float32)
    x, y = rng.integers(0, 33 - side, 2).tolist()
    mask[y : y + side, x : x + side] = np.asarray(
        scan.resize((side, side), Image.Resampling.BICUBIC)
    )
    return paint(ground(rng, style), np.clip(mask, 0, 1), style.ink)


def draw_number(rng: np.random.Generator, label: int, style: Style) -> Picture:
    """A digit on a wall, half of the time between the halves of two others."""
    picture = clutter(rng, ground(rng, style), style, most=1)
    mask = to_mask(place(rng, glyph(rng, str(label), style), style, size=(13, 18)))
    if style.hard and rng.random() < 0.5:
        size, height = between(rng, 13, 18), between(rng, -4, 4)
        for side in (-1, 1):
            neighbour = glyph(rng, str(rng.integers(10)), style)
            shift = side * between(rng, 29, 35), height
            mask = np.maximum(mask, to_mask(warp(neighbour, size=size, shift=shift)))
    return paint(picture, mask, style.ink)


def draw_letter(rng: np.random.Generator, label: int, style: Style) -> Picture:
    """A capital letter."""
    picture = clutter(rng, ground(rng, style), style)
    mask = to_mask(place(rng, glyph(rng, LETTERS[label], style), style, size=(13, 19)))
    return paint(picture, mask, style.ink)


def draw_small_letter(rng: np.random.Generator, label: int, style: Style) -> Picture:
    """A small letter written by hand, outlined."""
    picture = clutter(rng, ground(rng, style), style)
    outline = style.task or rng.random() < 0.5
    image = glyph(rng, SMALL_LETTERS[label], style, outline=outline)
    if style.task and rng.random() < 0.5:
        image = by_hand(rng, image, blurred=False)
    return paint(picture, to_mask(place(rng, image, style, size=(16, 21))), style.ink)


@cache
def _segments(label: int, weight: int) -> tuple[Image.Image, Image.Image]:
    lit, unlit = Pen(), Pen()
    for name, (start, end) in zip("abcdefg", _SEGMENTS, strict=True):
        pen = lit if name in _LIT[label] else unlit
        # Short of the corners, so that neighbouring segments stay apart.
        ends = [
            (0.87 * s + 0.13 * e, 0.87 * t + 0.13 * f)
            for (s, t), (e, f) in ((start, end), (end, start))
        ]
        pen.line(ends, weight / 32)
    return lit.image, unlit.image


def draw_segments(rng: np.random.Generator, label: int, style: Style) -> Picture:
    """A seven-segment display; on hard pictures the dark segments glimmer."""
    picture = clutter(rng, ground(rng, style), style)
    lit, unlit = _segments(label, int(rng.integers(6, 12)))
    ghost = between(rng, 0, 0.3) if style.hard else 0.0
    both = Image.blend(lit, Image.composite(lit, unlit, lit), ghost)
    return paint(picture, to_mask(place(rng, both, style, size=(14, 20))), style.ink)


def draw_rune(rng: np.random.Generator, label: int, style: Style) -> Picture:
    """A rune cut into stone: wobbling strokes of one width."""
    picture = clutter(rng, ground(rng, style), style)
    pen, width = Pen(), between(rng, 0.16, 0.3)
    for stroke in list(RUNES.values())[label]:
        wobble = rng.normal(0, 0.07, (len(stroke), 2)).tolist()
        pen.line([(x + u, y + v) for (x, y), (u, v) in zip(stroke, wobble, strict=True)], width)
    return paint(picture, to_mask(place(rng, pen.image, style, size=(14, 20))), style.ink)
