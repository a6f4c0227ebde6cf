"""One optimiser step per task, or one for all: sequential and joint updates (appendix A.1).

    python -m experiments.sequential                      the embedded world, 8 tasks, seed 0
    python -m experiments.sequential --data DIR           your own image folders or npz packs
    python -m experiments.sequential --model ViT-B-32 --checkpoints DIR --data DIR

AdaMerging takes one step per iteration on the sum of all tasks' losses, on two mini-batches of half
the size for each task; SyMerge takes one step per task. Here each is run both ways, with the same
images per task and the same learning rate, so the joint runs take fewer steps: one per iteration
instead of one per task and iteration.

Expected: sequential is better, 81.6 against 80.1 for AdaMerging in the paper. About two minutes per
seed on two cores, experts from the cache.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from experiments import figures_bars, records
from experiments.ablating import Job, chosen_rows, in_order, run_of, scores_of
from experiments.adapting import run_method
from experiments.labels import method_label
from experiments.methods import Constants, Outcome, Run, Seed
from experiments.options import Options
from experiments.records import Record
from experiments.scoring import score
from experiments.vision_run import Scene, add, begin, describe, finish, fixed
from symerge_jax.adapt import schedule as schedules
from symerge_jax.adapt.schedule import Schedule
from symerge_jax.cli.errors import run

JOINTLY = "symerge_joint"
# Method → its rows with joint and with sequential updates.
PAIRS = {
    "adamerging": ("adamerging", "adamerging_sequential"),
    "symerge": (JOINTLY, "symerge"),
}
ROWS = ("individual", *(row for pair in PAIRS.values() for row in pair))

# Appendix A.1, ViT-B/32, 8 tasks; SyMerge's gain is not given as a number, its own is Table 1's.
PAPER = {"adamerging": 80.1, "adamerging_sequential": 81.6, "symerge": 90.1}


@dataclass(frozen=True)
class Settings(Options):
    """Runs AdaMerging and SyMerge with joint and with sequential updates; see the module."""


def main(settings: Settings) -> int:
    """Runs the experiment; the last line printed is the path of the record."""
    rows = chosen_rows(settings.methods, ROWS)
    if settings.dry_run:
        return describe(settings, rows)
    with begin("sequential", settings) as scene:
        outcomes = fixed(scene, ["individual"])
        learning = [row for row in rows if row != records.EXPERT]
        jobs = [job_of(scene, seed, row) for row in learning for seed in scene.seeds.values()]
        outcomes += scores_of(scene, jobs)
        add(scene, in_order(outcomes, rows))
    return finish(scene, partial(draw, scene.record))


def job_of(scene: Scene, seed: Seed, row: str) -> Job:
    """Returns the run of one row."""
    return partial(jointly, scene, seed) if row == JOINTLY else run_of(scene, seed, Run(row))


def joint_schedule(sizes: Sequence[int], constants: Constants, seed: int) -> Schedule:
    """Returns AdaMerging's kind of schedule: one step per iteration, half batches, two per task."""
    return schedules.joint(
        sizes,
        iterations=constants.iterations,
        batch_size=max(1, constants.batch_size // 2),
        batches=2,
        seed=seed,
    )


def jointly(scene: Scene, seed: Seed) -> Outcome:
    """Runs SyMerge with one step per iteration on all tasks' gradients together, and scores."""
    model, experts, constants = scene.model, seed.experts, scene.constants
    inputs = [task.test.inputs for task in scene.tasks]
    schedule = joint_schedule([len(x) for x in inputs], constants, seed.number)
    name = f"{JOINTLY}, seed {seed.number}"
    follow = scene.around.bars.follow(name, schedule.steps, schedule.batch_size)
    adapted = run_method(
        model, seed, inputs, seed.labels, Run("symerge"), constants, schedule,
        on_chunk=lambda carry, losses: follow(losses),
    )  # fmt: skip
    encoders = [adapted.params] * len(inputs)
    scores = score(model, encoders, adapted.heads, experts.classes, scene.tasks)
    return Outcome(JOINTLY, seed.number, False, scores, losses=adapted.losses)


def draw(record: Record, folder: Path) -> None:
    """Draws both ways of each method."""
    found = records.methods(record)
    methods = [method for method, pair in PAIRS.items() if set(pair) & set(found)]
    if not methods:
        return
    series, spread = {}, {}
    for i, label in enumerate(("joint: one step for all tasks", "sequential: a step per task")):
        rows = [PAIRS[method][i] for method in methods]
        series[label], spread[label] = figures_bars.over_tasks(record, rows, "accuracy")
    expert, _ = figures_bars.over_tasks(record, [records.EXPERT], "accuracy")
    figures_bars.grouped_bars(
        [method_label(method) for method in methods], series, folder / "sequential.png",
        title="Joint and sequential updates, equally many images",
        colours=[figures_bars.BEFORE, figures_bars.BLUE],
        spread=spread,
        lines={"Individual experts": expert[0]},
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(run(main, Settings, None, prog="python -m experiments.sequential"))
