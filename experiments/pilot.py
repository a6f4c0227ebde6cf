"""The pilot study: classifiers trained on a merged encoder's features fit other encoders better.

    python -m experiments.pilot                           the embedded world, 8 tasks
    python -m experiments.pilot --lambdas 0.1 0.3         fewer merged encoders
    python -m experiments.pilot --data DIR                your own image folders
    python -m experiments.pilot --model ViT-B-32 --checkpoints DIR --data DIR

Figures 3(b), A and H. Stage 1: for each λ the encoder θ₀ + λ Σ τ stays as it is, and each task's
classifier is trained on its features of that task's training images, one epoch. Stage 2: each
classifier is put on each expert's encoder. The gain of a task at λ is the mean over the other
experts' encoders of the accuracy with the trained classifier minus that with the original one.

This experiment uses TRUE LABELS OF TRAINING IMAGES, as the paper's does: in `supervised_head`, and
nowhere else. It shows what adapting one layer can do; SyMerge does without them. With --checkpoints
the training images are read from --data too. One epoch is one epoch: --iterations has no effect.

Expected, for ViT-B/32: nearly all gains positive, SVHN's near zero or negative; GTSRB's classifier
on SVHN's encoder 31.4 → 56.3 at λ = 0.3 (appendix B.2). In the embedded world the best λ is 0.1.

Cost: the experts once; then 40 s of CPU per seed in the embedded world.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import figures_pairs as figures
from experiments import records
from experiments.experts import Experts, Model
from experiments.options import Options, check
from experiments.own_runs import refuse_methods
from experiments.pairs import others_mean
from experiments.tasks import clip_data
from experiments.tasks.task import Split, Task, first
from experiments.vision_run import Scene, begin, chosen_tasks, describe, finish
from experiments.vision_start import setting_of
from symerge_jax.adapt.coefficients import per_task
from symerge_jax.adapt.objectives import EXCLUDED
from symerge_jax.adapt.symerge import merged_encoder
from symerge_jax.cli.errors import run
from symerge_jax.cli.progress import say
from symerge_jax.errors import BadInput
from symerge_jax.evaluate import predict
from symerge_jax.finetune import finetune
from symerge_jax.models.heads import Head, normalised_head
from symerge_jax.notation import Array, Params
from symerge_jax.parallel import run_jobs
from symerge_jax.recipes import Recipe

# ViT-B/32, 8 tasks, GTSRB's classifier on SVHN's encoder: appendix B.2, figure A.
PAPER = {"encoder": "SVHN", "classifier": "GTSRB", "original": 31.4, "trained_at_0.3": 56.3}
QUICK = 320  # training images of a quick run


@dataclass(frozen=True)
class Settings(Options):
    """Trains classifiers, with labels, on merged features; see the module for what it expects."""

    lambdas: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    """Coefficients λ of the merged encoders θ₀ + λ Σ τ, each above 0 and at most 1."""
    rate: float = 0.01
    """Adam's learning rate for a classifier."""
    batch_size: int = 32
    """Training images per step."""


class Crossed(NamedTuple):
    """Accuracies in percent of one seed.

    Attributes:
        original: with the experts' own classifiers, [encoder, task].
        trained: with those trained at each λ, [λ, encoder, task].
    """

    original: np.ndarray
    trained: np.ndarray


def main(settings: Settings) -> int:
    """Runs the experiment; the last line printed is the path of the record."""
    check(settings)
    lambdas = chosen_lambdas(settings)
    rows = ["individual", "cross_task", *map(row_of, lambdas)]
    refuse_methods(settings, rows)
    names = chosen_tasks(settings)
    if setting_of(settings) == "checkpoints":
        require_training(settings, names)
    if settings.dry_run:
        return describe(settings, rows)
    with begin("pilot", settings) as scene:
        images = training_images(scene)
        found = {
            number: crossed(scene, number, images, lambdas, settings) for number in scene.seeds
        }
        collect(scene, found, lambdas)
        names = [task.name for task in scene.tasks]
    shown = scene.constants.initial
    return finish(scene, lambda folder: draw(found, lambdas, names, shown, folder))


def chosen_lambdas(settings: Settings) -> list[float]:
    """Returns the λ to try, ascending; three of them in a quick run.

    Raises:
        BadInput: none, or one outside (0, 1]; a rate or batch size that is not positive.
    """
    found = sorted(set(settings.lambdas))
    if not found or not all(0 < value <= 1 for value in found):
        raise BadInput(f"--lambdas must be above 0 and at most 1, got {list(settings.lambdas)}")
    if not 0 < settings.rate < math.inf:
        raise BadInput(f"--rate must be a positive number, got {settings.rate}")
    if settings.batch_size < 1:
        raise BadInput(f"--batch-size must be at least 1, got {settings.batch_size}")
    return found[:3] if settings.quick else found


