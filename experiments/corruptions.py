"""Seven common corruptions of images, and a sheet that shows them.

    python -m experiments.corruptions --out sheet.png                     the embedded world
    python -m experiments.corruptions --out sheet.png --data DIR --task eurosat --size 64

Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations", 2019. https://arxiv.org/abs/1903.12261

Constants "small" are those of CIFAR-10-C, applied at an image's own size; "imagenet" are those of
ImageNet-C, chosen for 224 × 224. The random numbers are not those of the published data sets; what
they are drawn from is the same. As there, levels are cut off to whole numbers, but rounded after
motion blur.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from experiments import spatter
from experiments.corruption_constants import CONSTANTS
from experiments.spatter import Liquid
from experiments.tiny import world
from symerge_jax.cli.errors import nearest, run
from symerge_jax.data.images import read_task
from symerge_jax.errors import BadInput
from symerge_jax.files import write_atomically

Images: TypeAlias = NDArray[np.uint8]  # [n, height, width, 3]
Rngs: TypeAlias = Sequence[np.random.Generator]  # one for each image

CORRUPTIONS: tuple[str, ...] = tuple(CONSTANTS["small"])

_STEEPEST = 45  # motion blur's angle is uniform between minus and plus this, in degrees
_PIXELS_AT_ONCE = 1 << 20  # bounds the memory; the result does not depend on it


def corrupt(
    images: Images,
    name: str,
    *,
    severity: int = 5,
    constants: str = "small",
    seed: int = 0,
    first: int = 0,
) -> Images:
    """Returns corrupted copies of images.

    What is drawn for an image depends on `seed` and its place in the data set alone, so that parts
    of a data set can be corrupted one by one:
    `corrupt(images[100:], ..., first=100)` equals `corrupt(images, ...)[100:]`.

    Args:
        images: uint8 [n, height, width, 3].
        name: one of `CORRUPTIONS`.
        severity: from 1, mild, to 5.
        constants: a key of `CONSTANTS`: "small" or "imagenet".
        seed: of the random corruptions, from 0.
        first: place of the first image in its data set, from 0.

    Returns:
        uint8 [n, height, width, 3].

    Raises:
        BadInput: no such corruption, severity or constants, negative seed or place, or images of
            another form.
    """
    _check_images(images)
    strength = _strength(name, severity, constants)
    if seed < 0 or first < 0:
        raise BadInput(f"seed and first must be at least 0, got seed {seed} and first {first}")
    corrupted = np.empty_like(images)
    rows = max(1, _PIXELS_AT_ONCE // (images.shape[1] * images.shape[2]))
    for start in range(0, len(images), rows):
        part = images[start : start + rows]
        rngs = [_generator(seed, first + start + row) for row in range(len(part))]
        corrupted[start : start + rows] = _FUNCTIONS[name](part, rngs, strength)
    return corrupted


def motion_blurred(image: Images, *, radius: int, sigma: float, degrees: float) -> Images:
    """Blurs an image to one side only, as ImageMagick's motion blur does.

    Args:
        image: uint8 [height, width, 3]; its border pixels go on outwards.
        radius: the blur is 2·radius + 1 pixels long.
        sigma: weights are exp(−i²/2σ²) at the distance of i pixels.
        degrees: each pixel takes in those to its right, turned downwards by this angle.

    Returns:
        uint8 [height, width, 3].
    """
    steps = np.arange(2 * radius + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    weights = (weights / weights.sum()).astype(np.float32)
    angle = np.deg2rad(degrees)
    right = np.ceil(steps * np.cos(angle) - 0.5).astype(int)
    down = np.ceil(steps * np.sin(angle) - 0.5).astype(int)
    reach = 2 * radius
    padded = np.pad(image, ((reach, reach), (reach, reach), (0, 0)), mode="edge")
    height, width, _ = image.shape
    blurred = np.zeros(image.shape, np.float32)
    for weight, y, x in zip(weights, reach + down, reach + right, strict=True):
        blurred += weight * padded[y : y + height, x : x + width]
    return np.rint(blurred).astype(np.uint8)


# --- the corruptions: (images, their generators, a strength of the table) to images --------------


def _motion_blur(images: Images, rngs: Rngs, strength: tuple[int, float]) -> Images:
    radius, sigma = strength
    angles = [rng.uniform(-_STEEPEST, _STEEPEST) for rng in rngs]
    return np.stack(
        [
            motion_blurred(image, radius=radius, sigma=sigma, degrees=angle)
            for image, angle in zip(images, angles, strict=True)
        ]
    )


def _impulse_noise(images: Images, rngs: Rngs, amount: float) -> Images:
    """Salt and pepper in equal parts, for each channel on its own."""
    drawn = np.stack([rng.random(images.shape[1:], dtype=np.float32) for rng in rngs])
    noisy = images.copy()
    noisy[drawn < amount] = 255
    noisy[drawn < amount / 2] = 0
    return noisy


def _gaussian_noise(images: Images, rngs: Rngs, sigma: float) -> Images:
    return _cut_off(images + 255 * sigma * _normal(rngs, images.shape[1:]))


def _pixelate(images: Images, rngs: Rngs, factor: float) -> Images:
    height, width = images.shape[1:3]
    small = max(1, int(width * factor)), max(1, int(height * factor))
    box = Image.Resampling.BOX
    return np.stack(
        [
            np.asarray(Image.fromarray(image).resize(small, box).resize((width, height), box))
            for image in images
        ]
    )


def _spatter(images: Images, rngs: Rngs, liquid: Liquid) -> Images:
    return _cut_off(spatter.splash(images, _normal(rngs, images.shape[1:3]), liquid))


def _contrast(images: Images, rngs: Rngs, factor: float) -> Images:
    """Moves each value towards the mean of its image and channel."""
    means = images.mean(axis=(1, 2), keepdims=True)
    return _cut_off((images - means) * factor + means)


def _jpeg(images: Images, rngs: Rngs, quality: int) -> Images:
    return np.stack([_jpeg_round_trip(image, quality) for image in images])


_FUNCTIONS: dict[str, Callable[[Images, Rngs, Any], Images]] = {
    "motion_blur": _motion_blur,
    "impulse_noise": _impulse_noise,
    "gaussian_noise": _gaussian_noise,
    "pixelate": _pixelate,
    "spatter": _spatter,
    "contrast": _contrast,
    "jpeg": _jpeg,
}


def _generator(seed: int, index: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence([seed, index]))


def _normal(rngs: Rngs, shape: tuple[int, ...]) -> NDArray[np.float32]:
    return np.stack([rng.standard_normal(shape, dtype=np.float32) for rng in rngs])


def _jpeg_round_trip(image: Images, quality: int) -> Images:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    with Image.open(file) as decoded:
        return np.asarray(decoded)


def _cut_off(values: NDArray[np.floating]) -> Images:
    """Levels without their fractions; a thousandth more, so that float errors cost no level."""
    return np.floor(np.clip(values, 0, 255) + 1e-3).astype(np.uint8)


def _check_images(images: object) -> None:
    wanted = "images: expected a uint8 array [n, height, width, 3]"
    if not isinstance(images, np.ndarray):
        raise BadInput(f"{wanted}, got a {type(images).__name__}")
    if images.dtype != np.uint8:
        raise BadInput(f"{wanted}, got {images.dtype}; give levels 0 to 255 as uint8")
    if images.ndim != 4 or images.shape[3] != 3 or 0 in images.shape[1:]:
        raise BadInput(f"{wanted}, got {list(images.shape)}")


def _strength(name: str, severity: int, constants: str) -> Any:
    """The entry of the table."""
    if constants not in CONSTANTS:
        hint = nearest(constants, CONSTANTS)
        raise BadInput(f"unknown constants {constants!r}{hint}, expected {' or '.join(CONSTANTS)}")
    if name not in CORRUPTIONS:
        hint = nearest(name, CORRUPTIONS)
        raise BadInput(
            f"unknown corruption {name!r}{hint}, expected one of {', '.join(CORRUPTIONS)}"
        )
    if severity not in (1, 2, 3, 4, 5):
        raise BadInput(f"severity must be a whole number from 1 to 5, got {severity}")
    return CONSTANTS[constants][name][int(severity) - 1]


# --- the sheet ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Settings:
    """Draws images beside their seven corruptions: a row per image, a column per corruption."""

    out: Path
    """PNG to write."""
    task: str | None = None
    """Name of the task; without DATA, one image of each of the embedded world's first tasks."""
    data: Path | None = None
    """Folder with one folder per task; the embedded world otherwise."""
    size: int | None = None
    """Edge in pixels that images of DATA are made into; 32 otherwise."""
    rows: int = 8
    """How many images."""
    severity: int = 5
    """From 1, mild, to 5."""
    constants: Literal["small", "imagenet"] = "small"
    """Those of CIFAR-10-C or of ImageNet-C."""
    seed: int = 0
    """Of the choice of images and of the corruptions."""


