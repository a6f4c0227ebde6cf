"""Garments as shaded silhouettes, and faces built from parameters of expression, age and light."""

from collections.abc import Callable

import numpy as np
from PIL import Image

from experiments.tiny.broad_tools import (
    Colour,
    Field,
    Pen,
    Rng,
    X,
    Y,
    camera,
    compose,
    mirrored,
    noise,
    pick,
    ramp,
    scaled,
    vivid,
)


def _tee(pen: Pen, c: Colour, rng: Rng, *, sleeve: float, width: float, neck: float = 0.2) -> None:
    """A top: sleeve 0 none, 0.5 short, 1 long; width is half the hem."""
    shoulder = width + 0.02
    points = [(-neck, -0.85), (-shoulder, -0.72)]
    if sleeve > 0.75:
        out = rng.uniform(0.72, 0.98)
        points += [
            (-shoulder - 0.15, -0.45),
            (-out, 0.6),
            (-out + 0.2, 0.68),
            (-width + 0.02, -0.2),
        ]
    elif sleeve > 0.2:
        out = rng.uniform(0.8, 0.98)
        points += [(-out, -0.3), (-out + 0.2, -0.1), (-width + 0.02, -0.3)]
    else:
        points += [(-width + 0.08, -0.3)]
    points += [(-width, 0.3), (-width + rng.normal(0, 0.04), rng.uniform(0.75, 0.95)), (0, 0.9)]
    pen.poly(mirrored(points), c)
    pen.oval(0, -0.85, neck, rng.uniform(0.06, 0.2), scaled(c, 0.45))
    if sleeve > 0.2 and rng.random() < 0.6:
        for side in (-1, 1):
            pen.line(((side * width, -0.65), (side * (width - 0.02), -0.1)), 0.03, scaled(c, 0.7))


def _tshirt(pen: Pen, c: Colour, rng: Rng) -> None:
    _tee(pen, c, rng, sleeve=0.5, width=rng.uniform(0.42, 0.55))
    if rng.random() < 0.4:
        mark = pick(rng, (scaled(c, 0.4), (240, 240, 240), vivid(rng)))
        pen.oval(0, rng.uniform(-0.3, 0.1), rng.uniform(0.15, 0.3), rng.uniform(0.08, 0.25), mark)


def _pullover(pen: Pen, c: Colour, rng: Rng) -> None:
    _tee(pen, c, rng, sleeve=1, width=rng.uniform(0.42, 0.55))
    pen.box(-0.45, 0.76, 0.45, 0.9, scaled(c, rng.uniform(0.6, 0.95)))
    if rng.random() < 0.3:  # a hood
        pen.oval(0, -0.8, 0.3, 0.16, scaled(c, 0.8))


def _coat(pen: Pen, c: Colour, rng: Rng) -> None:
    _tee(pen, c, rng, sleeve=1, width=rng.uniform(0.45, 0.58), neck=0.24)
    pen.line(((0, -0.7), (rng.normal(0, 0.03), 0.92)), 0.05, scaled(c, 0.35))
    for side in (-1, 1):
        pen.poly(((side * 0.05, -0.5), (side * 0.3, -0.85), (side * 0.38, -0.4)), scaled(c, 0.75))
        pen.line(((side * 0.2, 0.35), (side * 0.4, 0.3)), 0.05, scaled(c, 0.5))


def _shirt(pen: Pen, c: Colour, rng: Rng) -> None:
    _tee(pen, c, rng, sleeve=pick(rng, (0, 0.5, 1, 1)), width=rng.uniform(0.4, 0.55), neck=0.17)
    pen.line(((0, -0.75), (0, 0.88)), 0.03, scaled(c, 0.6))
    for side in (-1, 1):
        pen.poly(((0, -0.65), (side * 0.1, -0.92), (side * 0.26, -0.72)), scaled(c, 1.25))
    for y in np.arange(-0.5, 0.8, 0.25):
        pen.oval(0.04, y, 0.03, 0.03, scaled(c, 0.4))


def _dress(pen: Pen, c: Colour, rng: Rng) -> None:
    w, hem = rng.uniform(0.16, 0.26), rng.uniform(0.22, 0.6)
    points = [(-0.1, -0.92), (-0.22, -0.9), (-0.26, -0.5), (-w, -0.15), (-hem, 0.95), (0, 0.97)]
    if rng.random() < 0.4:
        points[2:3] = [(-0.5, -0.4 + 0.6 * rng.random()), (-0.36, -0.3), (-0.24, -0.45)]
    pen.poly(mirrored(points), c)
    if rng.random() < 0.5:
        pen.box(-w, -0.2, w, -0.1, scaled(c, 0.5))
    for x in rng.uniform(-0.7, 0.7, 3):
        pen.line(((x * w, 0), (x * hem, 0.93)), 0.03, scaled(c, 0.75))


