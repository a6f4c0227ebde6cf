"""Birds, fish and sea mammals, each from its own recipe."""

from experiments.tiny.broad_tools import Colour, Pen, Rng, near, pick, scaled, vivid

_DARK: Colour = (22, 20, 20)
_BILL: Colour = (230, 160, 50)
_FEATHERS = (
    (120, 96, 70),
    (60, 62, 70),
    (190, 186, 180),
    (170, 60, 44),
    (60, 100, 160),
    (214, 180, 60),
    (40, 40, 42),
)


def eye(pen: Pen, x: float, y: float, r: float = 0.05) -> None:
    """Draws an eye."""
    pen.oval(x, y, r * 1.5, r * 1.5, (226, 222, 200))
    pen.oval(x, y, r, r, _DARK)


def perched(pen: Pen, rng: Rng, c: Colour, *, leg: float = 0.25, neck: float = 0.0,
            bill: float = 0.2, tail: float = 0.4, body: float = 0.3) -> None:  # fmt: skip
    """A standing bird looking right."""
    belly = scaled(c, rng.uniform(1.1, 1.7))
    for x in (-0.02, 0.12):
        pen.line(((x, 0.2), (x + 0.02, 0.3 + leg + body)), 0.04, scaled(_BILL, 0.8))
    pen.limb((-0.25, 0.15), (-0.45 - tail, 0.3 + 0.3 * rng.random()), 0.13, 0.07, scaled(c, 0.7))
    pen.oval(0, 0.15, 0.45, body, c, -0.45)
    pen.oval(0.14, 0.26, 0.28, body * 0.65, belly, -0.45)
    hx, hy = 0.36 + 0.25 * neck, -0.22 - neck
    if neck:
        pen.curve(((0.25, 0.0), (0.42, -0.3 * neck), (hx - 0.05, hy)), 0.16, c)
    pen.poly(((hx + 0.1, hy - 0.07), (hx + 0.2 + bill, hy + 0.04), (hx + 0.1, hy + 0.1)), _BILL)
    pen.oval(hx, hy, 0.2, 0.19, c)
    pen.oval(-0.08, 0.14, 0.34, body * 0.55, scaled(c, 0.65), -0.3)
    eye(pen, hx + 0.06, hy - 0.03, 0.035)


def bird(pen: Pen, rng: Rng) -> None:
    """Draws a bird."""
    c = near(rng, pick(rng, _FEATHERS), 16)
    if rng.random() < 0.3:  # on the wing
        lift = rng.uniform(0.3, 0.8)
        for side in (-1, 1):
            pen.blob(((0, -0.1), (side * 0.5, -lift), (side * 1.0, -lift * 0.5), (side * 0.5,
                -0.05), (0, 0.15)),
                     scaled(c, 0.8 + 0.1 * side))  # fmt: skip
        pen.oval(0, 0.05, 0.16, 0.4, c)
        pen.poly(((-0.15, 0.65), (0, 0.3), (0.15, 0.65)), scaled(c, 0.7))
        pen.oval(0, -0.36, 0.12, 0.13, c)
        return
    perched(pen, rng, c)


def ostrich(pen: Pen, rng: Rng) -> None:
    """Draws an ostrich."""
    perched(
        pen, rng, near(rng, (60, 54, 52), 12), leg=0.4, neck=0.6, bill=0.1, tail=0.05, body=0.38
    )


def duck(pen: Pen, rng: Rng) -> None:
    """Draws a duck."""
    c = near(rng, pick(rng, ((126, 100, 72), (226, 222, 214), (90, 86, 84))), 12)
    pen.blob(((-0.8, -0.05), (-0.3, -0.1), (0.3, 0.0), (0.5, 0.2), (0.2, 0.45), (-0.5, 0.4)), c)
    pen.limb((0.35, 0.15), (0.5, -0.35), 0.16, 0.13, c)
    head = pick(rng, (c, (30, 90, 60)))
    pen.oval(0.52, -0.38, 0.2, 0.18, head)
    pen.poly(((0.66, -0.42), (0.98, -0.32), (0.66, -0.26)), _BILL)
    pen.oval(-0.2, 0.12, 0.4, 0.17, scaled(c, 0.75))
    eye(pen, 0.58, -0.42, 0.03)


def owl(pen: Pen, rng: Rng) -> None:
    """Draws an owl."""
    c = near(rng, pick(rng, ((130, 100, 70), (190, 176, 156), (90, 76, 66))), 12)
    pen.oval(0, 0.25, 0.5, 0.65, c)
    for x in (-0.25, 0.25):
        pen.poly(((x - 0.14, -0.5), (x * 1.7, -0.98), (x + 0.14, -0.5)), c)
    pen.oval(0, -0.35, 0.5, 0.42, scaled(c, 1.1))
    for x in (-0.2, 0.2):
        pen.oval(x, -0.36, 0.2, 0.2, scaled(c, 1.5))
        pen.oval(x, -0.36, 0.13, 0.13, (236, 180, 40))
        pen.oval(x, -0.36, 0.07, 0.07, _DARK)
    pen.poly(((-0.07, -0.25), (0.07, -0.25), (0, -0.06)), _BILL)
    for y in (0.1, 0.35, 0.6):
        pen.line(((-0.3, y), (0.3, y)), 0.05, scaled(c, 0.7))


def penguin(pen: Pen, rng: Rng) -> None:
    """Draws a penguin."""
    c = near(rng, (34, 36, 44), 8)
    pen.oval(0, 0.2, 0.42, 0.7, c)
    pen.oval(0.06, 0.28, 0.3, 0.58, (236, 236, 232))
    for side in (-1, 1):
        pen.oval(side * 0.44, 0.2, 0.1, 0.42, c, side * -0.25)
        pen.oval(side * 0.18, 0.9, 0.16, 0.07, _BILL)
    pen.oval(0.03, -0.6, 0.24, 0.24, c)
    pen.poly(((0.2, -0.66), (0.46, -0.56), (0.2, -0.52)), _BILL)
    eye(pen, 0.12, -0.64, 0.03)


