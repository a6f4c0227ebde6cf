"""Another basin of the same classifier: an image tower with its units in another order.

A CLIP tower computes the same whatever the order of its residual stream's channels, of the heads of
each attention and of the hidden units of each MLP, if all tensors that meet there agree on it
(Entezari et al., "The Role of Permutation Invariance in Linear Mode Connectivity of Neural
Networks", ICLR 2022, https://arxiv.org/abs/2110.06296). Its features may change places as well, if
the classifier's columns do: two pre-trainings do not share the space of their features either. To a
merging method that averages weights entry by entry it is another initialisation: nothing lines up.

Fine-tuning commutes with it: gradients are permuted as weights are, and SGD, Adam, weight decay
and clipping by the global norm treat all entries alike. So the permuted expert of a model is, but
for rounding, the expert of the permuted model, trained on the same batches.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import jax
import numpy as np

from symerge_jax import trees
from symerge_jax.errors import BadInput
from symerge_jax.models.clip_config import VisionConfig
from symerge_jax.models.heads import Head
from symerge_jax.notation import Params

# Which order each axis of a leaf follows; None for none.
_AXES: dict[str, tuple[str | None, ...]] = {
    "class_embedding": ("channels",),
    "position_embedding": (None, "channels"),
    "patch_embedding/kernel": (None, None, None, "channels"),
    "projection/kernel": ("channels", "features"),
    **{f"{norm}/{name}": ("channels",) for norm in ("ln_pre", "ln_post", "ln_1", "ln_2")
       for name in ("scale", "bias")},
    "attention/in_proj/kernel": ("channels", "qkv"),
    "attention/in_proj/bias": ("qkv",),
    **{f"attention/{name}/kernel": ("channels", "heads") for name in ("query", "key", "value")},
    **{f"attention/{name}/bias": ("heads",) for name in ("query", "key", "value")},
    "attention/out/kernel": ("heads", "channels"),
    "attention/out/bias": ("channels",),
    "mlp/fc/kernel": ("channels", "hidden"),
    "mlp/fc/bias": ("hidden",),
    "mlp/proj/kernel": ("hidden", "channels"),
    "mlp/proj/bias": ("channels",),
}  # fmt: skip


class Permutation(NamedTuple):
    """Orders: entry i of the result is entry order[i] of the source.

    Attributes:
        channels: of the residual stream, int [width].
        heads: of each block's attention, int [block, heads].
        hidden: of each block's MLP, int [block, hidden].
        features: of the output, int [d].
    """

    channels: np.ndarray
    heads: np.ndarray
    hidden: np.ndarray
    features: np.ndarray


def drawn(config: VisionConfig, seed: int) -> Permutation:
    """Returns a random permutation for a tower of these sizes."""
    rng = np.random.default_rng([seed, config.width, config.depth])
    channels = rng.permutation(config.width)
    return Permutation(
        channels,
        np.stack([rng.permutation(config.heads) for _ in range(config.depth)]),
        np.stack([rng.permutation(config.hidden) for _ in range(config.depth)]),
        channels if config.projection is None else rng.permutation(config.projection),
    )


def inverse(permutation: Permutation) -> Permutation:
    """Returns what undoes it."""
    return Permutation(*(np.argsort(order, axis=-1) for order in permutation))


def permuted(params: Params, config: VisionConfig, permutation: Permutation) -> Params:
    """Returns the tower in another order: but for rounding, the same features in another order.

    Args:
        params: of an image tower of `symerge_jax.models.clip`, query, key and value fused or split.
        config: its sizes.
        permutation: of those sizes.

    Raises:
        BadInput: a leaf that such a tower does not have.
    """

    def leaf(path: Any, value: Any) -> np.ndarray:
        name = trees.path_name(path)
        block = re.fullmatch(r"blocks_(\d+)/(.+)", name)
        axes = _AXES.get(block[2] if block else name)
        if axes is None:
            raise BadInput(f"the leaf {name} is none of a CLIP image tower's")
        orders = _orders(config, permutation, int(block[1]) if block else 0)
        value = np.asarray(value)
        for axis, order in enumerate(axes):
            if order is not None:
                value = np.take(value, orders[order], axis=axis)
        return value

    return jax.tree_util.tree_map_with_path(leaf, params)


def permuted_head(head: Head, permutation: Permutation) -> Head:
    """Returns the classifier that gives the permuted tower the logits of the other one."""
    return {**head, "weight": np.asarray(head["weight"])[:, permutation.features]}


def _orders(config: VisionConfig, permutation: Permutation, block: int) -> dict[str, np.ndarray]:
    """Returns the order of entries along each kind of axis."""
    width = config.width
    per_head = np.arange(width).reshape(config.heads, -1)
    heads = per_head[permutation.heads[block]].reshape(-1)
    return {
        "channels": permutation.channels,
        "heads": heads,
        "qkv": np.concatenate([heads, heads + width, heads + 2 * width]),
        "hidden": permutation.hidden[block],
        "features": permutation.features,
    }
