"""Shared pieces of the methods that decompose matrices: which leaves are matrices, how they lie,
and their singular triplets and polar factors.

A unit is one matrix [out, in]: a leaf, or the query, key and value of one attention joined along
`out` where a method is told to. Units do not depend on each other and are decomposed a few at a
time by a program compiled once per shape. Stacking equal shapes into one batch would hold copies
of all models and gain nothing: LAPACK takes the matrices of a batch in turn.

What is computed here, and to what accuracy (float32, one core, 768 × 768 and 3072 × 768):
- A matrix is decomposed standing, with at least as many rows as columns; lying ones take LAPACK
  two to three times as long.
- `leading` takes a few singular triplets from the eigenvectors of the Gram matrix, corrected by
  the matrix itself, in 0.75 and 0.6 of the time of the SVD and at least as close to the float64
  result. Where that does not hold (small singular values, a gap too narrow) the SVD runs instead.
- `polar` is U Vᵀ of the SVD, 0.2 and 0.55 s. The eigenvectors of the Gram matrix in float64 take
  as long, QDWH twice and Newton-Schulz three to five times that, and none of them is defined
  where the rank is deficient.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from symerge_jax.errors import BadInput
from symerge_jax.merge.leaves import Leaf, Orientation, facts_or_default
from symerge_jax.merge.side_by_side import side_by_side
from symerge_jax.notation import Array, Float, Params, TaskVectors
from symerge_jax.trees import add_up, path_name, wide

# Singular values below this part of the largest count as zero: float32 cannot tell.
SINGULAR = 1e-6
# The Gram matrix loses singular values below the root of the machine precision.
_SMALLEST_OF_GRAM = 1e-2
_LARGEST_CORRECTION = 3e-2  # of the first of two; its square is what it leaves
_SMALLEST_SIDE = 128  # below, the SVD takes no time worth saving

# [task, out, in] → ([out, in], smallest over largest singular value of what was inverted)
Core = Callable[..., tuple[Array, Array]]


Item = TypeVar("Item")


class Unit(NamedTuple):
    """One matrix: the paths of its parts in the order of `Leaf.part`, and how each lies."""

    paths: tuple[str, ...]
    orientation: Orientation


def units(
    facts: Mapping[str, Leaf], *, fuse_qkv: bool = False, conv_as_matrix: bool = False
) -> list[Unit]:
    """Returns the matrices among the leaves.

    Args:
        facts: path → facts, of the leaves that are merged.
        fuse_qkv: join the leaves of a group along `out`.
        conv_as_matrix: count convolutions as matrices [out, in · height · width].

    Raises:
        BadInput: `fuse_qkv` where a part of a group is missing.
    """
    found, groups = [], {}
    for path, fact in facts.items():
        if fact.matrix is None or (fact.matrix.startswith("conv") and not conv_as_matrix):
            continue
        if fuse_qkv and fact.group is not None:
            groups.setdefault(fact.group, []).append((fact.part, path, fact.matrix))
        else:
            found.append(Unit((path,), fact.matrix))
    for name, members in groups.items():
        parts, paths, orientations = zip(*sorted(members), strict=True)
        if parts != (0, 1, 2):
            raise BadInput(
                f"fuse_qkv: {name} has only {', '.join(paths)} of its query, key and value; "
                "merge all three together, or leave the option out"
            )
        found.append(Unit(paths, orientations[0]))
    return found


def canonical(tau: Float[Array, ...], orientation: Orientation) -> Float[Array, "task out in"]:
    """Returns stacked leaves [task, ...] as matrices [task, out, in].

    The `in` axis of a convolution runs over (channel, row, column) in both layouts.
    """
    tasks = tau.shape[0]
    if orientation == "in_out":
        return jnp.swapaxes(tau, 1, 2)
    if orientation == "conv_oihw":
        return tau.reshape(tasks, tau.shape[1], -1)
    if orientation == "conv_hwio":
        return tau.transpose(0, 4, 3, 1, 2).reshape(tasks, tau.shape[4], -1)
    return tau


def restore(
    matrix: Float[Array, "out in"], orientation: Orientation, shape: tuple[int, ...]
) -> Float[Array, ...]:
    """Returns a matrix [out, in] as a leaf [...] of this shape; undoes `canonical`."""
    if orientation == "in_out":
        return matrix.T
    if orientation == "conv_hwio":
        height, width, channels, out = shape
        return matrix.reshape(out, channels, height, width).transpose(2, 3, 1, 0)
    return matrix.reshape(shape)


def joined(parts: tuple[Array, ...], orientation: Orientation) -> Float[Array, "task out in"]:
    """Returns the parts of a unit as one matrix per task, in float32 or wider."""
    dtype = wide(*(part.dtype for part in parts))
    return jnp.concatenate([canonical(part.astype(dtype), orientation) for part in parts], axis=1)


def cut(
    matrix: Float[Array, "out in"], like: tuple[Any, ...], orientation: Orientation
) -> tuple[Array, ...]:
    """Cuts a matrix back into the shapes and dtypes of one task's parts.

    Args:
        matrix: as made by `joined`, without the task axis.
        like: things with `shape` [...] and `dtype`.
        orientation: of the parts.
    """
    axis = {"in_out": 1, "conv_hwio": 3}.get(orientation, 0)
    ends = np.cumsum([part.shape[axis] for part in like])[:-1].tolist()
    return tuple(
        restore(piece, orientation, part.shape).astype(part.dtype)
        for piece, part in zip(jnp.split(matrix, ends), like, strict=True)
    )


def over_matrices(
    core: Core,
    task_vectors: TaskVectors,
    *,
    leaves: Any | None,
    fuse_qkv: bool,
    conv_as_matrix: bool,
    **options: Any,
) -> Params:
    """Merges matrices with `core` and all other leaves by their mean.

    A matrix that no task changed is exactly 0. Outside `jax.jit` a `RankWarning` names matrices
    whose result is arbitrary in some directions; nothing is raised, and inside nothing is said.

    Args:
        core: a module's function; see `Core`.
        task_vectors: τ, leaves [task, ...].
        leaves: facts; see `facts_or_default`.
        fuse_qkv: see `units`.
        conv_as_matrix: see `units`.
        options: of `core`, hashable.

    Returns:
        Leaves [...] of the same dtypes.
    """
    facts = facts_or_default(task_vectors, leaves)
    taus = by_path(task_vectors)
    found = units(
        {path: facts[path] for path in taus if taus[path].size},
        fuse_qkv=fuse_qkv,
        conv_as_matrix=conv_as_matrix,
    )

    def on_unit(unit: Unit) -> tuple[tuple[Array, ...], Array]:
        parts = tuple(taus[path] for path in unit.paths)
        return _on_unit(
            parts, core=core, orientation=unit.orientation, options=tuple(options.items())
        )

    merged, ratios = {}, {}
    for unit, (results, ratio) in each_unit(on_unit, found, taus):
        merged |= zip(unit.paths, results, strict=True)
        ratios[unit.paths[0]] = ratio
    _warn(core.__name__.strip("_"), ratios)
    return jax.tree_util.tree_map_with_path(
        lambda path, tau: merged[name] if (name := path_name(path)) in merged else mean(tau),
        task_vectors,
    )


def each_unit(
    function: Callable[[Item], Any], found: Sequence[Item], taus: Mapping[str, Array]
) -> Iterator[tuple[Item, Any]]:
    """Yields each unit and what `function` makes of it, several at a time where that is faster."""
    if len(found) < 2 or any(isinstance(tau, Tracer) for tau in taus.values()):
        return ((unit, function(unit)) for unit in found)
    return side_by_side(lambda unit: jax.block_until_ready(function(unit)), found)


def by_path(tree: Params) -> dict[str, Array]:
    """Returns path → leaf."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


