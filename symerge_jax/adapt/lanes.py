"""Where the runs of a sweep are: spread over devices, in groups of lanes; and how many lanes.

See `many`, which runs them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from symerge_jax.adapt.fit import Feed
from symerge_jax.adapt.steps import Batch, Carry, Loss, Rules
from symerge_jax.notation import Array
from symerge_jax.parallel import Device

AXIS = "run"
# Of an accelerator's memory; the rest is for what XLA puts beside it.
_SHARE = 0.8
# Bytes that a CPU keeps close by; states of more runs than that would be fetched in every step.
_CACHE = 4 * 2**20


class Layout(NamedTuple):
    """Where the runs are; what is left over at the end is not run.

    Attributes:
        devices: that work side by side.
        groups: one after the other on each device.
        lanes: at a time in each group.
    """

    devices: tuple[Device, ...]
    groups: int
    lanes: int

    @property
    def places(self) -> int:
        """How many runs there is room for."""
        return len(self.devices) * self.groups * self.lanes

    @property
    def shape(self) -> tuple[int, ...]:
        """The leading axes of the arrays of all runs."""
        lanes = () if self.lanes == 1 else (self.lanes,)
        return (len(self.devices), self.groups, *lanes)


def laid_out(runs: int, devices: Sequence[Device], lanes: int) -> Layout:
    """Returns where so many runs go: on all devices alike, as soon done as possible.

    Args:
        runs: how many.
        devices: those that would have nothing to do are left out.
        lanes: of a group, at most.
    """
    lanes = min(lanes, -(-runs // len(devices)))
    groups = -(-runs // (len(devices) * lanes))
    return Layout(tuple(devices)[: -(-runs // (groups * lanes))], groups, lanes)


def lanes_that_fit(
    device: Device,
    rules: Rules,
    carry: Carry,
    shared: Any,
    feed: Feed,
    most: int,
    short: bool = False,
) -> int:
    """Returns how many runs a device is to take at a time, spread evenly over its groups.

    On a CPU one, whose steps keep it busy; if they are short, as many as have their states in its
    cache. On an accelerator as many as its memory holds beside what all runs share: the states of
    all its runs and, for each of those at a time, twice what a step keeps for its backward pass.

    Args:
        device: one of equal ones.
        rules: of the program.
        carry: of one run.
        shared: constants, inputs and targets.
        feed: of one schedule, for the shapes of a batch.
        most: runs on that device.
        short: whether steps are.
    """
    own = _bytes(carry._replace(key=()))
    limit = (device.memory_stats() or {}).get("bytes_limit")
    if device.platform == "cpu" or limit is None:
        fitting = _CACHE // max(own, 1) if short else 1
    else:
        free = _SHARE * limit - _bytes(shared) - most * own
        fitting = int(free / max(2 * kept_bytes(rules.loss, carry, shared, feed), 1))
    groups = -(-most // int(np.clip(fitting, 1, most)))
    return -(-most // groups)


def kept_bytes(loss: Loss, carry: Carry, shared: Any, feed: Feed) -> int:
    """Returns how much one run's step keeps from its forward for its backward pass.

    What it reads of arguments, such as task vectors, does not count.
    """
    chunk, _ = feed.chunk(0)
    constants, inputs, targets = shared

    def forward(trainables: Any, constants: Any, inputs: Any, targets: Any) -> Any:
        batch = Batch(
            jnp.int32(0), inputs, targets, jnp.asarray(chunk.mask[0]), carry.key, carry.step
        )

        def value(trainables: Any) -> Array:
            return loss(trainables, constants, carry.model_state, batch)[0]

        return jax.tree.leaves(jax.vjp(value, trainables)[1])

    def rows(tree: Any) -> Any:
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct((*size, *x.shape[1:]), x.dtype), tree)

    size = chunk.rows[0].shape
    own = rows(inputs) if chunk.own_inputs is None else jax.tree.map(lambda x: x[0], chunk[-1])
    traced = jax.make_jaxpr(forward)(carry.trainables, constants, own, rows(targets)).jaxpr
    given = {id(var) for var in traced.invars}
    kept = {id(var): var.aval for var in traced.outvars if id(var) not in given}
    return sum(aval.size * aval.dtype.itemsize for aval in kept.values())


def arranged(tree: Any, layout: Layout) -> Any:
    """Puts arrays [run, ...] where their runs are; places left over get the last run's."""
    sharding = NamedSharding(Mesh(np.array(layout.devices), (AXIS,)), PartitionSpec(AXIS))

    def place(x: np.ndarray) -> Array:
        if missing := layout.places - len(x):
            x = np.concatenate([x, np.repeat(x[-1:], missing, axis=0)])
        return jax.device_put(x.reshape(*layout.shape, *x.shape[1:]), sharding)

    return jax.tree.map(place, tree)


def replicated(tree: Any, layout: Layout) -> Any:
    """Puts arrays whole on each device."""
    sharding = NamedSharding(Mesh(np.array(layout.devices), (AXIS,)), PartitionSpec())
    return jax.tree.map(lambda x: jax.device_put(x, sharding), tree)


def by_run(x: Array, layout: Layout, runs: int) -> np.ndarray:
    """Returns an array of all places as [run, ...] on the host."""
    host = np.asarray(x)
    return host.reshape(layout.places, *host.shape[len(layout.shape) :])[:runs]


def _bytes(tree: Any) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree) if hasattr(leaf, "nbytes"))
