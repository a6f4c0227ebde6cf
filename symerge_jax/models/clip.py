"""CLIP's image and text towers (architecture only; weights come from `symerge_jax.checkpoints`).

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021
(https://arxiv.org/abs/2103.00020), section 2.4; Dosovitskiy et al. 2020 for the image tower.

One leaf per tensor of the source checkpoint: the `fused_qkv` layout keeps query, key and value as
the single `attention/in_proj` of open_clip, the split layout keeps three as Hugging Face does.
Both compute the same function, but a merging method gives each leaf its own coefficient.

Numbers: everything runs in `dtype` (default: that of the parameters), LayerNorm, softmax and the
returned features in float32 or wider. All reshapes are explicit, so strict dtype and rank promotion
settings of JAX hold.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array

from symerge_jax.models.clip_config import (
    PRESETS,
    ClipConfig,
    TextConfig,
    TransformerConfig,
    VisionConfig,
)

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

Tree = dict[str, Any]


def quick_gelu(x: Array) -> Array:
    """OpenAI's approximation of GELU, x · sigmoid(1.702 x)."""
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "quick_gelu": quick_gelu,
    "gelu": partial(jax.nn.gelu, approximate=False),
}


def _unset(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """Fills a leaf with zeros: a tower's own `init` tells shapes, `initial_params` draws values."""
    return jnp.zeros(shape, dtype)


def _wide(dtype: Any) -> Any:
    """Precision of normalisations and outputs: float64 stays, all else is float32."""
    return jnp.float64 if jnp.dtype(dtype) == jnp.float64 else jnp.float32


class LayerNorm(nn.Module):
    """Normalises the last axis in float32 or wider; returns the input's dtype."""

    eps: float

    @nn.compact
    def __call__(self, x: Array) -> Array:  # [n, width]
        scale = self.param("scale", _unset, (x.shape[-1],))
        bias = self.param("bias", _unset, (x.shape[-1],))
        wide = _wide(x.dtype)
        y = x.astype(wide)
        y = y - y.mean(axis=-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.square(y).mean(axis=-1, keepdims=True) + self.eps)
        return (y * scale.astype(wide)[None] + bias.astype(wide)[None]).astype(x.dtype)


class Dense(nn.Module):
    """x @ kernel + bias on two-dimensional input, in the input's dtype."""

    features: int
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Array) -> Array:  # [n, in] → [n, features]
        shape = (x.shape[-1], self.features)
        kernel = self.param("kernel", _unset, shape)
        y = x @ kernel.astype(x.dtype)
        if self.use_bias:
            bias = self.param("bias", _unset, (self.features,))
            y = y + bias.astype(x.dtype)[None]
        return y


def attend(query: Array, key: Array, value: Array, mask: Array | None) -> Array:
    """Softmax attention.

    Args:
        query: [batch, t, heads, features].
        key: [batch, s, heads, features].
        value: [batch, s, heads, features].
        mask: bool [batch or 1, 1, t, s], True where t may look at s; None for everywhere.

    Returns:
        [batch, t, heads, features] in the dtype of `value`.
    """
    # Heads before tokens: XLA's CPU matrix products are up to a fifth faster so.
    query, key, value = (x.transpose(0, 2, 1, 3) for x in (query, key, value))
    scores = jnp.einsum("bhtc,bhsc->bhts", query * query.shape[-1] ** -0.5, key)
    scores = scores.astype(_wide(scores.dtype))
    if mask is not None:
        lowest = jnp.finfo(scores.dtype).min
        scores = jnp.where(jnp.broadcast_to(mask, scores.shape), scores, lowest)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    return jnp.einsum("bhts,bhsc->bhtc", weights, value).transpose(0, 2, 1, 3)


