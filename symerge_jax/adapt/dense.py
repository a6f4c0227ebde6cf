"""SyMerge for dense prediction: maps of pixels in place of classes, batch normalisation, decoders.

"SyMerge" (ICML 2026), arXiv 2412.19098, section 5 and table 2; no code of it is public. Per step: a
mini-batch of unlabelled images, the encoder θ = θ₀ + Σ_k clip(λ_k, 0, 1) τ_k, one task's decoder,
and its distance to what the task's expert says of the same images: cross-entropy to its class at
every pixel, and the mean absolute difference of depths and of normals.

The paper does not say what becomes of batch normalisation; `statistics` has three answers:

- "recalibrate": encoder and decoder run in training mode, as when they were fine-tuned; running
  statistics start at their merged values and move with every forward pass, whatever its task, and
  are read in evaluation afterwards. The decoders' own move in their tasks' steps.
- "merge_stats": running statistics are tensors like others, with coefficients; evaluation mode.
- "pretrained_stats": those of θ₀; evaluation mode.

Choices of ours where the paper is silent: normals are brought to length 1 before they are compared,
and in training mode the decoders drop half of their channels, as in fine-tuning.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import jax
import jax.numpy as jnp
import numpy as np

from symerge_jax import trees
from symerge_jax.adapt import schedule as schedules
from symerge_jax.adapt.coefficients import clamp_all, interpolate, per_leaf
from symerge_jax.adapt.fit import Batch, Carry, Keep, Loss, fit, pool
from symerge_jax.adapt.merged import Trainables, pick
from symerge_jax.adapt.objectives import entropy, masked_mean
from symerge_jax.adapt.schedule import Schedule
from symerge_jax.adapt.symerge import check_option
from symerge_jax.batch_stats import floor_variances, merge_stats
from symerge_jax.dense_losses import self_depth, self_normal, self_segmentation
from symerge_jax.errors import BadInput
from symerge_jax.notation import Array, Coefficients, Float, Params, TaskVectors

Statistics: TypeAlias = Literal["recalibrate", "merge_stats", "pretrained_stats"]
KINDS = ("segmentation", "depth", "normal")


class Network(NamedTuple):
    """The functions of a network for dense prediction; `symerge_jax.dense.network` makes them.

    Attributes:
        encode: ({'params', 'batch_stats'}, images [batch, ...]) → features.
        decode: ({'params', 'batch_stats'} of a decoder, features) → maps [batch, height, width, m].
        encode_in_training: (variables, images, mask) → features, moved batch_stats.
        decode_in_training: (variables, features, mask, key) → maps, moved batch_stats.
    """

    encode: Callable[[Any, Array], Array]
    decode: Callable[[Any, Array], Array]
    encode_in_training: Callable[..., tuple[Array, Any]]
    decode_in_training: Callable[..., tuple[Array, Any]]


class AdaptedDense(NamedTuple):
    """The result of an adaptation.

    Attributes:
        encoder: {'params', 'batch_stats'} of the merged trunk, leaves [...].
        coefficients: λ as trained, not clamped, leaves [task]; running statistics have some with
            "merge_stats" only.
        decoders: {'params', 'batch_stats'}, leaves [task, ...].
        losses: float [step], before each step's update.
    """

    encoder: Params
    coefficients: Coefficients
    decoders: Params
    losses: Float[np.ndarray, " step"]


class _Constants(NamedTuple):
    pretrained: Params
    task_vectors: TaskVectors
    stats: Params  # of the trunk, where they do not change
    decoder_stats: Params  # likewise
    images: tuple[Array, ...]  # of each task, or of all
    targets: tuple[Array, ...]  # of each task


class _Plan(NamedTuple):
    """What the compiled program depends on."""

    network: Network
    statistics: str
    kinds: tuple[str, ...]
    outputs: tuple[int, ...]
    objective: str
    normalise: bool
    clamp: bool


def symerge_dense(
    network: Network,
    pretrained: Params,
    task_vectors: TaskVectors,
    decoders: Params,
    outputs: Sequence[int],
    images: Sequence[Array],
    experts: Sequence[Array],
    kinds: Sequence[str],
    *,
    statistics: Statistics = "recalibrate",
    objective: Literal["self_label", "entropy"] = "self_label",
    iterations: int = 25,
    batch_size: int = 16,
    head_rate: float = 1e-4,
    coefficient_rate: float = 1e-4,
    initial_coefficient: float = 0.3,
    idle_heads: Literal["dense", "masked"] = "dense",
    normalise: bool = True,
    clamp: bool = True,
    seed: int = 0,
    schedule: Schedule | None = None,
    chunk_steps: int | None = None,
    on_chunk: Callable[[Carry, np.ndarray], None] | None = None,
    keep: Keep | None = None,
) -> AdaptedDense:
    """Adapts coefficients and decoders to unlabelled images.

    Args:
        network: its functions; pass the same ones again to reuse the compiled program.
        pretrained: θ₀ with its running statistics, {'params', 'batch_stats'}.
        task_vectors: τ of both collections, leaves [task, ...].
        decoders: {'params', 'batch_stats'}, leaves [task, ...], padded to one number of maps.
        outputs: how many maps each task has.
        images: one array per task, uint8 [n, height, width, 3]. Where all tasks have one and the
            same array it is held once.
        experts: one per task: what its expert says of those images; see `dense.expert_maps`.
        kinds: of the tasks, out of `KINDS`.
        statistics: of batch normalisation; see the module.
        objective: "self_label"; or "entropy" of the classes at every pixel, for segmentation alone,
            which asks no expert.
        iterations: rounds over the tasks.
        batch_size: images per step; at least 2 with "recalibrate".
        head_rate: Adam's learning rate for the decoders; 0 keeps their weights.
        coefficient_rate: Adam's learning rate for λ; 0 keeps the merged weights.
        initial_coefficient: of every leaf and task.
        idle_heads: "dense", decoders of other tasks move by momentum; "masked", only by own steps.
        normalise: whether normals are brought to length 1 before they are compared.
        clamp: whether λ is clipped to [0, 1] in the forward pass.
        seed: of task order, batches and dropout.
        schedule: replaces `iterations`, `batch_size` and `seed`'s order.
        chunk_steps: steps between two calls of `on_chunk`; None for a few seconds' worth.
        on_chunk: see `fit`.
        keep: where the state is kept; see `fit`.

    Raises:
        BadInput: shapes that do not fit together, an unknown option, the entropy of maps without
            classes, a batch of one image with "recalibrate", a loss that is not finite.
    """
    check_option("statistics", statistics, get_args(Statistics))
    check_option("objective", objective, ("self_label", "entropy"))
    check_option("idle_heads", idle_heads, ("dense", "masked"))
    _check(trees.task_count(task_vectors), decoders, outputs, images, experts, kinds)
    if objective == "entropy":
        check_has_pixel_classes(kinds)
    sizes = [len(own) for own in images]
    if schedule is None:
        schedule = schedules.sequential(
            sizes, iterations=iterations, batch_size=batch_size, seed=seed
        )
    recalibrates = statistics == "recalibrate"
    if recalibrates and schedule.batch_size < 2:
        raise BadInput(
            "batches of one image have no variance to recalibrate batch normalisation with; take "
            "a batch size of at least 2, or statistics = merge_stats"
        )
    theta0, tau = pretrained, task_vectors
    if statistics != "merge_stats":
        theta0, tau = {"params": pretrained["params"]}, {"params": task_vectors["params"]}
    coefficients = per_leaf(tau, initial_coefficient)
    own_stats = pretrained["batch_stats"]
    state: Any = ()
    if recalibrates:
        whole = jnp.full((len(sizes),), initial_coefficient)
        start = merge_stats(
            own_stats, task_vectors["batch_stats"], clamp_all(whole) if clamp else whole
        )
        state = {"trunk": start, "decoders": decoders["batch_stats"]}
    constants = _Constants(
        theta0,
        tau,
        own_stats if statistics == "pretrained_stats" else (),
        () if recalibrates else decoders["batch_stats"],
        held(images),
        tuple(jnp.asarray(x) for x in experts),
    )
    plan = _Plan(network, statistics, tuple(kinds), tuple(outputs), objective, normalise, clamp)
    fitted = fit(
        _loss(plan),
        Trainables(coefficients, decoders["params"]),
        pool([np.arange(n, dtype=np.int32) for n in sizes]),
        schedule,
        rates=Trainables(coefficient_rate, head_rate),
        constants=constants,
        model_state=jax.tree.map(jnp.asarray, state),
        per_task=Trainables(False, True),
        idle="zero" if idle_heads == "dense" else "skip",
        seed=seed,
        chunk_steps=chunk_steps,
        on_chunk=on_chunk,
        keep=keep,
    )  # fmt: skip
    trained, after = fitted.trainables, fitted.carry.model_state
    encoder = dict(_merged(clamp)(theta0, tau, trained.coefficients))
    if recalibrates:
        encoder["batch_stats"] = after["trunk"]
    elif statistics == "pretrained_stats":
        encoder["batch_stats"] = own_stats
    stats = after["decoders"] if recalibrates else decoders["batch_stats"]
    return AdaptedDense(
        floor_variances(encoder),
        trained.coefficients,
        {"params": trained.heads, "batch_stats": stats},
        fitted.losses,
    )


def check_has_pixel_classes(kinds: Sequence[str]) -> None:
    """Raises `BadInput` for depths and normals, which have no entropy."""
    for kind in kinds:
        if kind != "segmentation":
            raise BadInput(
                f"{kind} has no classes, so its predictions have no entropy to minimise; leave the "
                "task out, or use self-labels (symerge)"
            )


def _check(
    count: int,
    decoders: Params,
    outputs: Sequence[int],
    images: Sequence[Array],
    experts: Sequence[Array],
    kinds: Sequence[str],
) -> None:
    found = {
        "decoders": trees.task_count(decoders["params"]), "numbers of outputs": len(outputs),
        "sets of images": len(images), "experts": len(experts), "kinds": len(kinds),
    }  # fmt: skip
    for what, number in found.items():
        if number != count:
            raise BadInput(f"got {count} task vectors, but {number} {what}; expected one per task")
    for k, kind in enumerate(kinds):
        check_option("kind", kind, KINDS)
        pixels = np.shape(images[k])[:3]
        expected = pixels if kind == "segmentation" else (*pixels, outputs[k])
        if np.shape(experts[k]) != expected:
            raise BadInput(
                f"task {k}, {kind}: expected the expert's maps of shape {expected} for these "
                f"images, got {np.shape(experts[k])}"
            )


@cache
def _merged(clamp: bool) -> Callable[..., Params]:
    def merge(pretrained: Params, task_vectors: TaskVectors, lam: Coefficients) -> Params:
        return interpolate(pretrained, task_vectors, clamp_all(lam) if clamp else lam)

    return jax.jit(merge)


@cache
def _loss(plan: _Plan) -> Loss:
    network = plan.network

    def loss(trainables: Trainables, constants: _Constants, state: Any, batch: Batch) -> Any:
        lam = clamp_all(trainables.coefficients) if plan.clamp else trainables.coefficients
        theta = interpolate(constants.pretrained, constants.task_vectors, lam)
        rows, task = batch.inputs, batch.task
        images = images_at(constants.images, task, rows)
        decoder = pick(trainables.heads, task)
        if plan.statistics == "recalibrate":
            features, trunk = network.encode_in_training(
                {**theta, "batch_stats": state["trunk"]}, images, batch.mask
            )
            own = {"params": decoder, "batch_stats": pick(state["decoders"], task)}
            maps, moved = network.decode_in_training(own, features, batch.mask, batch.key)
            decoders = jax.tree.map(lambda x, new: x.at[task].set(new), state["decoders"], moved)
            state = {"trunk": trunk, "decoders": decoders}
        else:
            if plan.statistics == "pretrained_stats":
                theta = {**theta, "batch_stats": constants.stats}
            own = {"params": decoder, "batch_stats": pick(constants.decoder_stats, task)}
            maps = network.decode(own, network.encode(theta, images))
        branches = [
            partial(_distance, plan, k, target) for k, target in enumerate(constants.targets)
        ]
        return masked_mean(jax.lax.switch(task, branches, maps, rows), batch.mask), state, ()

    return loss


def held(images: Sequence[Array]) -> tuple[Array, ...]:
    """Puts the images of all tasks on the device; once, if all have one and the same array."""
    one = all(own is images[0] for own in images)
    return tuple(jnp.asarray(x) for x in (images[:1] if one else images))


def images_at(arrays: tuple[Array, ...], task: Array, rows: Array) -> Array:
    """Returns rows of a task's images, of what `held` returned."""
    if len(arrays) == 1:
        return arrays[0][rows]
    return jax.lax.switch(task, [lambda at, x=x: x[at] for x in arrays], rows)


def _distance(plan: _Plan, k: int, target: Array, maps: Array, rows: Array) -> Array:
    """One value per image, [batch], for task k."""
    own, kind = maps[..., : plan.outputs[k]], plan.kinds[k]
    if plan.objective == "entropy":
        pixels = entropy(own.reshape(-1, own.shape[-1]))
        return pixels.reshape(len(own), -1).mean(axis=1)
    expert = target[rows]
    if kind == "segmentation":
        return self_segmentation(own, expert)
    if kind == "depth":
        return self_depth(own, expert)
    return self_normal(own, expert, normalise=plan.normalise)
