"""What merging methods may know about the leaves of each model family, written out.

For our own CLIP towers, RoBERTa encoders and ResNet trunks by path, for tensors in files by their
common names, through the same tables that read checkpoints (`clip_layouts`, `roberta_layout`,
`resnet_layout`). A tensor that no table knows is no error: with two axes it is a matrix [out, in],
as the predicate of the authors of TSV and Iso says, and it lies outside the blocks.

Matrices are what those authors decompose: every leaf with two axes, position and token embeddings
included, but the text projection, and RoBERTa's token types, which are a single row. Block depth is
that of LiNeS: embeddings, final norm and projection lie outside the blocks. A ResNet's blocks are
numbered through all stages; its stem lies outside.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from symerge_jax.checkpoints.clip_layouts import (
    CONV,
    DENSE,
    Rule,
    hugging_face_rules,
    open_clip_rules,
)
from symerge_jax.checkpoints.layout import LayoutName
from symerge_jax.checkpoints.resnet_layout import block_counts, trunk_rules
from symerge_jax.checkpoints.roberta_layout import roberta_rules
from symerge_jax.errors import BadInput
from symerge_jax.merge.leaves import Leaf, Orientation

_QKV = ("query", "key", "value")
_OUTSIDE = {
    "class_embedding": Leaf(),
    "position_embedding": Leaf("out_in"),
    "patch_embedding/kernel": Leaf("conv_hwio"),
    "token_embedding/embedding": Leaf("out_in"),
    "token_type_embedding": Leaf(),
    **{f"{norm}/{name}": Leaf() for norm in ("ln_pre", "ln_post", "ln_final", "ln_embedding")
       for name in ("scale", "bias")},
}  # fmt: skip
_IN_BLOCK = {
    **{f"{norm}/{name}": Leaf() for norm in ("ln_1", "ln_2") for name in ("scale", "bias")},
    **{f"attention/{name}/kernel": Leaf("in_out") for name in ("in_proj", "out")},
    **{f"attention/{name}/bias": Leaf() for name in ("in_proj", "out", *_QKV)},
    **{f"attention/{name}/kernel": Leaf("in_out", group="attention", part=part)
       for part, name in enumerate(_QKV)},
    **{f"mlp/{name}/kernel": Leaf("in_out") for name in ("fc", "proj")},
    **{f"mlp/{name}/bias": Leaf() for name in ("fc", "proj")},
}  # fmt: skip


def tower_leaves(tower: dict[str, Any]) -> dict[str, Any]:
    """Returns a `Leaf` for each leaf of a tower of `models.clip` or an encoder of `models.roberta`.

    Likewise of a trunk of `models.resnet`.

    Args:
        tower: nested dict of parameters or of their shapes, query, key and value fused or split; of
            a trunk its variables, or what is in 'params' or 'batch_stats' alone.

    Raises:
        BadInput: a leaf that none of them has.
    """
    from flax.traverse_util import flatten_dict, unflatten_dict  # takes half a second to import

    paths = flatten_dict(tower, sep="/")
    if (trunk := _of_trunk(paths)) is not None:
        return unflatten_dict(trunk, sep="/")
    text = "token_embedding/embedding" in paths
    return unflatten_dict({path: _of_tower(path, text=text) for path in paths}, sep="/")


_COLLECTION = re.compile(r"(?:params|batch_stats)/")
_STAGE = re.compile(r"layer([1-4])[._](\d+)[./]")
_STEM = re.compile(r"(?:conv1/kernel|bn1/(?:scale|bias|mean|var))")


def _of_trunk(paths: Mapping[str, Any]) -> dict[str, Leaf] | None:
    """Returns path → facts of a ResNet's trunk; None if some leaf is not of one."""
    bare = {path: _COLLECTION.sub("", path, count=1) for path in paths}
    if not all(_STEM.fullmatch(name) or _STAGE.match(name) for name in bare.values()):
        return None
    depths = _block_depths(bare.values())
    return {path: _of_residual(name, depths, "conv_hwio") for path, name in bare.items()}


