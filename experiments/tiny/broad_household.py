"""Household things and furniture, each from a short recipe in front view."""

from collections.abc import Callable

import numpy as np
from PIL import Image

from experiments.tiny.broad_scenes import backdrop
from experiments.tiny.broad_tools import (
    Colour,
    Pen,
    Rng,
    camera,
    compose,
    mirrored,
    near,
    pick,
    scaled,
    vivid,
)

Recipe = Callable[[Pen, Rng], None]
_DARK: Colour = (28, 26, 28)
_WOOD = ((150, 100, 60), (110, 70, 40), (196, 156, 110))


def _any(rng: Rng) -> Colour:
    return (
        vivid(rng, 0.4, 1.0)
        if rng.random() < 0.6
        else near(rng, pick(rng, ((230, 228, 224), (80, 80, 84))), 14)
    )


def _timber(rng: Rng) -> Colour:
    return near(rng, pick(rng, _WOOD), 14)


def _bottle(pen: Pen, rng: Rng) -> None:
    c, w = _any(rng), rng.uniform(0.22, 0.36)
    neck = rng.uniform(0.08, 0.13)
    pen.poly(mirrored(((-neck, -0.9), (-neck, -0.5), (-w, -0.2), (-w, 0.9))), c)
    pen.box(-neck - 0.02, -0.97, neck + 0.02, -0.84, pick(rng, (_DARK, _any(rng))))
    if rng.random() < 0.7:
        pen.box(-w, 0.05, w, 0.5, pick(rng, ((236, 232, 220), _any(rng))))
    pen.line(((-w * 0.6, -0.1), (-w * 0.6, 0.8)), 0.05, scaled(c, 1.6))


def _bowl(pen: Pen, rng: Rng) -> None:
    c, d = _any(rng), rng.uniform(0.45, 0.75)
    pen.blob(((-0.85, -0.15), (0.85, -0.15), (0.6, d * 0.7), (0, d), (-0.6, d * 0.7)), c)
    pen.oval(0, -0.15, 0.87, rng.uniform(0.16, 0.32), scaled(c, 1.25))
    pen.oval(0, -0.13, 0.76, 0.17, scaled(c, 0.6))


def _can(pen: Pen, rng: Rng) -> None:
    c, w = vivid(rng, 0.4), rng.uniform(0.35, 0.5)
    pen.oval(0, 0.72, w, 0.14, (150, 150, 154))
    for a, b, shade in ((-1, -0.4, 0.7), (-0.4, 0.3, 1.15), (0.3, 1, 0.8)):
        pen.box(a * w, -0.7, b * w, 0.72, scaled(c, shade))
    pen.box(
        -w,
        rng.uniform(-0.3, 0.0),
        w,
        rng.uniform(0.1, 0.4),
        pick(rng, ((236, 236, 236), vivid(rng))),
    )
    pen.oval(0, -0.7, w, 0.14, (200, 200, 204))


def _cup(pen: Pen, rng: Rng) -> None:
    c = _any(rng)
    pen.ring(0.6, 0.05, 0.27, 0.11, scaled(c, 0.85))
    pen.poly(mirrored(((-0.55, -0.45), (-0.42, 0.6))), c)
    pen.oval(0, 0.6, 0.42, 0.12, c)
    pen.oval(0, -0.45, 0.56, 0.17, scaled(c, 1.2))
    pen.oval(0, -0.43, 0.47, 0.12, pick(rng, ((70, 44, 28), scaled(c, 0.6))))


def _plate(pen: Pen, rng: Rng) -> None:
    c, flat = (
        near(rng, pick(rng, ((236, 234, 230), (180, 200, 220), (230, 200, 150))), 12),
        rng.uniform(0.5, 1.0),
    )
    pen.oval(0, 0, 0.92, 0.92 * flat, c)
    pen.oval(0, 0, 0.82, 0.82 * flat, pick(rng, (scaled(c, 0.85), vivid(rng, 0.4))))
    pen.oval(0, 0, 0.62, 0.62 * flat, scaled(c, 0.96))


def _clock(pen: Pen, rng: Rng) -> None:
    pen.oval(0, 0, 0.9, 0.9, pick(rng, (_DARK, _timber(rng), (196, 160, 70))))
    pen.oval(0, 0, 0.76, 0.76, near(rng, (238, 234, 222), 8))
    for a in np.arange(12) * np.pi / 6:
        pen.oval(0.64 * np.cos(a), 0.64 * np.sin(a), 0.05, 0.05, _DARK)
    for length, width in ((0.58, 0.05), (0.38, 0.08)):
        a = rng.uniform(0, 6.3)
        pen.line(((0, 0), (length * np.cos(a), length * np.sin(a))), width, _DARK)


