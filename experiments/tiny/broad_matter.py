"""Materials with a name and a structure, and simple solids under one light."""

from collections.abc import Callable

import numpy as np
from PIL import Image

from experiments.tiny.broad_scenes import backdrop
from experiments.tiny.broad_tools import (
    Field,
    Pen,
    Rng,
    X,
    Y,
    camera,
    compose,
    near,
    noise,
    ramp,
    scaled,
    vivid,
)

Pattern = Callable[[Rng, Field, Field], Field]


def _cells(rng: Rng, u: Field, v: Field, count: int) -> tuple[Field, Field]:
    """Distances to the nearest and the second nearest of `count` random points."""
    points = rng.uniform(-1.2, 1.2, (count, 2)).astype(np.float32)
    d = (u[..., None] - points[:, 0]) ** 2 + (v[..., None] - points[:, 1]) ** 2
    d = np.partition(d, 1, axis=-1)
    return np.sqrt(d[..., 0]), np.sqrt(d[..., 1])


def _wood(rng: Rng, u: Field, v: Field) -> Field:
    return (
        0.5
        + 0.35 * np.sin(rng.uniform(6, 16) * (v + 0.12 * noise(rng, 4) + 0.15 * u * u))
        + 0.1 * noise(rng, 1)
    )


def _marble(rng: Rng, u: Field, v: Field) -> Field:
    return 1 - np.abs(np.sin(rng.uniform(3, 6) * u + rng.uniform(1, 2) * noise(rng, 3))) ** 0.5


def _brick(rng: Rng, u: Field, v: Field) -> Field:
    rows = rng.uniform(2.5, 5)
    y = v * rows
    x = u * rows / 2 + 0.5 * (np.floor(y) % 2)
    joint = ((y % 1) < 0.14) | ((x % 1) < 0.08)
    tone = np.sin(np.floor(x) * 12.9 + np.floor(y) * 78.2)
    return np.where(joint, 1.0, 0.4 + 0.15 * tone) + 0.06 * noise(rng, 1)


def _checks(rng: Rng, u: Field, v: Field) -> Field:
    f = rng.uniform(5, 16)
    return 0.5 + 0.5 * np.sign(np.sin(f * u) * np.sin(f * v))


def _stripes(rng: Rng, u: Field, v: Field) -> Field:
    return 0.5 + 0.5 * np.clip(4 * np.sin(rng.uniform(6, 26) * u), -1, 1)


def _dots(rng: Rng, u: Field, v: Field) -> Field:
    f = rng.uniform(5, 14)
    return np.clip(3 * (np.cos(f * u) + np.cos(f * v) - rng.uniform(0.4, 1.1)), 0, 1)


def _cracks(rng: Rng, u: Field, v: Field) -> Field:
    near_, second = _cells(
        rng, u + 0.04 * noise(rng, 3), v + 0.04 * noise(rng, 3), int(rng.integers(10, 26))
    )
    return np.clip((second - near_) * 12, 0, 1) * 0.8 + 0.1 * noise(rng, 1)


def _weave(rng: Rng, u: Field, v: Field) -> Field:
    f = rng.uniform(10, 22)
    over = np.sin(f * u / 2) * np.sin(f * v / 2) > 0
    return np.where(over, np.abs(np.sin(f * u)), np.abs(np.sin(f * v)) * 0.7)


def _waves(rng: Rng, u: Field, v: Field) -> Field:
    return 0.5 + 0.5 * np.sin(
        rng.uniform(8, 22) * (u + rng.uniform(0.08, 0.25) * np.sin(rng.uniform(3, 7) * v))
    )


def _bubbles(rng: Rng, u: Field, v: Field) -> Field:
    near_, _ = _cells(rng, u, v, int(rng.integers(14, 40)))
    r = near_ * rng.uniform(4, 7)
    return np.where(r < 1, 0.4 + 0.6 * r**3, 0.25)


def _zigzag(rng: Rng, u: Field, v: Field) -> Field:
    f = rng.uniform(1.5, 4)
    saw = np.abs((u * f) % 1 - 0.5)
    return 0.5 + 0.5 * np.sign(np.sin(rng.uniform(8, 20) * (v + saw * rng.uniform(0.5, 1))))


def _grid(rng: Rng, u: Field, v: Field) -> Field:
    f, w = rng.uniform(3, 7), rng.uniform(0.1, 0.25)
    return 1.0 * ((((u * f) % 1) < w) | (((v * f) % 1) < w))


