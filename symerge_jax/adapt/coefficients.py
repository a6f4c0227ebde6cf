"""Merging coefficients: one λ per task and leaf, or one per task, and the model they make.

SyMerge (arXiv 2412.19098) and AdaMerging (Yang et al., 2024, arXiv 2310.02575):
θ = θ₀ + Σ_k clip(λ_k, 0, 1) · τ_k, with the clip in the forward pass only. λ itself is never
projected, so an entry that leaves [0, 1] has no gradient any more and moves by the optimiser's
momentum alone.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from symerge_jax import trees
from symerge_jax.errors import BadInput
from symerge_jax.notation import Array, Coefficients, Float, Params, TaskVectors


def per_leaf(task_vectors: TaskVectors, value: float) -> Coefficients:
    """Returns λ = `value` for each leaf and task: leaves [task]. Kept in float32 or wider."""
    return jax.tree.map(
        lambda tau: jnp.full(tau.shape[:1], value, trees.wide(tau.dtype)), task_vectors
    )


def per_task(task_vectors: TaskVectors, value: float) -> Float[Array, " task"]:
    """Returns λ = `value` for each task: one array [task]."""
    first = jax.tree.leaves(task_vectors)[0]
    return jnp.full((trees.task_count(task_vectors),), value, trees.wide(first.dtype))


@jax.custom_vjp
def clamp(x: Array) -> Array:
    """clip(x, 0, 1), with gradient 1 on the closed interval and 0 outside.

    The bounds belong to it, as in PyTorch; JAX's own clip passes 0 or 1/2 there. A coefficient that
    starts at 0 or 1 could not move otherwise.
    """
    return jnp.clip(x, 0, 1)


def _clamp_forward(x: Array) -> tuple[Array, Array]:
    return jnp.clip(x, 0, 1), x


def _clamp_backward(x: Array, gradient: Array) -> tuple[Array]:
    inside = (x >= 0) & (x <= 1)
    return (jnp.where(inside, gradient, jnp.zeros_like(gradient)),)


clamp.defvjp(_clamp_forward, _clamp_backward)


def clamp_all(coefficients: Coefficients) -> Coefficients:
    """Applies `clamp` to each leaf."""
    return jax.tree.map(clamp, coefficients)


def interpolate(
    pretrained: Params, task_vectors: TaskVectors, coefficients: Coefficients
) -> Params:
    """Returns θ = θ₀ + Σ_k λ_k τ_k, for use inside jit, grad and vmap.

    Args:
        pretrained: θ₀. Leaves for which τ has None are returned as they are.
        task_vectors: τ, leaves [task, ...]; may be stored in a narrower dtype than λ.
        coefficients: λ, a pytree like τ with leaves [task], or one array [task] for all leaves.

    Returns:
        Leaves [...] in the dtypes of θ₀, summed in float32 or wider. The gradient of λ_k for a
        leaf is <dL/dθ, τ_k>.
    """
    if isinstance(coefficients, Array):
        shared = coefficients
        coefficients = jax.tree.map(lambda _: shared, task_vectors)

    def leaf(theta0: Array | None, tau: Array | None, lam: Array | None) -> Array | None:
        if tau is None:
            return theta0
        assert theta0 is not None, "a task vector for a leaf that θ₀ lacks"
        assert lam is not None, "a task vector for a leaf that λ lacks"
        wide = trees.wide(theta0.dtype, lam.dtype)
        # Accelerators would otherwise round τ to 10 bits (TensorFloat-32).
        moved = jnp.tensordot(lam.astype(wide), tau.astype(wide), axes=1, precision="highest")
        return (theta0.astype(wide) + moved).astype(jnp.result_type(theta0))

    return jax.tree.map(leaf, pretrained, task_vectors, coefficients, is_leaf=lambda x: x is None)


def as_matrix(coefficients: Coefficients, paths: Sequence[str]) -> Float[np.ndarray, "leaf task"]:
    """Returns λ as [leaf, task], rows in the order of `paths`.

    The order must be given: JAX sorts dictionary keys, the source checkpoint does not.

    Raises:
        BadInput: `paths` is not exactly the set of the leaves' paths.
    """
    rows = dict(zip(trees.paths(coefficients), jax.tree.leaves(coefficients), strict=True))
    if sorted(rows) != sorted(paths):
        odd = sorted(set(rows) ^ set(paths))
        raise BadInput(
            f"coefficients: expected one row for each of {len(paths)} tensors, got {len(rows)}; "
            f"first difference: {odd[0] if odd else 'a tensor named twice'}"
        )
    return np.stack([np.asarray(rows[path]) for path in paths])


def from_matrix(
    matrix: Float[Array, "leaf column"], paths: Sequence[str], like: TaskVectors
) -> Coefficients:
    """The inverse of `as_matrix`, with the structure of `like`.

    Raises:
        BadInput: the rows do not fit the leaves of `like`, or the columns its tasks.
    """
    own = trees.paths(like)
    if sorted(own) != sorted(paths) or len(matrix) != len(paths):
        raise BadInput(
            f"coefficients: got {len(matrix)} rows for {len(paths)} names, expected the "
            f"{len(own)} leaves of the task vectors"
        )
    tasks = trees.task_count(like)
    if matrix.shape[1] != tasks:
        raise BadInput(f"coefficients: got {matrix.shape[1]} columns, expected {tasks} tasks")
    rows = dict(zip(paths, matrix, strict=True))
    return jax.tree.unflatten(jax.tree.structure(like), [jnp.asarray(rows[p]) for p in own])
