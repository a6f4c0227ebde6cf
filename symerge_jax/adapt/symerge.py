"""SyMerge: learn the merging coefficients together with one task-specific layer, by self-labels.

"SyMerge" (ICML 2026), arXiv 2412.19098. Per step: a mini-batch of one task's unlabelled inputs, the
encoder θ = θ₀ + Σ_k clip(λ_k, 0, 1) τ_k, that task's head, and cross-entropy to the classes its
expert predicts. One optimiser step per task and iteration, tasks in a new order each time; Adam
over λ and the heads.

As the released code where it differs from the paper: a sample is dropped only if merged model and
expert disagree and the merged one is surer (the paper's text: whenever it is surer). Departures: a
mini-batch of which nothing is kept gives loss 0 and no gradient (NaN there).

Adam on idle heads follows PyTorch, which changed: up to version 1.x a head sees zero gradients in
other tasks' steps, from its own first step on, and moves by momentum ("dense", the paper's version
and our default); since 2.0 it is left alone ("masked"). Both keep a step count per head.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from symerge_jax import trees
from symerge_jax.adapt import across
from symerge_jax.adapt import schedule as schedules
from symerge_jax.adapt.coefficients import STORED, Rounded, clamp_all, interpolate, per_leaf, stored
from symerge_jax.adapt.distances import ExpertOutputs
from symerge_jax.adapt.fit import Carry, Keep, fit, pool
from symerge_jax.adapt.merged import (
    OBJECTIVES,
    OUTPUT_OBJECTIVES,
    Classify,
    Constants,
    Encode,
    Trainables,
    encoder_loss,
    head_loss,
    objective_ids,
    with_layers,
)
from symerge_jax.adapt.objectives import FILTERS, ExpertLabels
from symerge_jax.adapt.schedule import Schedule
from symerge_jax.errors import BadInput
from symerge_jax.evaluate import predict
from symerge_jax.notation import Array, Bool, Coefficients, Float, Params, TaskVectors
from symerge_jax.parallel import Device

OnChunk = Callable[[Carry, np.ndarray], None]


class Adapted(NamedTuple):
    """The result of an adaptation.

    Attributes:
        params: the merged encoder θ, leaves [...].
        coefficients: λ as trained, not clamped, leaves [task].
        heads: leaves [task, ...].
        losses: float [step], before each step's update.
        kept: bool [step, batch], which samples counted.
        layers: leaves of the encoder that are each task's own, [task, ...], None for the others;
            () if all are shared.
    """

    params: Params
    coefficients: Coefficients
    heads: Params
    losses: Float[np.ndarray, " step"]
    kept: Bool[np.ndarray, "step batch"]
    layers: Params = ()

    def encoder(self, task: int) -> Params:
        """Returns one task's encoder; the same for all unless they have layers of their own."""
        return with_layers(self.params, self.layers, task)


