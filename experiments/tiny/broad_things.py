"""Vehicles and household things, each from a short recipe in side or front view."""

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
    near,
    pick,
    scaled,
    vivid,
)

Recipe = Callable[[Pen, Rng], None]
_DARK: Colour = (26, 26, 30)
_GLASS: Colour = (70, 92, 116)
_WOOD = ((150, 100, 60), (110, 70, 40), (196, 156, 110))


def _paint(rng: Rng) -> Colour:
    """Car paint: white, silver and black as often as a vivid colour."""
    return (
        vivid(rng, 0.4, 0.95)
        if rng.random() < 0.5
        else near(rng, pick(rng, ((230, 230, 230), (160, 164, 170), (44, 46, 52))), 12)
    )


def _wheels(pen: Pen, at: tuple[float, ...], y: float, r: float) -> None:
    for x in at:
        pen.oval(x, y, r, r, _DARK)
        pen.oval(x, y, r * 0.5, r * 0.5, (170, 170, 174))


def _automobile(pen: Pen, rng: Rng) -> None:
    c = _paint(rng)
    if rng.random() < 0.35:  # from the front
        pen.blob(((-0.5, -0.45), (0.5, -0.45), (0.68, -0.05), (-0.68, -0.05)), c)
        pen.poly(((-0.45, -0.38), (0.45, -0.38), (0.58, -0.06), (-0.58, -0.06)), _GLASS)
        pen.box(-0.75, -0.05, 0.75, 0.42, c)
        pen.box(-0.4, 0.1, 0.4, 0.28, _DARK)
        for side in (-1, 1):
            pen.oval(side * 0.58, 0.12, 0.13, 0.1, (250, 246, 220))
            pen.box(side * 0.58 - 0.13, 0.4, side * 0.58 + 0.13, 0.6, _DARK)
        return
    top = rng.uniform(-0.5, -0.3)
    pen.poly(((-0.55, 0.02), (-0.35, top), (0.25, top), (0.55, 0.02)), c)
    pen.poly(((-0.44, 0.0), (-0.29, top + 0.07), (-0.03, top + 0.07), (-0.03, 0.0)), _GLASS)
    pen.poly(((0.03, 0.0), (0.03, top + 0.07), (0.21, top + 0.07), (0.42, 0.0)), _GLASS)
    pen.blob(
        (
            (-0.95, 0.1),
            (-0.85, -0.05),
            (0, -0.04),
            (0.8, 0.02),
            (0.97, 0.15),
            (0.95, 0.35),
            (-0.95, 0.35),
        ),
        c,
    )
    pen.oval(0.9, 0.14, 0.06, 0.05, (250, 246, 210))
    _wheels(pen, (-0.55, 0.55), 0.36, 0.19)


def _truck(pen: Pen, rng: Rng) -> None:
    c, load = _paint(rng), _paint(rng)
    if rng.random() < 0.3:  # from the front
        pen.box(-0.55, -0.7, 0.55, 0.5, c)
        pen.box(-0.45, -0.55, 0.45, -0.12, _GLASS)
        pen.box(-0.35, 0.02, 0.35, 0.32, _DARK)
        for side in (-1, 1):
            pen.oval(side * 0.44, 0.35, 0.09, 0.08, (250, 246, 220))
            pen.box(side * 0.45 - 0.12, 0.5, side * 0.45 + 0.12, 0.72, _DARK)
        return
    pen.box(-0.98, rng.uniform(-0.65, -0.4), 0.38, 0.28, load)
    pen.poly(
        ((0.42, -0.35), (0.72, -0.35), (0.86, -0.02), (0.96, 0.02), (0.96, 0.32), (0.42, 0.32)), c
    )
    pen.poly(((0.52, -0.26), (0.7, -0.26), (0.8, -0.02), (0.52, -0.02)), _GLASS)
    pen.box(-0.98, 0.28, 0.95, 0.36, _DARK)
    _wheels(pen, (-0.75, -0.42, 0.68), 0.42, 0.16)


def _pickup(pen: Pen, rng: Rng) -> None:
    c = _paint(rng)
    pen.box(-0.95, -0.05, 0.0, 0.3, scaled(c, 0.9))
    pen.poly(((-0.1, -0.02), (-0.05, -0.42), (0.28, -0.42), (0.45, -0.02)), c)
    pen.poly(((0.0, -0.04), (0.03, -0.34), (0.25, -0.34), (0.36, -0.04)), _GLASS)
    pen.box(-0.1, -0.04, 0.95, 0.32, c)
    _wheels(pen, (-0.6, 0.6), 0.36, 0.2)


