"""Surfaces and light of the generated rooms: what colour a pixel has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from experiments.tiny.rooms_render import SIDES, Box, Floats, Seen, shadowed

Colour = tuple[float, float, float]  # red, green, blue, from 0 to 1


class Paint(NamedTuple):
    """A surface.

    Attributes:
        pattern: a name in `PATTERNS`.
        colours: two colours that the pattern mixes.
        scale: size of the pattern's parts in metres.
        seed: of its irregularities.
        glow: how much light it gives off by itself, from 0 to 1.
    """

    pattern: str
    colours: tuple[Colour, Colour]
    scale: float = 0.2
    seed: int = 0
    glow: float = 0.0


class Light(NamedTuple):
    """Lights of a room.

    Attributes:
        ambient: brightness everywhere.
        lamps: x, y, z and brightness of each.
        tint: colour of the light and the camera's white balance.
    """

    ambient: float
    lamps: tuple[tuple[float, float, float, float], ...]
    tint: Colour


class Where(NamedTuple):
    """Where on their surfaces pixels are: [n] each."""

    u: Floats  # metres along the surface, level
    v: Floats  # metres along the surface, upwards (into the room on level surfaces)
    across: Floats  # from 0 to 1 over the face, along u
    upward: Floats  # from 0 to 1 over the face, along v
    scale: Floats
    seed: NDArray[np.uint32]

    def at(self, rows: NDArray[np.intp]) -> Where:
        """Some of the pixels."""
        along = self.u[rows], self.v[rows], self.across[rows], self.upward[rows]
        return Where(*along, self.scale[rows], self.seed[rows])


# A pattern says how much of the second colour, from 0 to 1, and how bright, around 1.
Pattern = Callable[[Where], tuple[Floats, Floats]]


def hashed(i: Floats, j: Floats, seed: NDArray[np.uint32]) -> Floats:
    """A number from 0 to 1 for each cell (i, j) of a lattice."""
    a = np.floor(i).astype(np.int32).astype(np.uint32)
    b = np.floor(j).astype(np.int32).astype(np.uint32)
    x = a * np.uint32(0x9E3779B1) ^ b * np.uint32(0x85EBCA77) ^ seed * np.uint32(0xC2B2AE3D)
    x ^= x >> np.uint32(15)
    x *= np.uint32(0x2C1B3C6D)
    x ^= x >> np.uint32(13)
    return (x & np.uint32(0xFFFF)).astype(np.float32) / np.float32(0xFFFF)


def _blotches(w: Where, scale: Floats) -> Floats:
    """Something smooth and irregular, from -1 to 1."""
    phase = (w.seed % np.uint32(97)).astype(np.float32)
    a, b = w.u / scale, w.v / scale
    return np.sin(a + 1.7 * np.sin(0.8 * b + phase) + phase) * np.sin(
        1.1 * b + 1.3 * np.sin(0.9 * a + 2 * phase)
    )


def _plain(w: Where) -> tuple[Floats, Floats]:
    return 0.15 + 0.15 * _blotches(w, 4 * w.scale), np.ones_like(w.u)


def _wood(w: Where) -> tuple[Floats, Floats]:
    grain = np.sin(18 * w.v / w.scale + 3 * _blotches(w, 2 * w.scale))
    return 0.5 + 0.4 * grain, 1 + 0.05 * hashed(w.u / w.scale, w.v / (w.scale / 8), w.seed)


def _planks(w: Where) -> tuple[Floats, Floats]:
    row = np.floor(w.u / w.scale)
    shift = hashed(row, np.zeros_like(row), w.seed)
    gap = (w.u / w.scale - row) < 0.07
    return 0.8 * hashed(row, w.v / (6 * w.scale) + shift, w.seed), np.where(
        gap, np.float32(0.7), np.float32(1)
    )


def _tiles(w: Where) -> tuple[Floats, Floats]:
    a, b = w.u / w.scale, w.v / w.scale
    joint = np.minimum(a - np.floor(a), b - np.floor(b)) < 0.08
    checked = (np.floor(a) + np.floor(b)) % 2
    return np.where(w.seed % 2 == 0, checked, 0.3 * hashed(a, b, w.seed)), np.where(
        joint, np.float32(0.75), np.float32(1)
    )


def _stripes(w: Where) -> tuple[Floats, Floats]:
    return (np.floor(w.u / w.scale) % 2).astype(np.float32), np.ones_like(w.u)


def _cloth(w: Where) -> tuple[Floats, Floats]:
    fine = hashed(w.u / 0.03, w.v / 0.03, w.seed)
    return np.clip(0.4 + 0.5 * _blotches(w, 0.5 * w.scale), 0, 1), 0.93 + 0.14 * fine


def _checks(w: Where) -> tuple[Floats, Floats]:
    a, b = np.floor(w.u / w.scale) % 2, np.floor(w.v / w.scale) % 2
    return ((a + b) / 2).astype(np.float32), np.ones_like(w.u)


def _canvas(w: Where) -> tuple[Floats, Floats]:
    """A painting in a frame."""
    edge = np.minimum(np.minimum(w.across, 1 - w.across), np.minimum(w.upward, 1 - w.upward))
    patch = hashed(4 * w.across + _blotches(w, w.scale), 4 * w.upward, w.seed)
    return np.where(edge < 0.08, np.float32(0), patch), np.where(
        edge < 0.08, np.float32(0.5), 0.6 + 0.7 * hashed(3 * w.across, 3 * w.upward, w.seed + 1)
    ).astype(np.float32)


def _pane(w: Where) -> tuple[Floats, Floats]:
    """A window: a frame with a cross in it, and brighter sky further up."""
    a, b = np.abs(w.across - 0.5), np.abs(w.upward - 0.5)
    frame = (a < 0.03) | (b < 0.02) | (a > 0.45) | (b > 0.46)
    sky = 0.35 + 0.65 * w.upward + 0.15 * _blotches(w, w.scale)
    return np.where(frame, np.float32(0), np.clip(sky, 0, 1)), np.ones_like(w.u)


def _spines(w: Where) -> tuple[Floats, Floats]:
    """Books side by side."""
    book = w.u / w.scale
    colour = hashed(book, np.zeros_like(book), w.seed)
    label = (np.abs(w.upward - 0.7) < 0.08) & (colour < 0.6)
    tone = 0.55 + 0.6 * hashed(book, np.ones_like(book), w.seed)
    gap = (book - np.floor(book)) < 0.12
    return colour, np.where(gap, 0.4, np.where(label, 1.5, tone)).astype(np.float32)


def _screen(w: Where) -> tuple[Floats, Floats]:
    """A dark pane in a frame, with a gleam."""
    gleam = np.clip(1 - 6 * np.abs(w.across + 0.5 * w.upward - 0.7), 0, 1)
    return 0.5 * gleam, np.ones_like(w.u)


PATTERNS: dict[str, Pattern] = {
    "plain": _plain,
    "wood": _wood,
    "planks": _planks,
    "tiles": _tiles,
    "stripes": _stripes,
    "cloth": _cloth,
    "checks": _checks,
    "canvas": _canvas,
    "pane": _pane,
    "spines": _spines,
    "screen": _screen,
}


def colours(
    seen: Seen,
    room: tuple[float, float, float],
    boxes: Sequence[Box],
    paints: Sequence[Paint],
    light: Light,
) -> Floats:
    """Works out the colour of each pixel.

    Args:
        seen: what the pixels see.
        room: its width, length and height.
        boxes: what stands in it.
        paints: of the six sides of the room, then of the boxes' `paint`.
        light: of the room.

    Returns:
        [n, 3], 0 to about 1.
    """
    paint = np.array([*range(len(SIDES)), *(box.paint for box in boxes)])[seen.box]
    pigment, glow = _pigments(seen, room, boxes, paints, paint)
    bright = _brightness(seen, room, boxes, light)
    shade = np.maximum(bright, glow)[:, None] * np.array(light.tint, np.float32)
    return pigment * shade


def _pigments(
    seen: Seen,
    room: tuple[float, float, float],
    boxes: Sequence[Box],
    paints: Sequence[Paint],
    paint: NDArray[np.intp],
) -> tuple[Floats, Floats]:
    where = _where(seen, room, boxes, paints, paint)
    patterns = np.array([list(PATTERNS).index(p.pattern) for p in paints])[paint]
    mix, tone = np.empty_like(where.u), np.empty_like(where.u)
    for i, pattern in enumerate(PATTERNS.values()):
        here = np.flatnonzero(patterns == i)
        if here.size:
            mix[here], tone[here] = pattern(where.at(here))
    pairs = np.array([p.colours for p in paints], np.float32)[paint]  # [n, 2, 3]
    pigment = pairs[:, 0] + mix[:, None] * (pairs[:, 1] - pairs[:, 0])
    return pigment * tone[:, None], np.array([p.glow for p in paints], np.float32)[paint]


def _where(
    seen: Seen,
    room: tuple[float, float, float],
    boxes: Sequence[Box],
    paints: Sequence[Paint],
    paint: NDArray[np.intp],
) -> Where:
    """Coordinates on the surface: across x is (y, z), across y is (x, z), across z is (x, y)."""
    halves = np.array([*[room] * len(SIDES), *(box.half for box in boxes)], np.float32).T
    low = np.where(np.arange(halves.shape[1]) < len(SIDES), 0, -halves)
    low, high = low[:, seen.box], halves[:, seen.box]
    level, upward = np.where(seen.axis == 0, 1, 0)[None], np.where(seen.axis == 2, 1, 2)[None]
    u, v = (np.take_along_axis(seen.local, k, axis=0)[0] for k in (level, upward))
    shares = []
    for k, x in ((level, u), (upward, v)):
        begin, end = (np.take_along_axis(bound, k, axis=0)[0] for bound in (low, high))
        shares.append(((x - begin) / (end - begin)).astype(np.float32))
    scale = np.array([p.scale for p in paints], np.float32)[paint]
    seed = np.array([p.seed for p in paints], np.uint32)[paint]
    return Where(u, v, shares[0], shares[1], scale, seed)


def _brightness(
    seen: Seen, room: tuple[float, float, float], boxes: Sequence[Box], light: Light
) -> Floats:
    """Ambient light, less in corners, and lamps that fade away; the first throws shadows."""
    size = np.array(room, np.float32)[:, None]
    to_side = np.minimum(seen.point, size - seen.point) + np.float32(10) * (seen.normal != 0)
    corner = 1 - 0.35 * np.exp(-to_side.min(axis=0) / 0.25) * (seen.box < len(SIDES))
    bright = light.ambient * corner
    for i, (x, y, z, power) in enumerate(light.lamps):
        place = np.array([x, y, z], np.float32)
        reach = place[:, None] - seen.point
        squared = np.square(reach).sum(axis=0)
        facing = np.clip((reach * seen.normal).sum(axis=0) / np.sqrt(squared + 1e-6), 0, 1)
        lit = power * facing / (0.6 + 0.25 * squared)
        if i == 0:
            lit = np.where(shadowed(boxes, place, seen.point, seen.box), 0, lit)
        bright = bright + lit
    return bright.astype(np.float32)
