"""Draws one task's features before and after entropy minimisation (the paper's Figure D).

    python -m experiments.tsne                            the embedded world's textures
    python -m experiments.tsne --task signs
    python -m experiments.tsne --data DIR --task NAME     your own image folders or npz packs
    python -m experiments.tsne --model ViT-B-32 --checkpoints DIR --data DIR

Features of the test images, of length 1, in two dimensions by t-SNE (perplexity 30, seed 0); the
colour is the class that the model predicts (left) or the true class (right). The model is Task
Arithmetic at the initial coefficient, and the same after its entropy was made small over
coefficients (`adamerging`) and over coefficients and heads (`entropy_joint`, SyMerge's run with
another objective); the paper draws one such run and does not say which. Of each model the record
has the share of the test images that it puts into its most frequent class: entropy is smallest
where all are in one.

t-SNE: van der Maaten and Hinton, "Visualizing Data using t-SNE", 2008, as in scikit-learn.

Expected: groups become tighter, but predictions and true classes go on to disagree; the paper gives
no number.
Cost: two adaptations, about a minute on two cores for the embedded world once experts are there.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits

from experiments import figures, records
from experiments.experts import Model
from experiments.methods import Outcome, Run, Seed
from experiments.options import Options, check
from experiments.own_runs import refuse_methods
from experiments.records import Record
from experiments.scoring import padded
from experiments.starts import merged_start, start_row
from experiments.tasks.task import Task, check_known
from experiments.vision_run import (
    Scene,
    adapt,
    add,
    begin,
    chosen_tasks,
    describe,
    finish,
    fixed,
)
from symerge_jax.adapt.objectives import exclude
from symerge_jax.cli.errors import run
from symerge_jax.errors import BadInput
from symerge_jax.evaluate import predict
from symerge_jax.models.heads import Head, normalised_head
from symerge_jax.notation import Params
from symerge_jax.parallel import run_jobs

METHODS = ("individual", "task_arithmetic", "adamerging", "entropy_joint")
STAGES = {
    "task_arithmetic": "before",
    "adamerging": "entropy minimised\nover coefficients",
    "entropy_joint": "entropy minimised\nover coefficients and heads",
}
PERPLEXITY = 30.0
FEWEST = 4  # images with which t-SNE makes sense at all


@dataclass(frozen=True)
class Settings(Options):
    """Draws the features of one task before and after entropy minimisation; see the module."""

    task: str | None = None
    """The task that is drawn; the textures (embedded world, DTD) if there, else the first."""
    points: int = 2000
    """Largest number of test images in the picture; drawn with seed 0 where there are more."""


class View(NamedTuple):
    """One model on the task's test images.

    Attributes:
        features: float [n, d], each of length 1.
        predictions: int [n].
    """

    features: np.ndarray
    predictions: np.ndarray


def main(settings: Settings) -> int:
    """Runs the experiment; the last line printed is the path of the record."""
    refuse_methods(settings, METHODS)
    name = chosen_task(settings)
    if settings.dry_run:
        print(f"task drawn: {name}")
        return describe(settings, METHODS)
    with begin("tsne", settings) as scene:
        k = [task.name for task in scene.tasks].index(name)
        labels = scene.tasks[k].test.labels
        shown = chosen_points(len(labels), settings.points)
        constants = scene.constants
        individual = fixed(scene, ["individual"])
        starts = [
            start_row(scene.model, seed, scene.tasks, constants.initial)
            for seed in scene.seeds.values()
        ]
        learned = adapt(
            scene,
            [Run("adamerging"), Run("symerge", name="entropy_joint")],
            [constants, constants._replace(objective="entropy")],
        )
        add(scene, [*individual, *starts, *learned])
        with records.phase(scene.record, "t-SNE"):
            views = seen(scene, [*starts, *learned], k)
            scene.record["data"] = described(name, labels, views, shown)
    return finish(scene, partial(draw, scene.record))


def chosen_task(settings: Settings) -> str:
    """Returns the name of the task that is drawn.

    Raises:
        BadInput: it is not one of the run's tasks, or there would be too few points.
    """
    check(settings)
    if settings.points < FEWEST:
        raise BadInput(f"--points must be at least {FEWEST}, got {settings.points}")
    if settings.limit is not None and settings.limit < FEWEST:
        raise BadInput(f"--limit must be at least {FEWEST} here, got {settings.limit}")
    names = chosen_tasks(settings)
    if settings.task is not None:
        check_known(settings.task, names, "task")
        return settings.task
    own = [name for name in names if name == "textures" or name.startswith("dtd")]
    return (own or names)[0]


def chosen_points(count: int, most: int) -> np.ndarray:
    """Returns which of `count` test images are drawn, int [at most `most`], sorted.

    Raises:
        BadInput: there are too few.
    """
    if count < FEWEST:
        raise BadInput(f"the task that is drawn has {count} test images; t-SNE needs {FEWEST}")
    return np.sort(np.random.default_rng(0).permutation(count)[:most])


def seen(scene: Scene, outcomes: Sequence[Outcome], k: int) -> dict[tuple[str, int], View]:
    """Returns (method, seed) → what the model makes of task k's test images."""
    jobs = []
    for one in outcomes:
        seed = scene.seeds[one.seed]
        if one.adapted is None:
            params = merged_start(scene.model, seed.experts, scene.constants.initial)
            heads = seed.experts.stacked
        else:
            params, heads = one.adapted.encoder(k), one.adapted.heads
        jobs.append(partial(view, scene.model, seed, scene.tasks[k], k, params, heads))
    found = run_jobs(jobs, scene.devices)
    return {(one.method, one.seed): v for one, v in zip(outcomes, found, strict=True)}


