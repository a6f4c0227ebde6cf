"""Runs every vision experiment, one after the other, in one process.

    python -m experiments.all                             the embedded world, seed 0
    python -m experiments.all --quick                     a rough run of each, to see that all work
    python -m experiments.all --only components layers    some of them
    python -m experiments.all --seeds 0 1 2 --keep experiments/results

They share pictures, experts, predictions and compiled programs through the cache and the process.
An experiment that fails does not stop the others; the exit code is 1 then. With --keep, records
and pictures are copied to KEEP/<experiment>/<setting>.json and <setting>_<picture>.png.

Expected: under 45 minutes on two cores, experts included; --quick under 8.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import shutil
import sys
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from rich.console import Console
from rich.table import Table

from experiments import records
from experiments.options import Options, check
from experiments.tasks.task import check_known
from symerge_jax.cli.errors import CHECK_FAILED, DONE, run
from symerge_jax.cli.progress import say
from symerge_jax.errors import BadInput
from symerge_jax.files import make_folder, write_atomically

# In this order those that others take trained models from come first.
EXPERIMENTS = (
    "vision",
    "components",
    "transfer",
    "sequential",
    "discrepancy",
    "proxy_loss",
    "sparsity",
    "tsne",
    "curves",
    "initialisation",
    "supervisor",
    "losses",
    "layers",
    "cross_task",
    "proposition",
    "pilot",
    "disjoint",
    "corruption",
    "sweep",
)


@dataclasses.dataclass(frozen=True)
class Settings(Options):
    """Runs the vision experiments; options go to each of them."""

    only: tuple[str, ...] | None = None
    """Names of experiments; all otherwise."""
    keep: Path | None = None
    """Folder to copy records and pictures to, such as experiments/results."""


def main(settings: Settings) -> int:
    """Runs them, prints what each took; returns 1 if one failed."""
    check(settings)
    names = list(settings.only or EXPERIMENTS)
    for name in names:
        check_known(name, EXPERIMENTS, "experiment")
    done: list[tuple[str, float, str]] = []
    for name in names:
        say(f"— {name} —")
        begin = time.monotonic()
        try:
            path = run_one(name, settings)
        except BadInput as error:
            say(f"{name}: {error}")
            done.append((name, time.monotonic() - begin, "failed"))
            continue
        if path is not None and settings.keep is not None:
            keep(path, settings.keep)
        done.append((name, time.monotonic() - begin, str(path or "–")))
    print_times(done)
    return CHECK_FAILED if any(result == "failed" for *_, result in done) else DONE


def run_one(name: str, settings: Settings) -> Path | None:
    """Runs one experiment with the options that were given; returns its record's path."""
    module = import_module(f"experiments.{name}")
    plain = Options()
    given = {
        field.name: getattr(settings, field.name)
        for field in dataclasses.fields(Options)
        if getattr(settings, field.name) != getattr(plain, field.name)
    }
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        module.main(module.Settings(**given))
    text = printed.getvalue()
    print(text, end="")
    return None if settings.dry_run else Path(text.splitlines()[-1])


def keep(path: Path, root: Path) -> None:
    """Copies a record and its pictures to where committed evidence lies."""
    record = records.read(path)
    folder = make_folder(root / record["experiment"])
    for picture in sorted(path.parent.glob("*.png")):
        shutil.copyfile(picture, folder / f"{record['setting']}_{picture.name}")
    write_atomically(folder / f"{record['setting']}.json", path.read_text(encoding="utf-8"))


def print_times(done: Sequence[tuple[str, float, str]]) -> None:
    """Prints what was run, how long it took, and where its record is."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("experiment")
    table.add_column("minutes", justify="right")
    table.add_column("record", overflow="fold")
    for name, seconds, result in done:
        table.add_row(name, f"{seconds / 60:.1f}", result)
    table.add_row("all", f"{sum(seconds for _, seconds, _ in done) / 60:.1f}", "")
    Console().print(table)


if __name__ == "__main__":
    sys.exit(run(main, Settings, None, prog="python -m experiments.all"))
