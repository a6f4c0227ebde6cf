"""Claims: each has records for which it holds and records for which it does not."""

import json

import pytest
from page_records import record

from experiments import claims, dense
from experiments.judging import Missing
from experiments.paper_numbers import ANALYSES, VISION
from experiments.tasks.glue import MEANS

BY_KEY = {claim.key: claim for claim in claims.CLAIMS}
every_claim = pytest.mark.parametrize("claim", claims.CLAIMS, ids=BY_KEY)

TABLE_2 = dense.PAPER
TABLE_1 = VISION["ViT-B-32", 8]
TABLE_5 = {"symerge_coefficients": 84.6, "symerge_head": 88.2, "symerge": 90.1}
TABLE_5_20 = {"symerge_coefficients": 81.6, "symerge_head": 75.0, "symerge": 88.6}
TABLE_B = {
    **{f"symerge_block_{b}": 90.0 + 0.05 * b for b in range(1, 13)},
    "symerge": 90.1, "symerge_coefficients": 84.6,
    "symerge_late": 88.4, "symerge_early": 89.4, "symerge_all": 86.2,
}  # fmt: skip
COEFFICIENTS = {"l1": 78, "smooth_l1": 79, "l2": 80, "cosine": 80, "kl": 84, "js": 84, "ce": 84.6,
                "entropy": 81.6}  # fmt: skip
JOINT = {"l1": 89, "smooth_l1": 89, "l2": 89, "cosine": 88.5, "kl": 90, "js": 90, "ce": 90.1,
         "entropy": 55}  # fmt: skip
FIGURE_C = {
    **{f"{loss}_coefficients": mean for loss, mean in COEFFICIENTS.items()},
    **{f"{loss}_joint": mean for loss, mean in JOINT.items()},
    "true_labels": 92.0,
}
TABLE_4 = {
    "task_arithmetic": {"accuracy": 69.1, "cross_accuracy": 49.8},
    "task_arithmetic_adapted_heads": {"accuracy": 79.6, "cross_accuracy": 54.8},
    "adamerging": {"accuracy": 80.1, "cross_accuracy": 50.1},
    "adamerging_adapted_heads": {"accuracy": 87.7, "cross_accuracy": 54.1},
}
SPEARMAN = {
    "entropy": {"task_arithmetic": [[0.66, 0.72, None]], "adamerging": [[0.32, -0.47, 0.1]]},
    "self_label": {"task_arithmetic": [[0.80, 0.86, 1.0]], "symerge": [[0.82, 0.88, 1.0]]},
}
FIGURE_E = {
    "iterations": [0, 100, 500],
    "accuracy": {"symerge": [[69.1, 88.5, 90.1]]},
    "rates": {"symerge_rate_0.0001": 1e-4, "symerge_rate_0.001": 1e-3, "symerge": 1e-2},
}
ENDS = {"symerge_rate_0.0001": 80.0, "symerge_rate_0.001": 89.5, "symerge": 90.1}
TABLE_A = {
    method: {"accuracy": 80.0, "corrupted_accuracy": mean}
    for method, mean in {
        "individual": 74.5, "task_arithmetic": 55.9, "iso_cts": 65.0, "adamerging": 67.2,
        "surgery": 68.8, "wemoe": 68.6, "symerge": 73.7,
    }.items()
}  # fmt: skip
SPREAD = {"spread": {"symerge_head": [40.0, 12.0], "symerge": [40.0, 1.0]}}
STARTS = {"surgery": 87.5, "surgery_on_task_arithmetic": 80.9, "symerge": 90.1,
          "symerge_from_adamerging": 90.2}  # fmt: skip