def view(model: Model, seed: Seed, task: Task, k: int, params: Params, heads: Head) -> View:
    """Returns features and predictions of one model."""
    features = predict(model.encode, params, task.test.inputs)
    head, classes = padded(heads, seed.experts.classes, k)
    logits = np.asarray(exclude(normalised_head(head, features), classes[None]))
    return View(features / np.linalg.norm(features, axis=1, keepdims=True), logits.argmax(axis=1))


def described(
    name: str, labels: np.ndarray, views: dict[tuple[str, int], View], shown: np.ndarray
) -> dict[str, Any]:
    """Returns what the picture shows, of the first seed, and every seed's share of the top class.

    Args:
        name: of the task.
        labels: true classes of its test images, int [n].
        views: (method, seed) → the model; each method with each seed.
        shown: which images are drawn.
    """
    first = next(iter(views))[1]
    methods = list(dict.fromkeys(method for method, _ in views))
    points = {method: embedded(views[method, first].features[shown]) for method in methods}
    return {
        "task": name,
        "true_top_share": top_share(labels),
        "top_share": {
            method: [top_share(v.predictions) for (m, _), v in views.items() if m == method]
            for method in methods
        },
        "labels": labels[shown].tolist(),
        "predictions": {m: views[m, first].predictions[shown].tolist() for m in methods},
        "points": {m: np.round(points[m].astype(float), 2).T.tolist() for m in methods},
    }


def embedded(features: np.ndarray) -> np.ndarray:
    """Returns float [n, 2]: features [n, d] in the plane, by t-SNE."""
    perplexity = min(PERPLEXITY, (len(features) - 1) / 3)  # a third of the others at most
    tsne = TSNE(perplexity=perplexity, init="pca", learning_rate="auto", random_state=0)
    with threadpool_limits(1):  # threads that wait for each other are slower on a busy machine
        return tsne.fit_transform(features)


def top_share(classes: np.ndarray) -> float:
    """Returns the share of the most frequent class in percent, of int [n]."""
    return 100 * float(np.bincount(classes).max() / len(classes))


def draw(record: Record, folder: Path) -> None:
    """Draws a row per model: left by prediction, right by true class."""
    data = record.get("data", {})
    labels, methods = np.array(data["labels"]), list(data["points"])
    classes = max(int(labels.max()), *(max(p) for p in data["predictions"].values())) + 1
    figure = figures._figure(7.0, 0.4 + 3.0 * len(methods))
    panels = figure.subplots(len(methods), 2, squeeze=False)
    for row, method in zip(panels, methods, strict=True):
        x, y = np.array(data["points"][method])
        predictions = np.array(data["predictions"][method])
        right = 100 * np.mean(predictions == labels)
        scatter(row[0], x, y, predictions, classes)
        row[0].set_title(
            f"predictions: {data['top_share'][method][0]:.0f} % in one class", fontsize=9
        )
        row[0].set_ylabel(STAGES[method], fontsize=10)
        scatter(row[1], x, y, labels, classes)
        row[1].set_title(f"true classes: {right:.0f} % predicted rightly", fontsize=9)
    figure.suptitle(f"{data['task']}: t-SNE of the features, colour is the class", fontsize=11)
    figures._save(figure, folder / "tsne.png")


def scatter(axes: Axes, x: np.ndarray, y: np.ndarray, classes: np.ndarray, count: int) -> None:
    """Draws points in the colours of their classes, of which there are `count`."""
    if count <= 20:
        colours = colormaps["tab10" if count <= 10 else "tab20"](classes)
    else:
        colours = colormaps["nipy_spectral"](classes / (count - 1))
    axes.scatter(x, y, s=9, c=colours, linewidths=0)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_color(figures._FAINT)


if __name__ == "__main__":
    sys.exit(run(main, Settings, None, prog="python -m experiments.tsne"))
