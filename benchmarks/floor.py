"""How fast could a SyMerge step be at all?

    python -m benchmarks.floor
    python -m benchmarks.floor --models ViT-B-32 --tasks 8 --no-xla --json FILE

Counts what one step on an image tower must calculate and move, and divides by what this device was
measured to do. A step has three phases: merge (θ = θ₀ + Σ λ τ), tower (its matrix products forward
and backward), and the gradient of λ (<dL/dθ, τ>). Each takes at least

    max(FLOPs / rate of matrix products, bytes / bandwidth of the memory)

and the floor is their sum, since each phase needs the result of the one before. "overlapped" is the
same maximum over the whole step, which no order of the work can go below.

rate: that of products with the shapes of this model, forward and for both gradients, weighted as a
    step has them. bandwidth: the better of a triad a = b + s c and of reading alone.
XLA: what the compiler says about one compiled step (`cost_analysis`). It counts elementwise work
    too, and operands once per operation. The adaptation loop itself is a while loop, of which
    XLA counts the body once whatever the steps; this is the step without the loop.
calculated: the same counts over a data sheet's numbers, of a machine that was not at hand.

What the figures do not say:

- Elementwise work (LayerNorm, softmax, activations) is not in the counts. It moves activations,
  which a compiler fuses into the products at best.
- A product's bytes are its two operands and its result, once each.
- A data sheet's rate is a peak. Large products reach 60 to 80 % of it.
"""

import dataclasses
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

from benchmarks.floor_counts import (
    BYTES,
    DATA_SHEETS,
    Machine,
    compiled_step,
    cost,
    products,
    seconds,
    work,
)
from experiments.environment import environment
from symerge_jax.cli.errors import DONE, nearest, run
from symerge_jax.cli.progress import say
from symerge_jax.errors import BadInput
from symerge_jax.files import write_atomically
from symerge_jax.models import clip


@dataclasses.dataclass(frozen=True)
class Settings:
    """Prints the least time that a SyMerge step can take on this device."""

    models: tuple[str, ...] = ("ViT-B-32", "ViT-L-14")
    """Presets of symerge_jax.models.clip."""
    tasks: tuple[int, ...] = (8, 20)
    """Tasks that are merged."""
    batch_size: int = 32
    """Images per step."""
    xla: bool = True
    """Whether to compile each step and show XLA's own counts (up to a minute each)."""
    json: Path | None = None
    """A file for the figures and the environment."""


def check(settings: Settings) -> None:
    """Raises `BadInput` for an unknown model and for counts below 1."""
    for model in settings.models:
        if model not in clip.PRESETS:
            raise BadInput(
                f"unknown model {model!r}{nearest(model, clip.PRESETS)}; known: "
                f"{', '.join(clip.PRESETS)}"
            )
    for name, count in [("tasks", min(settings.tasks)), ("batch_size", settings.batch_size)]:
        if count < 1:
            raise BadInput(f"{name} must be at least 1, got {count}")


def bandwidth(gigabytes: float = 0.25) -> float:
    """Returns bytes per second of the device's memory, arrays of this size; the best of ten."""
    count = int(gigabytes * 1e9) // 4
    b, c = jnp.ones(count, jnp.float32), jnp.ones(count, jnp.float32)
    triad = jax.jit(lambda b, c: b + jnp.float32(0.5) * c)
    # As the gradient of λ: one row read per task, and one more.
    read = jax.jit(lambda b, c: jnp.vdot(b, c))
    return max(
        3 * 4 * count / best(partial(triad, b, c), 5), 2 * 4 * count / best(partial(read, b, c), 5)
    )


def matrix_rate(config: clip.VisionConfig, batch: int, dtype: str) -> float:
    """Returns FLOPs per second of the products with weights, forward and both gradients."""
    flops, taken = 0.0, 0.0
    largest = max(p.flops for p in products(config, batch))
    for product in products(config, batch):
        if not product.weight or product.flops < largest / 50:
            continue
        shapes = [
            (product.rows, product.inner),
            (product.inner, product.columns),
            (product.rows, product.columns),
        ]
        x, w, g = (jnp.full(shape, 0.1, dtype) for shape in shapes)
        calls = [
            partial(_forward, x, w), partial(_to_weight, x, g), partial(_to_input, g, w),
        ][: 1 + product.gradients]  # fmt: skip
        taken += product.count * sum(best(call, 3) for call in calls)
        flops += product.flops
    return flops / taken


@jax.jit
def _forward(x: jax.Array, w: jax.Array) -> jax.Array:
    return x @ w


@jax.jit
def _to_weight(x: jax.Array, g: jax.Array) -> jax.Array:
    return jax.lax.dot_general(x, g, (((0,), (0,)), ((), ())))


