"""How fast is a SyMerge step beside PyTorch?

    python -m benchmarks.against_torch
    python -m benchmarks.against_torch --model ViT-L-14 --tasks 20 --device gpu --json FILE

The same random weights, images and mini-batches go through three loops (`against_torch_rules` has
the first two, and says more):

published: PyTorch as the method was published. Task vectors are added up tensor by tensor, the
    expert is asked anew at each step, and both are brought to the device each time.
improved: PyTorch with stacked task vectors, one product per tensor, and the experts' labels known.
ours: `symerge_jax.adapt.fit.fit`, compiled, the experts' labels known.

They take turns; what compiling takes is not in their times. "merge" is θ from τ and λ alone,
without gradients. The exit code is 1 if their losses differ by more than a thousandth, in bfloat16
by more than 5 %: there each rounds differently, 8 bits at a time.

floor: what this device was measured to do, over what a step must do (`benchmarks.floor`).
memory: of each loop in a process of its own: the resident set, and what the device held; of ours
    also how XLA splits one step compiled by itself, without the loop.
compile: our loop, first with no kept program, then read from the folder of programs.

float32 products have the same precision on both sides, by default the highest ("tf32" allows
TensorFloat-32). In bfloat16 task vectors and computation are in it; λ, heads, softmax and losses
are float32. With `--torch-compile` the improved loop runs its tower through torch.compile.

What the figures do not say:

- Experts are asked once per image by `improved` and `ours`, before the loop. "expert" is what
  asking costs per batch; where no image comes twice, add it to their steps.
- Images are in memory. Reading and decoding them would be the same for all.
- On a CPU nothing moves, so the published loop's transfers are free. PyTorch's threads there wait
  for each other by spinning: another busy process slows them down far more than ours.
- Random weights do not change the time of a step; random images are as easy as any.
"""

import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from benchmarks import adaptation_step, floor, floor_counts
from benchmarks import against_torch_process as process
from benchmarks.adaptation_step import Loop, Problem, compiled_loop
from benchmarks.against_torch_table import print_tables
from benchmarks.merge_methods_problem import cores
from experiments.environment import environment
from symerge_jax.adapt.coefficients import clamp_all, interpolate
from symerge_jax.cli.errors import CHECK_FAILED, DONE, run
from symerge_jax.cli.progress import say
from symerge_jax.errors import BadInput
from symerge_jax.files import write_atomically
from symerge_jax.models.clip import PRESETS

TOLERANCE = {"float32": adaptation_step.TOLERANCE, "bfloat16": 0.05}


@dataclasses.dataclass(frozen=True)
class Settings:
    """Times a SyMerge step against PyTorch: as published, and improved."""

    model: str = "ViT-B-32"
    """Preset of symerge_jax.models.clip; its image tower is adapted."""
    tasks: int = 8
    """Tasks that are merged."""
    batch_size: int = 32
    """Images per step."""
    steps: int = 8
    """Optimiser steps of a run."""
    repeats: int = 3
    """Timed runs of each loop, taken in turns."""
    images: int = 64
    """Unlabelled images of each task."""
    device: Literal["cpu", "gpu"] = "cpu"
    """Where both run."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the task vectors and the computation."""
    precision: Literal["highest", "tf32"] = "highest"
    """Of float32 matrix products on a GPU."""
    torch_compile: bool = False
    """Whether the improved loop runs its tower through torch.compile."""
    memory: bool = True
    """Whether to start a process per loop for its memory and for compile times."""
    floor: bool = True
    """Whether to measure this device and work out the floor."""
    json: Path | None = None
    """A file for the figures and the environment."""


