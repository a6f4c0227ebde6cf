"""CLIP's image and text towers (architecture only; weights come from `symerge_jax.checkpoints`).

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021
(https://arxiv.org/abs/2103.00020), section 2.4; Dosovitskiy et al. 2020 for the image tower.

One leaf per tensor of the source checkpoint: the `fused_qkv` layout keeps query, key and value as
the single `attention/in_proj` of open_clip, the split layout keeps three as Hugging Face does.
Both compute the same function, but a merging method gives each leaf its own coefficient.

Numbers: everything runs in `dtype` (default: that of the parameters), LayerNorm, softmax and the
returned features in float32 or wider (`symerge_jax.models.transformer`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from symerge_jax.models.clip_config import (
    PRESETS,
    ClipConfig,
    TextConfig,
    TransformerConfig,
    VisionConfig,
)
from symerge_jax.models.transformer import (
    MLP,
    Attention,
    Dense,
    LayerNorm,
    Tree,
    apply_from_host,
    draw_params,
    repeat_block,
    unset,
)
from symerge_jax.trees import wide

__all__ = [
    "PRESETS",
    "ClipConfig",
    "TextConfig",
    "TextTower",
    "VisionConfig",
    "VisionTower",
    "encode_image",
    "encode_once",
    "encode_text",
    "initial_params",
    "param_shapes",
]


class Block(nn.Module):
    """Pre-norm residual block; with `first_only` it returns the first position alone."""

    config: TransformerConfig
    first_only: bool = False

    @nn.compact
    def __call__(self, x: Array, mask: Array | None = None) -> Array:  # [batch, t, width]
        config, width = self.config, x.shape[-1]
        y = LayerNorm(config.layer_norm_eps, name="ln_1")(x.reshape(-1, width)).reshape(x.shape)
        y = Attention(config, self.first_only, name="attention")(y, mask)
        x = (x[:, :1] if self.first_only else x) + y
        flat = x.reshape(-1, width)
        y = MLP(config, name="mlp")(LayerNorm(config.layer_norm_eps, name="ln_2")(flat))
        return (flat + y).reshape(x.shape)


class VisionTower(nn.Module):
    """Images → features: class token → ln_post → projection, not L2-normalised.

    The feature reads the class token only, so the last block works out nothing else; give
    `every_token=True` to have all activations of that block too (same feature). `before_blocks`
    stops at the tokens that enter the first block.
    """

    config: VisionConfig
    dtype: Any = None
    every_token: bool = False
    before_blocks: bool = False

    @nn.compact
    def __call__(self, images: Array) -> Array:
        """Returns features [batch, d] of normalised float images [batch, height, width, 3].

        They are float32, or float64 when computed in float64; d is `projection` or `width`.
        """
        config = self.config
        width, patch, grid = config.width, config.patch_size, config.grid
        class_embedding = self.param("class_embedding", unset, (width,))
        dtype = self.dtype or class_embedding.dtype
        kernel = PatchKernel(patch, width, name="patch_embedding")().astype(dtype)
        position = self.param("position_embedding", unset, (config.tokens, width)).astype(dtype)

        # The strided convolution as one matrix product over the pixels of a patch.
        x = images.astype(dtype).reshape(-1, grid, patch, grid, patch, 3)
        batch = x.shape[0]
        x = x.transpose(0, 1, 3, 2, 4, 5).reshape(batch * grid**2, -1)
        x = (x @ kernel.reshape(-1, width)).reshape(batch, grid**2, width)
        first = jnp.broadcast_to(class_embedding.astype(dtype), (batch, 1, width))
        x = jnp.concatenate([first, x], axis=1) + position[None]
        norm = LayerNorm(config.layer_norm_eps, name="ln_pre")
        x = norm(x.reshape(-1, width)).reshape(batch, -1, width)
        if self.before_blocks:
            return x
        for i in range(config.depth):
            last = i == config.depth - 1 and not self.every_token
            x = Block(config, last, name=f"blocks_{i}")(x)
        x = LayerNorm(config.layer_norm_eps, name="ln_post")(x[:, 0])
        return _project(x, config)


class PatchKernel(nn.Module):
    """Holds the patch embedding [patch, patch, 3, width], height first (HWIO)."""

    patch: int
    width: int

    @nn.compact
    def __call__(self) -> Array:
        shape = (self.patch, self.patch, 3, self.width)
        return self.param("kernel", unset, shape)


def _project(x: Array, config: TransformerConfig) -> Array:
    """Maps [batch, width] to features [batch, d] in the output precision."""
    if config.projection is not None:
        x = Dense(config.projection, use_bias=False, name="projection")(x)
    return x.astype(wide(x.dtype))


class TextTower(nn.Module):
    """Token ids → features: pooled position → projection, not L2-normalised."""

    config: TextConfig
    dtype: Any = None

    @nn.compact
    def __call__(self, tokens: Array) -> Array:
        """Returns features [batch, d] of token ids, int [batch, length].

        They are float32, or float64 when computed in float64; d is `projection` or `width`.
        """
        config, width = self.config, self.config.width
        table = nn.Embed(
            config.vocabulary,
            width,
            embedding_init=unset,
            name="token_embedding",
        ).embedding
        position = self.param("position_embedding", unset, (config.length, width))
        dtype = self.dtype or position.dtype
        batch, length = tokens.shape
        x = table[tokens].astype(dtype) + position.astype(dtype)[None, :length]
        mask = attention_mask(tokens, config)
        for i in range(config.depth):
            x = Block(config, name=f"blocks_{i}")(x, mask)
        norm = LayerNorm(config.layer_norm_eps, name="ln_final")
        x = norm(x.reshape(-1, width)).reshape(batch, length, width)
        return _project(pool(x, tokens, config), config)


def attention_mask(tokens: Array, config: TextConfig) -> Array:
    """Returns bool [1 or batch, 1, length, length]: may position t (axis 2) look at s (axis 3)?"""
    length = tokens.shape[1]
    if config.causal:
        return jnp.tril(jnp.ones((length, length), bool))[None, None]
    seen = (tokens != config.pad_token)[:, None, None]
    return jnp.broadcast_to(seen, (tokens.shape[0], 1, length, length))


def pool(x: Array, tokens: Array, config: TextConfig) -> Array:
    """Picks or averages positions of x [batch, length, width] → [batch, width]."""
    if config.pooling == "mean":
        real = (tokens != config.pad_token).astype(x.dtype)
        count = jnp.maximum(real.sum(axis=1, keepdims=True), 1)
        return (x * real[:, :, None]).sum(axis=1) / count
    if config.pooling == "last":
        return x[:, -1]
    ids = (tokens == config.eos_token).astype(tokens.dtype) if config.pooling == "eos" else tokens
    index = jnp.argmax(ids, axis=1)  # the first of equals
    return jnp.take_along_axis(x, index[:, None, None], axis=1)[:, 0]


def encode_image(
    config: VisionConfig, *, dtype: Any = None, remat: bool = False
) -> Callable[[Any, Array], Array]:
    """Returns the pure function (params, images) → features.

    Args:
        config: sizes of the tower.
        dtype: precision of the computation; None takes the parameters' own.
        remat: whether the gradient keeps what enters each block and works the rest out again: less
            memory, a third more time.

    Returns:
        A function of a nested dict of parameters and normalised images
        [batch, height, width, 3], giving features [batch, d] that are not L2-normalised.
    """
    before, end = VisionTower(config, dtype, before_blocks=True), _Ending(config)
    # Blocks of one kind are one function, which is traced once: half of what compiling takes.
    block, last = (_applied(Block(config, only), remat) for only in (False, True))

    def apply(params: Any, images: Array) -> Array:
        rest = {name: leaf for name, leaf in params.items() if not name.startswith("blocks_")}
        x = before.apply({"params": rest}, images)
        for i in range(config.depth):
            x = (last if i == config.depth - 1 else block)(params[f"blocks_{i}"], x)
        return cast(Array, end.apply({"params": rest}, x))

    return apply


def _applied(block: Block, remat: bool) -> Callable[[Any, Any], Array]:
    def apply(params: Any, x: Array) -> Array:
        return cast(Array, block.apply({"params": params}, x))

    return jax.jit(jax.checkpoint(apply) if remat else apply)


def encode_once(config: VisionConfig, params: Any, images: Array) -> Array:
    """Returns what `encode_image` does, for a tower that is used once and lies on the host.

    The blocks share one compiled program; compiling the whole tower would take three times as long
    as running it so. Arguments as for the function that `encode_image` returns.
    """
    begin, block, end = (partial(apply_from_host, piece) for piece in _pieces(config))
    rest = {name: leaf for name, leaf in params.items() if not name.startswith("blocks_")}
    x = begin(rest, images)
    for i in range(config.depth):
        x = block(params[f"blocks_{i}"], x)
    return end(rest, x)


def _pieces(config: VisionConfig) -> tuple[nn.Module, nn.Module, nn.Module]:
    """Returns what stands before the blocks, a block, and the rest."""
    return VisionTower(config, before_blocks=True), Block(config), _Ending(config)


class _Ending(nn.Module):
    """Tokens after the last block → features."""

    config: VisionConfig

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = LayerNorm(self.config.layer_norm_eps, name="ln_post")(x[:, 0])
        return _project(x, self.config)


def encode_text(config: TextConfig, *, dtype: Any = None) -> Callable[[Any, Array], Array]:
    """Returns the pure function (params, tokens) → features; see `encode_image`.

    Tokens are int [batch, length].
    """
    tower = TextTower(config, dtype)

    def apply(params: Any, tokens: Array) -> Array:
        return cast(Array, tower.apply({"params": params}, tokens))

    return apply


def initial_params(config: VisionConfig | TextConfig, key: Array) -> Tree:
    """Draws float32 parameters: CLIP's scales, residual outputs divided by sqrt(2 · depth)."""
    return draw_params(param_shapes(config), key, partial(_initial_deviation, config=config))


