"""CLIP checkpoints in the layouts of Hugging Face and open_clip ⇄ our parameter trees.

Reading is strict in both directions: every tensor is read by one rule of `clip_layouts` (or put
aside by name, see `ASIDE`) and every leaf of the tower is set, with its shape checked.

open_clip stacks query, key and value in one tensor and so does the tree it becomes
(`fused_qkv=True`); Hugging Face keeps three. A tree is only written back in its own layout, since
one coefficient per leaf means something else in the other; `split_qkv` and `fuse_qkv` convert.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from symerge_jax.checkpoints.clip_layouts import (
    Rule,
    hugging_face_rules,
    hugging_face_sizes,
    naming,
    open_clip_rules,
    open_clip_sizes,
)
from symerge_jax.checkpoints.layout import ASIDE, TEXT_LEFTOVERS
from symerge_jax.errors import BadInput
from symerge_jax.models.clip import param_shapes
from symerge_jax.models.clip_config import Activation, ClipConfig, TextConfig, VisionConfig

Layout = Literal["hugging_face", "open_clip"]
Tensors = Mapping[str, np.ndarray]
Tree = dict[str, Any]
Table = Callable[..., list[Rule]]


class Converted(NamedTuple):
    """A converted checkpoint.

    Attributes:
        params: {'vision': tower} and, for a full model, 'text' and the scalar 'logit_scale' (log),
            as NumPy arrays in the precision of the source.
        vision: sizes of the image tower.
        text: sizes of the text tower, None where the checkpoint has none.
        prefix: what stood before the names; give it back to `to_hugging_face` or `to_open_clip`.
        aside: tensors that are no parameters of these towers, by source name, as they came.
    """

    params: Tree
    vision: VisionConfig
    text: TextConfig | None
    prefix: str
    aside: dict[str, np.ndarray]


def from_hugging_face(
    tensors: Tensors,
    config: Mapping[str, Any] | VisionConfig | ClipConfig | None = None,
    *,
    activation: Activation = "quick_gelu",
    source: str = "checkpoint",
) -> Converted:
    """Converts CLIPVisionModel, CLIPVisionModelWithProjection or CLIPModel.

    Args:
        tensors: the state dict; names with or without the prefix `vision_model.`.
        config: the parsed config.json, or sizes; None reads them from the shapes, taking 64
            features per attention head and the end of text at the highest id.
        activation: of the MLPs where `config` is None.
        source: what to call the checkpoint in errors.

    Raises:
        BadInput: names the first tensor that is missing, unread or of another shape.
    """
    prefix = _prefix(tensors, "embeddings.patch_embedding.weight", source)
    outer = prefix.removesuffix("vision_model.")
    found = _Found(
        depth=_depth(tensors, f"{prefix}encoder.layers."),
        projection=f"{outer}visual_projection.weight" in tensors,
        text_depth=_depth(tensors, f"{outer}text_model.encoder.layers."),
    )
    if isinstance(config, Mapping):
        with naming(source):
            config = hugging_face_sizes(config, projection=found.projection)
    return _read(tensors, hugging_face_rules, prefix, found, config, activation, source)


def from_open_clip(
    tensors: Tensors,
    config: Mapping[str, Any] | VisionConfig | ClipConfig | None = None,
    *,
    activation: Activation = "quick_gelu",
    source: str = "checkpoint",
) -> Converted:
    """Converts open_clip's CLIP or an image encoder cut out of it.

    Without `transformer.resblocks` what is left of the text tower is put aside.

    Args:
        tensors: the state dict; names start with `visual.` or `model.visual.`.
        config: open_clip's model config (embed_dim, vision_cfg, text_cfg, quick_gelu), or sizes;
            None reads them from the shapes, taking 64 features per attention head.
        activation: of the MLPs where `config` is None: OpenAI's weights need 'quick_gelu'.
        source: what to call the checkpoint in errors.

    Raises:
        BadInput: names the first tensor that is missing, unread or of another shape.
    """
    prefix = _prefix(tensors, "visual.conv1.weight", source)
    found = _Found(
        depth=_depth(tensors, f"{prefix}visual.transformer.resblocks."),
        projection=f"{prefix}visual.proj" in tensors,
        text_depth=_depth(tensors, f"{prefix}transformer.resblocks."),
    )
    if isinstance(config, Mapping):
        with naming(source):
            config = open_clip_sizes(config)
    return _read(tensors, open_clip_rules, prefix, found, config, activation, source)


def to_hugging_face(params: Tree, *, prefix: str = "vision_model.") -> dict[str, np.ndarray]:
    """Returns the state dict of a tree in the split layout; inverse of `from_hugging_face`.

    Args:
        params: {'vision'[, 'text', 'logit_scale']} or an image tower alone.
        prefix: before the image tower's names.

    Raises:
        BadInput: the tree is in the fused layout.
    """
    return _write(params, "hugging_face", prefix)


def to_open_clip(params: Tree, *, prefix: str = "") -> dict[str, np.ndarray]:
    """Returns the state dict of a tree in the fused layout; inverse of `from_open_clip`.

    Args:
        params: {'vision'[, 'text', 'logit_scale']} or an image tower alone.
        prefix: before all names; 'model.' in the task-vector checkpoints.

    Raises:
        BadInput: the tree is in the split layout.
    """
    return _write(params, "open_clip", prefix)


def source_names(
    params: Tree, layout: Layout, *, prefix: str | None = None
) -> list[tuple[str, str]]:
    """Returns (source name, path in our tree) of every leaf, in the order of the source.

    Args:
        params: {'vision'[, 'text', 'logit_scale']} or an image tower alone; paths are joined with
            '/' and start inside `params`.
        layout: 'hugging_face' or 'open_clip'.
        prefix: as for `to_hugging_face` and `to_open_clip`.

    Raises:
        BadInput: the tree is in the other layout.
    """
    return [(rule.source, rule.path) for rule in source_rules(params, layout, prefix=prefix)]


def source_rules(params: Tree, layout: Layout, *, prefix: str | None = None) -> list[Rule]:
    """Returns how every leaf is stored, with the names of `source_names`, of which see there."""
    prefix = (
        {"hugging_face": "vision_model.", "open_clip": ""}[layout] if prefix is None else prefix
    )
    start = "vision/" if "class_embedding" in params else ""
    return [
        rule._replace(path=rule.path.removeprefix(start))
        for rule in _rules_of(params, layout, prefix)
    ]


def split_qkv(tower: Tree) -> Tree:
    """Returns the tower with each `in_proj` cut into query, key and value."""
    flat = {}
    for path, leaf in flatten_dict(tower, sep="/").items():
        if "/in_proj/" in path:
            for name, part in zip(("query", "key", "value"), _thirds(leaf), strict=True):
                flat[path.replace("in_proj", name)] = part
        else:
            flat[path] = leaf
    return unflatten_dict(flat, sep="/")


def fuse_qkv(tower: Tree) -> Tree:
    """Returns the tower with query, key and value of each block joined as `in_proj`."""
    flat: Tree = flatten_dict(tower, sep="/")
    fused = {}
    for path, leaf in flat.items():
        if "/query/" in path:
            parts = [flat[path.replace("query", name)] for name in ("query", "key", "value")]
            fused[path.replace("query", "in_proj")] = np.concatenate(parts, axis=-1)
        elif "/key/" not in path and "/value/" not in path:
            fused[path] = leaf
    return unflatten_dict(fused, sep="/")


class _Found(NamedTuple):
    """What the names of a checkpoint tell; a depth of 0 means that the tower is absent."""

    depth: int
    projection: bool
    text_depth: int


def _prefix(tensors: Tensors, known: str, source: str) -> str:
    """Returns what stands before the one name that ends with `known`."""
    hits = [name for name in tensors if name.endswith(known)]
    if len(hits) != 1:
        raise BadInput(
            f"{source}: expected exactly one tensor named …{known}, found {len(hits)}; "
            f"it is no CLIP image tower in this layout"
        )
    return hits[0].removesuffix(known)


def _depth(tensors: Tensors, blocks: str) -> int:
    """Returns the number of blocks whose names start with `blocks` and an index."""
    pattern = re.compile(re.escape(blocks) + r"(\d+)\.")
    return 1 + max((int(hit[1]) for name in tensors if (hit := pattern.match(name))), default=-1)


def _read(
    tensors: Tensors,
    table: Table,
    prefix: str,
    found: _Found,
    config: VisionConfig | ClipConfig | None,
    activation: Activation,
    source: str,
) -> Converted:
    """Applies the rules of one layout and checks the result against the sizes."""
    vision, text = config if isinstance(config, ClipConfig) else (config, None)
    if not found.text_depth:
        text = None
    rules = table(
        prefix,
        # One block too many is enough to name the tensor that is missing.
        depth=min(vision.depth, found.depth + 1) if vision else found.depth,
        projection=vision.projection is not None if vision else found.projection,
        text_depth=(min(text.depth, found.text_depth + 1) if text else found.text_depth) or None,
    )
    flat = {}
    for rule in rules:
        if rule.source not in tensors:
            raise BadInput(f"{source}: tensor {rule.source} is missing")
        tensor = np.asarray(tensors[rule.source])
        if rule.kind.axes is not None and tensor.ndim != rule.kind.axes:
            raise BadInput(
                f"{source}: tensor {rule.source} has shape {tensor.shape}, "
                f"expected {rule.kind.axes} axes"
            )
        flat[rule.path] = rule.kind.read(tensor)

    read = {rule.source for rule in rules}
    aside = {name: np.asarray(tensors[name]) for name in tensors if name not in read}
    leftovers = () if found.text_depth else tuple(prefix + name for name in TEXT_LEFTOVERS)
    for name in aside:
        # Integers are counters and ids, no parameters, whatever their name.
        counts = np.issubdtype(aside[name].dtype, np.integer) or aside[name].dtype == bool
        if not counts and name.rsplit(".", 1)[-1] not in ASIDE and name not in leftovers:
            raise BadInput(f"{source}: tensor {name} {aside[name].shape} belongs to no known part")

    if vision is None:
        vision = _infer_vision(flat, activation, source)
    if text is None and found.text_depth:
        text = _infer_text(flat, activation, source)
    _check_shapes(flat, rules, vision, text, source)
    return Converted(unflatten_dict(flat, sep="/"), vision, text, prefix, aside)


def _check_shapes(
    flat: Tree, rules: list[Rule], vision: VisionConfig, text: TextConfig | None, source: str
) -> None:
    shapes = {"vision": param_shapes(vision)} | ({"text": param_shapes(text)} if text else {})
    leaves: Tree = flatten_dict(shapes, sep="/")
    expected = {path: leaf.shape for path, leaf in leaves.items()}
    if text is not None:
        expected["logit_scale"] = ()
    layout = "fused" if vision.fused_qkv else "split"
    for rule in rules:
        if rule.path not in expected:
            raise BadInput(
                f"{source}: tensor {rule.source} has no place in a tower with {layout} query, key "
                f"and value; give a config with fused_qkv={not vision.fused_qkv}"
            )
        wanted = expected.pop(rule.path)
        if flat[rule.path].shape != wanted:
            # Back in the source's order of axes, without allocating the array.
            shape = rule.kind.write(np.broadcast_to(np.False_, wanted)).shape
            came = rule.kind.write(flat[rule.path]).shape
            raise BadInput(f"{source}: tensor {rule.source} has shape {came}, expected {shape}")
    assert not expected, f"no rule sets {min(expected)}"


def _infer_vision(flat: Tree, activation: Activation, source: str) -> VisionConfig:
    """Reads the sizes of the image tower off the shapes of its leaves."""
    patch, _, _, width = flat["vision/patch_embedding/kernel"].shape
    positions = len(flat["vision/position_embedding"])
    grid = math.isqrt(positions - 1)
    if grid**2 != positions - 1:
        raise BadInput(
            f"{source}: {positions} image positions are no square grid and a class token"
        )
    return VisionConfig(
        image_size=grid * patch,
        patch_size=patch,
        **_infer_blocks(flat, "vision", width, source),
        activation=activation,
    )


def _infer_text(flat: Tree, activation: Activation, source: str) -> TextConfig:
    """Reads the sizes of the text tower off the shapes of its leaves."""
    vocabulary, width = flat["text/token_embedding/embedding"].shape
    return TextConfig(
        vocabulary=vocabulary,
        length=len(flat["text/position_embedding"]),
        **_infer_blocks(flat, "text", width, source),
        activation=activation,
    )


def _infer_blocks(flat: Tree, tower: str, width: int, source: str) -> dict[str, Any]:
    # Every released CLIP tower has 64 features per head; a narrow one is somebody's own.
    if width % 64 or width < 384:
        raise BadInput(
            f"{source}: the number of attention heads cannot be told from width {width}; "
            f"give a config"
        )
    hidden = flat[f"{tower}/blocks_0/mlp/fc/kernel"].shape[1]
    projection = flat.get(f"{tower}/projection/kernel")
    return {
        "width": width,
        "depth": sum(
            re.fullmatch(rf"{tower}/blocks_\d+/ln_1/bias", path) is not None for path in flat
        ),
        "heads": width // 64,
        "mlp_width": None if hidden == 4 * width else hidden,
        "projection": None if projection is None else projection.shape[1],
        "fused_qkv": f"{tower}/blocks_0/attention/in_proj/kernel" in flat,
    }


def _rules_of(params: Tree, layout: Layout, prefix: str) -> list[Rule]:
    """Returns the rules of a tree, after a check that each leaf has one."""
    tree = {"vision": params} if "class_embedding" in params else params
    fused = "in_proj" in tree["vision"]["blocks_0"]["attention"]
    if fused != (layout == "open_clip"):
        change = "split_qkv" if fused else "fuse_qkv"
        raise BadInput(
            f"a tree with {'fused' if fused else 'split'} query, key and value cannot be named as "
            f"in {layout}; apply {change} first"
        )
    table = hugging_face_rules if layout == "hugging_face" else open_clip_rules
    rules = table(
        prefix,
        depth=_blocks(tree["vision"]),
        projection="projection" in tree["vision"],
        text_depth=_blocks(tree["text"]) if "text" in tree else None,
    )
    odd = set(flatten_dict(tree, sep="/")) ^ {rule.path for rule in rules}
    if odd:
        raise BadInput(f"leaf {min(odd)} of the tree and the layout {layout} do not match")
    return rules


def _write(params: Tree, layout: Layout, prefix: str) -> dict[str, np.ndarray]:
    rules = _rules_of(params, layout, prefix)
    flat = flatten_dict({"vision": params} if "class_embedding" in params else params, sep="/")
    return {
        rule.source: np.asarray(rule.kind.write(np.asarray(flat[rule.path])), order="C")
        for rule in rules
    }


def _blocks(tower: Tree) -> int:
    return sum(name.startswith("blocks_") for name in tower)


def _thirds(leaf: Any) -> list[Any]:
    width = leaf.shape[-1] // 3
    return [leaf[..., i * width : (i + 1) * width] for i in range(3)]