FIGURE_7 = {
    "ties": {"U": [9.0, 7.0], "D": [1.0, 1.0], "U-D": [8.0, 6.0]},
    "symerge": {"U": [2.0, 2.0], "D": [1.0, 1.5], "U-D": [1.0, 0.5]},
}
ZEROS = {"symerge_coefficients": {"near_zero": [37.0, 37.4]}, "symerge": {"near_zero": [55.9]}}
TSNE = {"task_arithmetic": 50.0, "adamerging": 60.0, "entropy_joint": 30.0, "individual": 79.0}
FIGURE_2 = {"correlations": {"source": {"mean": {"r": 0.863, "p": 1e-6, "x": [1.0] * 20}}}}
STRENGTHS = {
    f"supervisor_{c:g}": mean for c, mean in ((0, 60.0), (0.5, 85), (0.8, 90.2), (1, 90.1))
}
STRENGTH = {"strength": [0, 0.5, 0.8, 1]}
GAINS = {"lambdas": [0.1, 0.3], "gains": {"0": [[1.0, 2.0, 0.5], [5.0, 9.0, -0.1]]}}
BASINS = {"symerge": 79.1, "weight_average": 6.9, "adamerging": 5.4, "surgery": 25.6}
MANY = [
    record("vision", {**VISION["ViT-B-32", count]}, tasks=count) for count in (8, 20)
]  # fmt: skip


def changed(means, **others):
    return {**means, **others}


def vision(**others):
    return [record("vision", changed(TABLE_1, **others), seeds=2)]


def one(experiment, means, data=None):
    return [record(experiment, means, data)]


FIGURE_B = {"individual": 82.0, "symerge_coefficients": 63.0, "symerge_head": 73.0, "symerge": 78.0}


def texts(**others):
    return one("language", changed(MEANS, **others))


def scenes(**others):
    """Table 2; the main metric of the one task is mIoU, so the others are in the record too."""
    rows = {method: dict(zip(dense.METRICS, row, strict=True)) for method, row in TABLE_2.items()}
    for method, changes in others.items():
        rows[method] = rows[method] | changes
    return [record("dense", rows, tasks=1)]


