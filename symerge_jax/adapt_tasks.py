"""The tasks of a tasks.toml: the heads they start with, and their unlabelled inputs.

A head comes from a file, from class names by CLIP's text tower, or is what the expert brings: the
classifier in the weights of a RoBERTa, the decoder of a ResNet.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from symerge_jax.adapt.dense import check_has_pixel_classes
from symerge_jax.adapt_settings import TUNED, Settings, is_entropy, settings_of
from symerge_jax.checkpoints.heads import StoredHead
from symerge_jax.checkpoints.open import Loaded
from symerge_jax.checkpoints.roberta import LoadedRoberta
from symerge_jax.checkpoints.roberta_heads import StoredTextHead, read_text_head
from symerge_jax.checkpoints.source import Checkpoint
from symerge_jax.data.roberta_tokenizer import PAD_ID, RobertaTokenizer
from symerge_jax.data.tasks_file import TaskEntry, TasksFile, without_head
from symerge_jax.dense_inputs import SceneReader, check_sizes
from symerge_jax.errors import BadInput
from symerge_jax.inputs import read_inputs
from symerge_jax.merge_plan import Plan
from symerge_jax.networks import (
    SCENES,
    TEXTS,
    AnyHead,
    Network,
    check_width,
    outputs_of,
    own_text_head,
)
from symerge_jax.stored_decoders import (
    StoredDecoder,
    check_alike,
    kind_of,
    own_decoder,
    read_stored_decoder,
)
from symerge_jax.text_heads import head_from_text
from symerge_jax.text_inputs import find_vocabulary, read_text_inputs


class Inputs(NamedTuple):
    """One task's unlabelled inputs: images uint8 [n, height, width, 3], or tokens [n, length]."""

    rows: np.ndarray


class Task(NamedTuple):
    """One task; `labels` [n, ...] score the result, by `metric`, and go nowhere else.

    Of scenes `metric` is the kind of maps, a key of `dense_metrics.DENSE_METRICS`.
    """

    name: str
    inputs: Inputs
    head: AnyHead
    labels: np.ndarray | None
    metric: str


def settings_for(file: TasksFile, network: Network) -> Settings:
    """Returns the settings of a tasks.toml over the defaults for a network of this family.

    Raises:
        BadInput: as `settings_of`; or batch_norm for a network that has none.
    """
    scenes = network.family is SCENES
    if "batch_norm" in file.adapt and not scenes:
        raise BadInput(
            f"{file.path}: batch_norm has no part in {network.loaded.source.path}, which has no "
            "batch normalisation; leave it out"
        )
    return settings_of(file, texts=network.family is TEXTS, scenes=scenes)


def read_task_heads(
    file: TasksFile, network: Network, experts: Sequence[Checkpoint], method: str
) -> list[Any]:
    """Reads or makes the head of each task.

    Args:
        file: that names them.
        network: the pre-trained model.
        experts: in the order of the tasks.
        method: that will adapt.

    Raises:
        BadInput: unreadable heads, none, for other features; or a regression where the method
            minimises entropy; a method that scenes do not have.
    """
    heads: list[Any] = [
        _own_head(file, entry, expert, network) if network.family in (TEXTS, SCENES)
        else _image_head(file, entry, network)
        for entry, expert in zip(file.tasks, experts, strict=True)
    ]  # fmt: skip
    own = network.family in (TEXTS, SCENES)
    for head in heads:
        check_width(head, network, more="" if own else _LACKING)
    if network.family is SCENES:
        check_alike(heads)
        _check_method(file, heads, method)
        return heads
    for entry, head in zip(file.tasks, heads, strict=True):
        if is_entropy(method) and outputs_of(head.head) < 2:
            raise BadInput(
                f"{file.path}: [[task]] {entry.name} has one output, as a regression has, and so "
                f"no entropy for {method} to minimise; leave the task out, or take symerge"
            )
    return heads


_LACKING = ", or the pre-trained one lacks its projection"


def _check_method(file: TasksFile, heads: Sequence[StoredDecoder], method: str) -> None:
    """Raises `BadInput` for a method that is not there for maps of pixels."""
    for entry, head in zip(file.tasks, heads, strict=True):
        kind = kind_of(entry.name, head)
        if is_entropy(method):
            try:
                check_has_pixel_classes([kind])
            except BadInput as error:
                raise BadInput(f"{file.path}: [[task]] {entry.name}: {error}") from None
    if is_entropy(method) or method in TUNED:
        more = f", or `symerge merge {method}` with a --scale" if method in TUNED else ""
        raise BadInput(
            f"{file.path}: {method} is not there for dense prediction; take symerge{more}"
        )


