"""What should several devices gain on one SyMerge run? Calculated, from counts and data sheets.

    python -m benchmarks.scaling
    python -m benchmarks.scaling --json FILE

Nothing is run but the counting of FLOPs. A step on N devices that share the mini-batch is

    tower / N + merge + sums        every device has all of τ
    tower / N + merge / N + gather  every device has its share of θ₀ and τ

tower: FLOPs of the forward pass and its gradient, at the data sheet's rate of dense bfloat16 matrix
    products. Nobody reaches that; slower towers make every efficiency below better.
merge: bytes of τ (bfloat16, read twice), θ₀, θ and dL/dθ, at the data sheet's memory bandwidth.
sums: gradients of λ and heads, all-reduced: 2 (N − 1) / N of their bytes over a device's links.
gather: θ gathered and dL/dθ scattered, float32, (N − 1) / N of their bytes each, and the sums.

Efficiency is the time of one device over N times that of N devices. Latencies, and what overlaps,
are left out: the first makes small steps worse, the second large ones better.
"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from experiments.forecasting import CLASSES, cost, gigabytes
from symerge_jax.cli.errors import run
from symerge_jax.files import write_atomically
from symerge_jax.forecast import Cost, memory
from symerge_jax.models.clip import PRESETS

LEAVES = {"ViT-B-32": 152, "ViT-L-14": 296}  # tensors of the image tower, one λ each and task


class Device(NamedTuple):
    """What a data sheet says of one device, per second; `links` is what it sends in all."""

    flops: float
    bandwidth: float
    links: float
    memory: float


# NVIDIA H200 datasheet (SXM): 989 dense bfloat16 TFLOPS, 4.8 TB/s, 141 GB, NVLink 900 GB/s both
# ways. Google Cloud's page on TPU v5e: 197 bfloat16 TFLOPS, 819 GB/s, 16 GB, 1600 Gbit/s between
# chips.
DEVICES = {
    "H200": Device(989e12, 4.8e12, 450e9, 141e9),
    "TPU v5e": Device(197e12, 819e9, 200e9, 16e9),
}
COUNTS = {"H200": 8, "TPU v5e": 16}


@dataclasses.dataclass(frozen=True)
class Settings:
    """Calculates what several devices should gain on one run, and what each must hold."""

    batch_sizes: tuple[int, ...] = (32, 256)
    """Images per step."""
    json: Path | None = None
    """A file for the figures."""


class Step(NamedTuple):
    """Seconds of a step, and what it does per device."""

    tower: float
    merge: float
    sent: float

    @property
    def seconds(self) -> float:
        """One after the other."""
        return self.tower + self.merge + self.sent


def step(one: Cost, device: Device, *, leaves: int, tasks: int, count: int, shares: bool) -> Step:
    """Returns what a step takes on `count` devices.

    Args:
        one: cost of a mini-batch.
        device: each of them.
        leaves: tensors with a λ.
        tasks: K.
        count: N.
        shares: whether θ₀ and τ lie in shares on them.
    """
    merge = one.parameters * (2 * tasks * 2 + 3 * 4) / device.bandwidth
    small = 4 * tasks * (leaves + one.head)
    around = (count - 1) / count / device.links
    sent = 2 * small * around
    if shares and count > 1:
        merge /= count
        sent += 2 * 4 * one.parameters * around
    return Step(one.both / device.flops / count, merge, sent)


def rows(settings: Settings) -> list[dict[str, Any]]:
    """Returns the table's rows."""
    found = []
    for model, leaves in LEAVES.items():
        for batch in settings.batch_sizes:
            one = cost(PRESETS[model].vision, batch, "bfloat16")
            for tasks in (8, 20):
                for name, device in DEVICES.items():
                    found += [
                        _row(model, leaves, batch, one, tasks, name, device, shares)
                        for shares in (False, True)
                    ]
    return found


def _row(
    model: str, leaves: int, batch: int, one: Cost, tasks: int, name: str, device: Device,
    shares: bool,
) -> dict[str, Any]:  # fmt: skip
    count = COUNTS[name]
    alone = step(one, device, leaves=leaves, tasks=tasks, count=1, shares=False)
    several = step(one, device, leaves=leaves, tasks=tasks, count=count, shares=shares)
    held = memory(one, tasks=tasks, samples=0, devices=count, shared=shares, stored_as="bfloat16")[
        "total"
    ]
    return {
        "model": model, "batch": batch, "tasks": tasks, "device": name, "count": count,
        "shares": shares,
        "ms_one": 1000 * alone.seconds,
        "ms": 1000 * several.seconds,
        "merge_ms": 1000 * several.merge,
        "sent_ms": 1000 * several.sent,
        "efficiency": alone.seconds / several.seconds / count,
        "bytes_each": held,
        "fits": held < device.memory,
    }  # fmt: skip


def main(settings: Settings) -> None:
    """Prints the table and writes the JSON file."""
    found = rows(settings)
    print_table(found)
    if settings.json:
        text = json.dumps({"benchmark": "scaling", "calculated": True, "classes": CLASSES,
                           "rows": found}, indent=1)  # fmt: skip
        write_atomically(settings.json, text + "\n")


def print_table(found: list[dict[str, Any]]) -> None:
    """Prints the rows, images not counted in the memory."""
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1))
    left = ("model", "devices", "τ")
    right = ("one, ms", "all, ms", "merge", "links", "efficiency", "memory each")
    for heading in ("model", "batch", "K", "devices", "τ", *right):
        side = "left" if heading in left else "right"
        table.add_column(heading, justify=side, no_wrap=True)
    for row in found:
        each = gigabytes(row["bytes_each"]) + ("" if row["fits"] else " (too much)")
        table.add_row(
            row["model"], str(row["batch"]), str(row["tasks"]), f"{row['count']} {row['device']}",
            "shares" if row["shares"] else "whole", f"{row['ms_one']:.1f}", f"{row['ms']:.2f}",
            f"{row['merge_ms']:.2f}", f"{row['sent_ms']:.2f}", f"{100 * row['efficiency']:.0f} %",
            each,
        )  # fmt: skip
    Console(highlight=False, width=120).print(table)


if __name__ == "__main__":
    sys.exit(run(main, Settings, None, prog="python -m benchmarks.scaling"))
