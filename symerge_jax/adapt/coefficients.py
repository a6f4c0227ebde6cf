"""Merging coefficients: one λ per task and leaf, or one per task, and the model they make.

SyMerge (arXiv 2412.19098) and AdaMerging (Yang et al., 2024, arXiv 2310.02575):
θ = θ₀ + Σ_k clip(λ_k, 0, 1) · τ_k, with the clip in the forward pass only. λ itself is never
projected, so an entry that leaves [0, 1] has no gradient any more and moves by the optimiser's
momentum alone.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

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


class Rounded(NamedTuple):
    """A task vector's leaf in one byte per number: values · scale.

    Attributes:
        values: int8 [task, ...], from −127 to 127.
        scale: float32 [task], a step of each task's own.
    """

    values: Array
    scale: Array


STORED = ("float32", "bfloat16", "int8")


def stored(task_vectors: TaskVectors, dtype: str) -> Any:
    """Returns τ as it is kept in memory: leaves [task, ...] of a narrower type, or `Rounded`.

    Each leaf is rounded to nearest; sums stay in float32. int8 has one step per leaf and task, a
    127th of its largest entry.

    Args:
        task_vectors: τ, leaves [task, ...].
        dtype: one of `STORED`.
    """
    if dtype != "int8":
        return jax.tree.map(lambda tau: tau.astype(jnp.dtype(dtype)), task_vectors)
    return jax.tree.map(_rounded, task_vectors)


def _rounded(tau: Any) -> Rounded:
    array = np if isinstance(tau, np.ndarray) else jnp
    tau = tau.astype("float32")
    scale = abs(tau).reshape(len(tau), -1).max(axis=1) / np.float32(127)
    step = array.where(scale > 0, scale, array.ones_like(scale))
    values = array.round(tau / step.reshape(-1, *(1,) * (tau.ndim - 1)))
    return Rounded(array.clip(values, -127, 127).astype("int8"), step)


def interpolate(pretrained: Params, task_vectors: Any, coefficients: Coefficients) -> Params:
    """Returns θ = θ₀ + Σ_k λ_k τ_k, for use inside jit, grad and vmap.

    Its reverse mode needs τ and dL/dθ and keeps nothing beside: however many tasks there are, the
    peak is one merged model and its gradient.

    Args:
        pretrained: θ₀. Leaves for which τ has None are returned as they are.
        task_vectors: τ, leaves [task, ...]; may be stored in a narrower type than λ (`stored`).
        coefficients: λ, a pytree like τ with leaves [task], or one array [task] for all leaves.

    Returns:
        Leaves [...] in the dtypes of θ₀, summed in float32 or wider. The gradient of λ_k for a
        leaf is <dL/dθ, τ_k>.
    """
    if isinstance(coefficients, Array):
        shared = coefficients
        coefficients = jax.tree.map(
            lambda _: shared, task_vectors, is_leaf=lambda x: isinstance(x, Rounded)
        )

    def leaf(theta0: Array | None, tau: Any, lam: Array | None) -> Array | None:
        if tau is None:
            return theta0
        assert theta0 is not None, "a task vector for a leaf that θ₀ lacks"
        assert lam is not None, "a task vector for a leaf that λ lacks"
        return _moved(theta0, tau, lam)

    return jax.tree.map(leaf, pretrained, task_vectors, coefficients, is_leaf=lambda x: x is None)


@jax.jit
def _moved(theta0: Array, tau: Any, lam: Array) -> Array:
    """One leaf of θ. Jitted, as an encoder has many leaves of few shapes: each is traced once."""
    wide = trees.wide(theta0.dtype, lam.dtype)
    lam = lam.astype(wide)
    if isinstance(tau, Rounded):
        tau, lam = tau.values, lam * tau.scale.astype(wide)
    moved = _weighted_sum(tau, lam)
    return (theta0.astype(wide) + moved).astype(jnp.result_type(theta0))


@jax.custom_vjp
def _weighted_sum(tau: Array, lam: Array) -> Array:
    """Σ_k λ_k τ_k of a leaf [task, ...], in the width of λ.

    As additions, which XLA makes one pass over memory; its product of a vector and a matrix takes
    twice as long on a CPU, and rounds to TensorFloat-32 on a GPU unless told not to.
    """

    def term(k: int) -> Array:  # NumPy's way to write an index takes ten times as long to trace
        own, weight = (jax.lax.index_in_dim(x, k, keepdims=False) for x in (tau, lam))
        return weight * own.astype(lam.dtype)

    return functools.reduce(jnp.add, map(term, range(tau.shape[0])))


def _sum_forward(tau: Array, lam: Array) -> tuple[Array, tuple[Array, Array]]:
    return _weighted_sum(tau, lam), (tau, lam)


def _sum_backward(kept: tuple[Array, Array], gradient: Array) -> tuple[Any, Array]:
    tau, lam = kept
    products = tau.astype(lam.dtype) * gradient[None]
    # Row by row first: a sum over millions of numbers in one go would lose digits.
    rows = products.sum(axis=-1) if products.ndim > 1 else products
    to_lam = rows.reshape(len(lam), -1).sum(axis=1)
    if not jnp.issubdtype(tau.dtype, jnp.floating):
        return np.zeros(tau.shape, jax.dtypes.float0), to_lam
    # Nearly nobody differentiates by τ; what is not asked for is not worked out.
    scaled = lam.reshape(-1, *(1,) * gradient.ndim) * gradient[None]
    return scaled.astype(tau.dtype), to_lam


_weighted_sum.defvjp(_sum_forward, _sum_backward)


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