# Claim → records for which it holds (the paper's numbers where it has them), and others.
EXAMPLES = {
    "best-of-all": (vision(), vision(symerge=88.8)),
    "dense": (scenes(), scenes(lines={"normal_mean_angle": 26.1})),
    "dense-all": (scenes(), scenes(probsurgery_on_task_arithmetic={"miou": 49.9})),
    "dense-experts": (scenes(), scenes(symerge={"depth_rel_error": 0.194})),
    "dense-others": (scenes(), scenes(ties={"miou": 47.0})),
    "language": (texts(), texts(tsv_m=84.0)),
    "language-all": (texts(), texts(emr=83.8)),
    "language-experts": (texts(), texts(symerge=83.8)),
    "language-both": (one("language", FIGURE_B), one("language", {**FIGURE_B, "symerge": 73.2})),
    "language-head": (
        one("language", FIGURE_B), one("language", {**FIGURE_B, "symerge_head": 63.2})
    ),
    "best-adaptive": (vision(), vision(symerge=89.5)),
    "near-experts": (vision(), vision(symerge=88.0)),
    "task-arithmetic": (vision(), vision(task_arithmetic=48.2)),
    "ties": (vision(), vision(ties=69.3)),
    "spectral": (vision(), vision(tsv_m=75.8)),
    "emr": (vision(), vision(emr=84.3)),
    "adamerging": (vision(), vision(adamerging=69.3)),
    "surgery": (vision(), vision(surgery=80.0)),
    "more-tasks": (MANY, [MANY[0], record("vision", {**TABLE_1, "symerge": 70.0}, tasks=20)]),
    "seeds": (vision(), [record("vision", TABLE_1, seeds=20)]),
    "larger-model": (
        [record("vision", {"symerge": 90.1}, model="ViT-B-32"),
         record("vision", {"symerge": 94.1}, model="ViT-L-14")],
        [record("vision", {"symerge": 90.1}, model="ViT-B-32"),
         record("vision", {"symerge": 90.2}, model="ViT-L-14")],
    ),
    "both-parts": (
        one("components", TABLE_5),
        [record("components", TABLE_5), record("components", changed(TABLE_5, symerge=80.0))],
    ),
    "heads-first": (
        one("components", TABLE_5), one("components", changed(TABLE_5, symerge_head=84.0))
    ),
    "heads-fade": (
        [record("components", TABLE_5_20, tasks=20), record("components", TABLE_5)],
        [record("components", TABLE_5, tasks=20), record("components", TABLE_5)],
    ),
    "any-layer": (one("layers", TABLE_B), one("layers", changed(TABLE_B, symerge_block_3=89.0))),
    "one-layer-helps": (one("layers", TABLE_B), one("layers", changed(TABLE_B, symerge=84.8))),
    "many-layers": (one("layers", TABLE_B), one("layers", changed(TABLE_B, symerge_all=90.2))),
    "distances": (one("losses", FIGURE_C), one("losses", changed(FIGURE_C, l1_coefficients=95))),
    "most-losses": (
        one("losses", FIGURE_C),
        one("losses", changed(FIGURE_C, l1_joint=80, l2_joint=80, cosine_joint=80)),
    ),
    "entropy-fails": (one("losses", FIGURE_C), one("losses", changed(FIGURE_C, entropy_joint=85))),
    "bound": (one("losses", FIGURE_C), one("losses", changed(FIGURE_C, kl_joint=92.4))),
    "proxy": (
        one("proxy_loss", {}, {"spearman": SPEARMAN}),
        one("proxy_loss", {}, {"spearman": {
            **SPEARMAN, "entropy": {"task_arithmetic": [[0.9] * 3]}}}),
    ),
    "proxy-entropy": (
        one("proxy_loss", {}, {"spearman": SPEARMAN}),
        one("proxy_loss", {}, {"spearman": {"entropy": {
            "task_arithmetic": [[0.5, 0.5]], "adamerging": [[0.6, 0.4]]}}}),
    ),
    "proxy-labels": (
        one("proxy_loss", {}, {"spearman": SPEARMAN}),
        one("proxy_loss", {}, {"spearman": {"self_label": {
            "task_arithmetic": [[0.9, 0.9]], "symerge": [[0.8, 0.9]]}}}),
    ),
    "transfer-ta": (
        one("transfer", TABLE_4),
        one("transfer", changed(TABLE_4, task_arithmetic_adapted_heads={"accuracy": 69.2})),
    ),
    "transfer-ada": (
        one("transfer", TABLE_4),
        one("transfer", changed(TABLE_4, adamerging_adapted_heads={"accuracy": 80.0})),
    ),
    "transfer-cross-ta": (
        one("transfer", TABLE_4),
        one("transfer", changed(TABLE_4, task_arithmetic={"accuracy": 1.0, "cross_accuracy": 60})),
    ),
    "transfer-cross-ada": (
        one("transfer", TABLE_4),
        one("transfer", changed(TABLE_4, adamerging={"accuracy": 1.0, "cross_accuracy": 54.0})),
    ),
    "supervisor": (
        one("supervisor", STRENGTHS, STRENGTH),
        one("supervisor", changed(STRENGTHS, supervisor_0=90.0), STRENGTH),
    ),
    "supervisor-best": (
        one("supervisor", STRENGTHS, STRENGTH),
        one("supervisor", changed(STRENGTHS, supervisor_1=91.0), STRENGTH),
    ),
    "start": (
        one("initialisation", {}, SPREAD),
        one("initialisation", {}, {"spread": {"symerge_head": [12.0], "symerge": [7.0]}}),
    ),
    "start-learned": (
        one("initialisation", STARTS), one("initialisation", changed(STARTS, surgery=81.0))
    ),
    "soon": (
        one("curves", {}, FIGURE_E),
        one("curves", {}, changed(FIGURE_E, accuracy={"symerge": [[69.1, 80.0, 90.1]]})),
    ),
    "rates": (
        one("curves", ENDS, FIGURE_E),
        one("curves", changed(ENDS, **{"symerge_rate_0.001": 85.0}), FIGURE_E),
    ),
    "sequential": (
        one("sequential", {"adamerging": 80.1, "adamerging_sequential": 81.6}),
        one("sequential", {"adamerging": 80.1, "adamerging_sequential": 80.3}),
    ),
    "sequential-symerge": (
        one("sequential", {"symerge_joint": 88.0, "symerge": 90.1}),
        one("sequential", {"symerge_joint": 90.0, "symerge": 90.1}),
    ),
    "corruption": (
        one("corruption", TABLE_A),
        one("corruption", changed(TABLE_A, iso_cts={"accuracy": 80.0, "corrupted_accuracy": 68})),
    ),
    "corruption-best": (
        one("corruption", TABLE_A),
        one("corruption", changed(TABLE_A, wemoe={"accuracy": 80.0, "corrupted_accuracy": 73.5})),
    ),
    "corruption-experts": (
        one("corruption", TABLE_A),
        one("corruption", changed(TABLE_A, individual={"accuracy": 90, "corrupted_accuracy": 76})),
    ),
    "cross-merge": (
        one("cross_task", {}, FIGURE_2),
        one("cross_task", {}, {"correlations": {"source": {"mean": {
            "r": 0.4, "p": 0.01, "x": [1.0] * 20}}}}),
    ),
    "cross-cost": (
        one("cross_task", {"cross_task": 50.0, "individual": 90.0}),
        one("cross_task", {"cross_task": 86.0, "individual": 90.0}),
    ),
    "pilot": (
        one("pilot", {}, GAINS),
        one("pilot", {}, {"lambdas": [0.3], "gains": {"0": [[1.0, -1.0]], "1": [[2.0, -3.0]]}}),
    ),
    "pilot-lambda": (
        one("pilot", {}, GAINS),
        one("pilot", {}, {"lambdas": [0.1, 0.3], "gains": {"0": [[1.0, 2.0], [2.0, 2.0]]}}),
    ),
    "fewest-lost": (
        one("discrepancy", {}, {"percent": FIGURE_7}),
        one("discrepancy", {}, {"percent": {"ties": {"U": [1.0]}, "symerge": {"U": [2.0]}}}),
    ),
    "net-loss": (
        one("discrepancy", {}, {"percent": FIGURE_7}),
        one("discrepancy", {}, {"percent": {"ties": {"U-D": [1.0]}, "symerge": {"U-D": [2.0]}}}),
    ),
    "sparsity": (
        one("sparsity", TABLE_5, ZEROS),
        one("sparsity", TABLE_5, changed(ZEROS, symerge={"near_zero": [38.0]})),
    ),
    "tsne": (
        one("tsne", TSNE, {"task": "task1"}),
        one("tsne", changed(TSNE, adamerging=75.0), {"task": "task1"}),
    ),
    "disjoint": (one("disjoint", BASINS), one("disjoint", changed(BASINS, surgery=70.0))),
    "proposition": (
        one("proposition", {}, {"shares": {"holds": 99.0, "pairs": 380}}),
        one("proposition", {}, {"shares": {"holds": 94.0, "pairs": 380}}),
    ),
}  # fmt: skip


