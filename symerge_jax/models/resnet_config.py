"""Sizes of residual networks for dense prediction and of the decoders on them; presets by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from symerge_jax.errors import BadInput

STAGES = 4


class Place(NamedTuple):
    """One residual block of a network.

    Attributes:
        stage: from 1, as in 'layer1'.
        index: within the stage, from 0.
        planes: channels inside.
        stride: of its 3×3 convolution, and of the 1×1 beside the first block of a stage.
        dilation: of its 3×3 convolution.
    """

    stage: int
    index: int
    planes: int
    stride: int
    dilation: int


@dataclass(frozen=True, kw_only=True)
class ResNetConfig:
    """Sizes of a ResNet with bottleneck blocks; features have `features` channels.

    Attributes:
        blocks: number of blocks per stage.
        planes: channels inside the blocks of each stage.
        expansion: how many times as many a block gives.
        stem: channels of the first convolution.
        output_stride: pixels of the input per position of the features: 32, or 16 or 8, for which
            the last one or two stages are dilated instead of strided.
    """

    blocks: tuple[int, ...] = (3, 4, 6, 3)
    planes: tuple[int, ...] = (64, 128, 256, 512)
    expansion: int = 4
    stem: int = 64
    output_stride: int = 8

    def __post_init__(self) -> None:
        """Raises `BadInput` for sizes that do not fit together."""
        if len(self.blocks) != STAGES or len(self.planes) != STAGES:
            raise BadInput(
                f"ResNet config: blocks {self.blocks} and planes {self.planes}, expected four "
                "numbers each, one per stage"
            )
        if min(*self.blocks, *self.planes, self.expansion, self.stem) < 1:
            raise BadInput(
                f"ResNet config: blocks {self.blocks}, planes {self.planes}, expansion "
                f"{self.expansion} and stem {self.stem} must all be at least 1"
            )
        if self.output_stride not in (8, 16, 32):
            raise BadInput(
                f"ResNet config: output_stride is {self.output_stride!r}, expected 8, 16 or 32"
            )

    @property
    def features(self) -> int:
        """Channels of the features."""
        return self.planes[-1] * self.expansion

    def places(self) -> tuple[Place, ...]:
        """Returns every block, in the order of the computation.

        The first block of a stage that gives up its stride still has the dilation of the stage
        before: its input is that stage's.
        """
        found, stride, dilation = [], 4, 1
        for stage in range(STAGES):
            wanted, before = (1 if stage == 0 else 2), dilation
            if stride * wanted > self.output_stride:
                wanted, dilation = 1, dilation * wanted
            stride *= wanted
            for i in range(self.blocks[stage]):
                first = i == 0
                found.append(
                    Place(
                        stage + 1,
                        i,
                        self.planes[stage],
                        wanted if first else 1,
                        before if first else dilation,
                    )
                )
        return tuple(found)


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Sizes of a decoder; how many maps it gives is a matter of its weights.

    Attributes:
        features: channels of what it reads.
        width: channels of its branches.
        rates: dilations of its 3×3 branches.
    """

    features: int = 2048
    width: int = 256
    rates: tuple[int, ...] = (12, 24, 36)

    def __post_init__(self) -> None:
        """Raises `BadInput` for sizes that do not fit together."""
        if min(self.features, self.width, *self.rates, 1) < 1:
            raise BadInput(
                f"decoder config: features {self.features}, width {self.width} and rates "
                f"{self.rates} must all be at least 1"
            )


PRESETS: dict[str, ResNetConfig] = {
    "resnet50": ResNetConfig(),
    "small-resnet": ResNetConfig(blocks=(2, 2, 2, 2), planes=(16, 32, 48, 64), stem=16),
    "tiny-resnet": ResNetConfig(blocks=(1, 1, 1, 1), planes=(8, 16, 24, 32), stem=16),
}
# Decoders for the features of each.
DECODERS: dict[str, DecoderConfig] = {
    "resnet50": DecoderConfig(),
    "small-resnet": DecoderConfig(features=256, width=48, rates=(2, 4, 6)),
    "tiny-resnet": DecoderConfig(features=128, width=32, rates=(2, 4, 6)),
}