def swimmer(
    pen: Pen, rng: Rng, c: Colour, *, deep: float, fin: float, tail: float, belly: float = 1.4
) -> None:
    """A fish shape looking right."""
    pen.poly(((-0.55, 0), (-0.95, -tail), (-0.82, 0), (-0.95, tail)), scaled(c, 0.8))
    if fin:
        pen.poly(((-0.2, -deep * 0.7), (-0.08, -deep - fin), (0.25, -deep * 0.7)), scaled(c, 0.75))
        pen.poly(((0.0, deep * 0.6), (-0.15, deep + fin * 0.7), (0.2, deep * 0.7)), scaled(c, 0.75))
    pen.blob(
        ((-0.7, 0), (-0.2, -deep), (0.5, -deep * 0.8), (0.85, 0), (0.5, deep * 0.8), (-0.2, deep)),
        c,
    )
    pen.blob(
        ((-0.5, 0.1), (0.0, deep * 0.3), (0.75, 0.1), (0.4, deep * 0.75), (-0.2, deep * 0.9)),
        scaled(c, belly),
    )


def fish(pen: Pen, rng: Rng) -> None:
    """Draws a fish."""
    c = pick(rng, (vivid(rng, 0.5), near(rng, (226, 130, 40), 20)))
    deep = rng.uniform(0.28, 0.5)
    swimmer(pen, rng, c, deep=deep, fin=rng.uniform(0.1, 0.3), tail=0.35, belly=1.2)
    if rng.random() < 0.5:
        for x in (-0.15, 0.15, 0.42):
            pen.line(
                ((x, -deep * 0.75), (x, deep * 0.75)),
                0.1,
                pick(rng, ((240, 240, 240), scaled(c, 0.4))),
            )
    eye(pen, 0.6, -0.08, 0.06)


def trout(pen: Pen, rng: Rng) -> None:
    """Draws a trout."""
    c = near(rng, (130, 124, 96), 14)
    swimmer(pen, rng, c, deep=0.22, fin=0.12, tail=0.26)
    for x, y in zip(rng.uniform(-0.5, 0.6, 12), rng.uniform(-0.14, 0.05, 12), strict=True):
        pen.oval(x, y, 0.03, 0.03, (70, 54, 44))
    eye(pen, 0.66, -0.05, 0.04)


def shark(pen: Pen, rng: Rng) -> None:
    """Draws a shark."""
    c = near(rng, (104, 116, 130), 14)
    swimmer(pen, rng, c, deep=0.22, fin=0.36, tail=0.42, belly=1.6)
    pen.poly(((0.2, 0.1), (-0.1, 0.5), (0.35, 0.18)), scaled(c, 0.8))
    pen.line(((0.6, 0.12), (0.74, 0.06)), 0.03, _DARK)
    eye(pen, 0.64, -0.06, 0.03)


def dolphin(pen: Pen, rng: Rng) -> None:
    """Draws a dolphin."""
    c = near(rng, (110, 126, 146), 14)
    bend = rng.uniform(0.1, 0.4)
    pen.blob(
        (
            (-0.85, bend + 0.1),
            (-0.4, -0.15),
            (0.2, -0.3),
            (0.65, -0.1),
            (0.95, bend * 0.6),
            (0.6, 0.15),
            (0, 0.15),
        ),
        c,
    )
    pen.poly(((-0.1, -0.22), (-0.16, -0.55), (0.2, -0.25)), scaled(c, 0.8))
    pen.poly(((-0.8, bend + 0.1), (-1.05, bend - 0.1), (-0.95, bend + 0.4)), scaled(c, 0.8))
    pen.poly(((0.2, 0.1), (0.05, 0.45), (0.4, 0.12)), scaled(c, 0.75))
    eye(pen, 0.62, -0.02, 0.03)


def whale(pen: Pen, rng: Rng) -> None:
    """Draws a whale."""
    c = near(rng, pick(rng, ((56, 66, 84), (34, 34, 38))), 10)
    pen.blob(
        (
            (-0.9, -0.2),
            (-0.4, -0.15),
            (0.2, -0.4),
            (0.8, -0.3),
            (0.98, 0.1),
            (0.6, 0.4),
            (-0.2, 0.25),
        ),
        c,
    )
    pen.poly(((-0.85, -0.15), (-1.05, -0.55), (-0.75, -0.4), (-0.6, -0.6), (-0.65, -0.15)), c)
    pen.blob(((0.1, 0.2), (0.9, 0.15), (0.6, 0.42), (0.1, 0.34)), (214, 216, 218))
    eye(pen, 0.66, 0.02, 0.03)


def seal(pen: Pen, rng: Rng) -> None:
    """Draws a seal."""
    c = near(rng, pick(rng, ((90, 84, 80), (150, 140, 128), (60, 54, 50))), 12)
    pen.blob(
        (
            (-0.95, 0.5),
            (-0.5, 0.2),
            (0.1, 0.05),
            (0.3, -0.4),
            (0.55, -0.55),
            (0.75, -0.35),
            (0.6, 0.2),
            (0.3, 0.55),
        ),
        c,
    )
    pen.poly(((-0.85, 0.5), (-1.05, 0.25), (-1.05, 0.65)), scaled(c, 0.8))
    pen.poly(((0.35, 0.3), (0.1, 0.7), (0.5, 0.5)), scaled(c, 0.75))
    pen.oval(0.74, -0.36, 0.06, 0.05, _DARK)
    eye(pen, 0.58, -0.42, 0.03)
