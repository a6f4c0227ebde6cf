"""Grounds to put things on, landscapes with a horizon, materials, and lit solids."""

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
    near,
    noise,
    pick,
    ramp,
    scaled,
    vivid,
)

Palette = tuple[Colour, ...]
_SKIES: tuple[Palette, ...] = (
    ((70, 120, 196), (120, 166, 222), (196, 218, 240)), ((150, 170, 196), (190, 202, 216), (226,
    228, 230)),
    ((40, 84, 160), (90, 140, 206), (150, 190, 230)), ((110, 90, 130), (226, 140, 96), (250, 206,
    130)),
    ((200, 206, 214), (226, 228, 232), (246, 246, 248)),
)  # fmt: skip
_GROUND: dict[str, tuple[Palette, ...]] = {
    "grass": (((40, 76, 24), (84, 126, 46), (136, 166, 80)), ((66, 84, 34), (116, 128, 60), (176,
    170, 104))),
    "forest": (((12, 26, 12), (36, 62, 28), (92, 116, 56)), ((30, 26, 14), (76, 66, 36), (130, 116,
    70))),
    "sand": (((150, 124, 90), (196, 170, 128), (228, 206, 168)), ((120, 92, 64), (160, 130, 96),
    (196, 168, 130))),
    "snow": (((176, 188, 208), (222, 228, 238), (250, 250, 252)),),
    "rock": (((62, 58, 54), (116, 110, 102), (176, 168, 158)), ((70, 52, 40), (124, 98, 76), (170,
    146, 120))),
    "water": (((14, 46, 80), (36, 88, 128), (120, 168, 190)), ((20, 60, 66), (50, 110, 110), (140,
    180, 170)),
              ((60, 76, 90), (110, 128, 140), (180, 192, 198))),
    "road": (((70, 70, 72), (110, 110, 112), (150, 150, 150)), ((130, 124, 116), (160, 154, 146),
    (190, 184, 176))),
    "leaf": (((30, 84, 24), (76, 146, 50), (160, 206, 100)), ((70, 60, 30), (120, 120, 50), (200,
    190, 110))),
    "room": (((120, 84, 58), (160, 120, 88), (200, 164, 130)), ((60, 48, 44), (104, 84, 74), (150,
    128, 112)),
             ((150, 150, 156), (190, 190, 194), (222, 222, 224))),
}  # fmt: skip


def _tinted(rng: Rng, palette: Palette, field: Field) -> Field:
    shift = rng.normal(0, 10) + rng.normal(0, 6, 3)
    return ramp(field, *(np.clip(np.array(c) + shift, 0, 255) for c in palette))


def sky(rng: Rng) -> Field:
    """A sky: brighter towards the horizon, with more or fewer clouds."""
    clouds = rng.choice([0.04, 0.1, 0.22]) * noise(rng, int(rng.integers(2, 4)))
    return _tinted(rng, pick(rng, _SKIES), 0.45 + 0.35 * Y + clouds)


def ground(rng: Rng, kind: str) -> Field:
    """The surface of `_GROUND[kind]`, seen everywhere in the picture."""
    if kind == "water":
        f = rng.uniform(14, 34)
        field = 0.4 + 0.12 * np.sin(f * Y + 1.5 * noise(rng, 3)) + 0.1 * noise(rng, 1)
    else:
        field = 0.5 + rng.uniform(0.08, 0.28) * noise(rng, int(rng.integers(0, 4)))
    if rng.random() < 0.5:
        field = field + 0.15 * Y
    return _tinted(rng, pick(rng, _GROUND[kind]), field)


def horizon(rng: Rng, kind: str, level: float, *, far: str | None = None) -> Field:
    """Sky above and ground below a rough line at height `level`; `far` is a strip between."""
    edge = Y + 0.03 * noise(rng, 4) - level
    out = np.where((edge > 0)[:, :, None], ground(rng, kind), sky(rng))
    if far:
        height = rng.uniform(0.1, 0.5)
        strip = (edge <= 0) & (edge > -height + 0.12 * noise(rng, 3)[20])
        out = np.where(strip[:, :, None], ground(rng, far) * 0.8, out)
    return out


