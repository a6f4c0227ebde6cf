"""The tables of `benchmarks.merge_methods`; what is over its limit is red, with a cross."""

import json
import statistics
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from symerge_jax.errors import BadInput

FORMAT = 1  # of the file of figures
Row = dict[str, Any]


def print_record(path: Path) -> None:
    """Prints the tables of a file of figures.

    Raises:
        BadInput: it cannot be read, or is of another kind or format.
    """
    try:
        whole = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"{path}: cannot be read as a benchmark's figures ({error})") from error
    if not isinstance(whole, dict) or whole.get("benchmark") != "merge_methods":
        raise BadInput(f"{path}: expected the figures of benchmarks.merge_methods")
    if whole.get("format") != FORMAT:
        raise BadInput(f"{path}: expected format {FORMAT}, got {whole.get('format')}; run it again")
    print_tables(whole["settings"], whole)


def print_tables(settings: dict[str, Any], figures: dict[str, Any]) -> None:
    """Prints time, memory and growth with K, each only if it was measured."""
    console, rows = Console(highlight=False), figures["rows"]
    console.print(
        f"{settings['model']}, {settings['tasks']} tasks, medians of at most "
        f"{settings['repeats']} runs; memory is read at {figures['bandwidth'] / 1e9:.1f} GB/s",
        soft_wrap=True,
        markup=False,
    )
    console.print(_time(rows))
    if any("memory" in row or "files" in row for row in rows.values()):
        console.print(_memory(rows))
    if figures["scaling"]:
        console.print(_growth(figures["scaling"]))
    for name, row in rows.items():
        if not row.get("agrees", True):
            console.print(f"[bold red]{name}: the results differ[/]")
    for note in figures["notes"]:
        console.print(note)


def _table(*headings: str) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1))
    table.add_column("method", no_wrap=True)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _time(rows: dict[str, Row]) -> Table:
    table = _table("ours s", "× floor", "torch s", "torch / ours", "limit", "differ")
    for name, row in rows.items():
        cells = ["", "", "", ""]
        if "ratios" in row:
            least = row["limits"].get("ratio")
            low, high = min(row["ratios"]), max(row["ratios"])
            ratio = _marked(row, "ratio", f"{row['median_ratio']:.2f}")
            cells = [
                f"{row['median_torch_seconds']:.2f}",
                f"{ratio} ({low:.1f}–{high:.1f})",
                f"≥ {least:g}" if least else "",
                "" if row["difference"] is None else f"{row['difference']:.0e}",
            ]
        table.add_row(name, f"{row['median_seconds']:.2f}", f"{row['times_floor']:.1f}", *cells)
    return table


def _memory(rows: dict[str, Row]) -> Table:
    table = _table("of the tower", "first s", "models", "limit", "files GB", "limit")
    for name, row in rows.items():
        limits, models, gigabytes = row["limits"], "", ""
        if "memory" in row:
            models = _marked(row, "models", f"{row['memory']['models']:.1f}")
        if "files" in row:
            gigabytes = _marked(row, "gigabytes", f"{row['files']['peak_bytes'] / 1e9:.2f}")
        table.add_row(
            name,
            row["part"],
            f"{row['first_seconds']:.2f}",
            models,
            f"≤ {limits['models']}" if models else "",
            gigabytes,
            f"≤ {limits['gigabytes']}" if gigabytes else "",
        )
    return table


def _growth(scaling: dict[str, dict[str, list[float]]]) -> Table:
    counts = list(next(iter(scaling.values())))
    table = _table(*(f"K = {count}, s/K" for count in counts))
    for name, seconds in scaling.items():
        per_task = [statistics.median(own) / int(count) for count, own in seconds.items()]
        table.add_row(name, *(f"{one:.3f}" for one in per_task))
    return table


def _marked(row: Row, what: str, text: str) -> str:
    return text if row["within"].get(what, True) else f"[bold red]✗ {text}[/]"
