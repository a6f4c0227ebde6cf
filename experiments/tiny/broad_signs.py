"""Road signs as a camera in a car sees them: shapes, rims, numbers, pictograms, any light."""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from experiments.tiny.broad_tools import (
    Colour,
    Field,
    Pen,
    Rng,
    camera,
    compose,
    near,
    noise,
    pick,
    ramp,
)

RED, WHITE, BLACK, BLUE, YELLOW = (
    (196, 26, 34), (238, 238, 236), (22, 22, 26), (20, 72, 176), (250, 196, 30))  # fmt: skip
GREY: Colour = (120, 120, 124)
_DIGIT_BOX = 1.16  # the width of a three-digit number over the radius of the sign


@lru_cache(maxsize=64)
def _text_outline(text: str) -> Image.Image:
    """A grey mask of a short text, cut to its box."""
    font = ImageFont.load_default(size=48)
    left, top, right, bottom = font.getbbox(text, stroke_width=2)
    mask = Image.new("L", (int(right - left), int(bottom - top)))
    ImageDraw.Draw(mask).text((-left, -top), text, fill=255, font=font, stroke_width=2)
    return mask


def _write(pen: Pen, text: str, height: float, fill: Colour, wide: float = _DIGIT_BOX) -> None:
    """Text in the middle of a sign, following the sign's pose through an affine map."""
    mask = _text_outline(text)
    w = min(wide, height * mask.width / mask.height) / 2
    h = height / 2
    corner, right, down = pen.place(((-w, -h), (w, -h), (-w, h)))
    forward = np.array([(right - corner) / mask.width, (down - corner) / mask.height]).T
    back = np.linalg.inv(forward)
    start = -back @ corner
    data = (*back[0], start[0], *back[1], start[1])
    placed = mask.transform(pen.image.size, Image.Transform.AFFINE, data, Image.Resampling.BILINEAR)
    pen.image.paste(fill, (0, 0), placed)


def _round(pen: Pen, rim: Colour = RED, face: Colour = WHITE, width: float = 0.2) -> None:
    pen.oval(0, 0, 0.95, 0.95, rim)
    pen.oval(0, 0, 0.95 - width, 0.95 - width, face)


def _triangle(pen: Pen, face: Colour = WHITE, flip: float = 1) -> None:
    pen.poly(((0, -0.98 * flip), (1.02, 0.8 * flip), (-1.02, 0.8 * flip)), RED)
    pen.poly(((0, -0.55 * flip), (0.66, 0.6 * flip), (-0.66, 0.6 * flip)), face)


def _arrow(
    pen: Pen, points: tuple[tuple[float, float], ...], fill: Colour, width: float = 0.17
) -> None:
    """A polyline that ends in an arrow head."""
    (x0, y0), (x1, y1) = points[-2:]
    n = np.hypot(x1 - x0, y1 - y0)
    ux, uy = (x1 - x0) / n, (y1 - y0) / n
    h = width * 1.7
    pen.line(points, width, fill)
    pen.poly(
        ((x1 + ux * h, y1 + uy * h), (x1 - uy * h, y1 + ux * h), (x1 + uy * h, y1 - ux * h)), fill
    )


def _car(pen: Pen, x: float, fill: Colour, lorry: bool = False) -> None:
    if lorry:
        pen.box(x - 0.3, -0.28, x + 0.12, 0.16, fill)
        pen.box(x + 0.12, -0.1, x + 0.32, 0.16, fill)
    else:
        pen.box(x - 0.26, -0.02, x + 0.26, 0.18, fill)
        pen.box(x - 0.16, -0.2, x + 0.16, 0.0, fill)
    for side in (-1, 1):
        pen.oval(x + side * 0.17, 0.2, 0.08, 0.09, fill)


def _walker(pen: Pen, x: float, y: float, k: float) -> None:
    pen.oval(x, y - 0.34 * k, 0.09 * k, 0.09 * k, BLACK)
    pen.line(((x, y - 0.25 * k), (x, y + 0.1 * k)), 0.13 * k, BLACK)
    pen.line(
        ((x - 0.2 * k, y + 0.45 * k), (x, y + 0.08 * k), (x + 0.18 * k, y + 0.45 * k)),
        0.08 * k,
        BLACK,
    )
    pen.line(((x - 0.2 * k, y), (x, y - 0.18 * k), (x + 0.2 * k, y)), 0.06 * k, BLACK)


