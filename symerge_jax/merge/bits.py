"""Masks stored as one bit per entry and task, and what is made of them: one vector, K masks."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from symerge_jax.notation import Array, Bool, Float, Params, Shaped


def pack(masks: Bool[Array, "task ..."]) -> Shaped[Array, "task bytes"]:
    """Returns the bits as uint8; bit j of byte i is entry j · bytes + i of the raveled mask.

    Eight long runs, not eight neighbours, share their bytes: that is what vectorises.
    """
    flat = masks.reshape(masks.shape[0], -1)
    short = -flat.shape[1] % 8
    planes = jnp.pad(flat, ((0, 0), (0, short))).reshape(flat.shape[0], 8, -1).astype(jnp.uint8)
    packed = planes[:, 0]
    for j in range(1, 8):
        packed = packed | (planes[:, j] << jnp.uint8(j))
    return packed


def unpack(packed: Shaped[Array, " bytes"], shape: tuple[int, ...]) -> Bool[Array, "..."]:
    """The inverse of `pack` for one task's mask of this shape."""
    shifts = jnp.arange(8, dtype=jnp.uint8)[:, None]
    bits = (jnp.asarray(packed)[None] >> shifts) & jnp.uint8(1)
    return bits.astype(bool).reshape(-1)[: math.prod(shape)].reshape(shape)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Masked:
    """One vector for all tasks, and per task a mask and a factor.

    Attributes:
        vector: leaves [...].
        masks: leaves uint8 [task, bytes], see `pack`.
        factors: one per task, [task].
    """

    vector: Params
    masks: Params
    factors: Float[Array, " task"]

    def materialise(self, k: int | Array) -> Params:
        """Returns τ*_k = factor_k · mask_k ⊙ vector, leaves [...] of the vector's dtypes."""
        return jax.tree.map(
            lambda vector, masks: apply_mask(
                vector, unpack(masks[k], vector.shape), self.factors[k]
            ),
            self.vector,
            self.masks,
        )

    @property
    def nbytes(self) -> int:
        """What is stored beside θ₀, in bytes."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self))


def apply_mask(vector: Array, mask: Bool[Array, "..."], factor: Array) -> Array:
    """Returns factor · mask ⊙ vector, in the vector's dtype; the three broadcast."""
    scaled = factor * vector.astype(factor.dtype)
    return jnp.where(mask, scaled, jnp.zeros_like(scaled)).astype(vector.dtype)