def _initial_deviation(path: str, config: VisionConfig | TextConfig) -> float:
    """Returns the standard deviation of a leaf, as in OpenAI's model.py."""
    special: dict[str, float]
    if isinstance(config, VisionConfig):
        special = {"patch_embedding": (3 * config.patch_size**2) ** -0.5}
    else:
        special = {"token_embedding": 0.02, "position_embedding": 0.01}
    residual = (2 * config.depth * config.width) ** -0.5
    special |= {"out": residual, "proj": residual, "fc": (2 * config.width) ** -0.5}
    name = path.removesuffix("/kernel").removesuffix("/embedding").rsplit("/", 1)[-1]
    return special.get(name, float(config.width**-0.5))


def param_shapes(config: VisionConfig | TextConfig) -> Tree:
    """Returns the tree of `initial_params` with `jax.ShapeDtypeStruct` for leaves."""
    tower, example = _tower(replace(config, depth=1))  # blocks are alike; tracing one is quicker
    shapes = jax.eval_shape(tower.init, jax.random.key(0), example)["params"]
    return repeat_block(shapes, config.depth)


def _tower(config: VisionConfig | TextConfig) -> tuple[nn.Module, jax.ShapeDtypeStruct]:
    """Returns the tower and the shape of one input."""
    if isinstance(config, VisionConfig):
        shape = (1, config.image_size, config.image_size, 3)
        return VisionTower(config), jax.ShapeDtypeStruct(shape, jnp.float32)
    return TextTower(config), jax.ShapeDtypeStruct((1, config.length), jnp.int32)
