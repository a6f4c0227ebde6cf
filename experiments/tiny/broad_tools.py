"""Drawing tools of the broad families: noise fields, colours, splines, a pen, light, a camera.

Everything is drawn on 64x64 pixels in unit coordinates: x to the right and y down, both in [-1, 1].
Noise comes from a bank of periodic fields made once from a fixed seed; cropping, flipping and
turning one costs a few microseconds where a fresh field would cost a millisecond.
"""

import colorsys
from collections.abc import Sequence
from functools import lru_cache
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFilter

SIDE = 64
Field: TypeAlias = NDArray[np.floating]
"""float [SIDE, SIDE] (a scalar field) or [SIDE, SIDE, 3] (a picture, 0..255)."""
Colour: TypeAlias = tuple[int, int, int]
Rng: TypeAlias = np.random.Generator
Points: TypeAlias = ArrayLike
"""float [n, 2], in units."""

_EXPONENTS = (0.5, 0.9, 1.3, 1.8, 2.4, 3.2)  # spectral slopes: 0 is grainy, 5 is one smooth swell
_FIELDS_PER_SLOPE = 24
_CIRCLE = np.stack(
    [np.cos(np.linspace(0, 2 * np.pi, 20, endpoint=False)),
     np.sin(np.linspace(0, 2 * np.pi, 20, endpoint=False))], axis=1
)  # fmt: skip
_AXIS = np.linspace(-1, 1, SIDE, dtype=np.float32)
X = np.broadcast_to(_AXIS[None, :], (SIDE, SIDE))
Y = np.broadcast_to(_AXIS[:, None], (SIDE, SIDE))


@lru_cache(maxsize=1)
def _bank() -> Field:
    """float32 [slope, field, 128, 128]: zero mean, unit deviation."""
    rng = np.random.default_rng(20240229)
    f = np.hypot(*np.meshgrid(np.fft.fftfreq(128) * 128, np.fft.rfftfreq(128) * 128, indexing="ij"))
    f[0, 0] = np.inf
    out = np.empty((len(_EXPONENTS), _FIELDS_PER_SLOPE, 128, 128), np.float32)
    for i, slope in enumerate(_EXPONENTS):
        for j in range(_FIELDS_PER_SLOPE):
            white = np.fft.rfft2(rng.standard_normal((128, 128)))
            field = np.fft.irfft2(white * f**-slope, s=(128, 128))
            out[i, j] = (field - field.mean()) / field.std()
    return out


def noise(rng: Rng, smoothness: int) -> Field:
    """Returns a random field [64, 64] of unit deviation; smoothness 0 (grain) to 5 (one swell)."""
    field = _bank()[smoothness, rng.integers(_FIELDS_PER_SLOPE)]
    top, left, turn = rng.integers(0, 65), rng.integers(0, 65), rng.integers(8)
    crop = field[top : top + SIDE, left : left + SIDE]
    if turn & 1:
        crop = crop[::-1]
    if turn & 2:
        crop = crop[:, ::-1]
    return crop.T if turn & 4 else crop


@lru_cache(maxsize=16)
def _mix(count: int) -> NDArray[np.float32]:
    """Weights [256, count] that spread `count` colours evenly over 0..255."""
    knots = np.linspace(0, 255, count)
    eye = np.eye(count)
    columns = [np.interp(np.arange(256), knots, eye[k]) for k in range(count)]
    return np.stack(columns, axis=1).astype(np.float32)


def ramp(field: Field, *colours: ArrayLike) -> Field:
    """Paints a field with colours spread evenly over its values 0..1; float32 [64, 64, 3]."""
    table = _mix(len(colours)) @ np.array(colours, np.float32)
    index = np.clip(field * 255, 0, 255).astype(np.uint8)
    return table[index]


def near(rng: Rng, base: Sequence[float], spread: float = 18) -> Colour:
    """A colour near `base`: a common shift of brightness and a smaller one of each channel."""
    shift = rng.normal(0, spread) + rng.normal(0, spread / 2, 3)
    r, g, b = (int(min(255, max(0, base[k] + shift[k]))) for k in range(3))
    return r, g, b


def vivid(rng: Rng, low: float = 0.3, high: float = 1.0) -> Colour:
    """A random colour of any hue with value in [low, high]."""
    r, g, b = colorsys.hsv_to_rgb(rng.random(), rng.random() ** 0.7, rng.uniform(low, high))
    return int(255 * r), int(255 * g), int(255 * b)


