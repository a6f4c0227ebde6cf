"""`symerge evaluate MODEL --task DIR`: the accuracy of a merged model on labelled images."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
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
    for folder in settings.task:
        score = score_task(settings, folder)
        table.add_row(Text(folder.name), f"{score[0]:.2f}", f"{score[1]:.2f}", str(score[2]))
    Console().print(table)


def score_task(settings: Settings, folder: Path) -> tuple[float, float, int]:
    """Returns accuracy and calibration error in percent, and the number of images.

    Raises:
        BadInput: no such head, no labels, or classes that do not fit the head.
    """
    from symerge_jax.checkpoints.open import load_clip
    from symerge_jax.data.images import read_task
    from symerge_jax.score import accuracy_and_ece, computable

    folder = folder.absolute()
    place = model_folder(settings.model, folder.name)
    head = find_head(place, settings.head or folder.name)
    model = load_clip(place)
    task = read_task(folder.parent, folder.name, size=model.vision.image_size, need_train=False)
    if task.test.labels is None:
        raise BadInput(f"{folder}: the test images have no labels, so there is nothing to score")
    check_head(head, model.vision.projection or model.vision.width, str(place))
    labels = ordered(task.test.labels, task.classes, head, folder)
    count = settings.limit or len(labels)
    found = accuracy_and_ece(
        model.vision,
        computable(model.params["vision"]),
        head.head,
        task.test.images[:count],
        labels[:count],
        batch_size=settings.batch_size,
    )
    return *found, len(labels[:count])


def model_folder(model: Path, task: str) -> Path:
    """Returns the folder of the model that serves a task: one of a per-task merge, or `model`."""
    folders = sorted(model.glob("[0-9][0-9]_*"))
    if not folders:
        return model
    own = [folder for folder in folders if folder.name.partition("_")[2] == task]
    if not own:
        names = ", ".join(folder.name for folder in folders)
        raise BadInput(f"{model}: holds one model per task, but none of {task!r}: {names}")
    return own[0]


def find_head(model: Path, name: str) -> StoredHead:
    """Returns a head of the model by name, or the head in the file of that name.

    Raises:
        BadInput: there is none.
    """
    if Path(name).is_file():
        return read_head(name)
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


def ordered(
    labels: np.ndarray, classes: tuple[str, ...] | None, head: StoredHead, where: Path
) -> np.ndarray:
    """Returns the labels in the class order of the head.

    Raises:
        BadInput: the head has another number of classes, or lacks one by name.
    """
    count = len(head.head["weight"])
    if labels.max(initial=-1) >= count:
        raise BadInput(
            f"{where}: has labels up to {labels.max()}, but {head.path} has {count} classes"
        )
    if classes is None or head.classes is None or set(classes) != set(head.classes):
        if classes is not None and len(classes) != count:
            raise BadInput(f"{where}: has {len(classes)} classes, but {head.path} has {count}")
        return labels
    return np.array([head.classes.index(name) for name in classes], labels.dtype)[labels]
