"""An image classifier: CLIP's image tower and a head, from uint8 images to logits."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import jax.numpy as jnp

from symerge_jax.adapt.objectives import exclude
from symerge_jax.data.preprocess import normalise
from symerge_jax.models.clip import VisionConfig, encode_image
from symerge_jax.models.clip_moe import encode_image_moe
from symerge_jax.models.heads import normalised_head
from symerge_jax.notation import Array, Params

Encode = Callable[[Params, Array], Array]


@cache
def encoder(config: VisionConfig, dtype: str = "float32", remat: bool = False) -> Encode:
    """Returns (θ, images uint8 [batch, height, width, 3]) → features [batch, d].

    Pixels are normalised inside the program. The same arguments give the same function object, so
    that its compiled program is found again.

    Args:
        config: sizes of the tower.
        dtype: of the computation, 'float32' or 'bfloat16'.
        remat: whether the gradient works activations inside blocks out again, to hold less.
    """
    precision = None if dtype == "float32" else jnp.dtype(dtype)
    apply = encode_image(config, dtype=precision, remat=remat)

    def encode(params: Params, images: Array) -> Array:
        return apply(params, normalise(images))

    return encode


@cache
def moe_encoder(config: VisionConfig, dtype: str = "float32") -> Callable[..., Array]:
    """Returns (θ, τ of the MLPs, router, images uint8, mask) → features; see `models.clip_moe`."""
    apply = encode_image_moe(config, dtype=None if dtype == "float32" else jnp.dtype(dtype))

    def encode(
        params: Params, task_vectors: Any, router: Any, images: Array, mask: Array | None
    ) -> Array:
        return apply(params, task_vectors, router, normalise(images), mask)

    return encode


@cache
def logits_of(
    encode: Encode, classify: Callable[[Any, Array], Array] = normalised_head
) -> Callable[[Any, Array], Array]:
    """Returns ((θ, head, classes bool [classes]), inputs) → logits, padded rows excluded."""

    def apply(model: tuple[Params, Any, Array], inputs: Array) -> Array:
        params, head, classes = model
        return exclude(classify(head, encode(params, inputs)), classes[None])

    return apply
