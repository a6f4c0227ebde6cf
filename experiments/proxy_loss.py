"""Compares two losses that need no labels with the one that does (the paper's Figure 4, Table C).

    python -m experiments.proxy_loss                      the embedded world, seed 0
    python -m experiments.proxy_loss --seeds 0 1 2
    python -m experiments.proxy_loss --data DIR           your own image folders or npz packs
    python -m experiments.proxy_loss --model ViT-B-32 --checkpoints DIR --data DIR

For each test image: g, the cross-entropy to its true class; e, the entropy of the prediction, which
AdaMerging makes small; s, the cross-entropy to the class that the expert predicts, which SyMerge
makes small. What is compared is Spearman's rank correlation over a task's test images, ρ(e, g) and
ρ(s, g): before adaptation (Task Arithmetic at the initial coefficient) and after adaptation by that
very loss. The paper does not say what its entropy run trains, so there are two: coefficients only
(`adamerging`), coefficients and heads (`entropy_joint`, SyMerge's run with another objective).

True classes are read after adaptation, in `true_label_loss` and in scoring.

Expected (Table C, `PAPER`): ρ(e, g) falls, for Cars from 0.72 to −0.47; ρ(s, g) stays above 0.8.
Cost: three adaptations, about 70 s on two cores for the embedded world once experts are there.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from scipy import special, stats

from experiments import figures, records
from experiments.experts import Model
from experiments.methods import Run, Seed
from experiments.options import Options
from experiments.own_runs import refuse_methods
from experiments.records import Record
from experiments.scoring import logits_on, padded
from experiments.starts import merged_start, start_row
from experiments.tasks.task import Task
from experiments.vision_run import Scene, adapt, add, begin, describe, finish, fixed
from symerge_jax.cli.errors import run
from symerge_jax.models.heads import Head
from symerge_jax.notation import Params
from symerge_jax.parallel import run_jobs

METHODS = ("individual", "task_arithmetic", "adamerging", "entropy_joint", "symerge")
PROXIES = ("entropy", "self_label")
# proxy → which models its correlation is shown for, and how the picture calls them
SHOWN = {
    "entropy": {
        "task_arithmetic": "before",
        "adamerging": "after, coefficients only",
        "entropy_joint": "after, coefficients and heads",
    },
    "self_label": {"task_arithmetic": "before", "symerge": "after, coefficients and heads"},
}
TITLES = {
    "entropy": "entropy of the prediction",
    "self_label": "cross-entropy to the expert's class",
}

# Table C: SUN397, Cars, RESISC45, EuroSAT, SVHN, GTSRB, MNIST, DTD. Its caption names a ViT-B/16
# block as well, which is not there.
PAPER = {
    "ViT-B-32": {
        "entropy": {
            "before": (0.66, 0.72, 0.80, 0.86, 0.92, 0.92, 1.00, 0.56),
            "after": (0.32, -0.47, 0.79, 0.94, 0.83, 0.41, 0.96, 0.47),
        },
        "self_label": {
            "before": (0.80, 0.86, 0.97, 1.00, 0.98, 0.99, 1.00, 0.84),
            "after": (0.82, 0.88, 0.99, 1.00, 0.99, 1.00, 1.00, 0.88),
        },
    },
    "ViT-L-14": {
        "entropy": {
            "before": (0.85, 0.93, 0.95, 0.98, 0.96, 0.96, 1.00, 0.79),
            "after": (0.63, 0.76, 0.94, 0.81, 0.79, 0.95, 0.82, 0.83),
        },
        "self_label": {
            "before": (0.87, 0.96, 0.98, 1.00, 0.98, 1.00, 1.00, 0.89),
            "after": (0.89, 0.97, 1.00, 1.00, 0.99, 1.00, 1.00, 0.91),
        },
    },
}


class Classifier(NamedTuple):
    """A model of all tasks: task → its encoder, and the stacked heads."""

    encoder: Callable[[int], Params]
    heads: Head


@dataclass(frozen=True)
class Settings(Options):
    """Compares entropy and experts' labels as proxies of the true loss; see the module."""


def main(settings: Settings) -> int:
    """Runs the experiment; the last line printed is the path of the record."""
    refuse_methods(settings, METHODS)
    if settings.dry_run:
        return describe(settings, METHODS)
    with begin("proxy_loss", settings) as scene:
        constants = scene.constants
        outcomes = fixed(scene, ["individual"])
        starts = [
            start_row(scene.model, seed, scene.tasks, constants.initial)
            for seed in scene.seeds.values()
        ]
        learned = adapt(
            scene,
            [Run("adamerging"), Run("symerge", name="entropy_joint"), Run("symerge")],
            [constants, constants._replace(objective="entropy"), constants],
        )
        add(scene, [*outcomes, *starts, *learned])
        models = {
            ("task_arithmetic", number): starting_model(scene, seed)
            for number, seed in scene.seeds.items()
        }
        for one in learned:
            assert one.adapted is not None
            models[one.method, one.seed] = Classifier(one.adapted.encoder, one.adapted.heads)
        with records.phase(scene.record, "correlations"):
            scene.record["data"] = compared(scene, models)
    return finish(scene, partial(draw, scene.record))


def starting_model(scene: Scene, seed: Seed) -> Classifier:
    """Returns the model before adaptation."""
    params = merged_start(scene.model, seed.experts, scene.constants.initial)
    return Classifier(lambda _: params, seed.experts.stacked)


