"""Tables and figures of the README, rendered from a committed record.

    python -m experiments.report RECORD.json                                  table in the terminal
    python -m experiments.report RECORD.json --readme README.md --marker vision-tiny
    python -m experiments.report RECORD.json --figure docs/vision.png

In the README the table stands between `<!-- begin: NAME -->` and `<!-- end: NAME -->`.
"""

import dataclasses
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text
from tyro.conf import Positional

from experiments import figures, records
from experiments.labels import REFERENCES, method_label, metric_label, number
from experiments.records import Record
from symerge_jax.cli.errors import run
from symerge_jax.errors import BadInput
from symerge_jax.files import write_atomically


@dataclasses.dataclass(frozen=True)
class Settings:
    """Renders a record: as a table in the terminal, into the README, as a figure."""

    record: Positional[Path]
    """A record.json."""
    readme: Path | None = None
    """A Markdown file with a pair of markers; the table between them is replaced."""
    marker: str | None = None
    """Name of the markers; the record's experiment and setting, as in vision-tiny, by default."""
    figure: Path | None = None
    """A PNG to draw, of the scores per task."""


def main(settings: Settings) -> None:
    """Prints the table, then writes what was asked for."""
    record = records.read(settings.record)
    print_table(record)
    if settings.readme:
        marker = settings.marker or f"{record['experiment']}-{record['setting']}"
        replace_in_readme(settings.readme, marker, markdown_table(record))
    if settings.figure:
        figures.accuracy_per_task(record, settings.figure)


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


def markdown_table(record: Record) -> str:
    """Returns the record's table in Markdown: a row per method, the best merged one in bold."""
    columns = _cells(record)
    best = best_method(record)
    lines = [_row(["method", *columns]), _row([":--", *["--:"] * len(columns)])]
    for i, method in enumerate(records.methods(record)):
        cells = [method_label(method), *(column[i] for column in columns.values())]
        lines.append(_row([f"**{cell}**" for cell in cells] if method == best else cells))
    return "\n".join([*lines, "", _caption(record)])


def best_method(record: Record) -> str | None:
    """Returns the best of the methods that give one encoder for all tasks.

    By the highest mean, normalised where there is no mean.
    """
    summary, stored = records.summarise(record), record.get("stored_encoders", {})
    merged = {m: s for m, s in summary.items() if m not in REFERENCES and stored.get(m, 1.0) == 1.0}
    for key in ("mean", "normalised"):
        scores = {m: s[key] for m, s in merged.items() if s[key] is not None}
        if scores:
            return max(scores, key=scores.__getitem__)
    return None


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


def _cells(record: Record) -> dict[str, list[str]]:
    """The table's columns: heading → a cell per method. The summary leads, the tasks follow."""
    methods, summary = records.methods(record), records.summarise(record)
    cells = {
        "mean": [number(summary[m]["mean"], summary[m]["std"]) for m in methods],
        "norm. %": [number(summary[m]["normalised"]) for m in methods],
    }
    stored = record.get("stored_encoders", {})
    if any(count != 1 for method, count in stored.items() if method not in REFERENCES):
        cells["encoders stored"] = [number(stored.get(m)) for m in methods]
    mains = _main_metrics(record)
    # Where tasks are all scored by one metric, the others are given as a mean over tasks.
    for metric in _side_metrics(record):
        values = [summary[m]["metrics"].get(metric, {}) for m in methods]
        cells[metric_label(metric)] = [number(v.get("mean"), v.get("std")) for v in values]
    for pair in records.columns(record):
        if len(set(mains.values())) > 1 or pair[1] == mains[pair[0]]:
            values = [records.over_seeds(record, m, *pair)[0] for m in methods]
            cells[_heading(pair, record)] = [number(value) for value in values]
    return cells


def _main_metrics(record: Record) -> dict[str, str]:
    """Task → the first metric recorded for it."""
    return {r["task"]: r["metric"] for r in reversed(record["results"])}


def _side_metrics(record: Record) -> list[str]:
    """Metrics beside the main one, where all tasks have the same main one."""
    mains = set(_main_metrics(record).values())
    if len(mains) != 1:
        return []
    return [m for m in dict.fromkeys(r["metric"] for r in record["results"]) if m not in mains]


def _blocks(record: Record, width: int) -> list[dict[str, list[str]]]:
    """The columns in groups that fit beside the methods' names, at least one in each."""
    room = width - max((len(method_label(m)) for m in records.methods(record)), default=6)
    blocks: list[dict[str, list[str]]] = [{}]
    used = 0
    for heading, cells in _cells(record).items():
        needed = 2 + max(map(len, [heading, *cells]))
        if blocks[-1] and used + needed > room:
            blocks.append({})
            used = 0
        blocks[-1][heading] = cells
        used += needed
    return blocks


def _table(record: Record, columns: dict[str, list[str]]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1))
    table.add_column("method", no_wrap=True)
    for heading in columns:
        table.add_column(heading, justify="right", no_wrap=True)
    best = best_method(record)
    for i, method in enumerate(records.methods(record)):
        style = "bold green" if method == best else "dim" if method in REFERENCES else ""
        cells = [method_label(method), *(column[i] for column in columns.values())]
        table.add_row(*(Text(cell, style=style) for cell in cells))
    return table


def _heading(pair: tuple[str, str], record: Record) -> str:
    """The task; with its metric where the record has several."""
    task, metric = pair
    several = len(set(_main_metrics(record).values())) > 1
    return f"{task}: {metric_label(metric)}" if several else task


def _caption(record: Record) -> str:
    """What the numbers are and where they come from, in one line."""
    seeds = sorted({r["seed"] for r in record["results"]})
    metrics = set(_main_metrics(record).values())
    what = metric_label(metrics.pop()).capitalize() if len(metrics) == 1 else "Test scores"
    tests = sorted({r["n"] for r in record["results"]})
    sizes = str(tests[0]) if len(tests) == 1 else f"{tests[0]}–{tests[-1]}" if tests else "no"
    environment = record["environment"]
    spread = ", mean ± std over seeds" if len(seeds) > 1 else ""
    stored = record.get("stored_encoders", {})
    several = any(n != 1 for m, n in stored.items() if m not in REFERENCES)
    bold = " Bold: the best of one encoder for all tasks." if several else ""
    return (
        f"<sub>{what} on {sizes} test inputs per task, seed{'s' if len(seeds) > 1 else ''} "
        f"{', '.join(map(str, seeds))}{spread}; norm. %: mean of score / expert's score.{bold} "
        f"symerge_jax {environment['symerge_jax']}, jax {environment['jax']}, "
        f"{environment['device_kind']}; `{_command(environment['command'])}`.</sub>"
    )


def _command(text: str) -> str:
    """The command without its places: where the files of a run went changes no number."""
    return re.sub(r" --(out|cache)(=| )\S+", "", text)


def _row(cells: Sequence[str]) -> str:
    escaped = [cell.replace("|", "\\|") for cell in cells]
    return f"| {' | '.join(escaped)} |"


if __name__ == "__main__":
    sys.exit(run(main, Settings, None, prog="python -m experiments.report"))
