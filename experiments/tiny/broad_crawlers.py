"""Reptiles, insects and other crawling things, each from its own recipe."""

import numpy as np

from experiments.tiny.broad_birds_fish import eye
from experiments.tiny.broad_tools import Colour, Pen, Rng, near, pick, scaled, vivid

_DARK: Colour = (22, 20, 20)


def frog(pen: Pen, rng: Rng) -> None:
    """Draws a frog."""
    c = near(rng, pick(rng, ((80, 136, 50), (110, 110, 60), (130, 104, 70), (60, 110, 60))), 16)
    for side in (-1, 1):
        pen.oval(side * 0.55, 0.35, 0.35, 0.22, scaled(c, 0.8), side * 0.5)
        pen.line(((side * 0.3, 0.4), (side * 0.42, 0.78), (side * 0.65, 0.8)), 0.1, scaled(c, 0.85))
    pen.oval(0, 0.2, 0.55, 0.48, c)
    pen.oval(0, 0.4, 0.4, 0.25, scaled(c, 1.5))
    pen.oval(0, -0.15, 0.5, 0.3, c)
    for side in (-1, 1):
        pen.oval(side * 0.3, -0.4, 0.15, 0.15, c)
        pen.oval(side * 0.3, -0.42, 0.1, 0.1, (216, 180, 60))
        pen.oval(side * 0.3, -0.42, 0.05, 0.07, _DARK)
    pen.curve(((-0.4, -0.1), (0, 0.05), (0.4, -0.1)), 0.04, scaled(c, 0.4))


def snake(pen: Pen, rng: Rng) -> None:
    """Draws a snake."""
    c = near(rng, pick(rng, ((90, 110, 50), (140, 104, 64), (60, 56, 50), (180, 80, 50))), 16)
    t = np.linspace(0, 1, 8)
    if rng.random() < 0.4:
        a = t * rng.uniform(8, 12)
        points = np.stack([(0.2 + 0.6 * t) * np.cos(a), (0.2 + 0.45 * t) * np.sin(a)], 1)
    else:
        points = np.stack(
            [1.7 * t - 0.85, 0.4 * np.sin(rng.uniform(6, 11) * t + rng.uniform(0, 6))], 1
        )
    width = rng.uniform(0.14, 0.24)
    pen.curve(points, width, c)
    pen.curve(points - (0, 0.02), width * 0.4, scaled(c, pick(rng, (0.5, 1.5))))
    pen.oval(points[-1, 0], points[-1, 1], width * 0.75, width * 0.6, c)
    eye(pen, points[-1, 0], points[-1, 1] - 0.03, 0.03)


def lizard(pen: Pen, rng: Rng, c: Colour | None = None, fat: float = 1.0) -> None:
    """Draws a lizard."""
    c = c or near(rng, pick(rng, ((110, 130, 60), (140, 110, 76), (90, 90, 84))), 16)
    for x, dx in ((-0.25, -0.15), (0.35, 0.15)):
        for side in (-1, 1):
            pen.line(
                ((x, 0), (x + dx, side * 0.25), (x + dx * 1.8, side * 0.36)),
                0.08 * fat,
                scaled(c, 0.8),
            )
    bend = rng.uniform(-0.4, 0.4)
    pen.limb((-0.3, 0), (-0.95, bend), 0.13 * fat, 0.02, c)
    pen.blob(
        (
            (-0.4, 0),
            (0, -0.17 * fat),
            (0.5, -0.1 * fat),
            (0.92, -0.03),
            (0.92, 0.03),
            (0.5, 0.1 * fat),
            (0, 0.17 * fat),
        ),
        c,
    )
    for x in np.arange(-0.3, 0.4, 0.14):
        pen.line(((x, -0.1 * fat), (x, 0.1 * fat)), 0.05, scaled(c, 0.6))
    eye(pen, 0.68, -0.04, 0.03)


