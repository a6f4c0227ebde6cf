"""Methods under corruption: who sees which images, and what the record says."""

import ablation_world
import numpy as np
import pytest

from experiments import corruption, records
from experiments.corruptions import CORRUPTIONS, corrupt
from experiments.expert_outputs import label
from experiments.methods import Outcome
from experiments.scoring import Scored


@pytest.fixture
def out(tmp_path):
    return tmp_path / "runs"


def scored(right, count):
    return Scored(np.arange(count) < right, 0.0)


def test_the_corrupted_accuracy_is_the_mean_over_corruptions():
    found = corruption.metrics(scored(9, 10), {"jpeg": scored(6, 10), "contrast": scored(1, 10)})
    assert found == [
        ("accuracy", 90.0, 10),
        ("corrupted_accuracy", 35.0, 20),
        ("accuracy_jpeg", 60.0, 10),
        ("accuracy_contrast", 10.0, 10),
    ]


def test_the_papers_means_over_corruptions_are_those_of_its_table_a():
    table_a = {
        "pretrained": 35.6, "individual": 74.5, "task_arithmetic": 55.9, "ties": 52.5, "pcb": 59.1,
        "lines": 59.4, "consensus": 57.4, "iso_cts": 65.0, "adamerging": 67.2, "surgery": 68.8,
        "wemoe": 68.6, "symerge": 73.7,
    }  # fmt: skip
    for method, (_, *under) in corruption.PAPER.items():
        assert len(under) == len(CORRUPTIONS)
        assert np.mean(under) == pytest.approx(table_a[method], abs=0.11)


def test_corruptions_come_in_the_tables_order():
    settings = corruption.Settings(corruptions=("jpeg", "motion_blur"))
    assert corruption.chosen_corruptions(settings) == ["motion_blur", "jpeg"]
    assert corruption.chosen_corruptions(corruption.Settings()) == list(CORRUPTIONS)
    assert len(corruption.chosen_corruptions(corruption.Settings(quick=True))) < 4


def test_own_tasks_are_the_papers_four_where_the_folder_has_two_of_them(tmp_path):
    def tasks(*names):
        for name in names:
            (tmp_path / name).mkdir()
            np.savez(tmp_path / name / "test.npz", images=np.zeros((1, 4, 4, 3), np.uint8))
        return corruption.own_tasks(corruption.Settings(data=tmp_path))

    assert tasks("gtsrb", "dtd") is None
    assert tasks("eurosat") == ("eurosat", "gtsrb")
    chosen = corruption.Settings(data=tmp_path, tasks=("dtd", "gtsrb"))
    assert corruption.own_tasks(chosen) == ("dtd", "gtsrb")
    assert len(corruption.own_tasks(corruption.Settings())) == 4


def test_experts_are_asked_anew_about_corrupted_images(tmp_path):
    settings = corruption.Settings(out=tmp_path, severity=4, constants="imagenet")
    scene = ablation_world.scene_of(settings)
    here = corruption.corrupted(scene, "gaussian_noise", settings)
    for clean, task in zip(scene.tasks, here.tasks, strict=True):
        wanted = corrupt(clean.test.inputs, "gaussian_noise", severity=4, constants="imagenet")
        np.testing.assert_array_equal(task.test.inputs, wanted)
        np.testing.assert_array_equal(task.test.labels, clean.test.labels)
        np.testing.assert_array_equal(task.validation.inputs, clean.validation.inputs)
    (seed,), (before,) = here.seeds.values(), scene.seeds.values()
    anew = label(scene.model, seed.experts, here.tasks, tmp_path / "other")
    for told, expected, old in zip(seed.labels, anew, before.labels, strict=True):
        np.testing.assert_array_equal(told.confidence, expected.confidence)
        assert not np.array_equal(told.confidence, old.confidence)


def test_merging_is_done_once_and_adaptation_for_every_corruption(monkeypatch, capsys, out):
    merges, adapted = [], []
    whole = corruption.shared_encoder

    def counted(*args):
        merges.append(args[3])
        return whole(*args)

    def adapt(scene, runs):
        adapted.append(([run.method for run in runs], scene.tasks[0].test.inputs.tobytes()))
        return [
            Outcome(run.method, 0, False, [scored(len(adapted), 10)] * 3, stored=1.5)
            for run in runs
        ]

    def per_task(model, seed, tasks, method, tune):
        return Outcome(method, seed.number, False, [scored(5, 10)] * 3, stored=2.5)

    monkeypatch.setattr(corruption, "training_free", per_task)
    monkeypatch.setattr(corruption, "shared_encoder", counted)
    monkeypatch.setattr(corruption, "adapt", adapt)
    words = "--methods pretrained individual ties emr surgery symerge --corruptions jpeg contrast"
    record, folder = ablation_world.recorded(monkeypatch, capsys, corruption, out, *words.split())
    assert merges == ["ties"]
    assert [methods for methods, _ in adapted] == [["symerge"], ["surgery"]] * 3
    assert len({images for _, images in adapted}) == 3
    methods = ["pretrained", "individual", "ties", "emr", "surgery", "symerge"]
    assert records.methods(record) == methods
    assert ablation_world.values(record, "individual") == [100, 100, 100]
    # Clean first, then contrast and jpeg: the numbers of the stub's calls, of ten.
    assert ablation_world.values(record, "symerge") == [10] * 3
    assert ablation_world.values(record, "symerge", "accuracy_contrast") == [30] * 3
    assert ablation_world.values(record, "surgery", "accuracy_jpeg") == [60] * 3
    assert ablation_world.values(record, "surgery", "corrupted_accuracy") == [50] * 3
    assert record["summary"]["symerge"]["mean"] == 10  # that of clean images
    assert record["data"]["mean"]["symerge"]["corrupted"] == 40
    assert record["data"]["corruptions"] == ["contrast", "jpeg"]
    assert record["data"]["constants"] == "small"
    assert ablation_world.values(record, "emr", "accuracy_jpeg") == [50] * 3
    assert record["stored_encoders"] == {
        "pretrained": 1, "individual": 3, "ties": 1, "emr": 2.5, "surgery": 1.5, "symerge": 1.5,
    }  # fmt: skip
    assert any("ties: scale" in note for note in record["notes"])
    for name in ("corruption", "corruptions"):
        assert (folder / f"{name}.png").is_file()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--severity 6", "--severity must be a whole number from 1 to 5, got 6"),
        ("--severity 0", "--severity must be a whole number from 1 to 5, got 0"),
        ("--severity 1.5", "1.5"),
        ("--corruptions fog", "unknown corruption 'fog'"),
        ("--corruptions jpg", "unknown corruption 'jpg' (did you mean jpeg?)"),
        ("--corruptions jpeg jpeg", "--corruptions names one thing twice: jpeg jpeg"),
        ("--constants cifar", "cifar"),
        ("--methods symrge", "unknown method 'symrge' (did you mean symerge?)"),
        ("--data nowhere", "nowhere: does not exist"),
    ],
)
def test_a_bad_option(monkeypatch, capsys, out, words, says):
    ablation_world.refused(monkeypatch, capsys, corruption, out, *words.split(), says=says)


def test_a_dry_run_says_which_corruptions(capsys, out):
    words = ["--out", str(out), "--corruptions", "jpeg", "--dry-run"]
    code = corruption.run(corruption.main, corruption.Settings, words, prog="trial")
    said = capsys.readouterr().out
    assert code == 0
    assert "corruptions: jpeg, severity 5" in said
    assert "letters, terrain, textures, signs" in said
    assert not out.exists()