def studio(rng: Rng) -> Field:
    """A plain ground as in catalogues: white, grey or one colour."""
    if rng.random() < 0.5:
        v = rng.uniform(215, 255)
        base = np.array([v, v, v])
    else:
        base = np.array(vivid(rng, 0.2, 0.95), float)
    field = (
        0.5 + rng.uniform(0, 0.3) * Y + rng.uniform(0, 0.08) * noise(rng, int(rng.integers(2, 6)))
    )
    return ramp(field, base * 0.8, base, np.minimum(base * 1.1, 255))


def room(rng: Rng) -> Field:
    """A wall and a floor or table top."""
    wall = ramp(0.5 + 0.2 * X * rng.normal() + 0.05 * noise(rng, 3), *(near(rng, c, 30) for c in
                ((130, 120, 110), (210, 200, 186))))  # fmt: skip
    return np.where((rng.uniform(-0.1, 0.7) < Y)[:, :, None], ground(rng, "room"), wall)


def backdrop(rng: Rng, *kinds: str) -> Field:
    """One of the named grounds: any key of `_GROUND`, 'sky', 'studio', 'indoors' or 'field'."""
    kind = pick(rng, kinds)
    if kind == "sky":
        return sky(rng)
    if kind == "studio":
        return studio(rng)
    if kind == "indoors":
        return room(rng)
    if kind == "field":
        kind = "grass"
        return horizon(rng, kind, rng.uniform(-0.7, 0.3), far=pick(rng, ("forest", None, "grass")))
    if kind in ("grass", "sand", "snow", "road", "water") and rng.random() < 0.5:
        far = pick(rng, ("forest", "rock", None))
        return horizon(rng, kind, rng.uniform(-0.8, 0.4), far=far)
    return ground(rng, kind)


# --- landscapes ---------------------------------------------------------------------------------


def _ridge(rng: Rng, height: float, rough: float) -> Field:
    """True below a mountain line; height of its middle in units (y down)."""
    line = height + rough * noise(rng, 4)[int(rng.integers(64))] + 0.2 * rough * noise(rng, 2)[5]
    return (line[None, :] < Y)[:, :, None]


def _mountain(rng: Rng) -> Field:
    out = sky(rng)
    relief = noise(rng, 2)
    rock = _tinted(
        rng, _GROUND["rock"][0], 0.5 + 0.2 * (relief - np.roll(relief, 3, 1)) + 0.1 * relief
    )
    line = rng.uniform(-0.5, 0.0) + rng.uniform(0.15, 0.35) * noise(rng, 4)[7] + rng.uniform(0.4,
        1.0) * np.abs(
        X[0] - rng.uniform(-0.6, 0.6))  # fmt: skip
    line = line + 0.03 * noise(rng, 1)[3]
    below = line[None, :] < Y
    if rng.random() < 0.6:
        snow = (line[None, :] + rng.uniform(0.15, 0.6) + 0.08 * relief > Y)[:, :, None]
        rock = np.where(snow, np.minimum(rock * 0.4 + 150, 255), rock)
    out = np.where(below[:, :, None], rock, out)
    front = pick(rng, ("forest", "grass", "water", "snow"))
    return np.where(_ridge(rng, rng.uniform(0.35, 0.9), 0.05), ground(rng, front), out)


def _sea(rng: Rng) -> Field:
    return horizon(rng, "water", rng.uniform(-0.5, 0.3))


def _cloud(rng: Rng) -> Field:
    field = 0.5 + rng.uniform(0.25, 0.4) * noise(rng, int(rng.integers(3, 5))) + 0.1 * Y
    return ramp(field, *pick(rng, (((50, 96, 176), (120, 160, 214), (240, 242, 246)),
                                   ((60, 70, 90), (130, 138, 150), (226, 228, 232)),
                                   ((90, 120, 170), (220, 180, 170), (255, 240,
                                   220)))))  # fmt: skip


def _woods(rng: Rng) -> Field:
    out = ground(rng, "forest") * rng.uniform(0.9, 1.6)
    pen = Pen(rng, scale=(1, 1), turn=0.02, shift=0)
    bark = near(rng, pick(rng, ((48, 38, 30), (150, 144, 136), (90, 70, 52))), 12)
    for _ in range(int(rng.integers(4, 11))):
        x = rng.uniform(-1, 1)
        pen.limb(
            (x, 1.1),
            (x + rng.normal(0, 0.08), -1.2),
            rng.uniform(0.03, 0.12),
            0.02,
            near(rng, bark, 14),
        )
    return compose(rng, out, pen.image, relief=0.4)