def _bus(pen: Pen, rng: Rng) -> None:
    c = pick(rng, (_paint(rng), (236, 180, 40), (200, 40, 36)))
    pen.box(-0.98, -0.5, 0.95, 0.35, c)
    pen.box(-0.9, -0.35, 0.9, -0.05, _GLASS)
    for x in np.arange(-0.55, 0.8, 0.35):
        pen.box(x - 0.02, -0.36, x + 0.02, -0.04, c)
    pen.line(((-0.98, 0.1), (0.95, 0.1)), 0.06, scaled(c, 0.6))
    _wheels(pen, (-0.58, 0.6), 0.38, 0.17)


def _train(pen: Pen, rng: Rng) -> None:
    c = _paint(rng)
    if rng.random() < 0.4:
        pen.poly(((-0.2, -0.75), (0.5, -0.65), (0.55, 0.5), (-0.25, 0.6)), c)
        pen.poly(((-0.2, -0.75), (-0.25, 0.6), (-1.1, 0.25), (-1.1, -0.4)), scaled(c, 0.7))
        pen.poly(((-0.12, -0.6), (0.42, -0.52), (0.44, -0.1), (-0.14, -0.08)), _GLASS)
        for x in (-0.02, 0.36):
            pen.oval(x, 0.22, 0.07, 0.07, (255, 248, 210))
        for x in (-0.3, 0.6):
            pen.line(((x, 0.6), (x * 1.5, 1.0)), 0.06, (120, 110, 104))
        return
    pen.line(((-1.3, 0.52), (1.3, 0.52)), 0.06, (110, 100, 96))
    for x0 in (-1.3, -0.3):
        pen.box(x0, -0.3, x0 + 0.95, 0.35, c)
        for x in np.arange(x0 + 0.12, x0 + 0.9, 0.26):
            pen.box(x, -0.16, x + 0.15, 0.04, _GLASS)
        _wheels(pen, (x0 + 0.2, x0 + 0.75), 0.42, 0.11)
    pen.blob(((0.7, -0.3), (1.0, -0.2), (1.15, 0.2), (1.05, 0.36), (0.7, 0.36)), c)


def _streetcar(pen: Pen, rng: Rng) -> None:
    c = pick(rng, ((200, 50, 40), (236, 190, 60), (60, 120, 80), _paint(rng)))
    pen.box(-0.75, -0.45, 0.75, 0.45, c)
    pen.box(-0.68, -0.33, 0.68, -0.02, (200, 206, 206))
    for x in np.arange(-0.5, 0.6, 0.25):
        pen.box(x - 0.03, -0.34, x + 0.03, 0.0, c)
    pen.line(((-0.2, -0.45), (0.15, -0.75), (-0.1, -0.9)), 0.03, _DARK)
    pen.line(((-1.3, -0.92), (1.3, -0.9)), 0.02, _DARK)
    _wheels(pen, (-0.4, 0.4), 0.48, 0.11)


def _airplane(pen: Pen, rng: Rng) -> None:
    c = pick(rng, ((232, 234, 238), (170, 176, 184), (60, 64, 70), _paint(rng)))
    if rng.random() < 0.4:  # from below or above
        pen.poly(
            (
                (0.1, -0.1),
                (-0.3, -0.95),
                (-0.5, -0.95),
                (-0.2, 0),
                (-0.5, 0.95),
                (-0.3, 0.95),
                (0.1, 0.1),
            ),
            scaled(c, 0.85),
        )
        pen.poly(((-0.7, 0), (-0.95, -0.32), (-0.85, 0), (-0.95, 0.32)), scaled(c, 0.8))
        pen.blob(((-0.92, 0), (-0.5, -0.1), (0.5, -0.12), (0.95, 0), (0.5, 0.12), (-0.5, 0.1)), c)
        return
    pen.poly(
        ((-0.95, -0.55), (-0.75, -0.55), (-0.5, -0.05), (-0.85, 0)), pick(rng, (c, vivid(rng)))
    )
    pen.blob(
        ((-0.95, -0.05), (-0.5, -0.15), (0.6, -0.15), (0.97, 0.05), (0.6, 0.16), (-0.5, 0.1)), c
    )
    pen.line(((-0.45, -0.03), (0.6, -0.03)), 0.04, _GLASS)
    pen.poly(
        ((0.2, 0.05), (-0.3, rng.uniform(0.3, 0.6)), (-0.5, rng.uniform(0.3, 0.6)), (-0.2, 0.05)),
        scaled(c, 0.7),
    )
    pen.poly(((0.15, -0.12), (-0.15, -0.35), (-0.3, -0.35), (-0.1, -0.12)), scaled(c, 0.75))
    pen.oval(0.05, 0.22, 0.13, 0.07, scaled(c, 0.6))


