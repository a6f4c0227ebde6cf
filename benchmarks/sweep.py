"""What does a sweep cost against its runs one by one?

    python -m benchmarks.sweep
    python -m benchmarks.sweep --model ViT-B-32 --iterations 2 --points 4 --json FILE

SyMerge at several learning rates, on random weights, images and expert labels of a model's size:

encoder: coefficients and heads train, and each step merges the encoder. `sweep` against the sum of
    as many calls of `symerge`; asked is at most 1.1 times their time on a CPU.
heads only: the features are worked out once. `sweep` against one call of `symerge`; asked of 16
    points is at most 8 times its time.

Both compile first, and how many programs a sweep compiled is counted: one. Then they take turns,
and each pair of neighbouring measurements gives one ratio. The exit code is 1 if a sweep compiled
more, or compiled again, or its losses differ from those of the single runs.

What the figures do not say:

- A sweep takes turns with nothing: on several devices (`--devices`) it is the single runs on one
  device that it is compared with.
- Heads of more classes than the embedded world's (`--classes`) take Adam longer than the rest of a
  step takes: their state is read and written for all tasks, and the ratio approaches the number of
  points.
- Other work on the machine slows both down. Look at the range of the ratios before the median.
"""

import contextlib
import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from experiments.environment import environment
from symerge_jax import trees
from symerge_jax.adapt.objectives import ExpertLabels
from symerge_jax.adapt.sweep import Point, sweep
from symerge_jax.adapt.symerge import symerge
from symerge_jax.cli.errors import CHECK_FAILED, DONE, nearest, run
from symerge_jax.data.preprocess import normalise
from symerge_jax.errors import BadInput
from symerge_jax.files import write_atomically
from symerge_jax.models import clip
from symerge_jax.models.heads import normalised_head
from symerge_jax.notation import Array
from symerge_jax.parallel import use_devices

PROGRAM = "jit(_fun)"  # what JAX calls a function that is mapped over devices
# Lanes of an accelerator round differently, and Adam carries that on from step to step.
TOLERANCE = 1e-3
LIMITS = {"encoder": 1.1, "heads only": 8.0}


@dataclasses.dataclass(frozen=True)
class Settings:
    """Times sweeps against their runs one by one."""

    model: str = "tiny-64x3"
    """Preset of symerge_jax.models.clip; its image tower is adapted."""
    tasks: int = 8
    """Tasks that are merged."""
    classes: int = 10
    """Classes of every task."""
    points: int = 16
    """Runs of a sweep."""
    iterations: int = 10
    """Rounds over the tasks where each step merges the encoder."""
    head_iterations: int = 100
    """Rounds over the tasks where only heads train."""
    batch_size: int = 32
    """Images per step."""
    images: int = 128
    """Unlabelled images of each task."""
    repeats: int = 3
    """Timed pairs of each kind."""
    devices: int = 1
    """Devices of the sweeps; single runs have one."""
    lanes: int | None = None
    """Runs that a device takes through the steps together; chosen otherwise."""
    json: Path | None = None
    """A file for the figures and the environment."""


class Kind(NamedTuple):
    """What is compared: a sweep, and single runs whose losses [step] it should repeat.

    Attributes:
        points: of the sweep.
        sweep: gives the losses of all points.
        single: point → its losses.
        singles: how many of the points a pair runs one by one.
    """

    points: Sequence[Point]
    sweep: Callable[[], list[np.ndarray]]
    single: Callable[[Point], np.ndarray]
    singles: int


def main(settings: Settings) -> int:
    """Measures, prints the table, writes the JSON file; returns 1 if a check failed."""
    check(settings)
    devices = use_devices(settings.devices)
    begun_in = environment()
    chosen = {k: v for k, v in dataclasses.asdict(settings).items() if k != "json"}
    found: dict[str, Any] = {"benchmark": "sweep", "settings": chosen, "kinds": {}}
    for name, kind in kinds(settings, devices).items():
        found["kinds"][name] = measured(kind, settings.repeats, LIMITS[name])
    print_table(found)
    if settings.json:
        text = json.dumps({**found, "environment": begun_in}, indent=2)
        write_atomically(settings.json, f"{text}\n")
    good = all(
        one["losses_agree"] and one["programs"] <= 1 and not one["programs_later"]
        for one in found["kinds"].values()
    )
    return DONE if good else CHECK_FAILED


def check(settings: Settings) -> None:
    """Raises `BadInput` for an unknown model and for counts below 1."""
    if settings.model not in clip.PRESETS:
        raise BadInput(
            f"unknown model {settings.model!r}{nearest(settings.model, clip.PRESETS)}; known: "
            f"{', '.join(clip.PRESETS)}"
        )
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if isinstance(value, int) and value < 1:
            raise BadInput(f"{field.name} must be at least 1, got {value}")