@jax.jit
def _to_input(g: jax.Array, w: jax.Array) -> jax.Array:
    return jax.lax.dot_general(g, w, (((1,), (1,)), ((), ())))


def best(call: Callable[[], Any], times: int) -> float:
    """Returns the least seconds of a call on the device, after a first one."""
    jax.block_until_ready(call())
    taken = []
    for _ in range(times):
        begin = time.perf_counter()
        jax.block_until_ready(call())
        taken.append(time.perf_counter() - begin)
    return min(taken)


def machine(config: clip.VisionConfig, batch: int, moved: float) -> Machine:
    """Measures this device's rates for a model; `moved` is what `bandwidth` gave."""
    return Machine(moved, {dtype: matrix_rate(config, batch, dtype) for dtype in BYTES})


def main(settings: Settings) -> int:
    """Counts, measures the device, prints the tables, writes the JSON file."""
    check(settings)
    begun_in = environment()
    say("measuring the memory")
    moved, rows, rates = bandwidth(), [], {}
    for model in settings.models:
        config = clip.PRESETS[model].vision
        say(f"measuring products of {model}")
        here = machine(config, settings.batch_size, moved)
        rates[model] = here.rates
        for tasks in settings.tasks:
            rows.append(row(model, tasks, settings, here))
    found = {
        "benchmark": "floor",
        "settings": {k: v for k, v in dataclasses.asdict(settings).items() if k != "json"},
        "bandwidth": moved,
        "rates": rates,
        "data_sheets": {name: sheet._asdict() for name, sheet in DATA_SHEETS.items()},
        "rows": rows,
    }
    print_tables(found)
    if settings.json:
        text = json.dumps({**found, "environment": begun_in}, indent=2)
        write_atomically(settings.json, f"{text}\n")
    return DONE


def row(model: str, tasks: int, settings: Settings, here: Machine) -> dict[str, Any]:
    """Returns one model's and task count's figures."""
    config = clip.PRESETS[model].vision
    xla = None
    if settings.xla:
        say(f"compiling a step of {model} with {tasks} tasks")
        xla = cost(compiled_step(config, tasks, settings.batch_size))
    machines = {"here": here, **DATA_SHEETS}
    found: dict[str, Any] = {"model": model, "tasks": tasks, "xla_float32": xla}
    for dtype in BYTES:
        phases = work(config, tasks, settings.batch_size, dtype)
        found[dtype] = {
            "phases": {name: phase._asdict() for name, phase in phases.items()},
            "flops": sum(phase.flops for phase in phases.values()),
            "bytes": sum(phase.bytes for phase in phases.values()),
            "seconds": {name: seconds(phases, own, dtype) for name, own in machines.items()},
        }
    return found


def print_tables(found: dict[str, Any]) -> None:
    """Prints the counts, then the floors here and those calculated from data sheets."""
    console = Console(highlight=False, soft_wrap=True)
    console.print(
        f"batches of {found['settings']['batch_size']}; memory moves "
        f"{found['bandwidth'] / 1e9:.1f} GB/s"
    )
    for model, rates in found["rates"].items():
        told = ", ".join(f"{rate / 1e9:,.0f} GFLOP/s {dtype}" for dtype, rate in rates.items())
        console.print(f"products of {model}: {told}")
    counts = _table("model", "K", "dtype", "TFLOP", "GB", "XLA TFLOP", "XLA GB")
    for own in found["rows"]:
        for dtype in BYTES:
            xla = own["xla_float32"] if dtype == "float32" else None
            told = [f"{xla['flops'] / 1e12:.3g}", f"{xla['bytes'] / 1e9:.3g}"] if xla else ["", ""]
            counted = [f"{own[dtype]['flops'] / 1e12:.3g}", f"{own[dtype]['bytes'] / 1e9:.3g}"]
            counts.add_row(own["model"], str(own["tasks"]), dtype, *counted, *told)
    console.print(counts)
    for name in ("here", *DATA_SHEETS):
        title = "measured here" if name == "here" else f"{name}, calculated from its data sheet"
        console.print(f"floor in ms, {title}")
        parts = ("floor", "merge", "tower", "gradient", "overlapped")
        table = _table("model", "K", "dtype", *parts)
        for own in found["rows"]:
            for dtype in BYTES:
                least = own[dtype]["seconds"][name]
                cells = [f"{1000 * least[part]:.4g}" for part in parts]
                table.add_row(own["model"], str(own["tasks"]), dtype, *cells)
        console.print(table)


def _table(*headings: str) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1))
    for i, heading in enumerate(headings):
        table.add_column(heading, justify="left" if i == 0 else "right", no_wrap=True)
    return table


if __name__ == "__main__":
    sys.exit(run(main, Settings, None, prog="python -m benchmarks.floor"))
