"""Four-legged animals: a table of proportions, drawn in profile or facing the camera."""

from typing import NamedTuple

import numpy as np
from PIL import Image

from experiments.tiny.broad_scenes import backdrop
from experiments.tiny.broad_tools import Colour, Pen, Rng, camera, compose, near, pick, scaled


class Beast(NamedTuple):
    """Proportions of a four-legged animal in units of the picture's half side."""

    coats: tuple[Colour, ...]
    length: float = 0.5
    height: float = 0.24
    leg: float = 0.45
    thick: float = 0.07
    neck: float = 0.25
    head: float = 0.19
    snout: float = 0.16
    ear: str = "point"
    tail: str = "thin"
    coat: str = "plain"
    extra: str = ""
    grounds: tuple[str, ...] = ("grass", "field", "forest")


_HOME = ("grass", "indoors", "studio", "field", "room")
BEASTS: dict[str, Beast] = {
    "cat": Beast(((60, 58, 60), (180, 130, 80), (200, 196, 190), (130, 120, 110)), 0.42, 0.2, 0.3,
    0.06, 0.12,
                 0.2, 0.06, "point", "up", "bands", "whiskers", _HOME),
    "dog": Beast(((190, 150, 100), (60, 44, 34), (226, 216, 200), (140, 96, 60)), 0.44, 0.22, 0.36,
    0.075, 0.18,
                 0.19, 0.2, "flop", "up", "patch", "", _HOME),
    "horse": Beast(((96, 56, 32), (140, 90, 52), (48, 36, 30), (206, 200, 190)), 0.5, 0.24, 0.58,
    0.06, 0.45,
                   0.14, 0.26, "point", "long", "plain", "mane", ("grass", "field", "sand")),
    "deer": Beast(((156, 106, 66), (176, 130, 86)), 0.44, 0.2, 0.55, 0.042, 0.4, 0.13, 0.18,
    "long", "short", "belly",
                  "antlers", ("grass", "forest", "field", "snow")),
    "elephant": Beast(((118, 114, 112), (140, 128, 118)), 0.56, 0.4, 0.44, 0.13, 0.1, 0.27, 0.0,
    "huge", "thin",
                      "plain", "trunk", ("sand", "grass", "field")),
    "bear": Beast(((70, 46, 30), (30, 26, 26), (224, 220, 208)), 0.54, 0.34, 0.34, 0.13, 0.14,
    0.22, 0.14, "round",
                  "none", "plain", "", ("forest", "grass", "rock", "snow")),
    "cattle": Beast(((230, 226, 220), (110, 66, 40), (40, 36, 34)), 0.56, 0.3, 0.4, 0.075, 0.2,
    0.18, 0.2, "side",
                    "thin", "patch", "horns", ("grass", "field")),
    "sheep": Beast(((224, 216, 200), (196, 186, 170)), 0.46, 0.32, 0.3, 0.05, 0.1, 0.14, 0.1,
    "side", "none", "wool",
                   "dark head", ("grass", "field", "snow")),
    "camel": Beast(((190, 148, 98), (166, 120, 76)), 0.5, 0.24, 0.56, 0.055, 0.48, 0.13, 0.18,
    "round", "thin",
                   "plain", "hump", ("sand", "sand", "rock")),
    "fox": Beast(((206, 104, 40), (190, 90, 44)), 0.42, 0.18, 0.32, 0.05, 0.16, 0.17, 0.18,
    "point", "bushy", "belly",
                 "", ("forest", "snow", "grass")),
    "wolf": Beast(((120, 116, 112), (80, 76, 74), (176, 168, 158)), 0.48, 0.22, 0.42, 0.06, 0.2,
    0.18, 0.2, "point",
                  "bushy", "belly", "", ("snow", "forest", "rock")),
    "lion": Beast(((196, 150, 92), (180, 136, 80)), 0.52, 0.25, 0.38, 0.085, 0.14, 0.2, 0.12,
    "round", "tuft", "plain",
                  "ruff", ("sand", "grass", "rock")),
    "tiger": Beast(((214, 130, 50), (224, 150, 76)), 0.54, 0.25, 0.36, 0.09, 0.12, 0.21, 0.1,
    "round", "thin",
                   "stripes", "", ("forest", "grass", "leaf")),
    "leopard": Beast(((208, 164, 98), (190, 150, 92)), 0.5, 0.22, 0.34, 0.075, 0.12, 0.18, 0.1,
    "round", "thin",
                     "spots", "", ("forest", "grass", "rock", "leaf")),
    "zebra": Beast(((232, 230, 226),), 0.48, 0.24, 0.5, 0.06, 0.38, 0.14, 0.22, "point", "thin",
    "stripes", "mane",
                   ("grass", "sand", "field")),
    "giraffe": Beast(((220, 180, 110),), 0.38, 0.22, 0.62, 0.05, 0.8, 0.11, 0.16, "side", "thin",
    "spots", "",
                     ("field", "grass", "sand")),
    "pig": Beast(((232, 172, 160), (214, 150, 140)), 0.5, 0.32, 0.26, 0.07, 0.06, 0.22, 0.12,
    "flop", "none", "plain",
                 "snout", ("grass", "sand", "road")),
    "rabbit": Beast(((150, 126, 104), (220, 214, 206), (96, 84, 76)), 0.34, 0.27, 0.18, 0.07, 0.08,
    0.2, 0.06,
                    "tall", "puff", "belly", "", ("grass", "field", "indoors", "snow")),
    "mouse": Beast(((130, 116, 106), (176, 150, 126), (220, 216, 214)), 0.34, 0.22, 0.1, 0.04, 0.0,
    0.17, 0.16, "round",
                   "worm", "belly", "", ("indoors", "studio", "leaf", "sand")),
    "hamster": Beast(((206, 150, 90), (220, 190, 150)), 0.34, 0.3, 0.08, 0.05, 0.0, 0.24, 0.06,
    "round", "none",
                     "belly", "", ("indoors", "studio", "sand")),
    "squirrel": Beast(((150, 84, 44), (116, 104, 92)), 0.3, 0.24, 0.16, 0.06, 0.12, 0.16, 0.1,
    "point", "plume",
                      "belly", "", ("forest", "grass", "leaf")),
    "skunk": Beast(((28, 28, 30),), 0.42, 0.22, 0.18, 0.06, 0.08, 0.15, 0.12, "round", "plume",
    "line", "",
                   ("grass", "forest", "leaf")),
    "raccoon": Beast(((116, 108, 98),), 0.42, 0.28, 0.22, 0.07, 0.08, 0.2, 0.12, "round", "ringed",
    "belly", "mask",
                     ("grass", "forest", "rock")),
    "porcupine": Beast(((70, 60, 52),), 0.46, 0.28, 0.14, 0.06, 0.05, 0.14, 0.14, "round", "none",
    "plain", "quills",
                       ("grass", "forest", "rock")),
}  # fmt: skip
_BEASTS = tuple(BEASTS.values())
_DARK: Colour = (24, 20, 20)


