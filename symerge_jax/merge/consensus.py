"""Consensus merging: drop what fewer than two tasks would keep from the merged vector.

Wang et al., "Localizing Task Information for Improved Model Merging and Compression", 2024.
https://arxiv.org/abs/2405.07813 (section 5). With the masks m_k and τ_M of `tall_masks`:

    τ* = [ Σ_k m_k ≥ threshold ] ⊙ τ_M.

Threshold 0 is the base itself, 1 drops what no task uses, more than K leaves θ₀. The masks' λ_k
is chosen on validation data; 0.4 is the middle of the authors' grid. The authors also choose the
scale there, among 0.1 to 1.0.
"""

from functools import reduce

import jax
import jax.numpy as jnp

from symerge_jax.errors import BadInput
from symerge_jax.merge.leaves import OnLeaf, Passes, over_leaves
from symerge_jax.merge.tall_masks import Base, Scale, check_scale, localised, plan_base
from symerge_jax.notation import Array, Float, Int, Params, TaskVectors


def consensus(
    task_vectors: TaskVectors,
    *,
    mask_scale: Scale = 0.4,
    threshold: int = 2,
    base: Base = "task_arithmetic",
    density: float = 0.2,
) -> Params:
    """Returns the merged vector where enough tasks agree to use it.

    With the base task arithmetic leaves do not depend on each other.

    Args:
        task_vectors: τ, leaves [task, ...], floating.
        mask_scale: λ, one number or one per task, positive; smaller keeps more.
        threshold: how many tasks must use an entry, at least 0.
        base: what τ_M is: "task_arithmetic", or "ties" (the sum of what agrees).
        density: of the base "ties": the fraction of entries each task keeps.

    Returns:
        Leaves [...] of the same dtypes.

    Raises:
        BadInput: an unknown base, a mask scale that is not positive or of another length, a
            threshold that is not a whole number from 0.
    """
    return over_leaves(
        plan,
        task_vectors,
        mask_scale=mask_scale,
        threshold=threshold,
        base=base,
        density=density,
    )


def plan(
    passes: Passes,
    *,
    mask_scale: Scale = 0.4,
    threshold: int = 2,
    base: str = "task_arithmetic",
    density: float = 0.2,
) -> OnLeaf:
    """The passes of the base, none for task arithmetic; then leaf by leaf.

    Returns:
        (path, τ leaf [task, ...]) → τ* leaf [...]. The options are those of `consensus`.
    """
    if threshold < 0 or threshold != int(threshold):
        raise BadInput(f"consensus: threshold must be a whole number from 0, got {threshold}")
    merged = plan_base(passes, base=base, density=density, method="consensus")

    def merge(path: str, leaf: Array) -> Array:
        lam = check_scale(mask_scale, leaf, method="consensus")
        return _agreed(
            leaf,
            merged(path, leaf),
            lam,
            jnp.asarray(min(int(threshold), leaf.shape[0] + 1), jnp.int32),
        )

    return merge


@jax.jit
def _agreed(
    leaf: Array, merged: Array, lam: Float[Array, " task"], threshold: Int[Array, ""]
) -> Array:
    votes = reduce(
        jnp.add,
        [localised(leaf[k], merged, lam[k]).astype(jnp.int32) for k in range(leaf.shape[0])],
    )
    return jnp.where(votes >= threshold, merged, jnp.zeros_like(merged))