class Attention(nn.Module):
    """Multi-head self-attention; with `first_only` just the first position asks."""

    config: TransformerConfig
    first_only: bool = False

    @nn.compact
    def __call__(self, x: Array, mask: Array | None) -> Array:  # [batch, t, width]
        width, heads = self.config.width, self.config.heads
        batch, tokens, _ = x.shape
        flat = x.reshape(-1, width)
        if self.config.fused_qkv:
            qkv = Dense(3 * width, name="in_proj")(flat)
            qkv = qkv.reshape(batch, tokens, 3, heads, width // heads)
            query, key, value = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
            if self.first_only:
                query = query[:, :1]
        else:
            asking = x[:, :1] if self.first_only else x
            query, key, value = (
                Dense(width, name=name)(source.reshape(-1, width)).reshape(
                    batch, -1, heads, width // heads
                )
                for name, source in (("query", asking), ("key", x), ("value", x))
            )
        mixed = attend(query, key, value, mask)
        out = Dense(width, name="out")
        return out(mixed.reshape(-1, width)).reshape(batch, -1, width)


class MLP(nn.Module):
    """Two dense layers around the activation, on [n, width]."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x: Array) -> Array:
        y = Dense(self.config.hidden, name="fc")(x)
        y = ACTIVATIONS[self.config.activation](y)
        return Dense(x.shape[-1], name="proj")(y)


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
        class_embedding = self.param("class_embedding", _unset, (width,))
        dtype = self.dtype or class_embedding.dtype
        kernel = PatchKernel(patch, width, name="patch_embedding")().astype(dtype)
        position = self.param("position_embedding", _unset, (config.tokens, width)).astype(dtype)

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
        return self.param("kernel", _unset, shape)


def _project(x: Array, config: TransformerConfig) -> Array:
    """Maps [batch, width] to features [batch, d] in the output precision."""
    if config.projection is not None:
        x = Dense(config.projection, use_bias=False, name="projection")(x)
    return x.astype(_wide(x.dtype))


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
            embedding_init=_unset,
            name="token_embedding",
        ).embedding
        position = self.param("position_embedding", _unset, (config.length, width))
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


def encode_image(config: VisionConfig, *, dtype: Any = None) -> Callable[[Any, Array], Array]:
    """Returns the pure function (params, images) → features.

    Args:
        config: sizes of the tower.
        dtype: precision of the computation; None takes the parameters' own.

    Returns:
        A function of a nested dict of parameters and normalised images
        [batch, height, width, 3], giving features [batch, d] that are not L2-normalised.
    """
    tower = VisionTower(config, dtype)

    def apply(params: Any, images: Array) -> Array:
        return cast(Array, tower.apply({"params": params}, images))

    return apply


def encode_once(config: VisionConfig, params: Any, images: Array) -> Array:
    """Returns what `encode_image` does, for a tower that is used once and lies on the host.

    The blocks share one compiled program; compiling the whole tower would take three times as long
    as running it so. Arguments as for the function that `encode_image` returns.
    """
    begin, block, end = (partial(_apply, piece) for piece in _pieces(config))
    rest = {name: leaf for name, leaf in params.items() if not name.startswith("blocks_")}
    x = begin(rest, images)
    for i in range(config.depth):
        x = block(params[f"blocks_{i}"], x)
    return end(rest, x)


def _pieces(config: VisionConfig) -> tuple[nn.Module, nn.Module, nn.Module]:
    """Returns what stands before the blocks, a block, and the rest."""
    return VisionTower(config, before_blocks=True), Block(config), _Ending(config)


def _apply(module: nn.Module, params: Any, x: Array) -> Array:
    """Applies a module to weights on the host, in the memory order in which they were read.

    PyTorch's weights come as transposed views; turning them inside the program saves a slow copy.
    """
    leaves, structure = jax.tree.flatten(params)
    turned = tuple(leaf.ndim == 2 and leaf.T.flags.c_contiguous for leaf in leaves)
    given = [leaf.T if turn else leaf for leaf, turn in zip(leaves, turned, strict=True)]
    return _turn_and_apply(given, x, module=module, structure=structure, turned=turned)


@partial(jax.jit, static_argnames=("module", "structure", "turned"))
def _turn_and_apply(
    leaves: list[Array], x: Array, *, module: nn.Module, structure: Any, turned: tuple[bool, ...]
) -> Array:
    back = [leaf.T if turn else leaf for leaf, turn in zip(leaves, turned, strict=True)]
    return cast(Array, module.apply({"params": structure.unflatten(back)}, x))


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
    """Draws float32 parameters: CLIP's scales, residual outputs divided by sqrt(2 · depth).

    All numbers come from one draw, since compiling a draw per leaf takes XLA many seconds.
    """
    flat: Tree = flatten_dict(param_shapes(config), sep="/")
    ends = list(itertools.accumulate(leaf.size for leaf in flat.values()))
    numbers = jax.random.normal(key, (ends[-1],), jnp.float32)
    params = {}
    for (path, leaf), end in zip(flat.items(), ends, strict=True):
        if path.endswith(("/scale", "/bias")):
            params[path] = jnp.full(leaf.shape, float(path.endswith("/scale")), jnp.float32)
        else:
            drawn = numbers[end - leaf.size : end].reshape(leaf.shape)
            params[path] = _initial_deviation(path, config) * drawn
    return unflatten_dict(params, sep="/")


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
    return {
        name: shapes["blocks_0" if name.startswith("blocks_") else name]
        for name in [*(f"blocks_{i}" for i in range(config.depth)), *shapes]
    }


def _tower(config: VisionConfig | TextConfig) -> tuple[nn.Module, jax.ShapeDtypeStruct]:
    """Returns the tower and the shape of one input."""
    if isinstance(config, VisionConfig):
        shape = (1, config.image_size, config.image_size, 3)
        return VisionTower(config), jax.ShapeDtypeStruct(shape, jnp.float32)
    return TextTower(config), jax.ShapeDtypeStruct((1, config.length), jnp.int32)
