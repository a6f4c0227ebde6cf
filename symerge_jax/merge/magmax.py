"""MagMax: each parameter takes the change of the task that changed it most.

Marczak et al., "MagMax: Leveraging Model Merging for Seamless Continual Learning", 2024.
https://arxiv.org/abs/2407.06322 (section 4). τ*[p] = τ_k̂[p] with k̂ = argmax_k |τ_k[p]|.

As the authors' code: of equal magnitudes the later task's entry stays, which matters where their
signs differ. The paper fine-tunes the tasks one after another; here the experts come from θ₀
independently, as in the tables that compare it. Scale: 0.5 in the authors' eight-task script.
"""

import jax
import jax.numpy as jnp

from symerge_jax.notation import Array, Params, TaskVectors


def magmax(task_vectors: TaskVectors) -> Params:
    """Returns the entry of largest magnitude at each position.

    Args:
        task_vectors: τ, leaves [task, ...], floating.

    Returns:
        Leaves [...] of the same dtypes. Streams: leaves do not depend on each other.
    """
    return jax.tree.map(_largest, task_vectors)


@jax.jit
def _largest(tau: Array) -> Array:
    largest = tau[0]
    for k in range(1, tau.shape[0]):
        largest = jnp.where(jnp.abs(tau[k]) >= jnp.abs(largest), tau[k], largest)
    return largest