def _block_depths(names: Iterable[str]) -> dict[tuple[str, ...], int]:
    """Numbers the residual blocks in forward order."""
    found = {hit.groups() for name in names if (hit := _STAGE.match(name))}
    ordered = sorted(found, key=lambda place: tuple(map(int, place)))
    return {place: depth for depth, place in enumerate(ordered)}


def _of_residual(name: str, depths: Mapping[tuple[str, ...], int], kernel: Orientation) -> Leaf:
    hit = _STAGE.match(name)
    matrix = kernel if name.endswith("/kernel") else None
    return Leaf(matrix, None if hit is None else depths[hit.groups()])


def _of_tower(path: str, *, text: bool) -> Leaf:
    if path == "projection/kernel":
        return Leaf() if text else Leaf("in_out")
    block = re.fullmatch(r"blocks_(\d+)/(.+)", path)
    known = _OUTSIDE.get(path) if block is None else _IN_BLOCK.get(block[2])
    if known is None:
        raise BadInput(f"the leaf {path} is none of a CLIP tower's or a RoBERTa's")
    if block is None:
        return known
    group = known.group and f"blocks_{block[1]}/{known.group}"
    return replace(known, depth=int(block[1]), group=group)


def named_leaves(shapes: Mapping[str, tuple[int, ...]], layout: LayoutName) -> dict[str, Leaf]:
    """Returns a `Leaf` for each tensor of a checkpoint.

    Args:
        shapes: common name (see `layout.names_of`) → shape.
        layout: 'hugging_face', 'open_clip', 'roberta' or 'resnet'; 'plain' knows shapes alone.
    """
    known: dict[str, Leaf] = {}
    if layout == "hugging_face":
        blocks = r"{}\.encoder\.layers\.(\d+)\..*"
        rules = hugging_face_rules(
            "vision_model.",
            depth=_depth(shapes, blocks.format("vision_model")),
            projection=True,
            text_depth=_depth(shapes, blocks.format("text_model")),
        )
        known = {rule.source: _of_rule(rule) for rule in rules}
    elif layout == "open_clip":
        rules = open_clip_rules(
            "",
            depth=_depth(shapes, r"visual\.transformer\.resblocks\.(\d+)\..*"),
            projection=True,
            text_depth=_depth(shapes, r"transformer\.resblocks\.(\d+)\..*"),
        )
        known = {rule.source: _of_rule(rule) for rule in rules}
    elif layout == "roberta":
        rules = roberta_rules(_depth(shapes, r"roberta\.encoder\.layer\.(\d+)\..*"))
        known = {r.source: _of_rule(r._replace(path=f"encoder/{r.path}")) for r in rules}
    elif layout == "resnet":
        rules = trunk_rules(block_counts(shapes))
        depths = _block_depths(rule.source for rule in rules)
        paths = {rule.source: _COLLECTION.sub("", rule.path, count=1) for rule in rules}
        known = {name: _of_residual(path, depths, "conv_oihw") for name, path in paths.items()}
    return {
        name: known[name] if name in known else Leaf("out_in" if len(shape) == 2 else None)
        for name, shape in shapes.items()
    }


def _depth(names: Mapping[str, Any], pattern: str) -> int:
    return 1 + max(
        (int(hit[1]) for name in names if (hit := re.fullmatch(pattern, name))), default=-1
    )


def _of_rule(rule: Rule) -> Leaf:
    """Returns the facts of a tensor: those of its leaf in our tower, its axes as in the file."""
    tower, _, path = rule.path.partition("/")
    if not path:  # logit_scale
        return Leaf()
    fact = _of_tower(path, text=tower == "text")
    if fact.matrix == "in_out" and rule.kind is DENSE:
        fact = replace(fact, matrix="out_in")
    if fact.matrix == "conv_hwio" and rule.kind is CONV:
        fact = replace(fact, matrix="conv_oihw")
    return replace(fact, group=fact.group and f"{tower}/{fact.group}")
