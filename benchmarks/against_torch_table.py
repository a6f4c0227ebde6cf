"""The tables of `benchmarks.against_torch`."""

from typing import Any

from rich.console import Console
from rich.table import Table

NAMES = ("published", "improved", "ours")


def print_tables(found: dict[str, Any]) -> None:
    """Prints times and ratios, then floor, memory and compile times if they were measured."""
    settings, console = found["settings"], Console(highlight=False, soft_wrap=True)
    console.print(
        f"{settings['model']}, {settings['tasks']} tasks, batches of {settings['batch_size']}, "
        f"{settings['steps']} steps, {settings['dtype']} on {settings['device']}; medians of "
        f"{settings['repeats']} runs"
    )
    console.print(_times(found))
    for name, pairs in found["pairs"].items():
        console.print(
            f"{name} / ours, pair by pair: median {pairs['median']:.2f}, {pairs['min']:.2f} to "
            f"{pairs['max']:.2f}"
        )
    console.print(f"expert: asking one costs {found['expert_ms']:.1f} ms per batch, in PyTorch")
    if found["floor"] is not None:
        _print_floor(console, found)
    if found["memory"] is not None:
        seconds = found["memory"]["ours"]["compile_seconds"]
        console.print(f"compile: {seconds['cold']:.1f} s, kept {seconds['kept']:.1f} s")
    losses = found["losses"]
    verdict = "agree" if losses["agree"] else "[bold red]differ[/]"
    apart = ", ".join(f"{name} {own:.1e}" for name, own in losses["largest_difference"].items())
    console.print(
        f"losses {verdict}: {losses['first']:.3f} → {losses['last']:.3f}; largest difference to "
        f"ours: {apart}"
    )


def _times(found: dict[str, Any]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1))
    table.add_column("loop")
    headings = ["ms/step", "images/s", "/ ours", "merge ms", "/ ours"]
    if found["memory"] is not None:
        headings += ["resident GB", "device GB"]
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for name in NAMES:
        own, merge = found[name], found["merge"][name]
        cells = [f"{own['ms_per_step']:.1f}", f"{own['images_per_second']:.1f}"]
        theirs = name != "ours"
        cells.append(f"{found[f'ratio_{name}']:.2f}" if theirs else "")
        cells.append(f"{merge['ms']:.1f}")
        suffix = "" if name == "published" else "_improved"
        cells.append(f"{found[f'ratio_merge{suffix}']:.2f}" if theirs else "")
        if found["memory"] is not None:
            taken = found["memory"][name]
            device = taken["device_peak_bytes"]
            cells.append(f"{taken['peak_bytes'] / 1e9:.2f}")
            cells.append("" if device is None else f"{device / 1e9:.2f}")
        table.add_row(name, *cells)
    return table


def _print_floor(console: Console, found: dict[str, Any]) -> None:
    least = found["floor"]
    told = ", ".join(f"{name} {least['ms'][name]:.1f}" for name in ("merge", "tower", "gradient"))
    console.print(
        f"floor: {least['ms']['floor']:.1f} ms ({told}); ours takes {found['times_floor']:.2f} "
        "times as long"
    )
    parts = ", ".join(
        f"{name.replace('_', ' ')} {size / 1e9:.2f}" for name, size in least["split"].items()
    )
    console.print(f"memory of our step as XLA plans it, GB: {parts}")
