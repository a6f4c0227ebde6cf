"""`symerge evaluate MODEL --task DIR`: how good a merged model is on labelled images or texts."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import tyro

from symerge_jax.cli.errors import nearest
from symerge_jax.errors import BadInput

if TYPE_CHECKING:
    from symerge_jax.networks import AnyHead, Network


@dataclasses.dataclass(frozen=True)
class Settings:
    """Scores a model on the test images of tasks, or on their dev texts, each with its head.

    Texts are scored as in GLUE where the task has a name of GLUE's: Matthews correlation for CoLA,
    the mean of Pearson's and Spearman's for STS-B and other regressions, else accuracy.
    """

    model: tyro.conf.Positional[Path]
    """Folder of a merged model, or of a per-task merge."""
    task: tuple[Path, ...]
    """Folders of tasks: test.npz, or test/ with a folder per class; dev.tsv, .jsonl, .csv or
    .parquet of texts, or such a file itself."""
    head: str | None = None
    """Name of the head, or a head's file; the name of the task's folder otherwise."""
    limit: int | None = None
    """Score only the first inputs of each task."""
    batch_size: int = 250
    """Inputs at a time."""
    vocabulary: Path | None = None
    """Folder with RoBERTa's vocabulary; the model's own otherwise."""


class Scored(NamedTuple):
    """One task: metric → percent, the main one first, and how many inputs were scored."""

    metrics: dict[str, float]
    count: int
    inputs: str


def main(settings: Settings) -> None:
    """Prints a row per task: its metrics in percent, and the number of inputs."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from symerge_jax.cli.programs import keep_own_programs

    keep_own_programs()
    for name, least in (("limit", settings.limit), ("batch-size", settings.batch_size)):
        if least is not None and least < 1:
            raise BadInput(f"--{name} must be at least 1, got {least}")
    table = Table(box=None, header_style="bold", pad_edge=False)
    for task in settings.task:
        place = Path(os.path.abspath(task))  # "." has a name, too
        scored = score_task(settings, place)
        headings, cells = _row(scored)
        if not table.columns:
            table.add_column("task")
            for name in headings:
                table.add_column(name, justify="right")
        table.add_row(Text(_name(place)), *cells)
    Console().print(table)


def _row(scored: Scored) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns the headings and cells of one task."""
    found, count = scored.metrics, str(scored.count)
    if scored.inputs == "images":
        headings = ("accuracy %", "calibration error %", "images")
        return headings, (*(f"{value:.2f}" for value in found.values()), count)
    main = next(iter(found))
    beside = (f"{found[name]:.2f}" if name in found else "–" for name in ("accuracy", "f1"))
    headings = ("metric", "score %", "accuracy %", "F1 %", "texts")
    return headings, (main, f"{found[main]:.2f}", *beside, count)


def _name(task: Path) -> str:
    """Returns the name of a task: of its folder, also where a file in it is given."""
    return task.parent.name if task.is_file() else task.name


def score_task(settings: Settings, folder: Path) -> Scored:
    """Scores one task.

    Args:
        settings: the options.
        folder: absolute, of a task.

    Raises:
        BadInput: no such head, no labels, or classes that do not fit the head.
    """
    from symerge_jax.networks import TEXTS, check_width, load_network
    from symerge_jax.score import accuracy_and_ece, computable, logits_on, text_scores

    place = model_folder(settings.model, _name(folder))
    network = load_network(place)
    head = choose_head(network, place, settings.head, _name(folder))
    check_width(head, network, more=" (or the model lacks its projection)")
    inputs, labels, metric = _read(settings, network, head, folder)
    if labels is None:
        raise BadInput(
            f"{folder}: the {network.family.inputs} have no labels, so there is nothing to score"
        )
    params = computable(network.params)
    logits = logits_on(network, params, head.head, inputs, batch_size=settings.batch_size)
    if network.family is TEXTS:
        found = text_scores(logits, labels, metric)
    else:
        accuracy, ece = accuracy_and_ece(logits, labels)
        found = {"accuracy": accuracy, "calibration error": ece}
    return Scored(found, len(labels), network.family.inputs)


def _read(settings: Settings, network: Network, head: AnyHead, folder: Path) -> tuple:
    """Returns the inputs of a task, its labels or None, and the metric it is scored by."""
    from symerge_jax.checkpoints.open import Loaded
    from symerge_jax.checkpoints.roberta_heads import StoredTextHead
    from symerge_jax.inputs import read_inputs
    from symerge_jax.text_inputs import find_vocabulary, read_text_inputs

    if isinstance(network.loaded, Loaded):
        if settings.vocabulary is not None:
            raise BadInput(
                f"--vocabulary has no part in {settings.model}, which takes images; leave it out"
            )
        size = network.loaded.vision.image_size
        return *read_inputs(folder, head, size=size, limit=settings.limit), "accuracy"
    loaded = network.loaded
    assert isinstance(head, StoredTextHead)
    tokenizer = find_vocabulary(settings.vocabulary, [loaded.source], loaded.config)
    name = _name(folder) if settings.head is None else Path(settings.head).stem
    return read_text_inputs(folder, head, tokenizer, loaded.config, name=name, limit=settings.limit)


def model_folder(model: Path, task: str) -> Path:
    """Returns the folder of the model that serves a task: one of a per-task merge, or `model`."""
    if not model.exists():
        raise BadInput(f"{model}: there is no such folder; expected that of a merged model")
    folders = sorted(model.glob("[0-9][0-9]_*"))
    if not folders:
        return model
    own = [folder for folder in folders if folder.name.partition("_")[2] == task]
    if not own:
        names = ", ".join(folder.name for folder in folders)
        raise BadInput(f"{model}: holds one model per task, but none of {task!r}: {names}")
    return own[0]


def choose_head(network: Network, model: Path, given: str | None, task: str) -> AnyHead:
    """Returns the head that is meant.

    Args:
        network: the model.
        model: its folder.
        given: name of one of its heads, or a file; None takes that of the task's name, or else
            the classifier in the weights of a RoBERTa.
        task: name of the task.

    Raises:
        BadInput: there is none.
    """
    if given is not None and Path(given).is_file():
        return network.family.read_head(given)
    heads = network.family.read_heads(model)
    name = given or task
    if name in heads:
        return heads[name]
    if given is None and getattr(network.loaded, "head", None) is not None:
        from symerge_jax.networks import own_text_head

        return own_text_head(network.loaded.source, name)
    known = f"{nearest(name, heads)}; it has {', '.join(heads)}" if heads else ", nor any other"
    raise BadInput(
        f"{model}: has no head {name!r}{known}; name one with --head, or give a head's file"
    )
