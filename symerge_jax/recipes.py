"""Recipes of fine-tuning: hyper-parameters, learning rates, the optimiser and the order of images.

Two are those of public experts: `task_arithmetic_recipe` (Ilharco et al., "Editing Models with Task
Arithmetic", 2023, https://arxiv.org/abs/2212.04089, appendix; the same in TALL-masks and SyMerge)
and `fusion_bench_recipe` (the `tanganke` checkpoints on the Hugging Face hub). `dense_recipe` is
that of FusionBench's experts for dense prediction, which are not public.
"""

from collections.abc import Callable, Hashable
from functools import cache
from typing import Any, Literal, NamedTuple, TypeAlias

import jax.numpy as jnp
import numpy as np
import optax

from symerge_jax.dense_losses import depth_loss, normal_loss, segmentation_loss
from symerge_jax.errors import BadInput
from symerge_jax.notation import Array

LossName: TypeAlias = Literal["cross_entropy", "squared_error", "segmentation", "depth", "normal"]


def _squared_error(logits: Array, values: Array) -> Array:
    return jnp.square(logits[:, 0] - values)


# The dtype of labels, and (logits [batch, classes], labels [batch]) → [batch]; of maps of pixels
# [batch, height, width, ...] the mean over those that count.
LOSSES: dict[LossName, tuple[Any, Callable[[Array, Array], Array]]] = {
    "cross_entropy": (jnp.int32, optax.softmax_cross_entropy_with_integer_labels),
    "squared_error": (jnp.float32, _squared_error),
    "segmentation": (jnp.int8, segmentation_loss),
    "depth": (jnp.float32, depth_loss),
    "normal": (jnp.float32, normal_loss),
}


