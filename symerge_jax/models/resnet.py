"""ResNet's trunk for dense prediction (architecture only; weights: `checkpoints.resnet`).

He et al., "Deep Residual Learning for Image Recognition", 2016 (https://arxiv.org/abs/1512.03385),
with the stride in the 3×3 convolution as torchvision has it, and stages that are dilated instead of
strided (Chen et al., "Rethinking Atrous Convolution", 2017, https://arxiv.org/abs/1706.05587).

Variables are {'params', 'batch_stats'}: what is trained, and the running statistics of batch
normalisation, both with one leaf per tensor of the source. In evaluation mode the statistics are
read; in training mode a batch has its own, and moved ones are returned.

Numbers: everything runs in `dtype` (default: that of the parameters), batch normalisation and what
is returned in float32 or wider.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from symerge_jax.models.batch_norm import BatchNorm
from symerge_jax.models.resnet_config import PRESETS, Place, ResNetConfig
from symerge_jax.models.transformer import Tree, unset
from symerge_jax.notation import Array
from symerge_jax.trees import wide

__all__ = [
    "PRESETS",
    "Conv",
    "Encoder",
    "ResNetConfig",
    "classify",
    "draw_variables",
    "encode_images",
    "encode_in_training",
    "initial_variables",
    "variable_shapes",
]

# Inputs of a kernel up to which one matrix product takes all of its positions: nine copies of wider
# images would fill the memory.
_ONE_PRODUCT = 4608

# (variables, images) → features
Encode = Callable[[Any, Array], Array]
# (variables, images, mask=None) → features, moved batch_stats
EncodeInTraining = Callable[..., tuple[Array, Tree]]


class Conv(nn.Module):
    """A convolution of odd size that keeps height and width, but for its stride."""

    features: int
    size: int = 1
    stride: int = 1
    dilation: int = 1
    use_bias: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:  # [batch, height, width, channels]
        kernel = self.param("kernel", unset, (self.size, self.size, x.shape[-1], self.features))
        y = convolved(x, jnp.asarray(kernel, x.dtype), self.stride, self.dilation)
        if self.use_bias:
            bias = self.param("bias", unset, (self.features,))
            y = y + jnp.asarray(bias, y.dtype)[None, None, None]
        return y


def convolved(x: jax.Array, kernel: jax.Array, stride: int = 1, dilation: int = 1) -> jax.Array:
    """Convolves with a kernel of odd size; outside the image all is 0.

    On a CPU as matrix products: XLA's own convolutions are six to fifteen times slower there inside
    a compiled loop, such as that over the steps of a run, than outside (measured).

    Args:
        x: [batch, height, width, in].
        kernel: [size, size, in, out], of x's dtype.
        stride: of the output.
        dilation: of the kernel.
    """
    pad = dilation * (kernel.shape[0] // 2)

    def native(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), [(pad, pad)] * 2, rhs_dilation=(dilation, dilation),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )  # fmt: skip

    def products(x: jax.Array, kernel: jax.Array) -> jax.Array:
        size, (_, height, width, channels) = kernel.shape[0], x.shape
        wide = jnp.pad(x, [(0, 0), (pad, pad), (pad, pad), (0, 0)])

        def seen(i: int) -> slice:  # rows or columns under one position of the kernel
            return slice(i * dilation, None)

        taps = [
            wide[:, seen(i), seen(j)][:, :height:stride, :width:stride]
            for i in range(size)
            for j in range(size)
        ]
        flat = kernel.reshape(size**2, channels, -1)
        if size**2 * channels <= _ONE_PRODUCT:
            return jnp.concatenate(taps, axis=-1) @ flat.reshape(size**2 * channels, -1)
        return sum((tap @ own for tap, own in zip(taps[1:], flat[1:], strict=True)),
                   start=taps[0] @ flat[0])  # fmt: skip

    return jax.lax.platform_dependent(x, kernel, cpu=products, default=native)


class Block(nn.Module):
    """Bottleneck block: 1×1, 3×3 and 1×1 around a sum; the first of a stage projects its input."""

    config: ResNetConfig
    place: Place
    train: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None) -> jax.Array:
        place, out = self.place, self.place.planes * self.config.expansion
        y = Conv(place.planes, name="conv1")(x)
        y = jax.nn.relu(BatchNorm(self.train, name="bn1")(y, mask))
        y = Conv(place.planes, 3, place.stride, place.dilation, name="conv2")(y)
        y = jax.nn.relu(BatchNorm(self.train, name="bn2")(y, mask))
        y = Conv(out, name="conv3")(y)
        y = BatchNorm(self.train, name="bn3")(y, mask)
        if place.index == 0:
            x = Conv(out, stride=place.stride, name="downsample_conv")(x)
            x = BatchNorm(self.train, name="downsample_bn")(x, mask)
        return jax.nn.relu(x + y)


class Encoder(nn.Module):
    """Images → features, [batch, height / output_stride, width / output_stride, features]."""

    config: ResNetConfig
    train: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(self, images: Array, mask: Array | None = None) -> Array:
        """Returns features of images [batch, height, width, 3].

        Args:
            images: float in [0, 1], or uint8, which is divided by 255.
            mask: bool [batch], which images count for statistics in training; None for all.
        """
        seen = None if mask is None else jnp.asarray(mask)
        stem = Conv(self.config.stem, 7, 2, name="conv1")
        dtype = self._dtype() if self.dtype is None else self.dtype
        x = stem(_pixels(jnp.asarray(images), dtype))
        x = jax.nn.relu(BatchNorm(self.train, name="bn1")(x, seen))
        border = cast(Any, ((1, 1), (1, 1)))  # Flax's annotation knows names only
        x = nn.max_pool(x, (3, 3), (2, 2), border)
        for place in self.config.places():
            name = f"layer{place.stage}_{place.index}"
            x = Block(self.config, place, self.train, name=name)(x, seen)
        return x.astype(wide(x.dtype))

    def _dtype(self) -> Any:
        """Returns the precision of the parameters; float32 while there are none."""
        if self.is_initializing():
            return jnp.float32
        return self.variables["params"]["conv1"]["kernel"].dtype


def _pixels(images: jax.Array, dtype: Any) -> jax.Array:
    if jnp.issubdtype(images.dtype, jnp.floating):
        return images.astype(dtype)
    return (images.astype(wide(dtype)) / 255).astype(dtype)


def encode_images(config: ResNetConfig, *, dtype: Any = None) -> Encode:
    """Returns the pure function (variables, images) → features of evaluation mode.

    The same arguments give the same function.

    Args:
        config: sizes of the network.
        dtype: precision of the computation; None takes the parameters' own.

    Returns:
        A function of {'params', 'batch_stats'} and images [batch, height, width, 3], float in
        [0, 1] or uint8, giving float [batch, height / s, width / s, config.features] for the
        output stride s (rounded up).
    """
    return _evaluation(config, None if dtype is None else jnp.dtype(dtype))


@cache
def _evaluation(config: ResNetConfig, dtype: Any) -> Encode:
    encoder = Encoder(config, dtype=dtype)

    def apply(variables: Any, images: Array) -> Array:
        return cast(Array, encoder.apply(variables, images))

    return apply


def encode_in_training(config: ResNetConfig, *, dtype: Any = None) -> EncodeInTraining:
    """Returns (variables, images, mask=None) → (features, batch_stats) of training mode.

    See `encode_images`; `mask`, bool [batch], says which images count: padding must not.
    """
    return _training(config, None if dtype is None else jnp.dtype(dtype))


@cache
def _training(config: ResNetConfig, dtype: Any) -> EncodeInTraining:
    encoder = Encoder(config, True, dtype)

    def apply(variables: Any, images: Array, mask: Array | None = None) -> tuple[Array, Tree]:
        features, moved = encoder.apply(variables, images, mask, mutable=["batch_stats"])
        return cast(Array, features), dict(moved["batch_stats"])

    return apply


def classify(head: Tree, features: Array) -> Array:
    """Returns logits [batch, classes] = W h + b, with h the mean over all positions.

    Args:
        head: {'weight' [classes, features], 'bias' [classes]}, torchvision's `fc`.
        features: [batch, height, width, features].
    """
    return features.mean(axis=(1, 2)) @ head["weight"].T + head["bias"][None]


def initial_variables(config: ResNetConfig, key: jax.Array) -> Tree:
    """Draws float32 variables: He et al. 2015 for what leaves a kernel, means 0, variances 1."""

    def deviation(shape: tuple[int, ...]) -> float:
        height, width, _, out = shape
        return math.sqrt(2 / (height * width * out))

    return draw_variables(variable_shapes(config), key, deviation)


def draw_variables(
    shapes: Tree, key: jax.Array, deviation: Callable[[tuple[int, ...]], float]
) -> Tree:
    """Draws float32 variables: normal kernels; scales and variances are 1, biases and means 0.

    All numbers come from one draw and are cut on the host: a program per shape takes minutes.

    Args:
        shapes: {'params', 'batch_stats'} of `jax.ShapeDtypeStruct`.
        key: of the draw.
        deviation: shape of a kernel [height, width, in, out] → standard deviation.
    """
    flat: Tree = flatten_dict(shapes, sep="/")
    kernels = [path for path in flat if path.endswith("/kernel")]
    ends = np.cumsum([flat[path].size for path in kernels])
    numbers = np.asarray(jax.random.normal(key, (int(ends[-1]),), jnp.float32))
    found: Tree = {}
    for path, part in zip(kernels, np.split(numbers, ends[:-1]), strict=True):
        shape = flat[path].shape
        found[path] = jnp.asarray(np.float32(deviation(shape)) * part.reshape(shape))
    for path in set(flat) - set(kernels):
        one = path.endswith(("/scale", "/var"))
        found[path] = jnp.asarray(np.full(flat[path].shape, one, np.float32))
    return unflatten_dict(found, sep="/")


def variable_shapes(config: ResNetConfig) -> Tree:
    """Returns the tree of `initial_variables` with `jax.ShapeDtypeStruct` for leaves."""
    return jax.tree.map(lambda leaf: leaf, _shapes(config))  # a tree of the caller's own


@cache
def _shapes(config: ResNetConfig) -> Tree:
    example = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    return dict(jax.eval_shape(Encoder(config).init, jax.random.key(0), example))