def scaled(colour: Sequence[float], factor: float) -> Colour:
    """The colour with its brightness multiplied."""
    r, g, b = (int(min(255, max(0, c * factor))) for c in colour[:3])
    return r, g, b


def pick(rng: Rng, choices: Sequence):
    """One element of a sequence, drawn uniformly."""
    return choices[int(rng.integers(len(choices)))]


@lru_cache(maxsize=256)
def _spline(count: int, closed: bool) -> NDArray[np.float64]:
    """Weights [samples, count] of a Catmull-Rom curve through `count` points, 6 samples a piece."""
    t = np.arange(6)[:, None] / 6
    basis = np.hstack(
        [-t + 2 * t**2 - t**3, 2 - 5 * t**2 + 3 * t**3, t + 4 * t**2 - 3 * t**3, t**3 - t**2]
    )
    rows = []
    for piece in range(count if closed else count - 1):
        around = [piece - 1 + k for k in range(4)]
        at = [a % count if closed else min(max(a, 0), count - 1) for a in around]
        block = np.zeros((6, count))
        for k in range(4):
            block[:, at[k]] += basis[:, k] / 2
        rows.append(block)
    if not closed:
        rows.append(np.eye(count)[-1:])
    return np.vstack(rows)


def smooth(points: Points, *, closed: bool = False) -> NDArray[np.float64]:
    """A smooth curve [samples, 2] through control points [count, 2]."""
    points = np.asarray(points, np.float64)
    return _spline(len(points), closed) @ points


class Pen:
    """Draws shapes in unit coordinates through a random pose onto a transparent layer.

    The pose is drawn once: scale, turn (radians), shear, aspect, shift, mirror and a little
    perspective, so parts of one subject move together.
    """

    def __init__(
        self,
        rng: Rng,
        *,
        scale: tuple[float, float] = (0.7, 1.05),
        turn: float = 0.15,
        shear: float = 0.1,
        aspect: float = 0.12,
        shift: float = 0.12,
        mirror: bool = True,
        tilt: float = 0.0,
    ) -> None:
        self.rng = rng
        self.image = Image.new("RGBA", (SIDE, SIDE))
        self._draw = ImageDraw.Draw(self.image)
        size = rng.uniform(*scale)
        a, k, s = rng.normal(0, turn), rng.normal(0, shear), np.exp(rng.normal(0, aspect) / 2)
        c, d = np.cos(a), np.sin(a)
        flip = -1.0 if mirror and rng.random() < 0.5 else 1.0
        matrix = np.array([[c * s * flip, d * s * flip], [k * c - d / s, c / s + k * d]])
        self._matrix = 32 * size * matrix
        self._offset = 32 + 32 * rng.normal(0, shift, 2)
        self._tilt = rng.normal(0, tilt, 2) / 32 if tilt else None
        self.scale = 32 * size

    def place(self, points: Points) -> NDArray[np.float64]:
        """Unit coordinates [n, 2] to pixels [n, 2]."""
        moved = np.asarray(points, np.float64) @ self._matrix
        if self._tilt is not None:
            moved = moved / (1 + moved @ self._tilt)[:, None]
        return moved + self._offset

    def poly(self, points: Points, fill: Colour) -> None:
        """A filled polygon."""
        self._draw.polygon(self.place(points).ravel().tolist(), fill=fill)

    def blob(self, points: Points, fill: Colour) -> None:
        """A filled smooth closed outline."""
        self.poly(smooth(points, closed=True), fill)

    def oval(self, x: float, y: float, rx: float, ry: float, fill: Colour, turn: float = 0) -> None:
        """A filled ellipse, turned by `turn` radians."""
        outline = _CIRCLE * (rx, ry)
        if turn:
            c, s = np.cos(turn), np.sin(turn)
            outline = outline @ np.array([[c, s], [-s, c]])
        self.poly(outline + (x, y), fill)

    def ring(self, x: float, y: float, r: float, width: float, fill: Colour) -> None:
        """A circle drawn as a line."""
        outline = np.vstack([_CIRCLE, _CIRCLE[:2]]) * r + (x, y)
        self.line(outline, width, fill)

    def box(self, x0: float, y0: float, x1: float, y1: float, fill: Colour) -> None:
        """A filled rectangle."""
        self.poly(((x0, y0), (x1, y0), (x1, y1), (x0, y1)), fill)

    def line(self, points: Points, width: float, fill: Colour) -> None:
        """A polyline of a width in units."""
        px = max(1, int(round(width * self.scale)))
        joint = "curve" if px > 2 else None
        self._draw.line(self.place(points).ravel().tolist(), fill=fill, width=px, joint=joint)

    def curve(self, points: Points, width: float, fill: Colour) -> None:
        """A smooth line through points."""
        self.line(smooth(points), width, fill)

    def limb(
        self, start: Sequence[float], end: Sequence[float], w0: float, w1: float, fill: Colour
    ) -> None:
        """A tapered limb from start to end with half-widths w0 and w1."""
        (x0, y0), (x1, y1) = start, end
        dx, dy = x1 - x0, y1 - y0
        n = np.hypot(dx, dy) or 1.0
        ux, uy = -dy / n, dx / n
        corners = ((x0 + ux * w0, y0 + uy * w0), (x1 + ux * w1, y1 + uy * w1),
                   (x1 - ux * w1, y1 - uy * w1), (x0 - ux * w0, y0 - uy * w0))  # fmt: skip
        self.poly(corners, fill)

    def soften(self, radius: float) -> None:
        """Blurs what is drawn so far, so that later strokes stay crisp on top of soft shading."""
        self.image = self.image.filter(ImageFilter.GaussianBlur(radius))
        self._draw = ImageDraw.Draw(self.image)