def _stripes(pen: Pen) -> None:
    for d in (-0.16, 0.0, 0.16):
        pen.line(((-0.5 + d, 0.55 + d), (0.5 + d, -0.55 + d)), 0.06, GREY)


def _speed(limit: str) -> Callable[[Pen], None]:
    def draw(pen: Pen) -> None:
        _round(pen, width=0.17)
        _write(pen, limit, 0.62, BLACK)

    return draw  # fmt: skip


def _end_speed(pen: Pen) -> None:
    _round(pen, GREY, width=0.06)
    _write(pen, "80", 0.6, GREY)
    _stripes(pen)


def _end_all(pen: Pen) -> None:
    _round(pen, GREY, width=0.06)
    _stripes(pen)


def _no_passing(pen: Pen, rim: Colour = RED, lorry: bool = False) -> None:
    _round(pen, rim, width=0.17 if rim == RED else 0.06)
    other = RED if rim == RED else GREY
    _car(pen, -0.32, other, lorry)
    _car(pen, 0.34, BLACK if rim == RED else GREY)
    if rim != RED:
        _stripes(pen)


def _crossroads(pen: Pen) -> None:
    _triangle(pen)
    pen.line(((0, 0.5), (0, -0.2)), 0.16, BLACK)
    pen.line(((-0.32, 0.25), (0.32, 0.25)), 0.08, BLACK)


def _priority(pen: Pen) -> None:
    for r, c in ((1.0, WHITE), (0.92, BLACK), (0.86, WHITE), (0.6, YELLOW)):
        pen.poly(((0, -r), (r, 0), (0, r), (-r, 0)), c)


def _stop(pen: Pen) -> None:
    for r, c in ((1.0, WHITE), (0.92, RED)):
        a = np.arange(8) * np.pi / 4 + np.pi / 8
        pen.poly(np.stack([r * np.cos(a), r * np.sin(a)], 1), c)
    _write(pen, "STOP", 0.5, WHITE, 1.5)


def _no_lorries(pen: Pen) -> None:
    _round(pen)
    pen.box(-0.42, -0.28, 0.15, 0.16, BLACK)
    pen.box(0.18, -0.12, 0.42, 0.16, BLACK)
    for x in (-0.25, 0.26):
        pen.oval(x, 0.22, 0.1, 0.1, BLACK)


def _no_entry(pen: Pen) -> None:
    pen.oval(0, 0, 0.97, 0.97, RED)
    pen.box(-0.68, -0.18, 0.68, 0.18, WHITE)


def _caution(pen: Pen) -> None:
    _triangle(pen)
    pen.limb((0, -0.28), (0, 0.25), 0.1, 0.06, BLACK)
    pen.oval(0, 0.42, 0.09, 0.09, BLACK)


def _curve(side: int) -> Callable[[Pen], None]:
    def draw(pen: Pen) -> None:
        _triangle(pen)
        _arrow(pen, ((-side * 0.16, 0.5), (-side * 0.16, 0.2), (side * 0.16, 0.02)), BLACK, 0.15)

    return draw  # fmt: skip


def _double_curve(pen: Pen) -> None:
    _triangle(pen)
    _arrow(pen, ((0.12, 0.52), (-0.14, 0.3), (0.14, 0.12), (0, -0.1)), BLACK, 0.12)


def _bumps(pen: Pen) -> None:
    _triangle(pen)
    pen.box(-0.45, 0.38, 0.45, 0.5, BLACK)
    for x in (-0.22, 0.22):
        pen.oval(x, 0.36, 0.17, 0.16, BLACK)


def _slippery(pen: Pen) -> None:
    _triangle(pen)
    pen.box(-0.2, -0.05, 0.16, 0.16, BLACK)
    for x in (-0.18, 0.12):
        pen.curve(((x, 0.2), (x + 0.1, 0.3), (x - 0.06, 0.4), (x + 0.06, 0.52)), 0.06, BLACK)


def _narrow(pen: Pen) -> None:
    _triangle(pen)
    pen.line(((-0.14, 0.5), (-0.14, -0.1)), 0.09, BLACK)
    pen.line(((0.3, 0.5), (0.3, 0.3), (0.1, 0.15), (0.1, -0.1)), 0.09, BLACK)


