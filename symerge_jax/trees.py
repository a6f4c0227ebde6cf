"""Arithmetic on pytrees of parameters: compare, stack, ravel, split by predicate.

A path is written as the keys joined with '/', such as `blocks_0/mlp/fc/kernel`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from symerge_jax.errors import BadInput
from symerge_jax.notation import Array, Params

ABSENT = None  # stands where a split took a leaf out; JAX sees no leaf there


def wide(*dtypes: Any) -> Any:
    """Returns float64 if one of the dtypes is, else float32: what to compute in."""
    return jnp.float64 if any(jnp.dtype(d) == jnp.float64 for d in dtypes) else jnp.float32


def path_name(path: tuple[Any, ...]) -> str:
    """Returns a key path of `jax.tree_util` as text, keys joined with '/'."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def paths(tree: Any) -> list[str]:
    """Returns the path of each leaf, in the order of `jax.tree.leaves`."""
    return [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


@jax.jit
def copied(tree: Params) -> Params:
    """Returns new arrays of the same content, for a program that reuses its arguments' memory."""
    return jax.tree.map(jnp.copy, tree)


def check_same(tree: Any, reference: Any, *, name: str, reference_name: str) -> None:
    """Compares structure, shapes and dtypes.

    Args:
        tree: leaves with `shape` and `dtype`.
        reference: what `tree` should look like.
        name: how to call `tree` in the message, such as "expert 2".
        reference_name: how to call `reference`.

    Raises:
        BadInput: names the first path that differs, and both sides.
    """
    ours = {path_name(p): leaf for p, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    theirs = {path_name(p): leaf for p, leaf in jax.tree_util.tree_leaves_with_path(reference)}
    for path in theirs:
        if path not in ours:
            raise BadInput(
                f"{name} lacks the leaf {path!r} that {reference_name} has; "
                "all must come from one architecture"
            )
    for path, leaf in ours.items():
        if path not in theirs:
            raise BadInput(
                f"{name} has the leaf {path!r} that {reference_name} lacks; "
                "all must come from one architecture"
            )
        for what in ("shape", "dtype"):
            here, there = (_property(x, what) for x in (leaf, theirs[path]))
            if here != there:
                raise BadInput(
                    f"{path}: {name} has {what} {here}, {reference_name} has {what} {there}"
                )
    if jax.tree.structure(tree) != jax.tree.structure(reference):
        raise BadInput(f"{name} and {reference_name} nest the same leaves in different containers")


def _property(leaf: Any, what: str) -> Any:
    return np.shape(leaf) if what == "shape" else jnp.result_type(leaf)


def stack(trees: Sequence[Params]) -> Params:
    """Returns one pytree whose leaves carry a leading task axis, [task, ...].

    Raises:
        BadInput: there is no tree, or one differs from the first.
    """
    if not trees:
        raise BadInput("nothing to stack: expected at least one pytree, got none")
    for i, tree in enumerate(trees[1:], start=1):
        check_same(tree, trees[0], name=f"tree {i}", reference_name="tree 0")
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def unstack(tree: Params) -> list[Params]:
    """Takes a pytree with leaves [task, ...] apart into one pytree per task."""
    return [jax.tree.map(lambda leaf, k=k: leaf[k], tree) for k in range(task_count(tree))]


def task_count(tree: Params) -> int:
    """Returns the length of the leading axis that all leaves share.

    Raises:
        BadInput: there is no leaf, or two disagree (the first such path is named).
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    if not leaves:
        raise BadInput(
            "expected a pytree of arrays with a leading task axis, got one without leaves"
        )
    first_path, first = leaves[0]
    for path, leaf in leaves:
        if np.ndim(leaf) == 0:
            raise BadInput(f"{path_name(path)} is a scalar, expected a leading task axis")
        if leaf.shape[0] != first.shape[0]:
            raise BadInput(
                f"{path_name(path)} has shape {leaf.shape}, expected a leading task axis of "
                f"{first.shape[0]} as {path_name(first_path)} has"
            )
    return first.shape[0]


def add_up(tau: Array) -> Array:
    """Returns Σ_k of an array [task, ...] as K - 1 additions, first task first.

    XLA fuses them with what comes before and after; its own sum over a leading axis takes forty
    times as long on a CPU (measured for 8 × 2.4 million numbers).
    """
    total = tau[0]
    for k in range(1, tau.shape[0]):
        total = total + tau[k]
    return total


def ravel_stacked(tree: Params) -> tuple[Array, Callable[[Array], Params]]:
    """Flattens leaves [task, ...] to one float array [task, n].

    Needs a second copy of all task vectors; for methods whose thresholds are global.

    Returns:
        The array in float32, or float64 if a leaf is, and the function that cuts a vector [n] back
        into the shapes and dtypes of one task's leaves.
    """
    leaves, structure = jax.tree.flatten(tree)
    shapes = [leaf.shape[1:] for leaf in leaves]
    dtypes = [leaf.dtype for leaf in leaves]
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes])
    rows = [leaf.reshape(leaf.shape[0], -1).astype(wide(*dtypes)) for leaf in leaves]
    flat = jnp.concatenate(rows, axis=1)

    def unravel(vector: Array) -> Params:
        parts = jnp.split(vector, ends[:-1])
        return structure.unflatten(
            part.reshape(shape).astype(dtype)
            for part, shape, dtype in zip(parts, shapes, dtypes, strict=True)
        )

    return flat, unravel


def split(tree: Params, keep: Callable[[str, Array], bool]) -> tuple[Params, Params]:
    """Splits the leaves in those that `keep(path, leaf)` and the rest.

    Both parts have the structure of `tree` with None where a leaf went to the other part;
    `combine` gives `tree` back.
    """
    chosen = jax.tree_util.tree_map_with_path(lambda p, leaf: keep(path_name(p), leaf), tree)
    kept = jax.tree.map(lambda leaf, here: leaf if here else ABSENT, tree, chosen)
    rest = jax.tree.map(lambda leaf, here: ABSENT if here else leaf, tree, chosen)
    return kept, rest


def combine(kept: Params, rest: Params) -> Params:
    """Puts the two parts of `split` together again."""

    def either(a: Any, b: Any) -> Any:
        return b if a is None else a

    return jax.tree.map(either, kept, rest, is_leaf=lambda x: x is None)


def is_floating(path: str, leaf: Array) -> bool:
    """Predicate for `split`: leaves of a floating dtype (integer counters and ids take no part)."""
    del path
    return bool(jnp.issubdtype(jnp.result_type(leaf), jnp.floating))
