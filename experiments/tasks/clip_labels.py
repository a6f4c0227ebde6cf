"""From the class names that come with data to the benchmark's label order and names for prompts."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from experiments.tasks import clip_names
from experiments.tasks.clip_names import Names
from experiments.tasks.clip_sets import ClipSet
from symerge_jax.errors import BadInput


def prompt_names(row: ClipSet, found: Sequence[str] | None) -> Names:
    """Returns what prompts call the classes, in label order.

    Args:
        row: the set.
        found: names that come with the data, already in the benchmark's order; None where the data
            has none.

    Raises:
        BadInput: the set's names come from the data alone, and the data has none.
    """
    if (names := clip_names.PROMPTS.get(row.key)) is not None:
        return names
    if found is None or _numbers(found) is not None:
        raise BadInput(
            f"{row.key}: the data does not name its {row.classes} classes, and a zero-shot head "
            "needs the names; use a copy with names (class folders, the hub's parquet files or "
            "tensorflow-datasets), or the head that comes with the expert"
        )
    return tuple(_prompt(name, row) for name in found)


def order(
    row: ClipSet,
    found: Sequence[str] | None,
    where: object,
    *,
    report: Callable[[str], object],
) -> tuple[int, ...] | None:
    """Returns the benchmark's label of each of the data's labels; None where they are the same.

    Names that are numbers count as labels themselves, or from 1 if no 0 is among them. Names that
    are not known here say nothing: they are taken to be in the benchmark's order, with a warning.

    Args:
        row: the set.
        found: the data's names in the order of its labels; None where it has none.
        where: what to name in messages.
        report: receives warnings.

    Raises:
        BadInput: the names show another order that cannot be put right.
    """
    if found is None or len(found) != row.classes:  # a subset: nothing to compare with
        return None
    places = _places(row, found)
    if places is None:
        report(
            f"{where}: the names of its classes ({', '.join(found[:3])}, …) are not known for "
            f"{row.key}; taking them to be in the benchmark's order"
        )
        return None
    if sorted(places) != list(range(row.classes)):
        raise BadInput(
            f"{where}: the labels of {row.key} are named {', '.join(found[:6])}, …, which is not "
            "the order of the benchmark's labels; use the copy that "
            "`python -m experiments.prepare vision` fetches"
        )
    return None if places == list(range(row.classes)) else tuple(places)


def _places(row: ClipSet, found: Sequence[str]) -> list[int] | None:
    """Per name the label it should have, -1 where it cannot be said; None if none can be."""
    numbers = _numbers(found)
    if numbers is not None:
        return [number - min(numbers) for number in numbers]
    if row.sorted_labels:
        cleaned = [_prompt(name, row).lower() for name in found]
        ranks = {name: i for i, name in enumerate(sorted(cleaned))}
        return [ranks[name] for name in cleaned]
    lists = clip_names.LABELS.get(row.key, ())
    known = {_bare(name): i for names in lists for i, name in enumerate(names)}
    if row.key == "cars":
        known = {_bare(name): i for i, name in clip_names.CARS_ANCHORS.items()}
    places = [known.get(_bare(name), -1) for name in found]
    if all(place < 0 for place in places):
        return None
    # Sources spell some names their own way: the others tell the order.
    return list(range(len(places))) if _agree(places) else places


def _agree(places: Sequence[int]) -> bool:
    return all(place in (-1, i) for i, place in enumerate(places))


def _numbers(found: Sequence[str]) -> list[int] | None:
    """The names as numbers, if all are."""
    return [int(name) for name in found] if all(name.isdecimal() for name in found) else None


def _bare(name: str) -> str:
    return re.sub(r"[\W_]+", "", name.lower())


def _prompt(name: str, row: ClipSet) -> str:
    if row.prompt_rule == "as_is":
        return name
    if row.key == "sun397":  # a folder per first letter, and folders in folders
        name = re.sub(r"^/?[a-z]/", "", name).replace("/", " ")
    return " ".join(name.replace("_", " ").split())
