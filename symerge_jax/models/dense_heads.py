"""Decoders that turn features into maps: segmentation, depth, surface normals.

Atrous spatial pyramid pooling of DeepLabv3 (Chen et al., "Rethinking Atrous Convolution for
Semantic Image Segmentation", 2017, https://arxiv.org/abs/1706.05587, figure 5): a 1×1 branch, 3×3
branches of growing dilation and one of the whole image, side by side; then a 3×3 and a 1×1
convolution. One decoder per task; they are never merged. Maps are resized to the images bilinearly
so that corners fall on corners, which `jax.image.resize` does not do.

As for the trunk, variables are {'params', 'batch_stats'}. The number of maps is that of the last
kernel: classes for segmentation, 1 for depth, 3 for normals (of any length).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict

from symerge_jax.errors import BadInput
from symerge_jax.models.batch_norm import BatchNorm
from symerge_jax.models.resnet import Conv, draw_variables
from symerge_jax.models.resnet_config import DECODERS, DecoderConfig
from symerge_jax.models.transformer import Tree
from symerge_jax.notation import Array
from symerge_jax.trees import wide

__all__ = [
    "DECODERS",
    "OUTPUTS",
    "DecoderConfig",
    "decode",
    "decode_in_training",
    "decoder_shapes",
    "initial_decoder",
    "resize_corners",
    "stack_decoders",
    "unstack_decoders",
]

# Maps of each task on NYUv2.
OUTPUTS = {"segmentation": 13, "depth": 1, "normal": 3}
DROPOUT = 0.5

# (variables, features) → maps
Decode = Callable[[Any, Array], Array]
# (variables, features, mask=None, key=None) → maps, moved batch_stats
DecodeInTraining = Callable[..., tuple[Array, Tree]]


class Branch(nn.Module):
    """Convolution, batch normalisation, ReLU."""

    features: int
    size: int = 1
    dilation: int = 1
    train: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None) -> jax.Array:
        y = Conv(self.features, self.size, dilation=self.dilation, name="conv")(x)
        return jax.nn.relu(BatchNorm(self.train, name="bn")(y, mask))


class Decoder(nn.Module):
    """Features → maps at the same resolution."""

    config: DecoderConfig
    outputs: int
    train: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(
        self, features: Array, mask: Array | None = None, key: jax.Array | None = None
    ) -> Array:
        """Returns maps [batch, height, width, outputs].

        Args:
            features: [batch, height, width, config.features].
            mask: bool [batch], which images count for statistics in training; None for all.
            key: of dropout in training; None for none.
        """
        x, seen = jnp.asarray(features), None if mask is None else jnp.asarray(mask)
        x = x if self.dtype is None else x.astype(self.dtype)
        width, train = self.config.width, self.train
        branches = [Branch(width, train=train, name="point")(x, seen)]
        for i, rate in enumerate(self.config.rates):
            branches.append(Branch(width, 3, rate, train, name=f"atrous_{i}")(x, seen))
        pooled = x.mean(axis=(1, 2), keepdims=True)
        whole = Branch(width, train=train, name="image")(pooled, seen)
        # One position resized bilinearly is that position everywhere.
        branches.append(jnp.broadcast_to(whole, (*x.shape[:3], width)))
        y = Branch(width, train=train, name="project")(jnp.concatenate(branches, axis=-1), seen)
        if train and key is not None:
            kept = jax.random.bernoulli(key, 1 - DROPOUT, y.shape)
            y = jnp.where(kept, y / (1 - DROPOUT), jnp.zeros_like(y))
        y = Branch(width, 3, 1, train, name="last")(y, seen)
        return Conv(self.outputs, use_bias=True, name="out")(y)


def resize_corners(maps: Array, size: tuple[int, int]) -> Array:
    """Resizes bilinearly; the outermost positions keep their values (`align_corners`).

    Args:
        maps: float [batch, height, width, channels].
        size: height and width to have.
    """
    height, width = (_lines(n, m) for n, m in zip(maps.shape[1:3], size, strict=True))
    maps = jnp.asarray(maps)
    rows = jnp.einsum("Hh,bhwc->bHwc", height.astype(maps.dtype), maps)
    return jnp.einsum("Ww,bHwc->bHWc", width.astype(maps.dtype), rows)


def _lines(before: int, after: int) -> np.ndarray:
    """Returns the weights of linear interpolation, [after, before]."""
    step = (before - 1) / (after - 1) if after > 1 else 0.0
    place = np.minimum(np.arange(after) * step, before - 1)
    return np.maximum(0, 1 - np.abs(place[:, None] - np.arange(before)[None]))


def decode(
    config: DecoderConfig, size: tuple[int, int] | None = None, *, dtype: Any = None
) -> Decode:
    """Returns the pure function (variables, features) → maps of evaluation mode.

    The same arguments give the same function.

    Args:
        config: sizes of the decoder.
        size: height and width of the maps, those of the images; None for those of the features.
        dtype: precision of the convolutions; None takes that of the features.

    Returns:
        A function of {'params', 'batch_stats'} and features [batch, h, w, config.features], giving
        float [batch, *size, outputs].
    """
    return _evaluation(config, size, None if dtype is None else jnp.dtype(dtype))


@cache
def _evaluation(config: DecoderConfig, size: tuple[int, int] | None, dtype: Any) -> Decode:
    def apply(variables: Any, features: Array) -> Array:
        decoder = Decoder(config, _outputs(variables), dtype=dtype)
        return _resized(cast(jax.Array, decoder.apply(variables, features)), size)

    return apply


def decode_in_training(
    config: DecoderConfig, size: tuple[int, int] | None = None, *, dtype: Any = None
) -> DecodeInTraining:
    """Returns (variables, features, mask=None, key=None) → (maps, batch_stats) of training mode.

    See `decode`. `mask`, bool [batch], says which images count. With a `key`, half of the channels'
    values before the last 3×3 convolution are dropped; without one none are. The function raises
    `BadInput` for a batch of one image, whose pooled branch has one value per channel.
    """
    return _training(config, size, None if dtype is None else jnp.dtype(dtype))


@cache
def _training(config: DecoderConfig, size: tuple[int, int] | None, dtype: Any) -> DecodeInTraining:
    def apply(
        variables: Any, features: Array, mask: Array | None = None, key: jax.Array | None = None
    ) -> tuple[Array, Tree]:
        decoder = Decoder(config, _outputs(variables), True, dtype)
        maps, moved = decoder.apply(variables, features, mask, key, mutable=["batch_stats"])
        return _resized(cast(jax.Array, maps), size), dict(moved["batch_stats"])

    return apply


def _outputs(variables: Any) -> int:
    return variables["params"]["out"]["bias"].shape[-1]


def _resized(maps: jax.Array, size: tuple[int, int] | None) -> Array:
    maps = maps.astype(wide(maps.dtype))
    return maps if size is None else resize_corners(maps, size)


def initial_decoder(config: DecoderConfig, outputs: int, key: jax.Array) -> Tree:
    """Draws float32 variables, with the deviation of PyTorch's convolutions: 1 / √(3 · inputs).

    Biases are 0, means 0 and variances 1.
    """

    def deviation(shape: tuple[int, ...]) -> float:
        return 1 / math.sqrt(3 * math.prod(shape[:-1]))

    return draw_variables(decoder_shapes(config, outputs), key, deviation)


def decoder_shapes(config: DecoderConfig, outputs: int) -> Tree:
    """Returns the tree of `initial_decoder` with `jax.ShapeDtypeStruct` for leaves."""
    return jax.tree.map(lambda leaf: leaf, _shapes(config, outputs))  # a tree of the caller's own


@cache
def _shapes(config: DecoderConfig, outputs: int) -> Tree:
    example = jax.ShapeDtypeStruct((2, 2, 2, config.features), jnp.float32)
    return dict(jax.eval_shape(Decoder(config, outputs).init, jax.random.key(0), example))


def stack_decoders(decoders: Sequence[Tree]) -> tuple[Tree, tuple[int, ...]]:
    """Stacks decoders over tasks, padding maps with kernels and biases of zero.

    Args:
        decoders: variables, one tree per task, of one `DecoderConfig`.

    Returns:
        The tree with leaves [task, ...], and how many maps each task has; padded maps are 0.

    Raises:
        BadInput: there is no decoder, or shapes differ otherwise.
    """
    if not decoders:
        raise BadInput("expected at least one decoder to stack, got none")
    outputs = tuple(map(_outputs, decoders))
    padded = [_padded(one, max(outputs)) for one in decoders]
    first: Tree = flatten_dict(padded[0], sep="/")
    for i, one in enumerate(padded):
        flat: Tree = flatten_dict(one, sep="/")
        for path in sorted(set(first) | set(flat)):
            here, there = (np.shape(t[path]) if path in t else None for t in (flat, first))
            if here != there:
                raise BadInput(
                    f"decoder {i}: {path} has shape {here}, in decoder 0 it has {there}; only "
                    "decoders of one width and one network can be stacked"
                )
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *padded), outputs


def unstack_decoders(stacked: Tree, outputs: Sequence[int]) -> list[Tree]:
    """Returns the decoders of `stack_decoders` again, one per task and without padding."""
    found = []
    for task, count in enumerate(outputs):
        one = jax.tree.map(lambda leaf, k=task: leaf[k], stacked)
        out = jax.tree.map(lambda leaf, n=count: leaf[..., :n], one["params"]["out"])
        found.append({**one, "params": {**one["params"], "out": out}})
    return found


def _padded(decoder: Tree, most: int) -> Tree:
    missing = most - _outputs(decoder)

    def pad(leaf: Array) -> Array:
        return jnp.pad(jnp.asarray(leaf), [(0, 0)] * (leaf.ndim - 1) + [(0, missing)])

    out = jax.tree.map(pad, decoder["params"]["out"])
    return {**decoder, "params": {**decoder["params"], "out": out}}
