"""What `benchmarks.merge_methods` merges, and how a user of the library calls a method.

Task vectors have the shapes of an image tower and random numbers: a normal distribution with three
entries of a hundred ten times as large. Each leaf of a task has a random stream of its own, so the
first tasks of eight are those of two, and a part of a tower has the numbers of the whole.
"""

import math
import os
import zlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from symerge_jax.leaf_facts import tower_leaves
from symerge_jax.merge import METHODS
from symerge_jax.merge.leaves import Leaf
from symerge_jax.models.clip import PRESETS, param_shapes
from symerge_jax.second_moments import Moment

# They take minutes for a tower, nearly all of it in decompositions of matrices.
DECOMPOSING = ("tsv_m", "tsv_c", "iso_c", "iso_cts", "lot", "regmean")

_ALIGNMENT = 64  # bytes: JAX uses such memory as it is and copies any other
_LARGE_EVERY, _LARGE = 33, 10  # one entry of so many is so many times as large


class Tower(NamedTuple):
    """The leaves that are merged: path → shape, and path → facts; and the size of all of them."""

    shapes: dict[str, tuple[int, ...]]
    facts: dict[str, Leaf]
    whole_bytes: int

    @property
    def bytes(self) -> int:
        """Of one task's leaves in float32."""
        return 4 * sum(map(math.prod, self.shapes.values()))


def tower(model: str, blocks: int | None = None) -> Tower:
    """Returns an image tower, or the leaves of its first blocks if they are not all.

    Args:
        model: a preset of `symerge_jax.models.clip`.
        blocks: how many; None, or as many as there are, also takes the leaves outside the blocks.
    """
    config = PRESETS[model].vision
    tree = param_shapes(config)
    leaves: dict[str, Any] = flatten_dict(tree, sep="/")
    shapes = {path: leaf.shape for path, leaf in leaves.items()}
    facts: dict[str, Any] = flatten_dict(tower_leaves(tree), sep="/")
    size = 4 * sum(map(math.prod, shapes.values()))
    if blocks is not None and blocks < config.depth:
        inside = tuple(f"blocks_{i}/" for i in range(blocks))
        shapes = {path: shape for path, shape in shapes.items() if path.startswith(inside)}
    return Tower(shapes, {path: facts[path] for path in shapes}, size)


def cores() -> int:
    """The processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def draw(
    shapes: dict[str, tuple[int, ...]], tasks: int, *, seed: int = 0, size: float = 1e-3
) -> dict[str, np.ndarray]:
    """Returns random leaves float32 [task, ...], in memory that JAX takes without a copy."""
    leaves = {path: aligned((tasks, *shape)) for path, shape in shapes.items()}

    def fill(place: tuple[str, int]) -> None:
        path, k = place
        numbers = leaves[path][k].reshape(-1)
        rng = np.random.default_rng([seed, zlib.crc32(path.encode()), k])
        rng.standard_normal(out=numbers, dtype=np.float32)
        numbers *= np.float32(size)
        numbers[rng.integers(0, numbers.size, numbers.size // _LARGE_EVERY)] *= np.float32(_LARGE)

    with ThreadPoolExecutor(cores()) as pool:
        list(pool.map(fill, [(path, k) for path in shapes for k in range(tasks)]))
    return leaves


def aligned(shape: tuple[int, ...], dtype: Any = np.float32) -> np.ndarray:
    """Returns an array of undefined numbers in memory that JAX takes without a copy."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    room = np.empty(size + _ALIGNMENT, np.uint8)
    start = -room.ctypes.data % _ALIGNMENT
    return room[start : start + size].view(dtype).reshape(shape)


def on_device(leaves: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """Returns JAX arrays; on a CPU they are the same memory."""
    return {path: jax.device_put(leaf, may_alias=True) for path, leaf in leaves.items()}


def first(leaves: dict[str, np.ndarray], tasks: int, paths: Iterable[str]) -> dict[str, np.ndarray]:
    """Returns the first tasks of these leaves, without a copy."""
    return {path: leaves[path][:tasks] for path in paths}


def extras(name: str, part: Tower, tasks: int) -> dict[str, Any]:
    """Returns what a method takes beside the task vectors; the statistics are random too."""
    needs, more = METHODS[name].needs, {}
    if "leaves" in needs:
        more["leaves"] = part.facts
    if "pretrained" in needs:
        start = draw(part.shapes, 1, seed=1, size=0.02)
        more["pretrained"] = on_device({path: leaf[0] for path, leaf in start.items()})
    if name == "fisher":
        more["moments"] = on_device(_squares(draw(part.shapes, tasks, seed=2)))
    elif "moments" in needs:
        more["moments"] = _second_moments(part, tasks)
    return more


def _squares(leaves: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    for leaf in leaves.values():
        np.square(leaf, out=leaf)
    return leaves


def _second_moments(part: Tower, tasks: int) -> dict[str, Moment]:
    """Path → Gram matrices [task, in, in] of linear weights, squares [task, d] of norm scales."""
    rng = np.random.default_rng(3)
    found = {}
    for path, shape in part.shapes.items():
        linear = part.facts[path].matrix == "in_out"
        if not linear and not path.endswith("/scale"):
            continue
        features = shape[0]
        rows = 2 * features  # so that no direction is missing
        second = aligned((tasks, features, features) if linear else (tasks, features))
        for own in second:
            x = rng.standard_normal((rows, features), np.float32)
            own[...] = x.T @ x / np.float32(rows) if linear else np.square(x).mean(axis=0)
        counts = jnp.full(tasks, rows, jnp.float32)
        found[path] = Moment(jax.device_put(second, may_alias=True), counts)
    return found


def program(name: str) -> Callable[..., Any]:
    """Returns the function of a method as one calls it on trees in memory.

    Those that go over leaf by leaf have small programs of their own; the rest is one program.
    """
    method = METHODS[name]
    by_leaf = method.plan is not None or not {"leaves", "moments"}.isdisjoint(method.needs)
    return method.merge if by_leaf else jax.jit(method.merge)
