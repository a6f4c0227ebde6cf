"""Tests of claims that are more than one mean above another, by experiment.

Each takes records and returns a `Finding`; `claims` says of which claim of the paper.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

from experiments import records
from experiments.judging import (
    MARGIN,
    Finding,
    Missing,
    by_task_count,
    change,
    data,
    highest,
    in_one,
    mean_of,
    means,
    metric_of,
    numbers,
    preferred,
    some_of,
    task_count,
)
from experiments.labels import method_label
from experiments.records import EXPERT, Record
from experiments.tables import signed

TRAINING_FREE = (
    "task_arithmetic", "ties", "pcb", "lines", "consensus", "tsv_m", "iso_cts", "emr",
)  # fmt: skip
ONE_ENCODER = ("weight_average", "task_arithmetic", "ties", "magmax", "lines", "tsv_m", "iso_c")
TEST_TIME = ("adamerging", "surgery", "wemoe", "probsurgery")
SPECTRAL, SIMPLE = ("tsv_m", "iso_cts"), ("task_arithmetic", "ties", "pcb", "lines", "consensus")
DISTANCES, DISTRIBUTIONS = ("l1", "smooth_l1", "l2", "cosine"), ("kl", "js", "ce", "entropy")


def near_experts(method: str, share: float) -> Callable[[Sequence[Record]], Finding]:
    """Returns the test that a method's scores are at least `share` percent of the experts'."""

    @in_one
    def test(record: Record) -> Finding:
        own, expert = mean_of(record, method), mean_of(record, EXPERT)
        found = records.summarise(record)[method]["normalised"]
        if found is None:
            raise Missing("the record has no scores relative to the experts'")
        said = f"{change(EXPERT, expert, method, own)}: {found:.1f} % of the experts' scores"
        return Finding(found >= share, said)

    return test


@in_one
def closes_part_of_the_gap(record: Record) -> Finding:
    """Task Arithmetic is above the pre-trained model, and far below the experts."""
    rows = ("pretrained", "task_arithmetic", EXPERT)
    low, own, high = (mean_of(record, method) for method in rows)
    share = 100 * (own - low) / (high - low)
    said = f"{numbers(dict(zip(rows, (low, own, high), strict=True)))}: {share:.0f} % of the way"
    return Finding(own > low + MARGIN and share < 75, said)


@in_one
def spectral_methods_lead(record: Record) -> Finding:
    """Methods that work on singular vectors are above those that work entry by entry."""
    spectral, simple = some_of(record, SPECTRAL), some_of(record, SIMPLE)
    held = min(spectral.values()) > max(simple.values()) + MARGIN
    return Finding(held, f"{numbers(spectral)}; {highest(simple)}")


@in_one
def seeds_agree(record: Record) -> Finding:
    """SyMerge's standard deviation over seeds is at most the paper's largest."""
    mean = mean_of(record, "symerge")
    std = records.summarise(record)["symerge"]["std"]
    if std is None:
        raise Missing("needs a record of two or more seeds")
    return Finding(std <= 0.4, f"{mean:.1f} ± {std:.2f}")


def more_tasks(found: Sequence[Record]) -> Finding:
    """With more tasks SyMerge loses less of the experts' scores than Task Arithmetic."""
    counts = by_task_count(found, "symerge", "task_arithmetic", EXPERT)
    ends = [records.summarise(record) for record in (*counts.values(),)]
    shares = {
        method: [one[method]["normalised"] for one in ends]
        for method in ("task_arithmetic", "symerge")
    }
    said = "; ".join(
        f"{method_label(method)} {', '.join(f'{value:.1f} %' for value in values)}"
        for method, values in shares.items()
    )
    lost = {method: values[0] - values[-1] for method, values in shares.items()}
    held = lost["task_arithmetic"] > 0 and lost["symerge"] < lost["task_arithmetic"] / 2
    return Finding(held, f"of the experts' scores with {_listed(counts)} tasks: {said}")


def larger_model(found: Sequence[Record]) -> Finding:
    """SyMerge of the larger encoder is above that of the smaller one."""
    best = {
        model: mean_of(own[0], "symerge")
        for model in ("ViT-B-32", "ViT-L-14")
        if (own := preferred([r for r in found if r["settings"].get("model") == model]))
    }
    if len(best) < 2:
        raise Missing("needs records of both models, ViT-B/32 and ViT-L/14")
    small, large = best.values()
    return Finding(large > small + MARGIN, f"ViT-B/32 {small:.1f}, ViT-L/14 {large:.1f}")