@jax.jit
def mean(tau: Float[Array, ...]) -> Float[Array, ...]:
    """Returns the mean over tasks of a leaf [task, ...], worked out in float32 or wider."""
    return (add_up(tau.astype(wide(tau.dtype))) / tau.shape[0]).astype(tau.dtype)


@partial(jax.jit, static_argnames=("core", "orientation", "options"))
def _on_unit(
    parts: tuple[Array, ...],
    *,
    core: Core,
    orientation: Orientation,
    options: tuple[tuple[str, Any], ...],
) -> tuple[tuple[Array, ...], Array]:
    tau = joined(parts, orientation)

    def untouched(tau: Array) -> tuple[Array, Array]:
        return jnp.zeros_like(tau[0]), jnp.ones((), tau.dtype)

    merged, ratio = jax.lax.cond((tau != 0).any(), partial(core, **dict(options)), untouched, tau)
    like = tuple(jax.ShapeDtypeStruct(part.shape[1:], part.dtype) for part in parts)
    return cut(merged, like, orientation), ratio


class RankWarning(RuntimeWarning):
    """Matrices lack full rank; `paths` names them."""

    def __init__(self, method: str, paths: Sequence[str]) -> None:
        super().__init__(
            f"{method}: {len(paths)} {'matrix lacks' if len(paths) == 1 else 'matrices lack'} full "
            f"rank (first {paths[0]}); the result is arbitrary in the missing directions and may "
            "differ between machines"
        )
        self.paths = tuple(paths)


def _warn(method: str, ratios: Mapping[str, Array]) -> None:
    if any(isinstance(ratio, Tracer) for ratio in ratios.values()):
        return
    singular = [path for path, ratio in ratios.items() if float(ratio) < SINGULAR]
    if singular:
        warnings.warn(RankWarning(method, singular), stacklevel=4)


