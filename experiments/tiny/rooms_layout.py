"""Where things stand in the generated rooms, and from where the camera looks at them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from experiments.tiny.rooms_furniture import HUNG, SMALL, Maker, Piece
from experiments.tiny.rooms_paint import Light, Paint
from experiments.tiny.rooms_render import Box, Camera

_TRIES = 12  # places tried for a piece before it is left out
_GAP = 0.04  # metres between furniture and the wall

# kind → pieces: which come always, and which with what chance
_ROOMS: dict[str, tuple[tuple[str, ...], tuple[tuple[str, float], ...]]] = {
    "bedroom": (
        ("bed", "cabinet", "picture", "window", "thing"),
        (("wardrobe", 0.7), ("chair", 0.5), ("desk", 0.4), ("bookshelf", 0.3), ("picture", 0.5),
         ("thing", 0.6), ("armchair", 0.2)),
    ),
    "living room": (
        ("sofa", "low table", "cabinet", "window", "picture", "picture"),
        (("sofa", 0.3), ("bookshelf", 0.6), ("armchair", 0.6), ("picture", 0.5), ("thing", 0.6),
         ("cabinet", 0.3)),
    ),
    "office": (
        ("desk", "chair", "bookshelf", "window", "thing"),
        (("desk", 0.5), ("chair", 0.6), ("cabinet", 0.6), ("picture", 0.6), ("thing", 0.7),
         ("wardrobe", 0.3), ("sofa", 0.2)),
    ),
    "dining room": (
        ("table", "cabinet", "picture", "window", "picture"),
        (("chair", 0.5), ("stool", 0.3), ("bookshelf", 0.3), ("wardrobe", 0.3), ("picture", 0.5),
         ("thing", 0.5), ("sofa", 0.2)),
    ),
}  # fmt: skip

# With what chance a piece stands away from the walls.
_IN_THE_OPEN = {
    "table": 1.0, "low table": 1.0, "thing": 0.6, "chair": 0.6, "stool": 0.6, "armchair": 0.6,
}  # fmt: skip

# What stands on what, with what chance.
_ON_TOP: dict[str, tuple[tuple[str, float], ...]] = {
    "cabinet": (("tv", 0.6), ("lamp", 0.5), ("books", 0.5), ("thing", 0.5)),
    "desk": (("tv", 0.7), ("books", 0.7), ("lamp", 0.4), ("thing", 0.5)),
    "table": (("books", 0.6), ("thing", 0.7), ("thing", 0.5)),
    "low table": (("books", 0.7), ("thing", 0.6)),
    "wardrobe": (("thing", 0.4),),
}


class Stage(NamedTuple):
    """A furnished room, its light and the camera in it.

    Attributes:
        room: width, length and height in metres.
        boxes: what stands in it.
        paints: of the room's six sides, then of the boxes.
        light: of the room.
        camera: that looks at it.
    """

    room: tuple[float, float, float]
    boxes: list[Box]
    paints: list[Paint]
    light: Light
    camera: Camera


class _Place(NamedTuple):
    x: float
    y: float
    z: float
    yaw: float


class _Floor:
    """A room being furnished."""

    def __init__(self, maker: Maker, room: tuple[float, float, float], camera: Camera):
        self.maker, self.rng, self.room, self.camera = maker, maker.rng, room, camera
        self.boxes: list[Box] = []
        wall, floor, ceiling = maker.paints("wall", "floor", "ceiling")
        self.paints = [wall, wall, wall, wall, floor, ceiling]
        x, y, _ = camera.place
        self._taken = [(x - 0.45, 0.0, x + 0.45, y + 0.7)]
        self._hung: dict[float, list[tuple[float, float]]] = {}

    def put(self, piece: Piece, place: _Place) -> None:
        """Adds a piece."""
        first = len(self.paints)
        self.paints += piece.paints
        s, c = np.sin(place.yaw), np.cos(place.yaw)
        for part in piece.parts:
            x, y, z = part.centre
            centre = (
                float(place.x + c * x - s * y),
                float(place.y + s * x + c * y),
                float(place.z + z),
            )
            self.boxes.append(
                Box(centre, part.half, place.yaw, part.label, first + part.paint, part.shades)
            )

    def at_wall(self, piece: Piece) -> _Place | None:
        """A free place with the back to a wall."""
        w, d = piece.half
        for _ in range(_TRIES):
            place = self._along_wall(w, d + _GAP)
            if place is not None and self._take(piece, place):
                return place
        return None

    def in_the_open(self, piece: Piece) -> _Place | None:
        """A free place in the room."""
        width, length, _ = self.room
        for _ in range(_TRIES):
            r = float(np.hypot(*piece.half))
            if 2 * r + 1.0 > min(width, length - self.camera.place[1] - 1):
                return None
            place = _Place(
                float(self.rng.uniform(r + 0.4, width - r - 0.4)),
                float(self.rng.uniform(self.camera.place[1] + 1 + r, length - r - 0.4)),
                0.0,
                float(self.rng.uniform(-np.pi, np.pi)),
            )
            if self._take(piece, place):
                return place
        return None

    def beside(self, piece: Piece, table: Piece, at: _Place) -> _Place | None:
        """A free place at one of the long sides of a table, facing it."""
        for _ in range(_TRIES):
            side = 1 if self.rng.random() < 0.5 else -1
            x = float(self.rng.uniform(-0.6, 0.6)) * table.half[0]
            y = side * (table.half[1] + piece.half[1] * float(self.rng.uniform(0.4, 1.2)))
            s, c = np.sin(at.yaw), np.cos(at.yaw)
            turn = at.yaw + (0 if side > 0 else np.pi) + float(self.rng.normal(0, 0.25))
            place = _Place(at.x + c * x - s * y, at.y + s * x + c * y, 0.0, turn)
            if self._take(piece, place, room_only=True):
                return place
        return None

    def on_wall(self, piece: Piece) -> _Place | None:
        """A free place on a wall, clear of what else hangs there."""
        w, d = piece.half
        half_height = piece.height
        for _ in range(_TRIES):
            place = self._along_wall(w, d)
            low, high = half_height + 0.9, self.room[2] - half_height - 0.15
            if place is None or low >= high:
                continue
            along = place.x if place.yaw == 0 else place.y
            hung = self._hung.setdefault(place.yaw, [])
            if all(along + w < a or along - w > b for a, b in hung):
                hung.append((along - w - 0.1, along + w + 0.1))
                return place._replace(z=min(high, max(low, float(self.rng.normal(1.55, 0.12)))))
        return None

    def _along_wall(self, w: float, d: float) -> _Place | None:
        width, length, _ = self.room
        wall, share = self.rng.random(2)
        near = self.camera.place[1] + 0.6
        if wall < 0.46:
            if 2 * w > width:
                return None
            return _Place(w + share * (width - 2 * w), length - d, 0.0, 0.0)
        if 2 * w > length - near:
            return None
        y = near + w + share * (length - near - 2 * w)
        if wall < 0.73:
            return _Place(d, y, 0.0, np.pi / 2)
        return _Place(width - d, y, 0.0, -np.pi / 2)

    def _take(self, piece: Piece, place: _Place, *, room_only: bool = False) -> bool:
        """Takes the floor beneath a piece, unless it is taken (or is not in the room)."""
        s, c = abs(np.sin(place.yaw)), abs(np.cos(place.yaw))
        dx, dy = c * piece.half[0] + s * piece.half[1], s * piece.half[0] + c * piece.half[1]
        left, near, right, far = place.x - dx, place.y - dy, place.x + dx, place.y + dy
        if min(left, near) < 0 or right > self.room[0] or far > self.room[1]:
            return False
        others = self._taken[:1] if room_only else self._taken
        if any(left < r and right > le and near < f and far > n for le, n, r, f in others):
            return False
        self._taken.append((left, near, right, far))
        return True


def furnished(rng: np.random.Generator) -> Stage:
    """Draws a room as people furnish it, seen from one end."""
    maker = Maker(rng, broad=False)
    room = (
        float(rng.uniform(2.8, 4.4)), float(rng.uniform(3.2, 5.2)), float(rng.uniform(2.35, 2.9))
    )  # fmt: skip
    camera = Camera(
        (room[0] * float(rng.uniform(0.3, 0.7)), float(rng.uniform(0.25, 0.8)),
         float(rng.uniform(1.1, 1.7))),
        float(rng.uniform(-0.6, 0.6)), float(rng.uniform(-0.34, 0.07)), float(rng.normal(0, 0.02)),
    )  # fmt: skip
    floor = _Floor(maker, room, camera)
    always, sometimes = _ROOMS[list(_ROOMS)[rng.integers(len(_ROOMS))]]
    names = [*always, *(name for name, chance in sometimes if rng.random() < chance)]
    for name in names:
        piece = maker.piece(name)
        if name in HUNG:
            place = floor.on_wall(piece)
        elif rng.random() < _IN_THE_OPEN.get(name, 0):
            place = floor.in_the_open(piece)
        else:
            place = floor.at_wall(piece)
        if place is not None:
            floor.put(piece, place)
            _furnish_top(floor, name, piece, place)
    return Stage(room, floor.boxes, floor.paints, _draw_light(rng, room), camera)


def _furnish_top(floor: _Floor, name: str, piece: Piece, place: _Place) -> None:
    """Puts things on a piece, side by side, and chairs around it."""
    rng, maker = floor.rng, floor.maker
    here = [kind for kind, chance in _ON_TOP.get(name, ()) if rng.random() < chance]
    free = -piece.half[0]
    for kind in here:
        small = maker.piece(kind)
        w = small.half[0]
        if free + 2 * w > piece.half[0]:
            break
        spare = (piece.half[0] - free - 2 * w) / 2
        x = free + w + float(rng.uniform(0, spare))
        free = x + w
        y = max(0.0, piece.half[1] - small.half[1] - 0.04) * float(rng.uniform(-0.3, 1))
        turn = float(rng.normal(0, 0.3)) if kind != "tv" else float(rng.normal(0, 0.1))
        s, c = np.sin(place.yaw), np.cos(place.yaw)
        spot = _Place(
            float(place.x + c * x - s * y), float(place.y + s * x + c * y),
            place.z + piece.height + 0.002, place.yaw + turn,
        )  # fmt: skip
        floor.put(small, spot)
    if name in ("table", "desk"):
        for _ in range(int(rng.integers(1, 4)) if name == "table" else int(rng.random() < 0.5)):
            chair = maker.piece("chair")
            spot = floor.beside(chair, piece, place)
            if spot is not None:
                floor.put(chair, spot)


def _draw_light(rng: np.random.Generator, room: tuple[float, float, float]) -> Light:
    width, length, height = room
    lamps = tuple(
        (
            float(rng.uniform(0.25, 0.75)) * width,
            float(rng.uniform(0.25, 0.75)) * length,
            height - float(rng.uniform(0.15, 0.6)),
            float(rng.uniform(0.6, 1.0)) / (1 + i),
        )
        for i in range(int(rng.integers(1, 3)))
    )
    warmth = float(rng.normal(0, 0.06))
    tint = (1 + warmth, 1.0, 1 - warmth)
    return Light(float(rng.uniform(0.42, 0.65)), lamps, tint)


def portrait(rng: np.random.Generator, kind: str) -> Stage:
    """Draws one piece in the middle of a bare room, in any colours, seen from somewhere near.

    Args:
        rng: generator.
        kind: of the piece, a name in `rooms_furniture.PIECES`.
    """
    maker = Maker(rng, broad=True)
    room = (float(rng.uniform(5, 7)), float(rng.uniform(5, 7)), float(rng.uniform(2.6, 3.2)))
    piece = maker.piece(kind)
    w, d = piece.half
    if kind in HUNG:
        place = _Place(room[0] / 2, room[1] - d, float(rng.uniform(1.2, 1.7)), 0.0)
        middle, radius = (place.x, place.y, place.z), float(np.hypot(w, piece.height))
        bearing = float(rng.uniform(-0.8, 0.8))
    else:
        rise = float(rng.uniform(0.3, 0.8)) if kind in SMALL else 0.0
        yaw = float(rng.uniform(-np.pi, np.pi))
        place = _Place(room[0] / 2, room[1] / 2, rise, yaw)
        middle = (place.x, place.y, place.z + piece.height / 2)
        radius = float(np.sqrt(w * w + d * d + (piece.height / 2) ** 2))
        # Mostly from the front, where furniture differs most.
        bearing = yaw + float(rng.normal(0, 0.5))
    camera = _looking_at(rng, middle, radius, bearing, room)
    floor = _Floor(maker, room, camera)
    floor.put(piece, place)
    if kind in SMALL:
        _pedestal(floor, piece, place)
    return Stage(room, floor.boxes, floor.paints, _draw_light(rng, room), camera)


def _pedestal(floor: _Floor, piece: Piece, place: _Place) -> None:
    half = (piece.half[0] + 0.1, piece.half[1] + 0.1, place.z / 2)
    floor.paints += floor.maker.paints("wood")
    centre = (place.x, place.y, half[2] - 0.002)
    floor.boxes.append(Box(centre, half, place.yaw, 0, len(floor.paints) - 1))


def _looking_at(
    rng: np.random.Generator,
    middle: tuple[float, float, float],
    radius: float,
    bearing: float,
    room: Sequence[float],
) -> Camera:
    """A camera at a distance of a few radii, on the side that `bearing` turns to, in the room."""
    away = radius * float(rng.uniform(1.4, 2.4)) + 0.15
    x = float(np.clip(middle[0] + away * np.sin(bearing), 0.1, room[0] - 0.1))
    y = float(np.clip(middle[1] - away * np.cos(bearing), 0.1, room[1] - 0.1))
    z = float(np.clip(middle[2] + away * rng.uniform(0.05, 0.6), 0.2, room[2] - 0.2))
    dx, dy, dz = middle[0] - x, middle[1] - y, middle[2] - z
    jitter = rng.normal(0, 0.06, 3)
    return Camera(
        (x, y, z), float(np.arctan2(-dx, dy) + jitter[0]),
        float(np.arctan2(dz, np.hypot(dx, dy)) + jitter[1]), float(jitter[2]),
    )  # fmt: skip