def _works(pen: Pen) -> None:
    _triangle(pen)
    _walker(pen, -0.08, 0.12, 0.8)
    pen.oval(0.32, 0.46, 0.2, 0.12, BLACK)
    pen.line(((-0.05, 0.05), (0.32, 0.4)), 0.06, BLACK)


def _lights(pen: Pen) -> None:
    _triangle(pen)
    pen.box(-0.15, -0.22, 0.15, 0.54, BLACK)
    for y, c in ((-0.1, RED), (0.14, YELLOW), (0.38, (40, 160, 70))):
        pen.oval(0, y, 0.11, 0.1, c)


def _pedestrian(pen: Pen) -> None:
    _triangle(pen)
    _walker(pen, 0, 0.16, 0.9)


def _children(pen: Pen) -> None:
    _triangle(pen)
    _walker(pen, -0.2, 0.22, 0.72)
    _walker(pen, 0.22, 0.26, 0.62)


def _bicycle(pen: Pen) -> None:
    _triangle(pen)
    for x in (-0.26, 0.26):
        pen.ring(x, 0.36, 0.17, 0.06, BLACK)
    pen.line(((-0.26, 0.36), (-0.08, 0.08), (0.16, 0.1), (0.0, 0.36), (-0.1, 0.08)), 0.05, BLACK)
    pen.line(((0.26, 0.36), (0.14, 0.0)), 0.05, BLACK)


def _snow(pen: Pen) -> None:
    _triangle(pen)
    for a in np.arange(3) * np.pi / 3:
        c, s = 0.34 * np.sin(a), 0.34 * np.cos(a)
        pen.line(((-c, 0.22 - s), (c, 0.22 + s)), 0.07, (40, 70, 150))


def _deer(pen: Pen) -> None:
    _triangle(pen)
    pen.blob(
        ((-0.3, 0.2), (0.1, 0.05), (0.26, -0.12), (0.34, -0.02), (0.2, 0.22), (-0.25, 0.32)), BLACK
    )
    for x0, x1 in ((-0.22, -0.38), (-0.16, -0.1), (0.1, 0.2), (0.14, 0.38)):
        pen.line(((x0, 0.24), (x1, 0.54)), 0.06, BLACK)
    pen.line(((0.24, -0.08), (0.14, -0.3)), 0.05, BLACK)


def _blue(
    *points: tuple[float, float], also: tuple[tuple[float, float], ...] = ()
) -> Callable[[Pen], None]:
    def draw(pen: Pen) -> None:
        _round(pen, WHITE, BLUE, 0.05)
        _arrow(pen, points, WHITE, 0.2)
        if also:
            _arrow(pen, also, WHITE, 0.2)

    return draw  # fmt: skip


def _roundabout(pen: Pen) -> None:
    _round(pen, WHITE, BLUE, 0.05)
    for k in range(3):
        a = k * 2 * np.pi / 3 + np.array([0.0, 0.5, 1.0, 1.4])
        _arrow(pen, tuple(zip(0.48 * np.cos(a), 0.48 * np.sin(a), strict=True)), WHITE, 0.14)


def _square(letter: str) -> Callable[[Pen], None]:
    def draw(pen: Pen) -> None:
        pen.box(-0.85, -0.85, 0.85, 0.85, WHITE)
        pen.box(-0.78, -0.78, 0.78, 0.78, BLUE)
        _write(pen, letter, 1.0, WHITE)

    return draw  # fmt: skip


def _no_parking(pen: Pen) -> None:
    _round(pen, RED, BLUE, 0.16)
    pen.line(((-0.55, -0.55), (0.55, 0.55)), 0.16, RED)


def _crossing(pen: Pen) -> None:
    pen.box(-0.85, -0.85, 0.85, 0.85, BLUE)
    pen.poly(((0, -0.6), (0.7, 0.6), (-0.7, 0.6)), WHITE)
    _walker(pen, 0, 0.15, 0.9)


def _train(pen: Pen) -> None:
    for side in (-1, 1):
        pen.line(((-0.95, -0.5 * side), (0.95, 0.5 * side)), 0.28, RED)
        pen.line(((-0.9, -0.47 * side), (0.9, 0.47 * side)), 0.15, WHITE)


_LIMITS = {"20": "twenty", "30": "thirty", "40": "forty", "50": "fifty", "60": "sixty",
    "70": "seventy",
           "80": "eighty", "90": "ninety", "100": "hundred", "120": "hundred twenty"}  # fmt: skip