def _grain(rng: Rng, u: Field, v: Field) -> Field:
    return 0.5 + rng.uniform(0.15, 0.3) * noise(rng, 0)


def _smoke(rng: Rng, u: Field, v: Field) -> Field:
    return 0.5 + 0.3 * noise(rng, int(rng.integers(3, 5)))


def _scales(rng: Rng, u: Field, v: Field) -> Field:
    f = rng.uniform(3, 6)
    y = v * f
    x = u * f + 0.5 * (np.floor(y) % 2)
    return np.hypot((x % 1) - 0.5, 1 - (y % 1)) * 0.9


def _maze(rng: Rng, u: Field, v: Field) -> Field:
    band = noise(rng, 2) - 0.8 * noise(rng, 4)
    return 0.5 + 0.5 * np.clip(
        4 * np.sin(rng.uniform(3, 5) * band + 6 * u * rng.uniform(0, 1)), -1, 1
    )


def _fur(rng: Rng, u: Field, v: Field) -> Field:
    strands = noise(rng, 0)
    for k in (1, 2, 3):
        strands = strands + np.roll(strands, (k, int(rng.integers(-1, 2))), (0, 1)) * 0.8
    return 0.5 + 0.06 * strands + 0.08 * noise(rng, 3)


def _rings(rng: Rng, u: Field, v: Field) -> Field:
    r = np.hypot(u - rng.normal(0, 0.3), v - rng.normal(0, 0.3))
    return 0.5 + 0.5 * np.sin(rng.uniform(10, 28) * r + 0.3 * noise(rng, 4))


_ANY = None
MATERIALS: dict[str, tuple[Pattern, tuple | None]] = {
    "wood": (_wood, ((84, 52, 28), (190, 140, 86))), "marble": (_marble, ((236, 232, 228), (110,
    104, 108))),
    "brick wall": (_brick, ((130, 56, 40), (206, 196, 184))), "checked cloth": (_checks, _ANY),
    "striped cloth": (_stripes, _ANY), "dotted cloth": (_dots, _ANY),
    "cracked earth": (_cracks, ((50, 36, 28), (190, 160, 124))), "woven basket": (_weave, ((90, 62,
    36), (214, 180, 124))),
    "wavy lines": (_waves, _ANY), "bubbles": (_bubbles, _ANY), "zigzag lines": (_zigzag, _ANY),
    "grid": (_grid, _ANY),
    "gravel": (_grain, ((60, 58, 54), (190, 186, 178))), "smoke": (_smoke, ((30, 30, 34), (210,
    210, 214))),
    "fish scales": (_scales, _ANY), "maze pattern": (_maze, _ANY), "fur": (_fur, ((70, 46, 28),
    (226, 196, 156))),
    "rings": (_rings, _ANY),
}  # fmt: skip
_MATERIALS = tuple(MATERIALS.values())


def draw_material(rng: Rng, label: int) -> Image.Image:
    """A surface close up, turned and slightly bent."""
    pattern, colours = _MATERIALS[label]
    a = rng.normal(0, 0.25) if colours else rng.uniform(0, np.pi)
    c, s, k = np.float32(np.cos(a)), np.float32(np.sin(a)), np.float32(rng.uniform(0.7, 1.3))
    bend = np.float32(0.02 * rng.random()) * noise(rng, 5)
    field = pattern(rng, k * (c * X + s * Y) + bend + 3,
        k * (c * Y - s * X) + bend + 3) if pattern not in (
        _cracks, _bubbles, _rings, _wood) else pattern(rng, k * (c * X + s * Y) + bend,
        k * (c * Y - s * X) + bend)  # fmt: skip
    if colours is None or rng.random() < 0.15:
        first, second = vivid(rng, 0.0, 0.55), vivid(rng, 0.6, 1.0)
        colours = (first, second) if rng.random() < 0.5 else (second, first)
    out = ramp(field, *(near(rng, colour, 14) for colour in colours))
    out = out * (1 + 0.05 * noise(rng, 1) + 0.06 * noise(rng, 4))[:, :, None]
    return camera(rng, out)


# --- solids -------------------------------------------------------------------------------------

SOLIDS = ("sphere", "cube", "cone", "cylinder", "torus", "pyramid", "egg", "prism", "star", "heart")


