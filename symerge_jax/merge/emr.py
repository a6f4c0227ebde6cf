"""EMR-Merging: elect a sign, keep the largest agreeing magnitude, mask and rescale per task.

Huang et al., "EMR-Merging: Tuning-Free High-Performance Model Merging", 2024.
https://arxiv.org/abs/2405.17461 (Algorithm 1). With f = sgn Σ_k τ_k:

    u = f ⊙ max_k |τ_k| over tasks with sgn τ_k = f,    m_k = [τ_k ⊙ f > 0],    τ*_k = g_k m_k ⊙ u.

There is no shared model: u is stored once, the masks as bits, the rescalers as K numbers.

As the authors' code: a sum of exactly zero counts as negative (the paper's sign would drop the
position); g_k divides sums over leaves of *means*, so that each leaf weighs the same. The paper's
formula and the authors' script for thirty tasks take the sums over all entries, `rescale="global"`.
Departure: a task vector of zeros has g_k = 1 where the code divides by zero.
"""

from functools import reduce
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from symerge_jax.errors import BadInput
from symerge_jax.merge.bits import Masked, apply_mask, pack
from symerge_jax.merge.leaves import OnLeaf, Passes, over_leaves
from symerge_jax.merge.reductions import add_on_host, rows, sum_entries
from symerge_jax.notation import Array, Bool, Float, TaskVectors
from symerge_jax.trees import add_up, wide

RESCALES = ("leaf", "global")
Rescale = Literal["leaf", "global"]


def emr(task_vectors: TaskVectors, *, rescale: Rescale = "leaf") -> TaskVectors:
    """Returns one τ*_k per task, whole; `compress_emr` gives the small form.

    The rescalers are global: two passes over the leaves, see `plan`.

    Args:
        task_vectors: τ, leaves [task, ...], floating.
        rescale: "leaf" weighs each leaf the same in g_k, "global" each entry.

    Returns:
        Leaves [task, ...] of the same dtypes.

    Raises:
        BadInput: an unknown `rescale`.
    """
    return over_leaves(plan, task_vectors, rescale=rescale)


def plan(passes: Passes, *, rescale: str = "leaf") -> OnLeaf:
    """One pass for the rescalers g, then leaf by leaf.

    Returns:
        (path, τ leaf [task, ...]) → τ* leaf [task, ...]. The options are those of `emr`.
    """
    factors = rescalers(passes, rescale=rescale)

    def merge(path: str, leaf: Array) -> Array:
        del path
        return _rescaled(leaf, factors)

    return merge


def compress_emr(task_vectors: TaskVectors, *, rescale: str = "leaf") -> Masked:
    """Returns u, the masks as bits and the rescalers; `materialise(k)` is τ*_k.

    Args:
        task_vectors: τ, leaves [task, ...], floating.
        rescale: as for `emr`.
    """

    def of_passes(passes: Passes) -> OnLeaf:
        factors.append(rescalers(passes, rescale=rescale))
        return lambda path, leaf: _vector_and_bits(leaf)

    factors: list[Array] = []
    pairs = over_leaves(of_passes, task_vectors)
    vector, masks = jax.tree.transpose(jax.tree.structure(task_vectors), None, pairs)
    return Masked(vector, masks, factors[0])


def rescalers(passes: Passes, *, rescale: str) -> Float[Array, " task"]:
    """Returns g [task], in float32 or float64 if a leaf is."""
    if rescale not in RESCALES:
        raise BadInput(f"emr: rescale must be one of {', '.join(RESCALES)}, got {rescale!r}")
    dtypes = []

    def sizes(leaf: Array) -> Array:
        dtypes.append(leaf.dtype)
        count = rows(leaf).shape[1] if rescale == "leaf" else 1
        return _sizes(leaf) / np.asarray(count, wide(leaf.dtype))

    sums = add_on_host(sizes(leaf) for _, leaf in passes())
    numerator, denominator = jnp.asarray(sums, wide(*dtypes))  # N, D
    return jnp.where(denominator > 0, numerator / jnp.where(denominator > 0, denominator, 1), 1)


def unified(tau: Array) -> tuple[Array, Bool[Array, "..."]]:
    """Returns u [...] of one leaf, and where the elected sign is positive."""
    positive = add_up(tau.astype(wide(tau.dtype))) > 0
    zero = jnp.zeros_like(tau[0])
    largest, least = reduce(jnp.maximum, tau, zero), reduce(jnp.minimum, tau, zero)
    return jnp.where(positive, largest, least), positive


def agrees(tau: Array, positive: Bool[Array, "..."]) -> Bool[Array, "..."]:
    """Returns m_k of one task's entries."""
    return jnp.where(positive, tau > 0, tau < 0)


@jax.jit
def _sizes(leaf: Array) -> Float[Array, "two task"]:
    """Σ |τ_k| and Σ |u ⊙ m_k| over one leaf."""

    def sizes(block: Array) -> Array:
        tau = block.astype(wide(block.dtype))
        u, positive = unified(tau)
        kept = jnp.where(agrees(tau, positive[None]), jnp.abs(u)[None], 0)
        return jnp.stack([jnp.abs(tau), kept])

    return sum_entries(sizes, rows(leaf))


@jax.jit
def _rescaled(leaf: Array, factors: Float[Array, " task"]) -> Array:
    u, positive = unified(leaf)

    def one(task: tuple[Array, Array]) -> Array:
        tau, factor = task
        return apply_mask(u, agrees(tau, positive), factor)

    return jax.lax.map(one, (leaf, factors))


@jax.jit
def _vector_and_bits(leaf: Array) -> tuple[Array, Array]:
    u, positive = unified(leaf)
    return u, pack(agrees(leaf, positive[None]))
