"""A tiny CLIP, experts fine-tuned from it, and images of theirs, as the files a person would have.

Three tasks whose classes differ in colour, so blurred by noise that experts make mistakes. All is
random and made in a few seconds; tests of the commands read it and write elsewhere.
"""

import contextlib
import functools
import json
import string
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from PIL import Image

from symerge_jax.checkpoints import export
from symerge_jax.checkpoints.clip import split_qkv, to_hugging_face, to_open_clip
from symerge_jax.classifier import encoder
from symerge_jax.finetune import Recipe, finetune
from symerge_jax.models.clip import param_shapes
from symerge_jax.models.clip_config import TextConfig, VisionConfig
from symerge_jax.models.heads import normalised_head
from symerge_jax.models.tokenizer import END, START

LAYOUTS = ("open_clip", "hugging_face")
# The classes in the order of the head, which is not that of sorted class folders.
CLASSES = {
    "fruit": ("plum", "apple", "lime"),
    "sky": ("night", "day"),
    "earth": ("sand", "grass", "snow"),
}
TASKS = tuple(CLASSES)
PER_CLASS = 8
SIZE = 32
VISION = VisionConfig(
    image_size=SIZE, patch_size=16, width=32, depth=2, heads=2, mlp_width=64, projection=24
)
_TOKENS = [*string.ascii_lowercase, ".", *(f"{c}</w>" for c in [*string.ascii_lowercase, "."])]
_TOKENS += ["an", "an</w>", START, END]
TEXT = TextConfig(
    vocabulary=len(_TOKENS), length=12, width=32, depth=1, heads=2, mlp_width=64, projection=24
)
_RECIPE = Recipe(
    steps=40, batch_size=12, learning_rate=0.03, head_rate=0.3, optimiser="sgd", clip=0.0
)


class Tiny(NamedTuple):
    """Where everything is.

    Attributes:
        folder: `packs/<task>/test.npz`, `images/<task>/test/<class>/*.png` (the same pixels) and
            `unlabelled/<task>/*.png` (the same again, without classes).
        base: layout → folder of the pre-trained image tower.
        full: layout → folder of the pre-trained model with its text tower and a vocabulary.
        experts: layout → task → folder, with `heads/<task>.safetensors`.
    """

    folder: Path
    base: dict[str, Path]
    full: dict[str, Path]
    experts: dict[str, dict[str, Path]]

    def head(self, task: str) -> Path:
        """The head's file of an expert."""
        return self.experts["open_clip"][task] / "heads" / f"{task}.safetensors"


@functools.cache
def made(folder: Path) -> Tiny:
    """Makes everything below `folder`, once per test process."""
    home = folder / "tiny_experts"
    vision = _drawn(VISION, 0)
    rest = {"text": _drawn(TEXT, 1), "logit_scale": np.float32(2.0)}
    tiny = Tiny(
        home,
        {layout: home / layout / "base" for layout in LAYOUTS},
        {layout: home / layout / "full" for layout in LAYOUTS},
        {layout: {task: home / layout / "experts" / task for task in TASKS} for layout in LAYOUTS},
    )
    most = max(map(len, CLASSES.values()))
    experts = {}
    for number, (task, classes) in enumerate(CLASSES.items()):
        images, labels = pictures(number, len(classes))
        _write_images(home, task, classes, images, labels)
        # As many rows and images for all, so that one compiled program makes every expert.
        rows = np.arange(most * PER_CLASS) % len(labels)
        head = _first_head(number, most)
        with _quickly_compiled():
            experts[task] = finetune(
                encoder(VISION), normalised_head, vision, head, images[rows], labels[rows], _RECIPE
            )
    for layout in LAYOUTS:
        write(tiny.base[layout], layout, {"vision": vision})
        write(tiny.full[layout], layout, {"vision": vision, **rest})
        _write_vocabulary(tiny.full[layout])
        for task, expert in experts.items():
            write(tiny.experts[layout][task], layout, {"vision": expert.params})
            own = {name: value[: len(CLASSES[task])] for name, value in expert.head.items()}
            export.write_head(tiny.experts[layout][task], task, own, CLASSES[task])
    return tiny


