"""Tests of the claims on dense prediction, whose metrics have no common mean."""

from __future__ import annotations

from experiments import records
from experiments.judges import ONE_ENCODER
from experiments.judging import Finding, Missing, in_one, metric_of
from experiments.labels import method_label, metric_label, number
from experiments.records import EXPERT, Record

METRICS = ("miou", "pixel_accuracy", "depth_abs_error", "depth_rel_error", "normal_mean_angle")
STORE_MORE = ("emr", "surgery_on_task_arithmetic", "probsurgery_on_task_arithmetic")


@in_one
def best_in_every_metric(record: Record) -> Finding:
    """SyMerge is better than every method with one encoder and no adaptation, in all metrics."""
    return _best(record, ONE_ENCODER)


@in_one
def best_of_those_that_store_more(record: Record) -> Finding:
    """SyMerge is better than those that store more than one encoder, in all metrics."""
    return _best(record, STORE_MORE)


@in_one
def near_experts_in_every_metric(record: Record) -> Finding:
    """SyMerge has 90 % of the experts' score in each metric, errors inverted."""
    shares = {metric: _share(record, "symerge", metric) for metric in METRICS}
    said = ", ".join(f"{metric_label(m)} {share:.1f} %" for m, share in shares.items())
    return Finding(min(shares.values()) >= 90, f"of the experts': {said}")


@in_one
def others_fall_behind(record: Record) -> Finding:
    """Every training-free method with one encoder loses a tenth of the experts' scores."""
    summary = records.summarise(record)
    found = {m: summary[m]["normalised"] for m in ONE_ENCODER if m in summary}
    known = {m: value for m, value in found.items() if value is not None}
    if not known:
        raise Missing("the record has no method without adaptation")
    best = max(known, key=known.__getitem__)
    own = summary.get("symerge", {}).get("normalised")
    said = f"best of {len(known)}: {method_label(best)} with {known[best]:.1f} % of the experts'"
    said += "" if own is None else f"; SyMerge {own:.1f} %"
    return Finding(known[best] < 90, said)


def _best(record: Record, others: tuple[str, ...]) -> Finding:
    present = [method for method in others if method in records.methods(record)]
    if not present:
        raise Missing(f"the record has none of {', '.join(map(method_label, others))}")
    words, held = [], True
    for metric in METRICS:
        less = records.lower_is_better(metric)
        own = metric_of(record, "symerge", metric)
        rest = {method: metric_of(record, method, metric) for method in present}
        best = (min if less else max)(rest, key=rest.__getitem__)
        held &= own < rest[best] if less else own > rest[best]
        words.append(
            f"{metric_label(metric)} {number(own)} ({method_label(best)} {number(rest[best])})"
        )
    return Finding(held, "; ".join(words))


def _share(record: Record, method: str, metric: str) -> float:
    own, expert = (metric_of(record, one, metric) for one in (method, EXPERT))
    return 100 * (expert / own if records.lower_is_better(metric) else own / expert)
