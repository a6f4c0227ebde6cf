"""What a GPU must do as a CPU does: python -m pytest -m gpu, on a machine that has one."""

import jax
import jax.numpy as jnp
import linear_world
import numpy as np
import pytest
from linear_world import classify, encode
from trees_close import assert_trees_close

from symerge_jax.adapt.coefficients import interpolate, per_leaf
from symerge_jax.adapt.symerge import symerge
from symerge_jax.merge.isotropic import iso_c
from symerge_jax.merge.leaves import Leaf
from symerge_jax.merge.ties import ties
from symerge_jax.merge.tsv import tsv_m
from symerge_jax.task_vectors import add

pytestmark = pytest.mark.gpu

# TensorFloat-32 keeps 10 bits of a factor: products would differ by 1e-3 of their size.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def on(platform, function, *trees):
    """What the function makes of trees on a device of that platform, as NumPy arrays."""
    device = jax.devices(platform)[0]
    with jax.default_device(device):
        made = function(*jax.device_put(trees, device))
        assert {leaf.device for leaf in jax.tree.leaves(made) if isinstance(leaf, jax.Array)} <= {
            device
        }
        return jax.tree.map(np.asarray, made)


def assert_same_on_both(function, *trees, **tolerance):
    ours, theirs = (on(platform, function, *trees) for platform in ("gpu", "cpu"))
    assert_trees_close(ours, theirs, **(CLOSE | tolerance))


def matrices(k=3, rows=48, columns=40):
    rng = np.random.default_rng(0)
    return {"w": rng.normal(size=(k, rows, columns)).astype(np.float32)}


def test_symerge_ends_where_it_does_on_a_cpu():
    def run(world):
        # Forward and backward passes may use TensorFloat-32; here they must not, to be compared.
        with jax.default_matmul_precision("highest"):
            adapted = symerge(encode, classify, *world, iterations=12, batch_size=4)
        return adapted.params, adapted.heads, adapted.coefficients, adapted.losses

    world = linear_world.make()
    ours, theirs = (on(platform, lambda: run(world)) for platform in ("gpu", "cpu"))
    assert_trees_close(ours, theirs, **CLOSE)


@pytest.mark.parametrize("name", ["ties", "iso_c", "tsv_m"])
def test_merging_multiplies_in_whole_float32(name):
    leaves = {"w": Leaf(matrix="in_out")}
    merge = {
        "ties": ties,
        "iso_c": lambda tau: iso_c(tau, leaves=leaves),
        "tsv_m": lambda tau: tsv_m(tau, leaves=leaves),
    }[name]
    assert_same_on_both(merge, matrices(), atol=5e-5)


def test_task_vectors_are_added_in_whole_float32():
    tau = matrices()
    theta = {"w": tau["w"].sum(axis=0)}
    assert_same_on_both(lambda t, v: interpolate(t, v, per_leaf(v, 0.3)), theta, tau)
    assert_same_on_both(lambda t, v: add(t, v, scale=0.3), theta, {"w": tau["w"][0]})


def test_the_gpu_tells_how_much_memory_is_used():
    device = jax.devices("gpu")[0]
    kept = jax.device_put(jnp.zeros((1024, 1024), jnp.float32), device).block_until_ready()
    stats = device.memory_stats()
    assert stats["bytes_in_use"] >= kept.nbytes
    assert stats["peak_bytes_in_use"] >= stats["bytes_in_use"]
    assert stats["bytes_limit"] > stats["bytes_in_use"]
