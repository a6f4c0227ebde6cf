"""Adapts a merge of a person's experts to their unlabelled inputs: files in, a folder out.

The counterpart of `merge_files` for methods that learn: `symerge adapt` and its library form.
Labels, where the inputs have any, are read for the report alone: `Inputs`, which is what adapts,
has none.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from symerge_jax import trees
from symerge_jax.adapt.adamerging import adamerging
from symerge_jax.adapt.coefficients import as_matrix
from symerge_jax.adapt.experts import labels_of
from symerge_jax.adapt.objectives import ExpertLabels
from symerge_jax.adapt.symerge import Adapted, symerge
from symerge_jax.adapt_settings import JOINT, Settings, batch_size_of, draws
from symerge_jax.checkpoints import export
from symerge_jax.checkpoints.clip import source_names
from symerge_jax.checkpoints.hashes import hashing, start_hashing
from symerge_jax.checkpoints.heads import StoredHead, read_head
from symerge_jax.checkpoints.open import Loaded, load_clip
from symerge_jax.checkpoints.source import Checkpoint
from symerge_jax.classifier import encoder
from symerge_jax.data.tasks_file import TaskEntry, TasksFile
from symerge_jax.errors import BadInput
from symerge_jax.files import write_atomically
from symerge_jax.inputs import read_inputs
from symerge_jax.merge_plan import Plan, plan
from symerge_jax.models.heads import normalised_head, stack_heads, unstack_heads
from symerge_jax.notation import Params
from symerge_jax.score import computable, logits_on
from symerge_jax.text_heads import head_from_text
from symerge_jax.tune import Tuned
from symerge_jax.verify import write_reference


class Inputs(NamedTuple):
    """One task's unlabelled images, uint8 [n, height, width, 3]."""

    images: np.ndarray


class Task(NamedTuple):
    """One task; `labels` int [n] score the result and go nowhere else."""

    name: str
    inputs: Inputs
    head: StoredHead
    labels: np.ndarray | None


class Prepared(NamedTuple):
    """All that adaptation needs; `named` has (tensor, path in the tower) of each trained leaf."""

    plan: Plan
    pretrained: Loaded
    tower: Params
    task_vectors: Params
    tasks: list[Task]
    experts: list[ExpertLabels]
    named: list[tuple[str, str]]


def prepare(
    file: TasksFile, *, limit: int | None = None, report: Callable[[str], object] = print
) -> Prepared:
    """Reads models, heads and images, and works out what each expert says about its images.

    Args:
        file: what to read.
        limit: take only the first images of each task.
        report: receives a line per step.

    Raises:
        BadInput: anything missing, unreadable, or that does not belong together.
    """
    names = [task.name for task in file.tasks]
    found = plan(file.pretrained, [task.expert for task in file.tasks], names)
    need_text = any(task.classes is not None for task in file.tasks)
    pretrained = load_clip(found.pretrained, text=need_text)
    for note in pretrained.notes:
        report(f"{file.pretrained}: {note}")
    tower = computable(pretrained.params["vision"])
    heads = [_head(task, pretrained) for task in file.tasks]
    _check_widths(heads, pretrained, file)
    tasks = []
    for entry, head in zip(file.tasks, heads, strict=True):
        images, labels = read_inputs(
            entry.inputs, head, size=pretrained.vision.image_size, limit=limit
        )
        tasks.append(Task(entry.name, Inputs(images), head, labels))
    for task in tasks:
        report(f"{task.name}: {len(task.inputs.images)} images, "
               f"{len(task.head.head['weight'])} classes")  # fmt: skip
    tau = jax.tree.map(lambda x: np.zeros((len(tasks), *x.shape), x.dtype), tower)
    experts = []
    for k, (checkpoint, task) in enumerate(zip(found.experts, tasks, strict=True)):
        theta = _expert_tower(checkpoint, tower)
        logits = logits_on(pretrained.vision, theta, task.head.head, task.inputs.images)
        if not np.isfinite(logits).all():
            raise BadInput(
                f"{checkpoint.path}: gives logits that are not finite on {task.name}'s images"
                f"{_culprit(checkpoint)}"
            )
        experts.append(labels_of(logits))
        jax.tree.map(lambda out, a, b, k=k: np.subtract(a, b, out=out[k]), tau, theta, tower)
        report(f"{task.name}: expert read, its predictions made")
    named, tau = _trained(found, tau, pretrained)
    return Prepared(found, pretrained, tower, tau, tasks, experts, named)


