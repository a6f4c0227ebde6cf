"""How much faster is the compiled adaptation loop than stepping from Python?

    python -m benchmarks.adaptation_step
    python -m benchmarks.adaptation_step --model ViT-B-32 --steps 40 --json FILE

SyMerge's rule runs in two ways, on random weights, images and expert labels of a model's size:

compiled: `symerge_jax.adapt.fit.fit`, one program for up to 200 steps; images stay on the device.
eager: a Python loop as in published code. Each step gathers its images on the host, dispatches one
    jitted function (merge, loss, gradient, Adam) and reads the loss back.

Both compile first; what tracing and XLA took is a column of its own. Then they take turns, and each
pair of neighbouring runs gives one ratio. The exit code is 1 if their losses differ.

What the figures do not say:

- The eager step is itself one XLA program. Code that dispatches every operation, decodes images, or
  asks the experts anew at each step (as the released code does) is slower than it.
- What is compared is dispatch, transfer and waiting. The larger the model, the less these weigh.
- The compiled run includes the transfer of all images, which a longer run spreads over more steps.
- Other work on the machine slows both down. Look at the range of the ratios before the median.
"""

import contextlib
import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from rich.console import Console
from rich.table import Table

from benchmarks.merge_methods_problem import aligned, on_device
from experiments.environment import environment
from symerge_jax.adapt import schedule as schedules
from symerge_jax.adapt.coefficients import per_leaf
from symerge_jax.adapt.fit import ADAM, Batch, Data, Loss, fit, pool
from symerge_jax.adapt.merged import Constants, Trainables, encoder_loss, objective_ids
from symerge_jax.adapt.objectives import ExpertLabels
from symerge_jax.adapt.schedule import Schedule
from symerge_jax.cli.errors import CHECK_FAILED, DONE, nearest, run
from symerge_jax.data.preprocess import normalise
from symerge_jax.errors import BadInput
from symerge_jax.files import write_atomically
from symerge_jax.models import clip
from symerge_jax.models.heads import normalised_head
from symerge_jax.notation import Array

CLASSES = 100  # of every task; eight tasks of the literature have 10 to 397
RATES = Trainables(0.01, 0.01)
# Two programs round differently, and Adam carries that on from step to step.
TOLERANCE = 1e-3


@dataclasses.dataclass(frozen=True)
class Settings:
    """Times the compiled adaptation loop against a Python loop over jitted steps."""

    model: str = "tiny-64x3"
    """Preset of symerge_jax.models.clip; its image tower is adapted."""
    tasks: int = 8
    """Tasks that are merged."""
    steps: int = 200
    """Optimiser steps of a run."""
    batch_size: int = 32
    """Images per step."""
    repeats: int = 5
    """Timed runs of each loop, taken in turns."""
    images: int = 256
    """Unlabelled images of each task."""
    json: Path | None = None
    """A file for the figures and the environment."""


class Problem(NamedTuple):
    """What both loops are given."""

    loss: Loss
    trainables: Trainables
    constants: Constants
    data: Data
    schedule: Schedule


class EagerState(NamedTuple):
    """What the eager loop carries from step to step."""

    trainables: Trainables
    coefficient_adam: Any
    head_adam: Any  # leaves [task, ...]: a head has moments and a step count of its own
    seen: Array  # bool [task], which heads have had a step


class Loop(NamedTuple):
    """One way to run a schedule: the losses [step] it gives, and what it costs."""

    losses: Callable[[Problem], np.ndarray]
    compile_seconds: float


def main(settings: Settings) -> int:
    """Measures, prints the table, writes the JSON file; returns 1 if the losses differ."""
    check(settings)
    begun_in = environment()
    problem = make_problem(settings)
    eager_losses = partial(eager_loop, make_eager_step(problem.loss))
    short = problem._replace(schedule=problem.schedule.part(0, 1))
    loops = {
        "compiled": Loop(compiled_loop, compile_seconds(compiled_loop, problem)),
        "eager": Loop(eager_losses, compile_seconds(eager_losses, short)),
    }
    seconds, losses = measure(loops, problem, settings.repeats)
    found = figures(settings, problem, loops, seconds, losses)
    print_table(found)
    if settings.json:
        text = json.dumps({**found, "environment": begun_in}, indent=2)
        write_atomically(settings.json, f"{text}\n")
    return DONE if found["losses"]["agree"] else CHECK_FAILED


def check(settings: Settings) -> None:
    """Raises `BadInput` for an unknown model and for counts below 1."""
    if settings.model not in clip.PRESETS:
        raise BadInput(
            f"unknown model {settings.model!r}{nearest(settings.model, clip.PRESETS)}; known: "
            f"{', '.join(clip.PRESETS)}"
        )
    for name in ("tasks", "steps", "batch_size", "repeats", "images"):
        if getattr(settings, name) < 1:
            raise BadInput(f"{name} must be at least 1, got {getattr(settings, name)}")


