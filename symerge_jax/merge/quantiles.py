"""Exact selection: the j-th smallest entry of each task, over leaves that come one at a time.

Nothing is sorted or concatenated. Floats are read as integers of the same order; a strided sample
says between which two keys the answer must be, give or take five standard deviations; the next pass
counts what lies below and makes a histogram of what lies between. It is exact whatever the sample
says: if the answer is not between, or several keys share a bin, a further pass looks closer. In
practice two passes: the sample and one more.

Traced arrays take sixteen rounds of counting instead, two bits each (thirty-two in float64).
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from symerge_jax.errors import BadInput
from symerge_jax.merge.leaves import Passes
from symerge_jax.merge.reductions import rows, sum_entries
from symerge_jax.notation import Array
from symerge_jax.parallel import cores
from symerge_jax.trees import wide

_STRIDE = 251  # of the sample; a prime, so that it does not walk down one column of a matrix
_BIN_BITS = 19
_MOST_ZEROS = 10**10  # the sample has its share of them
_FLUSH = 1 << 20
_WORTH_THREADS = 1 << 18


def smallest(
    passes: Passes,
    ranks: Callable[[int], Sequence[int]],
    *,
    values: Callable[[Array], Array] = lambda leaf: leaf,
    signed: bool = False,
    extra_zeros: int = 0,
) -> list[Array]:
    """Returns, for each rank j, the j-th smallest entry of each task, [task].

    Args:
        passes: gives all leaves [task, ...], as often as it is called.
        ranks: of the number of entries P of a task, zeros included → ranks from 1 to P.
        values: maps a leaf to the entries to rank, elementwise but for the leading axis; called
            anew in each pass, and for the sample on every 251st entry alone.
        signed: whether to rank the entries themselves, not their magnitudes.
        extra_zeros: zeros that count among the entries without being stored.

    Returns:
        One array [task] per rank, float32, or float64 if any entry is.
    """
    if not 0 <= extra_zeros <= _MOST_ZEROS:
        raise BadInput(
            f"quantile_extra_zeros must lie between 0 and {_MOST_ZEROS}, got {extra_zeros}"
        )
    _, first = next(iter(passes()))
    if isinstance(values(first), Tracer):
        leaves = [values(leaf) for _, leaf in passes()]
        return _by_counting(leaves, ranks, signed=signed, extra_zeros=extra_zeros)

    def entries() -> Any:
        for _, leaf in passes():
            yield np.asarray(values(leaf))

    sample = _sampled(passes, values)
    with ThreadPoolExecutor(min(first.shape[0], cores())) as pool:
        return _by_sampling(sample, entries, ranks, _Keys(signed), extra_zeros, pool)


@dataclass(frozen=True)
class _Keys:
    """Floats as unsigned integers of the same order, and back; NumPy or JAX arrays."""

    signed: bool

    def of(self, x: Any) -> Any:
        """float32 → uint32, float64 → uint64."""
        bits = 8 * x.dtype.itemsize
        key = x.view(f"uint{bits}")
        return key ^ self._flip(key, bits) if self.signed else key & ~_top(bits)

    def value(self, key: Any) -> Any:
        """The inverse of `of`; the positive one of two."""
        bits = 8 * key.dtype.itemsize
        if self.signed:
            key = key ^ self._flip(~key, bits)
        return key.view(f"float{bits}")

    def zero(self, bits: int) -> int:
        """The key of 0.0."""
        return int(_top(bits)) if self.signed else 0

    @staticmethod
    def _flip(key: Any, bits: int) -> Any:
        """All bits where the highest is set, else the highest alone."""
        return (key.view(f"int{bits}") >> np.dtype(f"int{bits}").type(bits - 1)).view(
            f"uint{bits}"
        ) | _top(bits)


def _top(bits: int) -> Any:
    return np.dtype(f"uint{bits}").type(1 << (bits - 1))


class _Sample(NamedTuple):
    """Every 251st entry of each task and leaf."""

    tasks: list[np.ndarray]
    size: int  # how many entries a task has in all
    dtype: Any  # to rank in


@dataclass
class _Search:
    """Where one order statistic of one task may be, in keys, both ends included."""

    rank: int
    low: int
    high: int
    first: int  # what the coming pass looks at: a part of low..high
    last: int
    largest: bool = False  # the rank is the last: no need to count
    below: int = 0
    counts: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    pending: list[np.ndarray] = field(default_factory=list)

    @property
    def found(self) -> bool:
        return self.low == self.high

    @property
    def shift(self) -> int:
        return max(0, (self.last - self.first).bit_length() - _BIN_BITS)

    def start(self, zero: int, extra_zeros: int) -> None:
        if self.largest:
            self.low = zero if extra_zeros else 0
            return
        self.below = extra_zeros if zero < self.first else 0
        self.counts = np.zeros(((self.last - self.first) >> self.shift) + 1, np.int64)
        if self.first <= zero <= self.last:
            self.counts[(zero - self.first) >> self.shift] = extra_zeros

    def see(self, entries: np.ndarray, sides: np.ndarray, keys: "_Keys") -> None:
        """Counts what lies below and sets aside what lies between.

        Args:
            entries: some of the task's.
            sides: uint8, of `_sides`.
            keys: of the entries.
        """
        self.below += len(sides) - int(np.count_nonzero(sides))
        near = sides == 1
        if self.first == self.last:
            self.counts[0] += np.count_nonzero(near)
            return
        found = keys.of(entries[near])
        self.pending.append(found - found.dtype.type(self.first))
        if sum(map(len, self.pending)) > _FLUSH:
            self.flush()

    def flush(self) -> None:
        if not self.pending:
            return
        together = np.concatenate(self.pending)
        bins = (together >> together.dtype.type(self.shift)).astype(np.int64)
        self.counts += np.bincount(bins, minlength=len(self.counts))
        self.pending = []

    def end(self) -> None:
        """Narrows low..high by what was seen."""
        if self.largest:
            self.high = self.low
            return
        self.flush()
        up_to = self.below + np.cumsum(self.counts)
        if self.rank <= self.below:
            self.high = self.first - 1
        elif self.rank > up_to[-1]:
            self.low = self.last + 1
        else:
            start = self.first + (int(np.searchsorted(up_to, self.rank)) << self.shift)
            self.low, self.high = start, min(start + (1 << self.shift) - 1, self.last)
        self.first, self.last = self.low, self.high


def _by_sampling(
    sample: _Sample,
    entries: Callable[[], Any],
    ranks: Callable[[int], Sequence[int]],
    keys: _Keys,
    extra_zeros: int,
    pool: ThreadPoolExecutor,
) -> list[Array]:
    samples, size, dtype = sample
    bits = 8 * np.dtype(dtype).itemsize
    wanted = list(ranks(size + extra_zeros))
    searches = []
    for row in samples:
        zeros = np.zeros(extra_zeros * len(row) // size, dtype)
        row = keys.of(np.concatenate([row.astype(dtype), zeros]))
        searches.append([_guess(row, j, size + extra_zeros, keys.signed) for j in wanted])

    def see(here: list[_Search], row: np.ndarray, *sides: np.ndarray) -> None:
        for search, side in zip(here, sides, strict=True):
            if search.found:
                continue
            if search.largest:
                search.low = max(search.low, int(keys.of(row).max()))
            else:
                search.see(row, side, keys)

    compare = _sides if bits == 64 else _sides_in_one  # JAX may not have 64 bits
    while any(not search.found for search in sum(searches, [])):
        for search in sum(searches, []):
            if not search.found:
                search.start(keys.zero(bits), extra_zeros)
        bounds = [
            np.array([(search.first, search.last) for search in each], f"uint{bits}").T
            for each in zip(*searches, strict=True)
        ]
        for leaf in entries():
            leaf = leaf.astype(dtype, copy=False)
            sides = [np.asarray(compare(leaf, bound, keys)) for bound in bounds]
            over = pool.map if leaf.size > _WORTH_THREADS else map
            list(over(see, searches, rows(leaf), *map(rows, sides)))
        for search in sum(searches, []):
            if not search.found:
                search.end()
    found = np.array([[search.low for search in task] for task in searches], f"uint{bits}")
    return list(keys.value(found.T.copy()))


def _sides(leaf: Array, bounds: Array, keys: _Keys) -> Array:
    """Returns 0 where an entry's key lies below its task's bounds, 1 between, 2 above; uint8.

    Args:
        leaf: [task, ...], in the dtype to rank in.
        bounds: keys, [two, task].
        keys: how to make them.
    """
    key = keys.of(leaf)
    first, last = bounds.reshape(2, -1, *(1 for _ in leaf.shape[1:]))
    return (key >= first).astype("uint8") + (key > last).astype("uint8")


_sides_in_one = jax.jit(_sides, static_argnames="keys")


def _sampled(passes: Passes, values: Callable[[Array], Array]) -> _Sample:
    parts, dtypes, size = [], [], 0
    for _, leaf in passes():
        flat = rows(np.asarray(leaf))
        count = max(1, flat.shape[1] // _STRIDE)  # the same for leaves of one size
        offset = (101 * len(parts)) % min(flat.shape[1], _STRIDE)  # leaves may resemble each other
        part = flat[:, offset::_STRIDE][:, :count]
        part = np.asarray(values(np.ascontiguousarray(part)))
        parts.append(part.astype(wide(part.dtype)))
        dtypes.append(part.dtype)
        size += flat.shape[1]
    return _Sample([np.concatenate(row) for row in zip(*parts, strict=True)], size, wide(*dtypes))


def _guess(sample: np.ndarray, rank: int, total: int, signed: bool) -> _Search:
    """A search that first looks where the sample of keys says the rank should be."""
    assert 1 <= rank <= total, (rank, total)
    bits = 8 * sample.dtype.itemsize
    low, high = 0, (1 << (bits if signed else bits - 1)) - 1
    part = rank / total
    center = part * len(sample)
    margin = 5 * (len(sample) * part * (1 - part)) ** 0.5 + 4
    left, right = int(center - margin), int(center + margin) + 1
    inside = [i for i in (left, right) if 0 <= i < len(sample)]
    ordered = np.partition(sample, inside) if inside else sample
    first = int(ordered[left]) if left >= 0 else low
    last = int(ordered[right]) if right < len(sample) else high
    return _Search(rank, low, high, first, last, largest=rank == total)


def _by_counting(
    leaves: list[Array],
    ranks: Callable[[int], Sequence[int]],
    *,
    signed: bool,
    extra_zeros: int,
) -> list[Array]:
    """The same under `jit`: finds the key two bits at a time."""
    dtype = jnp.dtype(wide(*(leaf.dtype for leaf in leaves)))
    bits, keys = 8 * dtype.itemsize, _Keys(signed)
    unsigned = jnp.dtype(f"uint{bits}")
    size = sum(rows(leaf).shape[1] for leaf in leaves)
    assert size + extra_zeros < 1 << 31, "more entries than a traced count can hold"
    wanted = jnp.asarray(list(ranks(size + extra_zeros)), jnp.int32)[:, None, None]
    zero = jnp.asarray(keys.zero(bits), unsigned)
    digits = jnp.arange(1, 4, dtype=unsigned)

    def narrow(i: Array, low: Array) -> Array:
        """low [rank, task]: the largest key known to be at most the answer."""
        step = (bits - 2 - 2 * i).astype(unsigned)
        pivots = low[..., None] + (digits << step)[None, None, :]  # [rank, task, 3]
        below = jnp.where(zero < pivots, extra_zeros, 0).astype(jnp.int32)

        def fewer(block: Array) -> Array:
            key = keys.of(block.astype(dtype))[None, :, None, :]
            return (key < pivots[..., None]).astype(jnp.int32)

        for leaf in leaves:
            below = below + sum_entries(fewer, rows(leaf))
        digit = (below < wanted).sum(axis=-1, dtype=unsigned)
        return low + (digit << step)

    start = jnp.zeros((wanted.shape[0], leaves[0].shape[0]), unsigned)
    found = jax.lax.fori_loop(0, bits // 2, narrow, start)
    return list(keys.value(found))
