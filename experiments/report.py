"""Tables and figures of committed records, and one page of all of them.

    python -m experiments.report RECORD.json                                  table in the terminal
    python -m experiments.report RECORD.json --readme README.md --marker vision-tiny
    python -m experiments.report RECORD.json --figure docs/vision.png
    python -m experiments.report --out DIR                                    every record's report
    python -m experiments.report --out DIR --records runs other/tiny.json     of these instead

In the README the table stands between `<!-- begin: NAME -->` and `<!-- end: NAME -->`. `--out`
writes `index.html`, one file that needs no network, the same in Markdown as `report.md`, and
`claims.json`: what the paper claims, what the records say of it, and whether it held.
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text
from tyro.conf import Positional

from experiments import figures, records
from experiments.labels import REFERENCES, method_label
from experiments.records import Record
from experiments.tables import Column, best_method, columns, markdown_table
from symerge_jax.cli.errors import run
from symerge_jax.errors import BadInput
from symerge_jax.files import write_atomically

RESULTS = Path(__file__).parent / "results"


@dataclasses.dataclass(frozen=True)
class Settings:
    """Renders a record: as a table in the terminal, into the README, as a figure; or all of them
    as one page."""

    record: Positional[Path | None] = None
    """A record.json."""
    readme: Path | None = None
    """A Markdown file with a pair of markers; the table between them is replaced."""
    marker: str | None = None
    """Name of the markers; the record's experiment and setting, as in vision-tiny, by default."""
    figure: Path | None = None
    """A PNG to draw, of the scores per task."""
    out: Path | None = None
    """Folder for the report of all records: index.html, report.md and claims.json."""
    records: tuple[Path, ...] = ()
    """Record files, or folders of them, for that report; experiments/results by default."""


def main(settings: Settings) -> None:
    """Prints the table, then writes what was asked for; or writes the report of all records."""
    check(settings)
    if settings.out is not None:
        from experiments import record_files, reports  # which read what scripts print tables of

        found = record_files.collect(settings.records or (RESULTS,))
        print(reports.write(found, settings.out))
        return
    assert settings.record is not None
    record = records.read(settings.record)
    print_table(record)
    if settings.readme:
        marker = settings.marker or f"{record['experiment']}-{record['setting']}"
        replace_in_readme(settings.readme, marker, markdown_table(record))
    if settings.figure:
        figures.accuracy_per_task(record, settings.figure)


def check(settings: Settings) -> None:
    """Raises `BadInput` for options that have no effect beside the others."""
    of_one = {name: getattr(settings, name) for name in ("record", "readme", "marker", "figure")}
    given = [name for name, value in of_one.items() if value is not None]
    if settings.out is not None and given:
        name = given[0] if given[0] == "record" else f"--{given[0]}"
        raise BadInput(
            f"--out writes the report of all records, {name} is of one; leave one of them out, or "
            "name the records with --records"
        )
    if settings.out is None and settings.record is None:
        raise BadInput("expected a record.json, or --out DIR for the report of all records")
    if settings.out is None and settings.records:
        raise BadInput("--records goes with --out DIR; a single record is named without an option")
    if settings.marker is not None and settings.readme is None:
        raise BadInput("--marker goes with --readme; name the Markdown file that has the markers")


def print_table(record: Record, console: Console | None = None) -> None:
    """Prints methods × tasks, as several tables where the terminal is too narrow for one.

    Args:
        record: any.
        console: where to; the terminal when None.
    """
    console = console or Console()
    for block in _blocks(record, console.width):
        console.print(_table(record, block))
        console.print()


def replace_in_readme(path: str | Path, marker: str, text: str) -> None:
    """Replaces what stands between a pair of markers.

    Args:
        path: the Markdown file.
        marker: its name, as in `<!-- begin: vision-tiny -->`.
        text: what comes to stand between them.

    Raises:
        BadInput: the file cannot be read, or does not have the pair exactly once, in order.
    """
    path = Path(path)
    begin, end = f"<!-- begin: {marker} -->", f"<!-- end: {marker} -->"
    try:
        content = path.read_text(encoding="utf-8")
    except OSError as error:
        raise BadInput(f"{path}: expected a Markdown file, but {error.strerror}") from error
    head, found_begin, rest = content.partition(begin)
    _, found_end, tail = rest.partition(end)
    if not (found_begin and found_end) or begin in tail or end in head + tail:
        raise BadInput(
            f"{path}: expected one `{begin}` followed by one `{end}`, found "
            f"{content.count(begin)} and {content.count(end)}; add the two lines where the table "
            "belongs"
        )
    write_atomically(path, f"{head}{begin}\n{text}\n{end}{tail}")


def _blocks(record: Record, width: int) -> list[list[Column]]:
    """The columns in groups that fit beside the methods' names, at least one in each."""
    room = width - max((len(method_label(m)) for m in records.methods(record)), default=6)
    blocks: list[list[Column]] = [[]]
    used = 0
    for column in columns(record):
        needed = 2 + max(map(len, [column.heading, *column.cells]))
        if blocks[-1] and used + needed > room:
            blocks.append([])
            used = 0
        blocks[-1].append(column)
        used += needed
    return blocks


def _table(record: Record, block: Sequence[Column]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1))
    table.add_column("method", no_wrap=True)
    for column in block:
        table.add_column(column.heading, justify="right", no_wrap=True)
    best = best_method(record)
    cells = [column.cells for column in block]
    for i, method in enumerate(records.methods(record)):
        style = "bold green" if method == best else "dim" if method in REFERENCES else ""
        row = [method_label(method), *(column[i] for column in cells)]
        table.add_row(*(Text(cell, style=style) for cell in row))
    return table


if __name__ == "__main__":
    sys.exit(run(main, Settings, None, prog="python -m experiments.report"))
