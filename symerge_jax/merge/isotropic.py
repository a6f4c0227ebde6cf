"""Isotropic merging: the merged matrix keeps its directions, and all weigh the same.

Marczak et al., "No Task Left Behind: Isotropic Model Merging with Common and Task-Specific
Subspaces", 2025. https://arxiv.org/abs/2502.04959; Iso-C and Iso-CTS (Algorithms 1 and 2).

Matrices take the sum of the task vectors, all other leaves their mean, as in the authors' code.
Departures of Iso-CTS, none of which changes the result: the residual of a matrix with no more rows
than columns is decomposed within the few directions it has, and since residuals are orthogonal to
the common directions on the left, only the former are made orthogonal there.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from symerge_jax.merge.sparsify import check_fraction
from symerge_jax.merge.spectral import leading, over_matrices, polar, product, thin_svd
from symerge_jax.notation import Array, Float, Params, TaskVectors
from symerge_jax.trees import add_up


def iso_c(
    task_vectors: TaskVectors,
    *,
    leaves: Any | None = None,
    fuse_qkv: bool = False,
    conv_as_matrix: bool = False,
) -> Params:
    """Returns τ* = σ̄ · polar(Σ_k τ_k) of matrices, σ̄ the mean of all singular values of the sum.

    Streams: a leaf's result depends on it alone, or on its query, key and value with `fuse_qkv`.
    Directions that the sum lacks (its smallest singular value below 1e-6 of the largest, as for
    low-rank fine-tuning) are arbitrary yet weigh σ̄ too: a `RankWarning` says so.

    Args:
        task_vectors: τ, leaves [task, ...], floating.
        leaves: facts about the leaves; see `tsv_m`.
        fuse_qkv: see `tsv_m`.
        conv_as_matrix: see `tsv_m`.

    Returns:
        Leaves [...] of the same dtypes.

    Raises:
        BadInput: `fuse_qkv` without all three parts of a group.
    """
    return over_matrices(
        _iso_c, task_vectors, leaves=leaves, fuse_qkv=fuse_qkv, conv_as_matrix=conv_as_matrix
    )


def _iso_c(tau: Float[Array, "task out in"]) -> tuple[Float[Array, "out in"], Array]:
    factor, sigma = polar(add_up(tau))
    return sigma.mean() * factor, sigma[-1] / sigma[0]


def iso_cts(
    task_vectors: TaskVectors,
    *,
    common_fraction: float = 0.8,
    leaves: Any | None = None,
    fuse_qkv: bool = False,
    conv_as_matrix: bool = False,
) -> Params:
    """Returns τ* = σ̄ · Q_U Q_V of matrices: common directions of the sum and some of each task.

    Q_U = polar([R₁ … R_K, C]) where C are the leading left singular vectors of Σ_k τ_k and R_k
    those of task k's residual (I − C Cᵀ) τ_k; Q_V likewise on the right; σ̄ is the mean of the
    singular values that go with them. Unlike Iso-C it tells rows [out] from columns [in]. Streams
    and warns as `iso_c` does.

    Args:
        task_vectors: τ, leaves [task, ...], floating.
        common_fraction: part of the r = min(m, n) directions that are common, in (0, 1]; the rest
            is shared out to the tasks in whole numbers. With 1 it is Iso-C.
        leaves: facts about the leaves; see `tsv_m`.
        fuse_qkv: see `tsv_m`.
        conv_as_matrix: see `tsv_m`.

    Returns:
        Leaves [...] of the same dtypes.

    Raises:
        BadInput: a fraction outside (0, 1]; `fuse_qkv` without all three parts of a group.
    """
    check_fraction(common_fraction, name="common_fraction", method="iso_cts")
    return over_matrices(
        _iso_cts,
        task_vectors,
        leaves=leaves,
        fuse_qkv=fuse_qkv,
        conv_as_matrix=conv_as_matrix,
        fraction=common_fraction,
    )


def split_rank(rank: int, tasks: int, common_fraction: float) -> tuple[int, int]:
    """Returns how many of `rank` directions are common, and how many each task has.

    The tasks' share is rounded, half to even, so that the common ones may be fewer than asked for.
    """
    own = round((rank - int(rank * common_fraction)) / tasks)
    own = min(own, rank // tasks)
    return rank - tasks * own, own


def _iso_cts(
    tau: Float[Array, "task out in"], *, fraction: float
) -> tuple[Float[Array, "out in"], Array]:
    tasks, m, n = tau.shape
    common, own = split_rank(min(m, n), tasks, fraction)
    if own == 0:
        return _iso_c(tau)
    u, sigma, vt = thin_svd(add_up(tau))
    shared, others = u[:, :common], u[:, common:]

    def residual(one: Array) -> tuple[Array, Array, Array]:
        if m <= n:  # `others` spans all that is orthogonal to `shared`
            left, values, right = leading(product(others.T, one), own)
            return product(others, left), values, right
        left, values, right = leading(one - product(shared, product(shared.T, one)), own)
        return left - product(shared, product(shared.T, left)), values, right

    left, values, right = jax.lax.map(residual, tau)
    q_own, own_values = polar(left.transpose(1, 0, 2).reshape(m, tasks * own))
    q_left = jnp.concatenate([q_own, shared], axis=1)
    rows = jnp.concatenate([right.reshape(tasks * own, n), vt[:common]])
    q_right, right_values = polar(rows)
    mean = (values.sum() + sigma[:common].sum()) / min(m, n)
    ratio = jnp.minimum(own_values[-1] / own_values[0], right_values[-1] / right_values[0])
    ratio = jnp.minimum(ratio, sigma[common - 1] / sigma[0] if common else ratio)
    return mean * product(q_left, q_right), ratio
