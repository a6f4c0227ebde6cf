"""LiNeS: scale the merged vector up with depth, so that shallow layers move less.

Wang et al., "LiNeS: Post-training Layer Scaling Prevents Forgetting and Enhances Model Merging",
2025. https://arxiv.org/abs/2410.17146 (section 4). For any merged vector τ_M, in block d of L:

    τ*_ℓ = (α + β · d(ℓ) / (L − 1)) τ_M,ℓ,    α = ‖Σ_k τ_k‖₁ / ‖τ_M‖₁ / K,

and α alone for every leaf outside the blocks, also for those after the last one, as in the authors'
code. α is 1/K for task arithmetic; β is tuned, 0.1 to 1.0, and 0.5 here without validation data.

Departures: depths are facts given beside the leaves, where the code looks for a number in names;
one block, or a base of zeros, has β and the ratio left out.
"""

from typing import Any

import jax
import jax.numpy as jnp

from symerge_jax.errors import BadInput
from symerge_jax.merge.leaves import Leaf, OnLeaf, Passes, facts_by_path, over_leaves
from symerge_jax.merge.reductions import add_on_host, sum_entries
from symerge_jax.merge.wrapped import plan_inner
from symerge_jax.notation import Array, Float, Params, TaskVectors
from symerge_jax.trees import add_up, wide


def lines(
    task_vectors: TaskVectors,
    *,
    base: str = "task_arithmetic",
    beta: float = 0.5,
    leaves: Any | None = None,
    **options: Any,
) -> Params:
    """Returns the base's result, each leaf scaled by its depth.

    The norms in α are global: a pass over the leaves besides those of the base, see `plan`.

    Args:
        task_vectors: τ, leaves [task, ...], floating.
        base: the shared method that makes τ_M, an entry of `METHODS`.
        beta: β, what the last block gets more than the first, at least 0.
        leaves: a parallel pytree of `Leaf`, or path → `Leaf`; their `depth` is used. Without it
            no leaf is in a block and the result is α τ_M.
        options: of the base.

    Returns:
        Leaves [...] of the same dtypes.

    Raises:
        BadInput: an unknown base or option of it, a β that is not a number from 0, facts without
            any depth.
    """
    return over_leaves(plan, task_vectors, base=base, beta=beta, leaves=leaves, **options)


def plan(
    passes: Passes,
    *,
    base: str = "task_arithmetic",
    beta: float = 0.5,
    leaves: Any | None = None,
    **options: Any,
) -> OnLeaf:
    """The passes of the base, and one for the norms unless that is task arithmetic; then by leaf.

    Returns:
        (path, τ leaf [task, ...]) → τ* leaf [...]. The options are those of `lines`.
    """
    if not 0 <= beta < float("inf"):
        raise BadInput(f"lines: beta must be a number from 0, got {beta}")
    facts = _with_depths(leaves)
    merged = plan_inner(passes, base=base, method="lines", leaves=facts, options=options)
    slopes = _slopes(facts, beta)

    def norms() -> Any:
        for path, leaf in passes():
            yield _norms(leaf, merged(path, leaf))

    if base.replace("-", "_") == "task_arithmetic":  # the ratio of the norms is 1
        ratio = jnp.ones(())
    else:
        plain, ours = jnp.asarray(add_on_host(norms()))
        ratio = jnp.where(ours > 0, plain / jnp.where(ours > 0, ours, 1), 1)

    def merge(path: str, leaf: Array) -> Array:
        return _scaled(merged(path, leaf), ratio / leaf.shape[0], slopes.get(path, 0.0))

    return merge


def _with_depths(leaves: Any | None) -> dict[str, Leaf] | None:
    facts = facts_by_path(leaves)
    if facts is not None and all(leaf.depth is None for leaf in facts.values()):
        raise BadInput("lines: no leaf has a depth; give the block that each leaf belongs to")
    return facts


def _slopes(facts: dict[str, Leaf] | None, beta: float) -> dict[str, float]:
    """Path → β d / (L − 1), of the leaves in blocks."""
    depths = {path: leaf.depth for path, leaf in (facts or {}).items() if leaf.depth is not None}
    last = max(depths.values(), default=0)
    return {path: beta * depth / last for path, depth in depths.items()} if last else {}


@jax.jit
def _norms(leaf: Array, merged: Array) -> Float[Array, "two"]:
    """‖Σ_k τ_k‖₁ and ‖τ_M‖₁ of one leaf."""

    def sizes(block: Array) -> Array:
        return jnp.abs(block.astype(wide(block.dtype)))

    plain = add_up(leaf.astype(wide(leaf.dtype)))
    return jnp.stack([sum_entries(sizes, x.reshape(-1)) for x in (plain, merged)])


@jax.jit
def _scaled(merged: Array, alpha: Array, slope: Array | float) -> Array:
    dtype = wide(merged.dtype)
    factor = jnp.asarray(alpha, dtype) + jnp.asarray(slope, dtype)
    return (factor * merged.astype(dtype)).astype(merged.dtype)
