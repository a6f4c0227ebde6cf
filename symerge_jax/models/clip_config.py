"""Sizes of CLIP's two towers, and the presets by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from symerge_jax.errors import BadInput

Activation = Literal["quick_gelu", "gelu"]
Pooling = Literal["eos", "argmax", "last", "mean"]


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Sizes shared by the two towers.

    Attributes:
        width: features of the residual stream.
        depth: number of blocks.
        heads: attention heads; each has width / heads features.
        mlp_width: hidden features of the MLP; None means 4 · width.
        projection: output features d; None leaves the projection (and its leaf) out.
        activation: of the MLP; OpenAI's weights need quick_gelu, LAION's gelu.
        fused_qkv: one `in_proj` leaf instead of query, key and value.
        layer_norm_eps: added to the variance.
    """

    width: int
    depth: int
    heads: int
    mlp_width: int | None = None
    projection: int | None = None
    activation: str = "quick_gelu"  # one of Activation; unchecked text of a config file
    fused_qkv: bool = True
    layer_norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        """Raises `BadInput` for sizes that do not fit together."""
        if self.width % self.heads:
            raise BadInput(f"CLIP config: width {self.width} is no multiple of heads {self.heads}")
        if self.activation not in get_args(Activation):
            raise BadInput(
                f"CLIP config: activation is {self.activation!r}, "
                f"expected one of {get_args(Activation)}"
            )

    @property
    def hidden(self) -> int:
        """Hidden features of the MLP."""
        return 4 * self.width if self.mlp_width is None else self.mlp_width


@dataclass(frozen=True, kw_only=True)
class VisionConfig(TransformerConfig):
    """Sizes of an image tower; `image_size` and `patch_size` in pixels (square)."""

    image_size: int
    patch_size: int

    def __post_init__(self) -> None:
        """Raises `BadInput` for sizes that do not fit together."""
        super().__post_init__()
        if self.image_size % self.patch_size:
            raise BadInput(
                f"CLIP config: image_size {self.image_size} is no multiple of "
                f"patch_size {self.patch_size}"
            )

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.image_size // self.patch_size

    @property
    def tokens(self) -> int:
        """Patches and the class token."""
        return self.grid**2 + 1


@dataclass(frozen=True, kw_only=True)
class TextConfig(TransformerConfig):
    """Sizes of a text tower.

    Attributes:
        vocabulary: number of token ids.
        length: tokens per text, padding included.
        pooling: which position is the text's feature: 'eos' the first `eos_token`, 'argmax' the
            first highest id (how OpenAI's code finds the end), 'last' the last position, 'mean'
            the mean over positions that are no padding.
        eos_token: id of the end of text; only 'eos' reads it.
        pad_token: id of padding.
        causal: positions see only themselves and earlier ones. Otherwise they see all but padding.
    """

    vocabulary: int
    length: int
    pooling: str = "argmax"  # one of Pooling
    eos_token: int = 49407
    pad_token: int = 0
    causal: bool = True

    def __post_init__(self) -> None:
        """Raises `BadInput` for sizes that do not fit together."""
        super().__post_init__()
        if self.pooling not in get_args(Pooling):
            raise BadInput(
                f"CLIP config: pooling is {self.pooling!r}, expected one of {get_args(Pooling)}"
            )


class ClipConfig(NamedTuple):
    """The two towers of one model."""

    vision: VisionConfig
    text: TextConfig


def _openai(patch: int, width: int, depth: int, text_width: int, d: int, size: int) -> ClipConfig:
    return ClipConfig(
        VisionConfig(
            image_size=size,
            patch_size=patch,
            width=width,
            depth=depth,
            heads=width // 64,
            projection=d,
        ),
        TextConfig(
            vocabulary=49408,
            length=77,
            width=text_width,
            depth=12,
            heads=text_width // 64,
            projection=d,
        ),
    )


def _tiny(width: int, depth: int, heads: int, text_width: int) -> ClipConfig:
    return ClipConfig(
        VisionConfig(
            image_size=32, patch_size=8, width=width, depth=depth, heads=heads, projection=64
        ),
        TextConfig(
            vocabulary=256,
            length=12,
            width=text_width,
            depth=1,
            heads=2,
            projection=64,
            pooling="mean",
            causal=False,
        ),
    )


# The tiny ones read whole words; replace `vocabulary` by the tokenizer's size.
PRESETS: dict[str, ClipConfig] = {
    "ViT-B-32": _openai(32, 768, 12, 512, 512, 224),
    "ViT-B-16": _openai(16, 768, 12, 512, 512, 224),
    "ViT-L-14": _openai(14, 1024, 24, 768, 768, 224),
    "tiny-64x3": _tiny(64, 3, 4, 32),
    "tiny-96x3": _tiny(96, 3, 4, 32),
    "tiny-128x4": _tiny(128, 4, 8, 96),
}