def both_beat_one(found: Sequence[Record]) -> Finding:
    """At every number of tasks, both parts together are above each part alone."""
    alone, held, said = ("symerge_coefficients", "symerge_head"), [], []
    for record in preferred(found):
        known = means(record)
        if {"symerge", *alone} <= set(known):
            held.append(known["symerge"] > max(known[one] for one in alone) + MARGIN)
            rows = {one: known[one] for one in (*alone, "symerge")}
            said.append(f"{task_count(record)} tasks: {numbers(rows)}")
    if not held:
        raise Missing("no record has coefficients only, heads only and both")
    return Finding(all(held), "; ".join(said))


def heads_fall_behind(found: Sequence[Record]) -> Finding:
    """With more tasks, heads alone lose ground to coefficients alone."""
    counts = by_task_count(found, "symerge_head", "symerge_coefficients")
    leads = [
        mean_of(record, "symerge_head") - mean_of(record, "symerge_coefficients")
        for record in counts.values()
    ]
    said = ", ".join(f"{signed(lead)}" for lead in leads)
    return Finding(
        leads[-1] < leads[0] - MARGIN,
        f"heads only minus coefficients only with {_listed(counts)} tasks: {said}",
    )


def _single_layers(record: Record) -> dict[str, float]:
    found = {m: v for m, v in means(record).items() if m.startswith("symerge_block_")}
    if not found:
        raise Missing("the record has no single block that is each task's own")
    return found


@in_one
def any_layer_will_do(record: Record) -> Finding:
    """Each single block is at most a point below the classifier."""
    blocks, head = _single_layers(record), mean_of(record, "symerge")
    said = f"classifier {head:.1f}; blocks {min(blocks.values()):.1f} to {max(blocks.values()):.1f}"
    return Finding(min(blocks.values()) >= head - 1, said)


@in_one
def any_layer_helps(record: Record) -> Finding:
    """Each single layer with coefficients is above coefficients alone."""
    single = {**_single_layers(record), "symerge": mean_of(record, "symerge")}
    none = mean_of(record, "symerge_coefficients")
    lowest = min(single, key=single.__getitem__)
    said = f"{change('symerge_coefficients', none, lowest, single[lowest])}, the lowest of all"
    return Finding(single[lowest] > none + MARGIN, said)


@in_one
def many_layers_hurt(record: Record) -> Finding:
    """Several blocks at once are below the mean of the single layers."""
    single = {**_single_layers(record), "symerge": mean_of(record, "symerge")}
    groups = some_of(record, ("symerge_early", "symerge_late", "symerge_all"))
    level = fmean(single.values())
    said = f"single layers {level:.1f} on average; {numbers(groups)}"
    return Finding(max(groups.values()) < level - MARGIN, said)


def _losses(record: Record, trained: str) -> dict[str, float]:
    found = means(record)
    rows = {loss: found.get(f"{loss}_{trained}") for loss in (*DISTANCES, *DISTRIBUTIONS)}
    absent = [loss for loss, mean in rows.items() if mean is None]
    if absent:
        raise Missing(f"the record has no {absent[0]}_{trained}")
    return {loss: mean for loss, mean in rows.items() if mean is not None}


@in_one
def distances_are_worse(record: Record) -> Finding:
    """With coefficients alone, distances are below distribution losses on average."""
    found = _losses(record, "coefficients")
    near = fmean(found[loss] for loss in DISTANCES)
    far = fmean(found[loss] for loss in DISTRIBUTIONS)
    said = f"distances {near:.1f}, distribution losses {far:.1f} on average; {_said(found)}"
    return Finding(near < far - MARGIN, said)


@in_one
def most_losses_do_well(record: Record) -> Finding:
    """With heads, at least five of seven losses to the expert are within 2 points of the best."""
    found = {k: v for k, v in _losses(record, "joint").items() if k != "entropy"}
    near = [loss for loss, value in found.items() if value >= max(found.values()) - 2]
    return Finding(len(near) >= 5, f"{len(near)} of 7 within 2 points of the best; {_said(found)}")


