"""Task arithmetic: the sum of the task vectors.

Ilharco et al., "Editing Models with Task Arithmetic", 2023. https://arxiv.org/abs/2212.04089,
section 4.2. The scale (0.3 in the eight-task tables) is applied outside, θ = θ₀ + λ Σ_k τ_k.
"""

import jax

from symerge_jax.notation import Params, TaskVectors
from symerge_jax.trees import add_up


def task_arithmetic(task_vectors: TaskVectors) -> Params:
    """Returns τ* = Σ_k τ_k.

    Args:
        task_vectors: τ, leaves [task, ...], floating.

    Returns:
        Leaves [...] of the same dtypes. Streams: leaves do not depend on each other.
    """
    return jax.tree.map(add_up, task_vectors)
