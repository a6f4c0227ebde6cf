"""A tiny ResNet, experts made from it, and scenes with maps, as the files a person would have.

Experts are the pre-trained trunk with noise and a decoder drawn at random, and the maps are drawn
too, so nothing is trained.
"""

import functools
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from PIL import Image

from symerge_jax.checkpoints.decoders import Decoder
from symerge_jax.checkpoints.resnet_export import save_resnet
from symerge_jax.models.dense_heads import decoder_shapes
from symerge_jax.models.resnet import variable_shapes
from symerge_jax.models.resnet_config import DecoderConfig, ResNetConfig

SIZES = ResNetConfig(blocks=(1, 1, 1, 1), planes=(2, 2, 2, 4), stem=4, expansion=2)
HEAD = DecoderConfig(features=8, width=3, rates=(2,))  # fewer branches compile faster
OUTPUTS = {"segmentation": 13, "depth": 1, "normals": 3}
TASKS = tuple(OUTPUTS)
PIXELS = (16, 24)
COUNT = 5


class Scenes(NamedTuple):
    """Where everything is.

    Attributes:
        rooms: `val/*.npz` with all maps.
        plain: `*.png`, the same images alone.
        base: of the pre-trained trunk.
        experts: task → folder, with its decoder in `heads/`.
    """

    rooms: Path
    plain: Path
    base: Path
    experts: dict[str, Path]


@functools.cache
def made(folder: Path) -> Scenes:
    """Makes everything below `folder`, once per test process."""
    folder = folder / "tiny_scenes"
    rng = np.random.default_rng(0)
    start = drawn(rng, variable_shapes(SIZES))
    base = save_resnet(folder / "base", start, SIZES)
    experts = {}
    for task, outputs in OUTPUTS.items():
        noise = drawn(rng, variable_shapes(SIZES))
        trunk = jax.tree.map(lambda a, b: (0.9 * a + 0.1 * b).astype(np.float32), start, noise)
        own = Decoder(drawn(rng, decoder_shapes(HEAD, outputs)), HEAD)
        experts[task] = save_resnet(folder / task, trunk, SIZES, decoders={task: own})
    for i, scene in enumerate(scenes(rng)):
        save_scene(folder / "rooms" / "val" / f"{i}.npz", **scene)
        picture = folder / "plain" / f"{i}.png"
        picture.parent.mkdir(exist_ok=True)
        Image.fromarray(scene["rgb"]).save(picture)
    return Scenes(folder / "rooms", folder / "plain", base, experts)


def drawn(rng, shapes):
    """Kernels that keep the size of what they read, variances and scales about 1."""

    def one(path, leaf):
        value = rng.normal(0, 1 / np.sqrt(max(np.prod(leaf.shape[:-1]), 1)), leaf.shape)
        if path[-1].key in ("var", "scale"):
            value = rng.uniform(0.8, 1.2, leaf.shape)
        elif len(leaf.shape) == 1:
            value *= 0.1
        return value.astype(np.float32)

    return jax.tree_util.tree_map_with_path(one, shapes)


def scenes(rng, count=COUNT, size=PIXELS):
    """Scenes as the arrays of an npz, of which a tenth of the pixels does not count."""
    for _ in range(count):
        gaps = rng.random(size) < 0.1
        normals = rng.normal(size=(*size, 3))
        normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
        patches = rng.integers(0, 256, (2, 2, 3), np.uint8)
        yield {
            "rgb": patches.repeat(size[0] // 2, axis=0).repeat(size[1] // 2, axis=1),
            "label13": np.where(gaps, -1, rng.integers(0, 13, size)).astype(np.int8),
            "depth": np.where(gaps, 0, rng.uniform(0.5, 9, size)).astype(np.float32),
            "normal": np.where(gaps[..., None], 0, normals).astype(np.float32),
        }


def save_scene(path, **arrays):
    """Writes a scene; arrays that are None are left out."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})


def write_tasks(path: Path, made: Scenes, *, adapt="iterations = 2\nbatch_size = 3", **change):
    """Writes a tasks.toml over `made` with absolute paths.

    Args:
        path: the file.
        made: what it names.
        adapt: lines of [adapt].
        change: task → key → TOML value to add or replace, None to leave the task out; `model` →
            likewise for [model].
    """
    model = {"pretrained": f"'{made.base}'"} | change.pop("model", {})
    lines = ["[model]", *(f"{key} = {value}" for key, value in model.items()), "[adapt]", adapt]
    for task in TASKS:
        if task in change and change[task] is None:
            continue
        entry = {
            "name": f"'{task}'",
            "expert": f"'{made.experts[task]}'",
            "inputs": f"'{made.rooms}'",
        } | change.get(task, {})
        lines += ["[[task]]", *(f"{key} = {value}" for key, value in entry.items())]
    path.write_text("\n".join(lines) + "\n")
    return path
