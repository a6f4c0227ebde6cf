"""Tests of claims that read what an analysis stored beside its scores, `record["data"]`.

Each takes records and returns a `Finding`; `claims` says of which claim of the paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from experiments import records
from experiments.judging import (
    MARGIN,
    Finding,
    Missing,
    change,
    data,
    in_one,
    mean_of,
    means,
)
from experiments.labels import method_label
from experiments.records import EXPERT, Record
from experiments.tables import signed

Rows = Sequence[Sequence[float | None]]  # [seed][task]


def _over_seeds(rows: Rows) -> list[float | None]:
    """The mean over seeds of what is known, by task."""
    known = [[x for x in column if x is not None] for column in zip(*rows, strict=True)]
    return [fmean(column) if column else None for column in known]


def _pairs(record: Record, first: tuple[str, str], second: tuple[str, str]) -> list[list[float]]:
    """Two rows of correlations, by task, where both are known."""
    found = [_over_seeds(data(record, "spearman", *row)) for row in (first, second)]
    both = [(a, b) for a, b in zip(*found, strict=True) if a is not None and b is not None]
    if not both:
        raise Missing("no task has both correlations")
    return [list(column) for column in zip(*both, strict=True)]


@in_one
def labels_are_the_better_proxy(record: Record) -> Finding:
    """Before adaptation the experts' labels correlate better with the true loss, on every task."""
    entropy, ours = _pairs(
        record, ("entropy", "task_arithmetic"), ("self_label", "task_arithmetic")
    )
    better = sum(b > a for a, b in zip(entropy, ours, strict=True))
    said = f"entropy {fmean(entropy):.2f}, experts' labels {fmean(ours):.2f} on average"
    return Finding(better == len(ours), f"{said}; better on {better} of {len(ours)} tasks")


@in_one
def entropy_drifts_off(record: Record) -> Finding:
    """Entropy minimisation lowers the correlation on average and on most tasks."""
    before, after = _pairs(record, ("entropy", "task_arithmetic"), ("entropy", "adamerging"))
    lower = sum(b < a for a, b in zip(before, after, strict=True))
    held = fmean(after) < fmean(before) - 0.02 and lower > len(after) / 2
    return Finding(held, f"{_moved(before, after)}; lower on {lower} of {len(after)} tasks")


@in_one
def labels_stay_close(record: Record) -> Finding:
    """SyMerge keeps its loss's correlation or raises it, on average."""
    before, after = _pairs(record, ("self_label", "task_arithmetic"), ("self_label", "symerge"))
    return Finding(fmean(after) >= fmean(before) - 0.01, _moved(before, after))


def _moved(before: Sequence[float], after: Sequence[float]) -> str:
    return f"{fmean(before):.2f} before, {fmean(after):.2f} after, on average"


@in_one
def start_matters_less(record: Record) -> Finding:
    """Over the starts, SyMerge ends less than half as far apart as heads alone."""
    heads, both = (data(record, "spread", part)[-1] for part in ("symerge_head", "symerge"))
    return Finding(
        both < heads / 2,
        f"best less worst start: heads only {heads:.1f}, coefficients and heads {both:.1f} points",
    )


@in_one
def learned_start_matters_less(record: Record) -> Finding:
    """AdaMerging's start changes Surgery by more than SyMerge."""
    surgery = mean_of(record, "surgery") - mean_of(record, "surgery_on_task_arithmetic")
    own = mean_of(record, "symerge_from_adamerging") - mean_of(record, "symerge")
    said = f"AdaMerging's start: Surgery {signed(surgery)}, SyMerge {signed(own)}"
    return Finding(abs(surgery) > abs(own) + MARGIN, said)


@in_one
def soon_there(record: Record) -> Finding:
    """After a fifth of the iterations nine tenths of the gain are there."""
    iterations = data(record, "iterations")
    curve = [fmean(points) for points in zip(*data(record, "accuracy", "symerge"), strict=True)]
    last = iterations[-1]
    early = next(i for i, iteration in enumerate(iterations) if iteration >= last / 5)
    first, then, end = curve[0], curve[early], curve[-1]
    if end <= first + MARGIN:
        raise Missing("the accuracy does not rise")
    share = 100 * (then - first) / (end - first)
    said = f"{first:.1f} at first, {then:.1f} after {iterations[early]} of {last} iterations, "
    return Finding(share >= 90, f"{said}{end:.1f} at the end: {share:.0f} % of the gain")


@in_one
def rates_end_alike(record: Record) -> Finding:
    """All learning rates but the lowest end within 2 points of the best; the lowest is last."""
    rates = data(record, "rates")
    if len(rates) < 3:
        raise Missing("needs three or more learning rates")
    ends = {rate: mean_of(record, name) for name, rate in rates.items()}
    said = ", ".join(f"{rate:g}: {ends[rate]:.1f}" for rate in sorted(ends))
    lowest = ends.pop(min(ends))
    held = min(ends.values()) >= max(ends.values()) - 2 and lowest < min(ends.values()) - MARGIN
    return Finding(held, said)


