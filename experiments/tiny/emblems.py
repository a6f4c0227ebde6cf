"""Families of drawn figures: signs, arrows, shapes, counts, colours, places, clocks, bricks,
bars and relations.

Each `draw_…` takes a generator, the label and a style and returns a picture (side, side, rgb).
Coordinates are in units of `drawing.Pen`: x to the right, y down, a figure spans about -1..1.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from experiments.tiny.drawing import (
    Pen,
    Picture,
    Point,
    Style,
    between,
    clutter,
    ground,
    paint,
    place,
    to_mask,
)

# ---------------------------------------------------------------- outlines


def _ring(corners: int, *, first: float = -math.pi / 2, radius: float = 1.0) -> list[Point]:
    angles = [first + 2 * math.pi * k / corners for k in range(corners)]
    return [(radius * math.cos(a), radius * math.sin(a)) for a in angles]


def _star() -> list[Point]:
    outer, inner = _ring(5), _ring(5, first=-math.pi / 2 + math.pi / 5, radius=0.42)
    return [point for pair in zip(outer, inner, strict=True) for point in pair]


def _heart() -> list[Point]:
    points = []
    for k in range(24):
        t = 2 * math.pi * k / 24
        wave = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        points.append((math.sin(t) ** 3, -wave / 16 - 0.1))
    return points


def _crescent() -> list[Point]:
    outer = [(math.cos(a), math.sin(a)) for a in np.linspace(0.9, 2 * math.pi - 0.9, 16).tolist()]
    tip, rise = outer[0]
    inner = [
        (tip - 0.95 * math.sin(a) * rise, rise * math.cos(a))
        for a in np.linspace(math.pi, 0, 12).tolist()
    ]
    return [(x + 0.2, y) for x, y in outer + inner]


_CROSS: list[Point] = [
    (-0.33, -1), (0.33, -1), (0.33, -0.33), (1, -0.33), (1, 0.33), (0.33, 0.33),
    (0.33, 1), (-0.33, 1), (-0.33, 0.33), (-1, 0.33), (-1, -0.33), (-0.33, -0.33),
]  # fmt: skip

OUTLINES: dict[str, list[Point]] = {
    "circle": _ring(24, radius=0.95),
    "triangle": [(0, -0.95), (0.98, 0.8), (-0.98, 0.8)],
    "square": [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)],
    "diamond": [(0, -1.1), (0.8, 0), (0, 1.1), (-0.8, 0)],
    "star": _star(),
    "cross": _CROSS,
    "heart": _heart(),
    "crescent": _crescent(),
    "bar": [(-1.15, -0.35), (1.15, -0.35), (1.15, 0.35), (-1.15, 0.35)],
    "hourglass": [(-0.8, -1), (0.8, -1), (0.12, 0), (0.8, 1), (-0.8, 1), (-0.12, 0)],
}


def _scaled(points: list[Point], scale: float, shift: Point = (0.0, 0.0)) -> list[Point]:
    return [(scale * x + shift[0], scale * y + shift[1]) for x, y in points]


def _figure(rng: np.random.Generator, outline: list[Point]) -> Pen:
    """The outline, filled or as a closed line."""
    if rng.random() < 0.5:
        return Pen().polygon(outline)
    return Pen().line([*outline, outline[0]], between(rng, 0.14, 0.24))


# ---------------------------------------------------------------- signs and arrows

SIGN_SHAPES = ("circle", "triangle", "square", "diamond")
SIGN_SYMBOLS = ("bar", "cross", "left arrow", "right arrow")

_ARROW: list[Point] = [
    (-1, -0.25), (0.1, -0.25), (0.1, -0.75), (1, 0), (0.1, 0.75), (0.1, 0.25), (-1, 0.25)
]  # fmt: skip
ARROW_DIRECTIONS = (
    "right",
    "down right",
    "down",
    "down left",
    "left",
    "up left",
    "up",
    "up right",
)
# Symbols sit where the sign is widest: lower in a triangle.
_MIDDLE: dict[str, Point] = {"triangle": (0, 0.22)}


def _symbol(pen: Pen, kind: int, middle: Point) -> None:
    x, y = middle
    if kind == 0:
        pen.line([(x - 0.4, y), (x + 0.4, y)], 0.26)
    elif kind == 1:
        pen.line([(x - 0.32, y - 0.32), (x + 0.32, y + 0.32)], 0.22)
        pen.line([(x + 0.32, y - 0.32), (x - 0.32, y + 0.32)], 0.22)
    else:
        turn = -1 if kind == 2 else 1
        pen.polygon([(x + 0.48 * turn * u, y + 0.48 * v) for u, v in _ARROW])


def draw_sign(rng: np.random.Generator, label: int, style: Style) -> Picture:
    """A traffic sign: rim in the accent colour, pale or dark face, symbol in ink."""
    shape, kind = SIGN_SHAPES[label // 4], label % 4
    middle = _MIDDLE.get(shape, (0.0, 0.0))
    rim = Pen().polygon(_scaled(OUTLINES[shape], 1.2))
    face = Pen().polygon(_scaled(OUTLINES[shape], between(rng, 0.86, 0.96), (0, middle[1] / 5)))
    symbol = Pen()
    _symbol(symbol, kind, middle)
    layers = Image.merge("RGB", (rim.image, face.image, symbol.image))
    masks = to_mask(place(rng, layers, style, size=(17, 22)))
    face_colour = np.full(3, 235, np.float32) if style.task else 255 - style.ink
    picture = clutter(rng, ground(rng, style), style)
    for layer, colour in enumerate((style.accent, face_colour, style.ink)):
        picture = paint(picture, masks[..., layer], colour)
    return picture


def draw_arrow(rng: np.random.Generator, label: int, style: Style) -> Picture:
    """An arrow in one of eight directions, with a slim or a stout shaft, or as a bare line."""
    pen = Pen()
    if rng.random() < 0.6:
        slim = between(rng, 0.5, 1.2)
        pen.polygon([(x, y * slim) if abs(y) < 0.5 else (x, y) for x, y in _ARROW])
    else:
        width = between(rng, 0.14, 0.26)
        pen.line([(-1, 0), (0.95, 0)], width)
        pen.line([(0.35, -0.6), (0.95, 0), (0.35, 0.6)], width)
    angle = math.pi / 4 * label + rng.normal(0, 0.14 if style.hard else 0.06)
    canvas = place(rng, pen.image, style, size=(14, 24), angle=angle)
    return paint(clutter(rng, ground(rng, style), style, most=3), to_mask(canvas), style.ink)


# ---------------------------------------------------------------- shapes, colours, places

# Far enough apart to stay distinct under the camera: its cast moves red and blue by 26.
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (215, 35, 35),
    "orange": (240, 140, 20),
    "yellow": (240, 230, 50),
    "green": (40, 150, 50),
    "cyan": (50, 215, 220),
    "blue": (35, 60, 205),
    "purple": (125, 35, 165),
    "pink": (245, 145, 195),
    "brown": (115, 70, 30),
    "white": (245, 245, 245),
}
PLACES = (
    "top left",
    "top",
    "top right",
    "left",
    "middle",
    "right",
    "bottom left",
    "bottom",
    "bottom right",
)


def draw_shape(rng: np.random.Generator, label: int, style: Style) -> Picture:
    """A plane figure, filled or outlined, among stray lines."""
    pen = _figure(rng, list(OUTLINES.values())[label])
    picture = clutter(rng, ground(rng, style), style, most=4)
    return paint(picture, to_mask(place(rng, pen.image, style, size=(13, 22))), style.ink)


def draw_colour(rng: np.random.Generator, label: int, style: Style) -> Picture:
    """A figure of any shape in the colour of the class, give or take."""
    colour = np.array(list(COLOURS.values())[label], np.float32)
    spread = 20 if style.hard else 12
    colour = np.clip(colour + rng.normal(0, spread, 3), 0, 255).astype(np.float32)
    outline = list(OUTLINES.values())[int(rng.integers(len(OUTLINES)))]
    canvas = place(rng, Pen().polygon(outline).image, style, size=(13, 22))
    # A ground near the colour would hide the figure; half-way to grey keeps them apart.
    paper = 0.5 * style.paper + 0.5 * (100 if colour.mean() > 128 else 150)
    picture = ground(rng, style) + (paper - style.paper)
    return paint(clutter(rng, picture, style), to_mask(canvas), colour)


def draw_place(rng: np.random.Generator, label: int, style: Style) -> Picture:
    """A small figure in one of nine places."""
    row, column = divmod(label, 3)
    spread = 0.12 if style.hard else 0.07
    x, y = np.clip(rng.normal((column - 1, row - 1), spread), -1.2, 1.2).tolist()
    outline = list(OUTLINES.values())[int(rng.integers(4))]
    pen = Pen().polygon(_scaled(outline, between(rng, 0.22, 0.36), (x, y)))
    canvas = place(rng, pen.image, style, size=(18, 21), angle=0.0, shear=0.05, reach=3)
    return paint(clutter(rng, ground(rng, style), style, most=3), to_mask(canvas), style.ink)


def draw_count(rng: np.random.Generator, label: int, style: Style) -> Picture:
    """One to eight spots that never touch: each has a cell of a three by three grid to itself."""
    pen = Pen()
    radius = between(rng, 0.17, 0.25) if style.hard else between(rng, 0.19, 0.24)
    room = 0.33 - radius
    for cell in rng.permutation(9)[: label + 1].tolist():
        row, column = divmod(cell, 3)
        x, y = between(rng, -room, room), between(rng, -room, room)
        pen.disc((0.72 * (column - 1) + x, 0.72 * (row - 1) + y), radius * between(rng, 0.9, 1.1))
    canvas = place(rng, pen.image, style, size=(19, 25))
    return paint(clutter(rng, ground(rng, style), style, most=1), to_mask(canvas), style.ink)


# ---------------------------------------------------------------- clocks, bricks, bars, relations

# Cells (column, row) of the seven tetrominoes, by the letter they look like.
BRICKS: dict[str, tuple[tuple[int, int], ...]] = {
    "I": ((0, 0), (1, 0), (2, 0), (3, 0)),
    "O": ((0, 0), (1, 0), (0, 1), (1, 1)),
    "T": ((0, 0), (1, 0), (2, 0), (1, 1)),
    "S": ((1, 0), (2, 0), (0, 1), (1, 1)),
    "Z": ((0, 0), (1, 0), (1, 1), (2, 1)),
    "J": ((1, 0), (1, 1), (1, 2), (0, 2)),
    "L": ((0, 0), (0, 1), (0, 2), (1, 2)),
}
RELATIONS = ("left of", "right of", "above", "below", "inside")
_OFFSETS: tuple[Point, ...] = ((-1, 0), (1, 0), (0, -1), (0, 1), (0, 0))


def draw_clock(rng: np.random.Generator, label: int, style: Style) -> Picture:
    """A clock face; class 0 is one o'clock. On hard pictures the minute hand wanders a little."""
    pen = Pen()
    pen.disc((0, 0), 1.2).disc((0, 0), between(rng, 1.02, 1.1), 0)
    for tick in range(4):
        dx, dy = _direction(3 * tick)
        pen.line([(0.85 * dx, 0.85 * dy), (1.1 * dx, 1.1 * dy)], 0.12)
    minutes = rng.normal(0, 0.04 if style.hard else 0.01)  # in hours
    hour, minute = _direction(label + 1 + minutes), _direction(12 * minutes)
    pen.line([(0, 0), (0.56 * hour[0], 0.56 * hour[1])], 0.26)
    pen.line([(0, 0), (0.86 * minute[0], 0.86 * minute[1])], 0.1)
    canvas = place(rng, pen.image, style, size=(18, 23), shear=0.08)
    return paint(clutter(rng, ground(rng, style), style), to_mask(canvas), style.ink)


