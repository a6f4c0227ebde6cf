"""How fast are the training-free methods, and how much memory do they take?

    python -m benchmarks.merge_methods
    python -m benchmarks.merge_methods --methods ties pcb --no-files --json FILE
    python -m benchmarks.merge_methods --read benchmarks/results/merge_methods.json

Merges random task vectors of an image tower in memory, by the library and by PyTorch the way the
authors' released code goes about it (`merge_methods_torch`; without PyTorch our columns stand
alone). The two take turns on the same numbers, and each neighbouring pair gives one ratio. Then:

× floor: our time over that of reading all task vectors once, at the memory bandwidth measured here.
differ: the largest difference between the two results, relative to each leaf's largest entry. They
    agree if at most one entry of ten thousand differs by more than a thousandth: PCB's scores
    differ in the last bits, and the few entries at its threshold stay or go. DARE draws at random.
models: peak memory of a merge in memory, K task vectors counted, in a process of its own. Of a
    method with one result per task it is that of its compressed form.
files: peak memory of `symerge merge` from K + 1 checkpoints in files.
K = …: our time per task vector, the same for all K if time is linear in K.

Methods that decompose matrices merge the first `--blocks` blocks only; from files, the whole tower.
A limit that is exceeded is marked; the exit code stays 0, since a
busy machine may be the reason. It is 1 if results differ.

What the figures do not say:

- Random task vectors have flat spectra. Singular vectors of trained ones may be easier to find.
- PyTorch gets its matrices as [out, in] where that matters and its task vectors as state dicts;
  making these is not timed. Neither is reading files, subtracting θ₀ or adding it again.
- The first call, which compiles, has a column of its own and is not in the ratio.
- Time over the floor of a method that goes over its input several times cannot be near 1.
- Gram matrices and Fisher diagonals are random; what it costs to find them is not measured.
"""

import dataclasses
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks import merge_io
from benchmarks import merge_methods_memory as memory
from benchmarks.merge_methods_problem import (
    DECOMPOSING,
    Tower,
    cores,
    draw,
    extras,
    first,
    on_device,
    program,
    tower,
)
from benchmarks.merge_methods_table import FORMAT, print_record, print_tables
from experiments.environment import environment
from symerge_jax.cli.errors import CHECK_FAILED, DONE, nearest, run
from symerge_jax.cli.progress import say
from symerge_jax.errors import BadInput
from symerge_jax.files import write_atomically
from symerge_jax.merge import METHODS
from symerge_jax.models.clip import PRESETS

COUNTS = (2, 4, 8, 16)  # K, for the growth with the number of tasks
LONGEST = 300  # seconds of one row; no further pair is begun after them
OFF = 1e-3  # an entry is off if it differs by this part of its leaf's largest
MOST_OFF = 1e-4  # this part of the entries may be

FASTER = {
    **dict.fromkeys(METHODS, 2.0),
    **dict.fromkeys(("ties", "pcb"), 4.0),
    **dict.fromkeys(("tsv_m", "iso_c", "iso_cts"), 1.5),
    **dict.fromkeys(("tsv_c", "lot", "regmean"), None),
}
EXTRA_MODELS = 2  # beside the task vectors
GIGABYTES = 1.5  # from files


@dataclasses.dataclass(frozen=True)
class Settings:
    """Times the training-free methods against PyTorch, and measures their memory."""

    model: str = "ViT-B-32"
    """Preset of symerge_jax.models.clip; task vectors have the shapes of its image tower."""
    tasks: int = 8
    """Task vectors that are merged; slerp takes two."""
    methods: tuple[str, ...] = tuple(METHODS)
    """The methods, all by default."""
    repeats: int = 3
    """Timed pairs of each method; a row ends earlier after five minutes."""
    blocks: int = 1
    """Blocks of the tower for the methods that decompose matrices."""
    scaling: bool = True
    """Whether to time 2, 4, 8 and 16 task vectors too."""
    memory: bool = True
    """Whether to measure the memory of merging task vectors in memory."""
    files: bool = True
    """Whether to measure the memory of merging files."""
    folder: Path | None = None
    """A folder with base, expert0, expert1, … for that, instead of making them."""
    json: Path | None = None
    """A file for the figures and the environment."""
    read: Path | None = None
    """Print the tables of such a file, and measure nothing."""


