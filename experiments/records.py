"""One `record.json` per run: settings, environment, every result and their summary.

A record is a plain dictionary, strict JSON as it stands. `read` refuses what it does not know.
"""

import contextlib
import csv
import dataclasses
import hashlib
import io
import json
import math
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

from experiments.environment import environment
from symerge_jax.errors import BadInput
from symerge_jax.files import make_folder, write_atomically

FORMAT = 1
EXPERT = "individual"

# A mean over these would add metres to degrees: their methods have `mean` null.
_DENSE = frozenset(
    {"miou", "pixel_accuracy", "depth_abs_error", "depth_rel_error", "normal_mean_angle"}
)


class Result(TypedDict):
    """One number: a method's metric on a task's test inputs under one seed."""

    method: str
    seed: int
    task: str
    metric: str
    value: float | None
    n: int


class Record(TypedDict):
    """The file's content, key for key.

    Only where the experiment says so:
    `stored_encoders`: of each method, how many encoders' worth of numbers serve all tasks; 1 for a
    shared model, K for separate experts.
    `intervals`: of each method's mean, 95 %, over test inputs.
    `paired_p`: of each method against SyMerge.
    `data`: what else a figure shows, such as curves and matrices, in the experiment's own form.
    `forecast`: bytes per device and seconds per phase, as they were expected.
    `measured`: the most memory that was in use; seconds are in `phases_s`.
    """

    format: int
    experiment: str
    setting: str
    settings: dict[str, Any]
    environment: dict[str, Any]
    phases_s: dict[str, float]
    notes: list[str]
    results: list[Result]
    summary: dict[str, Any]
    stored_encoders: NotRequired[dict[str, float]]
    intervals: NotRequired[dict[str, list[float]]]
    paired_p: NotRequired[dict[str, float]]
    data: NotRequired[dict[str, Any]]
    forecast: NotRequired[dict[str, Any]]
    measured: NotRequired[dict[str, Any]]


def new_record(experiment: str, setting: str, settings: Any) -> Record:
    """Returns a record without results yet.

    Args:
        experiment: the script's name, such as `vision`.
        setting: what it ran on, such as `tiny`, `images` or `checkpoints`.
        settings: the script's settings, a dataclass or a mapping.
    """
    return {
        "format": FORMAT,
        "experiment": experiment,
        "setting": setting,
        "settings": _json(settings),
        "environment": environment(),
        "phases_s": {},
        "notes": [],
        "results": [],
        "summary": {},
    }


def add_result(
    record: Record, *, method: str, seed: int, task: str, metric: str, value: float, n: int
) -> None:
    """Adds one result; a task's first metric is its main one.

    Args:
        record: changed in place.
        method: key of the method.
        seed: of the run.
        task: name of the task.
        metric: name of the metric.
        value: percent, or the metric's own unit for errors and angles. A number that is not
            finite is stored as null and noted, so that one failed task does not lose the run.
        n: number of test inputs behind the value.

    Raises:
        ValueError: this method has that metric of that task and seed already.
    """
    what = (method, int(seed), task, metric)
    if any(what == (r["method"], r["seed"], r["task"], r["metric"]) for r in record["results"]):
        raise ValueError(f"a second result for (method, seed, task, metric) = {what}")
    stored = float(value) if math.isfinite(value) else None
    if stored is None:
        record["notes"].append(f"{method}, seed {seed}: {metric} of {task} is {float(value)}")
    record["results"].append(
        {
            "method": method,
            "seed": int(seed),
            "task": task,
            "metric": metric,
            "value": stored,
            "n": int(n),
        }
    )


@contextlib.contextmanager
def phase(record: Record, name: str) -> Iterator[None]:
    """Adds the wall-clock seconds of the block to `phases_s[name]`, also when it fails."""
    start = time.perf_counter()
    try:
        yield
    finally:
        seconds = record["phases_s"].get(name, 0.0) + time.perf_counter() - start
        record["phases_s"][name] = round(seconds, 3)


