"""What does merging checkpoints cost beside reading them?

    python -m benchmarks.merge_io
    python -m benchmarks.merge_io --folder DIR --json FILE      (DIR has base, expert0, expert1, …)

Makes one pre-trained model and its experts with random weights, as Hugging Face folders and, where
PyTorch is installed to write them, as its zip files with open_clip's names. Then these take turns,
each in a process of its own:

read: `safetensors.numpy.load_file` of every file once; the time of the calls alone.
merge, warm: `python -m symerge_jax merge task_arithmetic …` from start to exit, with its compiled
    programs kept from an earlier run.
merge, cold: the same with an empty folder of programs, as the first time on a machine.
merge .pt, warm / cold: the same from PyTorch's files.
import: `import symerge_jax`, which must not load JAX (so no device and none of its memory).
help: `python -m symerge_jax --help`.

Each neighbouring pair of a command and `read` gives one ratio. Peak memory is the largest resident
set of the process; CPU seconds are those of all its threads. A limit that is exceeded is marked;
the exit code stays 0, since a busy machine may be the reason.

What the figures do not say:

- The files are in the operating system's cache: an untimed pass reads them first.
- A merge also writes a model, hashes every file, checks each number and runs the merged network
  once for `reference.npz`; `read` does none of these.
"""

import dataclasses
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from symerge_jax.cli.errors import CHECK_FAILED, DONE, nearest, run
from symerge_jax.errors import BadInput
from symerge_jax.files import make_folder, write_atomically

ROOT = Path(__file__).resolve().parents[1]

# Starts a program and prints seconds, CPU seconds and peak bytes after its output. It is a small
# process of its own because Linux counts the memory of whoever starts a program as the program's.
LAUNCHER = """
import json, os, sys, time
begin = time.perf_counter()
pid = os.posix_spawn(sys.executable, [sys.executable, *sys.argv[1:]], os.environ)
_, status, usage = os.wait4(pid, 0)
seconds = time.perf_counter() - begin
unit = 1 if sys.platform == "darwin" else 1024
busy, code = usage.ru_utime + usage.ru_stime, os.waitstatus_to_exitcode(status)
print("\\n" + json.dumps([seconds, busy, usage.ru_maxrss * unit, code]))
"""
READ = """
import sys, time
from safetensors.numpy import load_file
begin = time.perf_counter()
for path in sys.argv[1:]:
    load_file(path)
print(time.perf_counter() - begin)
"""
IMPORT = "import sys, symerge_jax; print('jax' in sys.modules)"


@dataclasses.dataclass(frozen=True)
class Settings:
    """Times `symerge merge` of full-size checkpoints against reading them."""

    model: str = "ViT-B-32"
    """Preset of symerge_jax.models.clip; its image tower is saved, with random weights."""
    experts: int = 8
    """Experts that are merged."""
    repeats: int = 5
    """Timed runs of each, taken in turns."""
    folder: Path | None = None
    """A folder with base, expert0, expert1, … to use instead of making them."""
    json: Path | None = None
    """A file for the figures and the environment."""


class Limits(NamedTuple):
    """What a row should stay within; None where nothing is promised."""

    ratio: float | None = None
    seconds: float | None = None
    gigabytes: float | None = None


LIMITS = {
    "read": Limits(),
    "merge, warm": Limits(ratio=2, gigabytes=1.5),
    "merge, cold": Limits(gigabytes=1.5),
    "merge .pt, warm": Limits(ratio=3, gigabytes=1.5),
    "merge .pt, cold": Limits(gigabytes=1.5),
    "import": Limits(seconds=1),
    "help": Limits(seconds=1.5),
}


class Sample(NamedTuple):
    """One run: wall time, CPU time, largest resident set, and what it printed."""

    seconds: float
    cpu_seconds: float
    peak_bytes: int
    output: str


def main(settings: Settings) -> int:
    """Measures, prints the table, writes the JSON file; returns 1 if `import` loads JAX."""
    check(settings)
    from experiments.environment import environment

    begun_in, notes = environment(), []
    with working_folder(settings) as work:
        models = checkpoints(settings, work)
        pickles = torch_files(models, work / "torch")
        if not pickles:
            notes.append("no .pt rows: PyTorch, which writes these files, is not installed")
        found = measure(programs(models, pickles, work), settings.repeats)
    lean = all(sample.output.strip() == "False" for sample in found["import"])
    figures = {**rows_of(found), "import_leaves_jax_out": lean, "notes": notes}
    print_table(settings, figures)
    if settings.json:
        chosen = {k: str(v) if isinstance(v, Path) else v for k, v in vars(settings).items()}
        chosen.pop("json")
        whole = {"benchmark": "merge_io", "settings": chosen, **figures, "environment": begun_in}
        write_atomically(settings.json, json.dumps(whole, indent=2) + "\n")
    return DONE if lean else CHECK_FAILED


