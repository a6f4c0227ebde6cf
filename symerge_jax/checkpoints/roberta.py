"""RoBERTa checkpoints of Hugging Face ⇄ our parameter tree and head.

Read are RobertaForSequenceClassification, RobertaModel and RobertaForMaskedLM, strictly: every
tensor of the encoder and the head is read by one rule of `roberta_layout`, a pooler, a language
model's head and position counters are passed over by name, and anything else is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from symerge_jax.checkpoints.clip_layouts import naming
from symerge_jax.checkpoints.layout import Names, names_of
from symerge_jax.checkpoints.open import open_checkpoint
from symerge_jax.checkpoints.roberta_heads import head_tensors, head_tree
from symerge_jax.checkpoints.roberta_layout import roberta_rules, roberta_sizes, stated_classes
from symerge_jax.checkpoints.roberta_names import PREFIX, Parts, in_file, parts_of, prefix_of
from symerge_jax.checkpoints.source import Checkpoint
from symerge_jax.errors import BadInput
from symerge_jax.models.roberta import param_shapes
from symerge_jax.models.roberta_config import RobertaConfig

Tree = dict[str, Any]
Read = Callable[[str], np.ndarray]


class Converted(NamedTuple):
    """A converted checkpoint.

    Attributes:
        params: the encoder, as NumPy arrays in the precision of the source.
        config: its sizes.
        head: of the classifier, None where the checkpoint has none; see `models.roberta.classify`.
        classes: names of the head's outputs, None where they are not stated.
        prefix: what stood before the encoder's names; give it back to `to_hugging_face`.
        aside: source names of tensors that were passed over.
    """

    params: Tree
    config: RobertaConfig
    head: Tree | None
    classes: tuple[str, ...] | None
    prefix: str
    aside: tuple[str, ...]


class LoadedRoberta(NamedTuple):
    """A RoBERTa, read.

    Attributes:
        params: the encoder; NumPy arrays in the precision of the file.
        config: its sizes.
        head: of the classifier in the same weights, None where there is none.
        classes: names of the head's outputs, None where they are not stated.
        source: the checkpoint itself.
        names: how its tensors are called.
        notes: what had to be assumed, one sentence each.
    """

    params: Tree
    config: RobertaConfig
    head: Tree | None
    classes: tuple[str, ...] | None
    source: Checkpoint
    names: Names
    notes: tuple[str, ...] = ()


def from_hugging_face(
    tensors: Mapping[str, np.ndarray],
    config: Mapping[str, Any] | None = None,
    *,
    source: str = "checkpoint",
) -> Converted:
    """Converts a state dict.

    Args:
        tensors: names with or without the prefix `roberta.`; LayerNorm's may be gamma and beta.
        config: the parsed config.json; None takes what every released model has, see
            `roberta_sizes`.
        source: what to call the checkpoint in errors.

    Raises:
        BadInput: names the first tensor that is missing, unread or of another shape, or the first
            key of the config that the tensors contradict.
    """
    shapes = {name: np.shape(value) for name, value in tensors.items()}
    with naming(source):
        prefix = prefix_of(shapes, config)
    if prefix is None:
        raise BadInput(f"{source}: no RoBERTa in it; {_EXPECTED}, found {next(iter(shapes), None)}")
    return _convert(lambda name: np.asarray(tensors[name]), shapes, prefix, config, source)


def to_hugging_face(
    params: Tree, *, head: Tree | None = None, prefix: str = PREFIX
) -> dict[str, np.ndarray]:
    """Returns the state dict of an encoder and its head; inverse of `from_hugging_face`.

    Args:
        params: the encoder.
        head: written as `classifier.…`.
        prefix: before the encoder's names.

    Raises:
        BadInput: the tree is no encoder.
    """
    flat: Tree = flatten_dict(params, sep="/")
    found = {}
    for rule in _rules_of(flat, prefix):
        found[rule.source] = np.asarray(rule.kind.write(np.asarray(flat[rule.path])), order="C")
    if head is not None:
        outer = prefix.removesuffix(PREFIX)
        found |= {f"{outer}classifier.{name}": value for name, value in head_tensors(head).items()}
    return found


def source_names(params: Tree, *, prefix: str = PREFIX) -> list[tuple[str, str]]:
    """Returns (source name, path in our tree) of every leaf, in the order of the source.

    Raises:
        BadInput: the tree is no encoder.
    """
    rules = _rules_of(flatten_dict(params, sep="/"), prefix)
    return [(rule.source, rule.path) for rule in rules]


def load_roberta(path: str | Path | Checkpoint) -> LoadedRoberta:
    """Reads a RoBERTa and the classifier in its weights, if there is one.

    Args:
        path: as for `open_checkpoint`, or what that returned.

    Raises:
        BadInput: no RoBERTa; a tensor missing, unread or of another shape; a config that the
            tensors contradict, or of a network that computes something else.
    """
    source = path if isinstance(path, Checkpoint) else open_checkpoint(path)
    names = names_of(source)
    if names.layout != "roberta":
        raise BadInput(
            f"{source.path}: no RoBERTa in it; {_EXPECTED}, found {next(iter(source.where))}"
        )
    shapes = {name: info.shape for name, info in source.tensors.items()}
    found = _convert(source.read, shapes, names.prefix, source.config, str(source.path))
    notes = []
    if source.config is None:
        notes.append(
            "no config beside the weights: taking 64 features per attention head and the "
            "LayerNorm epsilon 1e-05, as in every released RoBERTa"
        )
    return LoadedRoberta(
        found.params, found.config, found.head, found.classes, source, names, tuple(notes)
    )  # fmt: skip


def load_head(source: Checkpoint) -> tuple[Tree, tuple[str, ...] | None] | None:
    """Returns the head in a classifier's weights and its class names, without reading the rest.

    None where the checkpoint holds no classifier of texts.

    Raises:
        BadInput: a tensor of the head is missing or does not fit, or the config states another
            number of classes.
    """
    names = names_of(source)
    if names.layout != "roberta":
        return None
    parts = parts_of(source.where, names.prefix)
    words = source.tensors[parts.encoder[f"{PREFIX}embeddings.word_embeddings.weight"]]
    return _head(source.read, parts, words.shape[-1], source.config, str(source.path))


_EXPECTED = "expected the tensor names of RobertaForSequenceClassification (roberta.embeddings.…)"


def _convert(
    read: Read,
    shapes: Mapping[str, tuple[int, ...]],
    prefix: str,
    config: Mapping[str, Any] | None,
    source: str,
) -> Converted:
    """Applies the rules and checks the result against the sizes."""
    with naming(source):
        parts = parts_of(shapes, prefix)
    found = _depth(parts.encoder)
    depth = (config or {}).get("num_hidden_layers", found)
    depth = depth if type(depth) is int and depth > 0 else found  # said by `roberta_sizes`
    rules = roberta_rules(max(depth, 1))
    flat: Tree = {}
    for rule in rules:
        if rule.source not in parts.encoder:
            raise BadInput(f"{source}: tensor {in_file(rule.source, prefix)} is missing")
        name = parts.encoder[rule.source]
        axes = rule.kind.axes or (1 if rule.path.endswith(("scale", "bias")) else 2)
        if len(shapes[name]) != axes:
            raise BadInput(
                f"{source}: tensor {name} has shape {shapes[name]}, expected {axes} axes"
            )
        flat[rule.path] = rule.kind.read(read(name))
    read_already = {parts.encoder[rule.source] for rule in rules}
    for name in (*parts.unknown, *parts.encoder.values()):
        if name not in read_already:
            raise BadInput(f"{source}: tensor {name} {shapes[name]} belongs to no known part")
    with naming(source):
        sizes = roberta_sizes({path: leaf.shape for path, leaf in flat.items()}, depth, config)
    expected: Tree = flatten_dict(param_shapes(sizes), sep="/")
    for rule in rules:
        wanted, came = expected.pop(rule.path).shape, flat[rule.path].shape
        if came != wanted:
            turn = -1 if rule.kind.axes == 2 else 1  # back to the source's order of axes
            raise BadInput(
                f"{source}: tensor {parts.encoder[rule.source]} has shape {came[::turn]}, expected "
                f"{wanted[::turn]}"
            )
    assert not expected, f"no rule sets {min(expected)}"
    head, classes = _head(read, parts, sizes.width, config, source) or (None, None)
    return Converted(
        unflatten_dict(flat, sep="/"), sizes, head, classes, prefix, parts.passed_over
    )  # fmt: skip


def _head(
    read: Read, parts: Parts, width: int, config: Mapping[str, Any] | None, source: str
) -> tuple[Tree, tuple[str, ...] | None] | None:
    if not parts.head:
        return None
    tensors = {}
    for name in ("dense.weight", "dense.bias", "out_proj.weight", "out_proj.bias"):
        if f"classifier.{name}" not in parts.head:
            raise BadInput(f"{source}: tensor classifier.{name} of the head is missing")
        tensors[name] = read(parts.head[f"classifier.{name}"])
    head = head_tree(tensors, source, width=width)
    with naming(source):
        stated, classes = stated_classes(config)
    outputs = len(tensors["out_proj.bias"])
    if stated is not None and stated != outputs:
        raise BadInput(
            f"{source}: config states {stated} labels (id2label), but the head has {outputs} "
            "outputs; config and weights belong to different models"
        )
    return head, classes


def _depth(names: Mapping[str, str]) -> int:
    pattern = re.compile(re.escape(PREFIX) + r"encoder\.layer\.(\d+)\.")
    return 1 + max((int(hit[1]) for name in names if (hit := pattern.match(name))), default=-1)


def _rules_of(flat: Mapping[str, Any], prefix: str) -> list[Any]:
    """Returns the rules of a tree, after a check that each leaf has one."""
    blocks = {path.partition("/")[0] for path in flat if path.startswith("blocks_")}
    rules = roberta_rules(len(blocks), prefix)
    odd = set(flat) ^ {rule.path for rule in rules}
    if odd:
        raise BadInput(f"leaf {min(odd)} of the tree and the layout of RoBERTa do not match")
    return rules
