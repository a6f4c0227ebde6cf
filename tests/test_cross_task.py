"""Cross-task accuracy against merge accuracy: the points, the record, the command."""

import numpy as np
import pytest
from pair_command import TASKS, assert_refused, install, record_of, run_command, values

from experiments import cross_task, pairs, proposition
from experiments.pairs import Pairs

CROSS = np.array([[90.0, 10, 20], [30, 95, 50], [60, 70, 85]])
MERGED = np.array([[90.0, 40, 45], [55, 95, 66], [71, 83, 85]])
LOSS = np.ones((3, 3))
FOUND = Pairs(CROSS, LOSS, MERGED, LOSS, np.array([50.0, 60, 70]), np.ones(3))


def test_a_point_per_encoder_is_its_mean_over_tasks():
    x, y = cross_task.points(CROSS, MERGED, "source")
    np.testing.assert_array_equal(x, [15, 40, 65])
    np.testing.assert_array_equal(y, [42.5, 60.5, 77])


def test_a_point_per_task_is_its_mean_over_encoders():
    x, y = cross_task.points(CROSS, MERGED, "target")
    np.testing.assert_array_equal(x, [45, 40, 35])
    np.testing.assert_array_equal(y, [63, 61.5, 55.5])


def test_a_point_per_pair_leaves_the_experts_out():
    x, y = cross_task.points(CROSS, MERGED, "pairs")
    np.testing.assert_array_equal(x, [10, 20, 30, 50, 60, 70])
    np.testing.assert_array_equal(y, [40, 45, 55, 66, 71, 83])


def test_the_record_holds_every_seed_and_their_mean():
    other = FOUND._replace(cross=CROSS + 2, merged=MERGED - 4)
    found = cross_task.collected({0: FOUND, 3: other})
    assert found["cross"]["3"][0][1] == 12
    mean = found["correlations"]["source"]["mean"]
    assert mean["x"] == [16, 41, 66]
    assert mean["y"] == [40.5, 58.5, 75]
    assert mean["r"] == pytest.approx(np.corrcoef(mean["x"], mean["y"])[0, 1])
    seeds = found["correlations"]["source"]["seeds"]
    assert seeds["0"]["r"] == pytest.approx(seeds["3"]["r"])  # a shift changes no correlation
    assert "by encoder: r = 1.000, p = 0.016" in cross_task.sentence("source", mean)


def test_equal_accuracies_have_no_correlation():
    flat = cross_task.stored(np.array([5.0, 5, 5]), np.array([1.0, 2, 3]))
    assert (flat["r"], flat["p"], flat["slope"]) == (None, None, None)
    assert "no correlation" in cross_task.sentence("target", flat)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--tasks", "runes", "shapes"), "at least three tasks, got runes shapes"),
        (("--methods", "ties"), "--methods ties: this experiment has runs of its own"),
    ],
)
def test_what_is_refused(capsys, tmp_path, words, says):
    assert_refused(capsys, cross_task, "--out", tmp_path / "runs", *words, says=says)
    assert not (tmp_path / "runs").exists()


def test_by_default_all_twenty_tasks_take_part(capsys):
    assert run_command(cross_task, "--dry-run") == 0
    assert capsys.readouterr().out.splitlines()[0].count(",") == 19


def test_a_run_from_end_to_end_and_the_proposition_on_what_it_measured(
    capsys, tmp_path, monkeypatch
):
    install(monkeypatch, cross_task, proposition)
    words = ("--out", tmp_path, "--seeds", "0", "4")
    assert run_command(cross_task, *words) == 0
    record, folder = record_of(capsys.readouterr())
    assert record["data"]["tasks"] == list(TASKS)
    cross = np.array(record["data"]["cross"]["4"])
    own = dict(zip(TASKS, cross.diagonal(), strict=True))
    assert values(record, "individual", seed=4) == pytest.approx(own)
    expected = (cross.sum(axis=0) - cross.diagonal()) / 2
    others = dict(zip(TASKS, expected, strict=True))
    assert values(record, "cross_task", seed=4) == pytest.approx(others)
    for name in ("correlation", "correlation_others", "cross_task"):
        assert folder.joinpath(f"{name}.png").stat().st_size > 5000

    def fail(*_):
        raise AssertionError("measured again")

    monkeypatch.setattr(pairs, "_measured", fail)
    assert run_command(proposition, *words) == 0
    other, folder = record_of(capsys.readouterr())
    assert other["results"] == record["results"]
    assert other["data"]["shares"]["pairs"] == 12
    assert folder.joinpath("proposition.png").stat().st_size > 5000
