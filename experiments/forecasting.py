"""What an experiment will need, before it begins; and beside it, what it needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.methods import Constants, base_of, is_adaptive
from experiments.options import Options
from experiments.tasks.clip_sets import clip_set
from experiments.tasks.images import TEST
from symerge_jax.classifier import encoder
from symerge_jax.dense import network
from symerge_jax.forecast import Cost, cost_of, measured_rates, memory, step_seconds
from symerge_jax.models.clip import param_shapes
from symerge_jax.models.clip_config import VisionConfig
from symerge_jax.models.dense_heads import decoder_shapes
from symerge_jax.models.heads import normalised_head
from symerge_jax.models.resnet import variable_shapes
from symerge_jax.models.resnet_config import DecoderConfig, ResNetConfig
from symerge_jax.models.roberta import classify, encode_tokens
from symerge_jax.models.roberta import initial_head as initial_text_head
from symerge_jax.models.roberta import param_shapes as roberta_shapes
from symerge_jax.models.roberta_config import RobertaConfig

CLASSES = 100  # of a task, where nobody has counted them yet
SEGMENTATION = 13  # classes of NYUv2


def text_cost(config: RobertaConfig, length: int, batch_size: int, dtype: str) -> Cost:
    """Returns what a mini-batch of texts costs, all of them as long as can be."""
    shape = jax.ShapeDtypeStruct
    head = jax.eval_shape(lambda: initial_text_head(config, 2, jax.random.key(0)))
    encode = encode_tokens(config, dtype=None if dtype == "float32" else jnp.dtype(dtype))
    tokens = shape((batch_size, length), jnp.int32)
    return cost_of(encode, classify, roberta_shapes(config), head, tokens)


def scene_cost(
    config: ResNetConfig,
    decoder: DecoderConfig,
    size: tuple[int, int],
    batch_size: int,
    dtype: str,
) -> Cost:
    """Returns what a mini-batch of scenes costs, with the decoder of a segmentation."""
    own = network(config, decoder, size, dtype)
    trunk, head = variable_shapes(config), decoder_shapes(decoder, SEGMENTATION)
    images = jax.ShapeDtypeStruct((batch_size, *size, 3), jnp.uint8)
    return cost_of(own.encode, own.decode, trunk, head, images)


def cost(config: VisionConfig, batch_size: int, dtype: str) -> Cost:
    """Returns what a mini-batch of a tower costs."""
    shape, width = jax.ShapeDtypeStruct, config.projection or config.width
    head = {"weight": shape((CLASSES, width), jnp.float32), "bias": shape((CLASSES,), jnp.float32)}
    images = shape((batch_size, config.image_size, config.image_size, 3), jnp.uint8)
    return cost_of(encoder(config, dtype), normalised_head, param_shapes(config), head, images)


def forecast(
    one: Cost,
    constants: Constants,
    methods: Sequence[str],
    settings: Options,
    tests: Mapping[str, int],
    devices: Sequence[Any],
) -> dict[str, Any]:
    """Returns bytes per device while adapting, and seconds per phase, as a record has them.

    Scales of training-free methods are not counted, nor what they take to merge, nor compiling.

    Args:
        one: what a mini-batch costs.
        constants: hyper-parameters.
        methods: of the table.
        settings: the options.
        tests: task → number of test inputs.
        devices: that are used.
    """
    rates = measured_rates(settings.dtype)
    tasks, seeds, samples = len(tests), len(settings.seeds), sum(tests.values())
    # Devices of a CPU are the same cores.
    speed = 1 if devices[0].platform == "cpu" else len(devices)
    batch = constants.batch_size
    pass_over_all = samples / batch * one.forward / rates.flops
    learning = [m for m in methods if is_adaptive(m)]
    rounds = constants.iterations * tasks * seeds
    steps = sum(_share_of_step(method) for method in learning) * rounds
    phases = {
        "predictions": seeds * pass_over_all / speed,
        "adaptation": steps
        * step_seconds(one, rates, tasks=tasks, stored_as=settings.dtype)
        / speed,
        "scoring": seeds * len(methods) * pass_over_all / speed,
    }
    if constants.recipe is not None:
        images = constants.recipe.steps * constants.recipe.batch_size * tasks * seeds
        experts = images / batch * one.both / rates.flops / speed
        phases = {"experts": experts} | phases
    together = len(devices) if settings.parallel == "data" else 1
    held = memory(one, tasks=tasks, samples=samples, devices=together, stored_as=settings.dtype)
    if settings.dtype != "float32":  # the experts' own, for methods without adaptation
        held["task vectors in float32"] = tasks * one.parameters * 4
        held["total"] += held["task vectors in float32"]
    return {
        "memory_bytes": held,
        "seconds": phases,
        "device": {"flops_per_s": rates.flops, "bytes_per_s": rates.bandwidth},
    }


def _share_of_step(method: str) -> float:
    """How much of a step through the whole encoder a method's step is."""
    short = method == "symerge_head" or base_of(method) is not None  # on features
    return 0.0 if short else 1.0


def lines(found: Mapping[str, Any]) -> list[str]:
    """Returns a forecast as people read it."""
    size = found["memory_bytes"]
    parts = ", ".join(f"{name} {gigabytes(n)}" for name, n in size.items() if name != "total")
    times = ", ".join(f"{name} {duration(s)}" for name, s in found["seconds"].items())
    return [
        f"memory per device while adapting: about {gigabytes(size['total'])} ({parts})",
        f"time, once compiled: about {duration(sum(found['seconds'].values()))} ({times})",
    ]


def gigabytes(count: float) -> str:
    """Returns bytes in GB, or in MB where these are few."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def duration(seconds: float) -> str:
    """Returns seconds in a unit that fits."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def test_counts(settings: Options, names: Sequence[str]) -> dict[str, int] | None:
    """Returns the number of test images of each task without reading them; None if unknown."""
    counts: dict[str, int] = {}
    for name in names:
        if settings.checkpoints is not None:
            counts[name] = clip_set(name).test[0]
        elif settings.data is None:
            counts[name] = TEST
        else:
            found = _in_folder(settings.data / name)
            if found is None:
                return None
            counts[name] = found
    limit = min(settings.limit or 100, 100) if settings.quick else settings.limit
    return {name: n if limit is None else min(n, limit) for name, n in counts.items()}


def _in_folder(task: Path) -> int | None:
    pack, folder = task / "test.npz", task / "test"
    try:
        if pack.is_file():
            with np.load(pack) as arrays:
                return len(arrays["labels"]) if "labels" in arrays else None
        return sum(path.is_file() for path in folder.rglob("*")) or None
    except Exception:  # a damaged pack can raise nearly anything; who reads it says what is wrong
        return None
