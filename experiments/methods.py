"""What each row of a vision table does: merge or adapt, then score on the test images.

Shared by the vision experiments. Labels are read in two places only: `score` on the test images, at
the end, and `tuned`, where the scale of a training-free method is chosen on validation images. What
adapts (`run_method`) receives images and what experts say about them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache as memoise
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from experiments.experts import Experts, Model
from experiments.statistics import moments
from experiments.tasks.images import Task
from symerge_jax import __version__
from symerge_jax.adapt.adamerging import adamerging
from symerge_jax.adapt.experts import expert_predictions
from symerge_jax.adapt.objectives import ExpertLabels
from symerge_jax.adapt.symerge import Adapted, symerge
from symerge_jax.cache import cached, digest
from symerge_jax.classifier import logits_of
from symerge_jax.cli.progress import Bars, say
from symerge_jax.evaluate import predict
from symerge_jax.finetune import Recipe
from symerge_jax.leaf_facts import tower_leaves
from symerge_jax.merge import METHODS, stored_bytes
from symerge_jax.metrics import accuracy, expected_calibration_error
from symerge_jax.models.heads import Head, normalised_head, stack_heads
from symerge_jax.notation import Array, Params
from symerge_jax.task_vectors import add
from symerge_jax.tune import grid_of, tune_scale

ADAPTIVE = (
    "adamerging",
    "adamerging_taskwise",
    "adamerging_sequential",
    "symerge_coefficients",
    "symerge_head",
    "symerge",
)
JOINT = ("adamerging", "adamerging_taskwise")  # two half batches per task and iteration
KNOWN = ("pretrained", "individual", *METHODS, *ADAPTIVE)


class Constants(NamedTuple):
    """Hyper-parameters of one kind of data.

    Attributes:
        recipe: of fine-tuning; None for experts that are read.
        iterations: rounds of adaptation over the tasks.
        batch_size: inputs per task and iteration.
        rate: learning rate of coefficients and heads together, and of heads alone.
        coefficient_rate: of coefficients alone.
        entropy_rate: of AdaMerging.
        initial: coefficient of every leaf and task at the start.
    """

    recipe: Recipe | None
    iterations: int
    batch_size: int
    rate: float
    coefficient_rate: float
    entropy_rate: float
    initial: float


class Seed(NamedTuple):
    """What the methods of one seed start from; `labels` is what each expert says of test images."""

    number: int
    experts: Experts
    labels: list[ExpertLabels]


class Scored(NamedTuple):
    """A model on one task's test images: which are right, bool [n], and its calibration error."""

    correct: np.ndarray
    ece: float


class Outcome(NamedTuple):
    """What one method gave under one seed.

    Attributes:
        method: its key.
        seed: of the experts.
        half: whether it adapted on half of the test images.
        scores: per task.
        adapted: of a method that learns.
        note: what was chosen on the way.
        stored: encoders' worth of numbers that serve all tasks.
    """

    method: str
    seed: int
    half: bool
    scores: list[Scored]
    adapted: Adapted | None = None
    note: str | None = None
    stored: float = 1.0


Tune = Literal["labels", "agreement", "none"]
moved = jax.jit(add)


def label(model: Model, experts: Experts, tasks: Sequence[Task], cache: Path) -> list[ExpertLabels]:
    """Returns what each expert says about its task's test images; no label takes part."""
    found = []
    for k, task in enumerate(tasks):  # one expert in memory at a time
        expert = (experts.params[k], *padded(experts.stacked, experts.classes, k))
        found += expert_predictions(
            logits_of(model.encode),
            [expert],
            [task.test.images],
            cache=cache,
            program=f"CLIP, {model.name}",
            report=say,
        )
    return found


def padded(heads: Head, classes: Array, k: int) -> tuple[Head, Array]:
    """Returns task k's padded head and which of its rows exist."""
    return {name: leaf[k] for name, leaf in heads.items()}, classes[k]


def logits_on(
    model: Model, params: Params, head: Head, classes: Array, images: np.ndarray
) -> np.ndarray:
    """Returns logits [n, classes]."""
    return predict(logits_of(model.encode), (params, head, classes), images)


