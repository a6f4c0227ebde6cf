"""The method inside a method: LiNeS rescales another's result, DARE changes another's input."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from symerge_jax.errors import BadInput
from symerge_jax.merge.leaves import Leaf, OnLeaf, Passes
from symerge_jax.notation import Array


def plan_inner(
    passes: Passes, *, base: str, method: str, leaves: dict[str, Leaf] | None, options: Any
) -> OnLeaf:
    """Returns (path, τ leaf [task, ...]) → τ_M leaf [...] of the shared method `base`, unscaled.

    A base that looks at one leaf at a time, or has a plan, never holds more than one leaf; any
    other gets all of them at once.

    Args:
        passes: over the task vectors the base sees.
        base: an entry of `METHODS`.
        method: who asks, for messages.
        leaves: facts by path, handed on to a base that takes them.
        options: the base's own.

    Raises:
        BadInput: an unknown base, one that is not shared, or an option that it lacks.
    """
    from symerge_jax.merge import METHODS  # at the top it would be a circle

    key = base.replace("-", "_")
    shared = [name for name, them in METHODS.items() if them.kind == "shared" and name != method]
    if key not in shared:
        raise BadInput(
            f"{method}: base must be one of the shared methods {', '.join(shared)}, got {base!r}"
        )
    entry = METHODS[key]
    _check_options(entry.merge, options, base=key, method=method)
    takes_leaves = leaves is not None and "leaves" in _keywords(entry.merge)
    facts = {"leaves": leaves} if takes_leaves else {}
    if entry.plan is not None:
        return entry.plan(passes, **facts, **options)
    # Query, key and value as one matrix are three leaves, and statistics are those of all.
    if entry.streams and not options.get("fuse_qkv") and "moments" not in options:

        def one(path: str, leaf: Array) -> Array:
            merged = entry.merge({path: jnp.asarray(leaf)}, **facts, **options)
            return jax.tree.leaves(merged)[0]

        # Without facts and options nothing depends on the path.
        return one if facts or options else lambda path, leaf: _merged(leaf, merge=entry.merge)
    merged = entry.merge(dict(passes()), **facts, **options)
    return lambda path, leaf: merged[path]


@partial(jax.jit, static_argnames="merge")
def _merged(leaf: Array, *, merge: Callable[..., Any]) -> Array:
    return merge({"leaf": leaf})["leaf"]


def _keywords(function: Any) -> set[str]:
    code = inspect.signature(function)
    return {name for name, p in code.parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY}


def _check_options(function: Any, options: dict[str, Any], *, base: str, method: str) -> None:
    known = _keywords(function)
    for name in options:
        if name not in known:
            has = f"; it has {', '.join(sorted(known))}" if known else "; it has none"
            raise BadInput(f"{method}: the base {base} has no option {name!r}{has}")
