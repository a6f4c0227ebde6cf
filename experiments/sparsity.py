"""Looks at how many merging coefficients become zero (the paper's Figures F and G).

    python -m experiments.sparsity                        the embedded world, seed 0
    python -m experiments.sparsity --seeds 0 1 2
    python -m experiments.sparsity --data DIR             your own image folders or npz packs
    python -m experiments.sparsity --model ViT-B-32 --checkpoints DIR --data DIR

SyMerge over coefficients alone and over coefficients and heads, both by experts' labels: heat maps
of the coefficients as used, clip(λ, 0, 1), with a row per tensor and a column per task, and the
share of entries below 1e-5.

In the paper coefficients alone have a tenth of the learning rate that they have beside heads, and
the rate is the size of a coefficient's steps towards zero. So coefficients alone are run at both
rates, the setting's own and the other one; between equal rates, the heads make the difference.
The paper does not say of how many entries it is a share. Its open_clip checkpoints have six tensors
of the text tower that no image passes through, whose coefficients stay where they start: for such
experts the share is given with them as well.

Expected (section D.4, `PAPER`): with heads, more coefficients are zero, and accuracy is higher.
Cost: three adaptations, about 70 s on two cores for the embedded world once experts are there.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from experiments import figures
from experiments.methods import Constants, Outcome, Run
from experiments.options import Options
from experiments.own_runs import refuse_methods
from experiments.vision_run import Scene, adapt, add, begin, describe, finish, fixed
from experiments.vision_start import Start
from symerge_jax.adapt.coefficients import as_matrix
from symerge_jax.checkpoints.clip import source_names
from symerge_jax.cli.errors import run
from symerge_jax.files import write_atomically

ALONE, WITH_HEADS = "symerge_coefficients", "symerge"
NEAR_ZERO = 1e-5
TEXT_ROWS = 6  # of open_clip's layout

# Section D.4: share of entries below 1e-5 and accuracy, both in percent.
PAPER = {
    "ViT-B-32": {ALONE: (37.2, 84.6), WITH_HEADS: (55.9, 90.1)},
    "ViT-L-14": {ALONE: (23.3, 91.5), WITH_HEADS: (55.0, 94.1)},
}


@dataclass(frozen=True)
class Settings(Options):
    """Counts merging coefficients that become zero; see the module."""


def main(settings: Settings) -> int:
    """Runs the experiment; the last line printed is the path of the record."""
    refuse_methods(settings, (ALONE, WITH_HEADS))
    if settings.dry_run:
        return describe(settings, ["individual", ALONE, f"{ALONE} (other rate)", WITH_HEADS])
    with begin("sparsity", settings) as scene:
        rates = rates_of(scene.constants)
        alone = [name for name in rates if name != WITH_HEADS]
        outcomes = adapt(
            scene,
            [*(Run(ALONE, name=name) for name in alone), Run(WITH_HEADS)],
            [
                *(scene.constants._replace(coefficient_rate=rates[name]) for name in alone),
                scene.constants,
            ],
        )
        add(scene, [*fixed(scene, ["individual"]), *outcomes])
        paths, names = rows_of(scene.start)
        found = {
            name: np.stack([matrix(one, paths) for one in outcomes if one.method == name])
            for name in rates
        }
        text_rows = TEXT_ROWS if has_text_rows(scene) else None
        scene.record["data"] = {
            "tensors": len(paths),
            **{
                name: {"coefficient_rate": rates[name], **counted(lam, text_rows)}
                for name, lam in found.items()
            },
        }
    return finish(scene, partial(draw, scene, names, found))


def rates_of(constants: Constants) -> dict[str, float]:
    """Returns a run's name → learning rate of its coefficients.

    Coefficients alone are there twice: at the setting's rate, under the plain name, and at the rate
    they have beside heads, or a tenth of it if that is the setting's own.
    """
    own, beside = constants.coefficient_rate, constants.rate
    other = beside / 10 if own == beside else beside
    return {ALONE: own, f"{ALONE}_rate_{other:g}": other, WITH_HEADS: beside}


def has_text_rows(scene: Scene) -> bool:
    """Whether the experts' checkpoints have open_clip's tensors that no image passes through."""
    return scene.record["setting"] == "checkpoints" and scene.start.vision.fused_qkv


def rows_of(start: Start) -> tuple[list[str], list[str]]:
    """Returns paths of the image tower's leaves and their names in the checkpoint, in its order."""
    layout = "open_clip" if start.vision.fused_qkv else "hugging_face"
    names = source_names({"vision": start.model.pretrained}, layout)
    return [path.removeprefix("vision/") for _, path in names], [name for name, _ in names]


def matrix(outcome: Outcome, paths: Sequence[str]) -> np.ndarray:
    """Returns the coefficients as learned, not clipped, [tensor, task]."""
    assert outcome.adapted is not None
    return as_matrix(outcome.adapted.coefficients, paths)


def counted(coefficients: np.ndarray, text_rows: int | None) -> dict[str, Any]:
    """Returns shares of the clipped coefficients, in percent, a list over seeds.

    Args:
        coefficients: λ [seed, tensor, task], not clipped.
        text_rows: tensors that stay where they start, to be counted in as well.
    """
    used = np.clip(coefficients, 0.0, 1.0)
    shares: dict[str, Any] = {
        "near_zero": [100 * float(np.mean(one < NEAR_ZERO)) for one in used],
        "one": [100 * float(np.mean(one == 1.0)) for one in used],
        "near_zero_per_task": (100 * np.mean(used < NEAR_ZERO, axis=(0, 1))).tolist(),
    }
    if text_rows is not None:
        tensors = used.shape[1]
        whole = tensors / (tensors + text_rows)
        shares["near_zero_with_text_tensors"] = [whole * share for share in shares["near_zero"]]
    return shares


def draw(scene: Scene, names: Sequence[str], found: dict[str, np.ndarray], folder: Path) -> None:
    """Draws the first seed's coefficients, and stores them as learned, [tensor, task]."""
    tasks = [task.name for task in scene.tasks]
    for name, lam in found.items():
        figures.coefficient_heatmap(lam[0], names, tasks, folder / f"{name}.png")
    buffer = io.BytesIO()
    first = {name: lam[0] for name, lam in found.items()}
    np.savez_compressed(
        buffer, allow_pickle=False, tensors=np.array(names), tasks=np.array(tasks), **first
    )
    write_atomically(folder / "coefficients.npz", buffer.getvalue())


if __name__ == "__main__":
    sys.exit(run(main, Settings, None, prog="python -m experiments.sparsity"))
