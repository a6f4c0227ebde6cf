"""Shared pieces of merging methods: which entries of a task vector stay."""

import jax
import jax.numpy as jnp

from symerge_jax.errors import BadInput
from symerge_jax.notation import Array, Float


def check_fraction(value: float, *, name: str, method: str) -> None:
    """Raises `BadInput` unless `value` lies in (0, 1]."""
    if not 0 < value <= 1:
        hint = f"; {value / 100:g} for {value:g} percent" if 1 < value <= 100 else ""
        raise BadInput(f"{method}: {name} must lie in (0, 1], got {value}{hint}")


def keep_largest(
    tau: Float[Array, "task n"], density: float, *, extra_zeros: int = 0
) -> Float[Array, "task n"]:
    """Keeps each task's largest magnitudes and zeroes the rest.

    Entries equal to the threshold all stay, as in the reference code: the threshold is the j-th
    smallest magnitude, j = P − ⌊P · density⌋ counted from 1, so ⌊P · density⌋ + 1 entries stay
    where no two are equal. With density 1 nothing is trimmed.

    Args:
        tau: raveled task vectors.
        density: fraction of the P entries to keep, in (0, 1].
        extra_zeros: zeros that count among the P entries without being stored. The vector of an
            open_clip checkpoint holds 25.6 million of them (ViT-B/32, left-overs of the text
            tower).
    """
    total = tau.shape[1] + extra_zeros
    rank = total - int(total * density) - extra_zeros  # among the stored entries
    if rank <= 0:
        return tau

    def trim(row: Array) -> Array:
        size = jnp.abs(row)
        threshold = jnp.sort(size)[rank - 1]
        return jnp.where(size >= threshold, row, jnp.zeros_like(row))

    return jax.lax.map(trim, tau)  # one task's scratch at a time
