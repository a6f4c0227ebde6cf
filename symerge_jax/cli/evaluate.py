"""`symerge evaluate MODEL --task DIR`: the accuracy of a merged model on labelled images."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import tyro

from symerge_jax.checkpoints.heads import StoredHead, read_head, read_heads
from symerge_jax.cli.errors import nearest
from symerge_jax.errors import BadInput


@dataclasses.dataclass(frozen=True)
class Settings:
    """Scores a model on the test images of tasks, each with the head of its name."""

    model: tyro.conf.Positional[Path]
    """Folder of a merged model, or of a per-task merge."""
    task: tuple[Path, ...]
    """Folders of tasks: test.npz, or test/ with a folder per class."""
    head: str | None = None
    """Name of the head, or a head's file; the name of the task's folder otherwise."""
    limit: int | None = None
    """Score only the first images of each task."""
    batch_size: int = 250
    """Images at a time."""


def main(settings: Settings) -> None:
    """Prints a row per task: accuracy and calibration error in percent, number of images."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from symerge_jax.cli.programs import keep_own_programs

    keep_own_programs()
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("task")
    for name in ("accuracy %", "calibration error %", "images"):
        table.add_column(name, justify="right")
    for name, least in (("limit", settings.limit), ("batch-size", settings.batch_size)):
        if least is not None and least < 1:
            raise BadInput(f"--{name} must be at least 1, got {least}")
    for folder in (Path(os.path.abspath(task)) for task in settings.task):  # "." has a name, too
        score = score_task(settings, folder)
        table.add_row(Text(folder.name), f"{score[0]:.2f}", f"{score[1]:.2f}", str(score[2]))
    Console().print(table)


def score_task(settings: Settings, folder: Path) -> tuple[float, float, int]:
    """Returns accuracy and calibration error in percent, and the number of images.

    Args:
        settings: the options.
        folder: absolute, of a task.

    Raises:
        BadInput: no such head, no labels, or classes that do not fit the head.
    """
    from symerge_jax.checkpoints.open import load_clip
    from symerge_jax.inputs import read_inputs
    from symerge_jax.score import accuracy_and_ece, computable

    place = model_folder(settings.model, folder.name)
    if settings.head is not None and Path(settings.head).is_file():
        head = read_head(settings.head)
    else:
        head = find_head(place, settings.head or folder.name)
    model = load_clip(place)
    check_head(head, model.vision.projection or model.vision.width, str(place))
    images, labels = read_inputs(folder, head, size=model.vision.image_size, limit=settings.limit)
    if labels is None:
        raise BadInput(f"{folder}: the test images have no labels, so there is nothing to score")
    found = accuracy_and_ece(
        model.vision,
        computable(model.params["vision"]),
        head.head,
        images,
        labels,
        batch_size=settings.batch_size,
    )
    return *found, len(labels)


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


def find_head(model: Path, name: str) -> StoredHead:
    """Returns a head of the model by name.

    Raises:
        BadInput: there is none.
    """
    heads = read_heads(model)
    if name not in heads:
        known = f"{nearest(name, heads)}; it has {', '.join(heads)}" if heads else ", nor any other"
        raise BadInput(
            f"{model}: has no head {name!r}{known}; name one with --head, or give a head's file"
        )
    return heads[name]


def check_head(head: StoredHead, width: int, model: str) -> None:
    """Raises `BadInput` unless the head takes features of this width."""
    if head.head["weight"].shape[1] != width:
        raise BadInput(
            f"{head.path}: takes features of width {head.head['weight'].shape[1]}, but {model} "
            f"gives {width}; the head belongs to another model (or the model lacks its projection)"
        )