@contextlib.contextmanager
def precise() -> Iterator[Any]:
    """Gives float64 for a computation that needs it, also inside `jax.jit`; float32 on a TPU."""
    if jax.default_backend() == "tpu":  # it has no such decompositions
        yield jnp.float32
        return
    with jax.enable_x64(True):
        yield jnp.float64


def product(a: Float[Array, "m n"], b: Float[Array, "n k"]) -> Float[Array, "m k"]:
    """Returns a @ b in full precision: shortened products visibly break orthogonality."""
    return jnp.matmul(a, b, precision="highest")


def thin_svd(a: Float[Array, "m n"]) -> tuple[Array, Array, Array]:
    """Returns U [m, r], σ [r] from the largest down, and Vᵀ [r, n]; r = min(m, n)."""
    if a.shape[0] < a.shape[1]:
        u, sigma, vt = jnp.linalg.svd(a.T, full_matrices=False)
        return vt.T, sigma, u.T
    return tuple(jnp.linalg.svd(a, full_matrices=False))


def polar(a: Float[Array, "m n"]) -> tuple[Float[Array, "m n"], Float[Array, " r"]]:
    """Returns polar(A) = U Vᵀ and the singular values of A.

    Where A lacks full rank the factor is not unique: LAPACK completes it in some way.
    """
    u, sigma, vt = thin_svd(a)
    return product(u, vt), sigma


def leading(a: Float[Array, "m n"], rank: int) -> tuple[Array, Array, Array]:
    """Returns the `rank` largest singular triplets: U [m, rank], σ [rank], Vᵀ [rank, n].

    The rows of Vᵀ and the columns of U are orthonormal, also where σ is 0.
    """
    m, n = a.shape
    if m < n:
        v, sigma, ut = leading(a.T, rank)
        return ut.T, sigma, v.T
    if a.dtype == jnp.float64 or n < _SMALLEST_SIDE or 3 * rank > n:
        return _truncated(a, rank)
    size = jnp.abs(a).max()
    scaled = a / jnp.where(
        size > 0, size, jnp.ones_like(size)
    )  # squares neither over- nor underflow
    basis, good = _leading_basis(scaled, rank)

    def from_basis(a: Array) -> tuple[Array, Array, Array]:
        u, sigma, wt = thin_svd(product(a, basis))
        return u, sigma, product(wt, basis.T)

    return jax.lax.cond(good, from_basis, partial(_truncated, rank=rank), a)


def _truncated(a: Array, rank: int) -> tuple[Array, Array, Array]:
    u, sigma, vt = thin_svd(a)
    return u[:, :rank], sigma[:rank], vt[:rank]


def _leading_basis(a: Float[Array, "m n"], rank: int) -> tuple[Float[Array, "n s"], Array]:
    """Returns an orthonormal basis of the leading right singular vectors, and whether to trust it.

    The eigenvectors v of AᵀA are off by the rounding of that product, relative to σ₁². The products
    A v know the angles between them better, relative to σ_i σ_j: first-order perturbation of the
    leading ones by all others takes those angles out, up to their square; twice, up to the fourth
    power.
    """
    _, v = jnp.linalg.eigh(product(a.T, a), symmetrize_input=False)
    first, rest = v[:, ::-1][:, :rank], v[:, ::-1][:, rank:]
    images = product(a, rest)
    once, large, _ = _corrected(first, rest, product(a, first), images)
    inside = product(once.T, rest)
    images_once = product(a, once)
    rest, images = rest - product(once, inside), images - product(images_once, inside)
    twice, small, clear = _corrected(once, rest, images_once, images)
    return twice, clear & (large < _LARGEST_CORRECTION) & (small < _LARGEST_CORRECTION**2)


def _corrected(
    first: Float[Array, "n s"],
    rest: Float[Array, "n t"],
    images_first: Float[Array, "m s"],
    images_rest: Float[Array, "m t"],
) -> tuple[Float[Array, "n s"], Array, Array]:
    """Returns the leading vectors less what they have of the others, and the largest such part.

    The third is whether the smallest leading singular value is large enough for all this.
    """
    square, square_rest = (jnp.square(x).sum(axis=0) for x in (images_first, images_rest))  # σ²
    angles = product(images_rest.T, images_first) - product(rest.T, first) * square[None]
    gap = square[None] - square_rest[:, None]
    correction = angles / jnp.where(gap > 0, gap, jnp.full_like(gap, jnp.nan))  # NaN is refused
    basis, _ = jnp.linalg.qr(first + product(rest, correction))
    clear = square.min() > _SMALLEST_OF_GRAM**2 * square.max()
    return basis, jnp.abs(correction).max(), clear
