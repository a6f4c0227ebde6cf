"""TIES: trim small entries, elect one sign per parameter, merge what agrees.

Yadav et al., "TIES-Merging: Resolving Interference When Merging Models", 2023.
https://arxiv.org/abs/2306.01708 (Algorithm 1).

As the authors' code: entries equal to the threshold are all kept; a sign sum of exactly zero takes
the majority sign over all parameters, negative if that ties too. The paper averages what agrees
(scale 1); the vision code of AdaMerging and FusionBench sums it (scale 0.3). These are different
methods: say which one you ran.
"""

from functools import partial, reduce
from typing import Literal

import jax
import jax.numpy as jnp

from symerge_jax.errors import BadInput
from symerge_jax.merge.leaves import OnLeaf, Passes, over_leaves
from symerge_jax.merge.reductions import add_on_host, rows, sum_entries
from symerge_jax.merge.sparsify import check_fraction, trim, trim_thresholds
from symerge_jax.notation import Array, Float, Int, Params, TaskVectors

AGGREGATES = ("mean", "sum", "max")
Aggregate = Literal["mean", "sum", "max"]


def ties(
    task_vectors: TaskVectors,
    *,
    density: float = 0.2,
    aggregate: Aggregate = "mean",
    quantile_extra_zeros: int = 0,
) -> Params:
    """Returns the disjoint merge of the trimmed task vectors.

    The thresholds are global, one per task: four passes over the leaves, see `plan`.

    Args:
        task_vectors: τ, leaves [task, ...], floating.
        density: fraction of entries each task keeps, in (0, 1]; k/100 in the paper.
        aggregate: of the entries with the elected sign, their mean, sum or largest magnitude.
        quantile_extra_zeros: zeros to count in the quantile; see `trim_thresholds`.

    Returns:
        Leaves [...] of the same dtypes.

    Raises:
        BadInput: a density outside (0, 1], an unknown aggregate.
    """
    return over_leaves(
        plan,
        task_vectors,
        density=density,
        aggregate=aggregate,
        quantile_extra_zeros=quantile_extra_zeros,
    )


def elected(
    task_vectors: TaskVectors, *, density: float = 0.2, quantile_extra_zeros: int = 0
) -> TaskVectors:
    """Returns the task vectors trimmed, without the entries whose sign was not elected.

    They stay apart: their sum is `ties` with aggregate "sum". AdaMerging++ learns a coefficient for
    each (Yang et al. 2024, section 3.2).

    Args:
        task_vectors: τ, leaves [task, ...], floating.
        density: fraction of entries each task keeps, in (0, 1].
        quantile_extra_zeros: zeros to count in the quantile; see `trim_thresholds`.

    Returns:
        Leaves [task, ...] of the same dtypes.

    Raises:
        BadInput: a density outside (0, 1].
    """
    return over_leaves(
        partial(_plan, aggregate=None),
        task_vectors,
        density=density,
        quantile_extra_zeros=quantile_extra_zeros,
    )


def plan(
    passes: Passes,
    *,
    density: float = 0.2,
    aggregate: str = "mean",
    quantile_extra_zeros: int = 0,
) -> OnLeaf:
    """Two passes for the thresholds, one for the majority sign; then leaf by leaf.

    Returns:
        (path, τ leaf [task, ...]) → τ* leaf [...]. The options are those of `ties`.
    """
    if aggregate not in AGGREGATES:
        raise BadInput(f"ties: aggregate must be one of {', '.join(AGGREGATES)}, got {aggregate!r}")
    return _plan(passes, density, aggregate, quantile_extra_zeros)


def _plan(
    passes: Passes, density: float, aggregate: str | None, quantile_extra_zeros: int
) -> OnLeaf:
    """`plan`; with no aggregate the tasks' entries stay apart, [task, ...]."""
    check_fraction(density, name="density", method="ties")
    thresholds = jnp.asarray(trim_thresholds(passes, density, extra_zeros=quantile_extra_zeros))
    balance = add_on_host(_sign_balance(leaf, thresholds) for _, leaf in passes())
    majority = jnp.where(jnp.asarray(balance > 0), 1, -1).astype(thresholds.dtype)

    def merge(path: str, leaf: Array) -> Array:
        del path
        return _merge(leaf, thresholds, majority, aggregate=aggregate)

    return merge


@jax.jit
def _sign_balance(leaf: Array, thresholds: Float[Array, " task"]) -> Int[Array, ""]:
    """Σ_p γ_p of one leaf: positions with a positive sum minus those with a negative one."""

    def signs(block: Array) -> Array:
        return jnp.sign(reduce(jnp.add, trim(block, thresholds))).astype(jnp.int32)

    return sum_entries(signs, rows(leaf))


@partial(jax.jit, static_argnames="aggregate")
def _merge(
    leaf: Array,
    thresholds: Float[Array, " task"],
    majority: Float[Array, ""],
    *,
    aggregate: str | None,
) -> Array:
    trimmed = trim(leaf, thresholds)
    sign = jnp.sign(reduce(jnp.add, trimmed))  # γ
    elected = jnp.where(sign == 0, majority, sign)
    agrees = [jnp.sign(tau) == elected for tau in trimmed]
    kept = [jnp.where(agree, tau, 0) for agree, tau in zip(agrees, trimmed, strict=True)]
    if aggregate is None:
        merged = jnp.stack(kept)
    elif aggregate == "max":
        merged = reduce(jnp.maximum, map(jnp.abs, kept)) * elected
    elif aggregate == "sum":
        merged = reduce(jnp.add, kept)
    else:
        count = reduce(jnp.add, [agree.astype(sign.dtype) for agree in agrees])
        merged = reduce(jnp.add, kept) / jnp.maximum(count, 1)
    return merged.astype(leaf.dtype)
