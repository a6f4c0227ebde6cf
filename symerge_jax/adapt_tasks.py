"""The tasks of a tasks.toml: the heads they start with, and their unlabelled inputs.

A head comes from a file, from class names by CLIP's text tower, or is the classifier in the weights
of a RoBERTa's expert.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from symerge_jax.adapt_settings import is_entropy, settings_of
from symerge_jax.checkpoints.heads import StoredHead
from symerge_jax.checkpoints.open import Loaded
from symerge_jax.checkpoints.roberta_heads import StoredTextHead, read_text_head
from symerge_jax.checkpoints.source import Checkpoint
from symerge_jax.data.roberta_tokenizer import PAD_ID, RobertaTokenizer
from symerge_jax.data.tasks_file import TaskEntry, TasksFile, without_head
from symerge_jax.errors import BadInput
from symerge_jax.inputs import read_inputs
from symerge_jax.merge_plan import Plan
from symerge_jax.networks import TEXTS, AnyHead, Network, check_width, outputs_of, own_text_head
from symerge_jax.text_heads import head_from_text
from symerge_jax.text_inputs import find_vocabulary, read_text_inputs


class Inputs(NamedTuple):
    """One task's unlabelled inputs: images uint8 [n, height, width, 3], or tokens [n, length]."""

    rows: np.ndarray


class Task(NamedTuple):
    """One task; `labels` [n] score the result, by `metric`, and go nowhere else."""

    name: str
    inputs: Inputs
    head: AnyHead
    labels: np.ndarray | None
    metric: str


def read_task_heads(file: TasksFile, network: Network, experts: Sequence[Checkpoint]) -> list[Any]:
    """Reads or makes the head of each task.

    Args:
        file: that names them.
        network: the pre-trained model.
        experts: in the order of the tasks.

    Raises:
        BadInput: unreadable heads, none, for other features; or a regression where the method
            minimises entropy.
    """
    heads = [
        _own_text_head(file, entry, expert) if network.family is TEXTS
        else _image_head(file, entry, network)
        for entry, expert in zip(file.tasks, experts, strict=True)
    ]  # fmt: skip
    lacking = "" if network.family is TEXTS else ", or the pre-trained one lacks its projection"
    for head in heads:
        check_width(head, network, more=lacking)
    method = settings_of(file).method
    for entry, head in zip(file.tasks, heads, strict=True):
        if is_entropy(method) and outputs_of(head.head) < 2:
            raise BadInput(
                f"{file.path}: [[task]] {entry.name} has one output, as a regression has, and so "
                f"no entropy for {method} to minimise; leave the task out, or take symerge"
            )
    return heads


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


def _own_text_head(file: TasksFile, task: TaskEntry, expert: Checkpoint) -> StoredTextHead:
    if task.classes is not None:
        raise BadInput(
            f"{file.path}: [[task]] {task.name} has classes and templates, from which no head for "
            "texts can be made; give head, or leave all three out to take the expert's classifier"
        )
    if task.head is not None:
        return read_text_head(task.head)
    return own_text_head(expert, task.name)


def read_tasks(
    file: TasksFile,
    network: Network,
    heads: Sequence[Any],
    found: Plan,
    *,
    limit: int | None = None,
) -> tuple[RobertaTokenizer | None, list[Task]]:
    """Reads the inputs of all tasks, texts padded to one length so that one program serves all.

    Args:
        file: that names them.
        network: the pre-trained model.
        heads: of the tasks.
        found: the models, beside which a vocabulary may lie.
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
