"""Fruit, flowers and trees: what lies on tables and grows in gardens."""

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
)

Recipe = Callable[[Pen, Rng], None]
_DARK: Colour = (28, 26, 28)
_LEAF: Colour = (64, 120, 48)
_BARK: Colour = (90, 66, 46)


def _fruit(pen: Pen, rng: Rng, c: Colour, rx: float, ry: float, *, leaf: bool = True) -> None:
    """A round fruit with a highlight, a stalk and perhaps a leaf."""
    pen.oval(0, 0.08, rx, ry, scaled(c, 0.75))
    pen.oval(-0.05, 0.02, rx * 0.85, ry * 0.85, c)
    pen.oval(-0.25, -0.2, rx * 0.3, ry * 0.25, scaled(c, 1.45))
    pen.line(((0.02, -ry + 0.15), (0.1, -ry - 0.12)), 0.06, _BARK)
    if leaf and rng.random() < 0.5:
        pen.oval(0.3, -ry, 0.2, 0.09, _LEAF, 0.4)


def _apple(pen: Pen, rng: Rng) -> None:
    _fruit(
        pen,
        rng,
        near(rng, pick(rng, ((190, 30, 30), (120, 170, 50), (210, 170, 60))), 14),
        0.72,
        0.68,
    )
    pen.oval(0.02, -0.55, 0.16, 0.07, (80, 40, 26))


def _orange(pen: Pen, rng: Rng) -> None:
    c = near(rng, (240, 140, 30), 12)
    _fruit(pen, rng, c, 0.74, 0.74, leaf=False)
    if rng.random() < 0.3:
        pen.oval(0.35, 0.35, 0.5, 0.5, (250, 220, 170))
        pen.oval(0.35, 0.35, 0.42, 0.42, scaled(c, 1.15))
        for a in np.arange(4) * np.pi / 4:
            u = 0.4 * np.array([np.cos(a), np.sin(a)])
            pen.line((0.35 + u, 0.35 - u), 0.03, (250, 226, 180))


def _pear(pen: Pen, rng: Rng) -> None:
    c = near(rng, pick(rng, ((170, 180, 60), (200, 170, 70), (180, 120, 60))), 12)
    pen.blob(
        (
            (0, -0.75),
            (0.25, -0.55),
            (0.35, -0.05),
            (0.58, 0.4),
            (0.3, 0.82),
            (-0.3, 0.82),
            (-0.58, 0.4),
            (-0.35, -0.05),
            (-0.25, -0.55),
        ),
        c,
    )
    pen.oval(-0.2, 0.25, 0.16, 0.28, scaled(c, 1.35))
    pen.line(((0, -0.72), (0.08, -0.97)), 0.07, _BARK)


def _banana(pen: Pen, rng: Rng) -> None:
    c = near(rng, pick(rng, ((236, 206, 60), (200, 200, 80))), 12)
    for k in range(int(rng.integers(1, 4))):
        d = 0.2 * k
        pen.curve(
            ((-0.8, -0.35 + d), (-0.45, 0.2 + d), (0.2, 0.3 + d), (0.8, -0.2 + d * 0.5)),
            0.28,
            scaled(c, 1 - 0.12 * k),
        )
    pen.oval(0.85, -0.24, 0.07, 0.07, _BARK)


def _pepper(pen: Pen, rng: Rng) -> None:
    c = pick(rng, ((200, 30, 26), (60, 130, 40), (240, 190, 40), (230, 120, 30)))
    for x in (-0.32, 0.32, 0.0):
        pen.oval(x, 0.12, 0.34, 0.62, scaled(c, 1.15 if x == 0 else 0.85))
    pen.oval(-0.1, -0.1, 0.08, 0.3, scaled(c, 1.6))
    pen.curve(((0, -0.45), (0.02, -0.7), (0.16, -0.85)), 0.14, _LEAF)


def _mushroom(pen: Pen, rng: Rng) -> None:
    cap = near(rng, pick(rng, ((190, 50, 34), (150, 100, 60), (220, 200, 170))), 14)
    w = rng.uniform(0.14, 0.26)
    pen.poly(mirrored(((-w, -0.15), (-w * 1.3, 0.85))), (232, 222, 204))
    pen.blob(((-0.8, 0.0), (-0.5, -0.55), (0, -0.75), (0.5, -0.55), (0.8, 0.0), (0, 0.12)), cap)
    if rng.random() < 0.4:
        for x, y in ((-0.4, -0.25), (0.0, -0.5), (0.35, -0.2)):
            pen.oval(x, y, 0.1, 0.08, (244, 240, 232))