def row_of(value: float) -> str:
    """Returns what the record calls the classifiers trained at a λ."""
    return f"cross_task_{value:g}"


def require_training(settings: Settings, names: Sequence[str]) -> None:
    """Raises `BadInput`, before models are read, for a set that lacks training images."""
    assert settings.data is not None
    for name in names:
        reader = clip_data.find_set(settings.data, name, report=lambda _: None)
        clip_data.part_rows(reader, "train")


def training_images(scene: Scene) -> list[Split]:
    """Returns each task's training images and labels; of a benchmark set they are read now."""
    with records.phase(scene.record, "training images"):
        found = [_training_images(scene, task) for task in scene.tasks]
    return [first(split, QUICK) for split in found] if scene.settings.quick else found


def _training_images(scene: Scene, task: Task) -> Split:
    if task.train is not None:
        return task.train
    assert scene.settings.data is not None
    reader = clip_data.find_set(scene.settings.data, task.name, report=lambda _: None)
    size, limit = scene.start.vision.image_size, QUICK if scene.settings.quick else None
    return clip_data.read_split(reader, "train", size=size, cache=scene.around.cache, limit=limit)


def crossed(
    scene: Scene, number: int, images: Sequence[Split], lambdas: Sequence[float], settings: Settings
) -> Crossed:
    """Trains classifiers at each λ and puts them, and the original ones, on every encoder."""
    experts, devices = scene.seeds[number].experts, scene.devices
    own = closed(experts)
    with records.phase(scene.record, "training"):
        stage1 = partial(trained_heads, scene.model, experts, own, images, settings=settings,
                         seed=number)  # fmt: skip
        trained = run_jobs([partial(stage1, value) for value in lambdas], devices)
    with records.phase(scene.record, "crossing"):
        sets = jax.tree.map(lambda *leaves: jnp.stack(leaves), own, *trained)
        stage2 = partial(accuracies, scene.model, experts, sets, scene.tasks)
        rows = run_jobs([partial(stage2, m) for m in range(len(scene.tasks))], devices)
    together = np.stack(rows, axis=1)  # [set of heads, encoder, task]
    return Crossed(together[0], together[1:])


def closed(experts: Experts) -> Head:
    """Returns the experts' classifiers, [task, ...], with biases that rule padded classes out."""
    bias = experts.stacked["bias"]
    shut = jnp.asarray(EXCLUDED, bias.dtype)
    return {**experts.stacked, "bias": jnp.where(experts.classes, bias, shut)}


def trained_heads(
    model: Model,
    experts: Experts,
    heads: Head,
    images: Sequence[Split],
    value: float,
    *,
    settings: Settings,
    seed: int,
) -> Head:
    """Stage 1: returns all tasks' classifiers, [task, ...], trained on features of θ₀ + λ Σ τ."""
    tau = experts.task_vectors
    theta = merged_encoder(model.pretrained, tau, per_task(tau, value))
    found = []
    for k, own in enumerate(images):
        features = predict(model.encode, theta, own.inputs)
        head = {name: leaf[k] for name, leaf in heads.items()}
        found.append(supervised_head(head, features, own, settings.rate, settings.batch_size, seed))
    say(f"classifiers trained at λ = {value:g}, seed {seed}")
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *found)