def _ear(pen: Pen, kind: str, x: float, y: float, r: float, c: Colour, side: float = 1) -> None:
    """One ear at the top of a head of radius r."""
    if kind == "point":
        pen.poly(((x - 0.45 * r, y), (x + side * 0.15 * r, y - 1.0 * r), (x + 0.45 * r, y)), c)
    elif kind == "flop":
        pen.oval(x + side * 0.3 * r, y + 0.5 * r, 0.32 * r, 0.7 * r, scaled(c, 0.75), side * -0.3)
    elif kind == "round":
        pen.oval(x, y - 0.15 * r, 0.42 * r, 0.42 * r, c)
    elif kind == "tall":
        pen.oval(x, y - 1.0 * r, 0.28 * r, 1.15 * r, c, side * 0.15)
    elif kind == "huge":
        pen.oval(x + side * 0.5 * r, y + 0.7 * r, 0.75 * r, 1.0 * r, scaled(c, 0.88))
    else:  # long, side
        pen.oval(x + side * 0.5 * r, y, 0.6 * r, 0.25 * r, c, side * -0.4)


def _tail(pen: Pen, b: Beast, c: Colour, rng: Rng) -> None:
    """The tail at the left end of the body."""
    x, y, w = -b.length * 0.92, -0.08, 0.05
    kinds = {
        "thin": ((x, y), (x - 0.12, y + 0.1), (x - 0.1, y + 0.4)), "long": ((x, y), (x - 0.15,
        y + 0.1), (x - 0.14, y + 0.5)),
        "up": ((x, y), (x - 0.2, y - 0.05), (x - 0.24, y - 0.38)), "bushy": ((x, y), (x - 0.2,
        y + 0.1), (x - 0.4, y + 0.2)),
        "tuft": ((x, y), (x - 0.16, y + 0.1), (x - 0.18, y + 0.42)), "short": ((x, y), (x - 0.1,
        y - 0.05)),
        "worm": ((x, y + 0.2), (x - 0.25, y + 0.3), (x - 0.5, y + 0.15)), "ringed": ((x, y),
        (x - 0.2, y + 0.05), (x - 0.45, y)),
        "plume": ((x, y + 0.15), (x - 0.2, y - 0.1), (x - 0.12, y - 0.6)),
    }  # fmt: skip
    if b.tail in kinds:
        w = {"bushy": 0.16, "plume": 0.28, "ringed": 0.13, "long": 0.1, "short": 0.08}.get(b.tail,
            0.05)  # fmt: skip
        points = np.array(kinds[b.tail]) + rng.normal(0, 0.02, (len(kinds[b.tail]), 2))
        pen.curve(points, w, c)
        if b.tail == "ringed":
            for t in (0.15, 0.28, 0.4):
                pen.line(((x - t, y - 0.08), (x - t, y + 0.1)), 0.05, _DARK)
        elif b.tail in ("tuft", "bushy"):
            pen.oval(
                points[-1, 0],
                points[-1, 1],
                0.07,
                0.07,
                _DARK if b.tail == "tuft" else (236, 230, 222),
            )
    elif b.tail == "puff":
        pen.oval(x, y + 0.1, 0.09, 0.09, (240, 236, 230))


