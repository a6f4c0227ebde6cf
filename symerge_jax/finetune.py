"""Makes experts: fine-tunes an encoder, and its head if it is not a zero-shot one, with labels.

The recipe of the task-arithmetic experts (Ilharco et al., 2023, appendix): all of the encoder is
trained against the head with cross-entropy, warm-up, cosine decay to zero, gradient norm clipped
to 1. This is the only training here that sees labels.
"""

from collections.abc import Callable, Hashable
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from symerge_jax import trees
from symerge_jax.errors import BadInput
from symerge_jax.notation import Array, Params


class Expert(NamedTuple):
    """A fine-tuned encoder and its head, with the loss of each step."""

    params: Params
    head: Params
    losses: np.ndarray


class Recipe(NamedTuple):
    """Hyper-parameters of fine-tuning.

    Attributes:
        steps: optimiser steps.
        batch_size: images per step.
        learning_rate: peak, for the encoder.
        head_rate: peak, for the head; 0 freezes it.
        optimiser: "sgd" (momentum 0.9) or "adamw".
        weight_decay: of AdamW, on all trainables.
        warmup: fraction of the steps with a rising rate.
        clip: largest norm of the gradient.
        shift: pixels by which images are moved at random, 0 for none.
    """

    steps: int = 400
    batch_size: int = 32
    learning_rate: float = 1e-5
    head_rate: float = 0.0
    optimiser: str = "adamw"
    weight_decay: float = 0.1
    warmup: float = 0.1
    clip: float = 1.0
    shift: int = 0


def finetune(
    encode: Callable[[Params, Any], Array],
    classify: Callable[[Params, Array], Array],
    pretrained: Params,
    head: Params,
    images: Array,
    labels: Array,
    recipe: Recipe,
    *,
    seed: int = 0,
    chunk_steps: int = 50,
    on_chunk: Callable[[np.ndarray], None] | None = None,
) -> Expert:
    """Trains one expert.

    Args:
        encode: (θ, images [batch, ...]) → features.
        classify: (head, features) → logits [batch, classes].
        pretrained: θ₀.
        head: trained too if `recipe.head_rate` is not 0.
        images: [n, ...], uint8 or float.
        labels: int [n].
        recipe: hyper-parameters.
        seed: of the order of images and their shifts.
        chunk_steps: steps per call of the compiled program.
        on_chunk: called with the losses of each chunk.

    Raises:
        BadInput: images and labels differ in number; a loss that is not finite.
    """
    if len(images) != len(labels):
        raise BadInput(f"cannot fine-tune: {len(images)} images, but {len(labels)} labels")
    tx = _optimiser(recipe)
    rows = _batches(len(images), recipe, seed)
    trainables = trees.copied((pretrained, head))
    state = (trainables, jax.jit(tx.init)(trainables), jax.random.key(seed))
    images, labels = jnp.asarray(images), jnp.asarray(labels, jnp.int32)
    losses = []
    for begin in range(0, recipe.steps, chunk_steps):
        state, values = _run(
            state, images, labels, rows[begin : begin + chunk_steps],
            encode=encode, classify=classify, tx=tx, shift=recipe.shift,
        )  # fmt: skip
        losses.append(np.asarray(values))
        if not np.isfinite(losses[-1]).all():
            raise BadInput(
                f"fine-tuning diverged before step {begin + len(losses[-1])}; lower the learning "
                f"rate ({recipe.learning_rate:g})"
            )
        if on_chunk is not None:
            on_chunk(losses[-1])
    (params, head), *_ = state
    return Expert(params, head, np.concatenate(losses))


@cache
def _optimiser(recipe: Recipe) -> optax.GradientTransformation:
    def schedule(peak: float) -> optax.Schedule:
        warm = max(1, round(recipe.steps * recipe.warmup))
        return optax.warmup_cosine_decay_schedule(
            peak / warm, peak, warm, max(recipe.steps, warm + 1)
        )

    def group(peak: float) -> optax.GradientTransformation:
        if peak == 0:
            return optax.set_to_zero()
        if recipe.optimiser == "sgd":
            return optax.sgd(schedule(peak), momentum=0.9)
        if recipe.optimiser == "adamw":
            return optax.adamw(schedule(peak), weight_decay=recipe.weight_decay)
        raise BadInput(f"optimiser must be sgd or adamw, got {recipe.optimiser!r}")

    groups: dict[Hashable, optax.GradientTransformation] = {
        "encoder": group(recipe.learning_rate),
        "head": group(recipe.head_rate),
    }
    return optax.chain(
        optax.clip_by_global_norm(recipe.clip), optax.partition(groups, ("encoder", "head"))
    )


def _batches(count: int, recipe: Recipe, seed: int) -> np.ndarray:
    """Returns indices int32 [step, batch]: one permutation after the other."""
    rng = np.random.default_rng([seed, count])
    needed = recipe.steps * recipe.batch_size
    order = np.concatenate([rng.permutation(count) for _ in range(-(-needed // count))])
    return order[:needed].astype(np.int32).reshape(recipe.steps, recipe.batch_size)


@partial(jax.jit, static_argnames=("encode", "classify", "tx", "shift"), donate_argnums=0)
def _run(
    state: Any,
    images: Array,
    labels: Array,
    rows: Array,
    *,
    encode: Callable,
    classify: Callable,
    tx: optax.GradientTransformation,
    shift: int,
) -> tuple[Any, Array]:
    def step(state: Any, rows: Array) -> tuple[Any, Array]:
        trainables, optimiser, key = state
        key, here = jax.random.split(key)
        batch = moved(images[rows], here, shift) if shift else images[rows]

        def loss(trainables: Any) -> Array:
            params, head = trainables
            logits = classify(head, encode(params, batch))
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels[rows]).mean()

        value, gradients = jax.value_and_grad(loss)(trainables)
        updates, optimiser = tx.update(gradients, optimiser, trainables)
        return (optax.apply_updates(trainables, updates), optimiser, key), value

    return jax.lax.scan(step, state, rows)


def moved(images: Array, key: Array, shift: int) -> Array:
    """Moves each image [batch, height, width, 3] by up to `shift` pixels; the edge is repeated.

    As two small matrix products, one per axis: they choose rows and columns.
    """
    _, height, width, _ = images.shape
    offsets = jax.random.randint(key, (2, images.shape[0]), -shift, shift + 1)

    def chosen(size: int, offset: Array) -> Array:  # one-hot [batch, size, size]
        source = jnp.clip(jnp.arange(size)[None] + offset[:, None], 0, size - 1)
        return jax.nn.one_hot(source, size, dtype=jnp.float32)

    x = images.astype(jnp.float32)
    x = jnp.einsum("bij,bjwc->biwc", chosen(height, offsets[0]), x)
    x = jnp.einsum("bij,bhjc->bhic", chosen(width, offsets[1]), x)
    return x.astype(images.dtype)