def _rounded(pen: Pen, c: tuple, rng: Rng, rx: float, ry: float) -> None:
    """An ellipsoid in bands from shadow to highlight."""
    lx, ly = rng.uniform(-0.4, 0.4), rng.uniform(-0.5, -0.1)
    for k, shade in enumerate((0.4, 0.6, 0.8, 1.0, 1.2, 1.5)):
        t = k / 6
        pen.oval(lx * rx * t, ly * ry * t, rx * (1 - t), ry * (1 - t), scaled(c, shade))


def _column(pen: Pen, c: tuple, rng: Rng, top: float) -> None:
    """A cylinder (top 1) or a cone (top 0) in vertical bands."""
    h, w, peak = rng.uniform(0.5, 0.8), rng.uniform(0.4, 0.65), rng.uniform(-0.6, 0.6)
    pen.oval(0, h, w, w * 0.28, scaled(c, 0.7))
    edges = np.linspace(-w, w, 9)
    for a, b in zip(edges[:-1], edges[1:], strict=True):
        shade = 1.15 - 0.65 * abs((a + b) / (2 * w) - peak)
        pen.poly(((a * top, -h), (b * top, -h), (b, h), (a, h)), scaled(c, shade))
    if top:
        pen.oval(0, -h, w, w * 0.28, scaled(c, 1.2))


def _facets(pen: Pen, c: tuple, rng: Rng, name: str) -> None:
    """Cube, pyramid and prism: a few lit faces."""
    k, w = rng.uniform(-0.35, 0.35), 0.7
    left, right = rng.uniform(0.4, 0.75), rng.uniform(0.8, 1.05)
    if name == "cube":
        pen.poly(((-w, -0.3), (k, 0.0), (k, 0.85), (-w, 0.5)), scaled(c, left))
        pen.poly(((k, 0.0), (w, -0.3), (w, 0.5), (k, 0.85)), scaled(c, right))
        pen.poly(((-w, -0.3), (k, 0.0), (w, -0.3), (-k, -0.62)), scaled(c, 1.3))
    elif name == "pyramid":
        pen.poly(((0, -0.8), (-0.8, 0.45), (k, 0.75)), scaled(c, left))
        pen.poly(((0, -0.8), (0.8, 0.45), (k, 0.75)), scaled(c, right * 1.2))
    else:
        pen.poly(((-0.8, 0.3), (-0.45, -0.4), (-0.15, 0.6)), scaled(c, left))
        pen.poly(((-0.45, -0.4), (0.55, -0.6), (0.85, 0.3), (-0.15, 0.6)), scaled(c, right * 1.2))


def _flat(pen: Pen, c: tuple, name: str) -> None:
    if name == "star":
        a = np.arange(10) * np.pi / 5 - np.pi / 2
        r = np.where(np.arange(10) % 2, 0.38, 0.9)
        pen.poly(np.stack([r * np.cos(a), r * np.sin(a)], 1), c)
    else:
        t = np.linspace(0, 2 * np.pi, 28)
        pen.poly(
            np.stack(
                [
                    0.85 * np.sin(t) ** 3,
                    -0.7 * np.cos(t) + 0.27 * np.cos(2 * t) + 0.11 * np.cos(3 * t),
                ],
                1,
            ),
            c,
        )


def draw_solid(rng: Rng, label: int) -> Image.Image:
    """A solid of one colour on some ground."""
    name, c = SOLIDS[label], vivid(rng, 0.35, 0.95)
    spin = 0.4 if name in ("star", "heart", "torus", "egg") else 0.12
    pen = Pen(rng, scale=(0.5, 0.95), turn=spin, aspect=0.1)
    if name in ("sphere", "egg"):
        _rounded(pen, c, rng, 0.8 if name == "sphere" else 0.6, 0.8)
    elif name in ("cone", "cylinder"):
        _column(pen, c, rng, float(name == "cylinder"))
    elif name == "torus":
        flat = rng.uniform(0.45, 1.0)
        a = np.linspace(0, 2 * np.pi, 25)
        for width, shade, lift in ((0.4, 0.65, 0.03), (0.28, 0.95, 0.0), (0.1, 1.4, -0.06)):
            pen.line(
                np.stack([0.62 * np.cos(a), 0.62 * flat * np.sin(a) + lift], 1),
                width,
                scaled(c, shade),
            )
    elif name in ("star", "heart"):
        _flat(pen, c, name)
    else:
        _facets(pen, c, rng, name)
    out = compose(
        rng, backdrop(rng, "studio", "indoors", "grass", "sand", "sky"), pen.image, relief=0.25
    )
    return camera(rng, out)