def _head(task: TaskEntry, pretrained: Loaded) -> StoredHead:
    if task.head is not None:
        return read_head(task.head)
    assert task.classes is not None
    assert task.templates is not None
    try:
        head = head_from_text(pretrained, task.classes, task.templates)
    except BadInput as error:
        raise BadInput(f"task {task.name}: {error}") from None
    place = pretrained.source.parts[0].path.parent
    return StoredHead({k: np.asarray(v) for k, v in head.items()}, task.classes, place)


def _check_widths(heads: Sequence[StoredHead], pretrained: Loaded, file: TasksFile) -> None:
    width = pretrained.vision.projection or pretrained.vision.width
    for task, head in zip(file.tasks, heads, strict=True):
        if head.head["weight"].shape[1] != width:
            raise BadInput(
                f"{task.head or task.name}: the head takes features of width "
                f"{head.head['weight'].shape[1]}, but {pretrained.source.path} gives {width}; the "
                "head belongs to another model, or the pre-trained one lacks its projection"
            )


def _expert_tower(checkpoint: Checkpoint, tower: Params) -> Params:
    """Returns an expert's image tower; what it does not carry is the pre-trained model's."""
    own = computable(load_clip(checkpoint).params["vision"])
    return {**tower, **own}


def _culprit(checkpoint: Checkpoint) -> str:
    """Names the first tensor that is not finite, if there is one."""
    for name in checkpoint.where:
        value = checkpoint.read(name)
        if value.dtype.kind in "fV" and not np.isfinite(value.astype(np.float32)).all():
            return f"; tensor {name} holds NaN or infinity"
    return ""


def _trained(found: Plan, tau: Params, pretrained: Loaded) -> tuple[list[tuple[str, str]], Params]:
    """Returns the leaves that some expert changed, in the source's order, and τ of those alone.

    Raises:
        BadInput: NaN or infinity, or an expert that changed nothing.
    """
    moved = np.zeros(len(found.experts), bool)
    flat = dict(zip(trees.paths(tau), jax.tree.leaves(tau), strict=True))
    named = []
    names = pretrained.names
    layout = "hugging_face" if names.layout == "hugging_face" else "open_clip"
    prefix = names.prefix if layout == "hugging_face" else ""  # exports lose that of open_clip
    for source, path in source_names(pretrained.params["vision"], layout, prefix=prefix):
        rows = flat[path].reshape(len(found.experts), -1)
        for k, row in enumerate(rows):
            if not np.isfinite(row).all():
                raise BadInput(f"{found.experts[k].path}: tensor {source} holds NaN or infinity")
        changed = rows.any(axis=1)
        moved |= changed
        if changed.any():
            named.append((source, path))
    if not moved.all():
        raise BadInput(
            f"{found.experts[int(np.argmin(moved))].path}: its image tower equals the pre-trained "
            "one in every tensor; expected a fine-tuned expert"
        )
    paths = {path for _, path in named}
    return named, trees.split(tau, lambda path, _: path in paths)[0]


def run(
    prepared: Prepared,
    settings: Settings,
    *,
    on_chunk: Callable[[Any, np.ndarray], None] | None = None,
) -> Adapted:
    """Adapts; no label takes part."""
    heads, classes = stack_heads([task.head.head for task in prepared.tasks])
    encode = encoder(prepared.pretrained.vision)
    inputs = [task.inputs.images for task in prepared.tasks]
    start = (encode, normalised_head, prepared.tower, prepared.task_vectors, heads, inputs)
    shared: dict[str, Any] = {
        "classes": classes,
        "iterations": settings.iterations,
        "initial_coefficient": settings.initial_coefficient,
        "seed": settings.seed,
        "on_chunk": on_chunk,
    }
    rate = settings.learning_rate
    assert rate is not None, "settings_of fills it in"
    if settings.method.startswith("adamerging"):
        return adamerging(
            *start,
            granularity="task" if settings.method == "adamerging_taskwise" else "leaf",
            update="joint" if settings.method in JOINT else "sequential",
            batch_size=batch_size_of(settings),
            learning_rate=rate,
            **shared,
        )
    return symerge(
        *start,
        prepared.experts,
        batch_size=batch_size_of(settings),
        coefficient_rate=0.0 if settings.method == "symerge_head" else rate,
        head_rate=0.0 if settings.method == "symerge_coefficients" else rate,
        **shared,
    )


