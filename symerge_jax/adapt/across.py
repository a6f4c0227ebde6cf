"""One run over several devices: each takes a part of every mini-batch.

The compiled program is that of one device, run by all of them (`jax.shard_map`). Each merges the
encoder, or its share of the leaves where task vectors are split, and works on its part of the
batch. Sums over the batch (`total`) go over all devices, and so do the gradients of coefficients
and heads: some kilobytes per step, where gradients of the whole encoder would be hundreds of
megabytes. Where task vectors are split, the merged leaves are gathered once per step (`whole`) and
their gradients are summed as they are split again.

Everything here does nothing outside such a program.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from symerge_jax.notation import Array, Params
from symerge_jax.parallel import Device

AXIS = "data"
NOT_SPLIT = -1
_SMALL = 1 << 14  # numbers; leaves below are whole on each device
_INSIDE: ContextVar[bool] = ContextVar("inside", default=False)


class Split(NamedTuple):
    """Over what a run is split; hashable.

    Attributes:
        devices: that take part, of all processes.
        axes: of each leaf of the constants, the axis that is split over the devices, or -1.
    """

    devices: tuple[Device, ...]
    axes: tuple[int, ...]


def total(x: Array) -> Array:
    """Returns the sum over all devices of what each of them has summed over its part."""
    return jax.lax.psum(x, AXIS) if _INSIDE.get() else x


def varying(tree: Any) -> Any:
    """Marks arrays as each device's own, so that gradients are not summed before they must be."""
    if not _INSIDE.get():
        return tree

    def mark(x: Array) -> Array:
        return x if _varies(jax.typeof(x)) else jax.lax.pcast(x, AXIS, to="varying")

    return jax.tree.map(mark, tree)


def _varies(kind: Any) -> bool:
    """Whether an array of this type is each device's own."""
    manual = getattr(kind, "manual_axis_type", None)  # `vma` before JAX 0.10
    return AXIS in (getattr(kind, "vma", None) or () if manual is None else manual.varying)


def like(x: Array, shape: jax.ShapeDtypeStruct) -> Array:
    """Marks an array as `shape` is marked."""
    return varying(x) if _varies(shape) else x


def whole(params: Params, axes: Sequence[int]) -> Params:
    """Puts leaves together of which each device has merged its share; axes as for `split_axes`."""
    if not axes:
        return params
    leaves, structure = jax.tree.flatten(params)
    return structure.unflatten(
        leaf if axis == NOT_SPLIT else jax.lax.all_gather(leaf, AXIS, axis=axis, tiled=True)
        for leaf, axis in zip(leaves, axes, strict=True)
    )


def split_axes(params: Params, count: int) -> Any:
    """Returns, per leaf, its longest axis that `count` devices can share evenly, else -1.

    Args:
        params: leaves [...]; small ones are not split.
        count: of devices.
    """

    def axis(leaf: Array) -> int:
        fitting = [i for i, n in enumerate(np.shape(leaf)) if n % count == 0]
        if not fitting or np.size(leaf) < _SMALL:
            return NOT_SPLIT
        return max(fitting, key=lambda i: np.shape(leaf)[i])

    return jax.tree.map(axis, params)


def stacked(axis: int) -> int:
    """Returns the axis of a leaf [task, ...] for that of a leaf [...]."""
    return axis if axis == NOT_SPLIT else axis + 1


def unsplit(tree: Any) -> Any:
    """Returns the axes of what every device has whole."""
    return jax.tree.map(lambda _: NOT_SPLIT, tree)


def mesh_of(devices: tuple[Device, ...]) -> Mesh:
    """Returns the devices in a row."""
    return Mesh(np.array(devices), (AXIS,))


def mapped(run: Callable[..., Any], split: Split) -> Callable[..., Any]:
    """Returns a function like `steps` that runs on all devices and gives all of them its result."""

    def inside(*args: Any) -> Any:
        token = _INSIDE.set(True)
        try:
            return run(*args)
        finally:
            _INSIDE.reset(token)

    def call(
        carry: Any, constants: Any, inputs: Any, targets: Any, rates: Any, chunk: Any, count: Any
    ) -> Any:
        everywhere, batches = PartitionSpec(), PartitionSpec(None, AXIS)
        made = type(chunk)(everywhere, batches, batches, everywhere, batches)
        mesh = mesh_of(split.devices)
        result = jax.shard_map(
            inside,
            mesh=mesh,
            in_specs=(everywhere, _specs(constants, split.axes), *3 * (everywhere,), made,
                      everywhere),
            # (carry, count, losses, extra); what is kept of each sample lies with its device
            out_specs=(everywhere, everywhere, everywhere, batches),
        )(carry, constants, inputs, targets, rates, chunk, count)  # fmt: skip
        return jax.lax.with_sharding_constraint(result, NamedSharding(mesh, everywhere))

    return call


def _specs(tree: Any, axes: Sequence[int]) -> Any:
    return jax.tree.structure(tree).unflatten(
        PartitionSpec(*(None,) * axis, AXIS) if axis != NOT_SPLIT else PartitionSpec()
        for axis in axes
    )


def place(tree: Any, split: Split, axes: Sequence[int] | None = None) -> Any:
    """Puts arrays on the devices of a run: split along `axes`, whole on each without."""
    mesh = mesh_of(split.devices)
    leaves, structure = jax.tree.flatten(tree)
    axes = [NOT_SPLIT] * len(leaves) if axes is None else axes
    specs = jax.tree.leaves(_specs(tree, axes))
    placed = [
        _put(leaf, NamedSharding(mesh, spec)) for leaf, spec in zip(leaves, specs, strict=True)
    ]
    return structure.unflatten(placed)


def place_batches(tree: Any, split: Split) -> Any:
    """Puts leaves [step, batch, ...] on the devices, each with its part of every mini-batch."""
    sharding = NamedSharding(mesh_of(split.devices), PartitionSpec(None, AXIS))
    return jax.tree.map(lambda x: _put(x, sharding), tree)


def _put(x: Any, sharding: NamedSharding) -> Any:
    if isinstance(x, jax.Array) and x.sharding == sharding:
        return x
    if jnp.issubdtype(jnp.result_type(x), jax.dtypes.prng_key):
        data = _put(jax.random.key_data(x), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
    if sharding.is_fully_addressable:
        return jax.device_put(x, sharding)
    host = np.asarray(x)  # each process has all of it, and gives its own devices their part
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def brought_home(tree: Any) -> Any:
    """Returns what all devices have alike as arrays of one device of this process."""
    return jax.tree.map(_first, tree)


def _first(x: Any) -> Any:
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        data = _first(jax.random.key_data(x))
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
    return x.addressable_data(0)


@cache
def gathering(devices: tuple[Device, ...]) -> Callable[[Any], Any]:
    """Returns a program that gives every device the whole of arrays that lie in parts."""
    sharding = NamedSharding(mesh_of(devices), PartitionSpec())
    return jax.jit(lambda tree: tree, out_shardings=sharding)
