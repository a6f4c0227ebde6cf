"""Proposition 1, put to the test: is a merge of two at most as bad as the mean of the two?

    python -m experiments.proposition                     the embedded world, its 20 tasks
    python -m experiments.proposition --model ViT-B-32 --checkpoints DIR --data DIR

Section 3.2 and appendix C. With a loss that is convex in the outputs, and encoders between which
outputs are linear in the weights (cross-task linearity), the merge of i and j obeys

    L_j(½ θ_i + ½ θ_j)  ≤  ½ L_j(θ_i) + ½ L_j(θ_j).                                            (1)

Cross-entropy is convex; linearity is the assumption that may fail. For every ordered pair both
sides of (1) are worked out on j's test images under j's classifier, and the right side that holds
without synergy, ½ L_j(θ₀) + ½ L_j(θ_j) of equation (2). A pair has synergy where
L_j(θ_i) < L_j(θ₀): there (1) promises less loss than (2). Test labels are read to score; nothing
is adapted, so --iterations has no effect.

Expected: (1) for nearly all pairs. The paper proves it and prints no numbers.

Cost: that of `experiments.cross_task`, whose measurements it takes from the cache.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from experiments import figures_pairs as figures
from experiments.options import Options, check
from experiments.own_runs import refuse_methods
from experiments.pairs import ROWS, Pairs, add_rows, measure
from experiments.vision_run import begin, describe, finish
from symerge_jax.cli.errors import run
from symerge_jax.cli.progress import say


@dataclass(frozen=True)
class Settings(Options):
    """Compares the loss of each merge of two with the bound of proposition 1; see the module."""

    task_count: Literal[8, 14, 20] = 20
    """How many tasks, if none is named."""


class Sides(NamedTuple):
    """The inequality for all ordered pairs i ≠ j, row by row; losses in nats, [pair].

    Attributes:
        left: L_j of the merge.
        right: ½ L_j(θ_i) + ½ L_j(θ_j), equation (1).
        without: ½ L_j(θ₀) + ½ L_j(θ_j), equation (2).
        synergy: bool, whether L_j(θ_i) < L_j(θ₀).
    """

    left: np.ndarray
    right: np.ndarray
    without: np.ndarray
    synergy: np.ndarray


def main(settings: Settings) -> int:
    """Runs the experiment; the last line printed is the path of the record."""
    check(settings)
    refuse_methods(settings, ROWS)
    if settings.dry_run:
        return describe(settings, ROWS)
    with begin("proposition", settings) as scene:
        found = measure(scene)
        add_rows(scene, found)
        every = {seed: sides(pairs) for seed, pairs in found.items()}
        together = Sides(*(np.concatenate(each) for each in zip(*every.values(), strict=True)))
        scene.record["data"] = {
            "tasks": [task.name for task in scene.tasks],
            "pairs": "row by row of [encoder i, task j], i ≠ j",
            "seeds": {str(seed): stored(one) for seed, one in every.items()},
            "shares": shares(together),
        }
        say(sentence(together))
    return finish(scene, lambda folder: draw(together, folder))


def sides(pairs: Pairs) -> Sides:
    """Returns both sides for every ordered pair."""
    apart = ~np.eye(len(pairs.cross), dtype=bool)
    own = np.diagonal(pairs.cross_loss)[None]
    without = np.broadcast_to((pairs.pretrained_loss[None] + own) / 2, apart.shape)
    return Sides(
        pairs.merged_loss[apart],
        ((pairs.cross_loss + own) / 2)[apart],
        without[apart],
        (pairs.cross_loss < pairs.pretrained_loss[None])[apart],
    )


def shares(found: Sides) -> dict[str, float | int | None]:
    """Returns of how many pairs the inequalities hold, in percent; null of no pair at all."""
    with_synergy = found.synergy

    def percent(holds: np.ndarray) -> float | None:
        return 100 * float(holds.mean()) if holds.size else None

    bound = found.left <= found.right
    return {
        "pairs": int(bound.size),
        "holds": percent(bound),
        "holds_without_synergy": percent(found.left <= found.without),
        "synergy": percent(with_synergy),
        "holds_where_synergy": percent(bound[with_synergy]),
    }


def stored(found: Sides) -> dict[str, Any]:
    """Returns the pairs of one seed as the record stores them."""
    return {**{name: side.tolist() for name, side in found._asdict().items()},
            "shares": shares(found)}  # fmt: skip


def sentence(found: Sides) -> str:
    """Says how often the bound holds, and the largest excess."""
    known = shares(found)
    excess = max(0.0, float((found.left - found.right).max()))
    return (
        f"the bound of proposition 1 holds for {known['holds']:.1f} % of {known['pairs']} pairs "
        f"(largest excess {excess:.3f} nats); {known['synergy']:.1f} % of pairs have synergy"
    )


def draw(found: Sides, folder: Path) -> None:
    """Draws the left sides over the right ones."""
    known = shares(found)
    title = f"the merge's loss is within the bound for {known['holds']:.1f} % of pairs"
    figures.bound(found.right, found.left, found.synergy, title, folder / "proposition.png")


if __name__ == "__main__":
    sys.exit(run(main, Settings, None, prog="python -m experiments.proposition"))