def check(settings: Settings) -> None:
    """Raises `BadInput` for an unknown model, counts that are too small, and an absent folder."""
    from symerge_jax.models.clip import PRESETS

    if settings.model not in PRESETS:
        raise BadInput(
            f"unknown model {settings.model!r}{nearest(settings.model, PRESETS)}; known: "
            f"{', '.join(PRESETS)}"
        )
    for name, least in (("experts", 2), ("repeats", 1)):
        if getattr(settings, name) < least:
            raise BadInput(f"{name} must be at least {least}, got {getattr(settings, name)}")
    if settings.folder is not None and not (settings.folder / "base").is_dir():
        raise BadInput(f"{settings.folder}: expected the folders base, expert0, expert1, … in it")


@contextmanager
def working_folder(settings: Settings) -> Iterator[Path]:
    """Gives a folder for everything that is made, and removes it at the end."""
    with tempfile.TemporaryDirectory(prefix="merge_io") as name:
        yield Path(name)


def checkpoints(settings: Settings, work: Path) -> list[Path]:
    """Returns the folders of θ₀ and the experts, made where none were given."""
    names = ["base", *(f"expert{k}" for k in range(settings.experts))]
    if settings.folder is not None:
        found = [settings.folder.absolute() / name for name in names]
        for path in found:
            if not (path / "model.safetensors").is_file():
                raise BadInput(f"{path}: expected a model.safetensors in it")
        return found
    models = [work / "hf" / name for name in names]
    make_checkpoints(settings.model, models)
    return models


def make_checkpoints(model: str, folders: list[Path]) -> None:
    """Writes an image tower with random weights, and experts a little away from it."""
    import jax
    import numpy as np
    from safetensors.numpy import save_file

    from symerge_jax.checkpoints.clip import split_qkv, to_hugging_face
    from symerge_jax.checkpoints.clip_layouts import hugging_face_config
    from symerge_jax.models.clip import PRESETS, param_shapes

    config = PRESETS[model].vision
    rng = np.random.default_rng(0)

    def drawn(shape: Any) -> Any:
        return rng.standard_normal(shape.shape, np.float32) * np.float32(0.02)

    tower = jax.tree.map(drawn, param_shapes(config))
    for norm in ("ln_pre", "ln_post"):
        tower[norm]["scale"] += 1
    start = to_hugging_face(split_qkv(tower))
    for k, folder in enumerate(folders):
        move = np.float32(0.0005 if k else 0)
        tensors = {
            name: value + move * rng.standard_normal(value.shape, np.float32)
            for name, value in start.items()
        }
        save_file(tensors, make_folder(folder) / "model.safetensors", metadata={"format": "pt"})
        text = json.dumps(hugging_face_config(dataclasses.replace(config, fused_qkv=False), None))
        (folder / "config.json").write_text(text)


def torch_files(models: list[Path], folder: Path) -> list[Path]:
    """Writes each model as PyTorch's zip file with open_clip's names; nothing without PyTorch."""
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError:
        return []
    import numpy as np

    from symerge_jax.checkpoints.clip import fuse_qkv, to_open_clip
    from symerge_jax.checkpoints.open import load_clip

    make_folder(folder)
    for model in models:
        tower = fuse_qkv(load_clip(model).params["vision"])
        state = {k: torch.from_numpy(np.array(v)) for k, v in to_open_clip(tower).items()}
        torch.save(state, folder / f"{model.name}.pt")
    return [folder / f"{model.name}.pt" for model in models]


def programs(
    models: list[Path], pickles: list[Path], work: Path
) -> dict[str, Callable[[], Sample]]:
    """Returns name → one run of it."""
    files = [str(path / "model.safetensors") for path in models]
    merge = partial(merged, work=work)
    found: dict[str, Callable[[], Sample]] = {
        "read": partial(read, files),
        "merge, warm": partial(merge, models, warm=True),
        "merge, cold": partial(merge, models, warm=False),
    }
    if pickles:
        found["merge .pt, warm"] = partial(merge, pickles, warm=True)
        found["merge .pt, cold"] = partial(merge, pickles, warm=False)
    found["import"] = partial(launched, ["-c", IMPORT])
    found["help"] = partial(launched, ["-m", "symerge_jax", "--help"])
    return found


def read(files: list[str]) -> Sample:
    """Reads every file once; the seconds are those of reading, without the start of Python."""
    sample = launched(["-c", READ, *files])
    return sample._replace(seconds=float(sample.output))