class Recipe(NamedTuple):
    """Hyper-parameters of fine-tuning.

    Attributes:
        steps: optimiser steps.
        batch_size: images per forward and backward pass.
        learning_rate: peak, for the encoder.
        head_rate: peak, for the head; 0 keeps it as it is (its gradient still counts in `clip`).
        optimiser: "sgd" (momentum 0.9), "adam" or "adamw".
        weight_decay: of AdamW, on all trainables.
        warmup: fraction of the steps with a rising rate.
        clip: largest norm of the gradient; 0 for any.
        shift: pixels by which images are moved at random, 0 for none.
        warmup_steps: steps with the rate peak · (step + 1) / warmup_steps, in place of `warmup`;
            with fewer steps in all, the rate never stops rising.
        decay: after the warm-up, "cosine" or "linear" (to 0), "constant", or "halving".
        accumulate: passes per optimiser step; their gradients are averaged.
        whole_passes: the last batch of a pass over the images holds what is left of them, as
            PyTorch's data loaders do; otherwise the next pass fills it up.
        frozen: what gets no gradient at all: "head", or branches such as "encoder/projection".
        halve_every: steps after which "halving" halves the rate, again and again.
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
    warmup_steps: int | None = None
    decay: str = "cosine"
    accumulate: int = 1
    whole_passes: bool = False
    frozen: tuple[str, ...] = ()
    halve_every: int = 0


def task_arithmetic_recipe(
    images: int, epochs: int, *, batch_size: int = 128, accumulate: int = 1
) -> Recipe:
    """Returns the recipe of the experts of Task Arithmetic, TALL-masks and SyMerge.

    Their scripts take batches of 128 (ViT-L/14: 64, `accumulate=2`) from a loader that keeps the
    smaller last batch of a pass, and add the gradients of accumulated batches up before they clip:
    the mean, clipped at 1 / accumulate, makes the same steps of AdamW. Here batches accumulate
    across the end of a pass; there a batch left over counts in the next step besides its own.

    Args:
        images: in the training set.
        epochs: passes over them.
        batch_size: images per forward and backward pass.
        accumulate: passes per step.
    """
    batches = epochs * -(-images // batch_size)
    return Recipe(
        steps=max(1, batches // accumulate),
        batch_size=batch_size,
        clip=1.0 / accumulate,
        warmup_steps=500,
        accumulate=accumulate,
        whole_passes=True,
        frozen=("head",),
    )


def fusion_bench_recipe(*, steps: int = 4000, batch_size: int = 32) -> Recipe:
    """Returns the recipe of the public `tanganke/clip-vit-*` checkpoints, as they document it.

    FusionBench's present configuration file says batches of 128. The projection is left alone.
    """
    return Recipe(
        steps=steps,
        batch_size=batch_size,
        optimiser="adam",
        weight_decay=0.0,
        clip=0.0,
        warmup_steps=0,
        decay="constant",
        whole_passes=True,
        frozen=("head", "encoder/projection"),
    )


def dense_recipe(images: int, *, epochs: int = 40, batch_size: int = 16) -> Recipe:
    """Returns the recipe of FusionBench's experts on NYUv2, which SyMerge follows.

    Adam at 1e-4, halved each ten passes, for trunk and decoder (github.com/tanganke/fusion_bench).
    There the last batch of a pass holds what is left of the images; here the next pass fills it up,
    so that batch normalisation sees as many images in every step. Both make as many steps.

    Args:
        images: in the training set.
        epochs: passes over them.
        batch_size: images per forward and backward pass; two or more.
    """
    batches = -(-images // batch_size)
    return Recipe(
        steps=epochs * batches,
        batch_size=batch_size,
        learning_rate=1e-4,
        head_rate=1e-4,
        optimiser="adam",
        weight_decay=0.0,
        clip=0.0,
        warmup_steps=0,
        decay="halving",
        halve_every=10 * batches,
    )


def learning_rates(recipe: Recipe, peak: float) -> optax.Schedule:
    """Returns step → learning rate."""
    if recipe.decay not in ("cosine", "linear", "constant", "halving"):
        raise BadInput(f"decay must be cosine, linear, constant or halving, got {recipe.decay!r}")
    if recipe.decay == "halving" and recipe.halve_every < 1:
        raise BadInput(f"decay halving needs halve_every of 1 or more, got {recipe.halve_every}")
    if recipe.warmup_steps is None and recipe.decay == "cosine":
        warm = max(1, round(recipe.steps * recipe.warmup))
        return optax.warmup_cosine_decay_schedule(
            peak / warm, peak, warm, max(recipe.steps, warm + 1)
        )
    warm = recipe.warmup_steps
    if warm is None:
        warm = round(recipe.steps * recipe.warmup)
    after = optax.constant_schedule(peak)
    rest = max(recipe.steps - warm, 1)
    if recipe.decay == "cosine":
        after = optax.cosine_decay_schedule(peak, rest)
    elif recipe.decay == "linear":
        after = optax.linear_schedule(peak, 0.0, rest)
    elif recipe.decay == "halving":
        after = optax.exponential_decay(peak, recipe.halve_every, 0.5, staircase=True)
    if warm < 2:
        return after
    rising = optax.linear_schedule(peak / warm, peak, warm - 1)
    return optax.join_schedules([rising, after], [warm])


def batch_rows(count: int, recipe: Recipe, seed: int) -> np.ndarray:
    """Returns the row of each image that training sees: one permutation after the other.

    Args:
        count: number of images.
        recipe: `steps`, `batch_size`, `accumulate` and `whole_passes` are read.
        seed: of the order.

    Returns:
        int32 [step, accumulate, batch]; -1 is a place that stays empty.
    """
    rng = np.random.default_rng([seed, count])
    needed = recipe.steps * recipe.accumulate * recipe.batch_size
    gap = -count % recipe.batch_size if recipe.whole_passes else 0
    empty = np.full(gap, -1)
    order = [
        part for _ in range(-(-needed // (count + gap))) for part in (rng.permutation(count), empty)
    ]
    shape = (recipe.steps, recipe.accumulate, recipe.batch_size)
    return np.concatenate(order)[:needed].astype(np.int32).reshape(shape)


class Trainables(NamedTuple):
    """All parameters of a classifier; None where a leaf stands in the other of two parts."""

    encoder: Any
    head: Any


def is_trained(recipe: Recipe, path: str, leaf: Array) -> bool:
    """Whether a leaf of `Trainables` gets a gradient: a predicate for `trees.split`."""
    del leaf
    for name in recipe.frozen:
        if name.split("/")[0] not in Trainables._fields:
            raise BadInput(f"frozen must name head, encoder or encoder/…, got {name!r}")
    return not any(f"{path}/".startswith(f"{name}/") for name in recipe.frozen)


@cache
def optimiser_of(recipe: Recipe) -> optax.GradientTransformation:
    """Returns the transformation of the gradients of `Trainables`; equal recipes share it."""

    def group(peak: float) -> optax.GradientTransformation:
        if peak == 0:
            return optax.set_to_zero()
        rates = learning_rates(recipe, peak)
        if recipe.optimiser == "sgd":
            return optax.sgd(rates, momentum=0.9)
        if recipe.optimiser == "adam":
            return optax.adam(rates)
        if recipe.optimiser == "adamw":
            return optax.adamw(rates, weight_decay=recipe.weight_decay)
        raise BadInput(f"optimiser must be adam, sgd or adamw, got {recipe.optimiser!r}")

    groups: dict[Hashable, optax.GradientTransformation] = {
        "encoder": group(recipe.learning_rate),
        "head": group(recipe.head_rate),
    }
    clip = optax.clip_by_global_norm(recipe.clip) if recipe.clip else optax.identity()
    return optax.chain(clip, optax.partition(groups, Trainables("encoder", "head")))
