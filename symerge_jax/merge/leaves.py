"""What a merging method may know about leaves, and how it goes over them.

The maths of some methods depends on what a leaf is: a matrix to decompose and its orientation, the
block it belongs to, the three parts of one attention projection. Such facts arrive as a pytree of
`Leaf` beside the task vectors, made by whoever knows the network, never read off a name in here.

A method whose result needs a global number (a quantile, a norm) is written as a plan: it may go
over all leaves as often as it likes, one at a time, and returns a function of one leaf. The leaves
then come from memory or from files on disk, and a leaf of K experts is all that is ever held.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import jax
import numpy as np

from symerge_jax.notation import Array, Params, TaskVectors
from symerge_jax.trees import path_name

Orientation = Literal["out_in", "in_out", "conv_oihw", "conv_hwio"]
Passes = Callable[[], Iterator[tuple[str, Array]]]
OnLeaf = Callable[[str, Array], Any]


@dataclass(frozen=True)
class Leaf:
    """Facts about one leaf.

    Attributes:
        matrix: how the axes lie if the leaf is a matrix for the methods that decompose matrices
            (convolutions count only where a method is told so); None otherwise.
        depth: index of the block it belongs to, from 0; None outside the blocks.
        group: leaves with the same text are the parts of one matrix, stacked along `out` in the
            order of their paths' `part`.
        part: position within the group: 0 query, 1 key, 2 value.
    """

    matrix: Orientation | None = None
    depth: int | None = None
    group: str | None = None
    part: int = 0


def facts_or_default(task_vectors: TaskVectors, leaves: Any | None) -> dict[str, Leaf]:
    """Returns path → facts; without any, each leaf with two axes is a matrix [out, in].

    Args:
        task_vectors: τ, leaves [task, ...].
        leaves: a pytree of `Leaf` with the structure of one task's leaves, or path → `Leaf`.
    """
    paths = jax.tree_util.tree_leaves_with_path(task_vectors)
    if leaves is None:
        return {
            path_name(path): Leaf("out_in" if np.ndim(leaf) == 3 else None) for path, leaf in paths
        }
    given = jax.tree_util.tree_leaves_with_path(leaves, is_leaf=lambda x: isinstance(x, Leaf))
    facts = {path_name(path): leaf for path, leaf in given}
    missing = {path_name(path) for path, _ in paths} - set(facts)
    assert not missing, f"no facts about the leaf {min(missing)}"
    return facts


def facts_by_path(leaves: Any | None) -> dict[str, Leaf] | None:
    """Returns path → facts of a pytree of `Leaf`, or of path → `Leaf`; None of None."""
    if leaves is None:
        return None
    given = jax.tree_util.tree_leaves_with_path(leaves, is_leaf=lambda x: isinstance(x, Leaf))
    return {path_name(path): leaf for path, leaf in given}


def over_leaves(plan: Callable[..., OnLeaf], task_vectors: TaskVectors, **options: Any) -> Params:
    """Carries out a plan on task vectors in memory.

    Args:
        plan: (passes, **options) → function of (path, τ leaf [task, ...]).
        task_vectors: τ, leaves [task, ...].
        options: of the method.
    """

    def passes() -> Iterator[tuple[str, Array]]:
        for path, leaf in jax.tree_util.tree_leaves_with_path(task_vectors):
            if leaf.size:
                yield path_name(path), leaf

    merge = plan(passes, **options)
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: merge(path_name(path), leaf), task_vectors
    )
