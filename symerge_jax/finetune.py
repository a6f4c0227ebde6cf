"""Makes experts: fine-tunes an encoder, and its head if it is not a zero-shot one, with labels.

The recipe of the task-arithmetic experts (Ilharco et al., 2023, appendix): all of the encoder is
trained against the head with cross-entropy, warm-up, cosine decay to zero, gradient norm clipped
to 1. This is the only training here that sees labels.

Images come as arrays that lie on the device (`finetune`; `finetune_with_state` for networks with
running statistics), or in batches from the host (`finetune_batches`, for sets that are large or
cropped at random). Either way the steps of a chunk
are one compiled program.
"""

from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from symerge_jax import interrupt, trees
from symerge_jax.cache import digest
from symerge_jax.errors import BadInput
from symerge_jax.finetune_steps import Batch, Forward, State, plain, run_steps
from symerge_jax.notation import Array, Params
from symerge_jax.recipes import (
    LOSSES,
    LossName,
    Recipe,
    Trainables,
    batch_rows,
    is_trained,
    optimiser_of,
)

# What the steps of each chunk see, and the state of the batches after it (None if there is none).
Feed: TypeAlias = Generator[tuple[Any, Any], None, None]

SAVE_EVERY = 200  # steps


class Expert(NamedTuple):
    """A fine-tuned encoder and its head, with the loss of each step.

    Attributes:
        params: θ.
        head: its head.
        losses: float [step].
        state: of the network, such as running statistics; () where it has none.
    """

    params: Params
    head: Params
    losses: np.ndarray
    state: Any = ()


def finetune(
    encode: Callable[[Params, Any], Array],
    classify: Callable[[Params, Array], Array],
    pretrained: Params,
    head: Params,
    images: Array,
    labels: Array,
    recipe: Recipe,
    *,
    loss: LossName = "cross_entropy",
    seed: int = 0,
    chunk_steps: int = 50,
    on_chunk: Callable[[np.ndarray], None] | None = None,
    state_folder: str | Path | None = None,
    save_every: int = SAVE_EVERY,
) -> Expert:
    """Trains one expert on images that lie on the device.

    Args:
        encode: (θ, images [batch, ...]) → features.
        classify: (head, features) → logits [batch, classes].
        pretrained: θ₀.
        head: trained too if `recipe.head_rate` is not 0.
        images: [n, ...], uint8 or float.
        labels: int [n]; float [n] for a regression.
        recipe: hyper-parameters.
        loss: "cross_entropy" of classes, or "squared_error" of the first logit.
        seed: of the order of images and their shifts.
        chunk_steps: steps per call of the compiled program.
        on_chunk: called with the losses of each chunk; first with those of a run that continues.
        state_folder: where to keep the state; what an interrupted run left there is continued, and
            ends with the same bits as without the interruption.
        save_every: steps between two states that are kept.

    Raises:
        BadInput: images and labels differ in number; a loss that is not finite; the folder holds
            the state of a run with other settings or data.
    """
    task = _Task(plain(encode, classify), recipe, seed, loss)
    return _on_device(
        task, pretrained, head, (), images, labels, chunk_steps, on_chunk, state_folder, save_every
    )


def finetune_with_state(
    forward: Forward,
    pretrained: Params,
    head: Params,
    state: Any,
    images: Array,
    labels: Array,
    recipe: Recipe,
    *,
    loss: LossName = "cross_entropy",
    seed: int = 0,
    chunk_steps: int = 50,
    on_chunk: Callable[[np.ndarray], None] | None = None,
    state_folder: str | Path | None = None,
    save_every: int = SAVE_EVERY,
) -> Expert:
    """Trains one expert of a network with a state, such as running statistics.

    Args:
        forward: (θ, head, state, images [batch, ...], mask, key) → (outputs, state after this
            batch); `mask` is bool [batch] or None, `key` of dropout.
        pretrained: as for `finetune`, like all that is not listed here.
        head: trained too if `recipe.head_rate` is not 0.
        state: of the network at the start, a pytree of arrays; gets no gradient.
        images: [n, ...].
        labels: [n, ...], maps of pixels for the losses on these.
        recipe: hyper-parameters.
        loss: an entry of `recipes.LOSSES`.
        seed: of the order of images and of dropout.
        chunk_steps: steps per call of the compiled program.
        on_chunk: called with the losses of each chunk.
        state_folder: where to keep what an interrupted run needs to go on.
        save_every: steps between two states that are kept.

    Raises:
        BadInput: as `finetune`.
    """
    task = _Task(forward, recipe, seed, loss)
    return _on_device(
        task, pretrained, head, state, images, labels, chunk_steps, on_chunk, state_folder,
        save_every,
    )  # fmt: skip