def _helicopter(pen: Pen, rng: Rng) -> None:
    c = _paint(rng)
    pen.limb((0.0, 0.0), (-0.95, -0.12), 0.12, 0.04, c)
    pen.oval(-0.95, -0.15, 0.06, 0.17, scaled(c, 0.7))
    pen.oval(0.2, 0.05, 0.45, 0.3, c)
    pen.oval(0.42, 0.02, 0.2, 0.18, _GLASS)
    pen.line(((0.15, -0.2), (0.15, -0.4)), 0.05, _DARK)
    pen.line(((-0.75, -0.4), (1.0, -0.42)), 0.05, _DARK)
    pen.line(((-0.2, 0.5), (0.6, 0.5)), 0.05, _DARK)


def _ship(pen: Pen, rng: Rng) -> None:
    c = pick(rng, ((60, 70, 90), (150, 50, 44), (230, 230, 232), (40, 40, 44)))
    pen.box(-0.55, -0.2, 0.45, 0.15, (232, 232, 230))
    pen.box(-0.35, -0.42, 0.2, -0.2, (214, 216, 218))
    for x in (-0.2, 0.1)[: int(rng.integers(1, 3))]:
        pen.box(x - 0.07, -0.75, x + 0.07, -0.42, pick(rng, ((190, 60, 44), _DARK)))
    pen.line(((-0.48, -0.05), (0.4, -0.05)), 0.05, _GLASS)
    pen.poly(((-0.9, 0.1), (0.98, 0.05), (0.75, 0.48), (-0.75, 0.48)), c)
    pen.line(((-0.8, 0.47), (0.8, 0.47)), 0.06, (220, 230, 236))


def _sailboat(pen: Pen, rng: Rng) -> None:
    pen.poly(
        ((-0.6, 0.5), (0.65, 0.45), (0.45, 0.72), (-0.45, 0.72)),
        pick(rng, ((240, 240, 240), vivid(rng))),
    )
    pen.line(((0, 0.5), (0.02, -0.95)), 0.04, (110, 90, 70))
    pen.poly(((0.06, -0.9), (0.7, 0.35), (0.06, 0.38)), (244, 242, 236))
    pen.poly(
        ((-0.04, -0.75), (-0.5, 0.35), (-0.04, 0.38)), pick(rng, ((230, 228, 222), vivid(rng, 0.6)))
    )


def _cycle(pen: Pen, c: Colour, tyre: float) -> None:
    for x in (-0.52, 0.52):
        pen.ring(x, 0.3, 0.36, tyre, _DARK)
        pen.oval(x, 0.3, 0.06, 0.06, c)
    pen.line(((-0.52, 0.3), (-0.22, -0.2), (0.36, -0.22), (0.0, 0.32), (-0.52, 0.3)), 0.07, c)
    pen.line(((-0.3, -0.38), (0.0, 0.32)), 0.06, c)
    pen.line(((0.52, 0.3), (0.32, -0.42), (0.48, -0.5)), 0.06, c)
    pen.oval(-0.32, -0.4, 0.17, 0.06, _DARK)


def _bicycle(pen: Pen, rng: Rng) -> None:
    _cycle(pen, _paint(rng), 0.05)


def _motorcycle(pen: Pen, rng: Rng) -> None:
    c = _paint(rng)
    _cycle(pen, (70, 70, 74), 0.14)
    pen.oval(0.0, 0.22, 0.26, 0.2, (120, 120, 126))
    pen.blob(((-0.1, -0.2), (0.3, -0.36), (0.4, -0.1), (0, 0.02)), c)
    pen.limb((-0.62, -0.22), (-0.05, -0.15), 0.09, 0.08, _DARK)
    pen.line(((-0.1, 0.42), (-0.85, 0.36)), 0.08, (190, 190, 194))


