"""Weight averaging and task arithmetic by hand."""

import jax
import jax.numpy as jnp
from trees_close import assert_trees_close

from symerge_jax.merge.average import weight_average
from symerge_jax.merge.task_arithmetic import task_arithmetic
from symerge_jax.task_vectors import add, subtract

TAU = {"w": jnp.array([[4.0, -1.0], [2.0, 5.0], [0.0, -1.0]])}


def test_weight_average_by_hand():
    assert_trees_close(weight_average(TAU), {"w": jnp.array([2.0, 1.0])})


def test_task_arithmetic_by_hand():
    assert_trees_close(task_arithmetic(TAU), {"w": jnp.array([6.0, 3.0])})


def test_weight_average_is_the_mean_of_the_experts():
    pretrained = {"w": jnp.array([1.0, -2.0])}
    experts = [jax.tree.map(lambda w, t=t: w + t, pretrained, {"w": t}) for t in TAU["w"]]
    merged = add(pretrained, weight_average(subtract(experts, pretrained)))
    mean = jax.tree.map(lambda *leaves: jnp.stack(leaves).mean(axis=0), *experts)
    assert_trees_close(merged, mean)