def main(settings: Settings) -> int:
    """Measures, prints the tables, writes the JSON file; returns 1 if the losses differ."""
    version = torch_version()
    if version is None:
        raise BadInput(
            "benchmarks.against_torch compares with PyTorch, which is not installed; "
            "pip install torch"
        )
    adaptation_step.check(_sizes(settings))
    words = _plain(settings)
    process.on(settings.device)
    begun_in = {**environment(), "torch": version, "torch_threads": cores()}
    memory = None
    if settings.memory:  # before anything large is in this process
        say("each loop in a process of its own")
        memory = process.in_processes(words)
    with jax.default_matmul_precision(process.jax_precision(words)):
        least = floor_figures(settings) if settings.floor else None
        found = {
            "benchmark": "against_torch",
            "settings": words,
            **timed(settings),
            "floor": least,
            "memory": memory,
        }
    if least is not None:
        found["times_floor"] = found["ours"]["ms_per_step"] / least["ms"]["floor"]
    print_tables(found)
    if settings.json:
        text = json.dumps({**found, "environment": begun_in}, indent=2)
        write_atomically(settings.json, f"{text}\n")
    return DONE if found["losses"]["agree"] else CHECK_FAILED


def torch_version() -> str | None:
    """Returns PyTorch's version, None where it is not installed."""
    try:
        return metadata.version("torch")
    except metadata.PackageNotFoundError:
        return None


def _sizes(settings: Settings) -> adaptation_step.Settings:
    return adaptation_step.Settings(
        settings.model,
        settings.tasks,
        settings.steps,
        settings.batch_size,
        settings.repeats,
        settings.images,
    )


def _plain(settings: Settings) -> dict[str, Any]:
    return {k: v for k, v in dataclasses.asdict(settings).items() if k != "json"}


def floor_figures(settings: Settings) -> dict[str, Any]:
    """Measures the device and counts a step; milliseconds, and XLA's view of one step."""
    say("measuring the device")
    config = PRESETS[settings.model].vision
    dtype, batch = settings.dtype, settings.batch_size
    here = floor_counts.Machine(floor.bandwidth(), {dtype: floor.matrix_rate(config, batch, dtype)})
    phases = floor_counts.work(config, settings.tasks, batch, dtype)
    least = floor_counts.seconds(phases, here, dtype)
    step = floor_counts.compiled_step(config, settings.tasks, batch, dtype)
    return {
        "ms": {name: 1000 * own for name, own in least.items()},
        "machine": here._asdict(),
        "phases": {name: phase._asdict() for name, phase in phases.items()},
        "xla": floor_counts.cost(step),
        "split": split(settings, floor_counts.cost(step)),
    }


def split(settings: Settings, cost: dict[str, float]) -> dict[str, float]:
    """Returns what the memory of our step is made of, in bytes."""
    size = floor_counts.BYTES[settings.dtype]
    numbers = floor_counts.parameters(PRESETS[settings.model].vision)
    task_vectors = settings.tasks * numbers * size
    return {
        "task_vectors": task_vectors,
        "pretrained": 4 * numbers,
        "other_arguments": cost["argument_bytes"] - task_vectors - 4 * numbers,
        "outputs": cost["output_bytes"] - cost["alias_bytes"],
        "temporaries": cost["temporary_bytes"],
    }