def symerge(
    encode: Encode,
    classify: Classify,
    pretrained: Params,
    task_vectors: TaskVectors,
    heads: Params,
    inputs: Sequence[Any],
    experts: Sequence[ExpertLabels] | Sequence[ExpertOutputs],
    *,
    classes: Bool[Array, "task classes"] | None = None,
    objective: str | Sequence[str] = "self_label",
    layer: Any = None,
    layer_rate: float = 1e-5,
    iterations: int = 500,
    batch_size: int = 32,
    head_rate: float = 0.01,
    coefficient_rate: float = 0.01,
    initial_coefficient: float = 0.3,
    coefficients: Coefficients | None = None,
    confidence_filter: Literal["none", "code", "paper"] = "code",
    idle_heads: Literal["dense", "masked"] = "dense",
    clamp: bool = True,
    seed: int = 0,
    schedule: Schedule | None = None,
    chunk_steps: int | None = None,
    on_chunk: OnChunk | None = None,
    keep: Keep | None = None,
    devices: Sequence[Device] | None = None,
    split_task_vectors: bool = False,
    stored_as: str = "float32",
) -> Adapted:
    """Adapts coefficients and heads to unlabelled inputs.

    Args:
        encode: (θ, inputs [batch, ...]) → features [batch, features]. Pass the same function
            objects again to reuse the compiled program.
        classify: (head, features) → logits [batch, classes].
        pretrained: θ₀.
        task_vectors: τ, leaves [task, ...].
        heads: leaves [task, ...], padded to one number of classes.
        inputs: one pytree per task, leaves [n, ...]: the unlabelled inputs.
        experts: one per task: what its expert says about those inputs (`expert_predictions`), or
            its outputs where the objective compares them.
        classes: which rows of the padded heads exist; None for all.
        objective: "self_label", or an entry of `distances.DISTANCES` (figure C), or "entropy",
            which reads no expert; one for all tasks, or one for each. Tasks that compare outputs
            and tasks that do not cannot be mixed: "hard_ce" is "self_label" with outputs and
            without a filter, such as for classes beside a regression task with "l1".
        layer: leaves of the encoder that each task shall have of its own instead of a merged one: a
            pytree of bool like θ₀. They start at the merged values and have no coefficient. Give
            `head_rate=0` with it: one layer is what the paper adapts.
        layer_rate: Adam's learning rate for those leaves.
        iterations: rounds over the tasks.
        batch_size: inputs per step.
        head_rate: Adam's learning rate for the heads; 0 keeps them (coefficients only).
        coefficient_rate: Adam's learning rate for λ; 0 keeps the encoder bit-identical (head only),
            and its features are worked out once. The paper takes 0.001 when only λ is trained.
        initial_coefficient: of every leaf and task. The paper takes 0.3 for 8 tasks, 0.1 for 14
            and 20.
        coefficients: λ to start from instead.
        confidence_filter: which samples count: all ("none"), the released code's rule ("code") or
            the paper's text ("paper").
        idle_heads: "dense", heads of other tasks move by momentum; "masked", only by own steps.
        clamp: whether λ is clipped to [0, 1] in the forward pass.
        seed: of task order and batches.
        schedule: replaces `iterations`, `batch_size` and `seed`.
        chunk_steps: steps between two calls of `on_chunk`; None for a few seconds' worth.
        on_chunk: see `fit`.
        keep: where the state is kept; see `fit`.
        devices: that share every mini-batch, of all processes; None for JAX's default one.
        split_task_vectors: each device keeps its share of θ₀ and τ and gets the merged rest from
            the others in each step; otherwise each has all of them.
        stored_as: type in which τ is kept in memory, "float32", "bfloat16" or "int8"
            (`coefficients.stored`); the result is merged from the same.

    Raises:
        BadInput: shapes that do not fit together, an unknown option, a loss that is not finite.
    """
    objectives = [objective] * len(inputs) if isinstance(objective, str) else list(objective)
    for one in objectives:
        check_option("objective", one, ("self_label", "entropy", *OUTPUT_OBJECTIVES))
    check_option("confidence_filter", confidence_filter, FILTERS)
    check_option("idle_heads", idle_heads, ("dense", "masked"))
    check_option("stored_as", stored_as, STORED)
    if len(experts) != len(inputs):
        raise BadInput(
            f"got predictions of {len(experts)} experts for inputs of {len(inputs)} tasks"
        )
    if coefficients is None:
        coefficients = per_leaf(task_vectors, initial_coefficient)
    return adapt(
        encode, classify, pretrained, task_vectors, heads, inputs, experts,
        classes=classes,
        objectives=[confidence_filter if x == "self_label" else x for x in objectives],
        rates=Trainables(coefficient_rate, head_rate, layer_rate),
        coefficients=coefficients,
        layer=layer,
        idle="zero" if idle_heads == "dense" else "skip",
        clamp=clamp,
        seed=seed,
        schedule=schedule or schedules.sequential(
            sizes_of(inputs), iterations=iterations, batch_size=batch_size, seed=seed
        ),
        chunk_steps=chunk_steps,
        on_chunk=on_chunk,
        keep=keep,
        devices=devices,
        split_task_vectors=split_task_vectors,
        stored_as=stored_as,
    )  # fmt: skip


