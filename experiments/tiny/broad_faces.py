"""Faces: an expression is a row of numbers; head, hair, skin, pose and light are random."""

from typing import NamedTuple

import numpy as np
from PIL import Image

from experiments.tiny.broad_tools import (
    Colour,
    Pen,
    Rng,
    X,
    Y,
    camera,
    compose,
    near,
    noise,
    pick,
    ramp,
    scaled,
)


class Expression(NamedTuple):
    """What the muscles do; 0 is rest unless said otherwise.

    brow: height; inner: height of the inner brow ends; eye: opening (1 rest); curve: mouth corners
    up; open: jaw; wide: mouth width (1 rest); teeth: share of the open mouth; nose: wrinkles;
    cheek: raised cheeks; lip: raised upper lip; wink: one eye shut.
    """

    brow: float = 0.0
    inner: float = 0.0
    eye: float = 1.0
    curve: float = 0.0
    open: float = 0.0
    wide: float = 1.0
    teeth: float = 0.0
    nose: float = 0.0
    cheek: float = 0.0
    lip: float = 0.0
    wink: float = 0.0


EXPRESSIONS: dict[str, tuple[Expression, ...]] = {
    "angry": (Expression(-0.09, -0.13, 0.75, -0.05, 0, 0.9, 0, 0.6),
              Expression(-0.1, -0.13, 0.9, -0.04, 0.18, 1.05, 0.9, 0.7),
              Expression(-0.07, -0.14, 0.6, -0.08, 0, 0.8, 0, 0.5)),
    "disgusted": (Expression(-0.09, -0.06, 0.4, -0.1, 0.05, 0.95, 0.5, 1, 0.6, 1),
                  Expression(-0.07, -0.08, 0.35, -0.08, 0, 0.9, 0, 1, 0.7, 1)),
    "afraid": (Expression(0.09, 0.1, 1.55, -0.04, 0.13, 1.15, 0.6),
               Expression(0.1, 0.1, 1.6, -0.05, 0.25, 1.0, 0.2)),
    "happy": (Expression(0.01, 0, 0.75, 0.16, 0.1, 1.35, 1, 0, 0.8),
              Expression(0.02, 0, 0.8, 0.15, 0, 1.3, 0, 0, 0.6),
              Expression(0.03, 0, 0.6, 0.17, 0.2, 1.35, 0.6, 0, 1)),
    "sad": (Expression(0.0, 0.11, 0.65, -0.11, 0, 0.85), Expression(-0.02, 0.09, 0.5, -0.13, 0,
    0.95)),
    "surprised": (Expression(0.15, 0.02, 1.6, 0, 0.32, 0.65), Expression(0.14, 0.03, 1.5, 0, 0.22,
    0.6)),
    "neutral": (Expression(), Expression(0.02, 0, 1.05), Expression(-0.02, 0, 0.9, -0.02)),
    "sleepy": (Expression(0.02, 0.02, 0, -0.01), Expression(0.01, 0, 0.0, 0, 0.08, 0.7)),
    "winking": (Expression(0.02, 0, 1.0, 0.12, 0, 1.15, 0, 0, 0.4, 0, 1),),
    "laughing": (Expression(0.04, 0.02, 0.0, 0.14, 0.32, 1.3, 0.45, 0.2, 1),),
    "screaming": (Expression(-0.03, -0.06, 0.3, -0.05, 0.42, 0.95, 0.3, 0.8, 0.5),),
    "kissing": (Expression(0.03, 0, 0.0, 0, 0.06, 0.32),),
}  # fmt: skip
_EXPRESSIONS = tuple(EXPRESSIONS.values())
PEOPLE = ("baby", "boy", "girl", "man", "woman", "old man", "old woman", "clown")

_SKIN = (
    (236, 200, 175),
    (222, 178, 148),
    (200, 150, 118),
    (160, 110, 80),
    (110, 72, 52),
    (240, 214, 196),
)
_HAIR = ((30, 24, 20), (60, 40, 26), (110, 74, 40), (200, 165, 95), (150, 70, 35), (190, 188, 185))


