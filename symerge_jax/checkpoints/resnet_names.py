"""How the tensors of a ResNet are called, whoever saved them.

torchvision's names (`conv1.weight`, `layer1.0.bn1.running_mean`, `fc.weight`) are the common ones.
Training programs put a prefix before the trunk (`encoder.`, `model.encoder.`, `backbone.`) and may
keep decoders beside it, as FusionBench does for NYUv2: `decoders.<task>.0.convs.0.0.weight`.

Only bottleneck blocks without groups are taken for a ResNet; other networks with similar names
(BasicBlock, ResNeXt, squeeze-and-excitation) keep their names as they are.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

COUNTER = "num_batches_tracked"

_LAST = "layer1.0.conv3.weight"  # BasicBlock has none
_BN = r"(?:weight|bias|running_mean|running_var|num_batches_tracked)"
_TRUNK = re.compile(
    rf"conv1\.weight|bn1\.{_BN}"
    rf"|layer[1-4]\.\d+\.(?:conv[123]\.weight|bn[123]\.{_BN}"
    rf"|downsample\.(?:0\.weight|1\.{_BN}))"
)
_LIKE_TRUNK = re.compile(r"(?:conv|bn|layer)\d")
_DECODER = re.compile(r"decoders\.([^.]+)\.(.+)")


class Parts(NamedTuple):
    """The tensors of one checkpoint.

    Attributes:
        trunk: common name → name in the file; weights and running statistics.
        counters: common name → name in the file of how many batches a statistic has seen.
        classifier: 'weight' and 'bias' of `fc` → name in the file.
        decoders: task → name within the decoder → name in the file.
        passed_over: names in the file of all else.
    """

    trunk: dict[str, str]
    counters: dict[str, str]
    classifier: dict[str, str]
    decoders: dict[str, dict[str, str]]
    passed_over: tuple[str, ...]


def prefix_of(shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """Returns what stands before the trunk's names, or None where there is not one such ResNet.

    Args:
        shapes: name → shape.
    """
    ends = [name for name in shapes if name == _LAST or name.endswith("." + _LAST)]
    if len(ends) != 1:
        return None
    prefix = ends[0].removesuffix(_LAST)
    inner = shapes.get(f"{prefix}layer1.0.conv1.weight", ())
    middle = shapes.get(f"{prefix}layer1.0.conv2.weight", ())
    if f"{prefix}conv1.weight" not in shapes or len(inner) != 4 or len(middle) != 4:
        return None
    if middle[1] != inner[0]:  # groups
        return None
    for name in shapes:
        bare = name.removeprefix(prefix)
        if name.startswith(prefix) and _LIKE_TRUNK.match(bare) and not _TRUNK.fullmatch(bare):
            return None
    return prefix


def parts_of(names: Iterable[str], prefix: str) -> Parts:
    """Sorts the names of a checkpoint.

    Args:
        names: of its tensors.
        prefix: of `prefix_of`.
    """
    outer = prefix.removesuffix("encoder.")
    parts, passed_over = Parts({}, {}, {}, {}, ()), []
    for name in names:
        bare = name.removeprefix(prefix)
        decoder = _DECODER.fullmatch(name.removeprefix(outer))
        if name.startswith(prefix) and _TRUNK.fullmatch(bare):
            kind = parts.counters if bare.endswith(COUNTER) else parts.trunk
            kind[bare] = name
        elif name in (f"{prefix}fc.weight", f"{prefix}fc.bias"):
            parts.classifier[bare.removeprefix("fc.")] = name
        elif name.startswith(outer) and decoder is not None:
            parts.decoders.setdefault(decoder[1], {})[decoder[2]] = name
        else:
            passed_over.append(name)
    return parts._replace(passed_over=tuple(passed_over))