def test_there_are_claims_of_every_analysis_each_with_its_source():
    assert len(claims.CLAIMS) >= 20
    assert len(BY_KEY) == len(claims.CLAIMS)
    assert {claim.experiment for claim in claims.CLAIMS} == set(ANALYSES)
    assert all(all(claim[:6]) for claim in claims.CLAIMS)


def test_every_claim_has_an_example_and_a_counterexample():
    assert set(EXAMPLES) == set(BY_KEY)


@every_claim
def test_a_claim_holds_of_its_example_and_not_of_its_counterexample(claim):
    held, failed = (claim.test(found) for found in EXAMPLES[claim.key])
    assert held.held, held.ours
    assert not failed.held, failed.ours
    assert held.ours
    assert held.ours != failed.ours


@every_claim
def test_a_claim_is_missing_from_a_record_without_results(claim):
    with pytest.raises(Missing, match="."):
        claim.test([record(claim.experiment, {})])


def test_without_records_nothing_is_testable():
    found = claims.judge([])
    assert {one.verdict for one in found} == {claims.OPEN}
    assert len(found) == len(claims.CLAIMS) * len(claims.SETTINGS)
    assert found[0].ours == "no record of vision"


def test_settings_are_judged_by_their_own_records():
    images = record("vision", {**TABLE_1, "symerge": 60.0}, setting="images")
    found = {
        one.setting: one
        for one in claims.judge([record("vision", TABLE_1), images])
        if one.claim.key == "best-of-all"
    }
    assert [found[s].verdict for s in ("tiny", "images", "checkpoints")] == [
        "held", "did not hold", "not testable",
    ]  # fmt: skip
    assert "SyMerge 60.0" in found["images"].ours