class Looks(NamedTuple):
    """Who it is: colours and proportions in face units (half a face height is 1)."""

    skin: Colour
    hair: Colour
    width: float
    jaw: float
    eyes: float
    spacing: float
    length: str
    brow: float


def _looks(rng: Rng) -> Looks:
    """A random person."""
    return Looks(
        near(rng, pick(rng, _SKIN), 14), near(rng, pick(rng, _HAIR), 12), rng.uniform(0.66, 0.84),
        rng.uniform(0.36, 0.6), rng.uniform(0.12, 0.17), rng.uniform(0.3, 0.38),
        pick(rng, ("short", "short", "long", "bald", "fringe")), rng.uniform(0.04, 0.09),
    )  # fmt: skip


def _head(pen: Pen, who: Looks, rng: Rng) -> None:
    """Hair behind, neck, ears, head, hair in front and the soft shadows of the face."""
    skin, w = who.skin, who.width
    if who.length == "long":
        pen.blob(((-w - 0.15, -0.4), (-0.4, -1.1), (0.4, -1.1), (w + 0.15, -0.4), (w + 0.2, 1.0),
                  (0, 1.2), (-w - 0.2, 1.0)), who.hair)  # fmt: skip
    pen.box(-0.4, 0.6, 0.4, 1.6, scaled(skin, 0.72))
    pen.poly(((-1.4, 1.7), (-0.5, 1.15), (0.5, 1.15), (1.4, 1.7)), near(rng, (110, 110, 120), 60))
    if who.length != "long":
        for side in (-1, 1):
            pen.oval(side * (w + 0.02), 0.05, 0.1, 0.2, scaled(skin, 0.85))
    pen.blob(((-w, -0.2), (-w * 0.8, -0.8), (0, -1.0), (w * 0.8, -0.8), (w, -0.2), (w * 0.93, 0.4),
              (who.jaw, 0.85), (0, 1.0), (-who.jaw, 0.85), (-w * 0.93, 0.4)), skin)  # fmt: skip
    dark = scaled(skin, 0.7)
    for side in (-1, 1):
        pen.oval(side * who.spacing, -0.12, 0.2, 0.12, dark)
        pen.oval(side * 0.09, 0.3, 0.07, 0.06, dark)
        pen.oval(side * w * 0.85, 0.35, 0.14, 0.35, scaled(skin, 0.85))
    pen.oval(0, 0.85, 0.2, 0.06, scaled(skin, 0.86))
    pen.oval(0.02, 0.1, 0.08, 0.22, scaled(skin, 1.12))
    pen.soften(1.6)
    if who.length != "bald":
        low = {"short": -0.62, "long": -0.55, "fringe": -0.38}[who.length] + rng.normal(0, 0.05)
        part = rng.uniform(-0.5, 0.5)
        pen.blob(((-w - 0.06, -0.1), (-w - 0.08, -0.6), (-0.5, -1.1), (0.5, -1.12), (w + 0.08,
            -0.6),
                  (w + 0.06, -0.1), (w * 0.85, low), (part,
                  low - 0.12 + 0.2 * (who.length == "fringe")),
                  (-w * 0.85, low)), who.hair)  # fmt: skip