def timed(settings: Settings) -> dict[str, Any]:
    """Runs the loops and the merges in turns; returns their times, ratios and losses."""
    from benchmarks import against_torch_rules as rules

    say("making the problem")
    config = PRESETS[settings.model].vision
    problem = adaptation_step.make_problem(_sizes(settings), settings.dtype)
    device = rules.use(settings.device, cores(), settings.precision)
    given = rules.given(config, problem, device, settings.dtype)
    experts = rules.Experts.of(given)
    say("asking the experts")
    answers, asking = rules.answers(given, experts)
    problem = problem._replace(data=problem.data._replace(targets=answers))
    given = given._replace(targets=rules.as_pair(answers))
    held = rules.Held.of(given, compiled=settings.torch_compile)
    loops = {
        "published": lambda given: rules.published(given, experts),
        "improved": lambda given: rules.improved(given, held),
    }
    warm = given._replace(steps=given.steps[:1])
    say("compiling")
    first = {name: seconds_of(lambda run=run: run(warm)) for name, run in loops.items()}
    first["ours"] = adaptation_step.compile_seconds(compiled_loop, problem)
    say("timing the merge")
    merges = merge_times(rules, given, experts, held, problem, settings.repeats)
    say("timing the loops")
    runs = {name: Loop(lambda _, run=run: run(given), first[name]) for name, run in loops.items()}
    runs["ours"] = Loop(compiled_loop, first["ours"])
    seconds, losses = adaptation_step.measure(runs, problem, settings.repeats)
    per_step = {name: [1000 * s / settings.steps for s in own] for name, own in seconds.items()}
    return {
        **{f"ratio_{name}": ratio(per_step, name) for name in ("published", "improved")},
        "ratio_merge": ratio(merges, "published"),
        "ratio_merge_improved": ratio(merges, "improved"),
        **{name: speed(own, settings) for name, own in per_step.items()},
        "first_seconds": first,
        "expert_ms": 1000 * statistics.median(asking),
        "pairs": {name: pairs(per_step, name) for name in ("published", "improved")},
        "merge": {name: {"ms": statistics.median(own), "all": own} for name, own in merges.items()},
        "losses": agreement(losses, TOLERANCE[settings.dtype]),
    }


def seconds_of(call: Callable[[], Any]) -> float:
    """Returns the seconds a call takes."""
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def merge_times(
    rules: Any, given: Any, experts: Any, held: Any, problem: Problem, repeats: int
) -> dict[str, list[float]]:
    """Returns milliseconds of θ from τ and λ, without gradients, in turns after a first call."""
    merge = jax.jit(lambda start, tau, lam: interpolate(start, tau, clamp_all(lam)))
    constants, lam = problem.constants, problem.trainables.coefficients
    ways = {
        "published": lambda: rules.merged_as_published(given, experts),
        "improved": lambda: rules.merged_as_improved(given, held),
        "ours": lambda: jax.block_until_ready(
            merge(constants.pretrained, constants.task_vectors, lam)
        ),
    }
    found: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(-1, repeats):
        for name in list(ways)[:: -1 if repeat % 2 else 1]:
            taken = 1000 * seconds_of(ways[name])
            if repeat >= 0:
                found[name].append(taken)
    return found


def ratio(times: dict[str, list[float]], name: str) -> float:
    """Returns their median time over ours: above 1, ours is faster."""
    return statistics.median(times[name]) / statistics.median(times["ours"])


def pairs(times: dict[str, list[float]], name: str) -> dict[str, Any]:
    """Returns their time over ours, run by run."""
    own = [theirs / ours for theirs, ours in zip(times[name], times["ours"], strict=True)]
    return {"all": own, "median": statistics.median(own), "min": min(own), "max": max(own)}


def speed(per_step: list[float], settings: Settings) -> dict[str, Any]:
    """Returns a loop's milliseconds per step and images per second."""
    median = statistics.median(per_step)
    return {
        "ms_per_step": median,
        "all_ms_per_step": per_step,
        "images_per_second": 1000 * settings.batch_size / median,
    }


def agreement(losses: dict[str, list[np.ndarray]], tolerance: float) -> dict[str, Any]:
    """Compares the losses of all runs [repeat, step] with ours."""
    every = {name: np.stack(own) for name, own in losses.items()}
    ours = every["ours"]
    apart = {name: float(np.abs(own - ours).max()) for name, own in every.items()}
    near = [np.allclose(own, ours, rtol=tolerance, atol=tolerance) for own in every.values()]
    return {
        "agree": all(near),
        "tolerance": tolerance,
        "largest_difference": {name: apart[name] for name in ("published", "improved")},
        "first": float(ours[0, 0]),
        "last": float(ours[0, -1]),
    }


if __name__ == "__main__":
    sys.exit(run(main, Settings, None, prog="python -m benchmarks.against_torch"))