def _markings(pen: Pen, b: Beast, c: Colour, rng: Rng, rx: float, ry: float) -> None:
    """Stripes, spots, patches on an oval trunk about the origin."""
    if b.coat in ("stripes", "bands"):
        ink = _DARK if b.coat == "stripes" else scaled(c, 0.7)
        for x in np.linspace(-0.85, 0.85, 8) * rx:
            h = ry * np.sqrt(1 - (x / rx) ** 2)
            pen.line(((x, -h), (x + 0.04, -0.1 * h), (x, 0.7 * h)), 0.035, ink)
    elif b.coat == "spots":
        r = rng.uniform(0.03, 0.06)
        for _ in range(16):
            a, t = rng.uniform(0, 6.3), np.sqrt(rng.random()) * 0.85
            pen.oval(rx * t * np.cos(a), ry * t * np.sin(a), r, r, scaled(c, 0.35))
    elif b.coat == "patch" and rng.random() < 0.6:
        for x in rng.uniform(-0.6, 0.6, 3):
            pen.oval(x * rx, rng.uniform(-0.3, 0.2) * ry, 0.3 * rx, 0.45 * ry, scaled(c,
                rng.choice([0.3, 1.6])))  # fmt: skip
    elif b.coat == "belly":
        pen.oval(0, ry * 0.6, rx * 0.7, ry * 0.35, scaled(c, 1.45))
    elif b.coat == "line":
        pen.curve(((-rx, -0.3 * ry), (0, -ry * 0.95), (rx, -0.3 * ry)), 0.1, (236, 236, 236))
    elif b.coat == "wool":
        for _ in range(9):
            a = rng.uniform(0, 6.3)
            pen.oval(0.8 * rx * np.cos(a), 0.75 * ry * np.sin(a), 0.14, 0.13, scaled(c,
                rng.uniform(0.85, 1.1)))  # fmt: skip


