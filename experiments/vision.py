"""Merges image classifiers: SyMerge and its rivals on eight tasks (the paper's Table 1).

    python -m experiments.vision                          the embedded world, seed 0
    python -m experiments.vision --seeds 0 1 2            with standard deviations
    python -m experiments.vision --data DIR --tasks A B   your own image folders or npz packs

Without options a tiny CLIP that was pre-trained on generated pictures is fine-tuned on eight generated tasks;
with --data, on your images, each expert with a head of its own. Everything else is one code path: task
vectors, merging, adaptation on the unlabelled test images, evaluation. The scale of training-free methods
is chosen on validation images. With --data, adaptive methods are also run on one half of the test images and
scored on the other: the held-out accuracy.

Expected: the tables in README.md, rendered from experiments/results/vision/. The default takes about 5
minutes on two cores, 2 when experts and programs are in the cache.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache as memoise
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import figures, records, report
from experiments.experts import Experts, Model, make_experts
from experiments.options import Options, check, keep_programs
from experiments.progress import CONSOLE, Bars
from experiments.tasks.images import Task, check_known, from_folders, generated
from experiments.tiny import base as tiny
from experiments.tiny import world
from symerge_jax import __version__
from symerge_jax.adapt.adamerging import adamerging
from symerge_jax.adapt.coefficients import as_matrix
from symerge_jax.adapt.experts import expert_predictions
from symerge_jax.adapt.objectives import ExpertLabels, exclude
from symerge_jax.adapt.symerge import Adapted, symerge
from symerge_jax.cache import cached, digest
from symerge_jax.checkpoints.clip import source_names
from symerge_jax.cli.errors import run
from symerge_jax.data.preprocess import normalise
from symerge_jax.errors import BadInput
from symerge_jax.evaluate import predict
from symerge_jax.files import write_atomically
from symerge_jax.finetune import Recipe
from symerge_jax.merge import METHODS
from symerge_jax.metrics import accuracy, expected_calibration_error
from symerge_jax.models.clip import encode_image
from symerge_jax.models.heads import Head, normalised_head
from symerge_jax.notation import Array, Params
from symerge_jax.parallel import run_jobs, use_devices
from symerge_jax.task_vectors import add


class Constants(NamedTuple):
    """Hyper-parameters of one kind of data, chosen on validation images (experiments/LOG.md)."""

    recipe: Recipe
    iterations: int
    batch_size: int
    rate: float  # of coefficients and heads together, and of heads alone
    coefficient_rate: float  # of coefficients alone
    entropy_rate: float  # of AdaMerging
    initial: float  # coefficient of every leaf and task


GENERATED = Constants(
    recipe=Recipe(
        steps=300, batch_size=32, learning_rate=0.01, optimiser="sgd", clip=2.0, weight_decay=0.0
    ),
    iterations=300,
    batch_size=32,
    rate=0.01,
    coefficient_rate=0.01,
    entropy_rate=3e-4,
    initial=0.1,
)
FOLDERS = Constants(
    recipe=Recipe(
        steps=700, batch_size=32, learning_rate=5e-4, head_rate=5e-3, weight_decay=0.02, shift=2
    ),
    iterations=300,
    batch_size=32,
    rate=0.01,
    coefficient_rate=0.01,
    entropy_rate=1e-4,
    initial=0.1,
)

ADAPTIVE = ("adamerging", "adamerging_taskwise", "adamerging_sequential",
            "symerge_coefficients", "symerge_head", "symerge")  # fmt: skip
KNOWN = ("pretrained", "individual", *METHODS, *ADAPTIVE)
DEFAULT = ("pretrained", "individual", "weight_average", "task_arithmetic", "ties", "adamerging",
           "symerge_coefficients", "symerge_head", "symerge")  # fmt: skip
# Scales to choose from on validation images; the smallest best one wins.
SCALES = {"task_arithmetic": np.array([0.05, *np.arange(1, 11) / 10]), "ties": np.arange(1, 16) / 10}


@dataclass(frozen=True)
class Settings(Options):
    """Merges image classifiers and compares methods; see the module for what it expects."""

    retrain: bool = False
    """Pre-train the embedded tiny CLIP again first (about an hour on two cores)."""


class Seed(NamedTuple):
    """What the methods of one seed start from."""

    experts: Experts
    labels: list[ExpertLabels]  # what each expert says about its test images


class Scored(NamedTuple):
    """One model's predictions on one task: classes and confidences, [n]."""

    correct: np.ndarray
    ece: float


