"""Merging experts that grew from different initialisations: the project page's disjoint basins.

    python -m experiments.disjoint                        the embedded world: terrain and textures
    python -m experiments.disjoint --tasks runes digits   two other tasks
    python -m experiments.disjoint --model ViT-B-32 --checkpoints DIR --data DIR
    python -m experiments.disjoint --model ViT-B-32 --checkpoints DIR --data DIR
        --other-pretrained CLIP --other-expert EXPERT     another pre-training, as in the paper

Two tasks, E and D. D's expert comes from the model θ₀, E's from another model θ₀' of the same
architecture. Unless files are named, θ₀' is θ₀ with channels, attention heads, hidden units and
features in another order (permuted.py): the same model in another basin, with another space of
features. Fine-tuning commutes with that, so E's expert is permuted in its place, classifier
included. That is kinder than a second pre-training, whose function differs too. The merge is
θ₀ + Σ λ_k (θ_k − θ₀), for both experts: either can be reached with coefficients in [0, 1]. Each
task keeps the classifier of its own expert.

Rows: each expert on both tasks, weight averaging, AdaMerging, Surgery on it and SyMerge, all from
λ = 0.5, the mean of both; SyMerge from 0.3; then SyMerge with other references: θ₀' in place of
θ₀, the mean of both, and each expert's own, τ_k = θ_k − its own model, added to θ₀ (E's expert is
then out of reach).

Expected, for EuroSAT and DTD with ViT-B/32 (accuracies; project page): average of each expert on
both 50.8 and 40.7, weight averaging 6.9, AdaMerging 5.4, Surgery 25.6, SyMerge 79.1 (96.2, 62.0).
The page does not say which pre-trainings, reference or start; those here are our reading of it.

Cost: the two experts once; then a minute and a half of CPU per seed in the embedded world.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import figures_pairs as figures
from experiments import records
from experiments.ablating import chosen_rows
from experiments.adaptive import adaptive
from experiments.expert_outputs import label
from experiments.experts import Experts
from experiments.figures_bars import shaded_table
from experiments.labels import method_label
from experiments.methods import Outcome, Run, Seed
from experiments.options import Options, check
from experiments.permuted import drawn, permuted, permuted_head
from experiments.scoring import score
from experiments.tasks import clip_data, clip_heads
from experiments.vision_run import Scene, add, begin, chosen_tasks, describe, finish, fixed
from experiments.vision_start import setting_of
from symerge_jax.adapt.coefficients import clamp_all
from symerge_jax.cache import digest
from symerge_jax.checkpoints.open import load_clip
from symerge_jax.cli.errors import run
from symerge_jax.cli.progress import say
from symerge_jax.errors import BadInput
from symerge_jax.models.heads import Head, stack_heads
from symerge_jax.notation import Params
from symerge_jax.parallel import run_jobs
from symerge_jax.score import computable
from symerge_jax.task_vectors import subtract

# ViT-B/32, accuracy on EuroSAT and DTD: project page, "Merging across disjoint basins".
PAPER = {
    "individual_eurosat": (98.1, 3.6),
    "individual_dtd": (2.0, 79.4),
    "weight_average": (11.6, 2.2),
    "adamerging": (8.6, 2.1),
    "surgery": (38.1, 13.1),
    "symerge": (96.2, 62.0),
}
TASKS = {"tiny": ("terrain", "textures"), "checkpoints": ("eurosat", "dtd")}

Reference = Literal["first", "other", "mean", "own"]


class Row(NamedTuple):
    """An adaptive row: the method, what task vectors are taken from, and λ at the start."""

    method: str
    reference: Reference = "first"
    initial: float = 0.5


ROWS = {
    "adamerging": Row("adamerging"),
    "symerge": Row("symerge"),
    "symerge_from_0.3": Row("symerge", initial=0.3),
    "symerge_on_other_reference": Row("symerge", "other"),
    "symerge_on_mean_reference": Row("symerge", "mean"),
    "symerge_on_own_references": Row("symerge", "own"),
    "surgery": Row("surgery"),  # last: it stands on what AdaMerging has learned
}


@dataclass(frozen=True)
class Settings(Options):
    """Merges two experts of different initialisations; see the module for what it expects."""

    permutation: int = 0
    """Seed of the order that makes the other model, unless it is read."""
    other_pretrained: str | None = None
    """CLIP model, with its text tower, that the first task's expert was fine-tuned from."""
    other_expert: str | None = None
    """The first task's expert, fine-tuned from that model."""


class Other(NamedTuple):
    """The other initialisation.

    Attributes:
        name: for the record.
        pretrained: θ₀'.
        expert: the first task's expert in θ₀'s basin → its counterpart in that of θ₀'.
        head: its classifier likewise.
    """

    name: str
    pretrained: Params
    expert: Callable[[Params], Params]
    head: Callable[[Head], Head]


