"""CLIP's image tower in PyTorch, with the maths of `symerge_jax.models.clip` and its names.

Written for `benchmarks.against_torch`. A parameter's name is the path in our tree with dots, and
`weight` for our `kernel` and `scale`; matrices lie as PyTorch has them, [out, in]. The tower has no
memory of its own: `torch.func.functional_call` brings the weights.
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from symerge_jax.data.preprocess import CLIP_MEAN, CLIP_STD
from symerge_jax.models.clip_config import VisionConfig


def name_of(path: str) -> str:
    """Returns the parameter of `Tower` that a leaf of our tree is."""
    stem, slash, last = path.rpartition("/")
    last = "weight" if last in ("kernel", "scale") else last
    return (stem + slash + last).replace("/", ".")


def turned(path: str, leaf: np.ndarray) -> np.ndarray:
    """Returns one model's leaf, or a stack [task, ...] of them, with axes as PyTorch has them."""
    if not path.endswith("/kernel"):
        return leaf
    if path == "patch_embedding/kernel":  # [height, width, in, out] → [out, in, height, width]
        return np.moveaxis(leaf, (-1, -2), (-4, -3))
    return np.swapaxes(leaf, -1, -2)


class Tower(nn.Module):
    """Pixels uint8 [batch, height, width, 3] → features [batch, d].

    As published code has it, or with what a careful hand would change (`fast`): the last block
    works out the class token alone, and one matrix product embeds the patches.
    """

    def __init__(self, config: VisionConfig, *, fast: bool) -> None:
        """Lays out the tower; its parameters have shapes but no numbers."""
        super().__init__()
        width, patch = config.width, config.patch_size
        self.config, self.fast = config, fast
        with torch.device("meta"):
            self.class_embedding = nn.Parameter(torch.empty(width))
            self.position_embedding = nn.Parameter(torch.empty(config.tokens, width))
            self.patch_embedding = nn.Conv2d(3, width, patch, patch, bias=False)
            self.ln_pre = nn.LayerNorm(width, config.layer_norm_eps)
            for i in range(config.depth):
                first_only = fast and i == config.depth - 1
                self.add_module(f"blocks_{i}", Block(config, first_only=first_only))
            self.ln_post = nn.LayerNorm(width, config.layer_norm_eps)
            self.projection = (
                nn.Identity()
                if config.projection is None
                else nn.Linear(width, config.projection, bias=False)
            )

    def forward(self, pixels: Tensor) -> Tensor:
        """Returns features that are not normalised."""
        x = self._patches(normalised(pixels).to(self.class_embedding.dtype))
        first = self.class_embedding.expand(len(x), 1, -1)
        x = self.ln_pre(torch.cat([first, x], dim=1) + self.position_embedding)
        for i in range(self.config.depth):
            x = self.get_submodule(f"blocks_{i}")(x)
        return self.projection(self.ln_post(x[:, 0]))

    def _patches(self, images: Tensor) -> Tensor:  # [batch, height, width, 3] → [batch, t, width]
        if not self.fast:
            return self.patch_embedding(images.permute(0, 3, 1, 2)).flatten(2).transpose(1, 2)
        grid, patch = self.config.grid, self.config.patch_size
        cut = images.view(-1, grid, patch, grid, patch, 3).permute(0, 1, 3, 5, 2, 4)
        return F.linear(
            cut.reshape(len(images), grid**2, -1), self.patch_embedding.weight.flatten(1)
        )


class Block(nn.Module):
    """Pre-norm residual block; with `first_only` it returns the first position alone."""

    def __init__(self, config: VisionConfig, *, first_only: bool) -> None:
        """Lays out the block; see `Tower`."""
        super().__init__()
        width = config.width
        self.first_only = first_only
        self.ln_1 = nn.LayerNorm(width, config.layer_norm_eps)
        self.attention = nn.ModuleDict(
            {"in_proj": nn.Linear(width, 3 * width), "out": nn.Linear(width, width)}
        )
        self.ln_2 = nn.LayerNorm(width, config.layer_norm_eps)
        self.mlp = nn.ModuleDict(
            {"fc": nn.Linear(width, config.hidden), "proj": nn.Linear(config.hidden, width)}
        )
        self.heads, self.activation = config.heads, config.activation

    def forward(self, x: Tensor) -> Tensor:  # [batch, t, width]
        """Returns the tokens after the block."""
        batch, tokens, width = x.shape
        qkv = self.attention["in_proj"](self.ln_1(x))
        qkv = qkv.view(batch, tokens, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        if self.first_only:
            query, x = query[:, :, :1], x[:, :1]
        mixed = F.scaled_dot_product_attention(query, key, value)
        x = x + self.attention["out"](mixed.transpose(1, 2).reshape(batch, -1, width))
        y = self.mlp["fc"](self.ln_2(x))
        y = y * torch.sigmoid(1.702 * y) if self.activation == "quick_gelu" else F.gelu(y)
        return x + self.mlp["proj"](y)


def normalised(pixels: Tensor) -> Tensor:
    """(pixel / 255 − mean) / std, float32."""
    mean = torch.tensor(CLIP_MEAN, device=pixels.device)
    std = torch.tensor(CLIP_STD, device=pixels.device)
    return (pixels.float() / 255 - mean) / std