def crocodile(pen: Pen, rng: Rng) -> None:
    """Draws a crocodile."""
    lizard(pen, rng, near(rng, (84, 92, 62), 10), 1.5)
    pen.limb((0.5, 0.02), (1.1, 0.04), 0.12, 0.08, near(rng, (92, 100, 70), 6))
    pen.line(((0.6, 0.06), (1.1, 0.07)), 0.03, (230, 226, 210))


def dinosaur(pen: Pen, rng: Rng) -> None:
    """Draws a dinosaur."""
    c = near(rng, pick(rng, ((110, 124, 80), (136, 110, 80), (120, 120, 124))), 14)
    pen.limb((-0.3, 0.1), (-1.0, 0.35), 0.2, 0.02, c)
    for x in (-0.15, 0.12):
        pen.limb((x, 0.2), (x + 0.05, 0.85), 0.14, 0.07, scaled(c, 0.8))
    pen.oval(0, 0.05, 0.42, 0.28, c, -0.3)
    if rng.random() < 0.5:
        pen.curve(((0.25, -0.05), (0.55, -0.4), (0.6, -0.8)), 0.17, c)
        pen.oval(0.7, -0.82, 0.2, 0.1, c)
    else:
        pen.limb((0.25, -0.1), (0.5, -0.5), 0.2, 0.14, c)
        pen.oval(0.62, -0.55, 0.3, 0.16, c)
        pen.line(((0.55, -0.48), (0.9, -0.46)), 0.04, (240, 236, 220))
        pen.line(((0.3, 0), (0.5, 0.15)), 0.06, c)


def turtle(pen: Pen, rng: Rng) -> None:
    """Draws a turtle."""
    c, shell = near(rng, (110, 124, 70), 14), near(rng, pick(rng, ((96, 76, 44), (70, 84, 44))), 12)
    for x in (-0.45, 0.4):
        pen.oval(x, 0.42, 0.2, 0.14, c, 0.4)
    pen.oval(0.78, 0.08, 0.22, 0.16, c)
    pen.poly(((-0.7, 0.3), (-0.98, 0.4), (-0.65, 0.42)), c)
    pen.blob(((-0.72, 0.35), (-0.55, -0.2), (0, -0.45), (0.5, -0.2), (0.68, 0.35)), shell)
    for x, y in ((-0.3, 0.0), (0.02, -0.16), (0.3, 0.02), (0.0, 0.16)):
        pen.oval(x, y, 0.13, 0.11, scaled(shell, 1.4))
    eye(pen, 0.86, 0.04, 0.03)


def crab(pen: Pen, rng: Rng, body: Colour | None = None) -> None:
    """Draws a crab."""
    c = body or near(rng, pick(rng, ((206, 76, 40), (180, 110, 70), (130, 60, 50))), 14)
    for side in (-1, 1):
        for k in range(3):
            pen.line(
                (
                    (side * 0.35, 0.1 * k),
                    (side * 0.75, -0.05 + 0.22 * k),
                    (side * 0.9, 0.25 + 0.22 * k),
                ),
                0.06,
                scaled(c, 0.8),
            )
        pen.line(((side * 0.4, -0.1), (side * 0.75, -0.3), (side * 0.6, -0.55)), 0.09, c)
        pen.oval(side * 0.55, -0.62, 0.18, 0.14, c, side * 0.6)
        pen.oval(side * 0.15, -0.28, 0.05, 0.07, _DARK)
    pen.oval(0, 0.05, 0.5, 0.33, c)


def lobster(pen: Pen, rng: Rng) -> None:
    """Draws a lobster."""
    c = near(rng, pick(rng, ((190, 50, 30), (70, 60, 70))), 12)
    for side in (-1, 1):
        pen.line(((side * 0.1, -0.2), (side * 0.4, -0.5)), 0.08, c)
        pen.oval(side * 0.45, -0.7, 0.15, 0.25, c, side * 0.2)
        pen.curve(((side * 0.05, -0.4), (side * 0.2, -0.8), (side * 0.15, -1.0)), 0.02, c)
        for y in (-0.1, 0.08, 0.26):
            pen.line(((0, y), (side * 0.4, y + 0.12)), 0.05, scaled(c, 0.8))
    pen.oval(0, -0.1, 0.18, 0.38, c)
    for k in range(4):
        pen.oval(0, 0.25 + 0.14 * k, 0.16 - 0.02 * k, 0.1, scaled(c, 0.85 + 0.1 * (k % 2)))
    pen.poly(((0, 0.65), (-0.25, 0.92), (0.25, 0.92)), c)


