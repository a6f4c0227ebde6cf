"""`tasks.toml`: a person's experts, heads and unlabelled inputs.

    [model]
    pretrained = "clip-vit-base-patch32"     # file, folder, or owner/name[@revision] on the hub
    vocabulary = "vocabulary"                # optional: its files lie beside the weights otherwise
    [adapt]                                  # optional, and so is every key in it
    method = "symerge"
    [[task]]
    name = "eurosat"
    expert = "experts/eurosat"
    head = "heads/eurosat.safetensors"       # or classes = [...] and templates = [...]
    inputs = "images/eurosat/test"           # folder, npz or text file

Paths are relative to the file. With a RoBERTa `head` may be left out: the expert's own classifier
is meant. So it may with a ResNet, whose heads are decoders; `stored_decoders` says which task is
segmentation, which depth and which normals. Its [adapt] has one key more, `batch_norm`: recalibrate
(as in training, the default), merge_stats or pretrained_stats.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from symerge_jax.errors import BadInput


class TaskEntry(NamedTuple):
    """One [[task]]; `head`, or `classes` and `templates`, or none of them is given."""

    name: str
    expert: str
    inputs: Path
    head: Path | None
    classes: tuple[str, ...] | None
    templates: tuple[str, ...] | None


class TasksFile(NamedTuple):
    """A parsed tasks.toml; `adapt` holds the keys that were given."""

    path: Path
    pretrained: str
    adapt: dict[str, Any]
    tasks: tuple[TaskEntry, ...]
    vocabulary: Path | None = None


# key of [adapt] → what it must be.
ADAPT_KEYS: dict[str, tuple[type, ...]] = {
    "method": (str,),
    "layer": (str,),
    "iterations": (int,),
    "batch_size": (int,),
    "learning_rate": (float, int),
    "initial_coefficient": (float, int),
    "seed": (int,),
    "batch_norm": (str,),
}
_TASK_KEYS = ("name", "expert", "head", "classes", "templates", "inputs")


def read_tasks_file(path: str | Path) -> TasksFile:
    """Reads and checks a tasks.toml; the files it names are not looked at yet.

    Raises:
        BadInput: the file is missing or no TOML, a key is unknown (the nearest known one is
            named), missing, or of another type.
    """
    path = Path(path)
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror or error})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: not a TOML file ({error})") from error
    _known(path, "the file", content, ("model", "adapt", "task"))
    model = _table(path, content, "model")
    _known(path, "[model]", model, ("pretrained", "vocabulary"))
    adapt = _table(path, content, "adapt", optional=True)
    _known(path, "[adapt]", adapt, ADAPT_KEYS)
    for key, value in adapt.items():
        if not isinstance(value, ADAPT_KEYS[key]) or isinstance(value, bool):
            wanted = " or ".join(kind.__name__ for kind in ADAPT_KEYS[key])
            raise BadInput(f"{path}: [adapt] {key} must be {wanted}, got {value!r}")
    entries = content.get("task", [])
    if not isinstance(entries, list) or len(entries) < 2:
        raise BadInput(f"{path}: expected at least two [[task]] entries, one per expert")
    tasks = tuple(_task(path, number, entry) for number, entry in enumerate(entries, 1))
    names = [task.name for task in tasks]
    if len(set(names)) < len(names):
        raise BadInput(f"{path}: two [[task]] entries have the same name: {', '.join(names)}")
    pretrained = _text(path, "[model]", model, "pretrained")
    vocabulary = None
    if "vocabulary" in model:
        vocabulary = path.parent / _text(path, "[model]", model, "vocabulary")
    return TasksFile(path, _place(path, pretrained), adapt, tasks, vocabulary)


def _task(path: Path, number: int, entry: Any) -> TaskEntry:
    where = f"[[task]] {number}"
    if not isinstance(entry, dict):
        raise BadInput(f"{path}: {where} must be a table")
    _known(path, where, entry, _TASK_KEYS)
    name = _text(path, where, entry, "name")
    if Path(name).name != name or name in (".", ".."):
        raise BadInput(f"{path}: {where} name must be usable as a file's name, got {name!r}")
    where = f"[[task]] {name}"
    classes, templates = (_texts(path, where, entry, key) for key in ("classes", "templates"))
    if "head" in entry and classes is not None:
        raise without_head(path, name)
    if (classes is None) != (templates is None):
        missing = "classes" if classes is None else "templates"
        raise BadInput(
            f"{path}: {where} lacks {missing}; a zero-shot head needs both classes and templates, "
            'such as templates = ["a photo of a {}."]'
        )
    head = path.parent / _text(path, where, entry, "head") if "head" in entry else None
    return TaskEntry(
        name,
        _place(path, _text(path, where, entry, "expert")),
        path.parent / _text(path, where, entry, "inputs"),
        head,
        classes,
        templates,
    )


def without_head(path: Path, task: str) -> BadInput:
    """Returns what to raise where a task does not say once what its head is."""
    return BadInput(
        f"{path}: [[task]] {task} needs either head, a file, or classes (with templates), to make "
        "one from the text tower"
    )


def _place(path: Path, text: str) -> str:
    """Returns a path beside the file, or the text itself where it can only be a name on the hub."""
    beside = path.parent / text
    on_hub = text.partition("@")[0].count("/") == 1 and not text.startswith((".", "/", "~"))
    # What lies in the working folder is not meant: it would be read in place of the hub's.
    return text if on_hub and not beside.exists() and not Path(text).exists() else str(beside)


def _known(path: Path, where: str, table: Mapping[str, Any], known: Collection[str]) -> None:
    for key in table:
        if key not in known:
            near = difflib.get_close_matches(key, list(known), n=1, cutoff=0.5)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise BadInput(
                f"{path}: unknown key {key!r} in {where}{hint}; known: {', '.join(known)}"
            )


def _table(
    path: Path, content: Mapping[str, Any], key: str, *, optional: bool = False
) -> dict[str, Any]:
    found = content.get(key, {} if optional else None)
    if not isinstance(found, dict):
        raise BadInput(f"{path}: expected a table [{key}]")
    return found


def _text(path: Path, where: str, table: Mapping[str, Any], key: str) -> str:
    value = table.get(key)
    if not isinstance(value, str) or not value:
        found = "nothing" if value is None else repr(value)
        raise BadInput(f"{path}: {where} needs {key}, a text; found {found}")
    return value


def _texts(path: Path, where: str, table: Mapping[str, Any], key: str) -> tuple[str, ...] | None:
    value = table.get(key)
    if value is None:
        return None
    if not isinstance(value, list) or not value or not all(isinstance(x, str) for x in value):
        raise BadInput(f"{path}: {where} {key} must be a list of texts, got {value!r}")
    return tuple(value)