def main(settings: Settings) -> None:
    """Draws the sheet."""
    if settings.rows < 1 or settings.seed < 0:
        raise BadInput(
            f"--rows must be at least 1 and --seed at least 0, got {settings.rows} and "
            f"{settings.seed}"
        )
    images, labels = _real(settings) if settings.data is not None else _drawn(settings)
    columns = {"clean": images}
    for name in CORRUPTIONS:
        columns[name.replace("_", " ")] = corrupt(
            images,
            name,
            severity=settings.severity,
            constants=settings.constants,
            seed=settings.seed,
        )
    print(draw_sheet(columns, labels, settings.out))


def draw_sheet(columns: dict[str, Images], labels: Sequence[str], path: str | Path) -> Path:
    """Draws images of one size side by side, enlarged by a whole number.

    Args:
        columns: the images of each column [rows, height, width, 3], by its title.
        labels: of the rows.
        path: of the PNG.

    Returns:
        The path.
    """
    font = ImageFont.load_default(size=15)
    rows, height, width, _ = next(iter(columns.values())).shape
    scale = max(1, -(-120 // width))
    height, width, gap = scale * height, scale * width, 8
    left, top = int(max(map(font.getlength, labels))) + 2 * gap, 3 * gap + 6
    size = left + len(columns) * (width + gap), top + rows * (height + gap)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for column, (title, images) in enumerate(columns.items()):
        x = left + column * (width + gap)
        draw.text((x + width // 2, top - gap), title, fill="black", font=font, anchor="ms")
        for row, image in enumerate(images):
            enlarged = image.repeat(scale, axis=0).repeat(scale, axis=1)
            sheet.paste(Image.fromarray(enlarged), (x, top + row * (height + gap)))
    for row, label in enumerate(labels):
        y = top + row * (height + gap) + height // 2
        draw.text((left - gap, y), label, fill="black", font=font, anchor="rm")
    png = io.BytesIO()
    sheet.save(png, "PNG")
    return write_atomically(path, png.getvalue())


def _drawn(settings: Settings) -> tuple[Images, list[str]]:
    """Test images of the embedded world with their tasks' or classes' names."""
    if settings.size is not None:
        raise BadInput("--size goes with --data; the embedded world's images are 32 × 32")
    if settings.task is None:
        names = world.TASKS[: settings.rows]
        draws = [world.images(name, split="test", count=1, seed=settings.seed) for name in names]
        return np.concatenate([images for images, _ in draws]), list(names)
    if settings.task not in world.TASKS:
        hint = nearest(settings.task, world.TASKS)
        raise BadInput(f"--task {settings.task}: the embedded world has no such task{hint}")
    images, labels = world.images(
        settings.task, split="test", count=settings.rows, seed=settings.seed
    )
    return images, [world.FAMILIES[settings.task].classes[label] for label in labels]


def _real(settings: Settings) -> tuple[Images, list[str]]:
    """Test images of a person's own with their classes' names."""
    size = 32 if settings.size is None else settings.size
    if settings.task is None or settings.data is None or size < 1:
        raise BadInput("--data needs --task with the name of a task in it, and --size of 1 or more")
    test = read_task(settings.data, settings.task, size=size, need_train=False).test
    chosen = np.random.default_rng(settings.seed).permutation(len(test.images))[: settings.rows]
    if test.labels is None or test.classes is None:
        return test.images[chosen], [str(row) for row in chosen]
    return test.images[chosen], [test.classes[label] for label in test.labels[chosen]]


if __name__ == "__main__":
    sys.exit(run(main, Settings, None, prog="python -m experiments.corruptions"))