def score(
    model: Model, params: Iterable[Params], heads: Head, classes: Array, tasks: Sequence[Task]
) -> list[Scored]:
    """Scores each task's test images with its own encoder (often one and the same) and head.

    Encoders are taken one at a time, so that they need not exist together.
    """
    scored = []
    for k, (task, own) in enumerate(zip(tasks, params, strict=True)):
        logits = logits_on(model, own, *padded(heads, classes, k), task.test.images)
        ece = expected_calibration_error(jax.nn.softmax(logits, axis=-1), task.test.labels)
        scored.append(Scored(logits.argmax(axis=1) == task.test.labels, float(ece)))
    return scored


def validation_accuracies(
    model: Model, params: Sequence[Params], heads: Head, classes: Array, tasks: Sequence[Task]
) -> np.ndarray:
    """Returns accuracy in percent on the validation images, [task]."""
    return np.array([
        float(accuracy(
            logits_on(model, params[k], *padded(heads, classes, k), task.validation.images),
            task.validation.labels,
        ))
        for k, task in enumerate(tasks)
    ])  # fmt: skip


def training_free(
    model: Model, seed: Seed, tasks: Sequence[Task], method: str, tune: Tune = "labels"
) -> Outcome:
    """Merges without data, or gives the reference rows; the scale comes from validation images."""
    experts, count, note, stored = seed.experts, len(tasks), None, 1.0
    heads, classes = experts.stacked, experts.classes
    params: Iterable[Params]
    if method == "individual":
        params, stored = experts.params, float(count)
    elif method == "pretrained":
        params, (heads, classes) = [model.pretrained] * count, stack_heads(experts.first_heads)
    else:
        entry, more = METHODS[method], needed(model, experts, tasks, method)
        merged = merge(experts, method, more)
        scale = entry.scale
        if entry.tunes_scale and tune != "none":
            scale = tuned(model, experts, merged, grid_of(method), tasks, tune)
            note = f"{method}: scale {scale:g} chosen on validation images ({tune})"
        if entry.kind == "per_task":
            params = (
                moved(model.pretrained, task_vector_of(merged, k), scale=scale)
                for k in range(count)
            )
            stored = stored_bytes(entry, experts.task_vectors, **more)
            stored /= sum(leaf.nbytes for leaf in jax.tree.leaves(model.pretrained))
        else:
            params = [moved(model.pretrained, merged, scale=scale)] * count
    scores = score(model, params, heads, classes, tasks)
    return Outcome(method, seed.number, False, scores, note=note, stored=stored)


@jax.jit
def task_vector_of(stored: Any, k: int) -> Params:
    """Returns τ*_k of what a per-task method stores."""
    return stored.materialise(k)


def needed(model: Model, experts: Experts, tasks: Sequence[Task], method: str) -> dict[str, Any]:
    """Returns what the method takes beside the task vectors."""
    entry, more = METHODS[method], {}
    if "leaves" in entry.needs:
        more["leaves"] = tower_leaves(model.pretrained)
    if "pretrained" in entry.needs:
        more["pretrained"] = model.pretrained
    if "moments" in entry.needs:
        more["moments"] = moments(model, experts, tasks, method)
    return more


def merge(experts: Experts, method: str, more: dict[str, Any]) -> Any:
    """Returns τ*, unscaled; of a per-task method its stored form, which gives each τ*_k."""
    entry = METHODS[method]
    if entry.compress is not None:
        return entry.compress(experts.task_vectors, **more)
    # These have small programs of their own; as one program they take minutes to compile.
    own_programs = entry.plan is not None or "leaves" in entry.needs or "moments" in entry.needs
    run = entry.merge if own_programs else jax.jit(entry.merge)
    return run(experts.task_vectors, **more)


def tuned(
    model: Model,
    experts: Experts,
    merged: Params,
    scales: Sequence[float],
    tasks: Sequence[Task],
    tune: Tune,
) -> float:
    """Returns the scale that is best on validation images; the whole grid is one program.

    By their labels, relative to the expert; or, without any label, by how often the merged model
    says what the expert says.
    """
    heads, classes = experts.stacked, experts.classes
    own = [padded(heads, classes, k) for k in range(len(tasks))]
    images = [task.validation.images for task in tasks]
    if tune == "agreement":
        truths, reference = (
            [
                logits_on(model, experts.params[k], *own[k], images[k]).argmax(axis=1)
                for k in range(len(tasks))
            ],
            None,
        )
    else:
        truths = [task.validation.labels for task in tasks]
        reference = validation_accuracies(model, experts.params, heads, classes, tasks)
    return tune_scale(
        with_head(model.encode), model.pretrained, merged, scales, own, images, truths,
        reference=reference,
    ).scale  # fmt: skip