def _stem(pen: Pen, rng: Rng, y: float) -> None:
    pen.curve(((0, y), (rng.normal(0, 0.08), 0.6), (rng.normal(0, 0.1), 1.3)), 0.09, _LEAF)
    pen.oval(0.25, 0.75, 0.26, 0.1, scaled(_LEAF, 1.2), -0.5)


def _petals(pen: Pen, c: Colour, count: int, r: float, long: float, wide: float, y: float) -> None:
    for k, a in enumerate(np.arange(count) * 2 * np.pi / count):
        pen.oval(r * np.cos(a), y + r * np.sin(a), long, wide, scaled(c, 0.85 + 0.3 * (k % 2)), a)


def _sunflower(pen: Pen, rng: Rng) -> None:
    _stem(pen, rng, 0.3)
    _petals(pen, near(rng, (244, 190, 30), 8), 14, 0.5, 0.3, 0.11, -0.2)
    pen.oval(0, -0.2, 0.36, 0.36, (90, 56, 26))
    pen.oval(0, -0.2, 0.2, 0.2, (60, 40, 22))


def _rose(pen: Pen, rng: Rng) -> None:
    c = near(rng, pick(rng, ((190, 20, 40), (240, 150, 170), (246, 236, 226), (240, 200, 80))), 12)
    _stem(pen, rng, 0.2)
    _petals(pen, scaled(c, 0.8), 5, 0.34, 0.32, 0.3, -0.2)
    for k in range(4):
        pen.oval(
            0.05 * (k % 2) - 0.03,
            -0.2,
            0.42 - 0.1 * k,
            0.38 - 0.09 * k,
            scaled(c, (1.15, 0.75, 1.1, 0.6)[k]),
        )


def _tulip(pen: Pen, rng: Rng) -> None:
    for x in (0,) if rng.random() < 0.5 else (-0.5, 0.5, 0):
        c = near(
            rng, pick(rng, ((210, 40, 50), (244, 200, 50), (230, 120, 160), (130, 60, 140))), 12
        )
        pen.curve(((x, 0), (x * 0.8, 0.5), (x * 0.6, 1.3)), 0.08, _LEAF)
        pen.blob(
            (
                (x - 0.28, -0.7),
                (x - 0.12, -0.45),
                (x, -0.75),
                (x + 0.12, -0.45),
                (x + 0.28, -0.7),
                (x + 0.26, -0.1),
                (x, 0.15),
                (x - 0.26, -0.1),
            ),
            c,
        )
        pen.oval(x, -0.25, 0.12, 0.33, scaled(c, 1.2))
    pen.blob(((0.1, 1.0), (0.35, 0.4), (0.6, 0.0), (0.4, 0.7)), scaled(_LEAF, 0.8))


def _poppy(pen: Pen, rng: Rng) -> None:
    c = near(rng, pick(rng, ((214, 44, 26), (240, 130, 40))), 10)
    _stem(pen, rng, 0.2)
    _petals(pen, c, 4, 0.32, 0.42, 0.4, -0.15)
    pen.oval(0, -0.15, 0.15, 0.15, _DARK)


def _orchid(pen: Pen, rng: Rng) -> None:
    c = near(rng, pick(rng, ((200, 100, 180), (246, 240, 244), (230, 190, 70))), 10)
    pen.curve(((-0.9, 1.0), (-0.5, 0.2), (0, 0)), 0.06, _LEAF)
    _petals(pen, c, 3, 0.42, 0.42, 0.16, 0)
    for side in (-1, 1):
        pen.oval(side * 0.45, -0.12, 0.42, 0.32, scaled(c, 1.1))
    pen.oval(0, 0.2, 0.16, 0.24, (150, 30, 90))
    pen.oval(0, 0.08, 0.08, 0.08, (244, 210, 60))


def _daisy(pen: Pen, rng: Rng) -> None:
    _stem(pen, rng, 0.2)
    _petals(pen, (240, 240, 236), 12, 0.46, 0.3, 0.1, -0.15)
    pen.oval(0, -0.15, 0.24, 0.24, (236, 186, 40))


def _crown(pen: Pen, rng: Rng, c: Colour, *, wide: float, high: float, y: float) -> None:
    """A tree crown of many clumps, darker below."""
    for _ in range(22):
        a, t = rng.uniform(0, 6.3), np.sqrt(rng.random())
        dy = t * np.sin(a)
        pen.oval(
            wide * t * np.cos(a),
            y + high * dy,
            0.2,
            0.17,
            scaled(c, 0.95 - 0.3 * dy + rng.normal(0, 0.1)),
        )


def _oak(pen: Pen, rng: Rng) -> None:
    pen.limb((0, 0.95), (0, 0.1), 0.12, 0.07, _BARK)
    _crown(pen, rng, near(rng, (64, 100, 40), 10), wide=0.72, high=0.5, y=-0.25)


