"""The steps of fine-tuning: one compiled program that runs many of them; `finetune` calls it."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple, TypeAlias, cast

import jax
import jax.numpy as jnp
import optax

from symerge_jax import trees
from symerge_jax.notation import Array
from symerge_jax.recipes import LOSSES, LossName, Trainables

# (θ, head, model state, images, mask, key) → outputs [batch, ...], the model state after this batch
Forward: TypeAlias = Callable[..., tuple[Array, Any]]


class Batch(NamedTuple):
    """What one forward and backward pass sees.

    Attributes:
        images: [batch, ...], uint8 or float.
        labels: int [batch], float [batch] for a regression, or maps [batch, height, width, ...].
        mask: bool [batch], False for rows that only fill the batch up; None if all rows count.
    """

    images: Any
    labels: Any
    mask: Any = None


class State(NamedTuple):
    """What one step changes: the carry of the scan."""

    trained: Trainables
    optimiser: Any
    key: Any
    model: Any = ()


@cache
def plain(encode: Callable[..., Array], classify: Callable[..., Array]) -> Forward:
    """Returns the `Forward` of a network without a state, the same for the same functions."""

    def forward(params: Any, head: Any, state: Any, images: Any, mask: Any, key: Any) -> Any:
        del mask, key
        return classify(head, encode(params, images)), state

    return forward


@partial(
    jax.jit,
    static_argnames=("forward", "tx", "shift", "accumulate", "masked", "loss_name"),
    donate_argnums=0,
)
def run_steps(
    state: State,
    frozen: Trainables,
    data: tuple[Array, Array] | None,
    xs: Any,
    *,
    forward: Forward,
    tx: optax.GradientTransformation,
    shift: int,
    accumulate: int,
    masked: bool,
    loss_name: LossName,
) -> tuple[State, Array]:
    """Scans over steps; `xs` are rows of `data`, or a `Batch`, with the steps in front."""

    def batch_of(x: Any) -> Batch:
        if data is None:
            return x
        images, labels = data
        return Batch(images[x], labels[x], x >= 0 if masked else None)

    def gradient(trained: Trainables, model: Any, x: Any, key: Array) -> tuple[Any, Any]:
        images, labels, mask = batch_of(x)
        images = moved(images, key, shift) if shift else images

        def loss(trained: Trainables) -> tuple[Array, Any]:
            params, head = trees.combine(trained, frozen)
            own = jax.random.fold_in(key, 1)
            outputs, after = forward(params, head, model, images, mask, own)
            each = LOSSES[loss_name][1](outputs, labels)
            return each.mean() if mask is None else each.mean(where=mask), after

        (value, after), gradients = jax.value_and_grad(loss, has_aux=True)(trained)
        return (value, gradients), after

    def step(state: State, x: Any) -> tuple[State, Array]:
        trained, optimiser, key, model = state
        key, here = jax.random.split(key)
        if accumulate == 1:
            (value, gradients), model = gradient(trained, model, x, here)
        else:
            keys = jax.random.split(here, accumulate)
            (value, gradients), model = _mean_over(partial(gradient, trained), model, x, keys)
        updates, optimiser = tx.update(gradients, optimiser, trained)
        trained = cast(Trainables, optax.apply_updates(trained, updates))
        return State(trained, optimiser, key, model), value

    return jax.lax.scan(step, state, xs)


def _mean_over(gradient: Callable, model: Any, xs: Any, keys: Array) -> tuple[Any, Any]:
    """Returns the mean of `gradient(model, x, key)` over the leading axis, one after the other."""

    def add(carry: Any, x: Any) -> tuple[Any, None]:
        total, model = carry
        found, model = gradient(model, *x)
        return (jax.tree.map(jnp.add, total, found), model), None

    one = jax.tree.map(lambda x: x[0], (xs, keys))
    shapes, _ = jax.eval_shape(gradient, model, *one)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    (total, model), _ = jax.lax.scan(add, (zeros, model), (xs, keys))
    return jax.tree.map(lambda x: x / keys.shape[0], total), model


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