def _tank(pen: Pen, rng: Rng) -> None:
    c = near(rng, pick(rng, ((96, 100, 66), (150, 130, 90), (84, 84, 80))), 12)
    pen.line(((0.1, -0.22), (1.05, -0.3)), 0.08, scaled(c, 0.7))
    pen.blob(((-0.45, -0.05), (-0.35, -0.38), (0.2, -0.38), (0.35, -0.05)), scaled(c, 1.1))
    pen.poly(((-0.9, 0.1), (-0.7, -0.08), (0.75, -0.08), (0.95, 0.1)), c)
    pen.blob(((-0.95, 0.1), (0.95, 0.1), (0.8, 0.48), (-0.8, 0.48)), scaled(c, 0.45))
    for x in np.linspace(-0.65, 0.65, 5):
        pen.oval(x, 0.3, 0.13, 0.13, scaled(c, 0.85))


def _tractor(pen: Pen, rng: Rng) -> None:
    c = pick(rng, ((50, 130, 50), (200, 50, 36), (40, 90, 170), (220, 150, 30)))
    pen.box(0.0, -0.2, 0.75, 0.2, c)
    pen.box(-0.5, -0.65, 0.05, -0.58, c)
    pen.box(-0.45, -0.6, 0.0, -0.1, _GLASS)
    pen.line(((0.5, -0.2), (0.5, -0.55)), 0.06, _DARK)
    pen.box(-0.55, -0.1, 0.1, 0.25, c)
    _wheels(pen, (-0.38,), 0.25, 0.42)
    _wheels(pen, (0.6,), 0.42, 0.24)


def _mower(pen: Pen, rng: Rng) -> None:
    c = pick(rng, ((200, 50, 36), (60, 140, 50), (220, 150, 30)))
    pen.line(((-0.95, -0.6), (-0.75, -0.65), (-0.25, 0.3)), 0.07, _DARK)
    pen.blob(((-0.45, 0.3), (-0.3, 0.02), (0.5, 0.02), (0.75, 0.35), (0.6, 0.48), (-0.45, 0.48)), c)
    pen.box(-0.05, -0.22, 0.32, 0.1, _DARK)
    _wheels(pen, (-0.3, 0.55), 0.48, 0.16)


def _rocket(pen: Pen, rng: Rng) -> None:
    c = near(rng, (226, 226, 226), 14)
    if rng.random() < 0.6:
        pen.blob(((-0.2, 0.6), (0.2, 0.6), (0.1, 1.2), (-0.1, 1.2)), (255, 190, 60))
    for side in (-1, 1):
        pen.poly(
            ((side * 0.15, 0.2), (side * 0.42, 0.7), (side * 0.15, 0.6)),
            pick(rng, ((200, 50, 40), (90, 90, 96))),
        )
    pen.blob(((0, -1.0), (0.2, -0.6), (0.2, 0.62), (-0.2, 0.62), (-0.2, -0.6)), c)
    pen.box(-0.19, -0.2, 0.19, -0.1, _DARK)


VEHICLES: dict[str, tuple[Recipe, tuple[str, ...]]] = {
    "automobile": (_automobile, ("road", "field", "grass", "studio")), "truck": (_truck, ("road",
    "field", "sand", "studio")),
    "pickup truck": (_pickup, ("road", "grass", "field", "sand")), "bus": (_bus, ("road", "field",
    "studio")),
    "train": (_train, ("grass", "field", "rock", "sand")), "streetcar": (_streetcar, ("road",
    "road", "field")),
    "airplane": (_airplane, ("sky", "sky", "sky", "road", "field")), "helicopter": (_helicopter,
    ("sky", "field", "sky")),
    "ship": (_ship, ("water",)), "sailboat": (_sailboat, ("water",)), "bicycle": (_bicycle,
    ("road", "grass", "studio")),
    "motorcycle": (_motorcycle, ("road", "grass", "studio")), "tank": (_tank, ("sand", "grass",
    "field", "road")),
    "tractor": (_tractor, ("grass", "field", "sand")), "lawn mower": (_mower, ("grass", "studio")),
    "rocket": (_rocket, ("sky", "sky", "studio")),
}  # fmt: skip
_VEHICLES = tuple(VEHICLES.values())


def draw_vehicle(rng: Rng, label: int) -> Image.Image:
    """A vehicle on its way."""
    recipe, grounds = _VEHICLES[label]
    turn = 0.25 if recipe in (_airplane, _helicopter, _rocket) else 0.05
    pen = Pen(rng, scale=(0.65, 1.08), turn=turn, aspect=0.25, shift=0.09, tilt=0.06)
    recipe(pen, rng)
    out = compose(
        rng,
        backdrop(rng, *grounds),
        pen.image,
        relief=rng.uniform(0.15, 0.5),
        grain=0.05,
        patchy=0.06,
    )
    return camera(rng, out)
