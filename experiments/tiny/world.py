"""The generated world: twenty families of 32 x 32 pictures with captions.

A base model is pre-trained on broad pictures of the families (splits "easy" and "hard": random
colours, grounds, fonts); each task then shows its family in one narrow look seen through one
camera (splits "train" and "test"), which the base never saw. The first eight names are the usual
set of tasks, the first fourteen the larger set.

Class names share words on purpose, so that a caption can be understood from its parts.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from experiments.tiny import emblems, glyphs, surfaces
from experiments.tiny.drawing import (
    DEFAULT_FONT,
    SIDE,
    Picture,
    Style,
    develop,
    fonts,
    random_style,
    task_style,
    tilted,
)

VERSION = 1
Split: TypeAlias = Literal["easy", "hard", "train", "test"]
Draw: TypeAlias = Callable[[np.random.Generator, int, Style], Picture]
Rgb: TypeAlias = tuple[int, int, int]

TEMPLATES = (
    "a photo of a {}",
    "an image of a {}",
    "a picture showing {}",
    "this is a {}",
    "{}",
)

_NUMBERS = (
    "zero", "one", "two", "three", "four", "five", "six",
    "seven", "eight", "nine", "ten", "eleven", "twelve",
)  # fmt: skip


@dataclass(frozen=True)
class Family:
    """One kind of picture and, at the task level, one data set.

    Attributes:
        name: the task's name.
        classes: the words a caption names, one entry per label.
        draw: (generator, label, style) to a picture (32, 32, 3), float32 on the scale 0..255.
        ink: the task's colour of the figure.
        paper: the task's colour of the ground.
        accent: the task's third colour.
        fonts: the task's fonts.
    """

    name: str
    classes: tuple[str, ...]
    draw: Draw
    ink: Rgb
    paper: Rgb
    accent: Rgb = (128, 128, 128)
    fonts: tuple[str, ...] = (DEFAULT_FONT,)


def _named(pattern: str, words: Iterable[str]) -> tuple[str, ...]:
    return tuple(pattern.format(word) for word in words)


_TABLE = (
    Family(
        "digits",
        _named("handwritten digit {}", _NUMBERS[:10]),
        glyphs.draw_digit,
        ink=(225, 225, 225),
        paper=(35, 35, 35),
    ),
    Family(
        "numbers",
        _named("house number {}", _NUMBERS[:10]),
        glyphs.draw_number,
        ink=(40, 40, 110),
        paper=(215, 190, 150),
        fonts=(DEFAULT_FONT, "DejaVuSans-Bold"),
    ),
    Family(
        "letters",
        _named("capital letter {}", glyphs.LETTERS),
        glyphs.draw_letter,
        ink=(225, 230, 210),
        paper=(30, 75, 50),
        fonts=(DEFAULT_FONT, "STIXGeneralBol"),
    ),
    Family(
        "signs",
        tuple(f"{a} sign with {b}" for a in emblems.SIGN_SHAPES for b in emblems.SIGN_SYMBOLS),
        emblems.draw_sign,
        ink=(30, 30, 30),
        paper=(120, 160, 205),
        accent=(200, 30, 40),
    ),
    Family(
        "textures",
        _named("texture of {}", surfaces.TEXTURES),
        surfaces.draw_texture,
        ink=(95, 60, 40),
        paper=(205, 185, 150),
    ),
    Family(
        "angles",
        _named("grating at angle {}", _NUMBERS[:8]),
        surfaces.draw_angle,
        ink=(70, 70, 75),
        paper=(175, 175, 170),
    ),
    Family(
        "arrows",
        _named("arrow pointing {}", emblems.ARROW_DIRECTIONS),
        emblems.draw_arrow,
        ink=(245, 200, 60),
        paper=(60, 60, 80),
    ),
    Family(
        "terrain",
        _named("{} seen from above", surfaces.TERRAIN),
        surfaces.draw_terrain,
        ink=(0, 0, 0),
        paper=(128, 128, 128),
    ),
    Family(
        "shapes",
        _named("{} shape", emblems.OUTLINES),
        emblems.draw_shape,
        ink=(190, 70, 40),
        paper=(225, 225, 215),
    ),
    Family(
        "counts",
        ("one spot", *_named("{} spots", _NUMBERS[2:9])),
        emblems.draw_count,
        ink=(235, 90, 80),
        paper=(40, 60, 70),
    ),
    Family(
        "segments",
        _named("display digit {}", _NUMBERS[:10]),
        glyphs.draw_segments,
        ink=(255, 80, 60),
        paper=(35, 20, 20),
    ),
    Family(
        "colors",
        _named("{} color", emblems.COLOURS),
        emblems.draw_colour,
        ink=(0, 0, 0),
        paper=(128, 128, 128),
    ),
    Family(
        "runes",
        _named("rune {}", glyphs.RUNES),
        glyphs.draw_rune,
        ink=(55, 45, 40),
        paper=(165, 155, 135),
    ),
    Family(
        "places",
        _named("spot at {}", emblems.PLACES),
        emblems.draw_place,
        ink=(250, 240, 120),
        paper=(40, 70, 120),
    ),
    Family(
        "lower",
        _named("handwritten letter {}", glyphs.SMALL_LETTERS),
        glyphs.draw_small_letter,
        ink=(90, 30, 120),
        paper=(235, 225, 235),
        fonts=(DEFAULT_FONT, "DejaVuSans"),
    ),
    Family(
        "clocks",
        _named("clock at {}", _NUMBERS[1:13]),
        emblems.draw_clock,
        ink=(30, 30, 40),
        paper=(230, 215, 180),
    ),
    Family(
        "bricks",
        _named("brick shaped like {}", emblems.BRICKS),
        emblems.draw_brick,
        ink=(240, 140, 40),
        paper=(25, 30, 60),
    ),
    Family(
        "bars",
        _named("tallest bar at {}", _NUMBERS[1:7]),
        emblems.draw_bars,
        ink=(50, 130, 95),
        paper=(240, 240, 235),
    ),
    Family(
        "relations",
        _named("circle {} square", emblems.RELATIONS),
        emblems.draw_relation,
        ink=(30, 90, 140),
        paper=(230, 205, 205),
    ),
    Family(
        "freqs",
        _named("grating of frequency {}", _NUMBERS[1:7]),
        surfaces.draw_frequency,
        ink=(210, 220, 240),
        paper=(80, 40, 60),
    ),
)

FAMILIES: dict[str, Family] = {family.name: family for family in _TABLE}
TASKS: tuple[str, ...] = tuple(FAMILIES)
# Two tasks stay unseen: recorded handwriting, and figures with names of their own.
PRETRAINING: tuple[str, ...] = tuple(name for name in TASKS if name not in ("digits", "runes"))


# Degrees by which each task's camera is tilted. The base saw upright pictures: an expert has to
# learn its own camera, and those contradict each other, as the domains of real experts do.
TILTS = {
    "digits": 10, "numbers": -13, "letters": 15, "signs": -12, "textures": 15, "angles": 6,
    "arrows": 9, "terrain": 15, "shapes": -15, "counts": 0, "segments": 13, "colors": 0,
    "runes": -10, "places": 9, "lower": -14, "clocks": 7, "bricks": 9, "bars": 6,
    "relations": 10, "freqs": 0,
}  # fmt: skip


def images(
    name: str, *, split: Split, count: int, seed: int
) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """Draws a set of pictures, the same for the same arguments and the same libraries.

    Args:
        name: one of `TASKS`.
        split: "easy" or "hard" for the pre-training looks, "train" or "test" for the task's.
        count: number of pictures; classes differ by at most one.
        seed: any non-negative integer; the look of a task does not depend on it.

    Returns:
        Pictures uint8 (count, 32, 32, 3) and labels int32 (count,), shuffled.

    Raises:
        ValueError: no such task or split, or a negative count or seed.
    """
    if name not in FAMILIES:
        raise ValueError(f"expected a task of {', '.join(TASKS)}; got {name!r}")
    if split not in get_args(Split):
        raise ValueError(f"expected a split of {', '.join(get_args(Split))}; got {split!r}")
    if count < 0 or seed < 0:
        raise ValueError(f"count and seed are at least 0; got count {count} and seed {seed}")
    family = FAMILIES[name]
    key = (seed, zlib.crc32(name.encode()), get_args(Split).index(split))
    rng = np.random.default_rng(np.random.SeedSequence(key))
    labels = rng.permutation(np.arange(count, dtype=np.int32) % len(family.classes))
    drawn = [0] * len(family.classes)
    pictures = np.empty((count, SIDE, SIDE, 3), np.float32)
    for i, label in enumerate(labels.tolist()):
        pictures[i] = _picture(rng, family, label, split, drawn[label])
        drawn[label] += 1
    np.clip(np.rint(pictures, out=pictures), 0, 255, out=pictures)
    return pictures.astype(np.uint8), labels


def _picture(
    rng: np.random.Generator, family: Family, label: int, split: Split, index: int
) -> Picture:
    if split in ("train", "test"):
        palette = np.array([family.ink, family.paper, family.accent], np.float32)
        held_out = split == "test"
        style = task_style(rng, palette, family.fonts, held_out=held_out, index=index)
    else:
        style = random_style(rng, hard=split == "hard", index=index)
    picture = family.draw(rng, label, style)
    if style.task and TILTS[family.name]:
        picture = tilted(picture, TILTS[family.name])
    return develop(rng, picture, hard=style.hard, camera=style.task)


def worlds_digest() -> str:
    """A sha256 in hex over all that changes the pictures: the drawing code and the fonts."""
    digest = hashlib.sha256(f"{VERSION} {fonts()}".encode())
    for module in ("drawing", "glyphs", "emblems", "surfaces", "world"):
        source = (Path(__file__).parent / f"{module}.py").read_text(encoding="utf-8")
        digest.update(source.encode())
    return digest.hexdigest()
