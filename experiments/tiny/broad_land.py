"""Land seen from above: fields, woods, towns, roads and water as satellites show them."""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from experiments.tiny.broad_tools import (
    Colour,
    Field,
    Rng,
    X,
    Y,
    camera,
    near,
    noise,
    pick,
    ramp,
    scaled,
    smooth,
)

_CROPS = ((126, 100, 84), (158, 128, 104), (104, 108, 74), (62, 88, 62), (84, 104, 70), (176, 150,
    122),
          (70, 76, 70), (112, 98, 82))  # fmt: skip
_GREENS = ((52, 82, 58), (70, 100, 62), (88, 108, 70), (60, 92, 70), (100, 112, 74))
_ROOFS = ((150, 100, 84), (170, 130, 112), (130, 124, 124), (190, 180, 172), (104, 92, 92))


def _turned(rng: Rng) -> tuple[Field, Field]:
    """Coordinates along and across a random direction."""
    a = rng.uniform(0, np.pi)
    c, s = np.float32(np.cos(a)), np.float32(np.sin(a))
    return c * X + s * Y, c * Y - s * X


def _painted(rng: Rng, base: Colour, smoothness: int, depth: float) -> Field:
    """One colour, darker and lighter with noise."""
    field = 0.5 + 0.25 * noise(rng, smoothness)
    return ramp(field, scaled(base, 1 - depth), base, scaled(base, 1 + depth))


def _parcels(rng: Rng, colours: tuple[Colour, ...], wide: float, *, edges: float = 0.0) -> Field:
    """A patchwork of parcels in strips; wide is the usual size of one, in units."""
    u, v = _turned(rng)
    wobble = 0.04 * noise(rng, 4)
    strips = np.sort(rng.uniform(-1.5, 1.5, max(1, int(3 / wide))))
    strip = np.searchsorted(strips, (u + wobble).ravel()).reshape(u.shape)
    shift = rng.uniform(0, 5, len(strips) + 1)
    size = wide * rng.uniform(0.7, 2.2, len(strips) + 1)
    along = (v + 2) / size[strip] + shift[strip]
    cell = (strip * 17 + np.floor(along).astype(np.int64)) % 61
    table = np.array([near(rng, pick(rng, colours), 8) for _ in range(61)], np.float32)
    out = table[cell] * (1 + 0.06 * noise(rng, 1) + 0.06 * noise(rng, 3))[:, :, None]
    if edges:
        border = (np.diff(cell, axis=0, prepend=cell[:1]) != 0) | (
            np.diff(cell, axis=1, prepend=cell[:, :1]) != 0
        )
        out[border] *= edges
    return out


def _rows(rng: Rng, out: Field, depth: float, frequency: float) -> Field:
    """Fine parallel lines over a picture, as plough and planting leave."""
    u, _ = _turned(rng)
    return out * (1 + depth * np.sin(frequency * u))[:, :, None]


def _draw_on(out: Field) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    image = Image.fromarray(np.clip(out, 0, 255).astype(np.uint8))
    return image, ImageDraw.Draw(image)


def _path(rng: Rng, bend: float) -> list[float]:
    """A curve in pixels that crosses the picture."""
    a = rng.uniform(0, 2 * np.pi)
    c, s = np.cos(a), np.sin(a)
    t = np.linspace(-55, 55, 6)
    off = rng.normal(0, 9) + np.cumsum(rng.normal(0, bend, 6))
    points = np.stack([32 + t * c - off * s, 32 + t * s + off * c], axis=1)
    return smooth(points).ravel().tolist()


def _annual(rng: Rng) -> Field:
    out = _parcels(rng, _CROPS, rng.uniform(0.5, 1.3), edges=rng.choice([0.0, 0.8, 1.2]))
    return _rows(rng, out, rng.uniform(0, 0.05), rng.uniform(20, 50))


def _permanent(rng: Rng) -> Field:
    out = _parcels(rng, _CROPS + _GREENS, rng.uniform(0.22, 0.4), edges=rng.choice([0.75, 1.2]))
    return _rows(rng, out, rng.uniform(0.05, 0.16), rng.uniform(25, 60))


def _pasture(rng: Rng) -> Field:
    out = _parcels(rng, _GREENS[:3], rng.uniform(0.9, 1.6), edges=0.75)
    trees = noise(rng, 2) > rng.uniform(1.6, 2.4)
    out[trees] *= 0.6
    return out