class Problem(NamedTuple):
    """One method's input: what is merged of the tower, τ in NumPy, and what goes with it."""

    name: str
    part: Tower
    leaves: dict[str, np.ndarray]
    more: dict[str, Any]

    @property
    def tasks(self) -> int:
        """K."""
        return len(next(iter(self.leaves.values())))


def main(settings: Settings) -> int:
    """Measures, prints the tables, writes the JSON file; returns 1 if results differ."""
    if settings.read is not None:
        print_record(settings.read)
        return DONE
    settings = check(settings)
    begun_in, notes = environment(), []
    begun_in["torch"] = _torch_version()
    if begun_in["torch"] is None:
        notes.append("no PyTorch columns: it is not installed")
    bandwidth = bandwidth_bytes_per_second()
    rows = timings(settings, bandwidth, with_torch=begun_in["torch"] is not None)
    figures = {"bandwidth": bandwidth, "rows": rows, "scaling": {}, "notes": notes}
    for measure in (add_memory, add_files, add_growth):
        measure(settings, figures)
        for name, row in rows.items():
            row["limits"], row["within"] = limits(name, row)
        if settings.json:  # after each part, since the whole takes an hour
            write_json(settings, figures, begun_in)
    print_tables(dataclasses.asdict(settings), figures)
    return DONE if all(row.get("agrees", True) for row in rows.values()) else CHECK_FAILED


def check(settings: Settings) -> Settings:
    """Returns the settings with the methods' names as in `METHODS`.

    Raises:
        BadInput: an unknown model or method, counts out of range, an absent folder.
    """
    names = tuple(name.replace("-", "_") for name in settings.methods)
    for name in names:
        if name not in METHODS:
            raise BadInput(
                f"unknown method {name!r}{nearest(name, METHODS)}; known: {', '.join(METHODS)}"
            )
    files = merge_io.Settings(settings.model, settings.tasks, settings.repeats, settings.folder)
    merge_io.check(dataclasses.replace(files, experts=max(2, settings.tasks)))
    depth = PRESETS[settings.model].vision.depth
    for name, least, most in (("tasks", 2, 1000), ("blocks", 1, depth)):
        if not least <= getattr(settings, name) <= most:
            raise BadInput(f"{name} must be from {least} to {most}, got {getattr(settings, name)}")
    return dataclasses.replace(settings, methods=names)


