"""Symbols and shapes, named once for the whole library.

| symbol | name in code | shape | meaning |
|---|---|---|---|
| θ₀ | pretrained | a pytree, leaves [...] | the pre-trained encoder |
| θ_k | experts[k] | the same pytree | the encoder fine-tuned on task k |
| τ_k = θ_k − θ₀ | task_vectors | the same pytree, leaves [task, ...] | all task vectors, stacked |
| λ | coefficients | the same pytree, leaves [task]; or one [task] | merging coefficients |
| θ | merged | the same pytree, leaves [...] | θ₀ + Σ_k λ_k τ_k |
| z | logits | [batch, classes] | what a head makes of features |

Axes: `task`, `batch`, `classes`, `features`, `step`, and `n` for raveled parameters. A leaf is one
tensor of the source checkpoint, hence one coefficient per task.

Shape annotations are jaxtyping's. It is needed only to check them, as the tests do; without it
they mean nothing and cost nothing.
"""
# ruff: noqa: F722  (shape strings)

from typing import TYPE_CHECKING, Any, TypeAlias

import jax
import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int, PyTree, Shaped
else:
    try:
        from jaxtyping import Bool, Float, Int, PyTree, Shaped
    except ModuleNotFoundError:

        class _Unchecked:
            def __class_getitem__(cls, item):
                return Any

        Bool = Float = Int = PyTree = Shaped = _Unchecked

Array: TypeAlias = jax.Array | np.ndarray

Params: TypeAlias = PyTree[Shaped[Array, "..."]]
TaskVectors: TypeAlias = PyTree[Float[Array, "task ..."]]
Coefficients: TypeAlias = PyTree[Float[Array, " task"]]

__all__ = [
    "Array",
    "Bool",
    "Coefficients",
    "Float",
    "Int",
    "Params",
    "PyTree",
    "Shaped",
    "TaskVectors",
]
