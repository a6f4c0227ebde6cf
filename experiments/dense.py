"""Merges networks for dense prediction: segmentation, depth and normals (the paper's Table 2).

    python -m experiments.dense                        the embedded world of rooms, seed 0
    python -m experiments.dense --seeds 0 1 2          with standard deviations
    python -m experiments.dense --data DIR             NYUv2, or scenes of your own
    python -m experiments.dense --model resnet50 --checkpoints DIR --data DIR
                                                       ResNet-50 and experts that are read

Without options a small ResNet that knows furniture is fine-tuned three times on generated rooms.
All else is one code path: task vectors of weights and running statistics, merging, adaptation on
the unlabelled test images, evaluation. Scales of training-free methods are chosen on validation
scenes, by the mean over tasks of each main metric relative to the expert's. Methods that minimise
entropy refuse depths and normals. Rows that end in a way to treat running statistics of batch
normalisation are the ablation of it: see `symerge_jax.adapt.dense`.

No public code or experts of Table 2 exist: `python -m experiments.finetune --model resnet50`
trains the latter. Expected there: mIoU 49.8, pixel accuracy 73.1, absolute depth error 45.3 and
relative 18.8 (times 100), angle 26.2 degrees; experts 52.0, 74.2, 41.5, 17.3, 24.2. No record of
ours holds that yet. Cost of the embedded world on two cores: base and experts of one seed take
about six minutes, the table ten more.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import jax
import numpy as np

from experiments import figures_dense, records
from experiments.dense_rows import ABLATION, dense_row
from experiments.dense_start import (
    DenseOptions,
    adjusted,
    chosen_tasks,
    expected,
    make,
    said,
    setting_of,
)
from experiments.forecasting import forecast, lines
from experiments.methods import (
    ENTROPY,
    KNOWN,
    Outcome,
    Run,
    base_of,
    check_method,
    is_adaptive,
    part_of,
)
from experiments.options import check
from experiments.scene import Scene, adapt, describe, finish, fixed, staged
from symerge_jax.adapt.dense import AdaptedDense
from symerge_jax.checkpoints.decoders import Decoder
from symerge_jax.checkpoints.export import write_model
from symerge_jax.cli.errors import run
from symerge_jax.errors import BadInput
from symerge_jax.models.dense_heads import unstack_decoders
from symerge_jax.parallel import use_devices
from symerge_jax.verify import write_reference

# Table 2, depth errors in metres and as a ratio.
METRICS = ("miou", "pixel_accuracy", "depth_abs_error", "depth_rel_error", "normal_mean_angle")
PAPER = {
    "individual": (52.0, 74.2, 0.415, 0.173, 24.2),
    "weight_average": (36.6, 64.0, 0.550, 0.232, 30.0),
    "task_arithmetic": (31.6, 60.3, 0.567, 0.240, 30.6),
    "ties": (39.9, 62.7, 0.613, 0.273, 36.2),
    "magmax": (24.7, 54.7, 0.603, 0.239, 30.3),
    "lines": (36.2, 64.0, 0.542, 0.224, 29.1),
    "emr": (41.5, 67.2, 0.486, 0.194, 26.5),
    "surgery_on_task_arithmetic": (43.3, 67.4, 0.553, 0.247, 34.7),
    "probsurgery_on_task_arithmetic": (43.6, 67.6, 0.526, 0.223, 36.7),
    "symerge": (49.8, 73.1, 0.453, 0.188, 26.2),
}
DEFAULT = (
    "individual",
    "weight_average",
    "task_arithmetic",
    "ties",
    "magmax",
    "lines",
    "tsv_m",
    "iso_c",
    "emr",
    "surgery_on_task_arithmetic",
    "probsurgery_on_task_arithmetic",
    "symerge_coefficients",
    "symerge_head",
    "symerge",
    *ABLATION,
)
# What needs a transformer, a head before fine-tuning, or statistics of one vector per input.
NOT_HERE = ("pretrained", "lot", "fisher", "regmean", "wemoe", "slerp")

Settings = DenseOptions


def main(settings: DenseOptions) -> int:
    """Runs the experiment; the last line printed is the path of the record."""
    check(settings)
    if settings.parallel == "data":
        raise BadInput(
            "--parallel data: batch statistics of scenes are those of the whole mini-batch, which "
            "devices do not share; leave it at runs"
        )
    methods, names, constants = chosen_methods(settings), chosen_tasks(settings), adjusted(settings)
    if settings.dry_run:
        code = describe(settings, constants, names, methods)
        one, tests = expected(settings, names, constants)
        found = forecast(one, constants, methods, settings, tests, use_devices(settings.devices))
        print("\n".join(lines(found)))
        return code
    setting = setting_of(settings)
    moving = [m for m in methods if is_learned(m) and moves_statistics(m, settings)]
    build = partial(make, settings, names, constants, moving)
    with staged("dense", setting, settings, constants, build, said=said) as scene:
        learning = [method for method in methods if is_learned(method)]
        outcomes = fixed(scene, [method for method in methods if method not in learning])
        outcomes += adapt(scene, [Run(method) for method in learning], run_one=dense_row)
        collect(scene, methods, outcomes)
    return finish(scene, partial(draw, scene, methods, outcomes))


def is_learned(method: str) -> bool:
    """Whether a row of the table adapts to test images."""
    return method in ABLATION or is_adaptive(method)


def moves_statistics(method: str, settings: DenseOptions) -> bool:
    """Whether a row that learns runs in the training mode of batch normalisation."""
    if base_of(method) is not None:
        return False
    own = ABLATION[method][1] if method in ABLATION else settings.batch_norm
    return own == "recalibrate"


def chosen_methods(settings: DenseOptions) -> list[str]:
    """Returns the methods in table order; the experts are always there, to compare with.

    Raises:
        BadInput: an unknown method, or one that these tasks have no use for.
    """
    # One row of the ablation is SyMerge itself.
    same = ("symerge", settings.batch_norm)
    default = [name for name in DEFAULT if ABLATION.get(name) != same]
    names = [name.replace("-", "_") for name in settings.methods or default]
    if names == ["all"]:
        rest = (*NOT_HERE, *ENTROPY, "surgery", "probsurgery")
        names = [name for name in KNOWN if name not in rest]
        names += [name for name in default if name not in names]
    for name in names:
        if name in ABLATION:
            continue
        if name in NOT_HERE or part_of(name) is not None:
            raise BadInput(f"--methods {name}: not available for scenes; leave it out")
        check_method(name, 0)
        if name in ENTROPY or base_of(name) == "adamerging":
            raise BadInput(
                f"--methods {name}: depths and normals have no entropy to minimise; leave it out, "
                "or put the correction on another base, such as surgery_on_task_arithmetic"
            )
    order = [*DEFAULT, *KNOWN]
    return sorted({*names, "individual"}, key=lambda name: _place(name, order))


def _place(name: str, order: Sequence[str]) -> int:
    return order.index(name) if name in order else len(order)


def collect(scene: Scene, methods: Sequence[str], outcomes: Sequence[Outcome]) -> None:
    """Adds every metric of every task to the record, in table order."""
    record = scene.record
    record["notes"] += [f"seed {one.seed}: {one.note}" for one in outcomes if one.note]
    for method in methods:
        for one in (one for one in outcomes if one.method == method):
            record.setdefault("stored_encoders", {}).setdefault(method, one.stored)
            for task, scored in zip(scene.tasks, one.scores, strict=True):
                for metric, value in scored.metrics.items():
                    records.add_result(
                        record, method=method, seed=one.seed, task=task.name, metric=metric,
                        value=value, n=len(task.test.labels),
                    )  # fmt: skip


def draw(scene: Scene, methods: Sequence[str], outcomes: Sequence[Outcome], folder: Path) -> None:
    """Draws the table and some scenes, and stores the first seed's SyMerge model."""
    figures_dense.metric_panels(scene.record, folder / "metrics.png")
    first = scene.settings.seeds[0]
    shown = {one.method: one.scores for one in outcomes if one.seed == first}
    rows = [method for method in methods if method in shown]
    for k, task in enumerate(scene.tasks):
        maps = {method: shown[method][k].sample for method in rows}
        figures_dense.side_by_side(task, maps, folder / f"{task.name}.png")
    for one in outcomes:
        if one.method == "symerge" and one.seed == first and one.dense is not None:
            store(scene, one.dense, folder)


def store(scene: Scene, adapted: AdaptedDense, folder: Path) -> None:
    """Writes a model with its decoders."""
    tasks, config = scene.tasks, scene.start.decoders
    assert config is not None
    own = unstack_decoders(adapted.decoders, [len(task.classes) for task in tasks])
    heads = {
        task.name: Decoder(
            jax.tree.map(np.asarray, variables),
            config,
            task.classes if task.name == "segmentation" else None,
        )
        for task, variables in zip(tasks, own, strict=True)
    }
    write_model(
        folder / "model",
        jax.tree.map(np.asarray, adapted.encoder),
        like=scene.start.like,
        heads=heads,
        card={"method": "symerge", "kind": "shared", "tasks": [task.name for task in tasks]},
        finish=write_reference,
    )


if __name__ == "__main__":
    sys.exit(run(main, Settings, None, prog="python -m experiments.dense"))
