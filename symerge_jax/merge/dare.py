"""DARE: drop entries of the task vectors at random, rescale the rest, then merge as usual.

Yu et al., "Language Models are Super Mario: Absorbing Abilities from Homologous Models as a Free
Lunch", 2024. https://arxiv.org/abs/2311.03099 (equation 1). Each entry stays with probability
1 − p and is multiplied by 1 / (1 − p), so that its expectation is unchanged; `density` is 1 − p.

The key of a leaf's task is made of the seed, the leaf's path and the task's place, so the result
does not depend on the order of leaves or on which of them are merged together. The paper drops
nine entries of ten from language models; one of two is the usual default for image encoders.

The probability is a multiple of 1 / 65536, the nearest to `density`, and the factor is its inverse.
"""

import zlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.random import threefry_2x32

from symerge_jax.errors import BadInput
from symerge_jax.merge.leaves import OnLeaf, Passes, facts_by_path, over_leaves
from symerge_jax.merge.sparsify import check_fraction
from symerge_jax.merge.wrapped import plan_inner
from symerge_jax.notation import Array, Params, TaskVectors
from symerge_jax.trees import wide

_DRAWS = 1 << 16


def dare(
    task_vectors: TaskVectors,
    *,
    density: float = 0.5,
    base: str = "task_arithmetic",
    seed: int = 0,
    leaves: Any | None = None,
    **options: Any,
) -> Params:
    """Returns the base's merge of the thinned task vectors.

    Args:
        task_vectors: τ, leaves [task, ...], floating.
        density: probability 1 − p with which an entry stays, in (0, 1].
        base: the shared method that merges, an entry of `METHODS`.
        seed: of the draws, from 0 to 2³² − 1; the same seed gives the same result.
        leaves: facts about the leaves, for a base that takes some.
        options: of the base.

    Returns:
        Leaves [...] of the same dtypes.

    Raises:
        BadInput: a density outside (0, 1], a seed out of range, an unknown base or option of it.
    """
    return over_leaves(
        plan, task_vectors, density=density, base=base, seed=seed, leaves=leaves, **options
    )


def plan(
    passes: Passes,
    *,
    density: float = 0.5,
    base: str = "task_arithmetic",
    seed: int = 0,
    leaves: Any | None = None,
    **options: Any,
) -> OnLeaf:
    """The passes of the base, none for task arithmetic; then leaf by leaf.

    Returns:
        (path, τ leaf [task, ...]) → τ* leaf [...]. The options are those of `dare`.
    """
    check_fraction(density, name="density", method="dare")
    if not 0 <= seed < 1 << 32:
        raise BadInput(f"dare: seed must lie between 0 and {(1 << 32) - 1}, got {seed}")
    key = jax.random.key(seed, impl="threefry2x32")

    def thin(path: str, leaf: Array) -> Array:
        place = jax.random.fold_in(key, zlib.crc32(path.encode()))
        return _thinned(leaf, place, density=float(density))

    def thinned() -> Iterator[tuple[str, Array]]:
        for path, leaf in passes():
            yield path, thin(path, leaf)

    inner = plan_inner(
        thinned, base=base, method="dare", leaves=facts_by_path(leaves), options=options
    )
    return lambda path, leaf: inner(path, thin(path, leaf))


@partial(jax.jit, static_argnames="density")
def _thinned(leaf: Array, key: Array, *, density: float) -> Array:
    stay = max(1, round(density * _DRAWS))

    def one(k: int) -> Array:
        draws = _draws(jax.random.fold_in(key, k), leaf[k].size).reshape(leaf.shape[1:])
        tau = leaf[k].astype(wide(leaf.dtype))
        kept = jnp.where(draws < stay, tau * (_DRAWS / stay), jnp.zeros_like(tau))
        return kept.astype(leaf.dtype)

    return jnp.stack([one(k) for k in range(leaf.shape[0])])


def _draws(key: Array, count: int) -> Array:
    """Returns random whole numbers below 65536, int32 [count].

    All 64 bits of every evaluation of the generator are used, of which `jax.random` uses 32: four
    draws in place of one.
    """
    words = threefry_2x32(jax.random.key_data(key), jnp.arange(2 * -(-count // 4), dtype="uint32"))
    return jax.lax.bitcast_convert_type(words, jnp.uint16).reshape(-1)[:count].astype(jnp.int32)