def _eyes(pen: Pen, who: Looks, e: Expression, rng: Rng, gaze: float) -> None:
    """Brows and eyes."""
    lid, white = scaled(who.skin, 0.4), scaled((255, 255, 255), rng.uniform(0.8, 1.0))
    shut = int(rng.integers(2)) if e.wink else -1
    for k, side in enumerate((-1, 1)):
        x, r = side * who.spacing, who.eyes
        opening = 0.0 if k == shut else e.eye * r * 0.55
        if opening < 0.02:
            sag = 0.05 if e.cheek < 0.5 else -0.06
            pen.curve(((x - r, -0.1), (x, -0.1 + sag), (x + r, -0.1)), 0.05, lid)
        else:
            tilt = 0.35 * e.inner * side
            pen.oval(x, -0.12, r * 1.12, opening + 0.03, lid, -tilt)
            pen.oval(x, -0.11, r, opening, white, -tilt)
            iris = min(0.085, opening + 0.02)
            pen.oval(x + gaze, -0.11, 0.085, iris, near(rng, (50, 40, 34), 10))
        high = -0.34 - e.brow + rng.normal(0, 0.012)
        arch = 0.05 + max(0.0, e.brow) * 0.5
        inner, outer = high - e.inner, high + 0.04 + e.inner * 0.3
        ink = scaled(who.hair, 0.6)
        pen.curve(((x - side * 0.17, inner), (x, (inner + outer) / 2 - arch), (x + side * 0.2,
            outer)),
                  who.brow, ink)  # fmt: skip


def _mouth(pen: Pen, who: Looks, e: Expression, rng: Rng) -> None:
    """Nostrils, folds, lips, teeth and the dark of an open mouth."""
    skin, dark = who.skin, scaled(who.skin, 0.5)
    lips = scaled((skin[0], skin[1] * 0.75, skin[2] * 0.75), rng.uniform(0.65, 0.95))
    for side in (-1, 1):
        pen.oval(side * 0.08, 0.3, 0.035, 0.025, dark)
        if e.cheek or e.nose > 0.5 or e.curve > 0.1:
            pen.curve(
                ((side * 0.17, 0.25), (side * 0.3, 0.42), (side * 0.34 * e.wide, 0.6)),
                0.035,
                scaled(skin, 0.66),
            )
        if e.nose:
            pen.line(((side * 0.04, -0.22), (side * 0.09, -0.36)), 0.035, scaled(skin, 0.6))
        if e.nose > 0.9:
            pen.line(((side * 0.06, 0.05), (side * 0.16, 0.12)), 0.035, scaled(skin, 0.62))
        if e.cheek > 0.5:
            pen.curve(
                ((side * 0.2, 0.02), (side * 0.36, 0.06), (side * 0.5, 0.0)),
                0.03,
                scaled(skin, 0.7),
            )
    w, y, up = 0.26 * e.wide, 0.56 - 0.06 * e.lip, e.curve + 0.012
    if e.open < 0.02:
        mid = y + up * 0.6 - 0.1 * e.lip
        pen.curve(
            ((-w, y - up), (-w / 2, mid - 0.015), (0, mid), (w / 2, mid - 0.015), (w, y - up)),
            0.1,
            lips,
        )
        pen.curve(((-w, y - up), (0, mid), (w, y - up)), 0.045, scaled(lips, 0.4))
        return
    top, bottom = y - 0.05 - 0.3 * e.open + up * 0.4, y + e.open + up * 0.4
    for grow, colour in ((0.05, lips), (0.0, (46, 20, 22))):
        if e.wide < 0.75:
            pen.oval(0, (top + bottom) / 2, w + grow, (bottom - top) / 2 + grow, colour)
            continue
        pen.blob(((-w - grow, y - up), (0, top - grow), (w + grow, y - up), (w * 0.7,
            (y + bottom) / 2 + grow),
                  (0, bottom + grow), (-w * 0.7, (y + bottom) / 2 + grow)), colour)  # fmt: skip
    if e.teeth:
        depth = (bottom - top) * (0.3 + 0.55 * max(0.0, e.teeth - 0.4))
        pen.blob(
            ((-w * 0.8, y - up * 0.9), (0, top + 0.01), (w * 0.8, y - up * 0.9), (0, top + depth)),
            (232, 228, 220),
        )