def _side_head(pen: Pen, b: Beast, c: Colour, x: float, y: float) -> None:
    """A head in profile looking right, at (x, y)."""
    r = b.head
    if b.extra == "ruff":
        pen.oval(x - 0.06, y + 0.05, r * 1.7, r * 1.75, scaled(c, 0.55))
    if b.extra == "antlers":
        for dx in (-0.1, 0.06):
            pen.line(((x, y - r), (x + dx, y - r - 0.3), (x + dx * 2.4, y - r - 0.42)), 0.035, (90,
                66, 44))  # fmt: skip
            pen.line(((x + dx, y - r - 0.2), (x + dx + 0.14, y - r - 0.3)), 0.03, (90, 66, 44))
    if b.extra == "horns":
        pen.curve(((x - 0.02, y - r * 0.8), (x + 0.08, y - r * 1.4), (x + 0.02, y - r * 1.8)),
            0.05, (220, 210, 190))  # fmt: skip
    fill = scaled(c, 0.3) if b.extra == "dark head" else c
    if b.ear != "huge":
        _ear(pen, b.ear, x - 0.3 * r, y - 0.7 * r, r, scaled(fill, 0.85), -1)
    pen.oval(x, y, r, r * 0.95, fill)
    if b.snout:
        pen.limb((x + 0.2 * r, y + 0.1 * r), (x + r * 0.7 + b.snout, y + 0.45 * r), r * 0.75,
            r * 0.42, fill)  # fmt: skip
        pen.oval(x + r * 0.7 + b.snout, y + 0.42 * r, r * 0.42, r * 0.42, scaled(fill, 0.9))
        pen.oval(x + r * 0.85 + b.snout, y + 0.25 * r, 0.035, 0.035, _DARK)
    if b.extra == "trunk":
        pen.curve(((x + 0.6 * r, y), (x + 1.2 * r, y + 0.5 * r), (x + 1.15 * r, y + 1.6 * r),
            (x + 1.4 * r, y + 2.2 * r)), 0.15, fill)  # fmt: skip
        _ear(pen, "huge", x - 0.3 * r, y - 0.5 * r, r, fill, -0.4)
        pen.line(((x + 0.8 * r, y + 0.5 * r), (x + 1.5 * r, y + 0.9 * r)), 0.05, (240, 234, 220))
    if b.extra == "mask":
        pen.oval(x + 0.4 * r, y - 0.05, 0.6 * r, 0.3 * r, _DARK)
    pen.oval(x + 0.3 * r, y - 0.15 * r, 0.035, 0.035, _DARK if b.extra not in ("mask",
        "dark head") else (230, 230, 220))  # fmt: skip


def _in_profile(pen: Pen, b: Beast, c: Colour, rng: Rng) -> None:
    """The animal from the side."""
    rx, ry = b.length, b.height * rng.uniform(0.9, 1.1)
    leg = b.leg * (0.35 if rng.random() < 0.15 else rng.uniform(0.85, 1.1))
    _tail(pen, b, c, rng)
    swing = rng.normal(0, 0.08, 4)
    for k, x in enumerate((-0.72, 0.62, -0.6, 0.74)):
        tone = scaled(c, 0.6 if k < 2 else 0.92)
        hip = (x * rx, ry * 0.35)
        pen.limb(hip, (x * rx + swing[k], ry * 0.6 + leg), b.thick * 1.4, b.thick * 0.75, tone)
    bowed = rng.random() < 0.25
    nx = rx * 0.85 + b.neck * (0.8 if bowed else 0.5)
    ny = 0.25 + 0.3 * b.neck if bowed else -ry * 0.4 - b.neck * 0.8
    if b.extra == "mane":
        pen.limb((rx * 0.5, -ry * 0.5), (nx - 0.1, ny - 0.05), 0.18, 0.1, scaled(c, 0.4))
    pen.limb((rx * 0.65, -ry * 0.15), (nx, ny), ry * 0.75, b.head * 0.62, c)
    pen.blob(((-rx, -0.2 * ry), (-rx * 0.7, -ry * 0.95), (0, -ry * 0.85), (rx * 0.7, -ry * 0.95),
        (rx, -0.1 * ry),
              (rx * 0.75, ry * 0.85), (0, ry * 0.9), (-rx * 0.75, ry * 0.85)), c)  # fmt: skip
    if b.extra == "hump":
        pen.oval(-0.05, -ry * 1.1, 0.2, 0.24, c)
    _markings(pen, b, c, rng, rx, ry)
    if b.extra == "quills":
        for a in rng.uniform(-2.9, -0.3, 26):
            u = np.array([np.cos(a), np.sin(a)])
            pen.line((u * (rx * 0.6, ry * 0.5), u * (rx * 1.1, ry * 1.6)), 0.03, pick(rng, ((200,
                190, 170), (50, 42, 36))))  # fmt: skip
    _side_head(pen, b, c, nx + b.head * 0.3, ny)


