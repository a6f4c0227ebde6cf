"""Sizes of RoBERTa's encoder, and the presets by name."""

from __future__ import annotations

from dataclasses import dataclass

from symerge_jax.errors import BadInput
from symerge_jax.models.clip_config import TransformerConfig


@dataclass(frozen=True, kw_only=True)
class RobertaConfig(TransformerConfig):
    """Sizes of an encoder; features have `width` numbers.

    `projection` and `fused_qkv` of the shared sizes stay as they are: RoBERTa has no projection,
    and its query, key and value are three tensors.

    Attributes:
        vocabulary: number of token ids.
        positions: rows of the position table, those up to `pad_token` included, which no token
            takes.
        token_types: rows of the token type table, of which the first is added everywhere.
        pad_token: id of padding.
    """

    vocabulary: int
    positions: int = 514
    token_types: int = 1
    pad_token: int = 1
    activation: str = "gelu"
    fused_qkv: bool = False

    def __post_init__(self) -> None:
        """Raises `BadInput` for sizes that do not fit together."""
        if self.width % self.heads:
            raise BadInput(
                f"RoBERTa config: width {self.width} is no multiple of heads {self.heads}"
            )
        if self.activation != "gelu":
            raise BadInput(
                f"RoBERTa config: activation is {self.activation!r}, expected 'gelu' (the exact "
                "one), the only one that is computed"
            )
        if self.length < 1:
            raise BadInput(
                f"RoBERTa config: {self.positions} positions leave none for a token, as they start "
                f"after padding's {self.pad_token}"
            )

    @property
    def length(self) -> int:
        """Most tokens of a text."""
        return self.positions - self.pad_token - 1


# `replace` the tiny one's vocabulary by the tokenizer's size.
PRESETS: dict[str, RobertaConfig] = {
    "roberta-base": RobertaConfig(vocabulary=50265, width=768, depth=12, heads=12),
    "tiny-roberta-64x3": RobertaConfig(vocabulary=256, positions=130, width=64, depth=3, heads=4),
}