def make_problem(settings: Settings, dtype: str = "float32") -> Problem:
    """Draws weights, images and expert labels, all of them random.

    Args:
        settings: the model, the tasks, and how many steps on how many images.
        dtype: of the task vectors and of the computation; the rest is float32.
    """
    config = clip.PRESETS[settings.model].vision
    tower = clip.encode_image(config, dtype=None if dtype == "float32" else dtype)

    def encode(params: Any, images: Array) -> Array:
        return tower(params, normalise(images))

    keys = jax.random.split(jax.random.key(0), settings.tasks + 2)
    pretrained = clip.initial_params(config, keys[1])
    task_vectors = _task_vectors(config, keys[2:], jnp.dtype(dtype))
    features = config.projection or config.width
    weight = jax.random.normal(keys[0], (settings.tasks, CLASSES, features)) * features**-0.5
    heads = {"weight": 10 * weight, "bias": jnp.zeros((settings.tasks, CLASSES))}
    inputs, experts = _inputs(settings, config.image_size)
    constants = Constants(
        pretrained,
        task_vectors,
        jnp.ones((settings.tasks, CLASSES), bool),
        objective_ids(["code"] * settings.tasks),
    )
    data = pool(inputs, experts)
    schedule = schedules.sequential(
        data.sizes,
        iterations=-(-settings.steps // settings.tasks),
        batch_size=settings.batch_size,
        seed=0,
    ).part(0, settings.steps)
    trainables = Trainables(per_leaf(task_vectors, 0.3), heads)
    return Problem(encoder_loss(encode, normalised_head), trainables, constants, data, schedule)


def _task_vectors(config: clip.VisionConfig, keys: Array, dtype: Any) -> Any:
    """Returns τ, leaves [task, ...], a tenth of fresh weights, drawn with no second copy of all."""
    drawn: dict[str, np.ndarray] = {}
    for k, key in enumerate(keys):
        leaves: dict[str, Any] = flatten_dict(clip.initial_params(config, key), sep="/")
        for path, leaf in leaves.items():
            if k == 0:
                drawn[path] = aligned((len(keys), *leaf.shape), dtype)
            drawn[path][k] = (0.1 * leaf).astype(dtype)
    return unflatten_dict(on_device(drawn), sep="/")


def _inputs(settings: Settings, edge: int) -> tuple[list[np.ndarray], list[ExpertLabels]]:
    """Each task's images, uint8 [images, edge, edge, 3], and its expert's random answers."""
    rng = np.random.default_rng(0)
    count = settings.images
    inputs, experts = [], []
    for _ in range(settings.tasks):
        inputs.append(rng.integers(0, 256, (count, edge, edge, 3), np.uint8))
        # Confidence 1 keeps every sample; one dropped for a rounding error would part the loops.
        labels = rng.integers(0, CLASSES, count, np.int32)
        experts.append(ExpertLabels(labels, np.ones(count, np.float32)))
    return inputs, experts


def compiled_loop(problem: Problem) -> np.ndarray:
    """Runs the schedule as `symerge` does with its defaults; returns losses [step]."""
    return fit(
        problem.loss,
        problem.trainables,
        problem.data,
        problem.schedule,
        rates=RATES,
        constants=problem.constants,
        per_task=Trainables(False, True),
        idle="zero",
    ).losses


def make_eager_step(loss: Loss) -> Callable[..., tuple[EagerState, Array]]:
    """Returns the jitted function that makes one step and gives its loss []."""

    @partial(jax.jit, donate_argnums=0)
    def step(
        state: EagerState,
        constants: Constants,
        task: Array,
        images: Array,
        targets: ExpertLabels,
        mask: Array,
    ) -> tuple[EagerState, Array]:
        unread = jax.random.key(0), jnp.int32(0)
        batch = Batch(task, images, targets, mask, *unread)

        def value(trainables: Trainables) -> Array:
            return loss(trainables, constants, (), batch)[0]

        own, gradients = jax.value_and_grad(value)(state.trainables)
        return _adam_step(state, gradients, task), own

    return step


def _adam_step(state: EagerState, gradients: Trainables, task: Array) -> EagerState:
    """Adam on λ and each head seen so far; where a gradient is zero, momentum moves the head."""
    moved, coefficient_adam = ADAM.update(gradients.coefficients, state.coefficient_adam)
    head_moved, head_adam = jax.vmap(ADAM.update)(gradients.heads, state.head_adam)
    seen = state.seen | (jnp.arange(len(state.seen), dtype=task.dtype) == task)

    def if_seen(new: Array, old: Array) -> Array:
        return jnp.where(seen.reshape(-1, *(1,) * (new.ndim - 1)), new, old)

    coefficients = jax.tree.map(
        lambda x, u: x + RATES.coefficients * u, state.trainables.coefficients, moved
    )
    heads = jax.tree.map(
        lambda x, u: if_seen(x + RATES.heads * u, x), state.trainables.heads, head_moved
    )
    head_adam = jax.tree.map(if_seen, head_adam, state.head_adam)
    return EagerState(Trainables(coefficients, heads), coefficient_adam, head_adam, seen)


def eager_loop(step: Callable[..., tuple[EagerState, Array]], problem: Problem) -> np.ndarray:
    """Runs the schedule one dispatch per step, reading each loss; returns losses [step]."""
    data, trainables = problem.data, jax.tree.map(jnp.array, problem.trainables)
    state = EagerState(
        trainables,
        ADAM.init(trainables.coefficients),
        jax.vmap(ADAM.init)(trainables.heads),
        jnp.zeros(len(data.sizes), bool),
    )
    offsets = np.cumsum([0, *data.sizes[:-1]])
    losses = []
    for task, indices, mask, _ in zip(*problem.schedule, strict=True):
        rows = offsets[task] + indices
        images, targets = jax.tree.map(lambda x, r=rows: x[r], (data.inputs, data.targets))
        state, loss = step(state, problem.constants, task, images, targets, mask)
        losses.append(float(loss))
    return np.array(losses)


def compile_seconds(losses: Callable[[Problem], np.ndarray], problem: Problem) -> float:
    """Runs a loop for the first time; returns what tracing, lowering and XLA took of it."""
    with _compilations() as durations:
        losses(problem)
    return sum(durations)


@contextlib.contextmanager
def _compilations() -> Iterator[list[float]]:
    durations: list[float] = []

    def listen(event: str, duration_secs: float, **_: Any) -> None:
        if event.startswith("/jax/core/compile/"):
            durations.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield durations
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def measure(
    loops: dict[str, Loop], problem: Problem, repeats: int
) -> tuple[dict[str, list[float]], dict[str, list[np.ndarray]]]:
    """Runs the loops in turns, the order reversed from pair to pair; returns seconds and losses."""
    seconds: dict[str, list[float]] = {name: [] for name in loops}
    losses: dict[str, list[np.ndarray]] = {name: [] for name in loops}
    for repeat in range(repeats):
        for name in list(loops)[:: -1 if repeat % 2 else 1]:
            begin = time.perf_counter()
            losses[name].append(loops[name].losses(problem))
            seconds[name].append(time.perf_counter() - begin)
    return seconds, losses


def figures(
    settings: Settings,
    problem: Problem,
    loops: dict[str, Loop],
    seconds: dict[str, list[float]],
    losses: dict[str, list[np.ndarray]],
) -> dict[str, Any]:
    """Returns the JSON object, but for the environment."""
    ratios = [e / c for e, c in zip(seconds["eager"], seconds["compiled"], strict=True)]
    count = int(problem.schedule.sample_mask.sum())
    compiled, eager = np.stack(losses["compiled"]), np.stack(losses["eager"])
    chosen = {k: v for k, v in dataclasses.asdict(settings).items() if k != "json"}
    return {
        "benchmark": "adaptation_step",
        "settings": chosen,
        **{name: _speed(loop, seconds[name], settings, count) for name, loop in loops.items()},
        "ratio": {
            "pairs": ratios,
            "median": statistics.median(ratios),
            "min": min(ratios),
            "max": max(ratios),
        },
        "losses": {
            "agree": bool(np.allclose(compiled, eager, rtol=TOLERANCE, atol=TOLERANCE)),
            "tolerance": TOLERANCE,
            "largest_difference": float(np.abs(compiled - eager).max()),
            "first": float(compiled[0, 0]),
            "last": float(compiled[0, -1]),
        },
    }


def _speed(loop: Loop, seconds: list[float], settings: Settings, images: int) -> dict[str, Any]:
    median = statistics.median(seconds)
    return {
        "compile_seconds": loop.compile_seconds,
        "run_seconds": seconds,
        "ms_per_step": 1000 * median / settings.steps,
        "images_per_second": images / median,
    }


def print_table(found: dict[str, Any]) -> None:
    """Prints both loops' speeds, their ratios, and whether the losses agree."""
    settings, ratio, losses = found["settings"], found["ratio"], found["losses"]
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1))
    table.add_column("loop")
    for heading in ("ms/step", "images/s", "compile s"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name in ("compiled", "eager"):
        row = found[name]
        table.add_row(
            name,
            f"{row['ms_per_step']:.2f}",
            f"{row['images_per_second']:.0f}",
            f"{row['compile_seconds']:.1f}",
        )
    console = Console(highlight=False)
    console.print(
        f"{settings['model']}, {settings['tasks']} tasks, batches of {settings['batch_size']}, "
        f"{settings['steps']} steps; medians of {settings['repeats']} runs"
    )
    console.print(table)
    console.print(
        f"eager / compiled, pair by pair: median {ratio['median']:.2f}, "
        f"{ratio['min']:.2f} to {ratio['max']:.2f}"
    )
    verdict = "agree" if losses["agree"] else "[bold red]differ[/]"
    console.print(
        f"losses {verdict}: {losses['first']:.3f} → {losses['last']:.3f}, "
        f"largest difference {losses['largest_difference']:.1e}"
    )


if __name__ == "__main__":
    sys.exit(run(main, Settings, None, prog="python -m benchmarks.adaptation_step"))