def main(settings: Settings) -> int:
    """Runs the experiment; the last line printed is the path of the record."""
    check(settings)
    rows = {name: ROWS[name] for name in chosen_rows(settings.methods, tuple(ROWS))}
    settings = with_tasks(settings)
    if settings.dry_run:
        return describe(settings, ["individual", "weight_average", *rows])
    with begin("disjoint", settings) as scene:
        other = other_start(scene, settings)
        apart = {number: set_apart(scene, seed, other) for number, seed in scene.seeds.items()}
        wanted: set[Reference] = {"first", *(row.reference for row in rows.values())}
        scenes: dict[Reference, Scene] = {
            kind: with_reference(scene, apart, other, kind) for kind in wanted
        }
        outcomes = references(scenes["first"])
        outcomes += learned(scenes, rows)
        add(scene, outcomes)
        scene.record["data"] = data = {
            "other": other.name,
            "path": paths(scene, apart, points=3 if settings.quick else 11),
            "coefficients": mean_coefficients(outcomes),
            "paper": PAPER,
        }
    return finish(scene, lambda folder: draw(scene, data["path"], folder))


def with_tasks(settings: Settings) -> Settings:
    """Returns the settings with two tasks named, the expert of the first to be set apart.

    Raises:
        BadInput: another number of tasks, or options that do not go together.
    """
    if settings.tasks is None and setting_of(settings) in TASKS:
        settings = dataclasses.replace(settings, tasks=TASKS[setting_of(settings)])
    names = chosen_tasks(settings)
    if len(names) != 2:
        raise BadInput(
            f"this experiment merges two experts, got {len(names)} tasks; name two with --tasks"
        )
    if settings.permutation < 0:
        raise BadInput(f"--permutation must be at least 0, got {settings.permutation}")
    files = settings.other_pretrained, settings.other_expert
    if any(files) and not all(files):
        raise BadInput("--other-pretrained and --other-expert go together; name both, or neither")
    if any(files) and setting_of(settings) != "checkpoints":
        raise BadInput(
            "--other-pretrained needs --model and --checkpoints of the same architecture"
        )
    return settings


def other_start(scene: Scene, settings: Settings) -> Other:
    """Returns the permuted model, or the one in the files that were named.

    Raises:
        BadInput: files that cannot be read, or of another architecture.
    """
    config, model = scene.start.vision, scene.model
    if settings.other_pretrained is None or settings.other_expert is None:
        order = drawn(config, settings.permutation)
        return Other(
            f"permutation {settings.permutation}",
            permuted(model.pretrained, config, order),
            lambda params: permuted(params, config, order),
            lambda head: permuted_head(head, order),
        )
    loaded = load_clip(settings.other_pretrained, text=True)
    if loaded.vision != config:
        raise BadInput(
            f"{settings.other_pretrained}: expected an image tower like the first one's, "
            f"{config}, found {loaded.vision}"
        )
    assert settings.data is not None
    reader = clip_data.find_set(settings.data, scene.tasks[0].name, report=lambda _: None)
    head = clip_heads.build_head(reader.set, reader.names, loaded)
    expert = computable(load_clip(settings.other_expert).params["vision"])
    tower = computable(loaded.params["vision"])
    return Other(settings.other_pretrained, tower, lambda _: {**tower, **expert}, lambda _: head)


def set_apart(scene: Scene, seed: Seed, other: Other) -> Seed:
    """Returns the seed with the first task's expert in the other basin; τ still to be taken."""
    experts = seed.experts
    params = [other.expert(experts.params[0]), experts.params[1]]
    heads = [other.head(experts.heads[0]), experts.heads[1]]
    stacked, classes = stack_heads(heads)
    apart = experts._replace(params=params, heads=heads, stacked=stacked, classes=classes)
    labels = label(scene.model, apart, scene.tasks, scene.around.cache)
    return Seed(seed.number, apart, labels)


def with_reference(scene: Scene, apart: dict[int, Seed], other: Other, kind: Reference) -> Scene:
    """Returns the scene of experts set apart, with θ and τ of one kind of reference.

    Args:
        scene: of the experiment.
        apart: the seeds, the first expert in the other basin.
        other: θ₀'.
        kind: "first", τ_k = θ_k − θ₀ is added to θ₀; "other", the same with θ₀'; "mean", with
            ½ θ₀ + ½ θ₀'; "own", θ₀ is added to, but each τ_k taken from its own expert's model.
    """
    first = jax.tree.map(np.asarray, scene.model.pretrained)
    start = {
        "first": first,
        "own": first,
        "other": other.pretrained,
        "mean": jax.tree.map(lambda a, b: (a + b) / 2, first, other.pretrained),
    }[kind]
    model = scene.model._replace(
        pretrained=start, name=f"{scene.model.name} reference {digest(start)}"
    )

    def moved(experts: Experts) -> Experts:
        tau = subtract(experts.params, start)
        if kind == "own":
            theirs = subtract(experts.params, other.pretrained)
            tau = jax.tree.map(lambda a, b: jnp.stack([a[0], b[1]]), theirs, tau)
        return experts._replace(task_vectors=tau)

    seeds = {n: seed._replace(experts=moved(seed.experts)) for n, seed in apart.items()}
    return scene._replace(start=scene.start._replace(model=model), seeds=seeds)