@memoise
def with_head(encode: Callable[[Params, Array], Array]) -> Callable[[Any, Array], Array]:
    """Returns ((θ, (head, classes)), images) → logits, as `tune_scale` asks."""
    logits = logits_of(encode)

    def apply(model: tuple[Params, tuple[Head, Array]], images: Array) -> Array:
        params, (head, classes) = model
        return logits((params, head, classes), images)

    return apply


def halves(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Splits test inputs in two random halves: one to adapt on, one to score."""
    order = np.random.default_rng(0).permutation(count)
    return np.sort(order[: count // 2]), np.sort(order[count // 2 :])


def adaptive(
    model: Model,
    seed: Seed,
    tasks: Sequence[Task],
    method: str,
    constants: Constants,
    *,
    half: bool,
    dtype: str,
    cache: Path,
    resume: bool,
    bars: Bars,
) -> Outcome:
    """Adapts on unlabelled test images (or on half of them) and scores."""
    inputs, labels = [task.test.images for task in tasks], seed.labels
    if half:
        rows = [halves(len(x))[0] for x in inputs]
        inputs = [x[r] for x, r in zip(inputs, rows, strict=True)]
        labels = [ExpertLabels(*(y[r] for y in x)) for x, r in zip(labels, rows, strict=True)]
    name = f"{method}, seed {seed.number}" + (", half" if half else "")
    steps = constants.iterations * len(tasks) * (2 if method in JOINT else 1)
    batch = constants.batch_size // (2 if method in JOINT else 1)
    follow = bars.follow(name, steps, batch)
    experts = seed.experts

    def make() -> dict[str, Any]:
        adapted = run_method(
            method, model, experts, inputs, labels, constants, seed.number,
            lambda carry, losses: follow(losses),
        )  # fmt: skip
        lam = adapted.coefficients
        return {
            "params": adapted.params,
            "coefficients": lam if isinstance(lam, dict) else {"all": lam},
            "heads": adapted.heads,
            "losses": adapted.losses,
            "kept": adapted.kept,
        }

    key = {
        "method": method, "version": __version__, "seed": seed.number, "model": model.name,
        "experts": digest(experts.task_vectors, experts.stacked), "inputs": digest(inputs),
        "labels": digest(*(tuple(x) for x in labels)), "constants": str(constants),
        "dtype": dtype,
    }  # fmt: skip
    made = cached(cache, "adapted", key, make, report=say, renew=not resume)
    adapted = Adapted(**made)
    count = len(tasks)
    scores = score(model, [adapted.params] * count, adapted.heads, experts.classes, tasks)
    return Outcome(method, seed.number, half, scores, adapted)


def run_method(
    method: str,
    model: Model,
    experts: Experts,
    inputs: Sequence[np.ndarray],
    labels: Sequence[ExpertLabels],
    constants: Constants,
    seed: int,
    on_chunk: Callable[[Any, np.ndarray], None],
) -> Adapted:
    """Runs one adaptive method with its settings."""
    shared = {
        "classes": experts.classes,
        "iterations": constants.iterations,
        "initial_coefficient": constants.initial,
        "seed": seed,
        "on_chunk": on_chunk,
    }
    start = (model.encode, normalised_head, model.pretrained, experts.task_vectors, experts.stacked)
    if method.startswith("adamerging"):
        return adamerging(
            *start, inputs,
            granularity="task" if method == "adamerging_taskwise" else "leaf",
            update="joint" if method in JOINT else "sequential",
            batch_size=constants.batch_size // (2 if method in JOINT else 1),
            learning_rate=constants.entropy_rate,
            **shared,
        )  # fmt: skip
    rates = {
        "symerge": (constants.rate, constants.rate),
        "symerge_head": (0.0, constants.rate),
        "symerge_coefficients": (constants.coefficient_rate, 0.0),
    }
    coefficient_rate, head_rate = rates[method]
    return symerge(
        *start, inputs, labels,
        batch_size=constants.batch_size,
        coefficient_rate=coefficient_rate,
        head_rate=head_rate,
        **shared,
    )  # fmt: skip
