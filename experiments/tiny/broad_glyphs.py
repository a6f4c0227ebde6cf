"""Handwritten digits, letters and brush-written kana from hand-made stroke skeletons.

A skeleton is a string of strokes separated by '/'; a point is two digits, x then y, on a 10x10
grid with y down. Strokes are smooth curves through their points. A smooth random warp moves all
strokes together, so junctions hold while the shape changes from picture to picture.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from experiments.tiny.broad_tools import SIDE, Rng, noise, pick, ramp, smooth, vivid

DIGITS = {
    "zero": ("50 21 15 27 49 69 86 84 72 51 40", "60 20 04 18 59 88 95 71 40",
    "50 34 39 69 74 60 40"),
    "one": ("50 49", "32 50 / 50 59", "22 50 / 50 59 / 29 89", "71 28", "60 49"),
    "two": ("12 30 60 82 64 36 09 / 09 49 98", "12 30 70 83 56 18 19 27 48 99",
            "21 50 82 73 19 / 19 99", "12 40 72 74 28 19 26 47 89 98"),
    "three": ("11 40 71 72 44 / 44 85 87 59 18", "10 80 / 80 44 / 44 84 87 59 18",
              "21 50 72 44 34 / 44 76 78 49 28 17"),
    "four": ("30 15 / 15 85 / 70 69", "50 06 / 06 96 / 60 69", "20 15 46 84 / 80 83 79",
             "60 06 / 06 86 / 60 59", "10 24 84 / 80 59"),
    "five": ("80 20 / 20 14 / 14 54 86 78 49 18", "20 14 / 14 54 86 78 49 18 / 20 80",
             "90 30 / 30 23 / 23 63 75 68 29 08"),
    "six": ("60 23 16 28 59 87 75 44 16", "80 31 15 28 59 88 75 45 17", "40 16 39 78 75 46 28"),
    "seven": ("10 80 / 80 39", "10 80 / 80 39 / 35 75", "12 10 / 10 80 / 80 54 49",
    "01 91 / 91 59"),
    "eight": ("71 40 21 23 54 76 78 49 28 26 54 73 71",
    "50 21 23 54 82 81 50 / 54 26 28 59 88 76 54",
              "80 31 32 66 68 39 28 36 63 80"),
    "nine": ("81 40 12 24 54 81 / 81 86 69", "80 50 22 34 64 80 / 80 58 29",
    "71 31 23 54 72 71 / 71 69",
             "80 31 23 54 81 / 81 77 39 18"),
}  # fmt: skip

LETTERS = {
    "a": ("40 09 / 40 89 / 25 65", "50 19 / 50 99 / 26 76"),
    "b": ("10 19 / 10 60 72 64 14 / 64 86 78 59 19",),
    "c": ("82 50 21 15 28 59 87", "81 40 15 49 88"), "d": ("10 19 / 10 50 83 86 59 19",),
    "e": ("10 19 / 10 80 / 14 64 / 19 89", "70 31 33 54 25 28 59 88"),
    "f": ("10 19 / 10 80 / 14 64",),
    "g": ("82 50 21 15 28 59 88 / 88 85 / 85 55",), "h": ("10 19 / 80 89 / 15 85",),
    "i": ("50 59", "20 80 / 50 59 / 29 89"), "j": ("70 77 59 29 17", "30 90 / 60 67 49 18"),
    "k": ("10 19 / 80 15 / 25 89",), "l": ("10 19 / 19 89", "10 18 29 99"),
    "m": ("09 10 / 10 46 / 46 80 / 80 99",), "n": ("19 10 / 10 89 / 89 80",),
    "o": ("50 21 15 27 49 69 86 84 72 51 40",), "p": ("10 19 / 10 60 83 65 15",),
    "q": ("50 21 15 28 59 88 95 72 50 / 57 99",), "r": ("10 19 / 10 60 83 64 14 / 44 89",),
    "s": ("82 50 21 23 54 76 78 49 17",), "t": ("00 90 / 50 59",), "u": ("10 16 28 59 78 86 80",),
    "v": ("00 49 / 49 90",), "w": ("00 29 / 29 43 / 43 69 / 69 90",), "x": ("10 89 / 80 19",),
    "y": ("00 45 / 90 45 / 45 49", "10 14 45 84 / 80 86 59 28"),
    "z": ("10 80 / 80 19 / 19 89", "10 80 / 80 19 / 19 89 / 25 75"),
    "small a": ("83 43 15 28 58 84 / 83 87 99", "32 62 73 89 / 75 35 17 39 77"),
    "small b": ("20 29 / 25 54 86 78 49 28",), "small d": ("80 89 / 84 44 16 28 59 87",),
    "small e": ("15 75 / 75 62 32 15 28 59 88",), "small f": ("81 50 33 39 / 14 74",),
    "small g": ("82 42 14 26 56 83 / 82 87 69 29",), "small h": ("20 29 / 25 54 75 79",),
    "small n": ("23 29 / 25 53 74 79",), "small q": ("72 42 14 26 56 73 / 72 79 97",),
    "small r": ("23 29 / 25 53 83",), "small t": ("40 47 59 88 / 13 73",),
}  # fmt: skip

KANA = {
    "a": "12 82 / 40 47 38 / 74 58 29 17 26 55 86 78 59", "i": "12 15 38 46 / 72 86",
    "u": "40 61 / 23 53 84 76 49", "e": "40 61 / 23 73 / 73 09 / 36 56 58 98",
    "o": "12 62 / 40 48 29 17 45 75 87 69 / 71 93", "ka": "13 64 68 49 / 40 19 / 72 95",
    "ki": "22 71 / 14 84 / 30 75 / 25 18 49 79", "ku": "70 24 79",
    "ke": "10 15 19 28 / 43 93 / 70 76 59",
    "ko": "21 61 72 / 17 29 79", "sa": "13 83 / 40 66 / 26 18 39 69", "shi": "30 37 59 96",
    "su": "12 92 / 50 55 36 45 57 49 29", "se": "04 94 / 70 76 57 / 30 38 89",
    "so": "20 70 / 70 14 / 14 94 / 94 55 48 79", "ta": "12 62 / 40 19 / 54 84 / 57 69 89",
    "chi": "12 72 / 40 15 54 76 58 29", "tsu": "04 42 73 85 68 39", "te": "02 92 / 92 54 57 79",
    "to": "30 44 / 82 35 27 49 89", "na": "12 52 / 40 16 / 72 94 / 64 68 49 37 57 89",
    "ni": "10 14 19 / 42 82 / 37 59 99", "nu": "12 48 / 50 19 06 42 83 87 69 57 78 99",
    "ne": "20 29 / 03 33 / 33 08 / 08 44 73 86 79 58 77 99", "no": "50 38 19 05 31 71 95 69",
    "ha": "10 14 19 / 43 93 / 70 78 59 48 68 99", "hi": "02 42 15 28 59 75 62 95",
    "fu": "40 51 / 44 56 49 28 / 06 27 / 75 98", "he": "06 33 98",
    "ho": "10 14 19 / 41 91 / 44 94 / 71 78 59 48 68 99", "ma": "12 82 / 24 74 / 50 58 39 28 48 89",
    "mi": "20 60 / 60 28 07 26 77 97 / 83 79 69", "mu": "12 52 / 30 37 16 25 38 79 97 / 72 93",
    "me": "12 47 / 60 19 06 42 83 87 69", "mo": "50 37 59 87 85 / 23 73 / 15 75",
    "ya": "05 42 83 74 / 40 51 / 20 49", "yu": "12 07 33 72 84 67 45 / 50 57 39",
    "yo": "53 83 / 50 58 29 18 38 89", "ra": "30 51 / 23 17 54 86 58 29",
    "ri": "10 15 24 / 70 75 49",
    "ru": "10 60 / 60 05 / 05 53 86 69 38 57 79", "re": "20 29 / 03 33 / 33 08 / 08 44 63 67 79 97",
    "ro": "10 60 / 60 05 / 05 53 86 69 29", "wa": "20 29 / 03 33 / 33 08 / 08 43 74 87 69",
    "wo": "12 72 / 40 16 44 57 / 84 56 38 49 89", "n": "40 08 / 08 35 47 59 96",
}  # fmt: skip

_DIGITS = tuple(DIGITS.values())
_LETTERS = tuple(LETTERS.values())
_KANA = tuple((text,) for text in KANA.values())


@lru_cache(maxsize=512)
def _strokes(text: str) -> tuple[NDArray[np.float64], ...]:
    """The strokes of a skeleton, each [points, 2] in [-0.5, 0.5]."""
    strokes = text.split(" / ")
    return tuple(
        np.array([[int(p[0]), int(p[1])] for p in stroke.split()]) / 9 - 0.5 for stroke in strokes
    )


def _written(rng: Rng, text: str, *, jitter: float, warp: float, size: float) -> list[NDArray]:
    """Curves in pixels: jittered points, a smooth warp, slant, aspect, turn and place."""
    wave = rng.normal(0, 2.2, (2, 2))
    phase = rng.uniform(0, 6.3, 2)
    slant, turn = rng.normal(0, 0.22), rng.normal(0, 0.1)
    width, height = size * rng.uniform(0.62, 1.0), size * rng.uniform(0.85, 1.05)
    c, s = np.cos(turn), np.sin(turn)
    matrix = np.array(
        [[c * width, s * width], [(-slant * c - s) * height, (c - slant * s) * height]]
    )
    shift = rng.normal(0, 1.8, 2) + SIDE / 2
    out = []
    for stroke in _strokes(text):
        points = stroke + rng.normal(0, jitter, stroke.shape)
        curve = smooth(points)
        curve = curve + warp * np.sin(curve @ wave + phase)
        out.append(curve @ matrix + shift)
    return out


def _ink(curves: list[NDArray], width: float) -> Image.Image:
    """Curves of one width, round ends, as a grey mask."""
    mask = Image.new("L", (SIDE, SIDE))
    draw = ImageDraw.Draw(mask)
    r = width / 2 - 0.5
    for curve in curves:
        draw.line(curve.ravel().tolist(), fill=255, width=max(1, round(width)), joint="curve")
        for x, y in (curve[0], curve[-1]):
            draw.ellipse((x - r, y - r, x + r, y + r), fill=255)
    return mask


def _brush(rng: Rng, curves: list[NDArray], width: float) -> Image.Image:
    """Curves of changing width, as a brush leaves them: heavy starts, thin links and tails."""
    mask = Image.new("L", (SIDE, SIDE))
    draw = ImageDraw.Draw(mask)
    low = rng.uniform(0.3, 0.8)
    for curve in curves:
        along = np.linspace(0, 1, len(curve))
        swell = 0.5 + 0.5 * np.sin(rng.uniform(2, 7) * along + rng.uniform(0, 6.3))
        widths = width * (low + (1 - low) * swell) * (1 - 0.5 * along * rng.random())
        pieces = np.hstack([curve[:-1], curve[1:]]).tolist()
        for piece, w in zip(pieces, widths[:-1].tolist(), strict=True):
            draw.line(piece, fill=255, width=max(1, round(w)))
            r = w / 2 - 0.5
            if r > 0.6:
                x, y = piece[:2]
                draw.ellipse((x - r, y - r, x + r, y + r), fill=255)
    return mask


def _paper(rng: Rng, mask: Image.Image, plain: float) -> Image.Image:
    """Ink on paper: white on black with probability `plain`, otherwise any two distant colours."""
    if rng.random() < 0.6:
        mask = mask.filter(ImageFilter.GaussianBlur(rng.uniform(0.5, 1.4)))
    ink = np.asarray(mask, np.float32) / 255
    if rng.random() < plain:
        ink = np.clip(ink * rng.uniform(0.8, 1.4), 0, 1) * 255
        return Image.fromarray(ink.astype(np.uint8)).convert("RGB")
    dark, light = np.array(vivid(rng, 0.0, 0.45)), np.array(vivid(rng, 0.7, 1.0))
    if rng.random() < 0.5:
        dark, light = light, dark
    paper = ramp(0.5 + 0.25 * noise(rng, int(rng.integers(2, 6))), dark * 0.85, dark * 1.1 + 8)
    out = paper + (light - paper) * ink[:, :, None]
    return Image.fromarray(np.clip(out, 0, 255).astype(np.uint8))


def draw_digit(rng: Rng, label: int) -> Image.Image:
    """A handwritten digit."""
    text = pick(rng, _DIGITS[label])
    curves = _written(rng, text, jitter=0.025, warp=0.06, size=rng.uniform(34, 46))
    return _paper(rng, _ink(curves, rng.uniform(3.2, 8.5)), plain=0.65)


def draw_letter(rng: Rng, label: int) -> Image.Image:
    """A handwritten letter."""
    text = pick(rng, _LETTERS[label])
    curves = _written(rng, text, jitter=0.022, warp=0.05, size=rng.uniform(34, 50))
    return _paper(rng, _ink(curves, rng.uniform(3, 8)), plain=0.5)


def draw_kana(rng: Rng, label: int) -> Image.Image:
    """A kana written with a brush; some strokes are linked without lifting it."""
    text = pick(rng, _KANA[label])
    curves = _written(rng, text, jitter=0.04, warp=0.09, size=rng.uniform(50, 62))
    if rng.random() < 0.5:
        links = [
            np.linspace(a[-1], b[0], 4)
            for a, b in zip(curves[:-1], curves[1:], strict=True)
            if rng.random() < 0.5
        ]
        curves = curves + links
    return _paper(rng, _brush(rng, curves, rng.uniform(3.5, 8.5)), plain=0.7)
