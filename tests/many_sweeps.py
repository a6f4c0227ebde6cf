"""Sweeps on eight devices and on one, in a process of its own: `python many_sweeps.py`.

Prints a JSON object; test_sweep.py reads it. In float64: programs for one device and for several
are compiled differently, and round differently.
"""

import json
from collections import Counter

import jax
import linear_world
import numpy as np

DEVICES = 8


def main():
    from symerge_jax.adapt.sweep import Point

    jax.config.update("jax_num_cpu_devices", DEVICES)
    jax.config.update("jax_enable_x64", True)
    world = jax.tree.map(
        lambda x: np.asarray(x, np.float64) if x.dtype == np.float32 else x, linear_world.make()
    )
    points = [
        Point(rate, 0.01, start, seed)
        for rate, start in ((0.01, 0.1), (0.01, 0.3), (0.1, 0.3))
        for seed in (0, 1, 2)
    ]  # nine: with two each, five devices have enough, and one place is left over
    heads = [point._replace(coefficient_rate=0.0) for point in points]
    everywhere = jax.devices()
    programs, found = {}, {}
    for count in (8, 2, 1):
        with counted() as names:
            found[count] = run(world, points, everywhere[:count])
        programs[count] = names["jit(_fun)"]
    singles = [alone(world, point) for point in points[:3]]
    several, one = (run(world, heads, devices) for devices in (everywhere, everywhere[:1]))
    print(json.dumps({
        "programs": programs,
        "8 and 2 devices": far(found[8], found[2]),
        "8 and 1 devices": far(found[8], found[1]),
        "one by one": far(found[1][:3], singles),
        "heads only, 8 and 1 devices": far(several, one),
    }))  # fmt: skip


def run(world, points, devices):
    from symerge_jax.adapt.sweep import sweep

    found = sweep(
        linear_world.encode, linear_world.classify, *world, points,
        iterations=6, batch_size=4, devices=devices, chunk_steps=7,
    )  # fmt: skip
    return [(one.coefficients, one.heads, one.losses) for one in found]


def alone(world, point):
    from symerge_jax.adapt.symerge import symerge

    one = symerge(
        linear_world.encode, linear_world.classify, *world,
        iterations=6, batch_size=4, coefficient_rate=point.coefficient_rate,
        head_rate=point.head_rate, initial_coefficient=point.initial_coefficient, seed=point.seed,
    )  # fmt: skip
    return one.coefficients, one.heads, one.losses


def far(one, other):
    """The largest difference."""
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return max(float(np.abs(a - b).max()) for a, b in pairs)


class counted:
    """Counts the programs that are compiled, by name."""

    def __enter__(self):
        self.names = Counter()
        jax.monitoring.register_event_duration_secs_listener(self.listen)
        return self.names

    def listen(self, event, seconds, fun_name="", **_):
        if event == "/jax/core/compile/backend_compile_duration":
            self.names[fun_name] += 1

    def __exit__(self, *error):
        jax.monitoring.unregister_event_duration_listener(self.listen)


if __name__ == "__main__":
    main()
