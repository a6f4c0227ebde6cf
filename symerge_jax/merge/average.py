"""Weight averaging: the mean of the experts.

Wortsman et al., "Model soups", 2022. https://arxiv.org/abs/2203.05482 (uniform soup). As a method
on task vectors: θ₀ + mean_k τ_k = mean_k θ_k.
"""

import jax

from symerge_jax.notation import Params, TaskVectors
from symerge_jax.trees import add_up


def weight_average(task_vectors: TaskVectors) -> Params:
    """Returns τ* = 1/K Σ_k τ_k.

    Args:
        task_vectors: τ, leaves [task, ...], floating.

    Returns:
        Leaves [...] of the same dtypes. Streams: leaves do not depend on each other.
    """
    return jax.tree.map(lambda tau: add_up(tau) / tau.shape[0], task_vectors)
