"""`symerge verify OUT`: is this still the model that was written, and does it compute the same?"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import tyro


@dataclasses.dataclass(frozen=True)
class Settings:
    """Checks the hash of every file of a merged model and recomputes its reference outputs."""

    model: tyro.conf.Positional[Path]
    """Folder with a merge_card.json."""


def main(settings: Settings) -> int:
    """Prints a row per check; exit code 1 if one fails."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from symerge_jax.cli.programs import keep_own_programs
    from symerge_jax.verify import verify

    keep_own_programs()
    findings = list(verify(settings.model))
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("check")
    table.add_column("")
    table.add_column("found", overflow="fold")
    for one in findings:
        mark = Text("ok", "green") if one.holds else Text("FAILED", "bold red")
        table.add_row(Text(one.what), mark, Text(one.says))
    Console().print(table)
    failed = [one for one in findings if not one.holds]
    if failed:
        print(f"{settings.model}: {len(failed)} of {len(findings)} checks failed: {failed[0].says}")
        return 1
    print(f"{settings.model}: all {len(findings)} checks hold")
    return 0