def adapt(
    encode: Encode,
    classify: Classify,
    pretrained: Params,
    task_vectors: TaskVectors,
    heads: Params,
    inputs: Sequence[Any],
    experts: Sequence[Any],
    *,
    classes: Array | None,
    objectives: Sequence[str],
    rates: Trainables,
    coefficients: Coefficients,
    layer: Any = None,
    idle: Literal["skip", "zero"],
    clamp: bool,
    seed: int,
    schedule: Schedule,
    chunk_steps: int | None = None,
    on_chunk: OnChunk | None = None,
    keep: Keep | None = None,
    devices: Sequence[Device] | None = None,
    split_task_vectors: bool = False,
    stored_as: str = "float32",
) -> Adapted:
    """The run that SyMerge and AdaMerging share; their functions explain the arguments."""
    count = trees.task_count(task_vectors)
    if not len(inputs) == trees.task_count(heads) == count:
        raise BadInput(
            f"got {count} task vectors, {trees.task_count(heads)} heads and inputs of "
            f"{len(inputs)} tasks; expected one of each per task"
        )
    check_coefficients(coefficients, task_vectors, count)
    all_classes = all_rows(classify, encode, pretrained, heads, inputs)
    if classes is None:
        classes = all_classes
    elif np.shape(classes) != all_classes.shape:
        raise BadInput(
            f"classes: expected [task, classes] of shape {all_classes.shape} as the heads have, "
            f"got {np.shape(classes)}"
        )
    check_targets(experts, objectives, classes.shape[-1])
    if "entropy" in objectives:
        check_has_classes(classes, [k for k, x in enumerate(objectives) if x == "entropy"])
    ids = objective_ids(objectives)
    layers: Params = ()
    if layer is not None:
        merged = merged_encoder(pretrained, task_vectors, coefficients, clamp)
        layers = _copies(merged, layer, count)
        task_vectors = _without(task_vectors, layer)
        if not isinstance(coefficients, Array):
            coefficients = _without(coefficients, layer)
    trainables = Trainables(coefficients, heads, layers)
    if stored_as != "float32":
        task_vectors = stored(task_vectors, stored_as)
    split, axes = None, ()
    if layer is None and rates.coefficients == 0:
        theta = merged_encoder(pretrained, task_vectors, coefficients, clamp)
        features = [predict(encode, theta, own) for own in inputs]
        data = pool(features, experts)
        constants = Constants((), (), jnp.asarray(classes), ids)
        split = split_over(devices, across.unsplit(constants))
        loss = head_loss(classify)
    else:
        data = pool(inputs, experts)
        constants = Constants(pretrained, task_vectors, jnp.asarray(classes), ids)
        where = across.unsplit(constants)
        if devices is not None and split_task_vectors:
            where = _shares(constants, len(devices))
            axes = tuple(jax.tree.leaves(where.pretrained))
        split = split_over(devices, where)
        loss = encoder_loss(encode, classify, clamp, axes if split else ())
        if split is not None:
            constants = across.place(constants, split, split.axes)
    fitted = fit(
        loss, trainables, data, schedule,
        rates=rates,
        constants=constants,
        per_task=Trainables(False, True, True),
        idle=idle,
        seed=seed,
        chunk_steps=chunk_steps,
        on_chunk=on_chunk,
        keep=keep,
        split=split,
    )  # fmt: skip
    trained: Trainables = fitted.trainables
    if split is None or not jax.tree.leaves(constants.task_vectors):
        theta = merged_encoder(pretrained, task_vectors, trained.coefficients, clamp)
    else:  # from where θ₀ and τ lie now, in shares perhaps
        lam = across.place(trained.coefficients, split)
        theta = merged_encoder(constants.pretrained, constants.task_vectors, lam, clamp)
        theta = across.brought_home(across.gathering(split.devices)(theta))
    return Adapted(
        theta,
        trained.coefficients,
        trained.heads,
        fitted.losses,
        fitted.extra.kept[:, : schedule.batch_size],  # devices may have padded it
        trained.layers,
    )


def split_over(devices: Sequence[Device] | None, axes: Any) -> across.Split | None:
    """Returns how a run lies on several devices; None for one.

    Args:
        devices: that share it.
        axes: of the constants' leaves, as `across.Split` has them.
    """
    if devices is None or len(devices) < 2:
        return None
    return across.Split(tuple(devices), tuple(jax.tree.leaves(axes)))


def _shares(constants: Constants, count: int) -> Constants:
    """Returns along which axes `count` devices share θ₀ and τ."""
    axes = across.split_axes(constants.pretrained, count)

    def of_stack(axis: int, tau: Any) -> Any:
        if tau is None:
            return None
        axis = across.stacked(axis)
        return Rounded(axis, across.NOT_SPLIT) if isinstance(tau, Rounded) else axis  # pyright: ignore[reportArgumentType]

    of_tau = jax.tree.map(of_stack, axes, constants.task_vectors)
    return across.unsplit(constants)._replace(pretrained=axes, task_vectors=of_tau)


def _copies(params: Params, layer: Any, count: int) -> Params:
    """Returns `count` copies of the chosen leaves, [task, ...]; None for the others."""
    _check_layer(layer, params)

    def copies(leaf: Array, own: bool) -> Array | None:
        return jnp.broadcast_to(leaf[None], (count, *leaf.shape)) if own else None

    return jax.tree.map(copies, params, layer)


def _without(tree: Params, layer: Any) -> Params:
    """Returns a tree with None for the chosen leaves."""
    return jax.tree.map(lambda leaf, own: None if own else leaf, tree, layer)