def main(settings: Settings) -> int:
    """Runs the experiment; the last line printed is the path of the record."""
    check(settings)
    methods = chosen_methods(settings)
    devices = use_devices(settings.devices)
    cache = settings.cache_folder()
    keep_programs(cache / "compiled")
    constants = adjusted(settings)
    setting = "images" if settings.data else "tiny"
    record = records.new_record("vision", setting, settings)
    if settings.dry_run:
        return describe(settings, methods, constants, devices)
    folder = records.new_folder(record, settings.out)
    say = CONSOLE.print

    with records.phase(record, "tasks"):
        base = pretrain_again(settings) if settings.retrain else tiny.load()
        tasks = read_tasks(settings, base, say)
    say(f"{len(tasks)} tasks: {', '.join(task.name for task in tasks)}", highlight=False)
    model = Model(
        encoder(base.config.vision, settings.dtype), base.params["vision"], base.card["sha256"]
    )
    record["settings"]["constants"] = {**constants._asdict(), "recipe": constants.recipe._asdict()}
    record["settings"]["tasks"] = [task.name for task in tasks]

    with Bars() as bars:
        with records.phase(record, "experts"):
            experts = make_experts(
                model, tasks, constants.recipe, settings.seeds,
                devices=devices, cache=cache, bars=bars, report=say,
            )  # fmt: skip
        with records.phase(record, "predictions"):
            seeds = {
                seed: Seed(found, label(model, found, tasks, cache, say))
                for seed, found in experts.items()
            }
        with records.phase(record, "training-free"):
            jobs = [
                partial(training_free, model, seeds[seed], tasks, method)
                for seed in settings.seeds
                for method in methods
                if method not in ADAPTIVE
            ]
            fixed = run_jobs(jobs, devices)
        with records.phase(record, "adaptation"):
            jobs = [
                partial(
                    adaptive, model, seeds[seed], tasks, method, seed, constants, settings, half, bars
                )
                for half in ((False, True) if settings.data else (False,))
                for method in sorted((m for m in methods if m in ADAPTIVE), key=_cost)
                for seed in settings.seeds
            ]
            learned = run_jobs(jobs, devices)
    collect(record, methods, settings, tasks, [*fixed, *learned])
    draw(record, learned, tasks, model, settings, folder)
    path = records.write(record, folder)
    report.print_table(record)
    times = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in record["phases_s"].items())
    say(f"time: {times}", highlight=False)
    print(path)
    return 0


def chosen_methods(settings: Settings) -> list[str]:
    """Returns the methods in table order; the experts are always there, to compare with."""
    names = [name.replace("-", "_") for name in settings.methods or DEFAULT]
    if names == ["all"]:
        names = list(KNOWN)
    for name in names:
        check_known(name, KNOWN, "method")
    return [name for name in KNOWN if name in {*names, "individual"}]


def adjusted(settings: Settings) -> Constants:
    """Returns the constants of this kind of data, with the options applied."""
    constants = FOLDERS if settings.data else GENERATED
    if settings.quick:
        recipe = constants.recipe._replace(steps=60)
        constants = constants._replace(recipe=recipe, iterations=10)
    if settings.iterations is not None:
        constants = constants._replace(iterations=settings.iterations)
    return constants


def read_tasks(settings: Settings, base: tiny.Base, say: Callable[..., None]) -> list[Task]:
    """Reads or draws the tasks.

    Raises:
        BadInput: an unknown task, unreadable data, fewer than two tasks, or an option that
            this experiment cannot serve.
    """
    if settings.checkpoints is not None:
        raise BadInput(
            f"--checkpoints: version {__version__} reads no public CLIP experts; leave it out to "
            "fine-tune the embedded model"
        )
    if settings.model not in (None, MODEL):
        raise BadInput(f"--model must be {MODEL} here, got {settings.model}")
    limit = min(settings.limit or 100, 100) if settings.quick else settings.limit
    if settings.data is None:
        names = settings.tasks or world.TASKS[: settings.task_count]
        return generated(names, base, limit=limit, cache=settings.cache_folder(), report=say)
    size = base.config.vision.image_size
    tasks = from_folders(settings.data, settings.tasks, size=size, limit=limit)
    if len(tasks) < 2:
        raise BadInput(
            f"{settings.data}: merging needs at least two tasks, found only {tasks[0].name}"
        )
    return tasks


