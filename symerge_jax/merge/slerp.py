"""SLERP: walk from one model to the other along a great circle, leaf by leaf.

Shoemake, "Animating Rotation with Quaternion Curves", 1985; for weights as in mergekit
(https://arxiv.org/abs/2403.13257). For the raveled weights a, b of exactly two experts, with the
angle ω between them:

    θ = [ sin((1 − t) ω) a + sin(t ω) b ] / sin ω,

and (1 − t) a + t b where |cos ω| > 0.9995. Experts of one θ₀ nearly always are that close, so the
result is the mean of the two; `variant="task_vectors"` takes the angle between τ_1 and τ_2 instead.

In terms of τ, with weights w_1, w_2 of the two: τ* = w_1 τ_1 + w_2 τ_2 + (w_1 + w_2 − 1) θ₀.
Departure: the cosine is clipped to [−1, 1].
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from symerge_jax.errors import BadInput
from symerge_jax.merge.reductions import sum_entries
from symerge_jax.notation import Array, Params, TaskVectors
from symerge_jax.trees import path_name, task_count, wide

VARIANTS = ("weights", "task_vectors")

_STRAIGHT = 0.9995  # above this cosine the arc is a line
_TINY = 1e-8  # norms below are taken as they are


def slerp(
    task_vectors: TaskVectors,
    *,
    pretrained: Any | None = None,
    t: float = 0.5,
    variant: Literal["weights", "task_vectors"] = "weights",
) -> Params:
    """Returns the point at t on the arc from the first expert to the second, less θ₀.

    Args:
        task_vectors: τ, leaves [task, ...], floating, of exactly two tasks.
        pretrained: θ₀, needed for the variant "weights": a pytree with at least these leaves.
        t: where on the arc, 0 is the first expert and 1 the second.
        variant: between what the angle is: "weights" θ₀ + τ, or "task_vectors".

    Returns:
        Leaves [...] of the same dtypes; add them with scale 1. Streams: leaves do not depend on
        each other.

    Raises:
        BadInput: not two tasks, an unknown variant, no θ₀ for the weights, a t outside [0, 1].
    """
    tasks = task_count(task_vectors)
    if tasks != 2:
        raise BadInput(f"slerp: needs exactly two experts, got {tasks}; merge more with another")
    if variant not in VARIANTS:
        raise BadInput(f"slerp: variant must be one of {', '.join(VARIANTS)}, got {variant!r}")
    if not 0 <= t <= 1:
        raise BadInput(f"slerp: t must lie in [0, 1], got {t}")
    if variant == "weights" and pretrained is None:
        raise BadInput("slerp: needs the pre-trained weights; or take variant task_vectors")
    start = {
        path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(pretrained)
    }

    def merge(path: Any, tau: Array) -> Array:
        origin = start[path_name(path)] if variant == "weights" else np.zeros_like(tau[0])
        return _between(tau, origin, np.asarray(t, np.float32))

    return jax.tree_util.tree_map_with_path(merge, task_vectors)


@jax.jit
def _between(tau: Array, origin: Array, t: Array) -> Array:
    """τ* of one leaf; all numbers of one leaf, so one sum for each of the three products."""
    dtype = wide(tau.dtype, origin.dtype)
    (first, second), origin, t = tau.astype(dtype), origin.astype(dtype), t.astype(dtype)

    def products(a: Array, b: Array, theta: Array) -> Array:
        a, b = theta + a, theta + b
        return jnp.stack([a * a, b * b, a * b])

    flat = (x.reshape(-1) for x in (first, second, origin))
    square_a, square_b, dot = sum_entries(products, *flat)
    norms = jnp.sqrt(square_a), jnp.sqrt(square_b)
    a, b = (jnp.where(norm > _TINY, norm, 1) for norm in norms)
    cosine = jnp.clip(dot / a / b, -1, 1)
    straight = jnp.abs(cosine) > _STRAIGHT
    angle = jnp.arccos(jnp.where(straight, 0, cosine))
    w1 = jnp.where(straight, 1 - t, jnp.sin((1 - t) * angle) / jnp.sin(angle))
    w2 = jnp.where(straight, t, jnp.sin(t * angle) / jnp.sin(angle))
    off = jnp.where(straight, 0, w1 + w2 - 1)
    return (w1 * first + w2 * second + off * origin).astype(tau.dtype)
