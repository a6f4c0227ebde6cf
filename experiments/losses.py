"""What the merged model is compared with the expert by: eight losses (the paper's Figure C).

    python -m experiments.losses                          the embedded world, 8 tasks, seed 0
    python -m experiments.losses --methods ce_joint kl_joint true_labels      some rows of it
    python -m experiments.losses --data DIR               your own image folders or npz packs
    python -m experiments.losses --model ViT-B-32 --checkpoints DIR --data DIR

Distances (L1, smooth L1, L2, cosine) act on logits, divergences (KL, JS) on probabilities; the
paper does not say. CE is SyMerge's own loss, on the class that the expert predicts; entropy needs
no expert. Each is run twice: coefficients alone, and coefficients with heads, at SyMerge's learning
rates. The row `true_labels` is no method: it adapts coefficients and heads to the true labels of
the test images, the upper bound that the paper draws dashed.

Expected: with coefficients alone distances do worse than CE, KL and JS; with heads all do well but
entropy, which falls. Own settings take 150 rounds of adaptation: about three minutes per seed on
two cores, experts from the cache.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from experiments import figures_bars, records
from experiments.ablating import (
    Job,
    chosen_rows,
    in_order,
    references,
    run_of,
    scores_of,
    with_fewer_rounds,
)
from experiments.adapting import schedule_of
from experiments.labels import method_label
from experiments.methods import Outcome, Run, Seed
from experiments.options import Options
from experiments.records import Record
from experiments.scoring import score
from experiments.vision_run import Scene, add, begin, describe, finish
from symerge_jax.adapt.labelled import symerge_with_labels
from symerge_jax.cli.errors import run

# Name in the record → objective of SyMerge, and how figures write it.
LOSSES = {
    "l1": ("l1", "L1"),
    "smooth_l1": ("smooth_l1", "smooth L1"),
    "l2": ("l2", "L2"),
    "cosine": ("cosine", "cosine"),
    "kl": ("kl", "KL"),
    "js": ("js", "JS"),
    "ce": ("self_label", "CE"),
    "entropy": ("entropy", "entropy"),
}
TRAINED = {"coefficients": "symerge_coefficients", "joint": "symerge"}
LABELLED = "true_labels"
ROWS = (
    "individual",
    "task_arithmetic",
    *(f"{loss}_{trained}" for trained in TRAINED for loss in LOSSES),
    LABELLED,
)

# Figure C has no numbers; two of its bars are elsewhere: CE in Table 5, and entropy on coefficients
# alone, which is AdaMerging with sequential updates (appendix A.1). ViT-B/32, 8 tasks.
PAPER = {"ce_coefficients": 84.6, "ce_joint": 90.1, "entropy_coefficients": 81.6}


@dataclass(frozen=True)
class Settings(Options):
    """Adapts with each loss, coefficients alone and with heads; see the module."""


def main(settings: Settings) -> int:
    """Runs the experiment; the last line printed is the path of the record."""
    settings = with_fewer_rounds(settings)
    rows = chosen_rows(settings.methods, ROWS)
    if settings.dry_run:
        return describe(settings, rows)
    with begin("losses", settings) as scene:
        learning = [row for row in rows if _parts(row) or row == LABELLED]
        outcomes = references(scene, rows)
        jobs = [job_of(scene, seed, row) for row in learning for seed in scene.seeds.values()]
        outcomes += scores_of(scene, jobs)
        add(scene, in_order(outcomes, rows))
        scene.record["notes"] += [f"{LABELLED} adapts to the labels of the test images"]
    return finish(scene, partial(draw, scene.record))


def _parts(row: str) -> tuple[str, str] | None:
    """`smooth_l1_joint` → smooth_l1, joint; None for rows without a loss."""
    loss, _, trained = row.rpartition("_")
    return (loss, trained) if loss in LOSSES and trained in TRAINED else None


def job_of(scene: Scene, seed: Seed, row: str) -> Job:
    """Returns the run of one row."""
    parts = _parts(row)
    if parts is None:
        return partial(labelled, scene, seed)
    loss, trained = parts
    constants = scene.constants._replace(objective=LOSSES[loss][0])
    return run_of(scene, seed, Run(TRAINED[trained], name=row), constants)


def labelled(scene: Scene, seed: Seed) -> Outcome:
    """Adapts coefficients and heads to the true labels of the test images, and scores."""
    model, constants, experts = scene.model, scene.constants, seed.experts
    inputs = [task.test.inputs for task in scene.tasks]
    schedule = schedule_of(Run("symerge"), [len(x) for x in inputs], constants, seed.number)
    name = f"{LABELLED}, seed {seed.number}"
    follow = scene.around.bars.follow(name, schedule.steps, schedule.batch_size)
    adapted = symerge_with_labels(
        model.encode, model.classify, model.pretrained, experts.task_vectors, experts.stacked,
        inputs, [task.test.labels for task in scene.tasks],
        classes=experts.classes,
        initial_coefficient=constants.initial,
        coefficient_rate=constants.rate,
        head_rate=constants.rate,
        seed=seed.number,
        schedule=schedule,
        on_chunk=lambda carry, losses: follow(losses),
    )  # fmt: skip
    encoders = [adapted.params] * len(inputs)
    scores = score(model, encoders, adapted.heads, experts.classes, scene.tasks)
    return Outcome(LABELLED, seed.number, False, scores, losses=adapted.losses)


def draw(record: Record, folder: Path) -> None:
    """Draws a pair of bars per loss, and the upper bound."""
    found = records.methods(record)
    losses = [loss for loss in LOSSES if any(f"{loss}_{way}" in found for way in TRAINED)]
    if not losses:
        return
    labels = {"coefficients": "coefficients alone", "joint": "coefficients and heads"}
    series, spread = {}, {}
    for way, label in labels.items():
        rows = [f"{loss}_{way}" for loss in losses]
        series[label], spread[label] = figures_bars.over_tasks(record, rows, "accuracy")
    figures_bars.grouped_bars(
        [LOSSES[loss][1] for loss in losses], series, folder / "losses.png",
        title="The loss between merged model and expert",
        colours=[figures_bars.ORANGE, figures_bars.BLUE],
        spread=spread,
        lines=_levels(record, (LABELLED, "task_arithmetic")),
    )  # fmt: skip


def _levels(record: Record, rows: Sequence[str]) -> dict[str, float | None]:
    means, _ = figures_bars.over_tasks(record, rows, "accuracy")
    names = {LABELLED: "both, to the true labels"}
    return {names.get(row, method_label(row)): mean for row, mean in zip(rows, means, strict=True)}


if __name__ == "__main__":
    sys.exit(run(main, Settings, None, prog="python -m experiments.losses"))
