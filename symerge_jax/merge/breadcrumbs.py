"""Model Breadcrumbs: drop each row's outliers, keep the next largest entries, add up the tasks.

Davari & Belilovsky, "Model Breadcrumbs: Scaling Multi-Task Model Merging with Sparse Masks", 2024.
https://arxiv.org/abs/2312.06795 (section 3). Of a row of n entries, by magnitude: the ⌊n γ⌋
largest become 0, the ⌊n β⌋ next ones stay, the rest becomes 0.

As the authors' code the rows are those of the torch layout, so along `in` of a matrix [out, in]
whatever axis that is here, and the whole of a vector; the paper speaks of whole layers,
`variant="tensor"`. Among equal magnitudes the earlier entries count as the larger. A convolution's
rows are as short as its kernel is wide: ⌊n β⌋ is then 0 and nothing of it stays.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from symerge_jax.errors import BadInput
from symerge_jax.merge.leaves import Leaf, facts_or_default
from symerge_jax.merge.sparsify import check_fraction
from symerge_jax.merge.spectral import by_path, each_unit
from symerge_jax.notation import Array, Bool, Params, TaskVectors
from symerge_jax.trees import add_up, wide

VARIANTS = ("rows", "tensor")

_LANES = 1 << 12  # numbers added at once when counting
_AT_ONCE = 1 << 16  # numbers of one task, on the host

# Where the last axis of the torch layout lies in a leaf without its task axis.
_ROW_AXIS = {"out_in": -1, "in_out": 0, "conv_oihw": -1, "conv_hwio": 1, None: -1}


def breadcrumbs(
    task_vectors: TaskVectors,
    *,
    keep: float = 0.15,
    remove: float = 0.006,
    variant: Literal["rows", "tensor"] = "rows",
    leaves: Any | None = None,
) -> Params:
    """Returns the sum of the masked task vectors.

    Args:
        task_vectors: τ, leaves [task, ...], floating.
        keep: β, the fraction of a row to keep, in (0, 1].
        remove: γ, the fraction of a row to drop first, its largest, in [0, 1).
        variant: "rows" or "tensor": the entries that compete.
        leaves: a parallel pytree of `Leaf`, or path → `Leaf`; their `matrix` says which axis is a
            row. Without it that is the last.

    Returns:
        Leaves [...] of the same dtypes; scalars are only added up. Streams: leaves do not depend
        on each other.

    Raises:
        BadInput: a fraction outside its range, an unknown variant.
    """
    check_fraction(keep, name="keep", method="breadcrumbs")
    if not 0 <= remove < 1:
        raise BadInput(f"breadcrumbs: remove must lie in [0, 1), got {remove}")
    if variant not in VARIANTS:
        raise BadInput(
            f"breadcrumbs: variant must be one of {', '.join(VARIANTS)}, got {variant!r}"
        )
    facts = facts_or_default(task_vectors, leaves)

    def merge(item: tuple[str, Array]) -> Array:
        path, tau = item
        if tau.ndim == 1:
            return add_up(tau)  # scalars
        if tau.size == 0:
            return tau[0]
        axis = _row_axis(facts[path], tau.ndim - 1) if variant == "rows" else None
        on_host = jax.default_backend() == "cpu" and not isinstance(tau, Tracer)
        run = _masked_sum_on_host if on_host else _masked_sum
        return run(tau, axis=axis, keep=float(keep), remove=float(remove))

    taus = by_path(task_vectors)
    merged = [result for _, result in each_unit(merge, list(taus.items()), taus)]
    return jax.tree.structure(task_vectors).unflatten(merged)


def _row_axis(fact: Leaf, ndim: int) -> int:
    return _ROW_AXIS[fact.matrix] % ndim


def _masked_sum_on_host(tau: Array, *, axis: int | None, keep: float, remove: float) -> Array:
    """The same as `_masked_sum` by NumPy, whose partition takes a tenth of the time of XLA's loops.

    A few rows at a time, all tasks of them: they stay in the cache.
    """
    leaf = np.asarray(tau)
    shape = leaf.shape[1:]
    if axis is None:
        lines, merged = leaf.reshape(len(leaf), 1, -1), np.zeros((1, leaf[0].size), leaf.dtype)
    else:
        lines = np.moveaxis(leaf, 1 + axis, -1)
        merged = np.zeros(lines.shape[1:], leaf.dtype)
        lines, merged = lines.reshape(len(leaf), -1, shape[axis]), merged.reshape(-1, shape[axis])
    ranks = _ranks(merged.shape[-1], keep, remove)
    step = max(1, _AT_ONCE // merged.shape[-1])

    for start in range(0, len(merged), step):
        part = merged[start : start + step]
        for rows in lines[:, start : start + step]:
            part += _masked_rows(np.ascontiguousarray(rows), *ranks)
    if axis is not None:
        rest = [n for i, n in enumerate(shape) if i != axis % len(shape)]
        merged = np.moveaxis(merged.reshape(*rest, shape[axis]), -1, axis)
    return jnp.asarray(merged.reshape(shape))


def _ranks(count: int, keep: float, remove: float) -> tuple[int, int]:
    """Returns how many of a line are outliers, and how many are outliers or stay."""
    first = int(count * remove)
    return first, min(count, first + int(count * keep))


def _masked_rows(rows: np.ndarray, first: int, last: int) -> np.ndarray:
    """Returns rows [row, n] with what is not between the ranks set to 0."""
    size = np.abs(rows.astype(wide(rows.dtype), copy=False))
    n = size.shape[1]
    if last == 0:
        return np.zeros_like(rows)
    upper = np.partition(size, n - last, axis=1)[:, n - last :]
    kept = _among(size, upper.min(axis=1, keepdims=True), last)
    if first:
        edge = np.partition(upper, last - first, axis=1)[:, last - first, None]
        kept &= ~_among(size, edge, first)
    return np.where(kept, rows, np.zeros((), rows.dtype))


def _among(size: np.ndarray, edge: np.ndarray, rank: int) -> np.ndarray:
    """Which entries are the `rank` largest of their row, `edge` [row, 1] the least of them."""
    found = size >= edge
    for row in np.flatnonzero(found.sum(axis=1) > rank):  # several share the edge: earlier ones
        equal = np.flatnonzero(size[row] == edge[row])
        over = np.count_nonzero(found[row]) - rank
        found[row, equal[len(equal) - over :]] = False
    return found


@partial(jax.jit, static_argnames=("axis", "keep", "remove"))
def _masked_sum(tau: Array, *, axis: int | None, keep: float, remove: float) -> Array:
    """Σ_k of one leaf; `axis` of one task's entries compete, or all of them."""

    def masked(leaf: Array) -> Array:
        lines = leaf.reshape(1, -1) if axis is None else jnp.moveaxis(leaf, axis, -1)
        outliers, most = _largest(lines, _ranks(lines.shape[-1], keep, remove))
        kept = most & ~outliers
        lines = jnp.where(kept, lines, jnp.zeros_like(lines))
        return lines.reshape(leaf.shape) if axis is None else jnp.moveaxis(lines, -1, axis)

    return add_up(jax.lax.map(masked, tau))


