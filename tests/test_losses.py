"""Which loss: each row its own objective, and the labelled upper bound."""

import ablation_world
import numpy as np
import pytest

from experiments import losses, records
from experiments.options import Options
from symerge_jax.adapt.merged import OBJECTIVES, OUTPUT_OBJECTIVES


@pytest.fixture
def out(tmp_path):
    return tmp_path / "runs"


def test_there_are_eight_losses_each_with_and_without_heads():
    assert len(losses.ROWS) == 2 + 2 * 8 + 1
    known = {"self_label", *OBJECTIVES, *OUTPUT_OBJECTIVES}
    assert {objective for objective, _ in losses.LOSSES.values()} < known


def test_a_row_is_a_method_with_an_objective(tmp_path):
    scene = ablation_world.scene_of(Options(out=tmp_path))
    (seed,) = scene.seeds.values()
    job = losses.job_of(scene, seed, "smooth_l1_coefficients")
    _, _, _, run, constants, _ = job.args
    assert (run.method, run.name) == ("symerge_coefficients", "smooth_l1_coefficients")
    assert constants == scene.constants._replace(objective="smooth_l1")
    _, _, _, run, constants, _ = losses.job_of(scene, seed, "ce_joint").args
    assert (run.method, constants.objective) == ("symerge", "self_label")


def test_only_the_upper_bound_sees_labels(tmp_path):
    """With other labels the same losses come out of every row but that one."""
    adapted = []
    for shift in (0, 1):
        scene = ablation_world.scene_of(Options(out=tmp_path))
        tasks = [
            task._replace(test=task.test._replace(labels=(task.test.labels + shift) % 2))
            for task in scene.tasks
        ]
        scene = scene._replace(tasks=tasks)
        (seed,) = scene.seeds.values()
        adapted.append(
            [losses.job_of(scene, seed, row)().losses for row in ("l2_joint", "true_labels")]
        )
    (distance, bound), (same, other) = adapted
    np.testing.assert_array_equal(distance, same)
    assert not np.array_equal(bound, other)


def test_a_run_leaves_a_record_and_a_picture(monkeypatch, capsys, out):
    words = ("--methods", "l2-joint", "ce_joint", "true_labels", "task_arithmetic")
    record, folder = ablation_world.recorded(monkeypatch, capsys, losses, out, *words)
    rows = ["individual", "task_arithmetic", "l2_joint", "ce_joint", "true_labels"]
    assert records.methods(record) == rows
    assert "true_labels adapts to the labels of the test images" in record["notes"]
    assert (folder / "losses.png").is_file()


def test_an_unknown_loss_is_refused(monkeypatch, capsys, out):
    says = "unknown method 'l3_joint' (did you mean l"
    words = ("--methods", "l3_joint")
    ablation_world.refused(monkeypatch, capsys, losses, out, *words, says=says)