MODEL = tiny.Settings.model


def pretrain_again(settings: Settings) -> tiny.Base:
    """Makes the base anew, in the cache folder, and returns it."""
    folder = settings.cache_folder() / "base"
    tiny.main(tiny.Settings(out=folder, devices=len(jax.devices())))
    return tiny.load(folder)


@memoise
def encoder(config: Any, dtype: str) -> Callable[[Params, Array], Array]:
    """Returns (θ, images uint8 [batch, height, width, 3]) → features; normalised in the program."""
    apply = encode_image(config, dtype=None if dtype == "float32" else jnp.dtype(dtype))

    def encode(params: Params, images: Array) -> Array:
        return apply(params, normalise(images))

    return encode


@memoise
def logits_of(encode: Callable[[Params, Array], Array]) -> Callable[[Any, Array], Array]:
    """Returns ((θ, head, classes), images) → logits, with the padding of the head excluded."""

    def apply(model: tuple[Params, Head, Array], images: Array) -> Array:
        params, head, classes = model
        return exclude(normalised_head(head, encode(params, images)), classes[None])

    return apply


def label(
    model: Model, experts: Experts, tasks: Sequence[Task], cache: Any, say: Callable[[str], None]
) -> list[ExpertLabels]:
    """Returns what each expert says about its task's test images; no label takes part."""
    return expert_predictions(
        logits_of(model.encode),
        [
            (params, *padded(experts.stacked, experts.classes, k))
            for k, params in enumerate(experts.params)
        ],
        [task.test.images for task in tasks],
        cache=cache,
        program=f"tiny CLIP, {model.name}",
        report=say,
    )


def padded(heads: Head, classes: Array, k: int) -> tuple[Head, Array]:
    """Returns task k's padded head and which of its rows exist."""
    return {name: leaf[k] for name, leaf in heads.items()}, classes[k]


def logits_on(
    model: Model, params: Params, head: Head, classes: Array, images: np.ndarray
) -> np.ndarray:
    """Returns logits [n, classes]."""
    return predict(logits_of(model.encode), (params, head, classes), images)


def score(
    model: Model, params: Sequence[Params], heads: Head, classes: Array, tasks: Sequence[Task]
) -> list[Scored]:
    """Scores each task's test images with its own encoder (often one and the same) and head."""
    scored = []
    for k, task in enumerate(tasks):
        logits = logits_on(model, params[k], *padded(heads, classes, k), task.test.images)
        ece = expected_calibration_error(jax.nn.softmax(logits, axis=-1), task.test.labels)
        scored.append(Scored(logits.argmax(axis=1) == task.test.labels, float(ece)))
    return scored


def validation_accuracies(
    model: Model, params: Sequence[Params], heads: Head, classes: Array, tasks: Sequence[Task]
) -> np.ndarray:
    """Returns accuracy in percent on the validation images, [task]."""
    return np.array([
        float(accuracy(
            logits_on(model, params[k], *padded(heads, classes, k), task.validation.images),
            task.validation.labels,
        ))
        for k, task in enumerate(tasks)
    ])  # fmt: skip


moved = jax.jit(add)


class Outcome(NamedTuple):
    """What one method gave under one seed."""

    method: str
    seed_index: Any
    scores: list[Scored]
    half: bool = False  # adapted on the first half of the test images
    adapted: Adapted | None = None
    note: str | None = None


def training_free(model: Model, seed: Seed, tasks: Sequence[Task], method: str) -> Outcome:
    """Merges without data, or gives the reference rows; the scale comes from validation images."""
    experts, count, note = seed.experts, len(tasks), None
    heads, classes = experts.stacked, experts.classes
    if method == "individual":
        params = experts.params
    elif method == "pretrained":
        from symerge_jax.models.heads import stack_heads

        params, (heads, classes) = [model.pretrained] * count, stack_heads(experts.first_heads)
    else:
        merged = jax.jit(METHODS[method].merge)(experts.task_vectors)
        scale = METHODS[method].scale
        if METHODS[method].tunes_scale:
            best = validation_accuracies(model, experts.params, heads, classes, tasks)
            tried = {
                float(s): float(np.mean(validation_accuracies(
                    model, [moved(model.pretrained, merged, scale=s)] * count,
                    heads, classes, tasks,
                ) / np.maximum(best, 1e-9)))
                for s in SCALES[method]
            }  # fmt: skip
            scale = max(tried, key=lambda s: (tried[s], -s))
            note = f"{method}: scale {scale:g} chosen on validation images"
        params = [moved(model.pretrained, merged, scale=scale)] * count
    return Outcome(method, seed, score(model, params, heads, classes, tasks), note=note)