def _largest(lines: Array, ranks: tuple[int, ...]) -> Bool[Array, "rank ... n"]:
    """Which entries are among the so many largest magnitudes of their line, earlier ones first.

    Bit by bit: first the magnitude of that rank, then, if several entries share it, up to which
    of them; for all ranks in the same passes. XLA's own `top_k` and `sort` take five times as long
    for ranks like these.
    """
    size = jnp.abs(lines.astype(wide(lines.dtype)))
    bits = 8 * size.dtype.itemsize
    keys = size.view(f"int{bits}")  # of the same order, for there is no sign
    grid, places = _grid(keys.reshape(-1, keys.shape[-1]))
    rank = jnp.asarray(ranks, jnp.int32)[:, None, None]
    shape = (len(ranks), grid.shape[1], 1)

    def bit(i: Array) -> Array:
        return jnp.left_shift(jnp.ones((), grid.dtype), i.astype(grid.dtype))

    def raise_to(i: Array, low: Array) -> Array:
        pivot = low + bit(bits - 2 - i)
        return jnp.where(_count(lambda key, _: key >= pivot, grid, places) >= rank, pivot, low)

    edge = jax.lax.fori_loop(0, bits - 1, raise_to, jnp.zeros(shape, grid.dtype))
    above = _count(lambda key, _: key > edge, grid, places)
    equal = _count(lambda key, _: key == edge, grid, places)
    width = keys.shape[-1].bit_length()

    def walk_to(i: Array, before: Array) -> Array:
        pivot = before + bit(width - 1 - i).astype(before.dtype)
        passed = _count(lambda key, at: (key == edge) & (at < pivot), grid, places)
        return jnp.where(above + passed <= rank, pivot, before)

    def among_equals() -> Array:
        return jax.lax.fori_loop(0, width, walk_to, jnp.zeros(shape, jnp.int32))

    everything = jnp.full(shape, keys.shape[-1], jnp.int32)
    shared = ((above + equal > rank) & (edge > 0)).any()  # zeros may stay: they are zeros
    before = jax.lax.cond(shared, among_equals, lambda: everything)
    at = jnp.arange(keys.shape[-1], dtype=jnp.int32)[None, None]
    flat = keys.reshape(1, grid.shape[1], -1)
    found = (flat > edge) | ((flat == edge) & (at < before))
    return (found & (rank > 0)).reshape(len(ranks), *lines.shape)


def _grid(keys: Array) -> tuple[Array, Array]:
    """Lays lines [rows, n] out as [steps, rows, lanes], short ones padded with -1.

    Adding up along `steps` then adds vectors of at least a few thousand numbers. The second array
    is each number's place in its line, [steps, 1, lanes].
    """
    rows, n = keys.shape
    lanes = min(n, -(-_LANES // rows))
    padded = jnp.pad(keys, ((0, 0), (0, -n % lanes)), constant_values=-1)
    grid = jnp.moveaxis(padded.reshape(rows, -1, lanes), 1, 0)
    places = jnp.arange(padded.shape[1], dtype=jnp.int32).reshape(-1, 1, lanes)
    return grid, places


def _count(holds: Callable[[Array, Array], Array], grid: Array, places: Array) -> Array:
    """In how many entries of each line something holds, int32 [rank, rows, 1]."""

    def held(i: Array | int) -> Array:
        return holds(grid[i][None], places[i][None]).astype(jnp.int32)

    total = jax.lax.fori_loop(1, grid.shape[0], lambda i, total: total + held(i), held(0))
    return total.sum(axis=-1, keepdims=True, dtype=jnp.int32)
