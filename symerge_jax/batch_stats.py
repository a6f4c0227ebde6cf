"""What merging does to the running statistics of batch normalisation.

SyMerge (arXiv 2412.19098) says nothing of them. They are tensors of a float state dict, so their
differences merge like weights; but scaled sums of task vectors may leave a variance below 0.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from symerge_jax.adapt.coefficients import interpolate
from symerge_jax.notation import Array, Coefficients, Params, TaskVectors
from symerge_jax.trees import path_name

VARIANCE_FLOOR = 1e-5


def merge_stats(
    pretrained: Params,
    task_vectors: TaskVectors,
    coefficients: Coefficients,
    *,
    floor: float = VARIANCE_FLOOR,
) -> Params:
    """Merges running statistics like weights: θ₀ + Σ_t λ_t τ_t, with no variance below `floor`.

    Args:
        pretrained: θ₀'s collection `batch_stats`.
        task_vectors: τ of the same leaves, [task, ...].
        coefficients: λ: leaves [task], or one array [task] for all.
        floor: least variance; scaled sums of task vectors may fall below 0.
    """
    return floor_variances(interpolate(pretrained, task_vectors, coefficients), floor=floor)


def floor_variances(stats: Params, *, floor: float = VARIANCE_FLOOR) -> Params:
    """Returns the same pytree with running variances of at least `floor`.

    Args:
        stats: `batch_stats`, or any pytree that holds it; leaves whose last key is 'var' are
            variances, all others stay.
        floor: least variance.
    """

    def leaf(path: tuple[Any, ...], value: Array) -> Array:
        if path_name(path).rpartition("/")[2] != "var":
            return value
        return jnp.maximum(value, jnp.asarray(floor, jnp.result_type(value)))

    return jax.tree_util.tree_map_with_path(leaf, stats)
