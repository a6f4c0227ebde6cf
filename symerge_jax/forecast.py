"""What an adaptation will need: memory per device and seconds, from shapes alone.

FLOPs are XLA's count for the forward pass and its gradient, before it optimises them; activations
are what the gradient keeps of the forward pass. Both overestimate a little, as XLA fuses and drops
some. Rates of the device are measured, in a fraction of a second. Seconds are FLOPs over the rate
of matrix products plus bytes of task vectors over the memory's: a step does one after the other.
Compilation is not in it.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from symerge_jax.adapt.fit import FEED_BYTES, RESIDENT_BYTES
from symerge_jax.notation import Array

BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}


class Rates(NamedTuple):
    """What a device was seen to do.

    Attributes:
        flops: of a matrix product, per second.
        bandwidth: bytes read and written, per second.
    """

    flops: float
    bandwidth: float


class Cost(NamedTuple):
    """One mini-batch through the network and back.

    Attributes:
        forward: FLOPs of the forward pass.
        both: FLOPs of the forward pass and the gradient of the parameters.
        activations: bytes that the gradient keeps of the forward pass.
        inputs: bytes of one input.
        parameters: numbers in the encoder.
        head: numbers in a head.
    """

    forward: float
    both: float
    activations: int
    inputs: int
    parameters: int
    head: int


def cost_of(
    encode: Callable[[Any, Any], Array],
    classify: Callable[[Any, Array], Array],
    params: Any,
    head: Any,
    inputs: Any,
) -> Cost:
    """Returns what a mini-batch costs; nothing is worked out but shapes.

    Args:
        encode: (θ, inputs) → features.
        classify: (head, features) → logits.
        params: θ, leaves with shape and dtype.
        head: of one task, likewise.
        inputs: one mini-batch, leaves [batch, ...], likewise.
    """
    params, head, inputs = jax.tree.map(_shape, (params, head, inputs))

    def loss(params: Any, head: Any, inputs: Any) -> Array:
        return classify(head, encode(params, inputs)).astype(jnp.float32).sum()

    def gradient(params: Any, head: Any, inputs: Any) -> Any:
        return jax.value_and_grad(loss, argnums=(0, 1))(params, head, inputs)

    def kept(params: Any, head: Any, inputs: Any) -> Any:
        return jax.vjp(lambda p: loss(p, head, inputs), params)[1]

    residuals = jax.tree.leaves(jax.eval_shape(kept, params, head, inputs))
    batch = jax.tree.leaves(inputs)[0].shape[0]
    # Of the parameters themselves the gradient keeps no copy.
    activations = sum(map(_bytes, residuals)) - sum(map(_bytes, jax.tree.leaves(params)))
    return Cost(
        _flops(jax.jit(loss).lower(params, head, inputs)),
        _flops(jax.jit(gradient).lower(params, head, inputs)),
        max(0, activations),
        sum(map(_bytes, jax.tree.leaves(inputs))) // batch,
        sum(math.prod(x.shape) for x in jax.tree.leaves(params)),
        sum(math.prod(x.shape) for x in jax.tree.leaves(head)),
    )


def memory(
    cost: Cost,
    *,
    tasks: int,
    samples: int,
    devices: int = 1,
    shared: bool = False,
    stored_as: str = "float32",
) -> dict[str, int]:
    """Returns the bytes that each device holds while it adapts, by part, and their sum.

    Args:
        cost: of a mini-batch.
        tasks: K.
        samples: inputs of all tasks together.
        devices: that share a mini-batch.
        shared: whether each of them keeps only its share of θ₀ and τ.
        stored_as: type of τ.
    """
    parts = devices if shared else 1
    heads = 4 * tasks * cost.head
    inputs = samples * cost.inputs
    found = {
        "task vectors": tasks * cost.parameters * BYTES[stored_as] // parts,
        "pre-trained model": 4 * cost.parameters // parts,
        "merged model and its gradient": 2 * 4 * cost.parameters,
        "heads and their optimiser": 3 * heads,
        # What does not stay on the device comes in chunks, of which the next is on its way.
        "inputs": inputs if inputs <= RESIDENT_BYTES else 2 * FEED_BYTES,
        "activations": cost.activations // devices,
    }
    return found | {"total": sum(found.values())}


def step_seconds(cost: Cost, rates: Rates, *, tasks: int, stored_as: str = "float32") -> float:
    """Returns the seconds of one adaptation step on one device."""
    moved = cost.parameters * (2 * tasks * BYTES[stored_as] + 5 * 4)
    return cost.both / rates.flops + moved / rates.bandwidth


@cache
def measured_rates(dtype: str = "float32") -> Rates:
    """Returns what the default device does, from two short programs.

    Args:
        dtype: of the matrix product; accelerators take float32 at JAX's default precision.
    """
    n = 1024 if jax.default_backend() == "cpu" else 8192
    matrix = jnp.ones((n, n), jnp.dtype(dtype))
    vector = jnp.ones((2**24 if n == 1024 else 2**28,), jnp.float32)
    product = _seconds(jax.jit(lambda x: x @ x), matrix)
    scaled = _seconds(jax.jit(lambda x: x * jnp.float32(1.5)), vector)
    return Rates(2 * n**3 / product, 2 * vector.nbytes / scaled)


def peak_memory(devices: Sequence[Any]) -> dict[str, Any]:
    """Returns the most memory that was in use, of the fullest device or else of the process."""
    peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use") for device in devices]
    known = [peak for peak in peaks if peak is not None]
    if known:
        return {"peak_bytes": max(known), "of": "the fullest device"}
    try:
        import resource
    except ImportError:  # Windows
        return {"peak_bytes": None, "of": "nobody counts it on this system"}
    unit = 1 if sys.platform == "darwin" else 1024
    return {
        "peak_bytes": unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "of": "the process",
    }


def _seconds(run: Callable[[Array], Array], x: Array) -> float:
    jax.block_until_ready(run(x))
    best = math.inf
    for _ in range(3):
        since = time.perf_counter()
        jax.block_until_ready(run(x))
        best = min(best, time.perf_counter() - since)
    return best


def _flops(lowered: Any) -> float:
    return float((lowered.cost_analysis() or {}).get("flops", 0.0))


def _shape(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)


def _bytes(leaf: Any) -> int:
    return math.prod(leaf.shape) * leaf.dtype.itemsize