SIGNS: dict[str, Callable[[Pen], None]] = {
    **{f"speed limit {word}": _speed(number) for number, word in _LIMITS.items()},
    "end of speed limit eighty": _end_speed,
    "no passing": _no_passing,
    "no passing for trucks": lambda pen: _no_passing(pen, RED, True),
    "end of no passing": lambda pen: _no_passing(pen, GREY),
    "end of no passing for trucks": lambda pen: _no_passing(pen, GREY, True),
    "end of all limits": _end_all,
    "priority at crossroads": _crossroads,
    "priority road": _priority,
    "yield": lambda pen: _triangle(pen, WHITE, -1),
    "stop": _stop,
    "no vehicles": _round,
    "no trucks": _no_lorries,
    "no entry": _no_entry,
    "caution": _caution,
    "curve left": _curve(-1),
    "curve right": _curve(1),
    "double curve": _double_curve,
    "bumpy road": _bumps,
    "slippery road": _slippery,
    "narrow road": _narrow,
    "road works": _works,
    "traffic lights": _lights,
    "pedestrians": _pedestrian,
    "children": _children,
    "bicycles": _bicycle,
    "snow": _snow,
    "deer": _deer,
    "turn right": _blue((-0.25, 0.55), (-0.25, -0.05), (0.3, -0.05)),
    "turn left": _blue((0.25, 0.55), (0.25, -0.05), (-0.3, -0.05)),
    "straight ahead": _blue((0, 0.6), (0, -0.35)),
    "straight or right": _blue((-0.15, 0.6), (-0.15, -0.4), also=((-0.15, 0.2), (0.35, 0.2))),
    "straight or left": _blue((0.15, 0.6), (0.15, -0.4), also=((0.15, 0.2), (-0.35, 0.2))),
    "keep right": _blue((-0.45, -0.45), (0.3, 0.3)),
    "keep left": _blue((0.45, -0.45), (-0.3, 0.3)),
    "roundabout": _roundabout,
    "parking": _square("P"),
    "hospital": _square("H"),
    "no parking": _no_parking,
    "pedestrian crossing": _crossing,
    "train crossing": _train,
}
_SIGNS = tuple(SIGNS.values())
_GROUNDS = (
    ((18, 30, 12), (70, 90, 40), (150, 170, 110)), ((150, 180, 220), (225, 235, 245), (255, 255,
    255)),
    ((60, 56, 54), (120, 112, 106), (170, 160, 150)), ((20, 20, 24), (50, 52, 60), (90, 92, 104)),
    ((80, 50, 38), (140, 98, 70), (200, 170, 140)), ((30, 40, 30), (140, 150, 140), (240, 244,
    250)),
)  # fmt: skip


def _street(rng: Rng) -> Field:
    """Foliage, sky, walls or dusk behind a sign; at times two of them side by side."""
    field = 0.5 + rng.uniform(0.1, 0.3) * noise(rng, int(rng.integers(1, 5)))
    ground = ramp(field, *(near(rng, c, 14) for c in pick(rng, _GROUNDS)))
    if rng.random() < 0.35:
        other = ramp(field, *(near(rng, c, 14) for c in pick(rng, _GROUNDS)))
        cut = int(rng.integers(10, 54))
        ground[:, cut:] = other[:, cut:]
    return ground


def draw_sign(rng: Rng, label: int) -> Image.Image:
    """A road sign cut out of a street scene: near or far, in glare, dusk, blur and at an angle."""
    pen = Pen(
        rng,
        scale=(0.62, 0.98),
        turn=0.06,
        shear=0.05,
        aspect=0.1,
        shift=0.07,
        mirror=False,
        tilt=0.05,
    )
    if rng.random() < 0.3:
        pen.line(((0, 0.5), (0, 3.0)), 0.14, near(rng, (110, 110, 112), 30))
    _SIGNS[label](pen)
    picture = compose(
        rng, _street(rng), pen.image, relief=0.12, grain=0.03, patchy=0.06, shadow=0.3
    )
    image = camera(rng, picture, grey=0.03, blur=0.5, dark=0.3, softest=1.8)
    if rng.random() < 0.2:  # far away: few pixels, enlarged
        side = int(rng.integers(18, 32))
        image = image.resize((side, side), Image.Resampling.BOX).resize(
            (64, 64), Image.Resampling.BICUBIC
        )
    return image
