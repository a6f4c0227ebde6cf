"""A world small enough for laws: a linear encoder, a linear head per task, three tasks."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from symerge_jax.adapt.experts import expert_predictions
from symerge_jax.task_vectors import subtract

SIZES = (9, 7, 8)
PIXELS, FEATURES, CLASSES = 4, 3, 3


class World(NamedTuple):
    """What adaptation methods take; heads have leaves [task, ...]."""

    pretrained: dict
    task_vectors: dict
    heads: dict
    inputs: list
    experts: list


def encode(theta, images):
    return jnp.tanh(images @ theta["kernel"] + theta["bias"][None])


def classify(head, features):
    return features @ head["weight"] + head["bias"][None]


def logits_of(model, images):
    theta, head = model
    return classify(head, encode(theta, images))


def make(seed=0):
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    def encoder():
        return {"bias": normal(FEATURES), "kernel": normal(PIXELS, FEATURES)}

    pretrained = encoder()
    models = [jax.tree.map(lambda a, b: a + 0.7 * b, pretrained, encoder()) for _ in SIZES]
    heads = {"bias": normal(3, CLASSES), "weight": normal(3, FEATURES, CLASSES)}
    inputs = [rng.normal(size=(n, PIXELS)).astype(np.float32) for n in SIZES]
    own = [jax.tree.map(lambda leaf, k=k: leaf[k], heads) for k in range(3)]
    experts = expert_predictions(logits_of, list(zip(models, own, strict=True)), inputs)
    return World(pretrained, subtract(models, pretrained), heads, inputs, experts)
