"""Records: the summary by hand, the file, and what is refused."""

import dataclasses
import json
from pathlib import Path

import pytest

from experiments import records
from symerge_jax.errors import BadInput


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a script might have."""

    data: Path = Path("data")
    seeds: tuple[int, ...] = (0, 1)
    patience: float = float("inf")
    limit: int | None = None


@pytest.fixture
def record():
    """Two tasks and two seeds.

    method      seed  digits  signs  mean   ratios to the expert's
    individual  0     80      100    90     100 %    100 %
    individual  1     90      100    95     100 %    100 %
    ties        0     40      60     50     50 %     60 %     → 55 %
    ties        1     54      70     62     60 %     70 %     → 65 %
    """
    record = records.new_record("vision", "tiny", Settings())
    values = {
        "individual": [(80, 100), (90, 100)],
        "ties": [(40, 60), (54, 70)],
    }
    for method, by_seed in values.items():
        for seed, pair in enumerate(by_seed):
            for task, value in zip(("digits", "signs"), pair, strict=True):
                add(record, method=method, seed=seed, task=task, value=value)
    return record


def add(record, *, method, task, value, seed=0, metric="accuracy"):
    records.add_result(
        record, method=method, seed=seed, task=task, metric=metric, value=value, n=500
    )


def test_summary_by_hand(record):
    std = 72**0.5  # of 50 and 62: √((6² + 6²) / 1)
    assert records.summarise(record)["ties"] == {
        "mean": pytest.approx(56.0),
        "std": pytest.approx(std),
        "normalised": pytest.approx(60.0),
        "metrics": {"accuracy": {"mean": pytest.approx(56.0), "std": pytest.approx(std)}},
    }
    assert records.summarise(record)["individual"]["normalised"] == pytest.approx(100.0)


def test_one_seed_has_no_std():
    record = records.new_record("vision", "tiny", {})
    add(record, method="ties", task="digits", value=40.0)
    summary = records.summarise(record)["ties"]
    assert (summary["mean"], summary["std"]) == (40.0, None)
    assert summary["normalised"] is None  # without an expert


def test_experts_of_one_seed_serve_all(record):
    record["results"] = [
        r for r in record["results"] if r["method"] != "individual" or r["seed"] == 0
    ]
    # seed 1 against seed 0's experts: 54 / 80 and 70 / 100
    expected = (55.0 + (67.5 + 70.0) / 2) / 2
    assert records.summarise(record)["ties"]["normalised"] == pytest.approx(expected)


def test_the_first_metric_of_a_task_is_its_main_one():
    record = records.new_record("language", "glue", {})
    for method, scores in {"individual": (50.0, 80.0, 90.0), "ties": (25.0, 60.0, 81.0)}.items():
        for task, metric, value in zip(
            ("cola", "cola", "sst2"), ("matthews", "accuracy", "accuracy"), scores, strict=True
        ):
            add(record, method=method, task=task, metric=metric, value=value)
    summary = records.summarise(record)["ties"]
    assert summary["mean"] == pytest.approx((25.0 + 81.0) / 2)
    assert summary["normalised"] == pytest.approx((50.0 + 90.0) / 2)
    assert summary["metrics"]["accuracy"]["mean"] == pytest.approx((60.0 + 81.0) / 2)


def test_dense_tasks_have_no_mean_and_invert_errors():
    record = records.new_record("dense", "nyu", {})
    for method, (miou, error) in {"individual": (50.0, 0.4), "ties": (40.0, 0.5)}.items():
        add(record, method=method, task="segmentation", metric="miou", value=miou)
        add(record, method=method, task="depth", metric="depth_abs_error", value=error)
    summary = records.summarise(record)["ties"]
    assert (summary["mean"], summary["std"]) == (None, None)
    assert summary["normalised"] == pytest.approx(80.0)  # 40 / 50 and 0.4 / 0.5
    assert summary["metrics"]["depth_abs_error"] == {"mean": 0.5, "std": None}


def test_a_value_that_is_not_finite_is_null_and_noted(record):
    add(record, method="slerp", task="digits", value=float("nan"))
    assert record["results"][-1]["value"] is None
    assert record["notes"] == ["slerp, seed 0: accuracy of digits is nan"]
    assert records.summarise(record)["slerp"]["mean"] is None


def test_a_second_value_for_the_same_thing_is_refused(record):
    with pytest.raises(ValueError, match="second"):
        add(record, method="ties", task="digits", value=41.0)


def test_a_written_record_reads_back(record, tmp_path):
    with records.phase(record, "merge"):
        pass
    folder = records.new_folder(record, tmp_path / "runs")
    path = records.write(record, folder)
    assert path == tmp_path / "runs" / "vision" / folder.name / "record.json"
    assert path.is_absolute()
    assert records.read(path) == record
    assert list(record) == [
        "format",
        "experiment",
        "setting",
        "settings",
        "environment",
        "phases_s",
        "notes",
        "results",
        "summary",
    ]
    expected = {"data": "data", "seeds": [0, 1], "patience": "inf", "limit": None}
    assert record["settings"] == expected
    assert record["phases_s"]["merge"] >= 0


def test_the_table_beside_the_record(record, tmp_path):
    path = records.write(record, records.new_folder(record, tmp_path))
    assert path.with_name("table.csv").read_text().splitlines() == [
        "method,digits:accuracy,signs:accuracy,mean,std,normalised",
        "individual,85,100,92.5,3.53553,100",
        "ties,47,65,56,8.48528,60",
    ]


def test_the_environment_says_where(record):
    environment = record["environment"]
    assert {"python", "jax", "jaxlib", "flax", "optax", "numpy", "platform"} <= set(environment)
    assert environment["device_count"] >= 1
    assert environment["command"].startswith("python ")


def test_runs_never_share_a_folder(record, tmp_path):
    folders = {records.new_folder(record, tmp_path) for _ in range(5)}
    assert len(folders) == 5


def test_a_record_is_never_overwritten(record, tmp_path):
    folder = records.new_folder(record, tmp_path)
    records.write(record, folder)
    with pytest.raises(BadInput, match="never overwritten"):
        records.write(record, folder)


def test_out_beneath_a_file_is_bad_input(record, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="file"):
        records.new_folder(record, tmp_path / "file" / "runs")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "format 1, found 2"),
        ({"format": None}, "format 1"),
        ({"results": ...}, "'results'"),
    ],
)
def test_another_format_is_refused(record, tmp_path, change, message):
    changed = {k: v for k, v in {**record, **change}.items() if v is not ...}
    path = tmp_path / "record.json"
    path.write_text(json.dumps(changed))
    with pytest.raises(BadInput, match=message):
        records.read(path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": NaN}'])
def test_what_is_no_record_is_refused(tmp_path, text):
    path = tmp_path / "record.json"
    path.write_text(text)
    with pytest.raises(BadInput, match="expected"):
        records.read(path)


def test_a_missing_record_is_bad_input(tmp_path):
    with pytest.raises(BadInput, match="cannot be read"):
        records.read(tmp_path / "none.json")


def test_settings_that_json_cannot_hold_are_refused():
    with pytest.raises(TypeError, match="no place in a record"):
        records.new_record("vision", "tiny", {"objective": print})
