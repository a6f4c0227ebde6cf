"""Primitives of the generated picture world: colours, backdrops, glyphs, pens, warps, camera.

A figure is drawn as a mask on a 96 x 96 source canvas (32 pixels per unit, origin in the middle),
warped onto a 64 x 64 canvas, reduced to 32 x 32 and painted there over a backdrop. Reducing the
mask before painting gives the same antialiasing as painting at 64 and costs a quarter.

Axis names: `side` = 32, `rgb` = 3. Pictures and colours are float32 on the scale 0..255 until
`develop` rounds them; masks are float32 in 0..1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from scipy import ndimage

Picture: TypeAlias = NDArray[np.floating]  # (side, side, rgb)
Mask: TypeAlias = NDArray[np.floating]  # (side, side)
Colour: TypeAlias = Sequence[float] | NDArray[np.float32]
Point: TypeAlias = tuple[float, float]
Backdrop: TypeAlias = Literal["flat", "gradient", "field", "speckle", "blobs"]

SIDE = 32
CANVAS = 64
SOURCE = 96
UNIT = 32  # source pixels per unit; a glyph's capitals are two units tall

DEFAULT_FONT = "Aileron"  # shipped inside Pillow
# Shipped inside matplotlib; each has digits and both cases at their ASCII places.
MATPLOTLIB_FONTS = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSerif",
    "DejaVuSerif-BoldItalic",
    "DejaVuSansMono",
    "STIXGeneral",
    "STIXGeneralBol",
    "STIXGeneralItalic",
    "cmr10",
    "cmss10",
    "cmtt10",
    "cmti10",
)

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
_RAMP_X, _RAMP_Y = np.meshgrid(*[np.linspace(-1, 1, SIDE, dtype=np.float32)] * 2)
RAMP_X: Mask = _RAMP_X
RAMP_Y: Mask = _RAMP_Y
# The camera of every task picture: half the contrast, a warm cast, light from the lower right.
_CAMERA_CAST = np.array([26, 0, -26], np.float32)
_CAMERA_LIGHT = (45 * (0.7 * RAMP_X + 0.3 * RAMP_Y))[..., None]


@dataclass(frozen=True)
class Style:
    """How one picture is to look; the class label says what is in it.

    Attributes:
        ink: colour (rgb,) of the figure.
        paper: colour (rgb,) of the ground.
        accent: a third colour (rgb,), for rims and clutter.
        backdrop: how the ground varies.
        fonts: names of the fonts a glyph may take.
        hard: the wide jitter, rotation and clutter of the task, not the gentle one.
        task: the one narrow look of a task, not a broad pre-training look.
        handwriting: the probability that a glyph is deformed as if by hand.
        held_out: use the rows kept for testing, where a family is made of recorded pictures.
        index: how many pictures of the same class came before this one in the set.
    """

    ink: NDArray[np.float32]
    paper: NDArray[np.float32]
    accent: NDArray[np.float32]
    backdrop: Backdrop
    fonts: tuple[str, ...]
    hard: bool
    task: bool
    handwriting: float = 0.0
    held_out: bool = False
    index: int = 0


# ---------------------------------------------------------------- styles


def between(rng: np.random.Generator, low: float, high: float) -> float:
    """A uniform number in [low, high); cheaper than `Generator.uniform` for one number."""
    return low + (high - low) * rng.random()


def contrasting_colours(rng: np.random.Generator, gap: float = 100) -> NDArray[np.float32]:
    """Three random colours (3, rgb); the first two differ by more than `gap` in luminance."""
    while True:
        colours = rng.random((8, 3, 3), dtype=np.float32) * 255
        wide = np.abs((colours[:, 0] - colours[:, 1]) @ _LUMA) > gap
        if wide.any():
            return colours[wide.argmax()]


def random_style(rng: np.random.Generator, *, hard: bool, index: int = 0) -> Style:
    """The style of one pre-training picture: random colours, both polarities, any font."""
    ink, paper, accent = contrasting_colours(rng)
    backdrops: tuple[Backdrop, ...] = ("flat", "gradient", "field", "speckle", "blobs")
    weights = (0.2, 0.45, 0.7, 0.85) if hard else (0.6, 0.8, 0.9, 0.95)
    backdrop = backdrops[int(np.searchsorted(weights, rng.random()))]
    return Style(
        ink, paper, accent, backdrop, fonts(), hard, task=False, handwriting=0.45, index=index
    )


def task_style(
    rng: np.random.Generator,
    palette: NDArray[np.float32],
    task_fonts: tuple[str, ...],
    *,
    held_out: bool,
    index: int,
) -> Style:
    """The style of one task picture: the palette (3, rgb) of the task, slightly jittered."""
    jitter = rng.normal(0, 14, (3, 1)) + rng.normal(0, 10, (3, 3))
    ink, paper, accent = np.clip(palette + jitter, 0, 255).astype(np.float32)
    backdrop: Backdrop = "field" if rng.random() < 0.7 else "flat"
    available = tuple(name for name in task_fonts if name in fonts()) or (DEFAULT_FONT,)
    return Style(
        ink,
        paper,
        accent,
        backdrop,
        available,
        hard=True,
        task=True,
        held_out=held_out,
        index=index,
    )


# ---------------------------------------------------------------- grounds


def smooth_noise(rng: np.random.Generator, cells: int, side: int = SIDE) -> NDArray[np.float32]:
    """A smooth random field (side, side), about unit normal, with `cells` bumps along a side."""
    coarse = rng.standard_normal((cells, cells), dtype=np.float32)
    return np.asarray(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC))


def ground(rng: np.random.Generator, style: Style) -> Picture:
    """The backdrop of a picture, before anything is painted on it."""
    picture = np.empty((SIDE, SIDE, 3), np.float32)
    picture[:] = style.paper
    if style.backdrop == "gradient":
        angle = between(rng, 0, 2 * math.pi)
        ramp = RAMP_X * math.cos(angle) + RAMP_Y * math.sin(angle)
        picture += (between(rng, 10, 40) * ramp)[..., None]
    elif style.backdrop == "field":
        field = np.tanh(smooth_noise(rng, int(rng.integers(3, 7))))
        picture += 35 * rng.random() * field[..., None]
    elif style.backdrop == "speckle":
        picture += 22 * smooth_noise(rng, int(rng.integers(12, 32)))[..., None]
    elif style.backdrop == "blobs":
        cover = np.clip(smooth_noise(rng, 4), 0, 1) * between(rng, 0.15, 0.4)
        picture += cover[..., None] * (style.accent - style.paper)
    return picture


def paint(picture: Picture, mask: Mask, colour: Colour) -> Picture:
    """The picture with `colour` laid over it where the mask is one."""
    return picture + mask[..., None] * (np.asarray(colour, np.float32) - picture)


def tilted(picture: Picture, degrees: float) -> Picture:
    """Turns a picture about its middle; what comes in at the corners mirrors what is there."""
    turned = ndimage.rotate(picture, degrees, reshape=False, order=1, mode="reflect")
    return turned.astype(np.float32)


def develop(rng: np.random.Generator, picture: Picture, *, hard: bool, camera: bool) -> Picture:
    """Applies the task camera where asked, then pixel noise; returns values still unrounded."""
    if camera:
        picture = (picture - 127) * 0.5 + 127 + _CAMERA_CAST + _CAMERA_LIGHT
    elif hard:
        picture = (picture - 127) * between(rng, 0.7, 1.0) + 127 + between(rng, -12, 12)
    lowest, highest = (0.03, 0.08) if camera else (0.02, 0.06) if hard else (0.005, 0.03)
    sigma = 255 * between(rng, lowest, highest)
    return picture + sigma * rng.standard_normal((SIDE, SIDE, 3), dtype=np.float32)


# ---------------------------------------------------------------- pens and warps


class Pen:
    """Draws in units (x right, y down, origin in the middle) on a source canvas."""

    def __init__(self) -> None:
        self.image = Image.new("L", (SOURCE, SOURCE))
        self._draw = ImageDraw.Draw(self.image)

    def line(self, points: Iterable[Point], width: float, level: int = 255) -> Pen:
        """A polyline `width` units thick with round ends."""
        pixels = [_pixel(point) for point in points]
        self._draw.line(pixels, fill=level, width=max(1, round(width * UNIT)), joint="curve")
        for point in pixels:
            self._spot(point, width * UNIT / 2, level)
        return self

    def polygon(self, points: Iterable[Point], level: int = 255) -> Pen:
        """A filled polygon."""
        self._draw.polygon([_pixel(point) for point in points], fill=level)
        return self

    def disc(self, centre: Point, radius: float, level: int = 255) -> Pen:
        """A filled circle."""
        self._spot(_pixel(centre), radius * UNIT, level)
        return self

    def _spot(self, pixel: Point, radius: float, level: int) -> None:
        x, y = pixel
        self._draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=level)


def _pixel(point: Point) -> Point:
    return SOURCE / 2 + UNIT * point[0], SOURCE / 2 + UNIT * point[1]


def warp(
    source: Image.Image,
    *,
    size: float,
    angle: float = 0.0,
    shear: float = 0.0,
    shift: Point = (0.0, 0.0),
) -> Image.Image:
    """Maps a source canvas onto a 64 x 64 one.

    Args:
        source: 96 x 96, one channel per mask.
        size: canvas pixels per unit.
        angle: rotation in radians, clockwise as seen.
        shear: horizontal slant, in units per unit.
        shift: where the origin goes, in canvas pixels from the middle.
    """
    zoom = UNIT / size
    cos, sin = math.cos(angle) * zoom, math.sin(angle) * zoom
    # Inverse of rotate(shear(.)): back-rotate the output point, then undo the slant.
    a, b, d, e = cos - shear * -sin, sin - shear * cos, -sin, cos
    x0, y0 = CANVAS / 2 + shift[0], CANVAS / 2 + shift[1]
    matrix = (a, b, SOURCE / 2 - a * x0 - b * y0, d, e, SOURCE / 2 - d * x0 - e * y0)
    return source.transform(
        (CANVAS, CANVAS), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR
    )


def place(
    rng: np.random.Generator,
    source: Image.Image,
    style: Style,
    *,
    size: tuple[float, float] = (15, 20),
    angle: float | None = None,
    shear: float = 0.15,
    reach: float = 8.0,
) -> Image.Image:
    """Warps a source canvas with the jitter of the style.

    Args:
        rng: source of the jitter.
        source: 96 x 96, one channel per mask.
        style: hard or gentle.
        size: range of canvas pixels per unit.
        angle: rotation in radians, where it is not to be random.
        shear: largest slant.
        reach: largest shift in canvas pixels of a hard picture, less where the figure is large.
    """
    scale = between(rng, *size) * (between(rng, 0.9, 1.1) if style.hard else 1)
    if angle is None:
        angle = math.radians(between(rng, -12, 12) if style.hard else between(rng, -8, 8))
    reach = min(reach, max(3.0, CANVAS / 2 - 1.1 * scale) if style.hard else 3.0)
    shift = between(rng, -reach, reach), between(rng, -reach, reach)
    slant = between(rng, -shear, shear)
    return warp(source, size=scale, angle=angle, shear=slant, shift=shift)


def to_mask(canvas: Image.Image) -> Mask:
    """A 64 x 64 canvas as a mask (side, side); of three channels, as (side, side, 3)."""
    return np.asarray(canvas.reduce(2), np.float32) * np.float32(1 / 255)


def clutter(rng: np.random.Generator, picture: Picture, style: Style, most: int = 2) -> Picture:
    """Adds up to `most` thin faint lines across a hard picture."""
    lines = int(rng.integers(0, most + 1)) if style.hard else 0
    if not lines:
        return picture
    canvas = Image.new("L", (CANVAS, CANVAS))
    pen = ImageDraw.Draw(canvas)
    for x0, y0, x1, y1 in rng.integers(0, CANVAS, (lines, 4)).tolist():
        pen.line((x0, y0, x1, y1), fill=255, width=2)
    tint = 0.5 * (style.paper + style.accent)
    return paint(picture, 0.6 * to_mask(canvas), tint)


# ---------------------------------------------------------------- glyphs


@cache
def fonts() -> tuple[str, ...]:
    """Names of the fonts at hand: Pillow's own, and matplotlib's where it is installed."""
    folder = _font_folder()
    found = [name for name in MATPLOTLIB_FONTS if folder and (folder / f"{name}.ttf").is_file()]
    return (DEFAULT_FONT, *found)


def _font_folder() -> Path | None:
    # The folder is found without importing matplotlib, which takes half a second.
    spec = find_spec("matplotlib")
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf"


@cache
def _font(name: str) -> ImageFont.FreeTypeFont:
    def load(size: float) -> ImageFont.FreeTypeFont:
        if name == DEFAULT_FONT:
            font = ImageFont.load_default(size)
            assert isinstance(font, ImageFont.FreeTypeFont), "Pillow was built without FreeType"
            return font
        return ImageFont.truetype(f"{_font_folder()}/{name}.ttf", size)

    _, top, _, bottom = load(100).getbbox("H")
    return load(100 * 2 * UNIT / (bottom - top))


@cache
def _glyph(character: str, font: str, outline: bool) -> Image.Image:
    image = Image.new("L", (SOURCE, SOURCE))
    left, top, right, bottom = _font(font).getbbox(character)
    corner = (SOURCE - left - right) / 2, (SOURCE - top - bottom) / 2
    pen = ImageDraw.Draw(image)
    if outline:
        pen.text(corner, character, 255, font=_font(font), stroke_width=4, stroke_fill=255)
        pen.text(corner, character, 0, font=_font(font))
    else:
        pen.text(corner, character, 255, font=_font(font))
    return image


def glyph(
    rng: np.random.Generator, character: str, style: Style, *, outline: bool = False
) -> Image.Image:
    """A source canvas with the character, in a font of the style, by hand if it comes so."""
    font = style.fonts[int(rng.integers(len(style.fonts)))]
    image = _glyph(character, font, outline)
    if rng.random() < style.handwriting:
        return by_hand(rng, image, blurred=not outline and rng.random() < 0.5)
    if not outline and rng.random() < 0.3:
        return thicken(image, between(rng, 0.2, 0.4))
    return image


def thicken(image: Image.Image, threshold: float) -> Image.Image:
    """Blurs and cuts at the threshold: below one half strokes grow, above it they shrink."""
    table = np.clip((np.arange(256) / 255 - threshold) * 5 + 0.5, 0, 1) * 255
    blurred = np.asarray(image.filter(ImageFilter.BoxBlur(3)))
    return Image.fromarray(table.astype(np.uint8)[blurred])


def by_hand(rng: np.random.Generator, image: Image.Image, *, blurred: bool) -> Image.Image:
    """Deforms a source canvas like a pen stroke: bent, slanted, of another width."""
    cells, width = 3, SOURCE // 3
    knots = np.arange(cells + 1) * width
    nodes = np.stack(np.meshgrid(knots, knots), -1) + rng.normal(0, 4.2, (cells + 1, cells + 1, 2))
    nodes[..., 0] += between(rng, -0.15, 0.4) * (nodes[..., 1] - SOURCE / 2)
    # Quad corners in Pillow's order: upper left, lower left, lower right, upper right.
    corners = nodes[:-1, :-1], nodes[1:, :-1], nodes[1:, 1:], nodes[:-1, 1:]
    quads = np.concatenate(corners, -1).tolist()
    mesh = [
        ((x * width, y * width, (x + 1) * width, (y + 1) * width), quads[y][x])
        for y in range(cells)
        for x in range(cells)
    ]
    bent = image.transform((SOURCE, SOURCE), Image.Transform.MESH, mesh, Image.Resampling.BILINEAR)
    bent = thicken(bent, between(rng, 0.15, 0.5))
    if blurred:
        # As coarse as a scanned digit: about eight cells across the glyph.
        coarse = int(rng.integers(10, 18))
        return bent.resize((coarse, coarse), Image.Resampling.BOX).resize(
            (SOURCE, SOURCE), Image.Resampling.BICUBIC
        )
    return bent