def merged(models: list[Path], *, work: Path, warm: bool) -> Sample:
    """Merges, with the programs of an earlier run or without any."""
    cache, output = work / ("warm" if warm else "cold"), work / "out"
    if not warm:
        shutil.rmtree(cache, ignore_errors=True)
    words = ["-m", "symerge_jax", "merge", "task_arithmetic", "--pretrained", str(models[0])]
    words += ["--experts", *map(str, models[1:]), "--output", str(output)]
    sample = launched(words, {"XDG_CACHE_HOME": str(cache)})
    shutil.rmtree(output)
    return sample


def launched(words: list[str], environment: dict[str, str] | None = None) -> Sample:
    """Runs Python with `words` in a fresh process.

    Raises:
        BadInput: it failed; with the last line it printed.
    """
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, "-c", LAUNCHER, *words],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), **(environment or {})},
        capture_output=True,
        text=True,
    )
    output, _, figures = done.stdout.rstrip("\n").rpartition("\n")
    seconds, busy, peak, code = json.loads(figures)
    if code:
        said = (done.stderr.strip() or output).rpartition("\n")[2]
        raise BadInput(f"python {' '.join(words[:4])} … ended with exit code {code}: {said}")
    return Sample(seconds, busy, peak, output)


def measure(runs: dict[str, Callable[[], Sample]], repeats: int) -> dict[str, list[Sample]]:
    """Runs all in turns, after one untimed pass over the files and one that fills the cache."""
    for name, once in runs.items():
        if name == "read" or name.endswith("warm"):
            once()
    samples: dict[str, list[Sample]] = {name: [] for name in runs}
    for repeat in range(repeats):
        for name in list(runs)[:: -1 if repeat % 2 else 1]:
            samples[name].append(runs[name]())
    return samples


def rows_of(samples: dict[str, list[Sample]]) -> dict[str, Any]:
    """Returns seconds, ratios to `read` pair by pair, peak memory and limits of each row."""
    read_seconds = [sample.seconds for sample in samples["read"]]
    rows = {}
    for name, own in samples.items():
        seconds = [sample.seconds for sample in own]
        ratios = [a / b for a, b in zip(seconds, read_seconds, strict=True)]
        peaks = [sample.peak_bytes for sample in own]
        limits = LIMITS[name]
        rows[name] = {
            "seconds": seconds,
            "median_seconds": statistics.median(seconds),
            "median_cpu_seconds": statistics.median(sample.cpu_seconds for sample in own),
            "ratios": ratios,
            "median_ratio": statistics.median(ratios),
            "peak_bytes": peaks,
            "limits": limits._asdict(),
            "within": _within(limits, seconds, ratios, peaks),
        }
    return {"rows": rows}


def _within(
    limits: Limits, seconds: list[float], ratios: list[float], peaks: list[int]
) -> dict[str, bool]:
    """Whether the medians, and the largest peak, keep to what is promised."""
    found = {
        "ratio": statistics.median(ratios),
        "seconds": statistics.median(seconds),
        "gigabytes": max(peaks) / 1e9,
    }
    return {
        name: found[name] <= most for name, most in limits._asdict().items() if most is not None
    }


def print_table(settings: Settings, figures: dict[str, Any]) -> None:
    """Prints one row per program, what is over its limit in red."""
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1))
    table.add_column("what")
    for heading in ("seconds", "range", "CPU s", "× read", "limit", "peak GB", "limit"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, row in figures["rows"].items():
        seconds, limits = row["seconds"], row["limits"]
        table.add_row(
            name,
            _marked(row, "seconds", f"{row['median_seconds']:.2f}"),
            f"{min(seconds):.2f}–{max(seconds):.2f}",
            f"{row['median_cpu_seconds']:.2f}",
            _marked(row, "ratio", f"{row['median_ratio']:.2f}"),
            f"≤ {limits['ratio']} ×" if limits["ratio"] else
            f"≤ {limits['seconds']} s" if limits["seconds"] else "",
            _marked(row, "gigabytes", f"{max(row['peak_bytes']) / 1e9:.2f}"),
            f"≤ {limits['gigabytes']}" if limits["gigabytes"] else "",
        )  # fmt: skip
    console = Console(highlight=False)
    made = settings.model if settings.folder is None else str(settings.folder)
    console.print(
        f"{made}, {settings.experts} experts, medians of {settings.repeats} runs, largest peaks",
        soft_wrap=True,
        markup=False,
    )
    console.print(table)
    if not figures["import_leaves_jax_out"]:
        console.print("[bold red]import symerge_jax loads JAX[/]")
    for note in figures["notes"]:
        console.print(note)


def _marked(row: dict[str, Any], what: str, text: str) -> str:
    return text if row["within"].get(what, True) else f"[bold red]{text}[/]"


if __name__ == "__main__":
    sys.exit(run(main, Settings, None, prog="python -m benchmarks.merge_io"))
