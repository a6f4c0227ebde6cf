"""What the tests of the paper's claims share: reading records, comparing means, saying so.

A test is a pure function from the records of one experiment in one setting to a `Finding`. Where
the records lack what the claim is about it raises `Missing`, with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from experiments import records
from experiments.labels import method_label
from experiments.records import Record
from experiments.tables import signed

MARGIN = 0.3  # points of accuracy; a smaller difference counts as none


class Finding(NamedTuple):
    """What records say of a claim.

    Attributes:
        held: whether the claim's comparison came out as in the paper.
        ours: the numbers, in words.
    """

    held: bool
    ours: str


class Missing(Exception):
    """The records do not hold what a claim is about; the message says what is missing."""


Test = Callable[[Sequence[Record]], Finding]


def in_one(test: Callable[[Record], Finding]) -> Test:
    """Returns the test of the first record that holds what is needed.

    Full runs come before those of `--quick`; records of 8 tasks, which most of the paper's analyses
    have, before others; and the newest first.
    """

    def of_all(found: Sequence[Record]) -> Finding:
        reasons = []
        for record in preferred(found):
            try:
                return test(record)
            except Missing as reason:
                reasons.append(reason)
        raise reasons[0] if reasons else Missing("there is no record")

    return of_all


def preferred(found: Sequence[Record]) -> list[Record]:
    """Returns full runs before quick ones, those with 8 tasks first, then ViT-B/32, the newest."""

    def key(record: Record) -> tuple[bool, bool, bool, str]:
        settings = record["settings"]
        started = str(record["environment"].get("started", ""))
        return (
            not settings.get("quick"), task_count(record) == 8,
            settings.get("model") == "ViT-B-32", started,
        )  # fmt: skip

    return sorted(found, key=key, reverse=True)


def by_task_count(found: Sequence[Record], *methods: str) -> dict[int, Record]:
    """Returns the preferred record of each number of tasks, rising; those that have the methods.

    Raises:
        Missing: there are not two numbers of tasks.
    """
    complete = [record for record in found if set(methods) <= set(means(record))]
    counts: dict[int, Record] = {}
    for record in preferred(complete):
        counts.setdefault(task_count(record), record)
    if len(counts) < 2:
        raise Missing("needs records with two or more numbers of tasks")
    return dict(sorted(counts.items()))


def task_count(record: Record) -> int:
    """Returns the number of tasks with results."""
    return len({r["task"] for r in record["results"]})


def means(record: Record) -> dict[str, float]:
    """Returns method → mean over tasks and seeds of the main metric, where there is one."""
    summary = records.summarise(record)
    return {method: s["mean"] for method, s in summary.items() if s["mean"] is not None}


def mean_of(record: Record, method: str) -> float:
    """Returns the mean of one method.

    Raises:
        Missing: the record does not have it.
    """
    found = means(record)
    if method not in found:
        raise Missing(f"the record has no mean of {method_label(method)}")
    return found[method]


def some_of(record: Record, methods: Sequence[str]) -> dict[str, float]:
    """Returns the means of those methods that the record has.

    Raises:
        Missing: it has none of them.
    """
    found = means(record)
    known = {method: found[method] for method in methods if method in found}
    if not known:
        raise Missing(f"the record has none of {', '.join(map(method_label, methods))}")
    return known


def data(record: Record, *keys: str) -> Any:
    """Returns `record["data"][key][key]…`.

    Raises:
        Missing: there is no such thing.
    """
    value: Any = record.get("data") or {}
    for i, key in enumerate(keys):
        if not isinstance(value, Mapping) or value.get(key) is None:
            raise Missing(f"the record's data has no {'.'.join(keys[: i + 1])}")
        value = value[key]
    return value


def best_is(method: str, others: Sequence[str], *, margin: float = MARGIN) -> Test:
    """Returns the test that a method's mean is above those of others, as far as there are any."""

    @in_one
    def test(record: Record) -> Finding:
        own, rest = mean_of(record, method), some_of(record, others)
        absent = [method_label(other) for other in others if other not in rest]
        said = f"{method_label(method)} {own:.1f}; {highest(rest)}"
        said += f" (not run: {', '.join(absent)})" if absent else ""
        return Finding(own > max(rest.values()) + margin, said)

    return test


def improves(method: str, on: str, *, tasks: int | None = None) -> Test:
    """Returns the test that a method's mean is above that of another.

    Args:
        method: that should be better.
        on: the other one.
        tasks: how many tasks the claim is about, if it says so.
    """

    @in_one
    def test(record: Record) -> Finding:
        if tasks not in (None, task_count(record)):
            raise Missing(f"needs a record of {tasks} tasks")
        own, other = mean_of(record, method), mean_of(record, on)
        return Finding(own > other + MARGIN, change(on, other, method, own))

    return test


def change(before: str, first: float, after: str, second: float) -> str:
    """Says two means and their difference."""
    return (
        f"{method_label(before)} {first:.1f}, {method_label(after)} {second:.1f} "
        f"({signed(second - first)})"
    )


def highest(values: Mapping[str, float], shown: int = 3) -> str:
    """Says the highest means, and of how many others they are the highest."""
    rows = dict(sorted(values.items(), key=lambda item: -item[1])[:shown])
    more = len(values) - len(rows)
    return numbers(rows) + (f", {more} lower" if more else "")


def numbers(values: Mapping[str, float]) -> str:
    """Says each method's mean."""
    return ", ".join(f"{method_label(method)} {value:.1f}" for method, value in values.items())


def metric_of(record: Record, method: str, metric: str) -> float:
    """Returns a method's mean over tasks and seeds of a metric beside the main one.

    Raises:
        Missing: the record does not have it.
    """
    found = records.summarise(record).get(method, {"metrics": {}})["metrics"].get(metric, {})
    if found.get("mean") is None:
        raise Missing(f"the record has no {metric.replace('_', ' ')} of {method_label(method)}")
    return found["mean"]
