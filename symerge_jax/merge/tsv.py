"""Task singular vectors: each task keeps its largest singular triplets.

Gargiulo et al., "Task Singular Vectors: Reducing Task Interference in Model Merging", 2025.
https://arxiv.org/abs/2412.00081; TSV-Merge (`tsv_m`) and TSV-Compress (`tsv_c`).

TSV-Merge stacks the triplets of all tasks, makes both stacks orthogonal in the nearest way, and
multiplies them out. All other leaves are averaged.

As the authors' code, but for: the rank budget is ⌊r / K⌋ by whole-number division; a matrix too
small for one triplet per task is averaged, theirs is silently dropped; a direction that a task
lacks (its singular value below 1e-6 of the task's largest) stays out of the stacks, theirs fills
them up with arbitrary vectors that turn those of other tasks.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from symerge_jax.merge.leaves import Orientation, facts_or_default
from symerge_jax.merge.spectral import (
    SINGULAR,
    Unit,
    by_path,
    cut,
    each_unit,
    joined,
    leading,
    mean,
    over_matrices,
    polar,
    product,
    units,
)
from symerge_jax.notation import Array, Float, Params, TaskVectors
from symerge_jax.trees import task_count


def rank_budget(tasks: int, rows: int, columns: int) -> int:
    """Returns s = ⌊min(m, n) / K⌋, the triplets each task keeps of an m × n matrix."""
    return min(rows, columns) // tasks


def tsv_m(
    task_vectors: TaskVectors,
    *,
    leaves: Any | None = None,
    fuse_qkv: bool = False,
    conv_as_matrix: bool = False,
) -> Params:
    """Returns τ* = polar([U₁ … U_K]) · diag(σ) · polar([V₁ … V_K]ᵀ) of matrices, else the mean.

    Streams: a leaf's result depends on it alone, or on its query, key and value with `fuse_qkv`.
    Best called outside `jax.jit`, which compiles each leaf anew. Where tasks share directions
    exactly (equal task vectors) the result is arbitrary in part: a `RankWarning` says so.

    Args:
        task_vectors: τ, leaves [task, ...], floating.
        leaves: facts about the leaves, a parallel pytree of `Leaf`; without any, each leaf with
            two axes is a matrix.
        fuse_qkv: decompose the query, key and value of a group as one matrix, as in the authors'
            checkpoints.
        conv_as_matrix: decompose convolutions too, as [out, in · height · width].

    Returns:
        Leaves [...] of the same dtypes.

    Raises:
        BadInput: `fuse_qkv` without all three parts of a group.
    """
    return over_matrices(
        _tsv_m, task_vectors, leaves=leaves, fuse_qkv=fuse_qkv, conv_as_matrix=conv_as_matrix
    )


def _tsv_m(tau: Float[Array, "task out in"]) -> tuple[Float[Array, "out in"], Array]:
    tasks, m, n = tau.shape
    rank = rank_budget(tasks, m, n)
    if rank == 0:
        return mean(tau), jnp.ones((), tau.dtype)
    u, sigma, vt = _leading_of_each(tau, rank)
    here = sigma > SINGULAR * sigma[:, :1]
    u = jnp.where(here[:, None], u, jnp.zeros_like(u))
    vt = jnp.where(here[:, :, None], vt, jnp.zeros_like(vt))
    left, left_values = polar(u.transpose(1, 0, 2).reshape(m, tasks * rank))  # task by task
    right, right_values = polar(vt.reshape(tasks * rank, n))
    last = here.sum() - 1
    ratio = jnp.minimum(left_values[last] / left_values[0], right_values[last] / right_values[0])
    return product(left * sigma.reshape(1, -1), right), ratio


def _leading_of_each(tau: Float[Array, "task m n"], rank: int) -> tuple[Array, Array, Array]:
    """Returns U [task, m, rank], σ [task, rank] and Vᵀ [task, rank, n]; one task's scratch."""
    return jax.lax.map(partial(leading, rank=rank), tau)


class Factors(NamedTuple):
    """The triplets of one matrix: U [task, m, s], σ [task, s] and Vᵀ [task, s, n]."""

    u: Array
    sigma: Array
    vt: Array


class Shapes(NamedTuple):
    """How to put the leaves together again: hashable, so that it may stay out of the arrays.

    Attributes:
        structure: of one task's leaves.
        paths: of the leaves, in the order of `structure`.
        leaves: (shape, dtype) of each, without the task axis.
        units: the matrices that are stored as factors.
    """

    structure: Any
    paths: tuple[str, ...]
    leaves: tuple[tuple[tuple[int, ...], str], ...]
    units: tuple[Unit, ...]


