"""`symerge evaluate MODEL --task DIR`: how good a model is on labelled images, texts or scenes."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import tyro

from symerge_jax.cli.errors import nearest
from symerge_jax.errors import BadInput

if TYPE_CHECKING:
    from symerge_jax.checkpoints.source import Checkpoint
    from symerge_jax.networks import AnyHead, Network
    from symerge_jax.stored_decoders import StoredDecoder


@dataclasses.dataclass(frozen=True)
class Settings:
    """Scores a model on the test images of tasks, on their dev texts or scenes, with their heads.

    Texts are scored as in GLUE where the task has a name of GLUE's: Matthews correlation for CoLA,
    the mean of Pearson's and Spearman's for STS-B and other regressions, else accuracy. Scenes of a
    folder that no decoder is called like are scored with every decoder whose maps they have.
    """

    model: tyro.conf.Positional[Path]
    """Folder of a merged model, or of a per-task merge."""
    task: tuple[Path, ...]
    """Folders of tasks: test.npz, or test/ with a folder per class; dev.tsv, .jsonl, .csv or
    .parquet of texts, or such a file itself; of scenes, or with test/ or val/ of them."""
    head: str | None = None
    """Name of the head, or a head's file; the name of the task's folder otherwise."""
    limit: int | None = None
    """Score only the first inputs of each task."""
    batch_size: int | None = None
    """Inputs at a time; 250 otherwise. Scenes go through by 16."""
    vocabulary: Path | None = None
    """Folder with RoBERTa's vocabulary; the model's own otherwise."""


BATCH = 250  # images or texts at a time


class Scored(NamedTuple):
    """One task: metric → percent, the main one first, and how many inputs were scored.

    Of scenes `inputs` is "scenes", and each metric has its own unit.
    """

    metrics: dict[str, float]
    count: int
    inputs: str


def main(settings: Settings) -> None:
    """Prints a row per task: its metrics in percent, and the number of inputs.

    Of scenes there is a row per metric.
    """
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
        for name, scored in _scored(settings, place).items():
            headings, *rows = _rows(scored)
            if not table.columns:
                table.add_column("task")
                for heading in headings:
                    table.add_column(heading, justify="right")
            for cells in rows:
                table.add_row(Text(name), *cells)
    Console().print(table)


def _rows(scored: Scored) -> list[tuple[str, ...]]:
    """Returns the headings of a task's table, and its rows of cells."""
    if scored.inputs != "scenes":
        return list(_row(scored))
    from symerge_jax.cli.metrics import UNITS, number

    count = str(scored.count)
    cells = [(name, number(name, x), UNITS[name], count) for name, x in scored.metrics.items()]
    return [("metric", "score", "unit", "scenes"), *cells]


