"""Joint and sequential updates: the same images, another number of steps."""

import ablation_world
import numpy as np
import pytest

from experiments import records, sequential
from experiments.adapting import schedule_of
from experiments.methods import Run


@pytest.fixture
def out(tmp_path):
    return tmp_path / "runs"


def test_both_ways_see_equally_many_images_of_each_task_but_step_differently():
    sizes, constants = [64, 64, 64], ablation_world.CONSTANTS._replace(iterations=6, batch_size=8)
    joint = sequential.joint_schedule(sizes, constants, 0)
    each = schedule_of(Run("symerge"), sizes, constants, 0)
    for k in range(3):
        seen = [s.sample_mask[s.task_ids == k].sum() for s in (joint, each)]
        assert seen == [6 * 8, 6 * 8]
    assert joint.apply_update.sum() == 6
    assert each.apply_update.sum() == 6 * 3


def test_it_is_the_schedule_of_adamerging():
    sizes, constants = [20, 30], ablation_world.CONSTANTS
    ours = sequential.joint_schedule(sizes, constants, 5)
    theirs = schedule_of(Run("adamerging"), sizes, constants, 5)
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_run_leaves_a_record_and_a_picture(monkeypatch, capsys, out):
    words = ("--methods", "symerge_joint")
    record, folder = ablation_world.recorded(monkeypatch, capsys, sequential, out, *words)
    assert records.methods(record) == ["individual", "symerge_joint"]
    assert (folder / "sequential.png").is_file()


def test_an_unknown_row_is_refused(monkeypatch, capsys, out):
    says = "unknown method 'adamergin_joint'"
    words = ("--methods", "adamergin_joint")
    ablation_world.refused(monkeypatch, capsys, sequential, out, *words, says=says)