def _road(rng: Rng) -> Field:
    level, vanish = rng.uniform(-0.4, 0.2), rng.uniform(-0.4, 0.4)
    out = horizon(rng, pick(rng, ("grass", "sand", "forest", "snow")), level, far="forest")
    pen = Pen(rng, scale=(1, 1), turn=0, shear=0, aspect=0, shift=0)
    tar, wide = near(rng, (110, 108, 108), 24), rng.uniform(0.4, 1.0)
    pen.poly(((vanish - 0.03, level), (vanish + 0.03, level), (wide, 1.05), (-wide, 1.05)), tar)
    for t in (0.15, 0.4, 0.75):
        y0, y1 = level + (1 - level) * t, level + (1 - level) * (t * 1.25 + 0.02)
        pen.limb(
            (vanish * (1 - t), y0),
            (vanish * (1 - t * 1.25), y1),
            0.02 * t + 0.01,
            0.03 * t + 0.012,
            (230, 226, 200),
        )
    return compose(rng, out, pen.image, relief=0.0, shadow=0)


def _city(rng: Rng) -> Field:
    out = horizon(rng, pick(rng, ("road", "grass", "water")), 0.7)
    pen = Pen(rng, scale=(1, 1), turn=0.01, shear=0, aspect=0, shift=0)
    towers = int(rng.integers(1, 8))
    for _ in range(towers):
        x, w, top = rng.uniform(-0.9, 0.9), rng.uniform(0.1, 0.28), rng.uniform(-0.95, 0.2)
        if towers == 1:
            x, w, top = rng.uniform(-0.3, 0.3), rng.uniform(0.2, 0.4), rng.uniform(-1, -0.7)
        c = near(
            rng, pick(rng, ((120, 130, 146), (150, 140, 130), (90, 100, 120), (170, 160, 150))), 20
        )
        pen.box(x - w, top, x + w, 0.8, c)
        for y in np.arange(top + 0.1, 0.7, 0.14):
            pen.line(((x - w * 0.8, y), (x + w * 0.8, y)), 0.05, scaled(c, 0.6))
        if rng.random() < 0.3:
            pen.line(((x, top), (x, top - 0.3)), 0.03, c)
    return compose(rng, out, pen.image, relief=0.3)


def _house(rng: Rng) -> Field:
    out = backdrop(rng, "field", "snow", "grass")
    pen = Pen(rng, scale=(0.6, 1.0), turn=0.02)
    wall = near(
        rng, pick(rng, ((226, 216, 200), (190, 120, 90), (170, 180, 190), (150, 110, 80))), 14
    )
    roof = near(rng, pick(rng, ((140, 60, 44), (80, 76, 80), (110, 80, 60))), 12)
    pen.box(-0.7, -0.1, 0.7, 0.6, wall)
    pen.poly(
        ((-0.85, -0.08), (-0.4 * rng.random(), -0.7), (0.4 * rng.random(), -0.7), (0.85, -0.08)),
        roof,
    )
    pen.box(-0.1, 0.2, 0.12, 0.6, scaled(wall, 0.4))
    for x in (-0.45, 0.42):
        pen.box(x - 0.12, 0.08, x + 0.12, 0.34, (60, 70, 84))
    if rng.random() < 0.5:
        pen.box(0.3, -0.85, 0.45, -0.45, scaled(roof, 0.8))
    return compose(rng, out, pen.image)


def _castle(rng: Rng) -> Field:
    out = backdrop(rng, "field", "grass", "snow", "sky")
    pen = Pen(rng, scale=(0.65, 1.0), turn=0.02)
    stone = near(rng, (164, 150, 130), 20)
    pen.box(-0.65, -0.05, 0.65, 0.75, stone)
    for x, top in (
        (-0.7, rng.uniform(-0.6, -0.2)),
        (0.7, rng.uniform(-0.6, -0.2)),
        (0.0, rng.uniform(-0.7, -0.1)),
    ):
        pen.box(x - 0.2, top, x + 0.2, 0.78, scaled(stone, rng.uniform(0.85, 1.1)))
        if rng.random() < 0.5:
            pen.poly(
                ((x - 0.25, top), (x, top - 0.4), (x + 0.25, top)), near(rng, (90, 70, 84), 20)
            )
        else:
            for k in (-0.15, 0, 0.15):
                pen.box(x + k - 0.05, top - 0.1, x + k + 0.05, top, stone)
        pen.box(x - 0.05, top + 0.2, x + 0.05, top + 0.38, (44, 40, 38))
    pen.oval(0, 0.72, 0.14, 0.25, (50, 40, 34))
    return compose(rng, out, pen.image)


