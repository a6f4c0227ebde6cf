"""Task vectors: τ_k = θ_k − θ₀, all of them in one pytree, and back to a model, θ₀ + scale · τ*.

Ilharco et al., "Editing Models with Task Arithmetic", 2023. https://arxiv.org/abs/2212.04089,
section 2.

Half-precision weights are widened to float32 before the subtraction, so that small differences
survive, and results are cast back to the dtype they came in.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from symerge_jax import trees
from symerge_jax.errors import BadInput
from symerge_jax.notation import Array, Params, TaskVectors


class Parts(NamedTuple):
    """The leaves that are merged, and those that θ₀ gives back as they are.

    Both have the model's structure with None where the leaf is in the other part.
    """

    merged: Params
    aside: Params


def widen(leaf: Array) -> Array:
    """Returns the leaf in float32, or float64 if it is."""
    leaf = jnp.asarray(leaf)
    return leaf.astype(trees.wide(leaf.dtype))


def subtract(experts: Sequence[Params], pretrained: Params) -> TaskVectors:
    """Returns τ: leaves [task, ...] in float32 (float64 where θ₀ is).

    Integer leaves are left out (None): they are counters and ids.

    Args:
        experts: θ_k, one pytree per task, at least two, all with θ₀'s structure, shapes, dtypes.
        pretrained: θ₀.

    Raises:
        BadInput: fewer than two experts; a tree that differs from θ₀ (the first path and both
            sides are named); a task vector with NaN or infinity.
    """
    if len(experts) < 2:
        raise BadInput(f"merging needs at least two experts, got {len(experts)}")
    for k, expert in enumerate(experts):
        trees.check_same(
            expert, pretrained, name=f"expert {k}", reference_name="the pre-trained model"
        )
    start, _ = trees.split(pretrained, trees.is_floating)
    floats = [trees.split(expert, trees.is_floating)[0] for expert in experts]

    task_vectors = _differences(start, floats)
    check_finite(task_vectors)
    return task_vectors


@jax.jit  # one program for all leaves: outside jit each shape would be compiled on its own
def _differences(start: Params, experts: list[Params]) -> TaskVectors:
    def leaf(theta0: Array, *thetas: Array) -> Array:
        return jnp.stack([widen(theta) - widen(theta0) for theta in thetas])

    return jax.tree.map(leaf, start, *experts)


@jax.jit
def _finite(task_vectors: TaskVectors) -> Params:
    return jax.tree.map(lambda x: jnp.isfinite(x).reshape(x.shape[0], -1).all(axis=1), task_vectors)


@jax.jit
def _changed(task_vectors: TaskVectors) -> Params:
    return jax.tree.map(lambda x: (x != 0).any(), task_vectors)


def check_finite(task_vectors: TaskVectors, names: Sequence[str] | None = None) -> None:
    """Looks for NaN and infinity; reads every value once.

    Args:
        task_vectors: τ, leaves [task, ...].
        names: how to call the tasks in the message; numbers otherwise.

    Raises:
        BadInput: names the first leaf and task with a value that is not finite.
    """
    for path, finite in jax.tree_util.tree_leaves_with_path(_finite(task_vectors)):
        rows = np.asarray(finite)
        if not rows.all():
            k = int(np.argmin(rows))
            raise BadInput(
                f"the task vector of {names[k] if names else f'task {k}'} is not finite at "
                f"{trees.path_name(path)}; expected numbers, got NaN or infinity: "
                "load that expert again or leave it out"
            )


def split_untrained(pretrained: Params, task_vectors: TaskVectors) -> tuple[Parts, TaskVectors]:
    """Sets aside the leaves that no expert changed (text left-overs, frozen layers).

    They need no coefficient, and their zeros would shift every quantile of a merging method.

    Returns:
        θ₀ in two parts, and τ without the untrained leaves. `give_back` joins a merged model.
    """
    changed = _changed(task_vectors)
    flags = {
        path
        for path, flag in zip(trees.paths(changed), jax.tree.leaves(changed), strict=True)
        if bool(flag)
    }
    merged, aside = trees.split(pretrained, lambda path, _: path in flags)
    trained, _ = trees.split(task_vectors, lambda path, _: path in flags)
    return Parts(merged, aside), trained


def give_back(merged: Params, aside: Params) -> Params:
    """Joins merged leaves with those set aside: the whole model again."""
    return trees.combine(merged, aside)


def add(pretrained: Params, task_vector: Params, *, scale: float | Array = 1.0) -> Params:
    """Returns θ = θ₀ + scale · τ*, in the dtypes of θ₀.

    Args:
        pretrained: θ₀. Leaves for which `task_vector` has None are returned as they are.
        task_vector: τ*, one task's leaves [...], unscaled.
        scale: the merging coefficient.
    """

    def leaf(theta0: Array | None, tau: Array | None) -> Array | None:
        if tau is None:
            return theta0
        assert theta0 is not None, "a task vector for a leaf that θ₀ lacks"
        moved = widen(theta0) + jnp.asarray(scale, tau.dtype) * tau
        return moved.astype(jnp.result_type(theta0))

    return jax.tree.map(leaf, pretrained, task_vector, is_leaf=lambda x: x is None)
