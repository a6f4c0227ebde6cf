"""Where a merged model and the experts differ: counts by hand, and the script on a small scene."""

from pathlib import Path

import numpy as np
import pytest
import small_scene
from small_scene import outcome

from experiments import discrepancy, records
from experiments.discrepancy import METHODS, chosen_methods, counted, lost_and_gained
from symerge_jax.cli.errors import run


@pytest.mark.parametrize(
    ("expert", "merged", "found"),
    [
        ([1, 1, 0, 0, 1], [1, 0, 0, 1, 0], (2, 1)),
        ([1, 0], [1, 0], (0, 0)),
        ([1, 1, 1], [0, 0, 0], (3, 0)),
        ([0, 0], [1, 1], (0, 2)),
    ],
)
def test_what_merging_breaks_and_mends(expert, merged, found):
    assert lost_and_gained(np.array(expert, bool), np.array(merged, bool)) == found


def test_counts_of_two_tasks_and_seeds_by_hand():
    outcomes = [
        outcome("individual", [[1, 1, 0, 0], [1, 0]]),
        outcome("ties", [[0, 1, 1, 1], [0, 0]]),  # U 1, D 2; U 1, D 0
        outcome("individual", [[1, 1, 1, 1], [0, 0]], seed=3),
        outcome("ties", [[0, 0, 0, 1], [1, 0]], seed=3),  # U 3, D 0; U 0, D 1
    ]
    assert counted(outcomes, ["ties"], [0, 3], ["a", "b"]) == {
        "tasks": ["a", "b"],
        "images": [4, 2],
        "counts": {"ties": {"U": [[1, 1], [3, 0]], "D": [[2, 0], [0, 1]]}},
        "percent": {"ties": {"U": [50, 25], "D": [25, 25], "U-D": [25, 0]}},
    }


def test_the_difference_is_that_of_the_accuracies():
    rng = np.random.default_rng(0)
    expert, merged = (outcome(m, rng.integers(0, 2, (3, 40))) for m in ("individual", "symerge"))
    found = counted([expert, merged], ["symerge"], [0], ["a", "b", "c"])
    lead = [a.accuracy - b.accuracy for a, b in zip(expert.scores, merged.scores, strict=True)]
    np.testing.assert_allclose(found["percent"]["symerge"]["U-D"], lead)


@pytest.mark.parametrize(
    ("asked", "chosen"),
    [
        (None, METHODS),
        (("all",), METHODS),
        (("tsv-m", "symerge_block_1"), ("tsv_m", "symerge_block_1")),
        (("individual", "ties"), ("ties",)),
    ],
)
def test_methods_to_compare(asked, chosen):
    assert chosen_methods(discrepancy.Settings(methods=asked)) == list(chosen)


def test_the_script_counts_in_the_order_asked_for(monkeypatch, capsys, tmp_path):
    small_scene.install(monkeypatch, discrepancy)
    words = ["--out", str(tmp_path), "--methods", "symerge", "surgery", "task_arithmetic"]
    assert run(discrepancy.main, discrepancy.Settings, words, prog="script") == 0
    path = Path(capsys.readouterr().out.splitlines()[-1])
    record = records.read(path)
    assert records.methods(record) == ["individual", "symerge", "surgery", "task_arithmetic"]
    data = record["data"]
    assert data["images"] == [12, 12, 12]
    assert list(data["counts"]) == ["symerge", "surgery", "task_arithmetic"]
    assert all(0 <= u <= 12 for one in data["counts"].values() for u in one["U"][0])
    assert path.with_name("discrepancy.png").stat().st_size > 10_000
