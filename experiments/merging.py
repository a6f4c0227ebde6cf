"""Training-free rows of a table: merge, choose a scale on validation inputs, score.

Labels are read in one place: `tuned`, where the scale is chosen on validation images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache as memoise
from typing import Any, Literal

import jax
import numpy as np

from experiments.experts import Experts, Model
from experiments.methods import Outcome, Seed
from experiments.records import lower_is_better
from experiments.scoring import logits_on, padded, score, validation_scores
from experiments.statistics import moments
from experiments.tasks.task import Task
from symerge_jax.adapt.merged import Classify, Encode
from symerge_jax.classifier import logits_of
from symerge_jax.errors import BadInput
from symerge_jax.leaf_facts import tower_leaves
from symerge_jax.merge import METHODS, stored_bytes
from symerge_jax.models.heads import Head, stack_heads
from symerge_jax.notation import Array, Params
from symerge_jax.task_vectors import add
from symerge_jax.tune import grid_of, tune_scale

Tune = Literal["labels", "agreement", "none"]
moved = jax.jit(add)


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
    elif METHODS[method].kind == "shared":
        found, scale = shared_encoder(model, experts, tasks, method, tune)
        params, note = [found] * count, _note(method, scale, tune)
    else:
        entry, more = METHODS[method], needed(model, experts, tasks, method)
        merged = merge(experts, method, more)
        scale = chosen_scale(model, experts, merged, method, tasks, tune)
        note = _note(method, scale, tune)
        params = (
            moved(model.pretrained, task_vector_of(merged, k), scale=scale) for k in range(count)
        )
        stored = stored_bytes(entry, experts.task_vectors, **more)
        stored /= sum(leaf.nbytes for leaf in jax.tree.leaves(model.pretrained))
    scores = score(model, params, heads, classes, tasks)
    return Outcome(method, seed.number, False, scores, note=note, stored=stored)


def shared_encoder(
    model: Model, experts: Experts, tasks: Sequence[Task], method: str, tune: Tune
) -> tuple[Params, float]:
    """Returns the one encoder that a training-free method makes, and its scale."""
    merged = merge(experts, method, needed(model, experts, tasks, method))
    scale = chosen_scale(model, experts, merged, method, tasks, tune)
    return moved(model.pretrained, merged, scale=scale), scale


def chosen_scale(
    model: Model, experts: Experts, merged: Any, method: str, tasks: Sequence[Task], tune: Tune
) -> float:
    """Returns the method's own scale, or the best on validation images."""
    entry = METHODS[method]
    if not entry.tunes_scale or tune == "none":
        return entry.scale
    return tuned(model, experts, merged, grid_of(method), tasks, tune)


def _note(method: str, scale: float, tune: Tune) -> str | None:
    if not METHODS[method].tunes_scale or tune == "none":
        return None
    return f"{method}: scale {scale:g} chosen on validation images ({tune})"


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
    """Returns the scale that is best on validation inputs; the whole grid is one program.

    By their labels, relative to the expert; or, without any label, by how often the merged model
    says what the expert says.
    """
    heads, classes = experts.stacked, experts.classes
    if any(task.metric != "accuracy" for task in tasks):
        assert tune == "labels", "agreement is counted for classes only"
        return tuned_by_metrics(model, experts, merged, scales, tasks)
    own = [padded(heads, classes, k) for k in range(len(tasks))]
    inputs = [task.validation.inputs for task in tasks]
    if tune == "agreement":
        truths, reference = (
            [
                logits_on(model, experts.params[k], *own[k], inputs[k]).argmax(axis=1)
                for k in range(len(tasks))
            ],
            None,
        )
    else:
        truths = [task.validation.labels for task in tasks]
        reference = validation_scores(model, experts.params, heads, classes, tasks)
    return tune_scale(
        with_head(model.encode, model.classify), model.pretrained, merged, scales, own, inputs,
        truths,
        reference=reference,
    ).scale  # fmt: skip


def tuned_by_metrics(
    model: Model, experts: Experts, merged: Params, scales: Sequence[float], tasks: Sequence[Task]
) -> float:
    """Returns the scale with the best mean of each task's metric.

    As it is and not relative to the expert's: a correlation may be 0 or below. Metrics of maps are
    errors and shares in units of their own, and are taken relative to the expert's.
    """
    heads, classes, count = experts.stacked, experts.classes, len(tasks)
    means = []
    own = None
    if model.dense is not None:
        own = validation_scores(model, experts.params, heads, classes, tasks)
    for scale in sorted(scales):
        params = [moved(model.pretrained, merged, scale=scale)] * count
        found = validation_scores(model, params, heads, classes, tasks)
        means.append((found if own is None else relative(found, own, tasks)).mean())
    if not np.isfinite(means).any():
        raise BadInput(
            "no scale has a score on the validation inputs: some task has no truth among them; add "
            "training inputs, of which a tenth is for validation"
        )
    known = np.nan_to_num(np.round(means, 9), nan=-np.inf)
    return sorted(scales)[int(np.argmax(known))]  # of equal ones the smallest


def relative(values: np.ndarray, experts: np.ndarray, tasks: Sequence[Task]) -> np.ndarray:
    """Returns values divided by the experts', or the inverse where less is better, [task]."""
    less = np.array([lower_is_better(task.metric) for task in tasks])
    return np.where(less, experts / values, values / experts)


@memoise
def with_head(encode: Encode, classify: Classify) -> Callable[[Any, Array], Array]:
    """Returns ((θ, (head, classes)), images) → logits, as `tune_scale` asks."""
    logits = logits_of(encode, classify)

    def apply(model: tuple[Params, tuple[Head, Array]], images: Array) -> Array:
        params, (head, classes) = model
        return logits((params, head, classes), images)

    return apply