def compared(scene: Scene, models: Mapping[tuple[str, int], Classifier]) -> dict[str, Any]:
    """Returns ρ of each proxy and model, a list over tasks for each seed, as the record has it.

    Args:
        scene: of the experiment.
        models: (name, seed) → the model; each name with each seed.
    """
    jobs = [
        partial(correlations, scene.model, scene.seeds[number], scene.tasks, model)
        for (_, number), model in models.items()
    ]
    found = dict(zip(models, run_jobs(jobs, scene.devices), strict=True))
    names = list(dict.fromkeys(name for name, _ in models))
    return {
        "tasks": [task.name for task in scene.tasks],
        "spearman": {
            proxy: {name: [found[name, number][proxy] for number in scene.seeds] for name in names}
            for proxy in PROXIES
        },
    }


def correlations(
    model: Model,
    seed: Seed,
    tasks: Sequence[Task],
    classifier: Classifier,
) -> dict[str, list[float | None]]:
    """Returns, per proxy and task, Spearman's ρ with the true loss over the test images."""
    found: dict[str, list[float | None]] = {proxy: [] for proxy in PROXIES}
    for k, task in enumerate(tasks):
        own = padded(classifier.heads, seed.experts.classes, k)
        logits = logits_on(model, classifier.encoder(k), *own, task.test.inputs)
        # In float32 the losses of sure predictions would be rounded to the same few values.
        log_p = special.log_softmax(logits.astype(np.float64), axis=1)
        truth = true_label_loss(log_p, task)
        found["entropy"].append(spearman(entropy(log_p), truth))
        found["self_label"].append(
            spearman(cross_entropy(log_p, np.asarray(seed.labels[k].label)), truth)
        )
    return found


def true_label_loss(log_p: np.ndarray, task: Task) -> np.ndarray:
    """Returns the cross-entropy to the true classes of the test images, [n]: for analysis only.

    No adaptation sees it; it says afterwards how good a stand-in the losses are that need no label.

    Args:
        log_p: log-probabilities [n, classes].
        task: of these test images.
    """
    return cross_entropy(log_p, task.test.labels)


def cross_entropy(log_p: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Returns −log p of the given classes int [n], from log-probabilities [n, classes]."""
    return -log_p[np.arange(len(log_p)), classes]


def entropy(log_p: np.ndarray) -> np.ndarray:
    """Returns −Σ_c p_c log p_c, [n], in nats, from log-probabilities [n, classes], all finite."""
    return -(np.exp(log_p) * log_p).sum(axis=1)


def spearman(a: np.ndarray, b: np.ndarray) -> float | None:
    """Returns the correlation of ranks, ties having their average rank; None if one is constant."""
    ranks = [stats.rankdata(values) for values in (a, b)]
    if any(np.ptp(rank) == 0 for rank in ranks):
        return None
    return float(np.corrcoef(*ranks)[0, 1])


def over_seeds(rows: Sequence[Sequence[float | None]]) -> np.ndarray:
    """Returns the mean over seeds of what is known, [task]; NaN, which is not drawn, for nothing.

    Args:
        rows: [seed][task].
    """
    known = [[x for x in column if x is not None] for column in zip(*rows, strict=True)]
    return np.array([np.mean(column) if column else np.nan for column in known])


def draw(record: Record, folder: Path) -> None:
    """Draws the correlations, a panel for each proxy."""
    data = record.get("data", {})
    tasks, found = data["tasks"], data["spearman"]
    figure = figures._figure(max(9.0, 3.0 + 0.8 * len(tasks)), 4.4)
    panels = figure.subplots(1, 2, sharey=True)
    for axes, proxy in zip(panels, PROXIES, strict=True):
        values = {name: over_seeds(found[proxy][name]) for name in SHOWN[proxy]}
        _panel(axes, tasks, values, SHOWN[proxy])
        axes.set_title(TITLES[proxy], fontsize=10)
    panels[0].set_ylabel("Spearman correlation with the\ncross-entropy to the true class")
    *handles, before = panels[0].get_legend_handles_labels()[0]
    figure.legend(
        handles=[before, *handles], loc="outside lower center", ncols=3, frameon=False, fontsize=9
    )
    figures._save(figure, folder / "correlations.png")


def _panel(
    axes: Axes, tasks: Sequence[str], values: Mapping[str, np.ndarray], labels: Mapping[str, str]
) -> None:
    """Hollow points before adaptation, and from there a line to each point after it."""
    looks = {
        "task_arithmetic": ("white", "o", figures._INK),
        "adamerging": (figures._COLOURS[0], "s", figures._COLOURS[0]),
        "entropy_joint": (figures._HIGHLIGHT, "D", figures._HIGHLIGHT),
        "symerge": (figures._HIGHLIGHT, "D", figures._HIGHLIGHT),
    }
    positions = np.arange(len(tasks))
    offsets = np.linspace(0.16, 0.32, len(values) - 1) if len(values) > 2 else [0.16]
    before, *after = values
    for name, offset in zip(after, offsets, strict=True):
        fill, marker, edge = looks[name]
        x = positions + offset
        ways = np.array([positions, x]), np.array([values[before], values[name]])
        axes.plot(*ways, color=fill, linewidth=1.4, alpha=0.6)
        axes.scatter(x, values[name], s=34, color=fill, marker=marker, edgecolors=edge, zorder=3,
                     label=labels[name])  # fmt: skip
    fill, marker, edge = looks[before]
    axes.scatter(positions, values[before], s=46, color=fill, marker=marker, edgecolors=edge,
                 zorder=4, label=labels[before])  # fmt: skip
    axes.set_xticks(positions, tasks, rotation=35, ha="right", rotation_mode="anchor")
    axes.set_xlim(-0.5, len(tasks) - 0.5)
    axes.grid(axis="y", color=figures._FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)


if __name__ == "__main__":
    sys.exit(run(main, Settings, None, prog="python -m experiments.proxy_loss"))