def supervised_head(
    head: Head, features: np.ndarray, train: Split, rate: float, batch_size: int, seed: int
) -> Head:
    """Trains a classifier for one epoch WITH THE TRUE LABELS of training images.

    The only function here that reads labels to learn from them; test labels are read to score.

    Args:
        head: to start from; padded classes are ruled out by their bias and stay so.
        features: of the training images, [n, d].
        train: those images; only their labels are read.
        rate: Adam's learning rate.
        batch_size: images per step; the last step of the epoch takes what is left.
        seed: of the order.
    """
    recipe = Recipe(
        steps=-(-len(features) // batch_size), batch_size=batch_size, learning_rate=0.0,
        head_rate=rate, optimiser="adam", weight_decay=0.0, warmup_steps=0, decay="constant",
        clip=0.0, whole_passes=True, frozen=("encoder",),
    )  # fmt: skip
    return finetune(
        _as_they_are, normalised_head, {}, head, features, train.labels, recipe, seed=seed
    ).head


def _as_they_are(params: Params, features: Array) -> Array:
    """The encoder of a classifier that is trained on features: there is nothing left to do."""
    del params
    return features


def accuracies(
    model: Model, experts: Experts, sets: Head, tasks: Sequence[Task], m: int
) -> np.ndarray:
    """Stage 2: returns accuracies on expert m's encoder, [set of heads, task].

    The encoder looks at each task's test images once; all classifiers read the same features.

    Args:
        model: that the experts come from.
        experts: whose encoders are asked.
        sets: of classifiers, leaves [set, task, ...].
        tasks: whose test images are looked at.
        m: number of the expert.
    """
    params = jax.tree.map(jnp.asarray, experts.params[m])
    columns = []
    for k, task in enumerate(tasks):
        features = predict(model.encode, params, task.test.inputs)
        own = {name: leaf[:, k] for name, leaf in sets.items()}
        hits = _hits(own, features, task.test.labels)
        columns.append(100 * np.asarray(hits, float) / len(features))
    return np.stack(columns, axis=1)


@jax.jit
def _hits(heads: Head, features: Array, labels: Array) -> Array:
    """Returns how many are right, int32 [set], of classifiers [set, ...], one after the other."""

    def one(head: Head) -> Array:
        right = normalised_head(head, features).argmax(axis=1).astype(labels.dtype) == labels
        return right.sum(dtype=jnp.int32)

    return jax.lax.map(one, heads)


def gains(found: Crossed) -> np.ndarray:
    """Returns what training gains on the other tasks' encoders: points, [λ, task]."""
    return np.stack([others_mean(one - found.original, 0) for one in found.trained])


def collect(scene: Scene, found: dict[int, Crossed], lambdas: Sequence[float]) -> None:
    """Adds accuracies, gains and matrices to the record."""
    record = scene.record
    for number, one in found.items():
        rows = {
            "individual": np.diagonal(one.original),
            "cross_task": others_mean(one.original, 0),
            **{
                row_of(value): others_mean(matrix, 0)
                for value, matrix in zip(lambdas, one.trained, strict=True)
            },
        }
        for method, values in rows.items():
            for task, value in zip(scene.tasks, values, strict=True):
                records.add_result(
                    record, method=method, seed=number, task=task.name, metric="accuracy",
                    value=float(value), n=len(task.test.labels),
                )  # fmt: skip
    record["data"] = data(found, lambdas, [task.name for task in scene.tasks])
    mean = np.mean([gains(one) for one in found.values()], axis=0)
    best = int(mean.mean(axis=1).argmax())
    say(
        f"gain over the original classifiers on other encoders: {mean[best].mean():+.1f} points at "
        f"λ = {lambdas[best]:g}; {100 * (mean > 0).mean():.0f} % of all gains are positive"
    )


def data(
    found: dict[int, Crossed], lambdas: Sequence[float], names: Sequence[str]
) -> dict[str, Any]:
    """Returns the matrices of each seed, as the record stores them."""
    return {
        "tasks": list(names),
        "lambdas": list(lambdas),
        "labels": "the classifiers were trained with true labels of training images",
        "original": {str(seed): one.original.tolist() for seed, one in found.items()},
        "trained": {str(seed): one.trained.tolist() for seed, one in found.items()},
        "gains": {str(seed): gains(one).tolist() for seed, one in found.items()},
        "paper": PAPER,
    }


def draw(
    found: dict[int, Crossed],
    lambdas: Sequence[float],
    names: Sequence[str],
    shown: float,
    folder: Path,
) -> None:
    """Draws figures 3(b), A(a), A(b) and H, means over seeds.

    Args:
        found: accuracies of each seed.
        lambdas: that classifiers were trained at.
        names: of the tasks.
        shown: λ of figure A(b), where SyMerge would start; the nearest one is taken.
        folder: of the run.
    """
    mean = Crossed(*(np.mean(each, axis=0) for each in zip(*found.values(), strict=True)))
    rows = [f"{value:g}" for value in lambdas]
    figures.gains(gains(mean), rows, names, "merging coefficient λ", folder / "gains.png")
    less = "accuracy (%), and its difference to the own encoder's"
    figures.matrix(mean.original, names, f"original classifiers: {less}", folder / "original.png")
    near = int(np.abs(np.array(lambdas) - shown).argmin())
    title = f"classifiers trained at λ = {rows[near]}: {less}"
    figures.matrix(mean.trained[near], names, title, folder / "trained.png")
    titles = [f"trained at λ = {row}" for row in rows]
    figures.matrices(dict(zip(titles, mean.trained, strict=True)), names, folder / "matrices.png")


if __name__ == "__main__":
    sys.exit(run(main, Settings, None, prog="python -m experiments.pilot"))
