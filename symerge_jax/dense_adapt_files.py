"""The part of `adapt_files` that is another for maps of pixels: experts, the run, the scores.

What the experts say is kept as classes of pixels (int8), depths or normals (float32), so that each
image goes through each network once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from symerge_jax import dense, trees
from symerge_jax.adapt.dense import Network as DenseNetwork
from symerge_jax.adapt.dense import Statistics, symerge_dense
from symerge_jax.adapt.fit import Keep
from symerge_jax.adapt.symerge import Adapted
from symerge_jax.adapt_settings import Settings
from symerge_jax.adapt_tasks import Task
from symerge_jax.checkpoints.resnet import LoadedResNet
from symerge_jax.dense_metrics import DENSE_METRICS
from symerge_jax.evaluate import predict
from symerge_jax.networks import Network
from symerge_jax.notation import Array, Params
from symerge_jax.stored_decoders import StoredDecoder


class DenseScore(NamedTuple):
    """One task, each a metric's name → its value; percent, metres, a ratio or degrees.

    Attributes:
        from_expert: against what the expert says, at every pixel.
        scores: against labels; None where there are none.
        expert_scores: the expert's, likewise.
    """

    from_expert: dict[str, float]
    scores: dict[str, float] | None
    expert_scores: dict[str, float] | None


# An expert's depths may be 0 or less, to which no error is relative.
_FROM_EXPERT = {"segmentation": ("miou", "pixel_accuracy"), "depth": ("depth_abs_error",)}


def functions_of(network: Network, head: StoredDecoder, images: np.ndarray) -> DenseNetwork:
    """Returns the functions of a trunk with decoders like `head` on images of that size."""
    loaded = network.loaded
    assert isinstance(loaded, LoadedResNet)
    height, width = images.shape[1:3]
    return dense.network(loaded.config, head.decoder.config, (height, width))


def maps_on(network: Network, params: Params, decoder: Params, task: Task) -> np.ndarray:
    """Returns classes int8 [n, height, width], or maps float32 [n, height, width, m].

    Args:
        network: what computes.
        params: the trunk's {'params', 'batch_stats'}, in float32 or wider.
        decoder: the task's, likewise.
        task: whose images they are; its metric is its kind.
    """
    head, images = _head(task), task.inputs.rows
    own = functions_of(network, head, images)
    return dense.expert_maps(own, params, decoder, images, head.decoder.outputs, task.metric)


def adapt_maps(
    network: Network,
    trunk: Params,
    task_vectors: Params,
    tasks: Sequence[Task],
    experts: Sequence[np.ndarray],
    settings: Settings,
    *,
    on_chunk: Callable[[Any, np.ndarray], None] | None = None,
    keep: Keep | None = None,
) -> Adapted:
    """Adapts; no label takes part.

    Args:
        network: the pre-trained model.
        trunk: θ₀, {'params', 'batch_stats'} in the precision of the computation.
        task_vectors: τ of all its leaves, [task, ...].
        tasks: with decoders that `check_alike` took.
        experts: of each task, from `maps_on`.
        settings: all values filled in.
        on_chunk: see `fit`.
        keep: where the state is kept; see `fit`.

    Returns:
        The trunk with its statistics as `params`, and as coefficients those of leaves that some
        expert changed.
    """
    assert settings.batch_norm is not None, "settings_of fills it in"
    assert settings.learning_rate is not None, "likewise"
    assert settings.initial_coefficient is not None, "likewise"
    images = [task.inputs.rows for task in tasks]
    heads, outputs = network.family.stack([task.head.head for task in tasks])
    rate, method = settings.learning_rate, settings.method
    found = symerge_dense(
        functions_of(network, _head(tasks[0]), images[0]),
        trunk,
        task_vectors,
        heads,
        cast("tuple[int, ...]", outputs),
        images,
        experts,
        [task.metric for task in tasks],
        statistics=cast("Statistics", settings.batch_norm),
        iterations=settings.iterations,
        batch_size=min(settings.batch_size, max(map(len, images))),  # the rest would be padding
        head_rate=0.0 if method == "symerge_coefficients" else rate,
        coefficient_rate=0.0 if method == "symerge_head" else rate,
        initial_coefficient=settings.initial_coefficient,
        seed=settings.seed,
        on_chunk=on_chunk,
        keep=keep,
    )
    flat = dict(zip(trees.paths(task_vectors), jax.tree.leaves(task_vectors), strict=True))
    moved = {path for path, leaf in flat.items() if leaf.any()}
    coefficients = trees.split(found.coefficients, lambda path, _: path in moved)[0]
    nothing_left_out = np.zeros((0, 0), bool)
    return Adapted(found.encoder, coefficients, found.decoders, found.losses, nothing_left_out)


def score_maps(
    network: Network,
    params: Params,
    decoders: Sequence[Params],
    tasks: Sequence[Task],
    experts: Sequence[np.ndarray],
) -> dict[str, DenseScore]:
    """Compares a model with the experts, and with labels where there are some."""
    found = {}
    for task, decoder, expert in zip(tasks, decoders, experts, strict=True):
        kind, outputs = task.metric, _head(task).decoder.outputs
        said = maps_on(network, params, decoder, task)
        truth = expert[..., 0] if kind == "depth" else expert
        near = scores_of(said, truth, outputs, kind)
        kept = _FROM_EXPERT.get(kind, tuple(near))
        own = best = None
        if task.labels is not None:
            own, best = (scores_of(one, task.labels, outputs, kind) for one in (said, expert))
        found[task.name] = DenseScore({name: near[name] for name in kept}, own, best)
    return found


def scores_of(said: np.ndarray, truth: np.ndarray, outputs: int, kind: str) -> dict[str, float]:
    """Returns the metrics of a kind, the main one first.

    Args:
        said: what a model says, from `maps_on`.
        truth: labels, depths or normals [n, height, width, ...].
        outputs: number of maps of the decoder.
        kind: "segmentation", "depth" or "normal".
    """
    metric = DENSE_METRICS[kind]
    sums = predict(_sums(outputs, kind), (), (said, truth), batch_size=dense.BATCH)
    found: Mapping[str, float] = metric.scores(sums)
    return {name: found[name] for name in metric.names}


@cache
def _sums(outputs: int, kind: str) -> Callable[[Any, Any], Any]:
    def apply(params: Any, both: tuple[Array, Array]) -> Any:
        del params
        said, truth = both
        maps = jax.nn.one_hot(said, outputs, dtype=jnp.float32) if kind == "segmentation" else said
        return DENSE_METRICS[kind].sums(maps, truth)

    return apply


def _head(task: Task) -> StoredDecoder:
    assert isinstance(task.head, StoredDecoder)
    return task.head