def kinds(settings: Settings, devices: Sequence[Any]) -> dict[str, Kind]:
    """Draws weights, images and expert labels, all random, and returns what is to be compared."""
    config = clip.PRESETS[settings.model].vision
    tower = clip.encode_image(config)

    def encode(params: Any, images: Array) -> Array:
        return tower(params, normalise(images))

    keys = jax.random.split(jax.random.key(0), settings.tasks + 2)
    pretrained, *drawn = (clip.initial_params(config, key) for key in keys[1:])
    task_vectors = jax.tree.map(lambda tau: 0.1 * tau, trees.stack(drawn))
    width = config.projection or config.width
    weight = jax.random.normal(keys[0], (settings.tasks, settings.classes, width)) * width**-0.5
    heads = {"weight": 10 * weight, "bias": jnp.zeros((settings.tasks, settings.classes))}
    rng = np.random.default_rng(0)
    shape = (settings.images, config.image_size, config.image_size, 3)
    inputs = [rng.integers(0, 256, shape, np.uint8) for _ in range(settings.tasks)]
    # Confidence 1 keeps every sample; one dropped for a rounding error would part the runs.
    experts = [
        ExpertLabels(
            rng.integers(0, settings.classes, settings.images, np.int32),
            np.ones(settings.images, np.float32),
        )
        for _ in range(settings.tasks)
    ]
    given = (encode, normalised_head, pretrained, task_vectors, heads, inputs, experts)
    rates = np.geomspace(1e-3, 3e-2, settings.points).tolist()
    both = [Point(rate, rate) for rate in rates]
    heads_only = [Point(0.0, rate) for rate in rates]

    def kind(points: Sequence[Point], iterations: int, singles: int) -> Kind:
        options: dict[str, Any] = {"iterations": iterations, "batch_size": settings.batch_size}

        def all_at_once() -> list[np.ndarray]:
            found = sweep(*given, points, **options, devices=devices, lanes=settings.lanes)
            return [one.losses for one in found]

        return Kind(points, all_at_once, partial(_single, given, options), singles)

    return {
        "encoder": kind(both, settings.iterations, settings.points),
        "heads only": kind(heads_only, settings.head_iterations, 1),
    }


def _single(given: tuple[Any, ...], options: dict[str, Any], point: Point) -> np.ndarray:
    return symerge(
        *given,
        coefficient_rate=point.coefficient_rate,
        head_rate=point.head_rate,
        initial_coefficient=point.initial_coefficient,
        seed=point.seed,
        **options,
    ).losses


def measured(kind: Kind, repeats: int, limit: float) -> dict[str, Any]:
    """Compiles both, then runs them in turns, the order reversed from pair to pair."""
    with compilations() as first:
        at_once = kind.sweep()
    with compilations() as first_single:
        one_by_one = [kind.single(point) for point in kind.points]
    seconds: dict[str, list[float]] = {"sweep": [], "single": []}

    def take_turn(name: str) -> None:
        begin = time.perf_counter()
        if name == "sweep":
            kind.sweep()
        else:
            for point in kind.points[: kind.singles]:
                kind.single(point)
        seconds[name].append(time.perf_counter() - begin)

    with compilations() as later:
        for repeat in range(repeats):
            for name in list(seconds)[:: -1 if repeat % 2 else 1]:
                take_turn(name)
    ratios = [a / b for a, b in zip(seconds["sweep"], seconds["single"], strict=True)]
    far = float(np.abs(np.stack(at_once) - np.stack(one_by_one)).max())
    return {
        "points": len(kind.points),
        "singles": kind.singles,
        "steps": len(at_once[0]),
        "sweep_seconds": seconds["sweep"],
        "single_seconds": seconds["single"],
        "ratio": {
            "pairs": ratios,
            "median": statistics.median(ratios),
            "min": min(ratios),
            "max": max(ratios),
        },
        "limit": limit,
        "compile_seconds": sum(seconds for _, seconds in first),
        "single_compile_seconds": sum(seconds for _, seconds in first_single),
        "programs": sum(name == PROGRAM for name, _ in first),
        "programs_later": sum(name == PROGRAM for name, _ in later),
        "losses_agree": bool(far <= TOLERANCE),
        "largest_difference": far,
    }


@contextlib.contextmanager
def compilations() -> Iterator[list[tuple[str, float]]]:
    """Collects the programs that XLA compiles meanwhile, and the seconds of each."""
    found: list[tuple[str, float]] = []

    def listen(event: str, duration_secs: float, **about: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            found.append((about.get("fun_name", ""), duration_secs))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def print_table(found: dict[str, Any]) -> None:
    """Prints both kinds: times, ratios, programs, and whether the losses agree."""
    settings = found["settings"]
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1))
    table.add_column("trains", no_wrap=True)
    for heading in ("sweep s", "single s", "of runs", "ratio", "limit", "compiled", "losses"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, one in found["kinds"].items():
        ratio, kept = one["ratio"], one["ratio"]["median"] <= one["limit"]
        table.add_row(
            name,
            f"{statistics.median(one['sweep_seconds']):.2f}",
            f"{statistics.median(one['single_seconds']):.2f}",
            f"{one['singles']}",
            f"{'' if kept else '✗ '}{ratio['median']:.2f} ({ratio['min']:.2f}–{ratio['max']:.2f})",
            f"≤ {one['limit']:g}",
            f"{one['programs']} + {one['programs_later']}",
            "agree" if one["losses_agree"] else "[bold red]differ[/]",
        )
    console = Console(highlight=False)
    console.print(
        f"{settings['model']}, {settings['tasks']} tasks of {settings['classes']} classes, batches "
        f"of {settings['batch_size']}, {settings['points']} points on {settings['devices']} "
        f"device{'s' * (settings['devices'] > 1)}; medians of {settings['repeats']}"
    )
    console.print(table)


if __name__ == "__main__":
    sys.exit(run(main, Settings, None, prog="python -m benchmarks.sweep"))
