"""Finding records on disk, and the pictures that belong to each.

Committed records are `<experiment>/<setting>.json` with pictures `<experiment>/<setting>*.png`; a
run's own folder holds `record.json` and its pictures.
"""

import inspect
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from experiments import figures, records
from experiments.paper_numbers import ANALYSES, script
from experiments.records import Record
from experiments.tables import main_metrics
from symerge_jax.errors import BadInput

_RUN = "record.json"


class Picture(NamedTuple):
    """A picture of a record.

    Attributes:
        name: what it shows, as its file's name says.
        png: its bytes.
    """

    name: str
    png: bytes


class Found(NamedTuple):
    """A record, where it was found, and its pictures."""

    path: Path
    record: Record
    pictures: list[Picture]


def collect(places: Iterable[str | Path]) -> list[Found]:
    """Returns the records of files and folders, by experiment, setting, number of tasks and time.

    Args:
        places: record files; folders of runs (all `record.json` below are read, wherever) or of
            committed records (`*.json` there and one folder further down).

    Raises:
        BadInput: a place is missing, holds no record, or a file is not a record of this format.
    """
    paths = dict.fromkeys(path.resolve() for place in places for path in _files(Path(place)))
    found = [Found(path, records.read(path), pictures(path)) for path in paths]
    found.sort(key=lambda one: _order(one.record))
    return [one if one.pictures else one._replace(pictures=_drawn(one.record)) for one in found]


def pictures(path: Path) -> list[Picture]:
    """Returns the pictures beside a record; those of a longer name are another record's.

    Args:
        path: of the record.

    Raises:
        BadInput: a file of that name is no PNG.
    """
    if path.name == _RUN:
        files = {file: file.stem for file in path.parent.glob("*.png")}
    else:
        others = [p.stem for p in path.parent.glob("*.json") if _extends(p.stem, path.stem)]
        files = {
            file: file.stem.removeprefix(path.stem)
            for file in path.parent.glob("*.png")
            if file.stem == path.stem or _extends(file.stem, path.stem)
            if not any(file.stem == other or _extends(file.stem, other) for other in others)
        }
    return [Picture(_words(files[file]), _png(file)) for file in sorted(files)]


def _png(path: Path) -> bytes:
    png = path.read_bytes()
    if not png.startswith(b"\x89PNG\r\n\x1a\n") or len(png) < 24:
        raise BadInput(f"{path}: expected a PNG, as its name says; remove it, or draw it again")
    return png


def _extends(longer: str, shorter: str) -> bool:
    """`tiny-14` and `tiny_curves` extend `tiny`; `tinyish` does not."""
    return longer.startswith(shorter) and longer[len(shorter) :][:1] in ("-", "_", ".")


def _words(stem: str) -> str:
    return " ".join(stem.replace("_", " ").replace("-", " ").replace(".", " ").split())


def _files(place: Path) -> Sequence[Path]:
    if not place.is_dir():
        return [place]  # `records.read` says what is wrong with one that is missing
    found = sorted(place.rglob(_RUN)) or sorted([*place.glob("*.json"), *place.glob("*/*.json")])
    if not found:
        raise BadInput(f"{place}: expected records below it (record.json, or JSON files), found no")
    return found


def _order(record: Record) -> tuple[str, str, int, str]:
    started = str(record["environment"].get("started", ""))
    return record["experiment"], record["setting"], len(main_metrics(record)), started


def _drawn(record: Record) -> list[Picture]:
    """The experiment's own pictures where its script draws them from a record; else the scores."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            _draw(record, Path(folder))
        except (KeyError, IndexError, TypeError, ValueError):
            # The data of a record is the experiment's own and may be another version's; what every
            # record has can be drawn all the same.
            _draw_scores(record, Path(folder))
        return pictures(Path(folder) / _RUN)


def _draw(record: Record, folder: Path) -> None:
    name = record["experiment"]
    draw = getattr(script(name), "draw", None) if name in ANALYSES else None
    if draw is not None and list(inspect.signature(draw).parameters) == ["record", "folder"]:
        draw(record, folder)
    else:
        _draw_scores(record, folder)


def _draw_scores(record: Record, folder: Path) -> None:
    if len(set(main_metrics(record).values())) == 1:
        figures.accuracy_per_task(record, folder / "scores_per_task.png")
