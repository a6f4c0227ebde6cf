"""What merging methods may know about the leaves of each model family, written out.

For our own CLIP towers and RoBERTa encoders by path, for tensors in files by their common names,
through the same tables that read checkpoints (`clip_layouts`, `roberta_layout`). A tensor that no
table knows is no error: with two axes it is a matrix [out, in], as the predicate of the authors of
TSV and Iso says, and it lies outside the blocks.

Matrices are what those authors decompose: every leaf with two axes, position and token embeddings
included, but the text projection, and RoBERTa's token types, which are a single row. Block depth is
that of LiNeS: embeddings, final norm and projection lie outside the blocks.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
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
from symerge_jax.checkpoints.roberta_layout import roberta_rules
from symerge_jax.errors import BadInput
from symerge_jax.merge.leaves import Leaf

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

    Args:
        tower: nested dict of parameters or of their shapes, query, key and value fused or split.

    Raises:
        BadInput: a leaf that none of them has.
    """
    from flax.traverse_util import flatten_dict, unflatten_dict  # takes half a second to import

    paths = flatten_dict(tower, sep="/")
    text = "token_embedding/embedding" in paths
    return unflatten_dict({path: _of_tower(path, text=text) for path in paths}, sep="/")


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
        layout: 'hugging_face', 'open_clip' or 'roberta'; 'plain' knows shapes alone.
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
