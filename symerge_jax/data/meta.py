"""`meta.json` of an image task: class names, names for prompts, prompt templates. All optional."""

import json
from pathlib import Path
from typing import NamedTuple

from symerge_jax.errors import BadInput


class Meta(NamedTuple):
    """What a task says about itself; None where it says nothing."""

    classes: tuple[str, ...] | None = None  # in label order
    clip_classes: tuple[tuple[str, ...], ...] | None = None  # for each class, its synonyms
    templates: tuple[str, ...] | None = None  # with {} for the class name


def read_meta(path: Path) -> Meta:
    """Reads and checks the file; one that is absent says nothing.

    Raises:
        BadInput: it is not a JSON object, or one of the three lists is not what it should be.
    """
    if not path.exists():
        return Meta()
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BadInput(
            f"{path}: cannot be read as JSON ({error}); correct or remove it."
        ) from error
    if not isinstance(content, dict):
        raise BadInput(
            f"{path}: expected a JSON object, found a {type(content).__name__}; put the class "
            'names in {"classes": [...]}.'
        )
    meta = Meta(
        classes=_strings(path, "classes", content.get("classes")),
        clip_classes=_synonyms(path, content.get("clip_classes")),
        templates=_strings(path, "templates", content.get("templates")),
    )
    _check(path, meta)
    return meta


def _strings(path: Path, name: str, value: object) -> tuple[str, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list) or not value or not all(isinstance(v, str) for v in value):
        raise BadInput(f"{path}: expected `{name}` as a list of strings, found {_brief(value)}.")
    return tuple(value)


def _synonyms(path: Path, value: object) -> tuple[tuple[str, ...], ...] | None:
    if value is None:
        return None
    if not isinstance(value, list) or not value:
        raise BadInput(
            f"{path}: expected `clip_classes` as a list with a name, or a list of synonyms, for "
            f"each class, found {_brief(value)}."
        )
    return tuple(
        (item,) if isinstance(item, str) else _strings(path, f"clip_classes[{i}]", item) or ()
        for i, item in enumerate(value)
    )


def _check(path: Path, meta: Meta) -> None:
    if meta.classes and len(set(meta.classes)) < len(meta.classes):
        twice = next(c for c in meta.classes if meta.classes.count(c) > 1)
        raise BadInput(f"{path}: `classes` names {twice!r} twice; give each class its own name.")
    if meta.clip_classes and not all(meta.clip_classes):
        empty = meta.clip_classes.index(())
        raise BadInput(f"{path}: `clip_classes[{empty}]` is empty; give the class a name.")
    if meta.classes and meta.clip_classes and len(meta.classes) != len(meta.clip_classes):
        raise BadInput(
            f"{path}: {len(meta.classes)} `classes` but {len(meta.clip_classes)} `clip_classes`; "
            "give one entry for each class, in label order."
        )
    for template in meta.templates or ():
        if "{}" not in template:
            raise BadInput(
                f"{path}: the template {template!r} has no {{}} where the class name goes; add it."
            )


def _brief(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