def summarise(record: Record) -> dict[str, Any]:
    """Returns the summary of the record's results, by method.

    `mean`: over tasks, then over seeds, of each task's main metric. `std`: over seeds, with
    denominator n - 1; null for one seed. `normalised`: mean over tasks, then over seeds, of value /
    expert in percent; inverted for errors. `metrics`: mean and std of each metric by itself. Null
    where a value is missing, and for the mean of dense tasks, whose units differ.
    """
    expert = {
        (r["seed"], r["task"], r["metric"]): r["value"]
        for r in record["results"]
        if r["method"] == EXPERT
    }
    return {
        method: _summarise_method([r for r in record["results"] if r["method"] == method], expert)
        for method in methods(record)
    }


def methods(record: Record) -> list[str]:
    """Returns the record's methods, in the order of their first result."""
    return list(dict.fromkeys(r["method"] for r in record["results"]))


def columns(record: Record) -> list[tuple[str, str]]:
    """Returns the record's (task, metric) pairs, tasks in the order of their first result."""
    pairs = dict.fromkeys((r["task"], r["metric"]) for r in record["results"])
    tasks = list(dict.fromkeys(task for task, _ in pairs))
    return sorted(pairs, key=lambda pair: tasks.index(pair[0]))


def over_seeds(
    record: Record, method: str, task: str, metric: str
) -> tuple[float | None, float | None]:
    """Returns the mean and std over seeds of one method's metric on one task; None where none."""
    return _mean_std(
        [
            r["value"]
            for r in record["results"]
            if (r["method"], r["task"], r["metric"]) == (method, task, metric)
        ]
    )


def lower_is_better(metric: str) -> bool:
    """Whether the metric is an error, an angle between things that should agree, or a loss."""
    return metric.endswith(("_error", "_angle", "_loss"))


def new_folder(record: Record, root: str | Path) -> Path:
    """Makes the run's own folder `root/<experiment>/<id>` and returns its absolute path.

    The id is the time (UTC) and a short hash of the record; an existing folder is never reused.

    Raises:
        BadInput: `root` is not a place where folders can be made.
    """
    parent = make_folder(Path(root).absolute() / record["experiment"])
    digest = hashlib.sha256(_text(record).encode()).hexdigest()[:6]
    name = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{digest}"
    for attempt in range(1, 1000):
        folder = parent / (name if attempt == 1 else f"{name}-{attempt}")
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        except OSError as error:
            raise BadInput(
                f"{folder}: cannot be made ({error.strerror}); choose another --out"
            ) from error
        return folder
    raise BadInput(f"{parent}: a thousand runs in one second; choose another --out")


def write(record: Record, folder: str | Path) -> Path:
    """Writes `record.json` and `table.csv` into a run's folder, summary brought up to date.

    Args:
        record: its `summary` is replaced.
        folder: from `new_folder`; `record.json` must not be there yet.

    Returns:
        The absolute path of `record.json`.

    Raises:
        BadInput: the folder holds a record, or cannot be written.
    """
    path = Path(folder).absolute() / "record.json"
    if path.exists():
        raise BadInput(f"{path}: expected no record there yet; a finished run is never overwritten")
    record["summary"] = summarise(record)
    write_atomically(path.with_name("table.csv"), table_csv(record))
    write_atomically(path, _text(record))
    return path