def spider(pen: Pen, rng: Rng) -> None:
    """Draws a spider."""
    c = near(rng, pick(rng, ((40, 34, 30), (110, 80, 50), (150, 120, 70))), 10)
    for side in (-1, 1):
        for k, a in enumerate((-0.9, -0.35, 0.2, 0.75)):
            knee = (side * 0.5, 0.5 * a - 0.12)
            pen.line(((0, -0.05), knee, (side * (0.92 - 0.08 * (k % 2)), a)), 0.05, scaled(c, 0.85))
    pen.oval(0, 0.25, 0.26, 0.33, c)
    pen.oval(0, -0.15, 0.17, 0.18, scaled(c, 0.8))
    pen.oval(0, 0.25, 0.1, 0.16, scaled(c, 1.7))


def beetle(pen: Pen, rng: Rng) -> None:
    """Draws a beetle."""
    c = near(rng, pick(rng, ((30, 40, 34), (70, 40, 26), (180, 40, 30), (30, 80, 60))), 12)
    for side in (-1, 1):
        for y in (-0.15, 0.15, 0.42):
            pen.line(
                ((side * 0.25, y), (side * 0.55, y - 0.06), (side * 0.68, y + 0.16)), 0.05, _DARK
            )
        pen.line(((side * 0.08, -0.5), (side * 0.25, -0.78)), 0.03, _DARK)
    pen.oval(0, -0.48, 0.2, 0.16, _DARK)
    pen.oval(0, 0.12, 0.4, 0.56, c)
    pen.line(((0, -0.35), (0, 0.65)), 0.04, scaled(c, 0.4))
    if rng.random() < 0.4:
        for x, y in ((-0.18, -0.05), (0.18, -0.05), (-0.18, 0.3), (0.18, 0.3)):
            pen.oval(x, y, 0.08, 0.08, _DARK)


def cockroach(pen: Pen, rng: Rng) -> None:
    """Draws a cockroach."""
    c = near(rng, (110, 62, 30), 14)
    for side in (-1, 1):
        for y in (-0.2, 0.1, 0.35):
            pen.line(((0, y), (side * 0.5, y + 0.05), (side * 0.7, y + 0.4)), 0.04, scaled(c, 0.7))
        pen.curve(
            ((side * 0.06, -0.6), (side * 0.3, -0.85), (side * 0.6, -0.9)), 0.025, scaled(c, 0.6)
        )
    pen.oval(0, 0.15, 0.27, 0.7, c)
    pen.oval(0, -0.45, 0.24, 0.2, scaled(c, 0.7))
    pen.line(((0, -0.25), (0, 0.8)), 0.03, scaled(c, 0.5))


def bee(pen: Pen, rng: Rng) -> None:
    """Draws a bee."""
    for a in (-0.5, 0.25):
        pen.oval(-0.1 + a * 0.3, -0.42, 0.18, 0.4, (206, 214, 224), a)
    pen.oval(-0.1, 0.1, 0.58, 0.32, (226, 168, 30))
    for x in (-0.45, -0.2, 0.05):
        pen.line(((x, -0.2), (x, 0.38)), 0.11, _DARK)
    pen.oval(0.3, 0.05, 0.22, 0.24, (150, 104, 40))
    pen.oval(0.55, 0.08, 0.18, 0.18, _DARK)
    for x in (0.1, 0.25, 0.4):
        pen.line(((x, 0.3), (x + 0.05, 0.6)), 0.04, _DARK)


