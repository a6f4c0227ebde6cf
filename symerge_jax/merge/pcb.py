"""PCB-Merging: weigh each entry by its rank in its own task and by its agreement with the others.

Du et al., "Parameter Competition Balancing for Model Merging", 2024.
https://arxiv.org/abs/2410.02396 (section 3). Over the raveled encoder, per task k:

    a_k = |τ_k| clipped to its quantiles q and 1 − q,    n_k = a_k rescaled to [0, 1],
    C_k = exp(K n_k²) ⊙ B_k,    w_k = C_k without its lower 1 − r, rescaled to [0, 1],
    τ* = Σ_k λ_k sgn(τ_k) a_k w_k / Σ_k w_k.

The authors released three forms of the agreement B_k, `variant` chooses: "vision", the script of
their image tables, tanh(τ_k Σ_j sgn(τ_j) n_j); "standalone", the single file and the language code,
tanh(τ_k Σ_j τ_j); "evolution", the search over λ, Σ_j tanh(sgn(τ_k τ_j) n_k n_j).

Departures: exp(K(n² − 1)) for exp(K n²), the same after rescaling and finite for any K; a constant
row rescales to 0 where the code divides by zero; a common λ stays outside as the scale (1.2 in the
vision script). The single file uses r = 0.1, q = 0.0001 and no λ, for every variant pass your own.
"""

import math
from collections.abc import Sequence
from functools import partial, reduce
from typing import Literal

import jax
import jax.numpy as jnp

from symerge_jax.errors import BadInput
from symerge_jax.merge.leaves import OnLeaf, Passes, over_leaves
from symerge_jax.merge.quantiles import smallest
from symerge_jax.merge.sparsify import check_fraction, per_task
from symerge_jax.notation import Array, Float, Params, TaskVectors

VARIANTS = ("vision", "standalone", "evolution")
Variant = Literal["vision", "standalone", "evolution"]
Row = Float[Array, " task"]


def pcb(
    task_vectors: TaskVectors,
    *,
    variant: Variant = "vision",
    density: float = 0.05,
    clip_quantile: float = 0.01,
    coefficients: float | Sequence[float] | Array = 1.0,
    quantile_extra_zeros: int = 0,
) -> Params:
    """Returns the balanced mean of the task vectors.

    Its quantiles are global: five passes over the leaves, see `plan`.

    Args:
        task_vectors: τ, leaves [task, ...], floating.
        variant: "vision", "standalone" or "evolution": the form of the agreement B_k.
        density: r, the fraction of entries whose score C_k counts, in (0, 1].
        clip_quantile: q, the fraction of magnitudes clipped at each end, in [0, 0.5).
        coefficients: λ_k, one number or one per task.
        quantile_extra_zeros: zeros that count in all quantiles without being stored.

    Returns:
        Leaves [...] of the same dtypes.

    Raises:
        BadInput: an unknown variant, a fraction outside its range, coefficients of another length.
    """
    return over_leaves(
        plan,
        task_vectors,
        variant=variant,
        density=density,
        clip_quantile=clip_quantile,
        coefficients=coefficients,
        quantile_extra_zeros=quantile_extra_zeros,
    )


def plan(
    passes: Passes,
    *,
    variant: str = "vision",
    density: float = 0.05,
    clip_quantile: float = 0.01,
    coefficients: float | Sequence[float] | Array = 1.0,
    quantile_extra_zeros: int = 0,
) -> OnLeaf:
    """Two passes for the quantiles of |τ|, two for those of the scores; then leaf by leaf.

    Returns:
        (path, τ leaf [task, ...]) → τ* leaf [...]. The options are those of `pcb`.
    """
    check_fraction(density, name="density", method="pcb")
    if variant not in VARIANTS:
        raise BadInput(f"pcb: variant must be one of {', '.join(VARIANTS)}, got {variant!r}")
    if not 0 <= clip_quantile < 0.5:
        raise BadInput(f"pcb: clip_quantile must lie in [0, 0.5), got {clip_quantile}")

    def ends(total: int) -> list[int]:  # ranks from 1; the code's indices are from 0
        last = max(0, math.floor(total * (1 - clip_quantile) - 1))
        return [int(total * clip_quantile) + 1, last + 1]

    def top(total: int) -> list[int]:
        return [min(total, int(total * (1 - density)) + 1), total]

    lower, upper = map(jnp.asarray, smallest(passes, ends, extra_zeros=quantile_extra_zeros))
    lam = per_task(coefficients, len(lower), name="coefficients", method="pcb")
    score = partial(_scores, lower=lower, upper=upper, variant=variant)
    least, most = map(
        jnp.asarray,
        smallest(passes, top, values=score, signed=True, extra_zeros=quantile_extra_zeros),
    )

    def merge(path: str, leaf: Array) -> Array:
        del path
        return _balance(leaf, score(leaf), lower, upper, least, most, lam.astype(lower.dtype))

    return merge


def _rescaled(x: Array, low: Array, high: Array) -> Array:
    """Maps low..high to 0..1, and everything to 0 where that is one point."""
    span = high - low
    return jnp.where(span > 0, (x - low) / jnp.where(span > 0, span, 1), 0)


@partial(jax.jit, static_argnames="variant")
def _scores(leaf: Array, *, lower: Row, upper: Row, variant: str) -> Array:
    """C_k of one leaf, [task, ...]; a task at a time, since exp and tanh are slow to compile."""
    tasks = range(leaf.shape[0])
    tau = leaf.astype(lower.dtype)

    def normalised(tau: Array, low: Array, high: Array) -> Array:
        return _rescaled(jnp.clip(jnp.abs(tau), low, high), low, high)  # n_k

    signed = [jnp.sign(tau[k]) * normalised(tau[k], lower[k], upper[k]) for k in tasks]
    common = reduce(jnp.add, signed if variant == "vision" else [tau[k] for k in tasks])
    common = jax.lax.optimization_barrier(common)

    def score(one: tuple[Array, Array, Array]) -> Array:
        tau, low, high = one
        n = normalised(tau, low, high)
        if variant == "evolution":
            agreement = reduce(jnp.add, [jnp.tanh(jnp.sign(tau) * n * other) for other in signed])
        else:
            agreement = jnp.tanh(tau * common)
        return jnp.exp(len(tasks) * (n * n - 1)) * agreement

    # The quantile and the weights must see the same bits, so nothing may be fused across here.
    return jax.lax.optimization_barrier(jax.lax.map(score, (tau, lower, upper)))


@jax.jit
def _balance(
    leaf: Array, scores: Array, lower: Row, upper: Row, least: Row, most: Row, lam: Row
) -> Array:
    total = weights = jnp.zeros(leaf.shape[1:], scores.dtype)
    for k in range(leaf.shape[0]):
        tau = leaf[k].astype(scores.dtype)
        w = _rescaled(jnp.maximum(scores[k], least[k]), least[k], most[k])
        clipped = jnp.sign(tau) * jnp.clip(jnp.abs(tau), lower[k], upper[k])
        total, weights = total + lam[k] * clipped * w, weights + w
    return (total / jnp.maximum(weights, 1e-12)).astype(leaf.dtype)