def _trouser(pen: Pen, c: Colour, rng: Rng) -> None:
    w, leg = rng.uniform(0.26, 0.38), rng.uniform(0.13, 0.24)
    foot = rng.uniform(0.22, 0.42)
    outline = [(-w + 0.04, -0.95), (-w, -0.5), (-foot, 0.95), (-foot + leg, 0.95), (-0.03, -0.35)]
    pen.poly(mirrored(outline), c)
    pen.box(-w + 0.04, -0.95, w - 0.04, -0.84, scaled(c, 0.7))
    pen.line(((0, -0.84), (0, -0.35)), 0.03, scaled(c, 0.5))


def _skirt(pen: Pen, c: Colour, rng: Rng) -> None:
    w, hem, end = rng.uniform(0.25, 0.4), rng.uniform(0.45, 0.95), rng.uniform(0.3, 0.85)
    pen.poly(((-w, -0.7), (w, -0.7), (hem, end), (0, end + 0.08), (-hem, end)), c)
    pen.box(-w, -0.75, w, -0.6, scaled(c, 0.6))
    for x in np.linspace(-0.75, 0.75, int(rng.integers(2, 6))):
        pen.line(((x * w, -0.6), (x * hem, end)), 0.04, scaled(c, 0.7))


def _hat(pen: Pen, c: Colour, rng: Rng) -> None:
    crown = rng.uniform(0.35, 0.5)
    pen.oval(0, 0.3, rng.uniform(0.7, 0.98), rng.uniform(0.12, 0.25), scaled(c, 0.8))
    pen.poly(((-crown, 0.3), (-crown * 0.85, -0.4), (-0.2, -0.55), (0.2, -0.55),
              (crown * 0.85, -0.4), (crown, 0.3)), c)  # fmt: skip
    pen.box(-crown, 0.08, crown, 0.25, pick(rng, (scaled(c, 0.35), vivid(rng))))


def _sock(pen: Pen, c: Colour, rng: Rng) -> None:
    pen.poly(((-0.3, -0.9), (0.2, -0.9), (0.22, 0.3), (0.75, 0.5), (0.8, 0.75), (0.6, 0.88),
              (-0.1, 0.82), (-0.32, 0.5)), c)  # fmt: skip
    pen.box(-0.31, -0.9, 0.21, -0.7, scaled(c, rng.uniform(0.4, 0.8)))
    pen.oval(0.66, 0.68, 0.17, 0.19, scaled(c, rng.uniform(0.4, 1.0)))
    pen.oval(-0.16, 0.62, 0.18, 0.2, scaled(c, rng.uniform(0.4, 1.0)))


def _glove(pen: Pen, c: Colour, rng: Rng) -> None:
    pen.box(-0.35, 0.3, 0.35, 0.9, scaled(c, 0.8))
    pen.oval(0, 0.15, 0.45, 0.42, c)
    spread = rng.uniform(0.1, 0.25)
    for k in range(4):
        x = -0.33 + 0.22 * k
        pen.limb((x, 0), (x + spread * (k - 1.5), -0.75 + 0.12 * abs(k - 1.6)), 0.12, 0.09, c)
    pen.limb((0.35, 0.2), (0.8, -0.2), 0.14, 0.09, c)
    pen.line(((-0.35, 0.45), (0.35, 0.45)), 0.05, scaled(c, 0.5))


def _sneaker(pen: Pen, c: Colour, rng: Rng) -> None:
    top = rng.uniform(-0.35, -0.1)
    pen.blob(((-0.9, 0.3), (-0.88, top), (-0.5, top + 0.05), (-0.1, top + 0.2), (0.5, 0.1),
              (0.92, 0.25), (0.92, 0.42), (-0.85, 0.42)), c)  # fmt: skip
    pen.poly(
        ((-0.95, 0.32), (0.98, 0.32), (0.9, 0.52), (-0.9, 0.52)), scaled(c, pick(rng, (0.5, 1.5)))
    )
    for x in np.arange(-0.35, 0.2, 0.16):
        pen.line(((x, top + 0.15), (x + 0.14, 0.12)), 0.05, scaled(c, 1.5))
    pen.curve(
        ((-0.6, 0.0), (-0.3, 0.22), (0.4, 0.18)), 0.08, pick(rng, (scaled(c, 0.5), vivid(rng)))
    )