def butterfly(pen: Pen, rng: Rng) -> None:
    """Draws a butterfly."""
    c, edge = vivid(rng, 0.55), pick(rng, (_DARK, (60, 40, 24)))
    spread = rng.uniform(0.7, 1.05)
    for side in (-1, 1):
        up = np.array(((0, 0), (side * 0.4, -0.75), (side * 0.95, -0.75), (side * 0.8, -0.1)))
        low = np.array(((0, 0), (side * 0.7, 0.1), (side * 0.7, 0.6), (side * 0.3, 0.75)))
        for wing, tone in ((low, 0.85), (up, 1.0)):
            wing = wing * (spread, 1)
            pen.blob(wing, edge)
            pen.blob(wing * 0.8 + (side * 0.03, 0), scaled(c, tone))
        pen.oval(side * 0.6 * spread, -0.5, 0.09, 0.09, scaled(c, 1.6))
    pen.oval(0, 0.05, 0.06, 0.45, _DARK)


def snail(pen: Pen, rng: Rng) -> None:
    """Draws a snail."""
    c, shell = (
        near(rng, (176, 150, 116), 14),
        near(rng, pick(rng, ((140, 90, 50), (190, 160, 100))), 14),
    )
    pen.blob(
        ((-0.9, 0.55), (-0.2, 0.3), (0.5, 0.25), (0.75, -0.1), (0.9, 0.1), (0.8, 0.5), (0.3, 0.62)),
        c,
    )
    for x in (0.72, 0.86):
        pen.line(((x, -0.02), (x + 0.06, -0.35)), 0.04, c)
    pen.oval(-0.1, -0.05, 0.5, 0.45, shell)
    a = np.linspace(0, 11, 9)
    pen.curve(
        np.stack(
            [-0.1 + (0.42 - 0.035 * a) * np.cos(a), -0.05 + (0.38 - 0.032 * a) * np.sin(a)], 1
        ),
        0.06,
        scaled(shell, 0.5),
    )


def worm(pen: Pen, rng: Rng, c: Colour | None = None, width: float = 0.16) -> None:
    """Draws a worm."""
    c = c or near(rng, (206, 130, 116), 16)
    t = np.linspace(0, 1, 6)
    points = np.stack([1.6 * t - 0.8, rng.uniform(0.2, 0.5) * np.sin(rng.uniform(3, 8) * t)], 1)
    pen.curve(points, width, c)
    pen.oval(points[-1, 0], points[-1, 1], width / 2, width / 2, c)
    for p in points[1:-1]:
        pen.oval(p[0], p[1], width * 0.35, width * 0.3, scaled(c, 0.75))


def caterpillar(pen: Pen, rng: Rng) -> None:
    """Draws a caterpillar."""
    c = near(rng, pick(rng, ((130, 170, 50), (60, 60, 50), (200, 160, 50))), 14)
    bump = rng.uniform(0.05, 0.3)
    for k in range(9):
        x = -0.8 + 0.2 * k
        y = 0.1 - bump * np.sin(k * 0.9)
        pen.line(((x, y), (x, y + 0.28)), 0.05, _DARK)
        pen.oval(x, y, 0.15, 0.19, scaled(c, 0.8 + 0.25 * (k % 2)))
    pen.oval(0.85, 0.05, 0.15, 0.17, scaled(c, 0.5))


def ray(pen: Pen, rng: Rng) -> None:
    """Draws a ray."""
    c = near(rng, (110, 104, 96), 16)
    pen.line(((0, 0.3), (0.05, 1.0)), 0.05, scaled(c, 0.7))
    pen.blob(
        (
            (0, -0.6),
            (0.5, -0.3),
            (1.0, 0.1),
            (0.3, 0.4),
            (0, 0.5),
            (-0.3, 0.4),
            (-1.0, 0.1),
            (-0.5, -0.3),
        ),
        c,
    )
    for side in (-1, 1):
        pen.oval(side * 0.12, -0.35, 0.04, 0.04, _DARK)
