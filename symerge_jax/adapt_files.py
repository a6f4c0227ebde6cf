"""Adapts a merge of a person's experts to their unlabelled inputs: files in, a folder out.

The counterpart of `merge_files` for methods that learn: `symerge adapt` and its library form, for
image towers, encoders of texts and trunks of dense prediction (`networks`). Labels, where the
inputs have any, are read for the report alone: `Inputs`, which is what adapts, has none.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from symerge_jax import __version__, trees
from symerge_jax.adapt.adamerging import adamerging
from symerge_jax.adapt.coefficients import as_matrix
from symerge_jax.adapt.distances import ExpertOutputs
from symerge_jax.adapt.experts import labels_of
from symerge_jax.adapt.fit import Keep
from symerge_jax.adapt.symerge import Adapted, symerge
from symerge_jax.adapt_settings import JOINT, TUNED, Settings, batch_size_of, draws, is_entropy
from symerge_jax.adapt_tasks import Task, read_task_heads, read_tasks, settings_for
from symerge_jax.cache import digest
from symerge_jax.checkpoints import export
from symerge_jax.checkpoints.hashes import hashing, start_hashing
from symerge_jax.checkpoints.resnet_export import write_trunk_config
from symerge_jax.checkpoints.source import Checkpoint
from symerge_jax.data.roberta_tokenizer import RobertaTokenizer
from symerge_jax.data.tasks_file import TasksFile
from symerge_jax.dense_adapt_files import DenseScore, adapt_maps, maps_on, score_maps
from symerge_jax.errors import BadInput
from symerge_jax.files import write_atomically
from symerge_jax.merge_plan import Plan, plan
from symerge_jax.networks import (
    IMAGES,
    SCENES,
    TEXTS,
    AnyHead,
    Network,
    load_network,
    outputs_of,
    tensor_rules,
)
from symerge_jax.notation import Array, Params
from symerge_jax.parallel import Device
from symerge_jax.score import agreement, computable, logits_on, text_scores
from symerge_jax.stored_decoders import StoredDecoder
from symerge_jax.text_inputs import write_vocabulary
from symerge_jax.tune import Tuned
from symerge_jax.verify import write_reference


class Prepared(NamedTuple):
    """All that adaptation needs.

    Attributes:
        plan: of the merge.
        network: the pre-trained model.
        tower: its image tower, encoder or trunk in the precision of the computation.
        task_vectors: τ, of the leaves that some expert changed; of a trunk of all.
        tasks: in the order of the file.
        experts: what each expert says of its own inputs, logits [n, outputs]; of scenes what
            `dense_adapt_files.maps_on` gives.
        named: (tensor, path in the tower) of each trained leaf.
        tokenizer: of texts, None for images.
    """

    plan: Plan
    network: Network
    tower: Params
    task_vectors: Params
    tasks: list[Task]
    experts: list[np.ndarray]
    named: list[tuple[str, str]]
    tokenizer: RobertaTokenizer | None = None


def prepare(
    file: TasksFile, *, limit: int | None = None, report: Callable[[str], object] = print
) -> Prepared:
    """Reads models, heads and inputs, and works out what each expert says about its own.

    Args:
        file: what to read.
        limit: take only the first inputs of each task.
        report: receives a line per step.

    Raises:
        BadInput: anything missing, unreadable, or that does not belong together.
    """
    names = [task.name for task in file.tasks]
    found = plan(file.pretrained, [task.expert for task in file.tasks], names)
    need_text = any(task.classes is not None for task in file.tasks)
    network = load_network(found.pretrained, text=need_text, stated_by=found.experts)
    settings = settings_for(file, network)
    for note in network.loaded.notes:
        report(f"{file.pretrained}: {note}")
    tower = computable(network.params)
    heads = read_task_heads(file, network, found.experts, settings.method)
    tokenizer, tasks = read_tasks(file, network, heads, found, settings, limit=limit)
    words = network.family.inputs
    for task in tasks:
        report(f"{task.name}: {len(task.inputs.rows)} {words}, {_size(task.head)}")
    tau = jax.tree.map(lambda x: np.zeros((len(tasks), *x.shape), x.dtype), tower)
    experts = []
    for k, (checkpoint, task) in enumerate(zip(found.experts, tasks, strict=True)):
        # What an expert does not carry is the pre-trained model's.
        theta = {**tower, **computable(load_network(checkpoint).params)}
        said = _said(network, theta, task.head.head, task)
        if not np.isfinite(said).all():
            raise BadInput(
                f"{checkpoint.path}: gives logits that are not finite on {task.name}'s {words}"
                f"{_culprit(checkpoint)}"
            )
        experts.append(said)
        jax.tree.map(lambda out, a, b, k=k: np.subtract(a, b, out=out[k]), tau, theta, tower)
        report(f"{task.name}: expert read, its predictions made")
    named, changed = _trained(found, tau, network)
    if network.family is not SCENES:  # statistics that nobody changed still take part in the run
        tau = changed
    return Prepared(found, network, tower, tau, tasks, experts, named, tokenizer)


def _said(network: Network, params: Params, head: Any, task: Task) -> np.ndarray:
    if network.family is SCENES:
        return maps_on(network, params, head, task)
    return logits_on(network, params, head, task.inputs.rows)


def _size(head: AnyHead) -> str:
    outputs = outputs_of(head.head)
    if isinstance(head, StoredDecoder):
        return f"{outputs} maps" if outputs > 1 else "one map"
    return f"{outputs} classes" if outputs > 1 else "a regression"


def _culprit(checkpoint: Checkpoint) -> str:
    """Names the first tensor that is not finite, if there is one."""
    for name in checkpoint.where:
        value = checkpoint.read(name)
        if value.dtype.kind in "fV" and not np.isfinite(value.astype(np.float32)).all():
            return f"; tensor {name} holds NaN or infinity"
    return ""


def _trained(found: Plan, tau: Params, network: Network) -> tuple[list[tuple[str, str]], Params]:
    """Returns the leaves that some expert changed, in the source's order, and τ of those alone.

    Raises:
        BadInput: NaN or infinity, or an expert that changed nothing.
    """
    moved = np.zeros(len(found.experts), bool)
    flat = dict(zip(trees.paths(tau), jax.tree.leaves(tau), strict=True))
    named = []
    for rule in tensor_rules(network, exported=True):
        rows = flat[rule.path].reshape(len(found.experts), -1)
        for k, row in enumerate(rows):
            if not np.isfinite(row).all():
                raise BadInput(
                    f"{found.experts[k].path}: tensor {rule.source} holds NaN or infinity"
                )
        changed = rows.any(axis=1)
        moved |= changed
        if changed.any():
            named.append((rule.source, rule.path))
    if not moved.all():
        raise BadInput(
            f"{found.experts[int(np.argmin(moved))].path}: its {network.family.part} equals the "
            "pre-trained one in every tensor; expected a fine-tuned expert"
        )
    paths = {path for _, path in named}
    return named, trees.split(tau, lambda path, _: path in paths)[0]


def identity_of(prepared: Prepared, settings: Settings) -> dict[str, Any]:
    """Returns all that a run depends on: whose state an interrupted one is.

    What experts say of their inputs stands for the experts.
    """
    return {
        "version": __version__,
        "settings": settings._asdict(),
        "pretrained model": digest(jax.tree.map(np.asarray, prepared.tower)),
        "inputs": digest(*(jax.tree.map(np.asarray, task.inputs.rows) for task in prepared.tasks)),
        "experts": digest(*(jax.tree.map(np.asarray, said) for said in prepared.experts)),
    }


def check_shareable(prepared: Prepared, settings: Settings) -> None:
    """Raises `BadInput` where several devices cannot share a run."""
    if prepared.network.family is SCENES:
        raise BadInput(
            "--devices: batch statistics of scenes are those of the whole mini-batch, which "
            "devices do not share; leave the option out"
        )
    if settings.method in TUNED:
        raise BadInput(
            f"--devices: {settings.method} trains nothing that devices could share; leave it out"
        )


def run(
    prepared: Prepared,
    settings: Settings,
    *,
    on_chunk: Callable[[Any, np.ndarray], None] | None = None,
    keep: Keep | None = None,
    devices: Sequence[Device] | None = None,
    split_task_vectors: bool = False,
) -> Adapted:
    """Adapts; no label takes part.

    Args:
        prepared: what to adapt.
        settings: how.
        on_chunk: see `adapt.fit.fit`, like `keep`.
        keep: where the state is kept.
        devices: that share every mini-batch; scenes take one.
        split_task_vectors: whether each device keeps its share of the models.
    """
    network = prepared.network
    if network.family is SCENES:
        return adapt_maps(
            network, prepared.tower, prepared.task_vectors, prepared.tasks, prepared.experts,
            settings, on_chunk=on_chunk, keep=keep,
        )  # fmt: skip
    heads, classes = network.family.stack([task.head.head for task in prepared.tasks])
    inputs = [task.inputs.rows for task in prepared.tasks]
    start = (
        network.encode, network.classify, prepared.tower, prepared.task_vectors, heads, inputs,
    )  # fmt: skip
    shared: dict[str, Any] = {
        "classes": classes,
        "iterations": settings.iterations,
        "initial_coefficient": settings.initial_coefficient,
        "seed": settings.seed,
        "on_chunk": on_chunk,
        "keep": keep,
        "devices": devices,
        "split_task_vectors": split_task_vectors,
    }
    rate = settings.learning_rate
    assert rate is not None, "settings_of fills it in"
    if is_entropy(settings.method):
        return adamerging(
            *start,
            granularity="task" if settings.method == "adamerging_taskwise" else "leaf",
            update="joint" if settings.method in JOINT else "sequential",
            batch_size=batch_size_of(settings),
            learning_rate=rate,
            **shared,
        )
    objective, targets = _targets(prepared, classes)
    return symerge(
        *start,
        targets,
        objective=objective,
        batch_size=batch_size_of(settings),
        coefficient_rate=0.0 if settings.method == "symerge_head" else rate,
        head_rate=0.0 if settings.method == "symerge_coefficients" else rate,
        **shared,
    )


def _targets(prepared: Prepared, classes: Array) -> tuple[str | list[str], list[Any]]:
    """Returns the objective and what the experts say, as it takes that.

    Of images self-labels, filtered; of texts no filter (section 5 of the paper): cross-entropy to
    the expert's class, and the absolute difference from its value where there is but one output.
    """
    if prepared.network.family is not TEXTS:
        return "self_label", [labels_of(logits) for logits in prepared.experts]
    most = classes.shape[1]
    targets = [
        ExpertOutputs(
            np.pad(logits, ((0, 0), (0, most - logits.shape[1]))),
            np.zeros((len(logits), 1), logits.dtype),  # neither of the two reads features
        )
        for logits in prepared.experts
    ]
    return ["l1" if x.shape[1] == 1 else "hard_ce" for x in prepared.experts], targets


class Score(NamedTuple):
    """One task in percent: agreement with the expert; accuracies where there are labels."""

    agreement: float
    accuracy: float | None
    expert_accuracy: float | None


class TextScore(NamedTuple):
    """One task of texts in percent: agreement with the expert; by `metric` if there are labels."""

    metric: str
    agreement: float
    score: float | None
    expert_score: float | None


AnyScore = Score | TextScore | DenseScore


def score(prepared: Prepared, adapted: Adapted) -> Mapping[str, AnyScore]:
    """Compares the model, as it will be stored, with the experts and with labels if any."""
    params = computable(_as_stored(prepared, adapted))
    network, found = prepared.network, {}
    heads = _heads(prepared, adapted)
    if network.family is SCENES:
        return score_maps(network, params, heads, prepared.tasks, prepared.experts)
    for task, head, expert in zip(prepared.tasks, heads, prepared.experts, strict=True):
        logits = logits_on(network, params, head, task.inputs.rows)
        if network.family is TEXTS:
            own, best = (_by_metric(task, outputs) for outputs in (logits, expert))
            found[task.name] = TextScore(task.metric, agreement(logits, expert), own, best)
        else:
            own, best = (_accuracy(task, outputs) for outputs in (logits, expert))
            found[task.name] = Score(agreement(logits, expert), own, best)
    return found


def _accuracy(task: Task, logits: np.ndarray) -> float | None:
    return (
        None if task.labels is None else 100 * float((logits.argmax(axis=1) == task.labels).mean())
    )


def _by_metric(task: Task, logits: np.ndarray) -> float | None:
    if task.labels is None:
        return None
    return text_scores(logits, task.labels, task.metric)[task.metric]


def _heads(prepared: Prepared, adapted: Adapted) -> list[Any]:
    """Returns the adapted heads, one per task and without padding; of decoders the variables."""
    stack, unstack = prepared.network.family.stack, prepared.network.family.unstack
    return unstack(adapted.heads, stack([task.head.head for task in prepared.tasks])[1])


def _as_stored(prepared: Prepared, adapted: Adapted) -> Params:
    """Returns the adapted tower on the host, each leaf rounded to the dtype of its file."""
    return jax.tree.map(
        lambda new, old: np.asarray(new).astype(old.dtype, copy=False),
        adapted.params,
        prepared.network.params,
    )


def write(
    prepared: Prepared,
    settings: Settings,
    adapted: Adapted,
    scores: Mapping[str, AnyScore],
    output: str | Path,
    *,
    tuned: Tuned | None = None,
    overwrite: bool = False,
) -> Path:
    """Writes the adapted model, its heads and coefficients, in the pre-trained model's layout.

    The card of a training-free method holds the scale and what the others gave.
    """
    tasks, family = prepared.tasks, prepared.network.family
    heads = [
        task.head.decoder._replace(variables=jax.tree.map(np.asarray, head))
        if isinstance(task.head, StoredDecoder) else head
        for task, head in zip(tasks, _heads(prepared, adapted), strict=True)
    ]  # fmt: skip
    everyone = (prepared.plan.pretrained, *prepared.plan.experts)
    with hashing() as pool:
        hashes = {path: future.result() for path, future in start_hashing(everyone, pool).items()}
    for one in everyone:
        one.check_unchanged()
    card = {
        "method": settings.method,
        "kind": "shared",
        "settings": {k: v for k, v in settings._asdict().items() if v is not None},
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
        if prepared.tokenizer is not None:
            write_vocabulary(prepared.tokenizer, folder)
        if family is SCENES:  # the output stride that an expert states
            write_trunk_config(everyone[0], folder, everyone[1:])
        if tuned is None:
            write_atomically(folder / "coefficients.npz", _coefficients(prepared, adapted))
        write_reference(folder)

    params = _as_stored(prepared, adapted)
    return export.write_model(
        output,
        {"vision": params} if family is IMAGES else params,
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
    # Running statistics have coefficients only where they are merged by them.
    own = set(trees.paths(lam)) if isinstance(lam, dict) else None
    named = [one for one in prepared.named if own is None or one[1] in own]
    names, paths = zip(*named, strict=True)
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
