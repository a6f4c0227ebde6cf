"""Chooses the scale λ of θ = θ₀ + λ · τ* by looking at validation inputs.

The protocol of TALL-masks, LiNeS, TSV and Iso-Merging: maximise the mean over tasks of accuracy
divided by the expert's own accuracy; of equal values the smallest scale wins. Without labels the
experts' predictions take their place: the scale at which the merged model agrees with them most.

The whole grid is one compiled program: a loop over scales around a loop over batches, with the
batches of all tasks in one array. Inputs that do not fit the device come in chunks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from symerge_jax.errors import BadInput
from symerge_jax.notation import Array, Params
from symerge_jax.task_vectors import add

CHUNK_BYTES = 1 << 30

# Each method's own grid in the literature, as far as there is one.
_TENTHS = tuple(np.arange(1, 11) / 10)
_GRIDS = {
    "task_arithmetic": (0.05, *_TENTHS),
    "ties": tuple(np.arange(1, 16) / 10),
    "pcb": tuple(np.arange(1, 16) / 10),
    "lot": tuple(np.arange(1, 21) / 10),
    **dict.fromkeys(("tsv_m", "iso_c", "iso_cts"), tuple(np.arange(1, 31) / 10)),
}


def grid_of(method: str) -> tuple[float, ...]:
    """Returns the scales to choose from for a merging method, 0.1 to 1 where none is known."""
    return _GRIDS.get(method, _TENTHS)


class Tuned(NamedTuple):
    """The chosen scale, and what was measured.

    Attributes:
        scale: the smallest with the best score.
        scales: float [scale], ascending.
        accuracies: percent, [scale, task]: of the labels, or agreement with the experts.
        scores: [scale]: mean over tasks of accuracy divided by the reference.
    """

    scale: float
    scales: np.ndarray
    accuracies: np.ndarray
    scores: np.ndarray


def tune_scale(
    apply: Callable[[Any, Any], Array],
    pretrained: Params,
    task_vector: Params,
    scales: Sequence[float | int] | np.ndarray,
    heads: Sequence[Any],
    inputs: Sequence[Array],
    truths: Sequence[Array],
    *,
    reference: Sequence[float | int] | np.ndarray | None = None,
    batch_size: int = 100,
    chunk_bytes: int = CHUNK_BYTES,
) -> Tuned:
    """Scores every scale on every task and chooses one.

    Args:
        apply: ((θ, head), inputs [batch, ...]) → logits [batch, classes]; one function for all
            tasks. Pass the same object again to reuse the compiled program.
        pretrained: θ₀.
        task_vector: τ*, unscaled.
        scales: candidates.
        heads: one pytree per task, all of one structure and shape (padded).
        inputs: per task, [n, ...].
        truths: per task, int [n]: labels, or the experts' predicted classes.
        reference: each expert's accuracy in percent; None for 100 everywhere, as for agreement.
        batch_size: inputs at a time.
        chunk_bytes: most bytes of inputs on the device at a time.

    Raises:
        BadInput: no scale, or tasks that differ in number.
    """
    grid = np.unique(np.asarray(scales, np.float64))
    if not len(grid):
        raise BadInput("tuning needs at least one scale to try")
    if not len(heads) == len(inputs) == len(truths):
        raise BadInput(
            f"tuning: got {len(heads)} heads, inputs of {len(inputs)} tasks and truths of "
            f"{len(truths)}"
        )
    stacked = jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(x) for x in leaves]), *heads)
    rows = _rows([len(own) for own in inputs], batch_size)
    per_batch = max(1, batch_size * np.asarray(inputs[0][:1]).nbytes)
    size = max(1, min(len(rows), chunk_bytes // per_batch))
    hits = np.zeros((len(grid), len(heads)))
    for begin in range(0, len(rows), size):
        chunk = _gather(rows[begin : begin + size], size, inputs, truths, batch_size)
        hits += np.asarray(
            _count(
                pretrained,
                task_vector,
                grid.astype(np.float32),
                stacked,
                *chunk,
                apply=apply,
                tasks=len(heads),
            )  # fmt: skip
        )
    accuracies = 100 * hits / np.array([len(own) for own in inputs])
    best = np.full(len(heads), 100.0) if reference is None else np.asarray(reference, float)
    scores = (accuracies / np.maximum(best, 1e-9)).mean(axis=1)
    best_one = int(np.argmax(np.round(scores, 9)))  # equal but for rounding: the smallest
    return Tuned(float(grid[best_one]), grid, accuracies, scores)


def _rows(sizes: Sequence[int], batch_size: int) -> list[tuple[int, np.ndarray]]:
    """(task, its rows) of each batch."""
    return [
        (task, np.arange(begin, min(begin + batch_size, size)))
        for task, size in enumerate(sizes)
        for begin in range(0, size, batch_size)
    ]


def _gather(
    batches: Sequence[tuple[int, np.ndarray]],
    size: int,
    inputs: Sequence[Array],
    truths: Sequence[Array],
    batch_size: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns tasks [size], inputs [size, batch, ...] and truths [size, batch], -1 where padded."""
    tasks = np.zeros(size, np.int32)
    first = np.asarray(inputs[0][:1])
    images = np.zeros((size, batch_size, *first.shape[1:]), first.dtype)
    expected = np.full((size, batch_size), -1, np.int32)
    for i, (task, rows) in enumerate(batches):
        tasks[i] = task
        images[i, : len(rows)] = inputs[task][rows]
        expected[i, : len(rows)] = truths[task][rows]
    return tasks, images, expected


@partial(jax.jit, static_argnames=("apply", "tasks"))
def _count(
    pretrained: Params,
    task_vector: Params,
    scales: Array,
    heads: Any,
    task_ids: Array,
    images: Array,
    expected: Array,
    *,
    apply: Callable[[Any, Any], Array],
    tasks: int,
) -> Array:
    """Returns how many rows each scale gets right, int32 [scale, task]."""

    def one_scale(scale: Array) -> Array:
        params = add(pretrained, task_vector, scale=scale)

        def one_batch(
            counts: jax.Array, batch: tuple[Array, Array, Array]
        ) -> tuple[jax.Array, None]:
            task, own, truth = batch
            head = jax.tree.map(lambda leaf: leaf[task], heads)
            predicted = jnp.argmax(apply((params, head), own), axis=1).astype(jnp.int32)
            return counts.at[task].add((predicted == truth).sum(dtype=jnp.int32)), None

        counts = jnp.zeros(tasks, jnp.int32)
        return jax.lax.scan(one_batch, counts, (task_ids, images, expected))[0]

    return jax.lax.map(one_scale, scales)
