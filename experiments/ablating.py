"""What ablations share: which rows they make, and many runs of which only the scores are kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar

from experiments.adaptive import adaptive
from experiments.methods import Constants, Outcome, Run, Seed
from experiments.options import Options
from experiments.records import EXPERT, phase
from experiments.scene import Scene, fixed
from experiments.starts import start_row
from experiments.tasks.task import check_known
from experiments.vision_start import setting_of
from symerge_jax.parallel import run_jobs

Job = Callable[[], Outcome]
S = TypeVar("S", bound=Options)

# Half of what tables of methods take: it costs SyMerge about half a point (experiments/LOG.md).
ROUNDS = 150


def with_fewer_rounds(settings: S) -> S:
    """Returns settings with `ROUNDS`, for experiments that adapt a dozen times or more.

    What was asked for stays, and so do the paper's settings for its experts.
    """
    if settings.quick or settings.iterations is not None or setting_of(settings) == "checkpoints":
        return settings
    return replace(settings, iterations=ROUNDS)


def chosen_rows(asked: Sequence[str] | None, known: Sequence[str]) -> list[str]:
    """Returns the rows of a table that `--methods` asks for, in the table's order.

    Args:
        asked: names, hyphens for underscores allowed; None or "all" for all rows.
        known: all rows. The experts' row, if there is one, is always made: others are measured by
            it.

    Raises:
        BadInput: a name that is no row.
    """
    names = [name.replace("-", "_") for name in asked or ("all",)]
    if names == ["all"]:
        return list(known)
    for name in names:
        check_known(name, known, "method")
    return [name for name in known if name in {*names, EXPERT}]


def references(scene: Scene, rows: Sequence[str]) -> list[Outcome]:
    """Returns the experts, and the merged model that adaptation starts from, where they are rows.

    That model is Task Arithmetic with the initial coefficient as its scale.
    """
    outcomes = fixed(scene, [row for row in rows if row == EXPERT])
    if "task_arithmetic" in rows:
        initial = scene.constants.initial
        outcomes += [
            start_row(scene.model, seed, scene.tasks, initial) for seed in scene.seeds.values()
        ]
    return outcomes


def in_order(outcomes: Sequence[Outcome], rows: Sequence[str]) -> list[Outcome]:
    """Returns outcomes as the table has them: by row, then as they came."""
    return sorted(outcomes, key=lambda one: rows.index(one.method))


def run_of(scene: Scene, seed: Seed, run: Run, constants: Constants | None = None) -> Job:
    """Returns the job of one adaptive method under one seed."""
    own = scene.constants if constants is None else constants
    return partial(adaptive, scene.model, seed, scene.tasks, run, own, scene.around)


def scores_of(scene: Scene, jobs: Sequence[Job]) -> list[Outcome]:
    """Runs jobs on the devices; of what they adapted the scores are kept.

    A dozen adapted models, some with blocks of each task's own, would not fit beside each other.
    """
    with phase(scene.record, "adaptation"):
        return run_jobs([partial(_without_model, job) for job in jobs], scene.devices)


def _without_model(job: Job) -> Outcome:
    return job()._replace(adapted=None)
