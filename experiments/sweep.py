"""Sweeps learning rates and starts of SyMerge, and chooses among them without a label.

    python -m experiments.sweep                           the embedded world, nine points, seed 0
    python -m experiments.sweep --grid lr=1e-3,1e-2 init=0.1,0.3 --seeds 0 1 2
    python -m experiments.sweep --methods symerge_head --grid lr_heads=0.001,0.003,0.01,0.03
    python -m experiments.sweep --data DIR                your own image folders or npz packs
    python -m experiments.sweep --model ViT-B-32 --checkpoints DIR --data DIR

`--grid` takes KEY=VALUE,VALUE…; the points are the cross product. Keys: `lr` (coefficients and
heads alike) or `lr_coefficients` and `lr_heads`, and `init`, the initial coefficient. Methods:
symerge (unless `--methods` says otherwise), symerge_coefficients, symerge_head. All points of a
method are one compiled program; the seeds, with experts of their own, take turns in it.

The table shows the test accuracy of every point, and the best of those would be chosen with test
labels. The point that is called chosen is the one whose merged model says most often what the
experts say about validation images, which no run has adapted to; of equal ones, that with the
lowest loss to what they say. No label takes part. A run whose loss or gradient is not finite stops
there; it is not scored, and its point cannot be chosen.

Expected: not in the paper as such; Figures E(b) and 6b vary rate and start one at a time.
Cost: as many runs of SyMerge as points and seeds; half the rounds of other tables unless
`--iterations` says otherwise.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean

from rich.console import Console
from rich.table import Table

from experiments import records
from experiments.ablating import chosen_rows, with_fewer_rounds
from experiments.figures_sweep import draw
from experiments.grids import Cell, Grid, cells, parsed
from experiments.labels import method_label, number
from experiments.methods import SYMERGE
from experiments.options import Options
from experiments.records import EXPERT, Record
from experiments.sweeping import Looked, held_out, look, swept
from experiments.vision_run import Scene, add, begin, describe, finish, fixed
from symerge_jax.cli.errors import run
from symerge_jax.errors import BadInput
from symerge_jax.parallel import run_jobs

GRID = ("lr=0.003,0.01,0.03", "init=0.1,0.2,0.3")
QUICK = ("lr=0.01,0.03", "init=0.1,0.3")


@dataclass(frozen=True)
class Settings(Options):
    """Adapts once for each point of a grid; see the module for its keys and what is chosen."""

    grid: tuple[str, ...] = ()
    """KEY=VALUE,VALUE…, several times; keys lr, lr_coefficients, lr_heads, init."""


def main(settings: Settings) -> int:
    """Runs the experiment; the last line printed is the path of the record."""
    methods = chosen_rows(settings.methods or ("symerge",), SYMERGE)
    grid = parsed(settings.grid or (QUICK if settings.quick else GRID))
    points = cells(grid, methods)
    settings = with_fewer_rounds(settings)
    if settings.parallel == "data":
        raise BadInput("--parallel data: a sweep gives devices runs of their own; leave it out")
    if settings.dry_run:
        values = "; ".join(f"{key} {', '.join(f'{v:g}' for v in grid[key])}" for key in grid)
        print(f"grid: {values}: {len(points)} points per seed")
        return describe(settings, [EXPERT, *methods])
    with begin("sweep", settings) as scene:
        add(scene, fixed(scene, [EXPERT]))
        looked = [one for method in methods for one in _swept(scene, method, points)]
        _add_all(scene, points, looked)
        scene.record["data"] = described(grid, points, looked)
    return finish(scene, partial(draw, scene.record), show)


def _swept(scene: Scene, method: str, points: Sequence[Cell]) -> list[Looked]:
    """Runs one method's points under each seed, and scores what they give."""
    own = [cell for cell in points if cell.method == method]
    found: list[Looked] = []
    for seed in scene.seeds.values():
        with records.phase(scene.record, "adaptation"):
            runs = swept(scene, seed, own)
        with records.phase(scene.record, "scores"):
            look_at = partial(look, scene, seed, held_out(scene, seed))
            jobs = [partial(look_at, cell, one) for cell, one in zip(own, runs, strict=True)]
            found += run_jobs(jobs, scene.devices)
    return found


