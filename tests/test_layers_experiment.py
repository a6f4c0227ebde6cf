"""Which layer is each task's own: rows, learning rates, refusals."""

import ablation_world
import numpy as np
import pytest

from experiments import ablating, layers, records
from experiments.methods import Outcome
from experiments.scoring import Scored
from symerge_jax.errors import BadInput


@pytest.fixture
def out(tmp_path):
    return tmp_path / "runs"


def test_a_tower_of_twelve_blocks_has_all_of_the_papers_rows():
    rows = layers.rows_of(12, None)
    assert set(layers.PAPER) < set(rows)
    assert len(rows) == 2 + 2 + 12 + 3


def test_a_half_of_one_block_is_that_block_and_left_out():
    rows = layers.rows_of(3, None)
    assert rows[4:] == [*(f"symerge_block_{b}" for b in (1, 2, 3)), "symerge_late", "symerge_all"]


def test_blocks_that_are_named_come_alone():
    assert layers.rows_of(12, (7, 2))[4:] == ["symerge_block_2", "symerge_block_7"]


@pytest.mark.parametrize("block", [0, 13, -1])
def test_a_block_that_does_not_exist(block):
    with pytest.raises(BadInput, match=f"--blocks {block}: the image tower has blocks 1 to 12"):
        layers.rows_of(12, (1, block))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--blocks 13", "--blocks 13: the image tower has blocks 1 to 3"),
        ("--blocks 2 2", "--blocks names one thing twice: 2 2"),
        ("--block-rates 0.1 0", "--block-rates must be positive numbers, got 0"),
        ("--block-rates nan", "--block-rates must be positive numbers, got nan"),
        ("--methods symerge_block_4", "unknown method 'symerge_block_4'"),
        ("--model ViT-B-33", "--model must be one of"),
        ("--blocks one", "one"),
    ],
)
def test_a_bad_option(monkeypatch, capsys, out, words, says):
    ablation_world.refused(monkeypatch, capsys, layers, out, *words.split(), says=says)


def test_the_rate_is_that_of_the_middle_block():
    assert layers.middle(layers.rows_of(12, None)[4:]) == "symerge_block_6"
    assert layers.middle(layers.rows_of(3, None)[4:]) == "symerge_block_2"
    assert layers.middle(["symerge_late", "symerge_all"]) == "symerge_late"


def test_the_best_rate_has_the_highest_mean_over_seeds():
    assert layers.best_rate({1e-3: [80, 90], 1e-5: [86, 86], 1e-4: [70, 99]}) == 1e-5
    assert layers.best_rate({1e-3: [90], 1e-4: [90]}) == 1e-4


def test_rates_come_once_and_ascending():
    assert layers.chosen_rates(layers.Settings(block_rates=(1e-3, 1e-4, 1e-3))) == (1e-4, 1e-3)
    assert layers.chosen_rates(layers.Settings()) == layers.RATES["tiny"]
    assert len(layers.chosen_rates(layers.Settings(quick=True))) == 2


def test_validation_chooses_the_rate_and_other_layers_take_it(monkeypatch, capsys, out):
    seen = []

    def stub(model, seed, tasks, run, constants, around):
        seen.append((run.method, constants.block_rate))
        right = 4 if constants.block_rate == 0.02 else 7
        scores = [Scored(np.arange(len(task.test.labels)) < right, 0.0) for task in tasks]
        return Outcome(run.name or run.method, seed.number, False, scores)

    def adapt(scene, runs, constants):
        return [
            stub(scene.model, seed, scene.tasks, run, own, scene.around)
            for run, own in zip(runs, constants, strict=True)
            for seed in scene.seeds.values()
        ]

    # On validation images 0.02 is the best, though it is the worst on test images.
    by_name = {"rate 0.01": 50.0, "rate 0.02": 60.0, "rate 0.03": 40.0}
    monkeypatch.setattr(layers, "adapt", adapt)
    monkeypatch.setattr(ablating, "adaptive", stub)
    monkeypatch.setattr(
        layers, "validated", lambda scene, one: by_name[one.method.split(", ")[1]] + one.seed
    )
    record, folder = ablation_world.recorded(
        monkeypatch, capsys, layers, out, "--block-rates", "0.03", "0.01", "0.02", "--seeds", "0",
        "1",
    )  # fmt: skip
    swept = [("symerge_block_2", rate) for rate in (0.01, 0.02, 0.03) for _ in range(2)]
    assert seen[:6] == swept
    assert {rate for _, rate in seen[6:]} == {0.02}
    assert sorted({method for method, _ in seen[6:]}) == sorted(
        row for row in layers.rows_of(3, None)[2:] if row != "symerge_block_2"
    )
    assert records.methods(record) == layers.rows_of(3, None)
    assert ablation_world.values(record, "symerge_block_2") == [100 * 4 / n for n in (9, 8, 10)]
    assert record["data"]["block_rate"] == 0.02
    assert record["data"]["rates_tried"] == {
        "row": "symerge_block_2",
        "rates": [0.01, 0.02, 0.03],
        "validation_accuracy": [[50, 51], [60, 61], [40, 41]],
    }
    assert (folder / "layers.png").is_file()
    assert (folder / "block_rates.png").is_file()