def _maple(pen: Pen, rng: Rng) -> None:
    pen.limb((0, 0.95), (0, 0.1), 0.1, 0.06, _BARK)
    _crown(
        pen,
        rng,
        near(rng, pick(rng, ((214, 90, 30), (190, 40, 34), (236, 160, 40))), 10),
        wide=0.6,
        high=0.58,
        y=-0.25,
    )


def _willow(pen: Pen, rng: Rng) -> None:
    c = near(rng, (120, 150, 66), 12)
    pen.limb((0, 0.95), (0, -0.1), 0.1, 0.07, _BARK)
    _crown(pen, rng, c, wide=0.55, high=0.3, y=-0.5)
    for x in rng.uniform(-0.85, 0.85, 22):
        pen.curve(
            ((x * 0.5, -0.6), (x, -0.3), (x * 1.05, rng.uniform(0.2, 0.75))),
            0.06,
            scaled(c, rng.uniform(0.7, 1.15)),
        )


def _pine(pen: Pen, rng: Rng) -> None:
    c = near(rng, (34, 70, 44), 10)
    pen.limb((0, 0.98), (0, 0.4), 0.08, 0.06, _BARK)
    slim = rng.uniform(0.35, 0.6)
    for k in range(5):
        y = -0.95 + 0.3 * k
        w = slim * (0.3 + 0.18 * k)
        pen.poly(
            ((0, y - 0.05), (w, y + 0.45), (-w, y + 0.45)),
            scaled(c, 0.8 + 0.2 * (k % 2) + rng.normal(0, 0.08)),
        )


def _palm(pen: Pen, rng: Rng) -> None:
    lean = rng.normal(0, 0.25)
    pen.curve(((lean, 1.0), (lean * 0.5, 0.3), (0, -0.4)), 0.13, near(rng, (130, 104, 76), 10))
    c = near(rng, (60, 110, 50), 12)
    for a in np.linspace(-3.5, 0.4, 8) + rng.normal(0, 0.1, 8):
        x, y = np.cos(a), np.sin(a)
        pen.curve(
            ((0, -0.45), (0.4 * x, -0.5 + 0.35 * y), (0.8 * x, -0.35 + 0.45 * y)),
            0.13,
            scaled(c, rng.uniform(0.7, 1.2)),
        )


def _cactus(pen: Pen, rng: Rng) -> None:
    c = near(rng, (70, 120, 66), 12)
    for side in (-1, 1):
        y = rng.uniform(-0.1, 0.4)
        pen.line(
            ((0, y + 0.2), (side * 0.45, y + 0.2), (side * 0.45, y - 0.35)), 0.2, scaled(c, 0.9)
        )
    pen.line(((0, 1.0), (0, -0.75)), 0.34, c)
    pen.oval(0, -0.75, 0.17, 0.17, c)
    pen.line(((-0.06, 0.9), (-0.06, -0.7)), 0.04, scaled(c, 1.4))


_FRUIT, _BED, _LAND = (
    ("studio", "studio", "indoors", "leaf"),
    ("leaf", "grass", "studio", "field"),
    ("field", "grass", "sky", "snow"),
)
PLANTS: dict[str, tuple[Recipe, tuple[str, ...]]] = {
    "apple": (_apple, _FRUIT), "orange": (_orange, _FRUIT), "pear": (_pear, _FRUIT),
    "banana": (_banana, _FRUIT),
    "sweet pepper": (_pepper, _FRUIT), "mushroom": (_mushroom, ("grass", "forest", "leaf",
    "studio")),
    "sunflower": (_sunflower, _BED), "rose": (_rose, _BED), "tulip": (_tulip, _BED),
    "poppy": (_poppy, _BED),
    "orchid": (_orchid, _BED), "daisy": (_daisy, _BED), "oak tree": (_oak, _LAND),
    "maple tree": (_maple, _LAND),
    "willow tree": (_willow, _LAND), "pine tree": (_pine, _LAND), "palm tree": (_palm, ("sky",
    "sand", "water", "field")),
    "cactus": (_cactus, ("sand", "rock", "studio")),
}  # fmt: skip
_PLANTS = tuple(PLANTS.values())


def draw_plant(rng: Rng, label: int) -> Image.Image:
    """A fruit, flower, mushroom or tree."""
    recipe, grounds = _PLANTS[label]
    pen = Pen(rng, scale=(0.65, 1.15), turn=0.15, aspect=0.2, shift=0.1)
    recipe(pen, rng)
    out = compose(
        rng,
        backdrop(rng, *grounds),
        pen.image,
        relief=rng.uniform(0.2, 0.7),
        grain=0.06,
        patchy=0.07,
    )
    return camera(rng, out)