def mirrored(points: Points) -> NDArray[np.float64]:
    """An outline symmetric in x from its left half, given from top to bottom."""
    left = np.asarray(points, np.float64)
    return np.vstack([left, left[::-1] * (-1, 1)])


def _puffed(alpha: Image.Image, radius: float) -> Field:
    """A mask 0..255 smoothed over about `radius` pixels; shrinking and growing is the fast blur."""
    small = alpha.reduce(max(2, round(1.3 * radius)))
    return np.asarray(small.resize(alpha.size, Image.Resampling.BICUBIC), np.float32)


def compose(
    rng: Rng, background: Field, layer: Image.Image, *,
    relief: float = 0.5, grain: float = 0.08, patchy: float = 0.1, shadow: float = 0.5,
    roundness: tuple[float, float] = (2, 5), weave: Field | None = None,
) -> Field:  # fmt: skip
    """Lays a drawn layer over a background with rounded shading, texture and a cast shadow.

    relief scales light that follows the outline as if the shape were puffed up; grain and patchy
    scale fine and coarse texture; shadow darkens the background beside the shape; roundness is the
    range of the blur in pixels that puffs it up; weave multiplies the shape's colour by 1 + weave.
    Returns a picture.
    """
    drawn = np.asarray(layer, np.float32)
    cover = drawn[:, :, 3] / 255
    radius = rng.uniform(*roundness)
    height = _puffed(layer.getchannel("A"), radius) / 255
    dx, dy = int(rng.uniform(-radius, radius)), int(rng.uniform(radius / 4, radius * 1.2))
    shifted = np.roll(height, (dy, dx), (0, 1))
    gain = 1 + relief * (height - shifted)
    gain += grain * noise(rng, int(rng.integers(0, 2))) + patchy * noise(rng, 3)
    if weave is not None:
        gain *= 1 + weave
    behind = 1 - cover
    if shadow:
        behind *= 1 - rng.random() * shadow * shifted
    out = background * behind[:, :, None]
    out += drawn[:, :, :3] * (gain * cover)[:, :, None]
    return out


def camera(
    rng: Rng,
    picture: Field,
    *,
    grey: float = 0.12,
    blur: float = 0.2,
    dark: float = 0.0,
    softest: float = 1.3,
) -> Image.Image:
    """Exposure, contrast, a colour cast, uneven light, and at times blur or no colour at all.

    grey and blur are probabilities, softest the largest blur in pixels; dark is the probability of
    a strongly under-exposed picture.
    """
    gain = np.exp(rng.normal(0, 0.15)) + rng.normal(0, 0.03, 3)
    if dark and rng.random() < dark:
        gain = gain * rng.uniform(0.25, 0.6)
    mean, contrast = rng.uniform(90, 140), rng.uniform(0.65, 1.15)
    offset = mean * (1 - contrast) * gain + rng.normal(0, 10)
    if rng.random() < 0.5:
        gx, gy = rng.normal(0, 0.15, 2).astype(np.float32)
        picture = picture * (1 + gx * X + gy * Y)[:, :, None]
    image = Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8))
    table = np.arange(256) * (gain * contrast)[:, None] + offset[:, None]
    image = image.point(np.clip(table, 0, 255).astype(np.uint8).ravel().tolist())
    if rng.random() < grey:
        image = image.convert("L").convert("RGB")
    if rng.random() < blur:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.5, softest)))
    return image