def finetune_batches(
    encode: Callable[[Params, Any], Array],
    classify: Callable[[Params, Array], Array],
    pretrained: Params,
    head: Params,
    batches: Iterator[tuple[Any, ...]],
    recipe: Recipe,
    *,
    seed: int = 0,
    chunk_steps: int = 8,
    on_chunk: Callable[[np.ndarray], None] | None = None,
    state_folder: str | Path | None = None,
    save_every: int = SAVE_EVERY,
    data: str = "",
) -> Expert:
    """Trains one expert on batches from the host; the next chunk is gathered during the present.

    Args:
        encode: as for `finetune`, like all that is not listed here.
        classify: (head, features) → logits.
        pretrained: θ₀.
        head: of the expert.
        batches: `recipe.steps · recipe.accumulate` tuples (images, labels[, mask]) as in `Batch`,
            all of one shape. With `state_folder` it must have `get_state` and `set_state`, as the
            iterators of grain do, with a state that JSON can hold.
        recipe: `batch_size` is the caller's business, `whole_passes` is not read.
        seed: of the images' shifts.
        chunk_steps: steps per call of the compiled program; this many are in memory three times.
        on_chunk: called with the losses of each chunk.
        state_folder: where to keep the state.
        save_every: steps between two states that are kept.
        data: digest of what the batches are made from and how; a state is tied to it.

    Raises:
        BadInput: as `finetune`, or the batches end too early.
    """

    def feed(begin: int, position: Any) -> Feed:
        if position is not None:
            batches.set_state(position)  # pyright: ignore[reportAttributeAccessIssue]
        return _chunks(batches, begin, recipe, chunk_steps, state_folder is not None)

    task = _Task(plain(encode, classify), recipe, seed)
    saved = None
    if state_folder is not None:
        saved = _Saved(state_folder, save_every, _identity(task, pretrained, head, data))
    return _train(task, pretrained, head, (), None, feed, on_chunk, saved)


class _Task(NamedTuple):
    """What the compiled program depends on, and the seed."""

    forward: Forward
    recipe: Recipe
    seed: int
    loss: LossName = "cross_entropy"


class _Saved(NamedTuple):
    """Where and how often the state is kept, and what it belongs to."""

    folder: str | Path
    every: int
    identity: Mapping[str, object]


class _Point(NamedTuple):
    """How far a run has come; `position` is the state of its batches."""

    state: State
    losses: list[Array]
    position: Any

    @property
    def step(self) -> int:
        """Steps that are done."""
        return sum(map(len, self.losses))


def _on_device(
    task: _Task,
    pretrained: Params,
    head: Params,
    state: Any,
    images: Array,
    labels: Array,
    chunk_steps: int,
    on_chunk: Callable[[np.ndarray], None] | None,
    state_folder: str | Path | None,
    save_every: int,
) -> Expert:
    recipe = task.recipe
    if len(images) != len(labels):
        raise BadInput(f"cannot fine-tune: {len(images)} images, but {len(labels)} labels")
    rows = batch_rows(len(images), recipe, task.seed)

    def feed(begin: int, position: Any) -> Feed:
        del position  # the step says it all
        for first in range(begin, recipe.steps, chunk_steps):
            yield _single(rows[first : first + chunk_steps], recipe), None

    data = (jnp.asarray(images), jnp.asarray(labels, LOSSES[task.loss][0]))
    saved = None
    if state_folder is not None:
        identity = _identity(task, pretrained, head, digest(images, labels))
        if jax.tree.leaves(state):
            identity["running statistics"] = digest(jax.tree.map(np.asarray, state))
        saved = _Saved(state_folder, save_every, identity)
    return _train(task, pretrained, head, state, data, feed, on_chunk, saved)


def _identity(task: _Task, pretrained: Params, head: Params, data: str) -> dict[str, object]:
    found: dict[str, object] = {
        "recipe": task.recipe._asdict(),
        "seed": task.seed,
        "pretrained model": digest(jax.tree.map(np.asarray, pretrained)),
        "head": digest(jax.tree.map(np.asarray, head)),
        "data": data,
    }
    if task.loss != "cross_entropy":  # the usual one goes without saying
        found["loss"] = task.loss
    return found