def _check_layer(layer: Any, params: Params) -> None:
    if jax.tree.structure(layer) != jax.tree.structure(params):
        raise BadInput(
            "layer: expected a pytree of bool with the leaves of θ₀; got another structure"
        )
    chosen = sum(map(bool, jax.tree.leaves(layer)))
    if not 0 < chosen < len(jax.tree.leaves(layer)):
        raise BadInput(
            f"layer: expected some leaves of the encoder and not all, got {chosen} of "
            f"{len(jax.tree.leaves(layer))}"
        )


def check_targets(experts: Sequence[Any], objectives: Sequence[str], classes: int) -> None:
    """An objective that compares outputs needs them, and the others need labels."""
    if len(objectives) != len(experts):
        raise BadInput(f"got {len(objectives)} objectives for {len(experts)} tasks")
    if len({name in OUTPUT_OBJECTIVES for name in objectives}) > 1:
        raise BadInput(
            f"objectives {', '.join(objectives)}: those that compare with the expert's outputs do "
            "not mix with the others; take hard_ce for self-labels beside them"
        )
    for k, (expert, objective) in enumerate(zip(experts, objectives, strict=True)):
        wanted = ExpertOutputs if objective in OUTPUT_OBJECTIVES else ExpertLabels
        if not isinstance(expert, wanted):
            raise BadInput(
                f"objective {objective}: expected {wanted.__name__} of each expert, got "
                f"{type(expert).__name__} for task {k}"
            )
        if isinstance(expert, ExpertOutputs) and np.shape(expert.logits)[-1] != classes:
            raise BadInput(
                f"objective {objective}: the heads give {classes} logits, but expert {k} "
                f"{np.shape(expert.logits)[-1]}; pad its logits as the heads are"
            )


@jax.jit
def _merge_clamped(pretrained: Params, task_vectors: Any, lam: Coefficients) -> Params:
    return interpolate(pretrained, task_vectors, clamp_all(lam))


def merged_encoder(
    pretrained: Params, task_vectors: Any, coefficients: Coefficients, clamp: bool = True
) -> Params:
    """Returns θ = θ₀ + Σ_k clip(λ_k) τ_k; the program is compiled once."""
    if clamp:
        return _merge_clamped(pretrained, task_vectors, coefficients)
    return jax.jit(interpolate)(pretrained, task_vectors, coefficients)


def sizes_of(inputs: Sequence[Any]) -> list[int]:
    """Returns the number of inputs of each task."""
    return [len(jax.tree.leaves(own)[0]) for own in inputs]


def all_rows(
    classify: Classify, encode: Encode, pretrained: Params, heads: Params, inputs: Sequence[Any]
) -> Array:
    """Every row of the heads counts; how many there are is read from the shape of the logits."""
    head = jax.tree.map(lambda x: x[0], heads)
    first = jax.tree.map(lambda x: np.asarray(x[:1]), inputs[0])
    logits = jax.eval_shape(lambda p, h, x: classify(h, encode(p, x)), pretrained, head, first)
    return jnp.ones((len(inputs), logits.shape[-1]), bool)


def check_coefficients(coefficients: Any, task_vectors: TaskVectors, count: int) -> None:
    """Raises `BadInput` for coefficients that are not one array [task], or one for each leaf."""
    one_for_all = isinstance(coefficients, Array)
    if not one_for_all and jax.tree.structure(coefficients) != jax.tree.structure(task_vectors):
        raise BadInput(
            "coefficients: expected one array [task], or a pytree with the leaves of the task "
            "vectors; got another structure"
        )
    shapes = {np.shape(leaf) for leaf in jax.tree.leaves(coefficients)}
    if shapes != {(count,)}:
        raise BadInput(f"coefficients: expected arrays of shape ({count},), got {sorted(shapes)}")


def check_has_classes(classes: Array, tasks: Sequence[int] | None = None) -> None:
    """Raises `BadInput` for a task without two classes, whose predictions have no entropy.

    Args:
        classes: bool [task, classes], which rows of the padded heads exist.
        tasks: which of them are asked to have classes; all if None.
    """
    counts = np.asarray(classes).sum(axis=1)
    few = [k for k in (range(len(counts)) if tasks is None else tasks) if counts[k] < 2]
    if few:
        k = few[0]
        raise BadInput(
            f"task {k} has {counts[k]} output instead of logits of at least two classes, so its "
            "predictions have no entropy to minimise; leave it out, or use self-labels (symerge)"
        )


def check_option(name: str, value: str, known: Any) -> None:
    """Raises `BadInput` for a value that is none of those known."""
    if value not in known:
        raise BadInput(f"{name} must be one of {', '.join(known)}, got {value!r}")


assert set(FILTERS) < set(OBJECTIVES)
