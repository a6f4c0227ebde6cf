"""Fisher merging: each parameter's mean, weighted by how much each expert's answers depend on it.

Matena and Raffel, "Merging Models with Fisher-Weighted Averaging", 2022.
https://arxiv.org/abs/2111.09832 (equation 2); the constant δ and the normalisation of the weights
as in the MergeLM code. Released code takes the square of a batch's summed gradient;
`second_moments.fisher_diagonal` takes the mean of each example's square.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from symerge_jax.errors import BadInput
from symerge_jax.merge.moments import matched_arrays
from symerge_jax.merge.reductions import rows, sum_entries
from symerge_jax.notation import Array, Float, Params, TaskVectors
from symerge_jax.trees import add_up, path_name, wide

DELTA = 1e-6  # keeps the mean defined where every F is 0


def fisher(
    task_vectors: TaskVectors,
    *,
    moments: Any,
    normalise: bool = True,
    norms: Float[Array, " task"] | None = None,
) -> Params:
    """Returns τ* = Σ_k w_k (F_k + δ) τ_k / Σ_k w_k (F_k + δ), δ = 1e-6.

    A weighted mean, so that it is the same on weights as on task vectors. Streams once `norms` is
    known; without it they are taken over all of `moments`.

    Args:
        task_vectors: τ, leaves [task, ...], floating.
        moments: F, `trees.stack` of each expert's `second_moments.fisher_diagonal`: leaves
            [task, ...], at least at every leaf of `task_vectors`.
        normalise: w_k ∝ 1 / (‖F_k‖₂ + δ), so that an expert with large gradients does not decide
            alone; else all w_k are equal.
        norms: ‖F_k‖₂ over all leaves, of `fisher_norms`; for merging leaf by leaf.

    Returns:
        Leaves [...] of the same dtypes.

    Raises:
        BadInput: statistics that are missing, not finite or of another model.
    """
    known = matched_arrays(task_vectors, moments, method="fisher")
    if norms is None:
        norms = fisher_norms(moments)
    weight = 1 / (jnp.asarray(norms) + DELTA) if normalise else jnp.ones_like(jnp.asarray(norms))
    weight = weight / weight.max()
    return jax.tree_util.tree_map_with_path(
        lambda path, tau: _weighted_mean(tau, known[path_name(path)], weight), task_vectors
    )


def fisher_norms(moments: Any) -> Float[Array, " task"]:
    """Returns ‖F_k‖₂ over all leaves of stacked Fisher diagonals [task, ...]."""
    return norms_of(jax.tree.leaves(moments))


def norms_of(leaves: Iterable[Array]) -> Float[Array, " task"]:
    """Returns ‖F_k‖₂ of Fisher diagonals [task, ...] that come one at a time."""
    found = [_norms(leaf) for leaf in leaves]
    if not found:
        raise BadInput("fisher: the statistics hold no leaf; compute them with this model")
    return _norms(jnp.stack(found, axis=1))


@jax.jit
def _norms(leaf: Array) -> Array:
    """‖·‖₂ of each row, also where its square would overflow or vanish."""
    lines = rows(leaf)
    squares = sum_entries(jnp.square, lines)
    info = jnp.finfo(squares.dtype)
    safe = (squares < info.max / 2) & (squares > info.tiny / info.eps)
    return jax.lax.cond(safe.all(), lambda: jnp.sqrt(squares), lambda: _scaled_norms(lines))


def _scaled_norms(lines: Array) -> Array:
    lines = jnp.abs(lines)
    largest = lines.max(axis=1)
    scale = jnp.where(largest > 0, largest, jnp.ones_like(largest))
    return largest * jnp.sqrt(jnp.square(lines / scale[:, None]).sum(axis=1))


@jax.jit
def _weighted_mean(tau: Array, diagonal: Array, weight: Array) -> Array:
    dtype = wide(tau.dtype)
    shape = (-1, *np.ones(tau.ndim - 1, int))
    weights = weight.astype(dtype).reshape(shape) * (diagonal.astype(dtype) + DELTA)
    return (add_up(weights * tau.astype(dtype)) / add_up(weights)).astype(tau.dtype)