def _add_all(scene: Scene, points: Sequence[Cell], looked: Sequence[Looked]) -> None:
    """Adds results in the grid's order; of runs that stopped, nulls and one note."""
    record = scene.record
    for cell in points:
        for one in looked:
            if one.name != cell.name:
                continue
            if one.outcome is not None:
                add(scene, [one.outcome])
                continue
            task, step = one.stopped_at or ("", 0)
            record["notes"].append(f"{one.name}, seed {one.seed}: diverged at step {step}, {task}")
            for each in scene.tasks:
                record["results"].append(
                    {"method": one.name, "seed": one.seed, "task": each.name,
                     "metric": "accuracy", "value": None, "n": len(each.test.labels)}
                )  # fmt: skip


def described(grid: Grid, points: Sequence[Cell], looked: Sequence[Looked]) -> dict[str, object]:
    """Returns what the table and the picture show, as the record has it.

    `agreement` in percent and `held_out_loss` in nats, on validation images, and `final_loss`, of
    the last round: a value per seed, null where a run stopped. `diverged`: where those did.
    """
    of = {cell.name: [one for one in looked if one.name == cell.name] for cell in points}
    return {
        "grid": {key: list(values) for key, values in grid.items()},
        "points": {cell.name: {"method": cell.method, **cell.values} for cell in points},
        "agreement": {name: [one.agreement for one in runs] for name, runs in of.items()},
        "held_out_loss": {name: [one.held_out_loss for one in runs] for name, runs in of.items()},
        "final_loss": {name: [one.final_loss for one in runs] for name, runs in of.items()},
        "diverged": {
            name: [
                {"seed": one.seed, "task": one.stopped_at[0], "step": one.stopped_at[1]}
                for one in runs
                if one.stopped_at is not None
            ]
            for name, runs in of.items()
        },
        "chosen": chosen(points, of),
    }


def chosen(points: Sequence[Cell], of: dict[str, list[Looked]]) -> dict[str, str | None]:
    """Returns each method's point that is best without labels; None if all its points diverged.

    Args:
        points: of all methods.
        of: name → its runs, one per seed.
    """
    best: dict[str, str | None] = {}
    for method in dict.fromkeys(cell.method for cell in points):
        ranked = []
        for cell in points:
            runs = of[cell.name]
            agreement, loss = (
                _mean([getattr(one, key) for one in runs]) for key in ("agreement", "held_out_loss")
            )
            if cell.method == method and agreement is not None and loss is not None:
                ranked.append((-round(agreement, 9), loss, cell.name))
        best[method] = min(ranked)[2] if ranked else None
    return best


def show(record: Record, console: Console | None = None) -> None:
    """Prints a row for each point; what is chosen without labels is bold.

    Args:
        record: of this experiment.
        console: where to; the terminal when None.
    """
    data, summary = record.get("data", {}), records.summarise(record)
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1))
    table.add_column("method", no_wrap=True)
    for heading in (*data["grid"], "accuracy", "agrees", "loss", "diverged", ""):
        table.add_column(heading.replace("_", " "), justify="right", no_wrap=True)
    expert = summary[EXPERT]
    settings = [""] * len(data["grid"])
    table.add_row(
        method_label(EXPERT), *settings, number(expert["mean"], expert["std"]), style="dim"
    )
    for name, point in data["points"].items():
        own, stops = summary[name], data["diverged"][name]
        loss = _mean(data["final_loss"][name])
        is_chosen = name in data["chosen"].values()
        table.add_row(
            method_label(point["method"]),
            *(f"{point[key]:g}" for key in data["grid"]),
            number(own["mean"], own["std"]),
            number(_mean(data["agreement"][name])),
            "–" if loss is None else f"{loss:.3f}",
            f"{len(stops)} of {len(data['agreement'][name])}" if stops else "–",
            "chosen" if is_chosen else "",
            style="bold green" if is_chosen else "",
        )
    console = console or Console()
    console.print(table)
    console.print(
        "accuracy (%) on test images; how often it agrees with the experts (%) on validation "
        "images, by which a point is chosen; loss of the last round of adaptation",
        highlight=False,
    )


def _mean(values: Sequence[float | None]) -> float | None:
    """The mean over seeds; None if one is missing."""
    known = [value for value in values if value is not None]
    return fmean(known) if known and len(known) == len(values) else None


if __name__ == "__main__":
    sys.exit(run(main, Settings, None, prog="python -m experiments.sweep"))