def read(path: str | Path) -> Record:
    """Returns the record in a file.

    Raises:
        BadInput: the file is missing, not strict JSON, of another format, or lacks a key.
    """
    path = Path(path)
    try:
        record = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except OSError as error:
        raise BadInput(
            f"{path}: expected a record.json, but it cannot be read ({error.strerror})"
        ) from error
    except ValueError as error:
        raise BadInput(f"{path}: expected a record in strict JSON, found {error}") from error
    found = record.get("format") if isinstance(record, dict) else None
    if found != FORMAT:
        raise BadInput(
            f"{path}: expected a record of format {FORMAT}, found {found!r}; "
            "run the experiment again, or read it with the version that wrote it"
        )
    required = [key for key in Record.__annotations__ if key in Record.__required_keys__]
    missing = [key for key in required if key not in record]
    if missing:
        raise BadInput(f"{path}: expected the key {missing[0]!r} of a record, found none")
    return cast(Record, record)


def table_csv(record: Record) -> str:
    """Returns the results as CSV, a row per method: means over seeds and the summary."""
    pairs = columns(record)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["method", *(f"{t}:{m}" for t, m in pairs), "mean", "std", "normalised"])
    for method, summary in summarise(record).items():
        values = [over_seeds(record, method, *pair)[0] for pair in pairs]
        values += [summary[key] for key in ("mean", "std", "normalised")]
        writer.writerow([method, *("" if v is None else f"{v:.6g}" for v in values)])
    return text.getvalue()


def _summarise_method(
    results: Sequence[Result], expert: Mapping[tuple[int, str, str], float | None]
) -> dict[str, Any]:
    main = {r["task"]: r["metric"] for r in reversed(results)}  # the first one recorded
    by_seed: dict[int, list[Result]] = {}
    for r in results:
        by_seed.setdefault(r["seed"], []).append(r)
    mains = [[r for r in rows if main[r["task"]] == r["metric"]] for rows in by_seed.values()]
    mean, std = _mean_std([_mean([r["value"] for r in rows]) for rows in mains])
    if _DENSE & set(main.values()):
        mean = std = None
    ratios = [_mean([_ratio(r, expert) for r in rows]) for rows in mains]
    return {
        "mean": mean,
        "std": std,
        "normalised": _mean(ratios),
        "metrics": {
            metric: _metric_summary(metric, by_seed)
            for metric in dict.fromkeys(r["metric"] for r in results)
        },
    }


def _metric_summary(metric: str, by_seed: Mapping[int, Sequence[Result]]) -> dict[str, Any]:
    values = [[r["value"] for r in rows if r["metric"] == metric] for rows in by_seed.values()]
    mean, std = _mean_std([_mean(of_one_seed) for of_one_seed in values if of_one_seed])
    return {"mean": mean, "std": std}


def _ratio(result: Result, expert: Mapping[tuple[int, str, str], float | None]) -> float | None:
    """A result in percent of the expert's, of the same seed or else of the mean of its seeds.

    None where the expert's is not above 0: some correlations are not.
    """
    task, metric, value = result["task"], result["metric"], result["value"]
    if (result["seed"], task, metric) in expert:
        reference = expert[result["seed"], task, metric]
    else:
        reference = _mean([v for (_, t, m), v in expert.items() if (t, m) == (task, metric)])
    if lower_is_better(metric):
        value, reference = reference, value
    if value is None or reference is None or reference <= 0:
        return None
    return 100 * value / reference


def _mean(values: Sequence[float | None]) -> float | None:
    """The mean; None when there are no values or one is missing."""
    known = [v for v in values if v is not None]
    return statistics.fmean(known) if known and len(known) == len(values) else None


def _mean_std(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    mean = _mean(values)
    if mean is None or len(values) < 2:
        return mean, None
    return mean, statistics.stdev(v for v in values if v is not None)


def _text(record: Record) -> str:
    return json.dumps(record, indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name}, which JSON does not have")


def _json(value: Any) -> Any:
    """Settings as JSON has them: dataclasses and mappings as objects, paths as text."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json(item) for item in value]
    if isinstance(value, Path) or (isinstance(value, float) and not math.isfinite(value)):
        return str(value)
    if value is None or isinstance(value, (str, int, float)):
        return value
    raise TypeError(f"{value!r} ({type(value).__name__}) has no place in a record")