def _face_on(pen: Pen, b: Beast, c: Colour, rng: Rng) -> None:
    """The animal facing the camera: a large head before the trunk."""
    r = rng.uniform(0.46, 0.64)
    pen.oval(rng.normal(0, 0.12), 0.72, 0.55, 0.7, scaled(c, 0.85))
    if b.extra == "ruff":
        pen.oval(0, 0, r * 1.5, r * 1.5, scaled(c, 0.5))
    ears = scaled(c, 0.8)
    for side in (-1, 1):
        if b.extra in ("horns", "antlers"):
            reach = 1.6 if b.extra == "antlers" else 1.1
            pen.curve(((side * 0.3 * r, -0.7 * r), (side * 0.9 * r, -reach * r), (side * 0.8 * r,
                -1.3 * reach * r)), 0.07,
                      (190, 170, 140))  # fmt: skip
        if b.ear != "flop":
            _ear(pen, b.ear, side * 0.62 * r, -0.62 * r, r * 0.85, ears, side)
    narrow = 0.68 if b.snout > 0.17 else 0.95
    fill = scaled(c, 0.35) if b.extra == "dark head" else c
    pen.oval(0, 0, r * narrow, r * 0.92, fill)
    if b.coat in ("stripes", "bands"):
        for k in (-0.35, 0, 0.35):
            pen.line(((k * r, -0.85 * r), (k * 0.7 * r, -0.5 * r)), 0.06,
                _DARK if b.coat == "stripes" else scaled(c, 0.65))  # fmt: skip
        for side in (-1, 1):
            for y in (0.05, 0.3):
                pen.line(((side * 0.9 * r * narrow, y * r), (side * 0.55 * r, (y + 0.08) * r)),
                    0.05,
                         _DARK if b.coat == "stripes" else scaled(c, 0.65))  # fmt: skip
    if b.extra == "mask":
        pen.oval(0, -0.1 * r, 0.75 * r, 0.22 * r, _DARK)
    if b.extra == "trunk":
        pen.curve(((0, 0.1), (0.04, 0.6), (rng.normal(0, 0.15), 1.1)), 0.3, scaled(c, 0.9))
    else:
        drop = 0.4 + b.snout
        muzzle = pick(rng, (scaled(fill, 1.35), scaled(fill,
            0.85))) if b.extra != "snout" else scaled(c, 0.85)  # fmt: skip
        pen.oval(0, drop * r, (0.3 + b.snout * 0.5) * r, (0.24 + b.snout * 0.6) * r, muzzle)
        pen.oval(0, (drop - 0.1) * r, 0.13 * r, 0.09 * r, _DARK)
        pen.curve(((-0.2 * r, (drop + 0.2) * r), (0, (drop + 0.1) * r), (0.2 * r,
            (drop + 0.2) * r)), 0.035, _DARK)  # fmt: skip
    for side in (-1, 1):
        pen.oval(side * 0.36 * r * narrow, -0.15 * r, 0.12 * r, 0.11 * r, pick(rng, ((200, 190,
            90), (110, 80, 40), _DARK)))  # fmt: skip
        pen.oval(side * 0.36 * r * narrow, -0.15 * r, 0.07 * r, 0.09 * r, _DARK)
        if b.ear == "flop":
            _ear(pen, b.ear, side * 0.72 * r * narrow, -0.55 * r, r * 0.85, ears, side)
        if b.extra == "whiskers":
            for dy in (-0.05, 0.08):
                pen.line(((side * 0.2 * r, 0.42 * r), (side * r, (0.4 + dy * 2) * r)), 0.02, (230,
                    230, 230))  # fmt: skip


def draw_beast(rng: Rng, label: int) -> Image.Image:
    """A four-legged animal, in profile or facing the camera, where it lives."""
    b = _BEASTS[label]
    facing = rng.random() < 0.35
    large = 1.0 if facing else 0.62 / (0.3 + 0.7 * b.length)  # small animals are seen from nearer
    lowest = 0.65 if facing else 0.85
    pen = Pen(rng, scale=(lowest * large, (1.1 if facing else 1.3) * large), turn=0.1, shift=0.1)
    c = near(rng, pick(rng, b.coats), 14)
    (_face_on if facing else _in_profile)(pen, b, c, rng)
    grounds = tuple("studio" if g == "room" else g for g in b.grounds)
    out = compose(rng, backdrop(rng, *grounds), pen.image, relief=rng.uniform(0.3, 0.8),
        grain=0.09, patchy=0.09)  # fmt: skip
    return camera(rng, out)