def _bridge(rng: Rng) -> Field:
    out = horizon(rng, "water", rng.uniform(0.0, 0.4), far=pick(rng, ("forest", "rock", None)))
    pen = Pen(rng, scale=(0.9, 1.1), turn=0.03)
    c = near(rng, pick(rng, ((120, 112, 104), (150, 60, 46), (90, 96, 104))), 14)
    pen.box(-1.3, 0.05, 1.3, 0.18, c)
    if rng.random() < 0.5:
        for x in (-0.55, 0.55):
            pen.box(x - 0.06, -0.7, x + 0.06, 0.6, c)
        for x0, x1 in ((-1.3, -0.55), (-0.55, 0.55), (0.55, 1.3)):
            mid = 0.0 if abs(x0) == abs(x1) else -0.3
            pen.curve(((x0, -0.68), ((x0 + x1) / 2, mid), (x1, -0.68)), 0.05, c)
    else:
        for x in np.arange(-1.0, 1.1, 0.5):
            pen.box(x - 0.08, 0.1, x + 0.08, 0.6, scaled(c, 0.85))
            pen.curve(((x, 0.45), (x + 0.25, 0.16), (x + 0.5, 0.45)), 0.1, scaled(c, 0.85))
    return compose(rng, out, pen.image)


def _sunset(rng: Rng) -> Field:
    level = rng.uniform(0.1, 0.6)
    cx, cy = rng.uniform(-0.5, 0.5), level - rng.uniform(0.0, 0.4)
    glow = np.exp(-((X - cx) ** 2 + (Y - cy) ** 2) / rng.uniform(0.2, 0.8))
    out = ramp(
        0.15 + 0.8 * glow + 0.05 * noise(rng, 3),
        (50, 36, 80),
        (170, 70, 70),
        (250, 150, 60),
        (255, 240, 180),
    )
    below = (level < Y)[:, :, None]
    return np.where(below, out[::-1] * rng.uniform(0.2, 0.6), out)


def _waterfall(rng: Rng) -> Field:
    out = ground(rng, pick(rng, ("rock", "forest")))
    middle = rng.uniform(-0.4, 0.4) + 0.1 * noise(rng, 4)[:, 10]
    fall = (np.abs(X - middle[:, None]) < rng.uniform(0.12, 0.4)) & (Y < 0.7)
    strands = np.broadcast_to(noise(rng, 1)[8][None, :], X.shape)
    out = np.where(
        fall[:, :, None], ramp(0.7 + 0.2 * strands, (120, 150, 170), (250, 252, 255)), out
    )
    return np.where((Y > 0.65)[:, :, None], ground(rng, "water"), out)


def _night(rng: Rng) -> Field:
    out = ramp(0.3 + 0.2 * noise(rng, 4) + 0.1 * Y, (4, 6, 20), (20, 26, 60), (70, 60, 110))
    stars = noise(rng, 0) > rng.uniform(2.2, 2.8)
    out[stars] = 240
    if rng.random() < 0.5:
        moon = np.hypot(X - rng.uniform(-0.6, 0.6), Y - rng.uniform(-0.7, 0.2)) < rng.uniform(
            0.1, 0.3
        )
        out[moon] = (236, 232, 210)
    return np.where(_ridge(rng, rng.uniform(0.5, 0.9), 0.1), 8.0, out)


SCENES: dict[str, Callable[[Rng], Field]] = {
    "mountain": _mountain, "plain": lambda rng: horizon(rng, "grass", rng.uniform(-0.3, 0.5)),
    "sea": _sea,
    "cloud": _cloud, "forest": _woods, "road": _road, "skyscraper": _city, "house": _house,
    "castle": _castle, "bridge": _bridge, "sunset": _sunset, "waterfall": _waterfall,
    "desert": lambda rng: horizon(rng, "sand", rng.uniform(-0.4, 0.4), far=pick(rng, ("rock",
    None))),
    "snow field": lambda rng: horizon(rng, "snow", rng.uniform(-0.4, 0.4), far="forest"),
    "night sky": _night,
    "rocks": lambda rng: ground(rng, "rock"),
}  # fmt: skip
_SCENES = tuple(SCENES.values())


def draw_scene(rng: Rng, label: int) -> Image.Image:
    """A landscape or a large building in it."""
    return camera(rng, _SCENES[label](rng))