def test_the_newest_record_of_eight_tasks_is_asked_first():
    old, new = record("vision", TABLE_1), record("vision", {**TABLE_1, "ties": 60.0})
    new["environment"]["started"] = "2027-01-01T00:00:00Z"
    fourteen = record("vision", {**TABLE_1, "ties": 50.0}, tasks=14)
    fourteen["environment"]["started"] = "2028-01-01T00:00:00Z"
    for found in ([old, new, fourteen], [fourteen, new, old]):
        assert "60.0" in BY_KEY["ties"].test(found).ours
    without = record("vision", {"symerge": 90.0})
    without["environment"]["started"] = "2029-01-01T00:00:00Z"
    assert "72.9" in BY_KEY["ties"].test([old, without]).ours


def test_a_quick_run_is_asked_last():
    full, quick = record("vision", TABLE_1), record("vision", {**TABLE_1, "ties": 60.0})
    quick["settings"]["quick"] = True
    quick["environment"]["started"] = "2028-01-01T00:00:00Z"
    assert "72.9" in BY_KEY["ties"].test([quick, full]).ours
    assert "60.0" in BY_KEY["ties"].test([quick]).ours


def test_a_claim_about_eight_tasks_is_not_tested_with_another_number():
    with pytest.raises(Missing, match="needs a record of 8 tasks"):
        BY_KEY["ties"].test([record("vision", TABLE_1, tasks=14)])


def test_methods_that_were_not_run_are_named():
    found = BY_KEY["best-adaptive"].test([record("vision", {"symerge": 90.1, "adamerging": 80.1})])
    assert found.held
    assert "not run: Surgery, WEMoE, ProbSurgery" in found.ours


def test_the_reason_of_a_failure_is_shown_where_there_is_one(monkeypatch):
    monkeypatch.setitem(claims.REASONS, ("ties", "tiny"), "because")
    failed = claims.judge(EXAMPLES["ties"][1])
    assert [one.why for one in failed if one.claim.key == "ties"] == ["because", "", ""]
    held = claims.judge(EXAMPLES["ties"][0])
    assert {one.why for one in held if one.claim.key == "ties"} == {""}


def test_reasons_are_of_claims_and_settings_that_there_are():
    assert all(key in BY_KEY and setting in claims.SETTINGS for key, setting in claims.REASONS)


def test_claims_json_has_six_texts_per_claim_and_setting():
    found = claims.as_json(claims.judge([record("vision", TABLE_1)]))
    assert json.loads(json.dumps(found)) == found
    for entry in found:
        assert list(entry) == ["claim", "source", "paper", "ours", "setting", "verdict"]
        assert entry["verdict"] in ("held", "did not hold", "not testable")
        assert all(isinstance(value, str) and value for value in entry.values())