def _extras(pen: Pen, who: Looks, rng: Rng, beard: float) -> None:
    """Glasses and beard, at times."""
    if rng.random() < 0.12:
        for side in (-1, 1):
            pen.ring(side * who.spacing, -0.1, 0.22, 0.04, (25, 25, 28))
        pen.line(((-0.12, -0.12), (0.12, -0.12)), 0.04, (25, 25, 28))
    if rng.random() < beard:
        pen.blob(((-who.width * 0.9, 0.3), (-0.3, 0.42), (0, 0.38), (0.3, 0.42), (who.width * 0.9,
            0.3),
                  (who.jaw, 0.9), (0, 1.08), (-who.jaw, 0.9)), scaled(who.hair, 0.8))  # fmt: skip


def _varied(rng: Rng, e: Expression) -> Expression:
    """The same expression, stronger or weaker, with small accidents."""
    strength = rng.uniform(0.75, 1.25)
    rest = Expression()
    moved = [r + (v - r) * strength for r, v in zip(rest, e, strict=True)]
    moved[0] += rng.normal(0, 0.012)
    moved[2] = max(0.0, moved[2] * np.exp(rng.normal(0, 0.08))) if e.eye else 0.0
    moved[3] += rng.normal(0, 0.012)
    moved[5] *= np.exp(rng.normal(0, 0.06))
    return Expression(*moved)


def _portrait(
    rng: Rng, who: Looks, e: Expression, *, grey: float, beard: float = 0.1
) -> Image.Image:
    pen = Pen(rng, scale=(0.85, 1.2), turn=0.1, shear=0.05, aspect=0.08, shift=0.06, tilt=0.06)
    _head(pen, who, rng)
    _extras(pen, who, rng, beard)
    _eyes(pen, who, e, rng, rng.normal(0, 0.025))
    _mouth(pen, who, e, rng)
    a, b = near(rng, (120, 120, 125), 60), near(rng, (120, 120, 120), 60)
    ground = ramp(0.5 + 0.3 * noise(rng, int(rng.integers(2, 6))), a, b)
    picture = compose(rng, ground, pen.image, relief=rng.uniform(0.2, 0.8), grain=0.04, patchy=0.06,
                      roundness=(5, 10))  # fmt: skip
    side, rise = rng.normal(0, 0.3), rng.normal(0, 0.12)
    picture *= np.clip(1 + side * X + rise * Y, 0.25, 1.7)[:, :, None]
    return camera(rng, picture, grey=grey, blur=0.2, softest=1.4)


def draw_expression(rng: Rng, label: int) -> Image.Image:
    """A face close up with the expression of the class, mostly grey."""
    e = _varied(rng, pick(rng, _EXPRESSIONS[label]))
    return _portrait(rng, _looks(rng), e, grey=0.75)


def draw_person(rng: Rng, label: int) -> Image.Image:
    """A person of some age in colour, resting or smiling."""
    who, name = _looks(rng), PEOPLE[label]
    beard = 0.0
    if name == "baby":
        who = who._replace(
            width=0.86,
            jaw=0.66,
            eyes=0.19,
            spacing=0.36,
            length=pick(rng, ("bald", "short")),
            brow=0.03,
        )
    elif name in ("boy", "girl"):
        who = who._replace(
            width=0.8,
            jaw=0.5,
            eyes=0.17,
            length="short" if name == "boy" else pick(rng, ("long", "fringe")),
        )
    elif name in ("woman", "old woman"):
        who = who._replace(width=0.7, jaw=0.36, length="long", brow=0.045)
    elif name in ("man", "old man"):
        who, beard = who._replace(jaw=0.58, length=pick(rng, ("short", "bald")), brow=0.09), 0.4
    if name.startswith("old"):
        who = who._replace(hair=near(rng, (200, 198, 196), 15))
    if name == "clown":
        who = who._replace(
            skin=(245, 240, 238),
            hair=pick(rng, ((220, 40, 30), (40, 160, 60), (240, 130, 20))),
            length="fringe",
        )
    e = _varied(rng, pick(rng, _EXPRESSIONS[int(rng.choice([3, 3, 6, 6, 6, 5]))]))
    if name.startswith("old"):
        e = e._replace(nose=0.8, cheek=0.7)
    return _portrait(rng, who, e, grey=0.15, beard=beard)
