"""What transformers are made of: LayerNorm, attention, MLP; and how fresh weights are drawn.

Vaswani et al., "Attention Is All You Need", 2017 (https://arxiv.org/abs/1706.03762).

Numbers: each piece runs in the dtype of its input, LayerNorm and softmax in float32 or wider. All
reshapes are explicit, so strict dtype and rank promotion settings of JAX hold.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array

from symerge_jax.models.clip_config import TransformerConfig
from symerge_jax.trees import wide

Tree = dict[str, Any]


def quick_gelu(x: Array) -> Array:
    """OpenAI's approximation of GELU, x · sigmoid(1.702 x)."""
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "quick_gelu": quick_gelu,
    "gelu": partial(jax.nn.gelu, approximate=False),
}


def unset(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """Fills a leaf with zeros: a network's own `init` tells shapes, `draw_params` draws values."""
    return jnp.zeros(shape, dtype)


class LayerNorm(nn.Module):
    """Normalises the last axis in float32 or wider; returns the input's dtype."""

    eps: float

    @nn.compact
    def __call__(self, x: Array) -> Array:  # [n, width]
        scale = self.param("scale", unset, (x.shape[-1],))
        bias = self.param("bias", unset, (x.shape[-1],))
        precise = wide(x.dtype)
        y = x.astype(precise)
        y = y - y.mean(axis=-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.square(y).mean(axis=-1, keepdims=True) + self.eps)
        return (y * scale.astype(precise)[None] + bias.astype(precise)[None]).astype(x.dtype)


class Dense(nn.Module):
    """x @ kernel + bias on two-dimensional input, in the input's dtype."""

    features: int
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Array) -> Array:  # [n, in] → [n, features]
        shape = (x.shape[-1], self.features)
        kernel = self.param("kernel", unset, shape)
        y = x @ kernel.astype(x.dtype)
        if self.use_bias:
            bias = self.param("bias", unset, (self.features,))
            y = y + bias.astype(x.dtype)[None]
        return y


def attend(query: Array, key: Array, value: Array, mask: Array | None) -> Array:
    """Softmax attention.

    Args:
        query: [batch, t, heads, features].
        key: [batch, s, heads, features].
        value: [batch, s, heads, features].
        mask: bool [batch or 1, 1, t or 1, s], True where t may look at s; None for everywhere.

    Returns:
        [batch, t, heads, features] in the dtype of `value`.
    """
    # Heads before tokens: XLA's CPU matrix products are up to a fifth faster so.
    query, key, value = (x.transpose(0, 2, 1, 3) for x in (query, key, value))
    scores = jnp.einsum("bhtc,bhsc->bhts", query * query.shape[-1] ** -0.5, key)
    scores = scores.astype(wide(scores.dtype))
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


def apply_from_host(module: nn.Module, params: Any, *inputs: Array | np.ndarray) -> Array:
    """Applies a module to weights on the host, in the memory order in which they were read.

    PyTorch's weights come as transposed views; turning them inside the program saves a slow copy.
    """
    leaves, structure = jax.tree.flatten(params)
    turned = tuple(leaf.ndim == 2 and leaf.T.flags.c_contiguous for leaf in leaves)
    given = [leaf.T if turn else leaf for leaf, turn in zip(leaves, turned, strict=True)]
    return _turn_and_apply(given, inputs, module=module, structure=structure, turned=turned)


@partial(jax.jit, static_argnames=("module", "structure", "turned"))
def _turn_and_apply(
    leaves: list[Array],
    inputs: tuple[Array, ...],
    *,
    module: nn.Module,
    structure: Any,
    turned: tuple[bool, ...],
) -> Array:
    back = [leaf.T if turn else leaf for leaf, turn in zip(leaves, turned, strict=True)]
    return cast(Array, module.apply({"params": structure.unflatten(back)}, *inputs))


def draw_params(shapes: Tree, key: Array, deviation: Callable[[str], float]) -> Tree:
    """Draws float32 parameters: normal numbers, but LayerNorm's scales are 1 and all biases 0.

    All numbers come from one draw, since compiling a draw per leaf takes XLA many seconds.

    Args:
        shapes: of `jax.ShapeDtypeStruct`.
        key: of the draw.
        deviation: path of a leaf, joined with '/' → standard deviation.
    """
    flat: Tree = flatten_dict(shapes, sep="/")
    ends = list(itertools.accumulate(leaf.size for leaf in flat.values()))
    numbers = jax.random.normal(key, (ends[-1],), jnp.float32)
    params = {}
    for (path, leaf), end in zip(flat.items(), ends, strict=True):
        if path.endswith(("/scale", "/bias")):
            params[path] = jnp.full(leaf.shape, float(path.endswith("/scale")), jnp.float32)
        else:
            params[path] = deviation(path) * numbers[end - leaf.size : end].reshape(leaf.shape)
    return unflatten_dict(params, sep="/")


def repeat_block(shapes: Tree, depth: int) -> Tree:
    """Returns the shapes of a network of `depth` blocks, given those of one with a single block."""
    return {
        name: shapes["blocks_0" if name.startswith("blocks_") else name]
        for name in [*(f"blocks_{i}" for i in range(depth)), *shapes]
    }
