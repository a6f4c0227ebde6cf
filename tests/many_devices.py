"""Runs on several devices and on one, in processes of their own; test_across.py reads the JSON.

    python many_devices.py DTYPE [VARIANT ...]

Eight devices, of one process or, with JAX_COORDINATOR_ADDRESS and the like, of several.
Processes start with the devices they will ever have.
"""

import contextlib
import json
import os
import re
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from symerge_jax.adapt import fit
from symerge_jax.adapt.adamerging import adamerging
from symerge_jax.adapt.objectives import ExpertLabels
from symerge_jax.adapt.symerge import symerge
from symerge_jax.parallel import join_processes, run_jobs


def main(dtype, *names):
    jax.config.update("jax_enable_x64", dtype == "float64")
    number = join_processes()
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", 8 // int(os.environ.get("JAX_NUM_PROCESSES", 1)))
    found = {}
    for name in names or VARIANTS:
        one, several = (run(dtype, devices, VARIANTS[name]) for devices in (None, jax.devices()))
        found[name] = far(one, several) | {"collectives": several["collectives"]}
    if not names:
        found["independent runs"] = independent(dtype)
    if number == 0:
        print(json.dumps({"devices": jax.device_count(), "found": found}))


def independent(dtype):
    """Whether runs that are spread over the devices have the bits of runs on one."""

    def job(seed):
        pretrained, tau, heads, inputs, experts = world(dtype)
        return symerge(
            encode, classify, pretrained, tau, heads, inputs, experts,
            iterations=6, batch_size=16, seed=seed,
        )  # fmt: skip

    jobs = [partial(job, seed) for seed in range(3)]
    spread, alone = (run_jobs(jobs, devices) for devices in (jax.devices(), jax.devices()[:1]))
    pairs = zip(jax.tree.leaves(spread), jax.tree.leaves(alone), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


VARIANTS = {
    "symerge": {},
    "shares": {"split_task_vectors": True},
    "int8 shares": {"split_task_vectors": True, "stored_as": "int8"},
    "head only": {"coefficient_rate": 0.0},
    "entropy": {"entropy": True},
    "odd batch": {"batch_size": 5},
    "own layer": {"layer": {"first": False, "second": True}, "head_rate": 0.0},
}
WIDTH, CLASSES, PIXELS = 128, 5, 192


def encode(theta, images):
    hidden = jnp.tanh(images.astype(theta["first"].dtype) / 255 @ theta["first"])
    return jnp.tanh(hidden @ theta["second"])


def classify(head, features):
    return features @ head


def world(dtype):
    rng = np.random.default_rng(0)

    def normal(*shape):
        return rng.normal(size=shape).astype(dtype)

    pretrained = {"first": normal(PIXELS, WIDTH) / 14, "second": normal(WIDTH, WIDTH) / 11}
    tau = jax.tree.map(lambda x: 0.5 * normal(3, *x.shape) / 12, pretrained)
    heads = normal(3, WIDTH, CLASSES) / 6
    inputs = [rng.integers(0, 256, (n, PIXELS), np.uint8) for n in (40, 31, 25)]
    experts = [
        ExpertLabels(rng.integers(0, CLASSES, len(x), np.int32), np.full(len(x), 0.9, dtype))
        for x in inputs
    ]
    return pretrained, tau, heads, inputs, experts


def run(dtype, devices, options):
    pretrained, tau, heads, inputs, experts = world(dtype)
    options = {"iterations": 6, "batch_size": 16, "devices": devices} | options
    start = encode, classify, pretrained, tau, heads, inputs
    with compiled_text() as programs:
        if options.pop("entropy", False):
            adapted = adamerging(*start, **options)
        else:
            adapted = symerge(*start, experts, **options)
    arrays = jax.tree.map(np.asarray, adapted._asdict())
    return arrays | {"collectives": {name: sent(name, programs[0]) for name in COLLECTIVES}}


COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


def sent(name, program):
    """What each collective of this kind returns, as XLA writes it."""
    return re.findall(rf"= (\S+|\(.*?\)) {name}(?:-start)?\(", program)


@contextlib.contextmanager
def compiled_text():
    """Collects the text of the program that `fit` runs."""
    programs, original = [], fit.run_chunk

    compiled = []

    def run_chunk(*args, **kwargs):
        if not compiled:  # once, and for all chunks, which have one shape
            compiled.append(original.lower(*args, **kwargs).compile())
            programs.append(compiled[0].as_text())
        del kwargs["rules"]
        return compiled[0](*args, **kwargs)

    fit.run_chunk = run_chunk
    yield programs
    fit.run_chunk = original


def far(one, several):
    """The largest difference of each part of the result."""
    found = {}
    for part in ("params", "coefficients", "heads", "layers", "losses"):
        pairs = zip(jax.tree.leaves(one[part]), jax.tree.leaves(several[part]), strict=True)
        found[part] = max((float(np.abs(a - b).max()) for a, b in pairs), default=0.0)
    found["kept"] = int((one["kept"] != several["kept"][:, : one["kept"].shape[1]]).sum())
    return found


if __name__ == "__main__":
    main(*sys.argv[1:])