def _forest(rng: Rng) -> Field:
    base = near(rng, pick(rng, ((30, 56, 44), (38, 62, 40), (26, 50, 46))), 6)
    return (
        _painted(rng, base, int(rng.integers(0, 2)), 0.35) * (1 + 0.08 * noise(rng, 4))[:, :, None]
    )


def _herbs(rng: Rng) -> Field:
    a = near(rng, pick(rng, ((84, 84, 62), (96, 88, 70), (76, 88, 62))), 8)
    b = near(rng, pick(rng, ((58, 72, 52), (122, 108, 86))), 8)
    return ramp(0.5 + 0.3 * noise(rng, 2), a, b) * (1 + 0.1 * noise(rng, 1))[:, :, None]


def _ground(rng: Rng) -> Field:
    """Any open country."""
    return pick(rng, (_annual, _pasture, _herbs, _forest, _pasture))(rng)


def _highway(rng: Rng) -> Field:
    image, draw = _draw_on(_ground(rng))
    tar = near(rng, (150, 148, 150), 20)
    for _ in range(int(rng.integers(1, 3))):
        path, width = _path(rng, rng.uniform(0.5, 4)), int(rng.integers(3, 7))
        draw.line(path, fill=scaled(tar, 0.75), width=width + 3, joint="curve")
        draw.line(path, fill=tar, width=width)
        if width > 4:
            draw.line(path, fill=scaled(tar, 0.7), width=1)
    return np.asarray(image, np.float32)


def _blocks(
    rng: Rng, out: Field, count: int, low: float, high: float, colours: tuple[Colour, ...]
) -> Image.Image:
    """Buildings along one direction with a shadow on one side."""
    image, draw = _draw_on(out)
    a = rng.uniform(0, np.pi / 2)
    axis = np.array([[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]])
    step = (low + high) * 0.75
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
    shade = scaled(colours[0], 0.35)
    for _ in range(count):
        at = np.round(rng.uniform(-45, 45, 2) / step) * step + rng.normal(0, 0.7, 2)
        half = rng.uniform(low, high, 2) / 2
        box = (corners * half + at) @ axis + 32
        draw.polygon((box + (1.5, 1.5)).ravel().tolist(), fill=shade)
        draw.polygon(box.ravel().tolist(), fill=near(rng, pick(rng, colours), 12))
    return image


def _industrial(rng: Rng) -> Field:
    base = _painted(rng, near(rng, (116, 112, 110), 14), 2, 0.3)
    roofs = ((214, 212, 210), (180, 178, 180), (236, 236, 236), (130, 126, 130), (176, 140, 126))
    image = _blocks(rng, base, int(rng.integers(8, 20)), 8, 24, roofs)
    return np.asarray(image, np.float32)


def _residential(rng: Rng) -> Field:
    base = _painted(rng, near(rng, pick(rng, ((86, 92, 76), (112, 102, 94))), 10), 1, 0.35)
    image = _blocks(rng, base, int(rng.integers(60, 110)), 3, 6.5, _ROOFS)
    draw = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(1, 4))):
        draw.line(_path(rng, 1.0), fill=near(rng, (140, 134, 132), 12), width=2)
    return np.asarray(image, np.float32)


_WATERS = ((40, 62, 84), (46, 74, 78), (34, 56, 76), (70, 86, 84))


def _river(rng: Rng) -> Field:
    image, draw = _draw_on(_ground(rng))
    water = near(rng, pick(rng, _WATERS), 6)
    path, width = _path(rng, rng.uniform(3, 9)), int(rng.integers(7, 24))
    if rng.random() < 0.6:
        draw.line(
            path,
            fill=near(rng, pick(rng, ((40, 62, 46), (150, 140, 120))), 8),
            width=width + 5,
            joint="curve",
        )
    draw.line(path, fill=water, width=width, joint="curve")
    return np.asarray(image.filter(ImageFilter.GaussianBlur(0.7)), np.float32)


def _lake(rng: Rng) -> Field:
    water = _painted(rng, near(rng, pick(rng, _WATERS[:3]), 8), int(rng.integers(3, 6)), 0.06)
    if rng.random() < 0.25:
        shore = (noise(rng, 5) > rng.uniform(0.8, 1.8))[:, :, None]
        return np.where(shore, _ground(rng), water)
    return water


