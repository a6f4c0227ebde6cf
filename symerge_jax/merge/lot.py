"""LOT: the task vector of each layer that comes closest to what every expert computes there.

"LOT Merging" (layer-wise optimal task vectors): for a linear layer Y = X W it solves

    min_T Σ_k ‖X_k (W₀ + T) − X_k (W₀ + τ_k)‖²   ⇒   T = (Σ_k G_k)^† Σ_k G_k τ_k,  G_k = X_kᵀ X_k,

where X_k are the inputs of that layer when expert k runs on a few unlabelled examples of its own.
No code was released. Our choices: eigenvalues up to 1e-6 of the largest count as zero in the
pseudo-inverse; embeddings are additive parameters, hence averaged; scalars (a logit scale) stay as
they were. Directions that no input has stay as they were too.

The scale is applied outside: 1.2 (ViT-B/32) and 1.5 (ViT-L/14) in the paper, 1 untuned.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from symerge_jax.errors import BadInput
from symerge_jax.merge.leaves import Orientation, facts_or_default
from symerge_jax.merge.moments import matched_moments
from symerge_jax.merge.spectral import canonical, mean, precise, restore
from symerge_jax.notation import Array, Float, Params, TaskVectors
from symerge_jax.second_moments import Moment
from symerge_jax.trees import add_up, path_name, wide


def lot(
    task_vectors: TaskVectors,
    *,
    moments: Any,
    leaves: Any | None = None,
    rcond: float = 1e-6,
    normalise_rows: bool = False,
) -> Params:
    """Returns the minimiser T of linear weights and norm scales; the mean of all other leaves.

    Formulas are on task vectors and do not change when all weights shift, unless the inputs lack
    directions: there θ₀ stays. Streams: leaves do not depend on each other. The pseudo-inverse is
    taken in float64 (where the backend has it): in float32 the zero eigenvalues of few rows lie as
    high as small true ones.

    Args:
        task_vectors: τ, leaves [task, ...], floating.
        moments: of the inputs of each expert's layers on its own examples, `trees.stack` of what
            `second_moments.gram_matrices` returns: `Moment` with `mean` [task, in, in] at linear
            weights (convolutions: `in` runs over channel, row, column), [task, d] at norm scales,
            and `rows` [task]; None elsewhere.
        leaves: facts, for how matrices lie; without any, they are [out, in].
        rcond: eigenvalues of Σ_k G_k up to this part of the largest count as zero, in [0, 1).
        normalise_rows: whether all tasks weigh the same however many rows they have (longer texts
            have more); the paper's sums do not.

    Returns:
        Leaves [...] of the same dtypes.

    Raises:
        BadInput: moments that are missing, not finite or of another model; `rcond` out of range.
    """
    if not 0 <= rcond < 1:
        raise BadInput(f"lot: rcond must lie in [0, 1), got {rcond}")
    known = matched_moments(task_vectors, moments, method="lot")
    facts = facts_or_default(task_vectors, leaves)

    def leaf(path: tuple[Any, ...], tau: Array) -> Array:
        name = path_name(path)
        moment = known.get(name)
        if tau.ndim == 1:
            return jnp.zeros_like(tau[0])
        if moment is None:
            return mean(tau)
        weight = jnp.ones_like(moment.rows) if normalise_rows else moment.rows
        weight = weight / weight.max()
        if moment.mean.ndim == 2:
            return _norm_scale(tau, moment.mean, weight)
        orientation = orientation_of(name, facts[name].matrix, tau, moment, method="lot")
        return _linear(tau, moment.mean, weight, orientation=orientation, rcond=rcond)

    return jax.tree_util.tree_map_with_path(leaf, task_vectors)


def orientation_of(
    path: str, orientation: Orientation | None, tau: Array, moment: Moment, *, method: str
) -> Orientation:
    """Returns how a linear weight lies, checked against its Gram matrix.

    Raises:
        BadInput: the facts say that the leaf is no matrix, or `in` has another length.
    """
    if orientation is None:
        raise BadInput(
            f"{method}: {path} has a Gram matrix, but the facts about leaves do not say how the "
            "matrix lies; leave one of them out"
        )
    features = jax.eval_shape(partial(canonical, orientation=orientation), tau).shape[2]
    if moment.mean.shape[1:] != (features, features):
        raise BadInput(
            f"{method}: the Gram matrix of {path} has shape {moment.mean.shape[1:]}, expected "
            f"{(features, features)}; compute the statistics with this model"
        )
    return orientation


@jax.jit
def _norm_scale(tau: Array, second: Array, weight: Array) -> Array:
    """Σ_k Σ_x x² τ_k / Σ_k Σ_x x², the mean where no input has the feature."""
    dtype = wide(tau.dtype)
    weighted = weight.astype(dtype)[:, None] * second.astype(dtype)
    total = add_up(weighted)
    seen = total > 0
    optimal = add_up(weighted * tau.astype(dtype)) / jnp.where(seen, total, jnp.ones_like(total))
    return jnp.where(seen, optimal, mean(tau).astype(dtype)).astype(tau.dtype)


@partial(jax.jit, static_argnames=("orientation", "rcond"))
def _linear(
    tau: Float[Array, "task ..."],
    gram: Float[Array, "task in in"],
    weight: Float[Array, " task"],
    *,
    orientation: Orientation,
    rcond: float,
) -> Array:
    with precise() as dtype:
        total, right = normal_equations(tau, gram, weight, orientation, dtype)
        values, vectors = jnp.linalg.eigh(total, symmetrize_input=False)
        keep = (values > rcond * values[-1]) & (values[-1] > 0)
        inverse = jnp.where(keep, 1 / jnp.where(keep, values, jnp.ones_like(values)), 0 * values)
        solved = (right @ vectors * inverse[None]) @ vectors.T
        solved = solved.astype(wide(tau.dtype))
    return restore(solved, orientation, tau.shape[1:]).astype(tau.dtype)


def normal_equations(
    tau: Float[Array, "task ..."],
    gram: Float[Array, "task in in"],
    weight: Float[Array, " task"],
    orientation: Orientation,
    dtype: Any,
) -> tuple[Float[Array, "in in"], Float[Array, "out in"]]:
    """Returns Σ_k w_k G_k and Σ_k w_k τ_k G_k of task vectors [out, in], one task at a time."""
    matrices = canonical(tau, orientation)
    total, right = 0, 0
    for k in range(tau.shape[0]):
        own = weight[k].astype(dtype) * gram[k].astype(dtype)
        total = own if k == 0 else total + own
        product = jnp.matmul(matrices[k].astype(dtype), own, precision="highest")
        right = product if k == 0 else right + product
    return total, right  # pyright: ignore[reportReturnType]  (there is a first task)
