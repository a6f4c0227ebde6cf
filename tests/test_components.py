"""Coefficients, heads, or both; and what all ablations share."""

import ablation_world
import numpy as np
import pytest

from experiments import ablating, components, records
from experiments.methods import Outcome
from experiments.options import Options
from symerge_jax.errors import BadInput


@pytest.fixture
def out(tmp_path):
    return tmp_path / "runs"


def test_rows_come_in_the_tables_order_and_the_experts_with_them():
    rows = components.ROWS
    assert ablating.chosen_rows(None, rows) == list(rows)
    assert ablating.chosen_rows(("all",), rows) == list(rows)
    chosen = ablating.chosen_rows(("symerge", "symerge-head"), rows)
    assert chosen == ["individual", "symerge_head", "symerge"]
    assert ablating.chosen_rows(("b",), ("a", "b")) == ["b"]
    with pytest.raises(BadInput, match=r"unknown method 'symrge' \(did you mean symerge\?\)"):
        ablating.chosen_rows(("symrge",), rows)


def test_outcomes_are_ordered_by_row_and_keep_their_seeds_order():
    came = [Outcome(method, seed, False, []) for method in "ba" for seed in (5, 3)]
    ordered = ablating.in_order(came, ["a", "b"])
    assert [(one.method, one.seed) for one in ordered] == [("a", 5), ("a", 3), ("b", 5), ("b", 3)]


def test_long_experiments_take_fewer_rounds_where_nobody_says_how_many():
    fewer = ablating.with_fewer_rounds
    assert fewer(Options()).iterations == ablating.ROUNDS
    assert fewer(components.Settings(seeds=(4,))) == components.Settings(
        seeds=(4,), iterations=ablating.ROUNDS
    )
    for own in ({"iterations": 300}, {"quick": True}, {"model": "ViT-B-32"}):
        assert fewer(Options(**own)) == Options(**own)


def record_of(means):
    record = records.new_record("components", "tiny", {})
    for method, (one, two) in means.items():
        for task, value in (("x", one), ("y", two)):
            records.add_result(
                record, method=method, seed=0, task=task, metric="accuracy", value=value, n=4
            )
    return record


def test_gains_are_points_above_the_start():
    means = {"individual": (90, 90), "task_arithmetic": (60, 70), "symerge": (80, 91)}
    assert components.gains(record_of(means)) == {"symerge": 20.5}
    del means["task_arithmetic"]
    assert components.gains(record_of(means)) == {}


def test_a_run_leaves_a_record_and_a_picture(monkeypatch, capsys, out):
    monkeypatch.setattr(components, "adapt", lambda scene, runs: ablation_world.told(runs, scene))
    record, folder = ablation_world.recorded(monkeypatch, capsys, components, out)
    assert records.methods(record) == list(components.ROWS)
    assert ablation_world.values(record, "individual") == [100, 100, 100]
    assert record["data"]["task_count"] == 3
    start = np.mean(ablation_world.values(record, "task_arithmetic"))
    gain = 100 * np.mean([1 - 1 / n for n in ablation_world.COUNTS]) - start
    expected = {row: pytest.approx(gain) for row in components.ROWS if "symerge" in row}
    assert record["data"]["gain"] == expected
    assert (folder / "components.png").is_file()
    assert record["stored_encoders"]["symerge"] == 1


def test_an_unknown_row_is_refused(monkeypatch, capsys, out):
    words = ("--methods", "symerge_heads")
    says = "unknown method 'symerge_heads' (did you mean symerge_head?)"
    ablation_world.refused(monkeypatch, capsys, components, out, *words, says=says)
