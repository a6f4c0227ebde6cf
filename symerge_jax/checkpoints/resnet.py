"""ResNet checkpoints in torchvision's names ⇄ our variables, classifier and decoders.

Read are torchvision's own files (state dict or pickled module), Lightning checkpoints of
FusionBench (`encoder.…` and `decoders.<task>.…` below any prefix) and folders of `resnet_export`.
Trunk and decoders are read strictly: each tensor by one rule of `resnet_layout`. What lies beside
them (losses, metrics, auxiliary heads) is passed over, and its names are kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from symerge_jax.checkpoints.clip_layouts import Rule, naming
from symerge_jax.checkpoints.decoders import RATES, Decoder, decoder_of
from symerge_jax.checkpoints.layout import Names, names_of
from symerge_jax.checkpoints.open import open_checkpoint
from symerge_jax.checkpoints.resnet_layout import (
    OUTPUT_STRIDE,
    block_counts,
    resnet_sizes,
    stated_stride,
    trunk_rules,
)
from symerge_jax.checkpoints.resnet_names import Parts, parts_of, prefix_of
from symerge_jax.checkpoints.resnet_tensors import (
    Read,
    check_shapes,
    counters_of,
    read_leaves,
    written,
)
from symerge_jax.checkpoints.source import Checkpoint
from symerge_jax.errors import BadInput
from symerge_jax.models.resnet import variable_shapes
from symerge_jax.models.resnet_config import STAGES, ResNetConfig

Tree = dict[str, Any]


class Converted(NamedTuple):
    """A converted checkpoint.

    Attributes:
        variables: {'params', 'batch_stats'} of the trunk, as NumPy arrays in the precision of the
            source.
        config: its sizes.
        classifier: {'weight' [classes, features], 'bias'} of `fc`, None where there is none.
        decoders: task → decoder in the same weights.
        counts: torchvision's name → how many batches a running statistic has seen, for those that
            the source says it of; give it back to `to_torchvision`.
        prefix: what stood before the trunk's names.
        aside: source names of tensors that were passed over.
    """

    variables: Tree
    config: ResNetConfig
    classifier: Tree | None
    decoders: dict[str, Decoder]
    counts: dict[str, np.ndarray]
    prefix: str
    aside: tuple[str, ...]


class LoadedResNet(NamedTuple):
    """A ResNet, read; see `Converted`.

    Attributes:
        source: the checkpoint itself.
        names: how its tensors are called.
        notes: what had to be assumed, one sentence each.
    """

    variables: Tree
    config: ResNetConfig
    classifier: Tree | None
    decoders: dict[str, Decoder]
    counts: dict[str, np.ndarray]
    source: Checkpoint
    names: Names
    notes: tuple[str, ...] = ()


def from_torchvision(
    tensors: Mapping[str, np.ndarray],
    config: Mapping[str, Any] | None = None,
    *,
    output_stride: int | None = None,
    rates: Sequence[int] = RATES,
    source: str = "checkpoint",
) -> Converted:
    """Converts a state dict.

    Args:
        tensors: with torchvision's names below any prefix.
        config: the parsed config.json, which may state `output_stride`.
        output_stride: of the trunk, which shows in no tensor: 8, 16 or 32; None takes what the
            config states, or 8.
        rates: dilations of the decoders' branches, which show in no tensor either.
        source: what to call the checkpoint in errors.

    Raises:
        BadInput: names the first tensor that is missing, unread or of another shape.
    """
    prefix = prefix_of({name: np.shape(value) for name, value in tensors.items()})
    if prefix is None:
        raise BadInput(f"{source}: no ResNet in it; {_EXPECTED}, found {next(iter(tensors), None)}")
    stride = _stride(config, output_stride, source)
    parts = parts_of(tensors, prefix)
    return _convert(lambda name: np.asarray(tensors[name]), parts, prefix, stride, rates, source)


def to_torchvision(
    variables: Tree,
    *,
    classifier: Tree | None = None,
    counts: Mapping[str, Any] | None = None,
) -> dict[str, np.ndarray]:
    """Returns the state dict of a trunk in torchvision's names and order.

    Args:
        variables: {'params', 'batch_stats'}.
        classifier: written as `fc.…`.
        counts: of `Converted`: counters to write; None writes 0 everywhere.

    Raises:
        BadInput: the tree is no trunk.
    """
    flat: Tree = flatten_dict(variables, sep="/")
    found = written(flat, _rules_of(flat), counts)
    if classifier is not None:
        found |= {f"fc.{n}": np.asarray(classifier[n], order="C") for n in ("weight", "bias")}
    return found


def source_names(variables: Tree) -> list[tuple[str, str]]:
    """Returns (torchvision's name, path in our tree) of every leaf, in torchvision's order.

    Args:
        variables: {'params', 'batch_stats'}; with 'params' alone there are no running statistics.

    Raises:
        BadInput: a leaf that no trunk has, or one is absent.
    """
    flat: Tree = flatten_dict(variables, sep="/")
    rules = [rule for rule in _rules_of(flat) if rule.path.split("/")[0] in variables]
    if odd := set(flat) ^ {rule.path for rule in rules}:
        raise BadInput(f"leaf {min(odd)} of the tree and the layout of a ResNet do not match")
    return [(rule.source, rule.path) for rule in rules]


def load_resnet(
    path: str | Path | Checkpoint,
    *,
    output_stride: int | None = None,
    rates: Sequence[int] = RATES,
) -> LoadedResNet:
    """Reads a trunk, and the classifier and decoders in its weights, if there are some.

    Args:
        path: as for `open_checkpoint`, or what that returned.
        output_stride: see `from_torchvision`.
        rates: see `from_torchvision`; of decoders in the same weights.

    Raises:
        BadInput: no ResNet; a tensor missing, unread or of another shape; a checkpoint without the
            running statistics of batch normalisation.
    """
    source = path if isinstance(path, Checkpoint) else open_checkpoint(path)
    names = names_of(source)
    if names.layout != "resnet":
        raise BadInput(
            f"{source.path}: no ResNet in it; {_EXPECTED}, found {next(iter(source.where))}"
        )
    stride = _stride(source.config, output_stride, str(source.path))
    parts = parts_of(source.where, names.prefix)
    found = _convert(source.read, parts, names.prefix, stride, rates, str(source.path))
    notes = []
    if output_stride is None and stated_stride(source.config) is None:
        notes.append(
            f"no config beside the weights states output_stride: taking {OUTPUT_STRIDE}, a trunk "
            "dilated for dense prediction"
        )
    return LoadedResNet(*found[:5], source, names, tuple(notes))


_EXPECTED = (
    "expected the tensor names of torchvision's ResNets with bottleneck blocks "
    "(layer1.0.conv3.weight), below any prefix"
)


def _stride(config: Mapping[str, Any] | None, given: int | None, source: str) -> int:
    if given is not None:
        return given
    with naming(source):
        return stated_stride(config) or OUTPUT_STRIDE


def _convert(
    read: Read, parts: Parts, prefix: str, stride: int, rates: Sequence[int], source: str
) -> Converted:
    blocks = block_counts(parts.trunk)
    if 0 in blocks:
        raise BadInput(
            f"{source}: stage layer{blocks.index(0) + 1} has no blocks; expected {STAGES} stages"
        )
    rules = trunk_rules(blocks)
    names = {**parts.trunk, **parts.counters}
    flat: Tree = read_leaves(read, names, rules, source)
    config = resnet_sizes({path: leaf.shape for path, leaf in flat.items()}, blocks, stride)
    expected: Tree = flatten_dict(variable_shapes(config), sep="/")
    check_shapes(flat, expected, rules, names, source)
    counts = {name: read(names[name]) for name in counters_of(rules) if name in names}
    return Converted(
        unflatten_dict(flat, sep="/"),
        config,
        _classifier(read, parts, config.features, source),
        {
            task: decoder_of(read, own, f"{source}, decoder {task}", rates=rates)
            for task, own in parts.decoders.items()
        },
        counts,
        prefix,
        parts.passed_over,
    )


def _classifier(read: Read, parts: Parts, features: int, source: str) -> Tree | None:
    if not parts.classifier:
        return None
    found = {name: read(entry) for name, entry in parts.classifier.items()}
    shapes = {name: value.shape for name, value in found.items()}
    classes = shapes.get("bias", (0,))[:1]
    if shapes != {"weight": (*classes, features), "bias": classes}:
        raise BadInput(
            f"{source}: the classifier fc has shapes {shapes}, expected weight [classes, "
            f"{features}] and bias [classes]"
        )
    return found


def _rules_of(flat: Mapping[str, Any]) -> list[Rule]:
    return trunk_rules(block_counts(flat))
