"""RegMean: linear layers by least squares on the experts' own inputs, all else by the mean.

Jin et al., "Dataless Knowledge Fusion by Merging Weights of Language Models", 2023.
https://arxiv.org/abs/2212.09849 (section 3): W = (Σ_k G_k)⁻¹ Σ_k G_k W_k, G_k = X_kᵀ X_k / rows
with entries off the diagonal shrunk by a factor. Ours: a Cholesky solve in place of the inverse,
and a small multiple of the identity added to every G_k, on both sides, so that W stays a weighted
mean where inputs lack directions.

With it on both sides the formula on task vectors equals that on weights less θ₀.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from symerge_jax.errors import BadInput
from symerge_jax.merge.leaves import Orientation, facts_or_default
from symerge_jax.merge.lot import normal_equations, orientation_of
from symerge_jax.merge.moments import matched_moments
from symerge_jax.merge.spectral import mean, precise, restore
from symerge_jax.notation import Array, Float, Params, TaskVectors
from symerge_jax.trees import path_name, wide


def regmean(
    task_vectors: TaskVectors,
    *,
    moments: Any,
    leaves: Any | None = None,
    off_diagonal: float = 0.95,
    ridge: float = 1e-6,
) -> Params:
    """Returns (Σ_k G_k)⁻¹ Σ_k G_k τ_k at linear weights, the mean elsewhere.

    Convolutions, embeddings, norms and biases are averaged. Streams: leaves do not depend on each
    other. Solved in float64 (where the backend has it).

    Args:
        task_vectors: τ, leaves [task, ...], floating.
        moments: see `lot`; what it holds for norm scales and convolutions is not used.
        leaves: facts, for how matrices lie; without any, they are [out, in].
        off_diagonal: factor of the entries off the diagonal, in [0, 1]; 0.7 to 1 in the authors'
            grid, 0.95 for CLIP in FusionBench. With 0 it is a weighted mean per input feature.
        ridge: added to the diagonal of Σ_k G_k, as a part of its mean entry, in (0, 1).

    Returns:
        Leaves [...] of the same dtypes.

    Raises:
        BadInput: moments that are missing, not finite or of another model; options out of range.
    """
    if not 0 <= off_diagonal <= 1:
        raise BadInput(f"regmean: off_diagonal must lie in [0, 1], got {off_diagonal}")
    if not 0 < ridge < 1:
        raise BadInput(f"regmean: ridge must lie in (0, 1), got {ridge}")
    known = matched_moments(task_vectors, moments, method="regmean")
    facts = facts_or_default(task_vectors, leaves)

    def leaf(path: tuple[Any, ...], tau: Array) -> Array:
        name = path_name(path)
        moment = known.get(name)
        if moment is None or moment.mean.ndim == 2 or tau.ndim != 3:
            return mean(tau)
        orientation = orientation_of(name, facts[name].matrix, tau, moment, method="regmean")
        return _solve(
            tau, moment.mean, orientation=orientation, off_diagonal=off_diagonal, ridge=ridge
        )

    return jax.tree_util.tree_map_with_path(leaf, task_vectors)


@partial(jax.jit, static_argnames=("orientation", "off_diagonal", "ridge"))
def _solve(
    tau: Float[Array, "task ..."],
    gram: Float[Array, "task in in"],
    *,
    orientation: Orientation,
    off_diagonal: float,
    ridge: float,
) -> Array:
    with precise() as dtype:
        tasks, features, _ = gram.shape
        identity = jnp.eye(features, dtype=dtype)
        shrunk = gram.astype(dtype) * (off_diagonal + (1 - off_diagonal) * identity)[None]
        trace = jnp.trace(shrunk.sum(axis=0))
        # Without any input all tasks weigh the same.
        added = jnp.where(trace > 0, ridge * trace / features, jnp.ones_like(trace)) / tasks
        shrunk += added * identity[None]
        weight = jnp.ones(tasks, dtype)
        total, right = normal_equations(tau, shrunk, weight, orientation, dtype)
        factor = jax.scipy.linalg.cho_factor(total)
        solved = jax.scipy.linalg.cho_solve(factor, right.T).T.astype(wide(tau.dtype))
    return restore(solved, orientation, tau.shape[1:]).astype(tau.dtype)