def _train(
    task: _Task,
    pretrained: Params,
    head: Params,
    model: Any,
    data: tuple[Array, Array] | None,
    feed: Callable[[int, Any], Feed],
    on_chunk: Callable[[np.ndarray], None] | None,
    saved: _Saved | None,
) -> Expert:
    """Runs chunk after chunk, from the beginning or from where the saved state is."""
    recipe = task.recipe
    tx = optimiser_of(recipe)
    trained, frozen = trees.split(Trainables(pretrained, head), partial(is_trained, recipe))
    trained, frozen = trees.copied(trained), jax.tree.map(jnp.asarray, frozen)
    model = trees.copied(jax.tree.map(jnp.asarray, model))
    state = State(trained, jax.jit(tx.init)(trained), jax.random.key(task.seed), model)
    point = _Point(state, [], None)
    # A run that is not kept has nothing to finish first: it stops at once.
    with nullcontext() if saved is None else interrupt.deferred(), _opened(saved) as store:
        if store is not None and store.latest() is not None:
            point = _found(store, state)
            if on_chunk is not None:
                on_chunk(np.asarray(point.losses[0]))
        try:
            with closing(feed(point.step, point.position)) as chunks:
                for xs, position in chunks:
                    begin = point.step
                    state, values = run_steps(
                        point.state, frozen, data, xs,
                        forward=task.forward, tx=tx, shift=recipe.shift,
                        accumulate=recipe.accumulate, masked=recipe.whole_passes,
                        loss_name=task.loss,
                    )  # fmt: skip
                    point = _Point(state, [*point.losses, values], position)
                    losses = np.asarray(values)
                    _check_finite(losses, point.step, recipe)
                    if saved is not None and (
                        point.step == recipe.steps
                        or point.step // saved.every > begin // saved.every
                    ):
                        _keep(store, point)
                    if on_chunk is not None:
                        on_chunk(losses)
                    if interrupt.asked():
                        raise KeyboardInterrupt
        except KeyboardInterrupt:  # from here, or Ctrl-C where no command has said otherwise
            if store is not None and not interrupt.insisted():
                _keep(store, point)
            raise
    params, head = trees.combine(point.state.trained, frozen)
    return Expert(params, head, np.concatenate(point.losses), point.state.model)


def _opened(saved: _Saved | None) -> Any:
    if saved is None:
        return nullcontext()
    from symerge_jax.checkpoints.training_state import TrainingState  # orbax takes half a second

    return TrainingState(saved.folder, saved.identity)


def _found(store: Any, template: State) -> _Point:
    _, state, meta = store.restore(template)
    return _Point(state, [np.asarray(meta["losses"], np.float32)], meta["position"])


def _keep(store: Any, point: _Point) -> None:
    """Saves, unless that is done already or the state was being replaced when Ctrl-C came."""
    gone = any(leaf.is_deleted() for leaf in jax.tree.leaves(point.state))
    if gone or point.step <= (store.latest() or 0):
        return
    losses = np.concatenate(point.losses).tolist()  # float32 → float → float32 loses nothing
    store.save(point.step, point.state, {"losses": losses, "position": point.position})


def _check_finite(losses: np.ndarray, step: int, recipe: Recipe) -> None:
    if not np.isfinite(losses).all():
        rate = f"{recipe.learning_rate:g}"
        raise BadInput(f"fine-tuning diverged before step {step}; lower the learning rate ({rate})")


def _single(xs: Any, recipe: Recipe) -> Any:
    # [step, 1, batch, ...] → [step, batch, ...] where nothing accumulates
    return jax.tree.map(lambda x: x[:, 0], xs) if recipe.accumulate == 1 else xs


def _chunks(
    batches: Iterator[tuple[Any, ...]], begin: int, recipe: Recipe, size: int, stateful: bool
) -> Feed:
    """Yields batches stacked to [step, (accumulate,) batch, ...] and where the batches are then."""

    def gather(first: int) -> tuple[Batch, Any]:
        steps = min(size, recipe.steps - first)
        count = steps * recipe.accumulate
        found = [Batch(*batch) for batch in islice(batches, count)]
        if len(found) < count:
            raise BadInput(
                f"the batches ended after step {first + len(found) // recipe.accumulate} of "
                f"{recipe.steps}"
            )
        shape = (steps, recipe.accumulate)
        stacked = jax.tree.map(lambda *x: np.stack(x).reshape(*shape, *x[0].shape), *found)
        position = batches.get_state() if stateful else None  # pyright: ignore[reportAttributeAccessIssue]
        return _single(stacked, recipe), position

    if begin == recipe.steps:
        return
    with ThreadPoolExecutor(1, thread_name_prefix="batches") as pool:
        chunk = pool.submit(gather, begin)
        for first in range(begin, recipe.steps, size):
            ready = chunk.result()
            if first + size < recipe.steps:
                chunk = pool.submit(gather, first + size)
            yield ready