@in_one
def entropy_fails(record: Record) -> Finding:
    """With heads, entropy is below all other losses, and below entropy without heads."""
    joint, alone = _losses(record, "joint"), _losses(record, "coefficients")["entropy"]
    own = joint.pop("entropy")
    said = (
        f"entropy {own:.1f} with heads, {alone:.1f} without; the lowest other loss "
        f"{min(joint.values()):.1f}"
    )
    return Finding(own < min(*joint.values(), alone) - MARGIN, said)


@in_one
def labels_are_the_bound(record: Record) -> Finding:
    """No loss is above training with the true labels."""
    bound, found = mean_of(record, "true_labels"), _losses(record, "joint")
    best = max(found, key=found.__getitem__)
    return Finding(
        found[best] <= bound + MARGIN,
        f"true labels {bound:.1f}; best without labels {best.replace('_', ' ')} {found[best]:.1f}",
    )


def _said(values: Mapping[str, float]) -> str:
    return ", ".join(f"{loss.replace('_', ' ')} {value:.1f}" for loss, value in values.items())


def _listed(counts: Mapping[int, Any]) -> str:
    *most, last = map(str, counts)
    return f"{', '.join(most)} and {last}"


def adapted_heads_help(encoder: str, metric: str) -> Callable[[Sequence[Record]], Finding]:
    """Returns the test that SyMerge's heads raise a metric on another method's encoders."""

    @in_one
    def test(record: Record) -> Finding:
        before = metric_of(record, encoder, metric)
        after = metric_of(record, f"{encoder}_adapted_heads", metric)
        said = f"{before:.1f} with the original heads, {after:.1f} with SyMerge's"
        return Finding(after > before + MARGIN, f"{said} ({signed(after - before)})")

    return test


@in_one
def better_supervisor(record: Record) -> Finding:
    """Accuracy rises with the supervisor's share of the expert."""
    strengths, found = _supervised(record)
    steps = len(found) - 1
    rising = sum(b > a for a, b in zip(found, found[1:], strict=False))
    said = f"{found[0]:.1f} at {strengths[0]:g}, {found[-1]:.1f} at {strengths[-1]:g}"
    held = found[-1] > found[0] + MARGIN and 3 * rising >= 2 * steps
    return Finding(held, f"{said}; rises in {rising} of {steps} steps")


@in_one
def weaker_is_best(record: Record) -> Finding:
    """A supervisor short of the expert is best, the expert itself at most a point below."""
    strengths, found = _supervised(record)
    best = found.index(max(found))
    said = f"best {found[best]:.1f} at {strengths[best]:g}, {found[-1]:.1f} at {strengths[-1]:g}"
    held = strengths[best] < 1 and strengths[-1] == 1 and found[-1] >= found[best] - 1
    return Finding(held, said)


def _supervised(record: Record) -> tuple[list[float], list[float]]:
    strengths = data(record, "strength")
    if len(strengths) < 3:
        raise Missing("needs three or more supervisors")
    return strengths, [mean_of(record, f"supervisor_{c:g}") for c in strengths]


@in_one
def training_free_fall(record: Record) -> Finding:
    """On corrupted images every training-free method is below every one that adapts."""
    free = _corrupted(record, ("task_arithmetic", "ties", "pcb", "lines", "consensus", "iso_cts"))
    adapting = _corrupted(record, (*TEST_TIME, "symerge"))
    held = max(free.values()) < min(adapting.values()) - MARGIN
    return Finding(held, f"corrupted: {highest(free)}; adapting: {numbers(adapting)}")


@in_one
def robust(record: Record) -> Finding:
    """On corrupted images SyMerge is above all other merged models."""
    own = metric_of(record, "symerge", "corrupted_accuracy")
    rest = _corrupted(record, (*TRAINING_FREE, *TEST_TIME))
    return Finding(own > max(rest.values()) + MARGIN, f"SyMerge {own:.1f}; {highest(rest)}")


@in_one
def robust_as_experts(record: Record) -> Finding:
    """On corrupted images SyMerge is at most two points below the experts."""
    own, expert = (metric_of(record, m, "corrupted_accuracy") for m in ("symerge", EXPERT))
    return Finding(own >= expert - 2, f"corrupted: {change(EXPERT, expert, 'symerge', own)}")


def _corrupted(record: Record, methods: Sequence[str]) -> dict[str, float]:
    known = [method for method in methods if method in records.methods(record)]
    if not known:
        raise Missing(f"the record has none of {', '.join(map(method_label, methods))}")
    return {method: metric_of(record, method, "corrupted_accuracy") for method in known}