@partial(jax.tree_util.register_dataclass, data_fields=["factors", "whole"], meta_fields=["shapes"])
@dataclass(frozen=True)
class CompressedTasks:
    """Task vectors as the leading triplets of their matrices; all else is stored whole.

    Attributes:
        factors: one per unit of `shapes`.
        whole: path → leaf [task, ...].
        shapes: how to put the leaves together again.
    """

    factors: tuple[Factors, ...]
    whole: dict[str, Array]
    shapes: Shapes

    @property
    def nbytes(self) -> int:
        """Bytes of the stored numbers, θ₀ not counted."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves((self.factors, self.whole)))

    def materialise(self, k: int | Array) -> Params:
        """Returns task k's τ*, leaves [...]."""
        made = {path: leaf[k] for path, leaf in self.whole.items()}
        like = {
            path: jax.ShapeDtypeStruct(shape, dtype)
            for path, (shape, dtype) in zip(self.shapes.paths, self.shapes.leaves, strict=True)
        }
        for unit, (u, sigma, vt) in zip(self.shapes.units, self.factors, strict=True):
            matrix = product(u[k] * sigma[k][None], vt[k])
            parts = cut(matrix, tuple(like[path] for path in unit.paths), unit.orientation)
            made |= zip(unit.paths, parts, strict=True)
        return self.shapes.structure.unflatten([made[path] for path in self.shapes.paths])


def compress_tsv_c(
    task_vectors: TaskVectors,
    *,
    leaves: Any | None = None,
    fuse_qkv: bool = False,
    conv_as_matrix: bool = False,
) -> CompressedTasks:
    """Returns the factors that `tsv_c` multiplies out; arguments as there."""
    facts, taus = facts_or_default(task_vectors, leaves), by_path(task_vectors)
    tasks = task_count(task_vectors)
    found = units(
        {path: facts[path] for path in taus}, fuse_qkv=fuse_qkv, conv_as_matrix=conv_as_matrix
    )
    known = {path for unit in found for path in unit.paths}
    # Every leaf with two axes, also those that are no matrices for the other methods; how it lies
    # does not change a product of factors.
    found += [
        Unit((path,), "out_in") for path, tau in taus.items() if tau.ndim == 3 and path not in known
    ]
    kept, factors = [], []

    def on_unit(unit: Unit) -> Factors | None:
        parts = tuple(taus[path] for path in unit.paths)
        return _factors(parts, orientation=unit.orientation, tasks=tasks)

    for unit, triplets in each_unit(on_unit, found, taus):
        if triplets is not None:
            kept.append(unit)
            factors.append(triplets)
    stored = {path for unit in kept for path in unit.paths}
    return CompressedTasks(
        tuple(factors),
        {path: tau for path, tau in taus.items() if path not in stored},
        Shapes(
            jax.tree.structure(task_vectors),
            tuple(taus),
            tuple((tau.shape[1:], jnp.dtype(tau.dtype).name) for tau in taus.values()),
            tuple(kept),
        ),
    )


@partial(jax.jit, static_argnames=("orientation", "tasks"))
def _factors(parts: tuple[Array, ...], *, orientation: Orientation, tasks: int) -> Factors | None:
    """None where there is not one triplet per task to keep."""
    tau = joined(parts, orientation)
    rank = rank_budget(tasks, *tau.shape[1:])
    return Factors(*_leading_of_each(tau, rank)) if rank else None


def tsv_c(
    task_vectors: TaskVectors,
    *,
    leaves: Any | None = None,
    fuse_qkv: bool = False,
    conv_as_matrix: bool = False,
) -> Params:
    """Returns each task's own τ*: its s = ⌊r / K⌋ largest triplets; per task.

    A leaf needs K · s · (m + n + 1) ≈ r (m + n + 1) numbers however many tasks there are. Leaves
    without two axes are kept whole. Streams: leaves do not depend on each other.

    Args:
        task_vectors: τ, leaves [task, ...], floating.
        leaves: facts, for `fuse_qkv` and `conv_as_matrix`; every leaf with two axes counts.
        fuse_qkv: decompose query, key and value as one matrix.
        conv_as_matrix: decompose convolutions too.

    Returns:
        Leaves [task, ...] of the same dtypes.

    Raises:
        BadInput: `fuse_qkv` without all three parts of a group.
    """
    stored = compress_tsv_c(
        task_vectors, leaves=leaves, fuse_qkv=fuse_qkv, conv_as_matrix=conv_as_matrix
    )
    made = [stored.materialise(k) for k in range(task_count(task_vectors))]
    return jax.tree.map(lambda *each: jnp.stack(each), *made)
