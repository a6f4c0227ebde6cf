"""ResNets and decoders in PyTorch's names: name → path in our trees, sizes, and the config file.

Convolutions are OIHW there and HWIO here. Scale and bias of batch normalisation go to `params`, its
running mean and variance to `batch_stats`, each a leaf of its own; the integer that counts batches
has no leaf.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from symerge_jax.checkpoints.clip_layouts import CONV, SAME, Rule
from symerge_jax.checkpoints.resnet_names import COUNTER
from symerge_jax.errors import BadInput
from symerge_jax.models.resnet_config import PRESETS, STAGES, ResNetConfig

OUTPUT_STRIDE = 8  # where nothing says otherwise: dilated for dense prediction


def trunk_rules(blocks: Sequence[int]) -> list[Rule]:
    """Returns the rules of a trunk with so many blocks per stage, in the order of torchvision."""
    rules = [_conv("conv1", "conv1"), *_norm("bn1", "bn1")]
    for stage, count in enumerate(blocks, start=1):
        for i in range(count):
            theirs, ours = f"layer{stage}.{i}", f"layer{stage}_{i}"
            for n in (1, 2, 3):
                rules.append(_conv(f"{theirs}.conv{n}", f"{ours}/conv{n}"))
                rules += _norm(f"{theirs}.bn{n}", f"{ours}/bn{n}")
            if i == 0:
                rules.append(_conv(f"{theirs}.downsample.0", f"{ours}/downsample_conv"))
                rules += _norm(f"{theirs}.downsample.1", f"{ours}/downsample_bn")
    return rules


def decoder_rules(rates: int) -> list[Rule]:
    """Returns the rules of a decoder with so many dilated branches, below `decoders.<task>.`."""
    branches = ["point", *(f"atrous_{i}" for i in range(rates))]
    rules = []
    for i, ours in enumerate(branches):
        rules.append(_conv(f"0.convs.{i}.0", f"{ours}/conv"))
        rules += _norm(f"0.convs.{i}.1", f"{ours}/bn")
    image = f"0.convs.{len(branches)}"  # its 0 is the pooling
    for conv, norm, ours in (
        (f"{image}.1", f"{image}.2", "image"),
        ("0.project.0", "0.project.1", "project"),
        ("1", "2", "last"),
    ):
        rules.append(_conv(conv, f"{ours}/conv"))
        rules += _norm(norm, f"{ours}/bn")
    return [*rules, _conv("4", "out"), Rule("4.bias", "params/out/bias", SAME)]


def _conv(source: str, path: str) -> Rule:
    return Rule(f"{source}.weight", f"params/{path}/kernel", CONV)


def _norm(source: str, path: str) -> list[Rule]:
    return [
        Rule(f"{source}.weight", f"params/{path}/scale", SAME),
        Rule(f"{source}.bias", f"params/{path}/bias", SAME),
        Rule(f"{source}.running_mean", f"batch_stats/{path}/mean", SAME),
        Rule(f"{source}.running_var", f"batch_stats/{path}/var", SAME),
    ]


def counter_after(rule: Rule) -> str | None:
    """Returns the counter's name that follows a tensor in a state dict, if one does."""
    stem, _, last = rule.source.rpartition(".")
    return f"{stem}.{COUNTER}" if last == "running_var" else None


def block_counts(names: Iterable[str]) -> tuple[int, ...]:
    """Returns the number of blocks per stage, told by common names or by paths in our tree."""
    found = [0] * STAGES
    for name in names:
        if hit := re.search(r"(?:^|/)layer([1-4])[._](\d+)[./]", name):
            stage = int(hit[1]) - 1
            found[stage] = max(found[stage], int(hit[2]) + 1)
    return tuple(found)


def stated_stride(config: Mapping[str, Any] | None) -> int | None:
    """Returns the output stride in a parsed config.json, None where there is none.

    Raises:
        BadInput: it is none of 8, 16 and 32.
    """
    stride = (config or {}).get("output_stride")
    if stride is not None and (type(stride) is not int or stride not in (8, 16, 32)):
        raise BadInput(f"config: output_stride is {stride!r}, expected 8, 16 or 32")
    return stride


def resnet_sizes(
    shapes: Mapping[str, tuple[int, ...]], blocks: tuple[int, ...], output_stride: int
) -> ResNetConfig:
    """Returns the sizes of a trunk.

    Args:
        shapes: path in our tree → shape of a leaf.
        blocks: per stage.
        output_stride: which no shape shows.
    """
    planes = tuple(shapes[f"params/layer{s}_0/conv1/kernel"][3] for s in range(1, STAGES + 1))
    return ResNetConfig(
        blocks=blocks,
        planes=planes,
        expansion=max(shapes["params/layer1_0/conv3/kernel"][3] // planes[0], 1),
        stem=shapes["params/conv1/kernel"][3],
        output_stride=output_stride,
    )


def config_json(
    output_stride: int, config: ResNetConfig | None = None, like: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Returns the config.json beside a trunk's weights.

    Args:
        output_stride: of the trunk.
        config: its sizes, where they are known; they give it a name.
        like: config.json of the model it comes from, whose other keys stay.
    """
    if config is not None:
        whole = [name for name, one in PRESETS.items() if _same_sizes(one, config)]
        like = {"architecture": (whole or ["resnet"])[0], **(like or {})}
    return {**(like or {}), "output_stride": output_stride}


def _same_sizes(a: ResNetConfig, b: ResNetConfig) -> bool:
    return (a.blocks, a.planes, a.expansion, a.stem) == (b.blocks, b.planes, b.expansion, b.stem)