def _row(scored: Scored) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns the headings and cells of one task of images or texts."""
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


def _scored(settings: Settings, folder: Path) -> dict[str, Scored]:
    """Returns name → scores of what a folder is scored with: its task, or several of scenes."""
    from symerge_jax.checkpoints.layout import names_of
    from symerge_jax.checkpoints.open import open_checkpoint

    model = model_folder(settings.model, _name(folder), settings.head)
    source = open_checkpoint(model)
    if names_of(source).layout == "resnet":
        return score_scenes(settings, source, folder)
    return {_name(folder): score_task(settings, folder)}


def score_scenes(settings: Settings, source: Checkpoint, folder: Path) -> dict[str, Scored]:
    """Scores the decoder that is meant, or every one that the scenes have maps for.

    Args:
        settings: the options.
        source: weights of a ResNet.
        folder: absolute, of scenes.

    Returns:
        Name of the folder, or of each decoder → its scores.

    Raises:
        BadInput: no such decoder, unreadable scenes, or none with the maps.
    """
    from symerge_jax.dense import dense_scores
    from symerge_jax.dense_adapt_files import functions_of
    from symerge_jax.dense_inputs import known, read_labelled
    from symerge_jax.networks import check_width, load_network
    from symerge_jax.score import computable
    from symerge_jax.stored_decoders import kind_of

    for option in ("batch_size", "vocabulary"):
        if getattr(settings, option) is not None:
            raise BadInput(
                f"--{option.replace('_', '-')} has no part in {settings.model}, which takes "
                "scenes; leave it out"
            )
    heads, meant = choose_decoders(source, settings.head, _name(folder))
    network = load_network(source)
    for head in heads.values():
        check_width(head, network)
    kinds = {name: kind_of(name, head) for name, head in heads.items()}
    both = {name: (heads[name], kinds[name]) for name in heads}
    images, truth = read_labelled(folder, both, whole=meant, limit=settings.limit)
    params, found = computable(network.params), {}
    for name, maps in truth.items():
        head, kind = heads[name], kinds[name]
        counts = known(maps, kind)
        scores = dense_scores(
            functions_of(network, head, images), params, head.head, images[counts], maps[counts],
            head.decoder.outputs, kind,
        )  # fmt: skip
        label = _name(folder) if meant else name
        found[label] = Scored(scores, int(counts.sum()), "scenes")
    return found


def choose_decoders(
    source: Checkpoint, given: str | None, task: str
) -> tuple[dict[str, StoredDecoder], bool]:
    """Returns name → decoder, and whether it is one that is meant.

    Args:
        source: weights of a ResNet.
        given: name of a decoder, or a file; None takes that of the task's name, or else all.
        task: name of the task.

    Raises:
        BadInput: there is none.
    """
    from symerge_jax.stored_decoders import decoders_of, read_stored_decoder

    if given is not None and Path(given).is_file():
        return {Path(given).stem: read_stored_decoder(given)}, True
    found = decoders_of(source)
    name = given or task
    if name in found:
        return {name: found[name]}, True
    if given is None and found:
        return found, False
    raise _no_head(source.path, name, found)


def score_task(settings: Settings, folder: Path) -> Scored:
    """Scores one task of images or texts.

    Args:
        settings: the options.
        folder: absolute, of a task.

    Raises:
        BadInput: no such head, no labels, or classes that do not fit the head.
    """
    from symerge_jax.networks import TEXTS, check_width, load_network
    from symerge_jax.score import accuracy_and_ece, computable, logits_on, text_scores

    place = model_folder(settings.model, _name(folder), settings.head)
    network = load_network(place)
    head = choose_head(network, place, settings.head, _name(folder))
    check_width(head, network, more=" (or the model lacks its projection)")
    inputs, labels, metric = _read(settings, network, head, folder)
    if labels is None:
        raise BadInput(
            f"{folder}: the {network.family.inputs} have no labels, so there is nothing to score"
        )
    params = computable(network.params)
    size = settings.batch_size or BATCH
    logits = logits_on(network, params, head.head, inputs, batch_size=size)
    if network.family is TEXTS:
        found = text_scores(logits, labels, metric)
    else:
        accuracy, ece = accuracy_and_ece(logits, labels)
        found = {"accuracy": accuracy, "calibration error": ece}
    return Scored(found, len(labels), network.family.inputs)


def _read(settings: Settings, network: Network, head: AnyHead, folder: Path) -> tuple:
    """Returns the inputs of a task, its labels or None, and the metric it is scored by."""
    from symerge_jax.checkpoints.open import Loaded
    from symerge_jax.checkpoints.roberta import LoadedRoberta
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
    assert isinstance(loaded, LoadedRoberta)
    tokenizer = find_vocabulary(settings.vocabulary, [loaded.source], loaded.config)
    name = _name(folder) if settings.head is None else Path(settings.head).stem
    return read_text_inputs(folder, head, tokenizer, loaded.config, name=name, limit=settings.limit)


def model_folder(model: Path, task: str, head: str | None = None) -> Path:
    """Returns the folder of the model that serves a task: one of a per-task merge, or `model`.

    Of a per-task merge it is that of the task's name, or else that of the head's.
    """
    if not model.exists():
        raise BadInput(f"{model}: there is no such folder; expected that of a merged model")
    folders = sorted(model.glob("[0-9][0-9]_*"))
    if not folders:
        return model
    own = {folder.name.partition("_")[2]: folder for folder in folders}
    if task not in own and head not in own:
        names = ", ".join(folder.name for folder in folders)
        raise BadInput(f"{model}: holds one model per task, but none of {task!r}: {names}")
    return own[task] if task in own else own[str(head)]


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
    raise _no_head(model, name, heads)


def _no_head(model: Path, name: str, heads: Collection[str]) -> BadInput:
    known = f"{nearest(name, heads)}; it has {', '.join(heads)}" if heads else ", nor any other"
    return BadInput(
        f"{model}: has no head {name!r}{known}; name one with --head, or give a head's file"
    )