def bandwidth_bytes_per_second(gigabytes: float = 1.0) -> float:
    """Returns the speed of reading a float32 array with all cores, the best of five times."""
    numbers = np.ones(int(gigabytes * 1e9) // 4, np.float32)
    pieces = np.array_split(numbers, cores())
    seconds = []
    with ThreadPoolExecutor(len(pieces)) as pool:
        for _ in range(5):
            taken, _ = timed(lambda: list(pool.map(lambda piece: np.dot(piece, piece), pieces)))
            seconds.append(taken)
    return numbers.nbytes / min(seconds)


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Returns the seconds that a call takes, and its result."""
    begin = time.perf_counter()
    result = call()
    return time.perf_counter() - begin, result


def tasks_of(name: str, tasks: int) -> int:
    """Returns how many task vectors a method takes of so many."""
    return 2 if name == "slerp" else tasks


def part_of(name: str, settings: Settings) -> Tower:
    """Returns what of the tower a method merges."""
    return tower(settings.model, settings.blocks if name in DECOMPOSING else None)


def problems(settings: Settings) -> Iterator[Problem]:
    """Gives each method's input; the task vectors of all are the same memory."""
    parts = {name: part_of(name, settings) for name in settings.methods}
    shapes = {path: shape for part in parts.values() for path, shape in part.shapes.items()}
    everything = draw(shapes, settings.tasks)
    for name, part in parts.items():
        tasks = tasks_of(name, settings.tasks)
        taus = first(everything, tasks, part.shapes)
        yield Problem(name, part, taus, extras(name, part, tasks))


def ours(problem: Problem) -> Callable[[], Any]:
    """Returns a merge by the library, which waits for its result."""
    merge, taus = program(problem.name), on_device(problem.leaves)
    return lambda: jax.block_until_ready(merge(taus, **problem.more))


def theirs(problem: Problem) -> tuple[Callable[[], Any], Callable[[Any], dict[str, np.ndarray]]]:
    """Returns a merge by PyTorch, and the function that takes a sample of its result."""
    from benchmarks import merge_methods_torch as in_torch

    in_torch.use_cores(cores())
    name, part = problem.name, problem.part
    torch_layout = name in (*DECOMPOSING, "breadcrumbs")
    experts = in_torch.states(problem.leaves, part.facts, torch_layout=torch_layout)
    given = in_torch.given(part.facts, problem.more)

    def sample(result: Any) -> dict[str, np.ndarray]:
        def leaf(state: Any, path: str) -> np.ndarray:
            return in_torch.as_leaf(state[path], part.facts[path], torch_layout=torch_layout)

        if isinstance(result, dict):
            return {path: leaf(result, path) for path in sampled(part)}
        return {path: np.stack([leaf(own, path) for own in result]) for path in sampled(part)}

    return partial(in_torch.merge, name, experts, given), sample


def sampled(part: Tower) -> list[str]:
    """Returns the leaves that are compared: those of one block, and those outside the blocks."""
    return [path for path in part.shapes if path.startswith("blocks_0/") or "blocks_" not in path]


def timings(settings: Settings, bandwidth: float, *, with_torch: bool) -> dict[str, dict[str, Any]]:
    """Returns one row per method: seconds, ratios and whether the results agree."""
    rows = {}
    for problem in problems(settings):
        say(f"timing {problem.name}")
        row = pairs(problem, settings.repeats, with_torch=with_torch)
        floor = problem.tasks * problem.part.bytes / bandwidth
        part = "all" if problem.part.bytes == problem.part.whole_bytes else (
            f"{settings.blocks} of {PRESETS[settings.model].vision.depth} blocks"
        )  # fmt: skip
        times_floor = row["median_seconds"] / floor
        rows[problem.name] = {
            "tasks": problem.tasks, "part": part, "numbers": problem.part.bytes // 4, **row,
            "floor_seconds": floor, "times_floor": times_floor,
        }  # fmt: skip
    return rows


def pairs(problem: Problem, repeats: int, *, with_torch: bool) -> dict[str, Any]:
    """Merges in turns, the order reversed from pair to pair, after a first call of ours."""
    merge = ours(problem)
    calls: dict[str, Callable[[], Any]] = {"ours": merge}
    first_seconds, result = timed(merge)
    own, other, sample = (
        {path: np.asarray(result[path]) for path in sampled(problem.part)},
        {},
        None,
    )
    del result
    if with_torch:
        calls["torch"], sample = theirs(problem)
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for repeat in range(repeats):
        for name in list(calls)[:: -1 if repeat % 2 else 1]:
            taken, result = timed(calls[name])
            seconds[name].append(taken)
            if name == "torch" and sample is not None and not other:
                other = {path: np.array(leaf) for path, leaf in sample(result).items()}
            del result
        if sum(map(sum, seconds.values())) > LONGEST:
            break
    row = {
        "first_seconds": first_seconds,
        "seconds": seconds["ours"],
        "median_seconds": statistics.median(seconds["ours"]),
    }
    if not with_torch:
        return row
    return {**row, **_ratios(seconds), **compared(problem.name, own, other)}


def _ratios(seconds: dict[str, list[float]]) -> dict[str, Any]:
    ratios = [b / a for a, b in zip(seconds["ours"], seconds["torch"], strict=True)]
    return {
        "torch_seconds": seconds["torch"],
        "median_torch_seconds": statistics.median(seconds["torch"]),
        "ratios": ratios,
        "median_ratio": statistics.median(ratios),
    }


def compared(name: str, own: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> dict[str, Any]:
    """Returns how far two results are apart; nothing of a method that draws at random."""
    if name == "dare":
        return {"difference": None, "entries_off": None, "agrees": True}
    largest, off, count = 0.0, 0, 0
    for path, leaf in own.items():
        scale = max(float(np.abs(other[path]).max()), np.finfo(np.float32).tiny)
        gap = np.abs(leaf - other[path]) / np.float32(scale)
        gap[~np.isfinite(gap)] = np.inf
        largest = max(largest, float(gap.max()))
        off += int((gap > OFF).sum())
        count += gap.size
    return {"difference": largest, "entries_off": off / count, "agrees": off / count <= MOST_OFF}


def add_memory(settings: Settings, figures: dict[str, Any]) -> None:
    """Adds to each row what merging in memory takes."""
    for name, row in figures["rows"].items() if settings.memory else ():
        say(f"memory of {name}")
        blocks = settings.blocks if name in DECOMPOSING else None
        row["memory"] = memory.in_memory(settings.model, name, row["tasks"], blocks)


def add_files(settings: Settings, figures: dict[str, Any]) -> None:
    """Adds to each row what merging from files takes."""
    if not settings.files:
        return
    with tempfile.TemporaryDirectory(prefix="merge_methods") as work:
        files = merge_io.Settings(settings.model, settings.tasks, 1, settings.folder)
        models = merge_io.checkpoints(files, Path(work))
        for name, row in figures["rows"].items():
            if "moments" not in METHODS[name].needs:
                say(f"{name} from files")
                sample = memory.from_files(name, models[: 1 + row["tasks"]], Path(work))
                row["files"] = {"seconds": sample.seconds, "peak_bytes": sample.peak_bytes}


def limits(name: str, row: dict[str, Any]) -> tuple[dict[str, float], dict[str, bool]]:
    """Returns what is promised of what was measured, and whether it is kept."""
    most, within = {}, {}
    if "median_ratio" in row and FASTER[name] is not None:
        most["ratio"] = FASTER[name]
        within["ratio"] = row["median_ratio"] >= FASTER[name]
    if "memory" in row:
        most["models"] = row["tasks"] + EXTRA_MODELS
        within["models"] = row["memory"]["models"] <= most["models"]
    if "files" in row:
        most["gigabytes"] = GIGABYTES
        within["gigabytes"] = row["files"]["peak_bytes"] <= GIGABYTES * 1e9
    return most, within


def add_growth(settings: Settings, figures: dict[str, Any]) -> None:
    """Adds method → K → seconds of merging K task vectors, of the same part as in `timings`."""
    names = [name for name in settings.methods if name != "slerp"] if settings.scaling else []
    parts = {name: part_of(name, settings) for name in names}
    shapes = {path: shape for part in parts.values() for path, shape in part.shapes.items()}
    everything = draw(shapes, max(COUNTS)) if parts else {}
    for name, part in parts.items():
        say(f"timing {name} for {', '.join(map(str, COUNTS))} tasks")
        found = figures["scaling"][name] = {}
        for tasks in COUNTS:
            taus = first(everything, tasks, part.shapes)
            merge = ours(Problem(name, part, taus, extras(name, part, tasks)))
            merge()
            found[str(tasks)] = [timed(merge)[0] for _ in range(settings.repeats)]


def write_json(settings: Settings, figures: dict[str, Any], begun_in: dict[str, Any]) -> None:
    """Writes settings, figures and environment."""
    chosen = dataclasses.asdict(settings) | {"folder": settings.folder and str(settings.folder)}
    del chosen["json"], chosen["read"]
    whole = {
        "format": FORMAT, "benchmark": "merge_methods", "settings": chosen, **figures,
        "environment": begun_in,
    }  # fmt: skip
    write_atomically(settings.json or "", json.dumps(whole, indent=2) + "\n")


def _torch_version() -> str | None:
    try:
        return metadata.version("torch")
    except metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    sys.exit(run(main, Settings, None, prog="python -m benchmarks.merge_methods"))
