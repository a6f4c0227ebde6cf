"""Tiny ResNet checkpoints with random weights, in the forms in which the public ones come."""

import functools

import jax
import numpy as np
from clip_checkpoints import write_safetensors

from symerge_jax.checkpoints.decoders import Decoder, decoder_tensors
from symerge_jax.checkpoints.resnet import to_torchvision
from symerge_jax.models.dense_heads import decoder_shapes
from symerge_jax.models.resnet import variable_shapes
from symerge_jax.models.resnet_config import DecoderConfig, ResNetConfig

SIZES = ResNetConfig(blocks=(1, 2, 1, 1), planes=(2, 2, 2, 4), stem=4, expansion=2)
HEAD = DecoderConfig(features=8, width=3)  # with the usual dilations
NORMS = 1 + 3 * 5 + 4  # stem, blocks, projections
WEIGHTS, STATISTICS = 3 * NORMS, 2 * NORMS

_trunk = functools.cache(variable_shapes)
_decoder = functools.cache(decoder_shapes)


def drawn(shapes, seed):
    """Numbers away from zero and one; variances above 0."""
    rng = np.random.default_rng(seed)

    def one(path, leaf):
        value = rng.normal(0.2, 0.5, leaf.shape).astype(np.float32)
        return np.abs(value) + np.float32(0.1) if path[-1].key == "var" else value

    return jax.tree_util.tree_map_with_path(one, shapes)


def variables(seed=0):
    return drawn(_trunk(SIZES), seed)


def decoder(outputs=3, seed=0, **more):
    return Decoder(drawn(_decoder(HEAD, outputs), [seed, 1]), HEAD, **more)


def fc(classes=5, seed=0):
    rng = np.random.default_rng([seed, 2])
    weight = rng.normal(size=(classes, SIZES.features)).astype(np.float32)
    return {"weight": weight, "bias": rng.normal(size=classes).astype(np.float32)}


def torchvision(seed=0, *, classes=5, counters=True):
    """The state dict of a torchvision model; old ones have no counters."""
    head = None if classes is None else fc(classes, seed)
    found = to_torchvision(variables(seed), classifier=head)
    for i, (name, value) in enumerate(found.items()):
        if name.endswith("num_batches_tracked"):
            found[name] = np.full_like(value, i)
    return {n: v for n, v in found.items() if counters or not n.endswith("num_batches_tracked")}


def lightning(trunk, decoders, prefix="model."):
    """The state dict of a training program that holds a trunk and decoders."""
    found = {f"{prefix}encoder.{n}": v for n, v in trunk.items() if not n.startswith("fc.")}
    for task, one in decoders.items():
        inner = decoder_tensors(one)
        found |= {f"{prefix}decoders.{task}.{name}": value for name, value in inner.items()}
    return found


def moved(trunk, seed, size=0.02):
    """What fine-tuning makes of a state dict: numbers move a little, counters count."""
    rng = np.random.default_rng([seed, 3])
    return {
        name: value + 9
        if value.dtype == np.int64
        else (value + rng.normal(0, size, value.shape)).astype(value.dtype)
        for name, value in trunk.items()
    }


TASKS = {"segmentation": 3, "depth": 1, "normal": 3}


def family(folder):
    """Writes θ₀ as old torchvision files are, and experts with the decoders of all tasks."""
    folder.mkdir(parents=True, exist_ok=True)
    start = torchvision(counters=False)
    base = write_safetensors(folder / "resnet.safetensors", start)
    experts = []
    whole = torchvision(classes=None)
    for k, task in enumerate(TASKS):
        own = {name: decoder(n, seed=k) for name, n in TASKS.items()}
        path = folder / f"{task}.safetensors"
        experts.append(write_safetensors(path, lightning(moved(whole, k), own)))
    return base, experts
