"""TALL masks: per task, the entries of the merged vector that come closer to its own.

Wang et al., "Localizing Task Information for Improved Model Merging and Compression", 2024.
https://arxiv.org/abs/2405.07813 (section 4). With the unscaled merged vector τ_M = Σ_k τ_k:

    m_k = [ |τ_k| > λ_k |τ_M − τ_k| ],    τ*_k = m_k ⊙ τ_M.

There is no shared model: τ_M is stored once and the masks as bits. λ_k is chosen per task among 0.2
to 0.6 by the task's validation accuracy; 0.4, the middle, is what to use without one. Strict, as in
the authors' code: an entry that a task left alone is never in its mask.
"""

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp

from symerge_jax.errors import BadInput
from symerge_jax.merge.bits import Masked, apply_mask, pack
from symerge_jax.merge.leaves import OnLeaf, Passes, over_leaves
from symerge_jax.merge.sparsify import per_task
from symerge_jax.merge.ties import plan as plan_ties
from symerge_jax.notation import Array, Bool, Float, TaskVectors
from symerge_jax.trees import add_up, task_count, wide

BASES = ("task_arithmetic", "ties")
Base = Literal["task_arithmetic", "ties"]
Scale = float | Sequence[float] | Array


def tall_masks(
    task_vectors: TaskVectors,
    *,
    mask_scale: Scale = 0.4,
    base: Base = "task_arithmetic",
    density: float = 0.2,
) -> TaskVectors:
    """Returns one τ*_k per task, whole; `compress_tall_masks` gives the small form.

    With the base task arithmetic leaves do not depend on each other.

    Args:
        task_vectors: τ, leaves [task, ...], floating.
        mask_scale: λ, one number or one per task, positive; smaller keeps more.
        base: what τ_M is: "task_arithmetic", or "ties" (the sum of what agrees).
        density: of the base "ties": the fraction of entries each task keeps.

    Returns:
        Leaves [task, ...] of the same dtypes.

    Raises:
        BadInput: an unknown base, a mask scale that is not positive or of another length.
    """
    return over_leaves(plan, task_vectors, mask_scale=mask_scale, base=base, density=density)


def plan(
    passes: Passes,
    *,
    mask_scale: Scale = 0.4,
    base: str = "task_arithmetic",
    density: float = 0.2,
) -> OnLeaf:
    """The passes of the base, none for task arithmetic; then leaf by leaf.

    Returns:
        (path, τ leaf [task, ...]) → τ* leaf [task, ...]. The options are those of `tall_masks`.
    """
    merged = plan_base(passes, base=base, density=density, method="tall_masks")

    def merge(path: str, leaf: Array) -> Array:
        lam = check_scale(mask_scale, leaf, method="tall_masks")
        return _masked(leaf, merged(path, leaf), lam)

    return merge


def compress_tall_masks(
    task_vectors: TaskVectors,
    *,
    mask_scale: Scale = 0.4,
    base: Base = "task_arithmetic",
    density: float = 0.2,
) -> Masked:
    """Returns τ_M and the masks as bits; `materialise(k)` is τ*_k.

    Args:
        task_vectors: τ, leaves [task, ...], floating.
        mask_scale: as for `tall_masks`, and the others too.
    """

    def pieces(passes: Passes) -> OnLeaf:
        merged = plan_base(passes, base=base, density=density, method="tall_masks")

        def piece(path: str, leaf: Array) -> tuple[Array, Array]:
            vector = merged(path, leaf)
            lam = check_scale(mask_scale, leaf, method="tall_masks")
            return vector, _bits(leaf, vector, lam)

        return piece

    pairs = over_leaves(pieces, task_vectors)
    vector, masks = jax.tree.transpose(jax.tree.structure(task_vectors), None, pairs)
    dtype = wide(*(leaf.dtype for leaf in jax.tree.leaves(task_vectors)))
    return Masked(vector, masks, jnp.ones(task_count(task_vectors), dtype))


def plan_base(passes: Passes, *, base: str, density: float, method: str) -> OnLeaf:
    """Returns (path, τ leaf) → τ_M leaf [...], unscaled."""
    if base not in BASES:
        raise BadInput(f"{method}: base must be one of {', '.join(BASES)}, got {base!r}")
    if base == "ties":
        return plan_ties(passes, density=density, aggregate="sum")
    return lambda path, leaf: _sum(leaf)


def check_scale(mask_scale: Scale, leaf: Array, *, method: str) -> Float[Array, " task"]:
    """Returns λ as [task] in what the leaf is computed in."""
    lam = per_task(mask_scale, leaf.shape[0], name="mask_scale", method=method)
    if not (lam > 0).all():
        raise BadInput(f"{method}: mask_scale must be positive, got {lam.tolist()}")
    return lam.astype(wide(leaf.dtype))


def localised(tau: Array, merged: Array, lam: Array) -> Bool[Array, "..."]:
    """Returns m_k of one task's entries, given τ_M and λ_k, all in the dtype of λ."""
    tau, merged = tau.astype(lam.dtype), merged.astype(lam.dtype)
    return jnp.abs(tau) > lam * jnp.abs(merged - tau)


_sum = jax.jit(add_up)


@jax.jit
def _masked(leaf: Array, merged: Array, lam: Float[Array, " task"]) -> Array:
    def one(task: tuple[Array, Array]) -> Array:
        return apply_mask(merged, localised(task[0], merged, task[1]), jnp.ones((), lam.dtype))

    return jax.lax.map(one, (leaf, lam))


@jax.jit
def _bits(leaf: Array, merged: Array, lam: Float[Array, " task"]) -> Array:
    return pack(jax.lax.map(lambda task: localised(task[0], merged, task[1]), (leaf, lam)))
