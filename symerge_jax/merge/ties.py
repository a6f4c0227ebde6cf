"""TIES: trim small entries, elect one sign per parameter, merge what agrees.

Yadav et al., "TIES-Merging: Resolving Interference When Merging Models", 2023.
https://arxiv.org/abs/2306.01708 (Algorithm 1).

As the authors' code: entries equal to the threshold are all kept; a sign sum of exactly zero takes
the majority sign over all parameters, negative if that ties too. The paper averages what agrees
(scale 1); the vision code of AdaMerging and FusionBench sums it (scale 0.3). These are different
methods: say which one you ran.
"""

from typing import Literal

import jax.numpy as jnp

from symerge_jax.errors import BadInput
from symerge_jax.merge.sparsify import check_fraction, keep_largest
from symerge_jax.notation import Params, TaskVectors
from symerge_jax.trees import ravel_stacked

AGGREGATES = ("mean", "sum", "max")


def ties(
    task_vectors: TaskVectors,
    *,
    density: float = 0.2,
    aggregate: Literal["mean", "sum", "max"] = "mean",
    quantile_extra_zeros: int = 0,
) -> Params:
    """Returns the disjoint merge of the trimmed task vectors.

    Needs all K·n numbers at once: the thresholds are global, one per task.

    Args:
        task_vectors: τ, leaves [task, ...], floating.
        density: fraction of entries each task keeps, in (0, 1]; k/100 in the paper.
        aggregate: of the entries with the elected sign, their mean, sum or largest magnitude.
        quantile_extra_zeros: zeros to count in the quantile; see `keep_largest`.

    Returns:
        Leaves [...] of the same dtypes.

    Raises:
        BadInput: a density outside (0, 1], an unknown aggregate.
    """
    check_fraction(density, name="density", method="ties")
    if aggregate not in AGGREGATES:
        raise BadInput(f"ties: aggregate must be one of {', '.join(AGGREGATES)}, got {aggregate!r}")
    tau, unravel = ravel_stacked(task_vectors)
    trimmed = keep_largest(tau, density, extra_zeros=quantile_extra_zeros)
    sign = jnp.sign(trimmed.sum(axis=0, keepdims=True))  # γ
    majority = jnp.where(sign.sum() > 0, 1, -1).astype(tau.dtype)
    elected = jnp.where(sign == 0, majority, sign)
    agrees = jnp.sign(trimmed) == elected
    kept = jnp.where(agrees, trimmed, jnp.zeros_like(trimmed))
    if aggregate == "max":
        return unravel(jnp.abs(kept).max(axis=0) * elected[0])
    total = kept.sum(axis=0)
    if aggregate == "sum":
        return unravel(total)
    count = agrees.sum(axis=0, dtype=tau.dtype)
    return unravel(total / jnp.maximum(count, jnp.ones_like(count)))