def _direction(hour: float) -> Point:
    angle = math.pi / 6 * hour
    return math.sin(angle), -math.cos(angle)


def draw_brick(rng: np.random.Generator, label: int, style: Style) -> Picture:
    """A tetromino, on hard pictures turned by any number of quarters."""
    cells = np.array(list(BRICKS.values())[label], float)
    cells -= (cells.max(0) + cells.min(0)) / 2
    pen, half = Pen(), between(rng, 0.24, 0.29)
    for x, y in (0.6 * cells).tolist():
        pen.polygon(
            [(x - half, y - half), (x + half, y - half), (x + half, y + half), (x - half, y + half)]
        )
    quarter = int(rng.integers(4)) if style.hard else 0
    angle = quarter * math.pi / 2 + math.radians(between(rng, -10, 10))
    canvas = place(rng, pen.image, style, size=(16, 22), angle=angle, shear=0.1)
    return paint(clutter(rng, ground(rng, style), style), to_mask(canvas), style.ink)


def draw_bars(rng: np.random.Generator, label: int, style: Style) -> Picture:
    """Six bars on one base line; the label is the place of the tallest."""
    heights = between(rng, 1.5, 2.2) * rng.uniform(0.1, 0.8 if style.hard else 0.65, 6)
    heights[label] = heights.max() + (between(rng, 0.3, 0.8) if style.hard else 0.7)
    heights *= min(1.0, 2.4 / heights[label])
    pen, half = Pen(), between(rng, 0.12, 0.17)
    for k, height in enumerate(heights.tolist()):
        x = 0.4 * (k - 2.5)
        pen.polygon(
            [(x - half, 1.2), (x - half, 1.2 - height), (x + half, 1.2 - height), (x + half, 1.2)]
        )
    canvas = place(rng, pen.image, style, size=(18, 23), angle=0.0, shear=0.08, reach=4)
    return paint(clutter(rng, ground(rng, style), style), to_mask(canvas), style.ink)


def draw_relation(rng: np.random.Generator, label: int, style: Style) -> Picture:
    """A disc left of, right of, above, below or inside an outlined square."""
    dx, dy = _OFFSETS[label]
    apart = between(rng, 0.62, 0.8)
    slack = 0.35 if style.hard else 0.15
    # Sideways slack moves only the axis the class does not use.
    slide = between(rng, -slack, slack)
    x, y = dx * apart + (slide if dy else 0), dy * apart + (slide if dx else 0)
    inside = label == 4
    half = between(rng, 0.75, 0.95) if inside else between(rng, 0.38, 0.5)
    corners = [
        (-half - x, -half - y),
        (half - x, -half - y),
        (half - x, half - y),
        (-half - x, half - y),
    ]
    pen = Pen().line([*corners, corners[0]], between(rng, 0.14, 0.2))
    pen.disc((x, y), between(rng, 0.3, 0.4) if inside else between(rng, 0.36, 0.48))
    canvas = place(rng, pen.image, style, size=(16, 20), shear=0.08)
    return paint(clutter(rng, ground(rng, style), style), to_mask(canvas), style.ink)