def references(scene: Scene) -> list[Outcome]:
    """Returns each task under its own expert, under the first's and the second's, and the mean."""
    rows = fixed(scene, ["individual"])
    for k, task in enumerate(scene.tasks):
        for seed in scene.seeds.values():
            both = [seed.experts.params[k]] * 2
            scores = score(scene.model, both, seed.experts.stacked, seed.experts.classes,
                           scene.tasks)  # fmt: skip
            rows.append(Outcome(f"individual_{task.name}", seed.number, False, scores))
    return rows + fixed(scene, ["weight_average"])


def learned(scenes: dict[Reference, Scene], rows: dict[str, Row]) -> list[Outcome]:
    """Runs the adaptive rows under each seed, all as one pool of jobs."""
    home = scenes["first"]
    jobs = []
    for name, row in rows.items():
        scene = scenes[row.reference]
        constants = scene.constants._replace(initial=row.initial)
        jobs += [
            partial(adaptive, scene.model, seed, scene.tasks, Run(row.method, name=name),
                    constants, scene.around)
            for seed in scene.seeds.values()
        ]  # fmt: skip
    with records.phase(home.record, "adaptation"):
        return run_jobs(jobs, home.devices)


def mean_coefficients(outcomes: Sequence[Outcome]) -> dict[str, dict[str, list[float]]]:
    """Returns, of rows that learn λ, the mean over leaves of clip(λ) for each task, by seed."""
    found: dict[str, dict[str, list[float]]] = {}
    for one in outcomes:
        if one.adapted is not None:
            leaves = jax.tree.leaves(clamp_all(one.adapted.coefficients))
            mean = np.mean([np.asarray(leaf) for leaf in leaves], axis=0)
            found.setdefault(one.method, {})[str(one.seed)] = mean.tolist()
    return found


@jax.jit
def between(start: Params, end: Params, t: float) -> Params:
    """Returns (1 − t) · start + t · end."""
    return jax.tree.map(lambda a, b: a + jnp.asarray(t, a.dtype) * (b - a), start, end)


def paths(scene: Scene, apart: dict[int, Seed], *, points: int) -> dict[str, Any]:
    """Returns accuracies [point, task] on the way from D's expert to E's, in one basin and in two.

    Args:
        scene: with both experts in the basin of θ₀.
        apart: the seeds with the first expert in the other basin.
        points: on each way, ends included.
    """
    t = np.linspace(0, 1, points).round(3).tolist()
    found: dict[str, Any] = {"t": t}
    with records.phase(scene.record, "interpolation"):
        for kind, seeds in (("same_basin", scene.seeds), ("two_basins", apart)):
            found[kind] = {
                str(seed.number): _way(scene, seed.experts, t) for seed in seeds.values()
            }
    middle = {kind: np.mean(list(found[kind].values()), axis=0)[points // 2].mean()
              for kind in ("same_basin", "two_basins")}  # fmt: skip
    say(
        f"accuracy halfway between the experts: {middle['same_basin']:.1f} in one basin, "
        f"{middle['two_basins']:.1f} in two"
    )
    return found


def _way(scene: Scene, experts: Experts, t: Sequence[float]) -> list[list[float]]:
    start, end = experts.params[1], experts.params[0]

    def at(x: float) -> list[float]:
        theta = [between(start, end, x)] * 2
        scores = score(scene.model, theta, experts.stacked, experts.classes, scene.tasks)
        return [one.accuracy for one in scores]

    return run_jobs([partial(at, x) for x in t], scene.devices)


def draw(scene: Scene, found: dict[str, Any], folder: Path) -> None:
    """Draws the scores and the ways between the experts, means over seeds."""
    names = [task.name for task in scene.tasks]
    rows = records.methods(scene.record)
    summary = records.summarise(scene.record)
    scores = [
        [*(records.over_seeds(scene.record, row, name, "accuracy")[0] for name in names),
         summary[row]["mean"]]
        for row in rows
    ]  # fmt: skip
    shaded_table(
        [method_label(row) for row in rows], [*names, "mean"], scores, folder / "accuracy.png",
        title="accuracy (%) on both tasks",
    )  # fmt: skip
    curves = {
        title: np.mean(list(found[kind].values()), axis=0)
        for kind, title in (("same_basin", "experts of one model"),
                            ("two_basins", "experts of two models"))
    }  # fmt: skip
    figures.interpolations(found["t"], curves, names, folder / "path.png")


if __name__ == "__main__":
    sys.exit(run(main, Settings, None, prog="python -m experiments.disjoint"))
