"""Shared pieces of merging methods: which entries of a task vector stay."""

import jax.numpy as jnp
import numpy as np

from symerge_jax.errors import BadInput
from symerge_jax.merge.leaves import Passes
from symerge_jax.merge.quantiles import smallest
from symerge_jax.notation import Array, Float


def check_fraction(value: float, *, name: str, method: str) -> None:
    """Raises `BadInput` unless `value` lies in (0, 1]."""
    if not 0 < value <= 1:
        hint = f"; {value / 100:g} for {value:g} percent" if 1 < value <= 100 else ""
        raise BadInput(f"{method}: {name} must lie in (0, 1], got {value}{hint}")


def trim_thresholds(
    passes: Passes, density: float, *, extra_zeros: int = 0
) -> Float[Array, " task"]:
    """Returns the magnitude that an entry of each task must reach to stay.

    As in the reference code it is the j-th smallest of all P magnitudes, j = P − ⌊P · density⌋
    counted from 1, so ⌊P · density⌋ + 1 entries stay where no two are equal. With density 1
    nothing is trimmed.

    Args:
        passes: over the task vectors, leaves [task, ...].
        density: fraction of the P entries to keep, in (0, 1].
        extra_zeros: zeros that count among the P entries without being stored. The vector of an
            open_clip checkpoint holds 25.6 million of them (ViT-B/32, left-overs of the text
            tower).
    """
    (thresholds,) = smallest(
        passes, lambda total: [max(1, total - int(total * density))], extra_zeros=extra_zeros
    )
    return thresholds


def trim(tau: Array, thresholds: Float[Array, " task"]) -> list[Array]:
    """Returns each task's [...] in the thresholds' dtype, entries below its threshold zeroed.

    A list, for XLA makes one loop of what follows where it would write out an array [task, ...].

    Args:
        tau: one leaf [task, ...].
        thresholds: magnitudes to reach; entries equal to it stay.
    """
    wide = [tau[k].astype(thresholds.dtype) for k in range(tau.shape[0])]
    return [jnp.where(jnp.abs(x) >= thresholds[k], x, 0) for k, x in enumerate(wide)]


def per_task(value: object, tasks: int, *, name: str, method: str) -> Float[Array, " task"]:
    """Returns an option given as one number or as one per task, as [task].

    Raises:
        BadInput: another number of values than tasks, or one that is not finite.
    """
    given = np.asarray(value, np.float64)
    if given.ndim > 1 or given.size not in (1, tasks):
        raise BadInput(
            f"{method}: {name} must be one number or one per task, {tasks}, got {given.size}"
        )
    if not np.isfinite(given).all():
        raise BadInput(f"{method}: {name} must be finite, got {given.tolist()}")
    return np.broadcast_to(given.ravel(), (tasks,)).astype(np.float64)