def halves(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Splits test inputs in two random halves: one to adapt on, one to score."""
    order = np.random.default_rng(0).permutation(count)
    return np.sort(order[: count // 2]), np.sort(order[count // 2 :])


def _cost(method: str) -> int:
    """Long jobs first, so that devices end together."""
    return method == "symerge_head"


def adaptive(
    model: Model,
    seed: Seed,
    tasks: Sequence[Task],
    method: str,
    number: int,
    constants: Constants,
    settings: Settings,
    half: bool,
    bars: Bars,
) -> Outcome:
    """Adapts on unlabelled test images (or on half of them) and scores."""
    inputs, labels = [task.test.images for task in tasks], seed.labels
    if half:
        rows = [halves(len(x))[0] for x in inputs]
        inputs = [x[r] for x, r in zip(inputs, rows, strict=True)]
        labels = [ExpertLabels(*(y[r] for y in x)) for x, r in zip(labels, rows, strict=True)]
    name = f"{method}, seed {number}" + (", half" if half else "")
    steps = constants.iterations * len(tasks) * (2 if method in JOINT else 1)
    batch = constants.batch_size // (2 if method in JOINT else 1)
    follow = bars.follow(name, steps, batch)
    experts = seed.experts

    def make() -> dict[str, Any]:
        adapted = run_method(
            method, model, experts, inputs, labels, constants, number,
            lambda carry, losses: follow(losses),
        )  # fmt: skip
        lam = adapted.coefficients
        return {
            "params": adapted.params,
            "coefficients": lam if isinstance(lam, dict) else {"all": lam},
            "heads": adapted.heads,
            "losses": adapted.losses,
            "kept": adapted.kept,
        }

    key = {
        "method": method, "version": __version__, "seed": number, "model": model.name,
        "experts": digest(experts.task_vectors, experts.stacked), "inputs": digest(inputs),
        "labels": digest(*(tuple(x) for x in labels)), "constants": str(constants),
        "dtype": settings.dtype,
    }  # fmt: skip
    made = cached(
        settings.cache_folder(), "adapted", key, make, report=CONSOLE.print,
        renew=not settings.resume,
    )  # fmt: skip
    adapted = Adapted(**made)
    count = len(tasks)
    scores = score(model, [adapted.params] * count, adapted.heads, experts.classes, tasks)
    return Outcome(method, seed, scores, half, adapted)


JOINT = ("adamerging", "adamerging_taskwise")


def run_method(
    method: str,
    model: Model,
    experts: Experts,
    inputs: Sequence[np.ndarray],
    labels: Sequence[ExpertLabels],
    constants: Constants,
    seed: int,
    on_chunk: Callable[[Any, np.ndarray], None],
) -> Adapted:
    """Runs one adaptive method with its settings."""
    shared = {
        "classes": experts.classes,
        "iterations": constants.iterations,
        "initial_coefficient": constants.initial,
        "seed": seed,
        "on_chunk": on_chunk,
    }
    start = (model.encode, normalised_head, model.pretrained, experts.task_vectors, experts.stacked)
    if method.startswith("adamerging"):
        return adamerging(
            *start, inputs,
            granularity="task" if method == "adamerging_taskwise" else "leaf",
            update="joint" if method in JOINT else "sequential",
            batch_size=constants.batch_size // (2 if method in JOINT else 1),
            learning_rate=constants.entropy_rate,
            **shared,
        )  # fmt: skip
    rates = {
        "symerge": (constants.rate, constants.rate),
        "symerge_head": (0.0, constants.rate),
        "symerge_coefficients": (constants.coefficient_rate, 0.0),
    }
    coefficient_rate, head_rate = rates[method]
    return symerge(
        *start, inputs, labels,
        batch_size=constants.batch_size,
        coefficient_rate=coefficient_rate,
        head_rate=head_rate,
        **shared,
    )  # fmt: skip


def collect(
    record: records.Record,
    methods: Sequence[str],
    settings: Settings,
    tasks: Sequence[Task],
    outcomes: Sequence[Outcome],
) -> None:
    """Adds every result to the record, in table order."""
    found: dict[tuple[str, int, bool], Outcome] = {}
    counted: dict[tuple[str, bool], int] = {}
    for outcome in outcomes:  # jobs keep the order of the seeds for each method
        place = (outcome.method, outcome.half)
        seed = settings.seeds[counted.get(place, 0)]
        counted[place] = counted.get(place, 0) + 1
        found[(outcome.method, seed, outcome.half)] = outcome
        if outcome.note:
            record["notes"].append(f"seed {seed}: {outcome.note}")
    for method in methods:
        for seed in settings.seeds:
            whole = found[(method, seed, False)]
            for k, task in enumerate(tasks):
                add_one = partial(
                    records.add_result, record, method=method, seed=seed, task=task.name
                )
                correct = whole.scores[k].correct
                add_one(metric="accuracy", value=100 * correct.mean(), n=len(correct))
                add_one(metric="ece", value=whole.scores[k].ece, n=len(correct))
                if settings.data:
                    rest = halves(len(correct))[1]
                    half = found.get((method, seed, True), whole).scores[k].correct[rest]
                    add_one(metric="held_out_accuracy", value=100 * half.mean(), n=len(rest))


def draw(
    record: records.Record,
    outcomes: Sequence[Outcome],
    tasks: Sequence[Task],
    model: Model,
    settings: Settings,
    folder: Any,
) -> None:
    """Draws the pictures of the first seed, and stores its coefficients and heads."""
    figures.accuracy_per_task(record, folder / "accuracy.png")
    firsts: dict[str, Adapted] = {}
    for outcome in outcomes:
        if outcome.adapted is not None and not outcome.half:
            firsts.setdefault(outcome.method, outcome.adapted)
    if not firsts:
        return
    names = source_names({"vision": model.pretrained}, "open_clip")
    paths = [path.removeprefix("vision/") for _, path in names]
    shown = [name for name, _ in names]
    labels = [task.name for task in tasks]
    if "symerge" in firsts:
        lam = as_matrix(firsts["symerge"].coefficients, paths)
        figures.coefficient_heatmap(lam, shown, labels, folder / "coefficients.png")
    curves = {
        method: per_pass(adapted.losses, 2 if method in JOINT else 1, len(tasks))
        for method, adapted in firsts.items()
    }
    figures.learning_curves(curves, len(tasks), folder / "learning_curves.png")
    store(firsts, paths, shown, labels, folder)


def per_pass(losses: np.ndarray, batches: int, tasks: int) -> np.ndarray:
    """Averages the mini-batches that one task has in one iteration: [iteration · task]."""
    return losses.reshape(-1, batches, tasks).mean(axis=1).reshape(-1)


def store(
    adapted: Mapping[str, Adapted],
    paths: Sequence[str],
    names: Sequence[str],
    tasks: Sequence[str],
    folder: Any,
) -> None:
    """Writes coefficients [tensor, task] with the tensors' names, and the SyMerge model of this seed."""
    import io

    import safetensors.numpy

    from symerge_jax.cache import flatten

    arrays: dict[str, np.ndarray] = {"tensors": np.array(names), "tasks": np.array(tasks)}
    for method, one in adapted.items():
        if not ("all" in one.coefficients and len(one.coefficients) == 1):
            arrays[method] = as_matrix(one.coefficients, paths)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_atomically(folder / "coefficients.npz", buffer.getvalue())
    if "symerge" in adapted:
        one = adapted["symerge"]
        tensors = flatten({"encoder": one.params, "heads": one.heads})
        write_atomically(folder / "model" / "merged.safetensors", safetensors.numpy.save(tensors))


def describe(
    settings: Settings, methods: Sequence[str], constants: Constants, devices: Sequence[Any]
) -> int:
    """Says what a run would do."""
    source = settings.data or f"embedded world, {settings.task_count} tasks"
    print(f"inputs: {source}; seeds {list(settings.seeds)}; devices {len(devices)}")
    print(f"methods: {', '.join(methods)}")
    print(f"fine-tuning: {constants.recipe}")
    print(f"adaptation: {constants.iterations} rounds over the tasks, batch {constants.batch_size}")
    return 0


if __name__ == "__main__":
    sys.exit(run(main, Settings, None, prog="python -m experiments.vision"))
