"""Statistics that methods are given: matched with the task vectors, and checked."""

from __future__ import annotations

from typing import Any

import jax
from jax.core import Tracer

from symerge_jax import trees
from symerge_jax.errors import BadInput
from symerge_jax.notation import Array, TaskVectors
from symerge_jax.second_moments import Moment, check_finite, named


def matched_moments(task_vectors: TaskVectors, moments: Any, *, method: str) -> dict[str, Moment]:
    """Returns path → stacked `Moment` of the leaves that have one, checked against τ.

    Raises:
        BadInput: no statistics, those of a Fisher diagonal, of other leaves, shapes or tasks, or
            with NaN or infinity.
    """
    known = _matched(task_vectors, moments, method, "gram_matrices")
    for path, (tau, moment) in known.items():
        if not isinstance(moment, Moment):
            raise BadInput(
                f"{method}: the statistics of {path} are no Gram matrices; compute them with "
                "gram_matrices"
            )
        features = moment.mean.shape[1:]
        # A linear layer's `in` is compared where it is known how the matrix lies.
        fits = features == tau.shape[1:] if len(features) == 1 else tau.ndim >= 3
        if not fits or moment.mean.shape[0] != len(tau) or moment.rows.shape != (len(tau),):
            raise BadInput(
                f"{method}: the statistics of {path} have shape {moment.mean.shape} with rows "
                f"{moment.rows.shape}, which does not belong to task vectors {tau.shape}; compute "
                "them with these experts"
            )
    return {path: moment for path, (_, moment) in known.items()}


def matched_arrays(task_vectors: TaskVectors, moments: Any, *, method: str) -> dict[str, Array]:
    """Returns path → statistics [task, ...] of every leaf of τ, of the same shape.

    Raises:
        BadInput: no statistics, those of other leaves or shapes, or with NaN or infinity.
    """
    known = _matched(task_vectors, moments, method, "fisher_diagonal")
    for path, tau in zip(trees.paths(task_vectors), jax.tree.leaves(task_vectors), strict=True):
        if path not in known:
            raise BadInput(
                f"{method}: there are no statistics of {path}; compute them with this model"
            )
        found = known[path][1]
        if isinstance(found, Moment) or found.shape != tau.shape:
            shape = "of a Gram matrix" if isinstance(found, Moment) else f"{found.shape}"
            raise BadInput(
                f"{method}: the statistics of {path} have shape {shape}, expected {tau.shape}; "
                "compute them with fisher_diagonal and these experts"
            )
    return {path: array for path, (_, array) in known.items()}


def _matched(
    task_vectors: TaskVectors, moments: Any, method: str, source: str
) -> dict[str, tuple[Array, Any]]:
    if moments is None:
        raise BadInput(f"{method}: needs statistics of each expert; compute them with {source}")
    with_gaps = jax.tree_util.tree_leaves_with_path(task_vectors, is_leaf=lambda x: x is None)
    taus = {trees.path_name(path): leaf for path, leaf in with_gaps}
    found = named(moments)
    odd = set(found) - set(taus)
    if odd:
        raise BadInput(
            f"{method}: the statistics are of another model, they have the leaf {min(odd)}"
        )
    found = {path: moment for path, moment in found.items() if taus[path] is not None}
    if not any(isinstance(x, Tracer) for x in jax.tree.leaves(found)):
        check_finite(found, f"{method}: the statistics of {{}} are not finite; compute them again")
    return {path: (taus[path], moment) for path, moment in found.items()}