def pictures(number: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns images uint8 [n, 32, 32, 3] and labels int32 [n], mixed, of task `number`."""
    rng = np.random.default_rng(number)
    labels = rng.permutation(np.arange(classes * PER_CLASS, dtype=np.int32) % classes)
    colours = rng.uniform(60, 190, (classes, 3))
    n = len(labels)
    tints = colours[labels] + rng.normal(0, 30, (n, 3))  # as far apart as some classes
    pixels = tints[:, None, None] + rng.normal(0, 25, (n, SIZE, SIZE, 3))
    return pixels.clip(0, 255).astype(np.uint8), labels


def write(folder: Path, layout: str, params: dict, config: dict | None = None) -> None:
    """Writes a model as others do: weights and config.

    Args:
        folder: made if it is not there.
        layout: 'open_clip' or 'hugging_face'.
        params: {'vision'[, 'text', 'logit_scale']} with one query-key-value leaf.
        config: content of the config file; that of `VISION` and `TEXT` otherwise.
    """
    folder.mkdir(parents=True, exist_ok=True)
    params = jax.tree.map(np.asarray, params)
    if layout == "hugging_face":
        towers = {name: params[name] for name in ("vision", "text") if name in params}
        tensors = to_hugging_face(params | {name: split_qkv(t) for name, t in towers.items()})
    else:
        tensors = to_open_clip(params)
    export.write_tensors(folder / export.weights_name(layout), tensors)
    if config is None:
        export.write_config(folder, layout, VISION, TEXT if "text" in params else None)
    else:
        export.write_json(folder / "open_clip_config.json", config)


@contextlib.contextmanager
def _quickly_compiled():
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)


def _drawn(config: VisionConfig | TextConfig, seed: int) -> dict:
    """Random parameters; `initial_params` would take longer to compile than to run."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        scale = path[-1].key == "scale"
        noise = rng.normal(0, 0.02 if scale or path[-1].key == "bias" else 0.15, leaf.shape)
        return (noise + scale).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, param_shapes(config))


def _first_head(number: int, classes: int) -> dict[str, np.ndarray]:
    weight = np.random.default_rng(number).normal(size=(classes, VISION.projection))
    return {"weight": weight.astype(np.float32), "bias": np.zeros(classes, np.float32)}


def _write_images(home, task, classes, images, labels) -> None:
    pack = home / "packs" / task / "test.npz"
    pack.parent.mkdir(parents=True)
    np.savez(pack, images=images, labels=labels)
    plain = home / "unlabelled" / task
    plain.mkdir(parents=True)
    for name in classes:
        (home / "images" / task / "test" / name).mkdir(parents=True)
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        for place in (home / "images" / task / "test" / classes[label], plain):
            Image.fromarray(image).save(place / f"{i:03d}.png")


def _write_vocabulary(folder: Path) -> None:
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(_TOKENS)}))
    (folder / "merges.txt").write_text("#version: 0.2\na n\na n</w>\n")


def write_tasks(
    path: Path,
    tiny: Tiny,
    *,
    layout: str = "open_clip",
    pretrained: Path | None = None,
    inputs: str = "packs",
    adapt: str = "iterations = 6\nbatch_size = 4",
    tasks: tuple[str, ...] = TASKS,
    change: dict[str, dict[str, str | None]] | None = None,
) -> Path:
    """Writes a tasks.toml over `tiny` with absolute paths.

    Args:
        path: the file.
        tiny: what it names.
        layout: of models.
        pretrained: in place of the base.
        inputs: 'packs', 'images' or 'unlabelled'.
        adapt: lines of [adapt].
        tasks: which ones.
        change: task → key → TOML value that replaces the usual one, None to leave the key out.
    """
    lines = ["[model]", f"pretrained = '{pretrained or tiny.base[layout]}'", "[adapt]", adapt]
    for task in tasks:
        place = tiny.folder / inputs / task
        entry: dict[str, str | None] = {
            "name": f"'{task}'",
            "expert": f"'{tiny.experts[layout][task]}'",
            "head": f"'{tiny.head(task)}'",
            "inputs": f"'{place if inputs == 'unlabelled' else place / 'test'}'",
        } | (change or {}).get(task, {})
        lines.append("[[task]]")
        lines += [f"{key} = {value}" for key, value in entry.items() if value is not None]
    path.write_text("\n".join(lines) + "\n")
    return path


def zero_shot(task: str) -> dict[str, str | None]:
    """For `change` of `write_tasks`: class names and templates instead of a head."""
    return {
        "head": None,
        "classes": json.dumps(list(CLASSES[task])),
        "templates": "['a {}.', 'an image of {}']",
    }
