"""Dense prediction: a trunk and a task's decoder, from uint8 images to maps of pixels.

Whole encoders are {'params', 'batch_stats'} of `models.resnet`, decoders those of
`models.dense_heads`. Both collections merge as one float state dict does; no running variance is
then taken as smaller than `batch_stats.VARIANCE_FLOOR`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import jax.numpy as jnp
import numpy as np

from symerge_jax.adapt.dense import Network
from symerge_jax.batch_stats import floor_variances
from symerge_jax.dense_metrics import DENSE_METRICS
from symerge_jax.evaluate import predict
from symerge_jax.finetune_steps import Forward
from symerge_jax.models.dense_heads import decode, decode_in_training
from symerge_jax.models.resnet import encode_images, encode_in_training
from symerge_jax.models.resnet_config import DecoderConfig, ResNetConfig
from symerge_jax.notation import Array, Params

Size = tuple[int, int]
BATCH = 16  # images at a time: the features of an image are as large as a thousand of CLIP's


@cache
def network(
    config: ResNetConfig, decoder: DecoderConfig, size: Size, dtype: str = "float32"
) -> Network:
    """Returns the functions of a network; the same arguments give the same ones.

    Args:
        config: sizes of the trunk.
        decoder: sizes of the decoders.
        size: height and width of the maps, those of the images.
        dtype: of the convolutions, 'float32' or 'bfloat16'.
    """
    narrow = None if dtype == "float32" else jnp.dtype(dtype)
    run = encode_images(config, dtype=narrow)

    def encode(variables: Params, images: Array) -> Array:
        return run({**variables, "batch_stats": floor_variances(variables["batch_stats"])}, images)

    return Network(
        encode,
        decode(decoder, size, dtype=narrow),
        encode_in_training(config, dtype=narrow),
        decode_in_training(decoder, size, dtype=narrow),
    )


@cache
def training(own: Network) -> Forward:
    """Returns what `finetune_with_state` takes: batch normalisation by batches, and dropout.

    Its parameters are those of the trunk, its head those of the decoder, its state the running
    statistics of both: {'trunk', 'decoder'}.
    """

    def forward(params: Any, head: Any, state: Any, images: Any, mask: Any, key: Any) -> Any:
        features, trunk = own.encode_in_training(
            {"params": params, "batch_stats": state["trunk"]}, images, mask
        )
        variables = {"params": head, "batch_stats": state["decoder"]}
        maps, decoder = own.decode_in_training(variables, features, mask, key)
        return maps, {"trunk": trunk, "decoder": decoder}

    return forward


@cache
def maps_of(own: Network, outputs: int) -> Callable[[Any, Array], Array]:
    """Returns ((encoder, decoder), images) → maps [batch, height, width, outputs].

    Args:
        own: functions of the network.
        outputs: how many maps there are; a decoder of a stack may have more.
    """

    def apply(model: tuple[Params, Params], images: Array) -> Array:
        encoder, decoder = model
        return own.decode(decoder, own.encode(encoder, images))[..., :outputs]

    return apply


def predict_maps(
    own: Network, encoder: Params, decoder: Params, images: np.ndarray, outputs: int
) -> np.ndarray:
    """Returns maps [n, height, width, outputs] of images uint8 [n, height, width, 3]."""
    return predict(maps_of(own, outputs), (encoder, decoder), images, batch_size=_batch(images))


def expert_maps(
    own: Network, encoder: Params, decoder: Params, images: np.ndarray, outputs: int, kind: str
) -> np.ndarray:
    """Returns what an expert says about images, as `adapt.dense.symerge_dense` takes it.

    Args:
        own: functions of the network.
        encoder: the expert's.
        decoder: the expert's.
        images: uint8 [n, height, width, 3].
        outputs: number of maps.
        kind: "segmentation", "depth" or "normal".

    Returns:
        Classes int8 [n, height, width]; otherwise maps float32 [n, height, width, outputs].
    """
    apply = _said(own, outputs, kind)
    return predict(apply, (encoder, decoder), images, batch_size=_batch(images))


def _batch(images: np.ndarray) -> int:
    """Images at a time: no more than there are, for one of the padding costs as much as any."""
    return min(BATCH, len(images))


@cache
def _said(own: Network, outputs: int, kind: str) -> Callable[[Any, Array], Array]:
    maps = maps_of(own, outputs)

    def apply(model: Any, images: Array) -> Array:
        found = maps(model, images)
        return jnp.argmax(found, axis=-1).astype(jnp.int8) if kind == "segmentation" else found

    return apply


def dense_scores(
    own: Network,
    encoder: Params,
    decoder: Params,
    images: np.ndarray,
    truth: np.ndarray,
    outputs: int,
    kind: str,
    *,
    batch_mean: int | None = None,
) -> dict[str, float]:
    """Returns the metrics of a task by name, the main one first; no map leaves the device.

    Args:
        own: functions of the network.
        encoder: its weights.
        decoder: the task's.
        images: uint8 [n, height, width, 3].
        truth: labels, depths or normals of the same pixels.
        outputs: number of maps.
        kind: "segmentation", "depth" or "normal".
        batch_mean: images per batch for MTAN's mean; None for that of all pixels.
    """
    metric = DENSE_METRICS[kind]
    both, apply = (images, truth), _sums(own, outputs, kind)
    sums = predict(apply, (encoder, decoder), both, batch_size=_batch(images))
    found = metric.scores(sums, batch_size=batch_mean)
    return {name: found[name] for name in metric.names}


@cache
def _sums(own: Network, outputs: int, kind: str) -> Callable[[Any, Any], Any]:
    maps = maps_of(own, outputs)

    def apply(model: Any, both: tuple[Array, Array]) -> Any:
        images, truth = both
        return DENSE_METRICS[kind].sums(maps(model, images), truth)

    return apply