@in_one
def fewest_lost(record: Record) -> Finding:
    """SyMerge loses the fewest images that the expert gets right."""
    return _smallest(record, "U", "lost")


@in_one
def smallest_net_loss(record: Record) -> Finding:
    """SyMerge has the smallest difference of lost and gained images."""
    return _smallest(record, "U-D", "lost less gained")


def _smallest(record: Record, key: str, what: str) -> Finding:
    found = {method: fmean(row[key]) for method, row in data(record, "percent").items()}
    if "symerge" not in found or len(found) < 2:
        raise Missing("the record does not have SyMerge and others")
    own = found.pop("symerge")
    rest = ", ".join(f"{method_label(m)} {v:.1f}" for m, v in found.items())
    said = f"{what}, % of test images: SyMerge {own:.1f}; {rest}"
    return Finding(own < min(found.values()), said)


@in_one
def heads_make_zeros(record: Record) -> Finding:
    """More coefficients are zero with heads beside them, and the accuracy is higher."""
    rows = ("symerge_coefficients", "symerge")
    alone, both = (fmean(data(record, row, "near_zero")) for row in rows)
    said = f"{alone:.1f} % of coefficients alone, {both:.1f} % with heads; "
    low, high = (mean_of(record, row) for row in rows)
    return Finding(both > alone + 1 and high > low, said + change(rows[0], low, rows[1], high))


@in_one
def groups_are_not_classes(record: Record) -> Finding:
    """After entropy minimisation the drawn task stays more than 5 points below its expert."""
    task = data(record, "task")
    known = {r["task"]: r["metric"] for r in reversed(record["results"])}
    rows = ("task_arithmetic", "adamerging", "entropy_joint", EXPERT)
    found = {m: records.over_seeds(record, m, task, known.get(task, ""))[0] for m in rows}
    accuracy = {method: value for method, value in found.items() if value is not None}
    if set(accuracy) != set(rows):
        raise Missing(f"the record lacks scores of {task}")
    said = ", ".join(f"{method_label(m)} {v:.1f}" for m, v in accuracy.items())
    held = max(accuracy["adamerging"], accuracy["entropy_joint"]) < accuracy[EXPERT] - 5
    return Finding(held, f"{task}: {said}")


@in_one
def cross_predicts_merge(record: Record) -> Finding:
    """Over encoders, cross-task and merge accuracy correlate: r > 0.5, p < 0.05."""
    found = data(record, "correlations", "source", "mean")
    r, p = found.get("r"), found.get("p")
    if r is None or p is None:
        raise Missing("all points are the same, there is no correlation")
    return Finding(
        r > 0.5 and p < 0.05, f"r = {r:.3f}, p = {p:.2g} over {len(found['x'])} encoders"
    )


@in_one
def foreign_encoders_cost(record: Record) -> Finding:
    """Under other tasks' encoders a task's classifier loses more than 5 points."""
    known = means(record)
    if not {"cross_task", EXPERT} <= set(known):
        raise Missing("the record does not have experts and cross-task accuracies")
    other, own = known["cross_task"], known[EXPERT]
    return Finding(other < own - 5, f"{own:.1f} with the own encoder, {other:.1f} with others")


@in_one
def bound_holds(record: Record) -> Finding:
    """The merge's loss is within the bound for at least 95 % of pairs."""
    shares = data(record, "shares")
    holds, pairs = data(record, "shares", "holds"), shares.get("pairs")
    return Finding(holds >= 95, f"{holds:.1f} % of {pairs} pairs")


@in_one
def trained_heads_fit_others(record: Record) -> Finding:
    """At least four in five cells, λ × task, gain from heads trained on merged features."""
    cells = [gain for row in _gains(record) for gain in row]
    share = 100 * sum(gain > 0 for gain in cells) / len(cells)
    said = f"{share:.0f} % of {len(cells)} cells gain, {signed(fmean(cells))} points on average"
    return Finding(share >= 80, said)


@in_one
def merged_encoder_matters(record: Record) -> Finding:
    """The mean gain differs by more than a point between the best λ and the worst."""
    lambdas = data(record, "lambdas")
    found = dict(zip(lambdas, map(fmean, _gains(record)), strict=True))
    if len(found) < 2:
        raise Missing("needs two or more λ")
    best, worst = max(found, key=found.__getitem__), min(found, key=found.__getitem__)
    said = f"{signed(found[best])} points at λ = {best:g}, {signed(found[worst])} at λ = {worst:g}"
    return Finding(found[best] > found[worst] + 1, said)


def _gains(record: Record) -> list[list[float]]:
    """The mean over seeds, [λ][task]."""
    of_seeds = list(data(record, "gains").values())
    return [
        [fmean(cell) for cell in zip(*rows, strict=True)] for rows in zip(*of_seeds, strict=True)
    ]
