"""Families that fill the picture: textures, gratings by angle and by frequency, terrain.

Each `draw_…` takes a generator, the label and a style and returns a picture (side, side, rgb).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from experiments.tiny.drawing import (
    CANVAS,
    RAMP_X,
    RAMP_Y,
    Mask,
    Picture,
    Style,
    between,
    ground,
    paint,
    smooth_noise,
)

Grid = NDArray[np.floating]  # (64, 64)

_Y, _X = np.mgrid[0:CANVAS, 0:CANVAS].astype(np.float32) - (CANVAS - 1) / 2
_TURN = np.float32(2 * math.pi)

# ---------------------------------------------------------------- textures


def _triangle(u: Grid) -> Grid:
    return np.abs(u % 1 - 0.5) * 4 - 1


def _stripes(rng: np.random.Generator, u: Grid, v: Grid) -> Grid:
    return np.sin(_TURN * u)


def _checkers(rng: np.random.Generator, u: Grid, v: Grid) -> Grid:
    return _triangle(0.7 * u) * _triangle(0.7 * v) * 3


def _dots(rng: np.random.Generator, u: Grid, v: Grid) -> Grid:
    return 6 * (0.3 - np.hypot(u % 1 - 0.5, v % 1 - 0.5))


def _bricks(rng: np.random.Generator, u: Grid, v: Grid) -> Grid:
    course = np.floor(1.4 * v)
    upright = np.abs((0.7 * u + 0.5 * course) % 1 - 0.5) / 0.7
    level = np.abs((1.4 * v) % 1 - 0.5) / 1.4
    return 12 * (np.minimum(0.5 / 0.7 - upright, 0.5 / 1.4 - level) - 0.07)


def _waves(rng: np.random.Generator, u: Grid, v: Grid) -> Grid:
    return np.sin(_TURN * (v + 0.35 * np.sin(_TURN * 0.6 * u)))


def _grain(rng: np.random.Generator, u: Grid, v: Grid) -> Grid:
    return 1.5 * smooth_noise(rng, int(rng.integers(24, 33)), CANVAS)


def _rings(rng: np.random.Generator, u: Grid, v: Grid) -> Grid:
    return np.sin(_TURN * np.hypot(u - u.mean(), v - v.mean()))


def _zigzag(rng: np.random.Generator, u: Grid, v: Grid) -> Grid:
    return 1.5 * _triangle(v + 0.5 * _triangle(0.5 * u))


def _grid(rng: np.random.Generator, u: Grid, v: Grid) -> Grid:
    return 8 * (np.maximum(np.abs(u % 1 - 0.5), np.abs(v % 1 - 0.5)) - 0.36)


def _blobs(rng: np.random.Generator, u: Grid, v: Grid) -> Grid:
    return 4 * smooth_noise(rng, int(rng.integers(6, 9)), CANVAS)


def _rays(rng: np.random.Generator, u: Grid, v: Grid) -> Grid:
    x0, y0 = rng.normal(0, 4, 2).tolist()
    return 2 * np.sin(int(rng.integers(6, 11)) * np.arctan2(_Y - y0, _X - x0))


def _scales(rng: np.random.Generator, u: Grid, v: Grid) -> Grid:
    row = np.floor(1.6 * v)
    drop = (1.6 * v) % 1
    # The distance to the nearest tile centre of the row above: an arc hangs from each.
    arc = np.hypot((u + 0.5 * row) % 1 - 0.5, drop * 0.6)
    return 14 * (0.11 - np.abs(arc - 0.46))


TEXTURES: dict[str, Callable[[np.random.Generator, Grid, Grid], Grid]] = {
    "stripes": _stripes,
    "checkers": _checkers,
    "dots": _dots,
    "bricks": _bricks,
    "waves": _waves,
    "grain": _grain,
    "rings": _rings,
    "zigzag": _zigzag,
    "grid": _grid,
    "blobs": _blobs,
    "rays": _rays,
    "scales": _scales,
}


def draw_texture(rng: np.random.Generator, label: int, style: Style) -> Picture:
    """A texture over the whole picture, turned, at a random period."""
    angle = between(rng, -0.6, 0.6) if style.hard else between(rng, -0.25, 0.25)
    period = between(rng, 11, 19) if style.hard else between(rng, 13, 18)
    u0, v0 = rng.random(2).tolist()
    cos, sin = math.cos(angle) / period, math.sin(angle) / period
    u, v = cos * _X + sin * _Y + u0, cos * _Y - sin * _X + v0
    value = np.clip(list(TEXTURES.values())[label](rng, u, v) * 1.5 + 0.5, 0, 1)
    mask = value.reshape(CANVAS // 2, 2, CANVAS // 2, 2).mean(axis=(1, 3))
    return paint(ground(rng, style), mask.astype(np.float32), style.ink)


# ---------------------------------------------------------------- gratings


def _grating(
    rng: np.random.Generator, style: Style, *, angle: float, cycles: float, width: float
) -> Picture:
    """A sine grating under a soft round window; `cycles` and `width` count half pictures."""
    along = RAMP_X * math.cos(angle) + RAMP_Y * math.sin(angle)
    wave = 0.5 + 0.5 * np.sin(math.pi * cycles * along + between(rng, 0, 2 * math.pi))
    x0, y0 = rng.normal(0, 0.12 if style.hard else 0.05, 2).tolist()
    window = np.exp(-0.5 * (((RAMP_X - x0) ** 2 + (RAMP_Y - y0) ** 2) / width**2) ** 2)
    return paint(ground(rng, style), wave * window, style.ink)


def draw_angle(rng: np.random.Generator, label: int, style: Style) -> Picture:
    """A grating turned by label/8 of half a turn, give or take."""
    # A quarter of the step between classes: neighbours overlap for one picture in twenty.
    angle = math.pi * label / 8 + rng.normal(0, 0.1 if style.hard else 0.04)
    width = between(rng, 0.35, 0.7) if style.hard else between(rng, 0.5, 0.9)
    return _grating(rng, style, angle=angle, cycles=between(rng, 2.5, 7), width=width)


def draw_frequency(rng: np.random.Generator, label: int, style: Style) -> Picture:
    """A grating at any angle; each class has half again as many cycles as the one before."""
    cycles = 1.5 * 1.45**label * math.exp(rng.normal(0, 0.07 if style.hard else 0.03))
    angle = between(rng, 0, math.pi)
    return _grating(rng, style, angle=angle, cycles=cycles, width=between(rng, 0.6, 1.1))


# ---------------------------------------------------------------- terrain

TERRAIN = (
    "forest",
    "lake",
    "desert",
    "crops",
    "highway",
    "river",
    "town",
    "snow",
    "orchard",
    "beach",
)
_GREEN, _DARK_GREEN, _WATER = (110, 145, 75), (35, 75, 35), (45, 90, 150)
_SAND, _SOIL, _ROAD, _SNOW = (215, 185, 130), (140, 105, 70), (70, 70, 78), (235, 240, 245)


def _soft(value: Mask, sharpness: float) -> Mask:
    return np.clip(value * sharpness + 0.5, 0, 1)


class _Land:
    """A picture under construction, its turned coordinates and its colour jitter."""

    def __init__(self, rng: np.random.Generator, style: Style) -> None:
        self.rng = rng
        angle = between(rng, 0, 2 * math.pi)
        self.u = RAMP_X * math.cos(angle) + RAMP_Y * math.sin(angle)
        self.v = RAMP_Y * math.cos(angle) - RAMP_X * math.sin(angle)
        self.spread = 8 if style.task else (28 if style.hard else 16)
        self.picture = np.zeros((32, 32, 3), np.float32)

    def fill(self, colour: tuple[int, int, int], mottle: float = 8, cells: int = 8) -> None:
        self.picture[:] = self.vary(colour)
        self.picture += mottle * smooth_noise(self.rng, cells)[..., None]

    def lay(self, mask: Mask, colour: tuple[int, int, int]) -> None:
        self.picture = paint(self.picture, mask, self.vary(colour))

    def vary(self, colour: tuple[int, int, int]) -> NDArray[np.float32]:
        return np.asarray(colour + self.rng.normal(0, self.spread, 3), np.float32)


def _forest(land: _Land) -> None:
    land.fill(_DARK_GREEN, 6)
    land.lay(0.8 * _soft(smooth_noise(land.rng, 14), 1.2), (90, 140, 70))


def _lake(land: _Land) -> None:
    land.fill(_GREEN)
    x0, y0 = land.rng.normal(0, 0.2, 2).tolist()
    radius = between(land.rng, 0.4, 0.65) + 0.12 * smooth_noise(land.rng, 4)
    stretch = between(land.rng, 0.8, 1.5)
    land.lay(_soft(radius - np.hypot(land.u - x0, stretch * (land.v - y0)), 10), _WATER)


def _desert(land: _Land) -> None:
    land.fill(_SAND, 5)
    bend = land.u + 0.15 * np.sin(4 * land.v) + 0.12 * smooth_noise(land.rng, 4)
    land.lay(0.5 * _soft(np.sin(between(land.rng, 7, 12) * bend), 0.6), (165, 125, 80))


def _crops(land: _Land) -> None:
    land.fill(_GREEN, 4)
    edge, cross = land.rng.normal(0, 0.3, 2).tolist()
    for part, colour in ((land.u > edge, (215, 195, 95)), (land.v > cross, (70, 115, 40))):
        land.lay(0.8 * part.astype(np.float32), colour)
    land.lay(0.75 * _soft(np.sin(between(land.rng, 14, 22) * land.u), 1.0), (120, 85, 55))


def _highway(land: _Land) -> None:
    land.fill((125, 140, 95))
    offset, half = land.rng.normal(0, 0.25), between(land.rng, 0.17, 0.27)
    across = land.v - offset
    land.lay(_soft(half - np.abs(across), 14), _ROAD)
    dashes = _soft(0.03 - np.abs(across), 14) * (np.sin(14 * land.u) > -0.2)
    land.lay(dashes.astype(np.float32), _SNOW)


def _river(land: _Land) -> None:
    land.fill(_GREEN)
    phase, swing = between(land.rng, 0, 6.3), between(land.rng, 0.2, 0.4)
    across = land.v - land.rng.normal(0, 0.2) - swing * np.sin(3.5 * land.u + phase)
    land.lay(_soft(between(land.rng, 0.1, 0.2) - np.abs(across), 12), _WATER)


def _town(land: _Land) -> None:
    land.fill(_ROAD, 5)
    pitch = between(land.rng, 4, 6)
    a, b = land.rng.random(2).tolist()
    u, v = pitch * land.u / 2 + a, pitch * land.v / 2 + b
    roofs = _soft(0.32 - np.maximum(np.abs(u % 1 - 0.5), np.abs(v % 1 - 0.5)), 7)
    tone = np.sin(7 * np.floor(u) + 13 * np.floor(v))
    land.lay(roofs * (tone > -0.7), (190, 90, 65))
    land.lay(roofs * (tone > 0.5), (225, 220, 215))


def _snow(land: _Land) -> None:
    land.fill(_SNOW, 5)
    land.lay(0.5 * _soft(smooth_noise(land.rng, 5) - 0.8, 1.5), (125, 140, 165))


def _orchard(land: _Land) -> None:
    land.fill(_SOIL, 6)
    pitch = between(land.rng, 5, 8)
    a, b = land.rng.random(2).tolist()
    u, v = pitch * land.u / 2 + a, pitch * land.v / 2 + b
    land.lay(_soft(0.33 - np.hypot(u % 1 - 0.5, v % 1 - 0.5), 5), (45, 95, 45))


def _beach(land: _Land) -> None:
    land.fill(_SAND, 6)
    shore = land.v - land.rng.normal(0, 0.3) - 0.1 * np.sin(4 * land.u) - 0.1 * RAMP_X
    land.lay(_soft(shore, 12), _WATER)
    land.lay(0.8 * _soft(0.06 - np.abs(shore), 14), _SNOW)


_LANDS = (
    _forest, _lake, _desert, _crops, _highway, _river, _town, _snow, _orchard, _beach
)  # fmt: skip


def draw_terrain(rng: np.random.Generator, label: int, style: Style) -> Picture:
    """A piece of land from above, turned any way; its own colours, varied by the style."""
    land = _Land(rng, style)
    _LANDS[label](land)
    return land.picture
