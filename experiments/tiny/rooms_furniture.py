"""Furniture of the generated rooms, built of boxes, with surfaces typical of its class.

A piece has axes of its own: x to the right, y to its back (which goes to the wall), z up, from the
middle of its footprint on the floor. What hangs on a wall starts at its own middle instead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from experiments.tiny.rooms_paint import PATTERNS, Colour, Paint

CLASSES = (
    "bed", "books", "ceiling", "chair", "floor", "furniture", "objects", "picture", "sofa",
    "table", "tv", "wall", "window",
)  # fmt: skip  # NYUv2's thirteen, in their order


class Look(NamedTuple):
    """What surfaces of one material look like."""

    patterns: tuple[str, ...]
    bases: tuple[Colour, ...]
    spread: float = 0.05  # of the colours
    scales: tuple[float, float] = (0.1, 0.4)
    contrast: float = 0.75  # brightness of the second colour, of the first
    glow: float = 0.0


_BRIGHT = (
    (0.75, 0.2, 0.15), (0.15, 0.35, 0.7), (0.2, 0.55, 0.3), (0.85, 0.65, 0.15), (0.5, 0.2, 0.5),
    (0.85, 0.85, 0.8), (0.12, 0.12, 0.14), (0.2, 0.6, 0.65),
)  # fmt: skip
_WOODS = (
    (0.5, 0.33, 0.18), (0.38, 0.24, 0.13), (0.68, 0.5, 0.32), (0.82, 0.8, 0.76), (0.22, 0.16, 0.12),
)  # fmt: skip
_CLOTHS = (
    (0.6, 0.55, 0.48), (0.35, 0.3, 0.28), (0.3, 0.38, 0.5), (0.55, 0.25, 0.2), (0.45, 0.5, 0.38),
)  # fmt: skip

LOOKS: dict[str, Look] = {
    "wall": Look(
        ("plain", "plain", "plain", "stripes"),
        ((0.86, 0.83, 0.75), (0.74, 0.8, 0.85), (0.82, 0.74, 0.62), (0.9, 0.9, 0.87),
         (0.7, 0.77, 0.68)),
        contrast=0.93,
    ),
    "ceiling": Look(("plain",), ((0.93, 0.93, 0.91), (0.88, 0.87, 0.84)), 0.02, contrast=0.95),
    "floor": Look(
        ("planks", "planks", "tiles", "cloth"),
        ((0.55, 0.38, 0.22), (0.6, 0.55, 0.5), (0.42, 0.28, 0.18), (0.5, 0.42, 0.36)),
        scales=(0.1, 0.4), contrast=0.8,
    ),
    "bedding": Look(
        ("cloth", "checks", "stripes"), (*_BRIGHT, (0.8, 0.75, 0.7)), scales=(0.08, 0.25)
    ),
    "linen": Look(("plain", "cloth"), ((0.92, 0.92, 0.9), (0.85, 0.8, 0.75)), contrast=0.9),
    "wood": Look(("wood",), _WOODS, 0.03, scales=(0.3, 0.8)),
    "upholstery": Look(("cloth", "plain"), _CLOTHS),
    "seat": Look(("plain", "wood", "cloth"), (*_WOODS, *_BRIGHT[:4])),
    "screen": Look(("screen",), ((0.05, 0.05, 0.06),), 0.01, contrast=6, glow=0.25),
    "pane": Look(("pane",), ((0.9, 0.9, 0.88), (0.5, 0.36, 0.22)), scales=(0.3, 0.6), glow=1.0),
    "canvas": Look(("canvas",), _BRIGHT, 0.1, scales=(0.1, 0.3)),
    "books": Look(("spines",), _BRIGHT, 0.1, scales=(0.03, 0.06)),
    "thing": Look(("plain", "cloth", "checks", "stripes"), _BRIGHT, 0.1, scales=(0.03, 0.1)),
    "shade": Look(("plain",), ((0.95, 0.88, 0.7), (0.9, 0.6, 0.4)), glow=0.8),
}  # fmt: skip

# Patterns that are nobody's own, for surfaces of any look.
_COMMON = ("plain", "wood", "planks", "tiles", "stripes", "cloth", "checks")


def draw_paint(rng: np.random.Generator, kind: str, *, broad: bool) -> Paint:
    """Draws a surface.

    Args:
        rng: generator.
        kind: a name in `LOOKS`.
        broad: any colours, and any common pattern where the look has one, instead of typical ones.
    """
    look = LOOKS[kind]
    pattern = look.patterns[rng.integers(len(look.patterns))]
    base = np.array(look.bases[rng.integers(len(look.bases))])
    base = base + rng.normal(0, look.spread, 3) + rng.normal(0, look.spread)
    second = base * look.contrast
    if kind == "pane":
        second = np.array([0.72, 0.85, 1.0]) * rng.uniform(0.7, 1.1)
    elif kind in ("canvas", "books"):  # another colour, not a shade of the first
        second = np.array(look.bases[rng.integers(len(look.bases))])
    if broad:
        if pattern in _COMMON and rng.random() < 0.6:
            pattern = _COMMON[rng.integers(len(_COMMON))]
        if kind not in ("screen", "pane"):
            base = rng.uniform(0.05, 0.95, 3)
            second = base + rng.uniform(0.2, 0.8) * (rng.uniform(0.05, 0.95, 3) - base)
    first, other = (_colour(np.clip(one, 0.02, 1)) for one in (base, second))
    assert pattern in PATTERNS
    scale = float(rng.uniform(*look.scales))
    return Paint(pattern, (first, other), scale, int(rng.integers(1 << 30)), look.glow)


def _colour(rgb: np.ndarray) -> Colour:
    red, green, blue = (float(x) for x in rgb)
    return red, green, blue


class Part(NamedTuple):
    """One box of a piece, in the piece's axes; `paint` is an index into the piece's paints."""

    centre: tuple[float, float, float]
    half: tuple[float, float, float]
    label: int
    paint: int
    shades: bool = True


class Piece(NamedTuple):
    """A piece of furniture.

    Attributes:
        parts: its boxes.
        paints: its surfaces.
        half: half its footprint; of what hangs on a wall, half its width and depth.
        height: of its top; of what hangs, half its height.
    """

    parts: list[Part]
    paints: list[Paint]
    half: tuple[float, float]
    height: float


class Maker:
    """Draws pieces with one generator and one kind of look."""

    def __init__(self, rng: np.random.Generator, *, broad: bool):
        self.rng, self.broad = rng, broad

    def size(self, low: float, high: float) -> float:
        """A length in metres."""
        return float(self.rng.uniform(low, high))

    def paints(self, *kinds: str) -> list[Paint]:
        """A surface of each kind."""
        return [draw_paint(self.rng, kind, broad=self.broad) for kind in kinds]

    def piece(self, kind: str) -> Piece:
        """A piece of a kind in `PIECES`."""
        return PIECES[kind](self)


def _label(name: str) -> int:
    return CLASSES.index(name)


def _legs(w: float, d: float, top: float, label: int, paint: int, r: float = 0.025) -> list[Part]:
    return [
        Part((x * (w - r), y * (d - r), top / 2), (r, r, top / 2), label, paint, shades=False)
        for x in (-1, 1)
        for y in (-1, 1)
    ]


def _bed(m: Maker) -> Piece:
    w, d, top, k = m.size(0.5, 0.95), 1.02, m.size(0.42, 0.6), _label("bed")
    parts = [
        Part((0, 0, top / 2 - 0.1), (w, d, top / 2 - 0.1), k, 1),
        Part((0, -0.02, top - 0.1), (w + 0.02, d, 0.1), k, 0),
        Part((0, d - 0.03, top / 2 + 0.25), (w, 0.03, top / 2 + 0.25), k, 1),
    ]
    for x in (-0.5, 0.5) if w > 0.65 else (0,):
        parts.append(Part((x * w, d - 0.28, top + 0.06), (0.3, 0.2, 0.06), k, 2, shades=False))
    return Piece(parts, m.paints("bedding", "wood", "linen"), (w + 0.02, d), top)


def _seats(m: Maker, w: float, label: int) -> Piece:
    """Sofas and armchairs."""
    d, seat, back = m.size(0.4, 0.48), m.size(0.38, 0.46), m.size(0.75, 0.95)
    arm = m.size(0.08, 0.12)
    parts = [
        Part((0, 0, seat / 2), (w, d, seat / 2), label, 0),
        Part((0, d - 0.1, back / 2), (w, 0.1, back / 2), label, 0),
        Part((arm - w, 0, seat / 2 + 0.1), (arm, d, seat / 2 + 0.1), label, 0),
        Part((w - arm, 0, seat / 2 + 0.1), (arm, d, seat / 2 + 0.1), label, 0),
    ]
    if m.rng.random() < 0.5:
        x = float(m.rng.uniform(-0.5, 0.5)) * w
        parts.append(Part((x, d - 0.26, seat + 0.15), (0.18, 0.06, 0.15), label, 1, shades=False))
    return Piece(parts, m.paints("upholstery", "bedding"), (w, d), seat)


def _sofa(m: Maker) -> Piece:
    return _seats(m, m.size(0.75, 1.15), _label("sofa"))


def _armchair(m: Maker) -> Piece:
    return _seats(m, m.size(0.38, 0.48), _label("chair"))


def _chair(m: Maker) -> Piece:
    w, d, seat, back = m.size(0.2, 0.25), m.size(0.2, 0.25), m.size(0.42, 0.48), m.size(0.4, 0.55)
    k = _label("chair")
    parts = [
        Part((0, 0, seat - 0.03), (w, d, 0.03), k, 0),
        Part((0, d - 0.02, seat + back / 2), (w, 0.02, back / 2), k, 0),
        *_legs(w, d, seat - 0.06, k, 1),
    ]
    return Piece(parts, m.paints("seat", "wood"), (w, d), seat)


def _stool(m: Maker) -> Piece:
    w, top, k = m.size(0.17, 0.22), m.size(0.45, 0.7), _label("chair")
    parts = [Part((0, 0, top - 0.03), (w, w, 0.03), k, 0), *_legs(w, w, top - 0.06, k, 1)]
    return Piece(parts, m.paints("seat", "wood"), (w, w), top)


def _table_of(m: Maker, w: float, d: float, top: float) -> Piece:
    k = _label("table")
    parts = [
        Part((0, 0, top - 0.025), (w, d, 0.025), k, 0),
        *_legs(w, d, top - 0.05, k, 0, r=0.035),
    ]
    return Piece(parts, m.paints("wood"), (w, d), top)


def _table(m: Maker) -> Piece:
    return _table_of(m, m.size(0.5, 0.85), m.size(0.38, 0.5), m.size(0.7, 0.78))


def _low_table(m: Maker) -> Piece:
    return _table_of(m, m.size(0.4, 0.6), m.size(0.25, 0.38), m.size(0.36, 0.46))


def _desk(m: Maker) -> Piece:
    piece = _table_of(m, m.size(0.55, 0.8), m.size(0.3, 0.38), m.size(0.7, 0.76))
    (w, d), top = piece.half, piece.height
    drawers = Part(
        (w - 0.2, 0, top / 2 - 0.02), (0.18, d - 0.02, top / 2 - 0.03), _label("table"), 0
    )
    return piece._replace(parts=[*piece.parts, drawers])


def _box_piece(m: Maker, w: float, d: float, top: float) -> Piece:
    """Cupboards: a body, and doors a little in front of it with gaps between."""
    k, doors = _label("furniture"), int(m.rng.integers(2, 4))
    parts = [Part((0, 0.01, top / 2), (w, d - 0.01, top / 2), k, 0)]
    step = 2 * w / doors
    for i in range(doors):
        x = -w + (i + 0.5) * step
        parts.append(
            Part(
                (x, 0.01 - d, top / 2), (step / 2 - 0.02, 0.012, top / 2 - 0.05), k, 1, shades=False
            )
        )
    return Piece(parts, m.paints("wood", "wood"), (w, d), top)


def _cabinet(m: Maker) -> Piece:
    return _box_piece(m, m.size(0.25, 0.7), m.size(0.2, 0.28), m.size(0.45, 0.95))


def _wardrobe(m: Maker) -> Piece:
    return _box_piece(m, m.size(0.4, 0.75), m.size(0.27, 0.33), m.size(1.7, 2.1))


def _bookshelf(m: Maker) -> Piece:
    w, d, top = m.size(0.35, 0.55), m.size(0.14, 0.18), m.size(1.2, 2.0)
    shelves = int(m.rng.integers(3, 6))
    gap, k = (top - 0.03) / shelves, _label("furniture")
    parts = [
        Part((0, d - 0.01, top / 2), (w, 0.01, top / 2), k, 0),
        Part((0.015 - w, 0, top / 2), (0.015, d, top / 2), k, 0),
        Part((w - 0.015, 0, top / 2), (0.015, d, top / 2), k, 0),
    ]
    for i in range(shelves + 1):
        parts.append(Part((0, 0, i * gap + 0.015), (w, d, 0.015), k, 0, shades=False))
    for i in range(shelves):
        full = m.size(0.4, 1.0) * (w - 0.04)
        tall = m.size(0.55, 0.85) * (gap - 0.03) / 2
        x = m.size(-1, 1) * (w - 0.03 - full)
        z = i * gap + 0.03 + tall
        name, paint = ("books", 1 + i % 2) if m.rng.random() < 0.85 else ("objects", 3)
        half = (full if name == "books" else full / 3, d - 0.06, tall)
        parts.append(Part((x, -0.01, z), half, _label(name), paint, shades=False))
    return Piece(parts, m.paints("wood", "books", "books", "thing"), (w, d), top)


def _books(m: Maker) -> Piece:
    """A pile, or a row."""
    k = _label("books")
    if m.rng.random() < 0.5:
        w, d, tall = m.size(0.15, 0.3), m.size(0.08, 0.11), m.size(0.11, 0.16)
        return Piece([Part((0, 0, tall), (w, d, tall), k, 0)], m.paints("books"), (w, d), 2 * tall)
    w, d, count = m.size(0.14, 0.2), m.size(0.1, 0.14), int(m.rng.integers(3, 8))
    parts = []
    for i in range(count):
        x, y = m.size(-0.02, 0.02), m.size(-0.02, 0.02)
        half = (w * m.size(0.8, 1), d * m.size(0.8, 1), 0.019)
        parts.append(Part((x, y, 0.02 + 0.04 * i), half, k, i % 3, shades=False))
    return Piece(parts, m.paints("bedding", "bedding", "bedding"), (w, d), 0.04 * count)


def _tv(m: Maker) -> Piece:
    w = m.size(0.35, 0.6)
    h, k = 0.58 * w, _label("tv")
    parts = [
        Part((0, 0, 0.015), (0.4 * w, 0.09, 0.015), k, 1, shades=False),
        Part((0, 0.02, 0.05), (0.05, 0.02, 0.05), k, 1, shades=False),
        Part((0, 0, 0.07 + h), (w, 0.035, h), k, 0),
    ]
    return Piece(parts, [*m.paints("screen"), _DARK], (w, 0.1), 0.07 + 2 * h)


_DARK = Paint("plain", ((0.06, 0.06, 0.07), (0.04, 0.04, 0.05)))


def _lamp(m: Maker) -> Piece:
    tall, r, k = m.size(0.35, 0.6), m.size(0.11, 0.18), _label("objects")
    parts = [
        Part((0, 0, 0.01), (0.07, 0.07, 0.01), k, 0, shades=False),
        Part((0, 0, tall / 2), (0.015, 0.015, tall / 2), k, 0, shades=False),
        Part((0, 0, tall), (r, r, 0.6 * r), k, 1, shades=False),
    ]
    return Piece(parts, m.paints("thing", "shade"), (r, r), tall)


def _thing(m: Maker) -> Piece:
    """A carton, bin, bag, vase or toy."""
    w, d, tall = m.size(0.07, 0.2), m.size(0.07, 0.18), m.size(0.08, 0.24)
    parts = [Part((0, 0, tall), (w, d, tall), _label("objects"), 0)]
    if m.rng.random() < 0.5:
        parts.append(
            Part(
                (0, 0, 2 * tall + 0.03),
                (0.6 * w, 0.6 * d, 0.03),
                _label("objects"),
                1,
                shades=False,
            )
        )
    return Piece(parts, m.paints("thing", "thing"), (w, d), 2 * tall)


_THIN = 0.01  # half a frame: thinner than the gap between furniture and the wall


def _hung(m: Maker, name: str, paint: str, w: float, h: float) -> Piece:
    part = Part((0, 0, 0), (w, _THIN, h), _label(name), 0, shades=False)
    return Piece([part], m.paints(paint), (w, _THIN), h)


def _picture(m: Maker) -> Piece:
    return _hung(m, "picture", "canvas", m.size(0.25, 0.6), m.size(0.2, 0.45))


def _window(m: Maker) -> Piece:
    return _hung(m, "window", "pane", m.size(0.4, 0.9), m.size(0.4, 0.65))


PIECES: dict[str, Callable[[Maker], Piece]] = {
    "bed": _bed,
    "sofa": _sofa,
    "armchair": _armchair,
    "chair": _chair,
    "stool": _stool,
    "table": _table,
    "low table": _low_table,
    "desk": _desk,
    "cabinet": _cabinet,
    "wardrobe": _wardrobe,
    "bookshelf": _bookshelf,
    "books": _books,
    "tv": _tv,
    "lamp": _lamp,
    "thing": _thing,
    "picture": _picture,
    "window": _window,
}
HUNG = ("picture", "window")
SMALL = ("books", "tv", "lamp", "thing")  # they stand on something