def _beach(rng: Rng) -> Field:
    u, _ = _turned(rng)
    field = u + 0.08 * noise(rng, 4) + rng.normal(0, 0.2)
    return ramp(field * 0.5 + 0.5, (30, 74, 110), (40, 110, 130), (70, 150, 150), (226, 208, 168),
        (206, 186, 146),
                (90, 104, 66), (70, 92, 56))  # fmt: skip


def _desert(rng: Rng) -> Field:
    u, _ = _turned(rng)
    dunes = np.sin(rng.uniform(6, 18) * u + 1.5 * noise(rng, 4)) * 0.25 + 0.1 * noise(rng, 2)
    return ramp(0.5 + dunes, (150, 108, 70), (214, 170, 116), (238, 208, 160))


def _snow(rng: Rng) -> Field:
    ridge = noise(rng, 3)
    light = ridge - np.roll(ridge, (2, 2), (0, 1))
    return ramp(0.6 + 0.5 * light, (70, 84, 110), (190, 200, 216), (252, 252, 255))


def _airport(rng: Rng) -> Field:
    image, draw = _draw_on(_pasture(rng))
    a = rng.uniform(0, np.pi)
    d = np.array([np.cos(a), np.sin(a)])
    n = np.array([-d[1], d[0]])
    for off, width in ((rng.uniform(-14, -4), 7), (rng.uniform(6, 18), 4)):
        p, q = 32 + n * off - d * 60, 32 + n * off + d * 60
        draw.line([*p, *q], fill=(112, 112, 116), width=width)
        if width > 5:
            for t in np.arange(-50, 50, 8):
                draw.line(
                    [*(32 + n * off + d * t), *(32 + n * off + d * (t + 4))],
                    fill=(230, 230, 230),
                    width=1,
                )
    for t in rng.uniform(-30, 30, 4):
        x, y = 32 + n * 26 + d * t
        draw.ellipse((x - 4, y - 4, x + 4, y + 4), fill=(210, 210, 212))
    return np.asarray(image, np.float32)


def _harbour(rng: Rng) -> Field:
    image, draw = _draw_on(_painted(rng, near(rng, _WATERS[0], 6), 4, 0.1))
    a = rng.uniform(-0.4, 0.4)
    edge = rng.uniform(8, 24)
    draw.polygon(
        [0, 0, 64, 0, 64, edge + 20 * a, 0, edge - 20 * a], fill=near(rng, (150, 146, 142), 12)
    )
    for x in np.arange(rng.uniform(4, 12), 64, rng.uniform(11, 17)):
        draw.line([x, edge, x, edge + rng.uniform(20, 34)], fill=(176, 170, 160), width=2)
        for y in np.arange(edge + 6, edge + 26, 6):
            draw.ellipse((x + 2, y - 1, x + 7, y + 2), fill=near(rng, (230, 230, 232), 14))
    return np.asarray(image.rotate(90 * int(rng.integers(4))), np.float32)


def _orchard(rng: Rng) -> Field:
    u, v = _turned(rng)
    f = rng.uniform(18, 34)
    trees = np.sin(f * u) * np.sin(f * v) > rng.uniform(0.0, 0.4)
    ground = _painted(rng, near(rng, pick(rng, ((150, 124, 94), (106, 112, 72))), 10), 2, 0.2)
    leaves = _painted(rng, near(rng, (48, 78, 44), 8), 1, 0.2)
    return np.where(trees[:, :, None], leaves, ground)


LAND: dict[str, Callable[[Rng], Field]] = {
    "annual crop land": _annual, "forest": _forest, "herbaceous vegetation land": _herbs,
    "highway or road": _highway, "industrial buildings": _industrial, "pasture land": _pasture,
    "permanent crop land": _permanent, "residential buildings": _residential, "river": _river,
    "sea or lake": _lake, "beach": _beach, "desert": _desert, "snow land": _snow,
    "airport": _airport,
    "harbour": _harbour, "orchard": _orchard,
}  # fmt: skip
_LAND = tuple(LAND.values())


def draw_land(rng: Rng, label: int) -> Image.Image:
    """Land from above, through haze more often than not."""
    out = _LAND[label](rng)
    if rng.random() < 0.65:
        clear = rng.uniform(0.45, 0.85)
        haze = np.array(near(rng, (66, 78, 98), 8), np.float32)
        out = out * clear + haze * (1 - clear)
    return camera(rng, out, grey=0.04, blur=0.35, softest=1.3)