def _lamp(pen: Pen, rng: Rng) -> None:
    shade = near(rng, pick(rng, ((246, 226, 170), (226, 210, 190), (200, 80, 60))), 14)
    pen.oval(0, 0.82, 0.36, 0.1, _timber(rng))
    pen.line(((0, 0.8), (0, -0.1)), 0.08, pick(rng, (_DARK, (196, 160, 80))))
    if rng.random() < 0.5:
        pen.oval(0, 0.5, 0.18, 0.26, _any(rng))
    pen.poly(mirrored(((-0.3, -0.85), (-0.62, -0.05))), shade)


def _telephone(pen: Pen, rng: Rng) -> None:
    c = pick(rng, ((40, 40, 42), (190, 40, 36), (226, 216, 190)))
    if rng.random() < 0.4:
        pen.box(-0.35, -0.85, 0.35, 0.85, c)
        pen.box(-0.27, -0.7, 0.27, 0.0, (140, 170, 190))
        for x in (-0.2, 0, 0.2):
            for y in (0.2, 0.42, 0.64):
                pen.oval(x, y, 0.07, 0.07, (206, 206, 206))
        return
    pen.poly(((-0.45, -0.2), (0.45, -0.2), (0.75, 0.65), (-0.75, 0.65)), c)
    pen.oval(0, 0.22, 0.3, 0.27, (220, 216, 206))
    pen.oval(0, 0.22, 0.13, 0.12, scaled(c, 0.8))
    pen.curve(((-0.85, -0.25), (-0.6, -0.5), (0.6, -0.5), (0.85, -0.25)), 0.2, scaled(c, 1.1))


def _chair(pen: Pen, rng: Rng) -> None:
    c = pick(rng, (_timber(rng), _any(rng)))
    for x, y in ((-0.42, 0.1), (0.42, 0.1), (-0.28, 0.0), (0.28, 0.0)):
        pen.line(((x, y), (x * 1.1, 0.92 if abs(x) > 0.3 else 0.72)), 0.09, scaled(c, 0.75))
    for x in (-0.36, 0.36):
        pen.line(((x, 0.0), (x, -0.9)), 0.09, c)
    if rng.random() < 0.5:
        pen.box(-0.36, -0.9, 0.36, -0.15, scaled(c, 0.95))
    else:
        for y in (-0.8, -0.5, -0.25):
            pen.line(((-0.36, y), (0.36, y)), 0.1, c)
    pen.poly(((-0.36, -0.02), (0.36, -0.02), (0.5, 0.2), (-0.5, 0.2)), scaled(c, 1.15))


def _couch(pen: Pen, rng: Rng) -> None:
    c = _any(rng)
    pen.box(-0.8, -0.4, 0.8, 0.2, scaled(c, 0.85))
    for side in (-1, 1):
        pen.box(side * 0.02, 0.02, side * 0.72, 0.3, scaled(c, 1.15))
        pen.blob(
            ((side * 0.7, -0.1), (side * 0.98, -0.1), (side * 0.98, 0.5), (side * 0.7, 0.5)), c
        )
        pen.box(side * 0.8 - 0.05, 0.48, side * 0.8 + 0.05, 0.6, _DARK)
    pen.box(-0.75, 0.28, 0.75, 0.5, scaled(c, 0.75))


def _table(pen: Pen, rng: Rng) -> None:
    c = _timber(rng)
    for x, y in ((-0.75, 0.8), (0.75, 0.8), (-0.55, 0.55), (0.55, 0.55)):
        pen.line(((x, -0.1), (x, y)), 0.1, scaled(c, 0.7))
    if rng.random() < 0.3:
        pen.oval(0, -0.15, 0.95, 0.28, c)
    else:
        pen.poly(((-0.65, -0.35), (0.65, -0.35), (0.95, 0.0), (-0.95, 0.0)), c)
        pen.box(-0.95, 0.0, 0.95, 0.09, scaled(c, 0.75))


def _bed(pen: Pen, rng: Rng) -> None:
    c, sheet = _any(rng), near(rng, (236, 232, 226), 8)
    pen.box(-0.9, -0.55, -0.72, 0.65, _timber(rng))
    pen.poly(((-0.75, 0.0), (0.7, 0.0), (0.95, 0.3), (-0.75, 0.3)), scaled(c, 1.1))
    pen.poly(((-0.75, 0.3), (0.95, 0.3), (0.95, 0.55), (-0.75, 0.55)), scaled(c, 0.75))
    pen.blob(((-0.7, -0.18), (-0.3, -0.14), (-0.28, 0.12), (-0.7, 0.12)), sheet)
    pen.box(0.85, 0.1, 0.97, 0.7, _timber(rng))


