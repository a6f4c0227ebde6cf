"""Who should SyMerge learn from? Supervisors between pre-trained model and expert (Figure 6a).

    python -m experiments.supervisor                      the embedded world, 8 tasks, seed 0
    python -m experiments.supervisor --strengths 0.5 0.8 1
    python -m experiments.supervisor --data DIR           your own image folders or npz packs
    python -m experiments.supervisor --model ViT-B-32 --checkpoints DIR --data DIR

The expert is replaced by θ₀ + c τ_k with the zero-shot head, c from 0 (the pre-trained model) to 1
(the expert); what is merged, and from where, stays. Where experts were fine-tuned with their heads,
the supervisor's head lies between the first and the fine-tuned one in the same way, so that c = 1
is the expert there too. `supervisor_accuracy` is what the supervisor itself reaches.

Expected: rises with c; the paper finds 90.2 at 0.8 and 90.1 at 1. Own settings take 150 rounds of
adaptation: about two minutes per seed on two cores, experts from the cache.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments import figures_bars, records
from experiments.ablating import run_of, scores_of, with_fewer_rounds
from experiments.expert_outputs import label
from experiments.experts import Experts
from experiments.methods import Run, Seed
from experiments.options import Options, check
from experiments.own_runs import refuse_methods
from experiments.records import Record, phase
from experiments.scoring import score
from experiments.vision_run import Scene, add, begin, describe, finish, fixed
from symerge_jax.cli.errors import run
from symerge_jax.errors import BadInput
from symerge_jax.models.heads import Head, stack_heads
from symerge_jax.notation import Params
from symerge_jax.task_vectors import add as moved_by

GRID = tuple(round(0.1 * i, 1) for i in range(11))
QUICK = (0.0, 0.5, 1.0)

# Figure 6a and its text: ViT-B/32, 8 tasks.
PAPER = {"supervisor_0.8": 90.2, "supervisor_1": 90.1}

_moved = jax.jit(moved_by)


@dataclass(frozen=True)
class Settings(Options):
    """Adapts to supervisors between the pre-trained model and the expert; see the module."""

    strengths: tuple[float, ...] | None = None
    """c of the supervisors, from 0 to 1; 0, 0.1, …, 1 otherwise."""


class Weakened(Sequence[Params]):
    """The supervisors θ₀ + c τ_k, each made when it is asked for."""

    def __init__(self, experts: Experts, pretrained: Params, strength: float) -> None:
        """Makes nothing yet."""
        self._experts, self._pretrained, self._strength = experts, pretrained, strength

    def __len__(self) -> int:
        """The number of tasks."""
        return len(self._experts.heads)

    def __getitem__(self, k: Any) -> Params:
        """Returns one task's supervisor; at c = 1 the expert as it is, without rounding."""
        if self._strength == 1:
            return self._experts.params[k]
        own = jax.tree.map(lambda tau: tau[k], self._experts.task_vectors)
        return _moved(self._pretrained, own, scale=self._strength)

    def __iter__(self) -> Iterator[Params]:
        """Makes them one after the other."""
        return (self[k] for k in range(len(self)))


def main(settings: Settings) -> int:
    """Runs the experiment; the last line printed is the path of the record."""
    settings = with_fewer_rounds(settings)
    check(settings)
    refuse_methods(settings, ("symerge",))
    strengths = chosen_strengths(settings)
    names = [name_of(c) for c in strengths]
    if settings.dry_run:
        return describe(settings, ["individual", *names])
    with begin("supervisor", settings) as scene:
        teachers = {
            (name, number): weakened(seed.experts, scene.model.pretrained, c)
            for c, name in zip(strengths, names, strict=True)
            for number, seed in scene.seeds.items()
        }
        with phase(scene.record, "supervisors"):
            labelled = {
                (name, number): scene.seeds[number]._replace(
                    labels=label(scene.model, teacher, scene.tasks, scene.around.cache)
                )
                for (name, number), teacher in teachers.items()
            }
        jobs = [
            run_of(scene, seed, Run("symerge", name=name)) for (name, _), seed in labelled.items()
        ]
        add(scene, [*fixed(scene, ["individual"]), *scores_of(scene, jobs)])
        with phase(scene.record, "supervisors"):
            for (name, number), teacher in teachers.items():
                add_supervisor(scene, name, scene.seeds[number], teacher)
        scene.record["data"] = {"strength": list(strengths)}
    return finish(scene, partial(draw, scene.record))


def chosen_strengths(settings: Settings) -> tuple[float, ...]:
    """Returns c of the supervisors, ascending.

    Raises:
        BadInput: one outside 0 to 1.
    """
    if settings.strengths is None:
        return QUICK if settings.quick else GRID
    for c in settings.strengths:
        if not 0 <= c <= 1:
            raise BadInput(f"--strengths must be numbers from 0 to 1, got {c:g}")
    return tuple(sorted(set(settings.strengths)))


def name_of(strength: float) -> str:
    """`0.8` → `supervisor_0.8`."""
    return f"supervisor_{strength:g}"


def weakened(experts: Experts, pretrained: Params, strength: float) -> Experts:
    """Returns supervisors in the experts' place; τ, which is merged, stays theirs.

    Args:
        experts: of one seed.
        pretrained: θ₀.
        strength: c, from 0 for θ₀ with the first heads to 1 for the experts.
    """
    heads = [
        between(first, own, strength)
        for first, own in zip(experts.first_heads, experts.heads, strict=True)
    ]
    stacked, classes = stack_heads(heads)
    params = Weakened(experts, pretrained, strength)
    return experts._replace(params=params, heads=heads, stacked=stacked, classes=classes)


def between(first: Head, own: Head, strength: float) -> Head:
    """Returns first + c (own − first); exactly `own` where they are equal, or c is 1."""
    if strength == 1:
        return own
    return {name: leaf + strength * (own[name] - leaf) for name, leaf in first.items()}


def add_supervisor(scene: Scene, name: str, seed: Seed, teacher: Experts) -> None:
    """Adds what the supervisors themselves reach on the test images."""
    scores = score(scene.model, teacher.params, teacher.stacked, teacher.classes, scene.tasks)
    for task, scored in zip(scene.tasks, scores, strict=True):
        records.add_result(
            scene.record, method=name, seed=seed.number, task=task.name,
            metric="supervisor_accuracy", value=scored.accuracy, n=len(scored.correct),
        )  # fmt: skip


def draw(record: Record, folder: Path) -> None:
    """Draws the accuracy after adaptation, and the supervisors' own, against c."""
    strengths = record.get("data", {})["strength"]
    rows = [name_of(c) for c in strengths]
    after, spread = figures_bars.over_tasks(record, rows, "accuracy")
    before, other = figures_bars.over_tasks(record, rows, "supervisor_accuracy")
    best = strengths[int(np.argmax([-1 if value is None else value for value in after]))]
    figures_bars.curves(
        strengths, {"SyMerge with this supervisor": after, "the supervisor itself": before},
        folder / "supervisor.png",
        title=f"SyMerge learns best from the supervisor at c = {best:g}",
        xlabel="c of the supervisor: 0 is the pre-trained model, 1 the expert",
        colours=[figures_bars.AFTER, figures_bars.BEFORE],
        spread={"SyMerge with this supervisor": spread, "the supervisor itself": other},
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(run(main, Settings, None, prog="python -m experiments.supervisor"))