class Score(NamedTuple):
    """One task in percent: agreement with the expert; accuracies where there are labels."""

    agreement: float
    accuracy: float | None
    expert_accuracy: float | None


def score(prepared: Prepared, adapted: Adapted) -> dict[str, Score]:
    """Compares the model, as it will be stored, with the experts and with labels if any."""
    params = computable(_as_stored(prepared, adapted))
    _, classes = stack_heads([task.head.head for task in prepared.tasks])
    found = {}
    for task, head, expert in zip(
        prepared.tasks, unstack_heads(adapted.heads, classes), prepared.experts, strict=True
    ):
        logits = logits_on(prepared.pretrained.vision, params, head, task.inputs.images)
        predicted = logits.argmax(axis=1)
        right = None if task.labels is None else 100 * float((predicted == task.labels).mean())
        best = None if task.labels is None else 100 * float((expert[0] == task.labels).mean())
        found[task.name] = Score(100 * float((predicted == expert[0]).mean()), right, best)
    return found


def _as_stored(prepared: Prepared, adapted: Adapted) -> Params:
    """Returns the adapted tower on the host, each leaf rounded to the dtype of its file."""
    return jax.tree.map(
        lambda new, old: np.asarray(new).astype(old.dtype, copy=False),
        adapted.params,
        prepared.pretrained.params["vision"],
    )


def write(
    prepared: Prepared,
    settings: Settings,
    adapted: Adapted,
    scores: dict[str, Score],
    output: str | Path,
    *,
    tuned: Tuned | None = None,
    overwrite: bool = False,
) -> Path:
    """Writes the adapted model, its heads and coefficients, in the pre-trained model's layout.

    The card of a training-free method holds the scale and what the others gave.
    """
    tasks = prepared.tasks
    _, classes = stack_heads([task.head.head for task in tasks])
    heads = unstack_heads(adapted.heads, classes)
    everyone = (prepared.plan.pretrained, *prepared.plan.experts)
    with hashing() as pool:
        hashes = {path: future.result() for path, future in start_hashing(everyone, pool).items()}
    for one in everyone:
        one.check_unchanged()
    card = {
        "method": settings.method,
        "kind": "shared",
        "settings": settings._asdict(),
        "layout": prepared.plan.layout,
        "tasks": [task.name for task in tasks],
        "inputs": {
            "pretrained": export.origin(everyone[0], hashes),
            "experts": [export.origin(one, hashes) for one in everyone[1:]],
        },
        "scores": {name: one._asdict() for name, one in scores.items()},
    }
    if tuned is not None:
        agreement = tuned.accuracies.mean(axis=1)
        tried = {
            f"{scale:g}": round(mean, 4)
            for scale, mean in zip(tuned.scales.tolist(), agreement.tolist(), strict=True)
        }
        seed = {"seed": settings.seed} if draws(settings.method) else {}
        card["settings"] = {"method": settings.method, "scale": tuned.scale, **seed}
        card["settings"]["agreement"] = tried

    def finish(folder: Path) -> None:
        if tuned is None:
            write_atomically(folder / "coefficients.npz", _coefficients(prepared, adapted))
        write_reference(folder)

    return export.write_model(
        output,
        {"vision": _as_stored(prepared, adapted)},
        like=prepared.plan.pretrained,
        heads={task.name: head for task, head in zip(tasks, heads, strict=True)},
        classes={task.name: task.head.classes for task in tasks},
        card=card,
        overwrite=overwrite,
        finish=finish,
    )


def _coefficients(prepared: Prepared, adapted: Adapted) -> bytes:
    """λ [tensor, task] with both axes named, in the source's order, and the losses [step]."""
    lam: Any = adapted.coefficients
    names, paths = zip(*prepared.named, strict=True)
    rows = (
        as_matrix(lam, paths)
        if isinstance(lam, dict)
        else np.broadcast_to(np.asarray(lam), (len(names), len(prepared.tasks)))
    )
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        allow_pickle=False,
        coefficients=rows,
        tensors=np.array(names),
        tasks=np.array([task.name for task in prepared.tasks]),
        losses=adapted.losses,
    )
    return buffer.getvalue()