def _wardrobe(pen: Pen, rng: Rng) -> None:
    c = _timber(rng)
    pen.box(-0.55, -0.9, 0.55, 0.85, c)
    for side in (-1, 1):
        pen.box(side * 0.04, -0.8, side * 0.48, 0.6, scaled(c, 0.8))
        pen.oval(side * 0.09, -0.05, 0.04, 0.06, (220, 190, 110))
    pen.box(-0.5, 0.66, 0.5, 0.8, scaled(c, 0.75))


def _television(pen: Pen, rng: Rng) -> None:
    c = pick(rng, (_DARK, (150, 150, 154), _timber(rng)))
    pen.box(-0.92, -0.6, 0.92, 0.5, c)
    pen.box(
        -0.8,
        -0.5,
        0.8 - 0.3 * (rng.random() < 0.4),
        0.38,
        pick(rng, ((70, 90, 110), vivid(rng), (150, 170, 180))),
    )
    pen.poly(((-0.2, 0.5), (0.2, 0.5), (0.4, 0.72), (-0.4, 0.72)), scaled(c, 0.8))


def _keyboard(pen: Pen, rng: Rng) -> None:
    c = pick(rng, ((220, 218, 210), (50, 50, 54), (160, 160, 164)))
    pen.box(-0.98, -0.36, 0.98, 0.36, c)
    for y in (-0.22, -0.05, 0.12):
        for x in np.arange(-0.86, 0.9, 0.19):
            pen.box(x, y, x + 0.13, y + 0.12, scaled(c, 1.4 if c[0] < 100 else 0.75))
    pen.box(-0.4, 0.26, 0.4, 0.33, scaled(c, 0.7))


def _book(pen: Pen, rng: Rng) -> None:
    c = vivid(rng, 0.3)
    pen.poly(((-0.6, -0.75), (0.5, -0.75), (0.5, 0.7), (-0.6, 0.7)), c)
    pen.box(0.5, -0.7, 0.62, 0.74, (234, 230, 216))
    pen.box(-0.6, -0.75, -0.46, 0.7, scaled(c, 0.6))
    for y in (-0.45, -0.3):
        pen.line(((-0.3, y), (0.35, y)), 0.07, scaled(c, 2.2))


def _umbrella(pen: Pen, rng: Rng) -> None:
    c = vivid(rng, 0.4)
    pen.curve(((0, -0.4), (0, 0.6), (0.1, 0.82), (0.25, 0.7)), 0.06, _DARK)
    pen.blob(
        (
            (-0.95, 0.0),
            (-0.6, -0.6),
            (0, -0.8),
            (0.6, -0.6),
            (0.95, 0.0),
            (0.5, -0.12),
            (0, 0),
            (-0.5, -0.12),
        ),
        c,
    )
    for x in (-0.45, 0.0, 0.45):
        pen.line(((0, -0.78), (x, -0.08)), 0.03, scaled(c, 0.6))


def _ball(pen: Pen, rng: Rng) -> None:
    c, d = _any(rng), _any(rng)
    pen.oval(0, 0, 0.8, 0.8, c)
    for x in (-0.45, 0.0, 0.45):
        pen.curve(((x * 0.6, -0.75), (x * 1.4, 0), (x * 0.6, 0.75)), 0.12, d)
    pen.line(((-0.78, 0.0), (0.78, 0.0)), 0.1, d)


_INSIDE = ("indoors", "indoors", "studio", "studio")
HOUSEHOLD: dict[str, Recipe] = {
    "bottle": _bottle, "bowl": _bowl, "can": _can, "cup": _cup, "plate": _plate, "clock": _clock,
    "lamp": _lamp,
    "telephone": _telephone, "chair": _chair, "couch": _couch, "table": _table, "bed": _bed,
    "wardrobe": _wardrobe,
    "television": _television, "keyboard": _keyboard, "book": _book, "umbrella": _umbrella,
    "ball": _ball,
}  # fmt: skip
_HOUSEHOLD = tuple(HOUSEHOLD.values())


def draw_household(rng: Rng, label: int) -> Image.Image:
    """A thing indoors or in a catalogue."""
    pen = Pen(rng, scale=(0.65, 1.02), turn=0.08, aspect=0.2, shift=0.08, tilt=0.05)
    _HOUSEHOLD[label](pen, rng)
    out = compose(
        rng,
        backdrop(rng, *_INSIDE),
        pen.image,
        relief=rng.uniform(0.2, 0.6),
        grain=0.04,
        patchy=0.06,
    )
    return camera(rng, out)