def _image_head(file: TasksFile, task: TaskEntry, network: Network) -> AnyHead:
    if task.head is not None:
        return network.family.read_head(task.head)
    if task.classes is None or task.templates is None:
        raise without_head(file.path, task.name)
    loaded = network.loaded
    assert isinstance(loaded, Loaded)
    try:
        head = head_from_text(loaded, task.classes, task.templates, vocabulary=file.vocabulary)
    except BadInput as error:
        raise BadInput(f"task {task.name}: {error}") from None
    place = loaded.source.parts[0].path.parent
    return StoredHead({k: np.asarray(v) for k, v in head.items()}, task.classes, place)


def _own_head(
    file: TasksFile, task: TaskEntry, expert: Checkpoint, network: Network
) -> StoredTextHead | StoredDecoder:
    scenes = network.family is SCENES
    if task.classes is not None:
        what, own = ("scenes", "decoder") if scenes else ("texts", "classifier")
        raise BadInput(
            f"{file.path}: [[task]] {task.name} has classes and templates, from which no head for "
            f"{what} can be made; give head, or leave all three out to take the expert's {own}"
        )
    if scenes:
        given = task.head
        return own_decoder(expert, task.name) if given is None else read_stored_decoder(given)
    if task.head is not None:
        return read_text_head(task.head)
    return own_text_head(expert, task.name)


def read_tasks(
    file: TasksFile,
    network: Network,
    heads: Sequence[Any],
    found: Plan,
    settings: Settings,
    *,
    limit: int | None = None,
) -> tuple[RobertaTokenizer | None, list[Task]]:
    """Reads the inputs of all tasks, texts padded to one length so that one program serves all.

    Args:
        file: that names them.
        network: the pre-trained model.
        heads: of the tasks.
        found: the models, beside which a vocabulary may lie.
        settings: of the run.
        limit: take only the first inputs of each task.

    Returns:
        The vocabulary of texts, None for images; and the tasks.

    Raises:
        BadInput: unreadable inputs, labels that are not the head's, no vocabulary that fits.
    """
    both = list(zip(file.tasks, heads, strict=True))
    if isinstance(network.loaded, Loaded):
        size, tasks = network.loaded.vision.image_size, []
        for entry, head in both:
            images, labels = read_inputs(entry.inputs, head, size=size, limit=limit)
            tasks.append(Task(entry.name, Inputs(images), head, labels, "accuracy"))
        return None, tasks
    if not isinstance(network.loaded, LoadedRoberta):
        return None, _scene_tasks(both, settings, limit)
    config = network.loaded.config
    tokenizer = find_vocabulary(
        file.vocabulary, [found.pretrained, *found.experts], config,
        option="vocabulary in [model]",
    )  # fmt: skip
    read = [
        read_text_inputs(entry.inputs, head, tokenizer, config, name=entry.name, limit=limit)
        for entry, head in both
    ]
    longest = max(texts.tokens.shape[1] for texts in read)
    tasks = []
    for (entry, head), texts in zip(both, read, strict=True):
        missing = longest - texts.tokens.shape[1]
        tokens = np.pad(texts.tokens, ((0, 0), (0, missing)), constant_values=PAD_ID)
        tasks.append(Task(entry.name, Inputs(tokens), head, texts.labels, texts.metric))
    return tokenizer, tasks


def _scene_tasks(
    both: Sequence[tuple[TaskEntry, StoredDecoder]], settings: Settings, limit: int | None
) -> list[Task]:
    reader, tasks = SceneReader(limit=limit), []
    for entry, head in both:
        images, kind = reader.images(entry.inputs), kind_of(entry.name, head)
        if settings.batch_norm == "recalibrate" and len(images) < 2:
            raise BadInput(
                f"{entry.inputs}: task {entry.name} has one image, which has no variance to "
                "recalibrate batch normalisation with; add images, or set batch_norm = merge_stats"
            )
        labels = reader.truth(entry.inputs, head, kind)
        tasks.append(Task(entry.name, Inputs(images), head, labels, kind))
    check_sizes({task.name: task.inputs.rows for task in tasks})
    return tasks