def _sandal(pen: Pen, c: Colour, rng: Rng) -> None:
    heel = rng.choice([0.0, 0.15, 0.6])
    y = 0.5
    pen.blob(((-0.9, y - heel), (-0.4, y - heel * 0.75), (0.3, y), (0.95, y), (0.92, y + 0.14),
              (0.2, y + 0.15), (-0.5, y - heel * 0.6 + 0.14), (-0.9,
              y - heel + 0.13)), c)  # fmt: skip
    if heel:
        pen.limb((-0.82, y - heel), (-0.78, y + 0.15), 0.12, 0.05 + 0.1 * rng.random(), c)
    for x in (-0.7, rng.uniform(-0.3, 0.0), rng.uniform(0.3, 0.6)):
        base = y - heel * max(0.0, 0.3 - x)
        lift = rng.uniform(0.25, 0.5)
        pen.curve(
            ((x - 0.15, base), (x, base - lift), (x + 0.25, base - 0.02)), 0.08, scaled(c, 0.8)
        )


def _boot(pen: Pen, c: Colour, rng: Rng) -> None:
    top, heel = rng.uniform(-0.95, -0.55), rng.uniform(0.05, 0.35)
    y = 0.75
    pen.blob(((-0.7, top), (-0.1, top + 0.05), (-0.02, -0.1), (0.5, y - 0.4), (0.93, y - 0.15),
              (0.9, y), (0.2, y), (-0.3, y - heel), (-0.75, y - heel)), c)  # fmt: skip
    pen.limb(
        (-0.55, y - heel - 0.1), (-0.6, y + 0.08), 0.22, rng.uniform(0.06, 0.2), scaled(c, 0.6)
    )
    pen.line(((-0.2, y), (0.9, y + 0.03)), 0.08, scaled(c, 0.5))
    if rng.random() < 0.5:
        pen.line(((-0.72, top + 0.4), (-0.05, top + 0.45)), 0.06, scaled(c, 0.6))


def _bag(pen: Pen, c: Colour, rng: Rng) -> None:
    w, top, bottom = rng.uniform(0.6, 0.95), rng.uniform(-0.35, 0.05), rng.uniform(0.55, 0.85)
    reach = top - rng.uniform(0.25, 0.7)
    h = w * rng.uniform(0.3, 0.8)
    pen.curve(
        ((-h, top + 0.1), (-h * 0.8, reach), (h * 0.8, reach), (h, top + 0.1)), 0.07, scaled(c, 0.7)
    )
    pen.poly(((-w * 0.9, top), (w * 0.9, top), (w, bottom), (-w, bottom)), c)
    if rng.random() < 0.6:
        pen.poly(((-w * 0.9, top), (w * 0.9, top), (w * 0.5, top + 0.3), (-w * 0.5, top + 0.3)),
                 scaled(c, 0.75))  # fmt: skip
    pen.oval(0, top + 0.3, 0.07, 0.07, scaled(c, 1.6))


GARMENTS: dict[str, Callable[[Pen, Colour, Rng], None]] = {
    "t-shirt": _tshirt, "trouser": _trouser, "pullover": _pullover, "dress": _dress, "coat": _coat,
    "sandal": _sandal, "shirt": _shirt, "sneaker": _sneaker, "bag": _bag, "ankle boot": _boot,
    "hat": _hat, "skirt": _skirt, "sock": _sock, "glove": _glove,
}  # fmt: skip
_GARMENTS = tuple(GARMENTS.values())


def _weave(rng: Rng) -> Field:
    """A cloth pattern as a relative change of brightness."""
    kind = rng.integers(7)
    if kind < 4:
        return 0.06 * noise(rng, int(rng.integers(0, 4)))
    f, p = rng.uniform(8, 40), rng.uniform(0, 6)
    depth = rng.uniform(0.05, 0.35)
    if kind == 4:
        return depth * np.sin(f * Y + p)
    if kind == 5:
        return depth * np.sin(f * X + p)
    return depth * np.sign(np.sin(f * X + p) * np.sin(f * Y + p))


def draw_garment(rng: Rng, label: int) -> Image.Image:
    """A garment as in a catalogue: mostly grey on black, at times coloured on another ground."""
    pen = Pen(rng, scale=(0.8, 1.02), turn=0.03, shear=0.03, shift=0.03)
    plain = rng.random() < 0.6
    value = int(255 * rng.uniform(0.15, 1) ** 0.6)
    c = (value, value, value) if plain else vivid(rng, 0.25, 1.0)
    _GARMENTS[label](pen, c, rng)
    if plain:
        ground = np.zeros((64, 64, 3), np.float32)
        out = compose(rng, ground, pen.image, relief=rng.uniform(0.1, 0.7), grain=0.05, patchy=0.07,
                      shadow=0, weave=_weave(rng))  # fmt: skip
        return Image.fromarray(np.clip(out, 0, 255).astype(np.uint8)).convert("L").convert("RGB")
    a = np.array(vivid(rng, 0.1, 1.0))
    ground = ramp(0.5 + 0.2 * noise(rng, int(rng.integers(1, 6))), a * 0.8, a * 1.15)
    return camera(rng, compose(rng, ground, pen.image, weave=_weave(rng)))
