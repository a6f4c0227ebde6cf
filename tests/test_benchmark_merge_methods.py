"""The benchmark of merging methods measures what it says; timings are not looked at."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from benchmarks import merge_methods
from benchmarks import merge_methods_memory as memory
from benchmarks import merge_methods_problem as problem
from benchmarks.merge_methods import Problem, Settings
from symerge_jax.cli.errors import run
from symerge_jax.merge import METHODS
from symerge_jax.models import clip


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """A preset with matrices of all shapes, one second of work, and an array of a megabyte."""
    vision = clip.VisionConfig(
        image_size=16, patch_size=8, width=32, depth=2, heads=2, projection=16
    )
    text = clip.PRESETS["tiny-64x3"].text
    monkeypatch.setitem(clip.PRESETS, "small", clip.ClipConfig(vision, text))
    own = merge_methods.bandwidth_bytes_per_second
    monkeypatch.setattr(merge_methods, "bandwidth_bytes_per_second", lambda: own(1e-3))


@pytest.fixture
def without_torch(monkeypatch):
    monkeypatch.setattr(merge_methods, "_torch_version", lambda: None)


def _run(*words):
    prog = "python -m benchmarks.merge_methods"
    return run(merge_methods.main, Settings, list(words), prog=prog)


def test_it_times_methods_and_their_growth(tmp_path, capsys, without_torch):
    file = tmp_path / "new" / "figures.json"
    words = ["--model=small", "--tasks=3", "--repeats=2", "--no-files", "--no-memory"]
    assert _run(*words, f"--json={file}", "--methods", "task-arithmetic", "iso_c", "slerp") == 0
    found = json.loads(file.read_text())
    assert list(found) == [
        "format", "benchmark", "settings", "bandwidth", "rows", "scaling", "notes", "environment",
    ]  # fmt: skip
    assert found["format"] == 1
    assert found["settings"]["methods"] == ["task_arithmetic", "iso_c", "slerp"]
    assert found["environment"]["torch"] is None
    assert list(found["rows"]) == ["task_arithmetic", "iso_c", "slerp"]
    assert [row["tasks"] for row in found["rows"].values()] == [3, 3, 2]
    assert [row["part"] for row in found["rows"].values()] == ["all", "1 of 2 blocks", "all"]
    for row in found["rows"].values():
        assert len(row["seconds"]) == 2
        assert "ratios" not in row
        bytes_read = 4 * row["numbers"] * row["tasks"]
        assert row["floor_seconds"] == pytest.approx(bytes_read / found["bandwidth"])
        assert row["times_floor"] == pytest.approx(row["median_seconds"] / row["floor_seconds"])
    assert list(found["scaling"]) == ["task_arithmetic", "iso_c"]
    assert list(found["scaling"]["task_arithmetic"]) == ["2", "4", "8", "16"]
    printed = capsys.readouterr().out
    assert "no PyTorch columns" in printed
    assert "K = 16" in printed


@pytest.mark.slow
def test_it_measures_memory_in_memory_and_from_files(tmp_path, without_torch):
    file = tmp_path / "figures.json"
    words = ["--model=tiny-64x3", "--tasks=2", "--repeats=1", "--no-scaling", f"--json={file}"]
    assert _run(*words, "--methods", "emr", "tsv_m") == 0
    emr, tsv_m = json.loads(file.read_text())["rows"].values()
    whole, part = problem.tower("tiny-64x3"), problem.tower("tiny-64x3", 1)
    # u, two masks of one bit an entry, two factors; leaves end on whole bytes.
    least = whole.bytes + 2 * whole.bytes // 32
    assert least <= emr["memory"]["result_bytes"] < least + 3 * len(whole.shapes)
    assert tsv_m["memory"]["result_bytes"] == part.bytes
    for row, share in ((emr, 1), (tsv_m, part.bytes / whole.bytes)):
        peak, result = row["memory"]["above_bytes"], row["memory"]["result_bytes"]
        assert peak >= 0
        models = 2 + (peak + result / share - result) / whole.bytes
        assert row["memory"]["models"] == pytest.approx(models)
    assert emr["limits"]["models"] == 4
    assert emr["files"]["peak_bytes"] > 1e8  # Python with JAX
    assert tsv_m["files"]["peak_bytes"] > 1e8  # the whole tower, whatever was timed


def test_limits_are_kept_or_not():
    row = {
        "median_ratio": 3.0,
        "tasks": 8,
        "memory": {"models": 10.5},
        "files": {"peak_bytes": 1e9},
    }
    assert merge_methods.limits("ties", row) == (
        {"ratio": 4.0, "models": 10, "gigabytes": 1.5},
        {"ratio": False, "models": False, "gigabytes": True},
    )
    assert merge_methods.limits("emr", row)[1]["ratio"] is True
    assert merge_methods.limits("lot", {"median_ratio": 0.1, "tasks": 8}) == ({}, {})


def test_results_that_differ_in_more_than_a_few_entries_are_told():
    own = {"a": np.linspace(0, 1, 10001, dtype=np.float32)}
    near = {"a": own["a"] * np.float32(1.0001)}
    assert merge_methods.compared("ties", own, near)["agrees"]
    one_off = {"a": own["a"].copy()}
    one_off["a"][0] = 0.5
    found = merge_methods.compared("ties", own, one_off)
    assert found["agrees"]
    assert found["difference"] == 0.5
    one_off["a"][:2] = np.nan
    found = merge_methods.compared("ties", own, one_off)
    assert not found["agrees"]


def test_results_that_differ_end_with_code_1(monkeypatch, capsys, without_torch):
    rows = {"ties": {"median_seconds": 1.0, "times_floor": 2.0, "tasks": 2, "agrees": False}}
    monkeypatch.setattr(merge_methods, "timings", lambda *args, **more: rows)
    words = ["--model=small", "--no-scaling", "--no-files", "--no-memory", "--methods", "ties"]
    assert _run(*words) == 1
    assert "ties: the results differ" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--model=ViT-B-33"], "did you mean ViT-B-32"),
        (["--methods", "tie"], "did you mean ties"),
        (["--tasks=1"], "tasks must be from 2 to 1000, got 1"),
        (["--model=small", "--blocks=3"], "blocks must be from 1 to 2, got 3"),
        (["--repeats=0"], "repeats must be at least 1, got 0"),
        (["--folder=/nothing"], "/nothing: expected the folders base, expert0"),
    ],
)
def test_bad_options_are_one_line(words, expected, capsys):
    assert _run(*words) == 2
    assert expected in capsys.readouterr().err


def test_task_vectors_are_the_same_for_any_number_of_tasks_and_any_part():
    whole, part = problem.tower("small"), problem.tower("small", 1)
    assert set(part.shapes) < set(whole.shapes)
    many, few = problem.draw(whole.shapes, 3), problem.draw(part.shapes, 2)
    for path, leaf in problem.first(many, 2, part.shapes).items():
        np.testing.assert_array_equal(leaf, few[path])
    numbers = np.concatenate([leaf.ravel() for leaf in many.values()])
    assert 0.02 < (np.abs(numbers) > 4e-3).mean() < 0.03  # of the three large entries of a hundred


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="an accelerator has its own memory")
def test_task_vectors_are_not_copied_for_jax():
    leaves = problem.draw({"a": (3, 5), "b": (7,)}, 2)
    for path, array in problem.on_device(leaves).items():
        assert array.unsafe_buffer_pointer() == leaves[path].ctypes.data


def test_memory_of_a_process_is_known():
    held = np.ones(1 << 24, np.float32)
    assert held.nbytes < memory.resident_bytes() <= memory.peak_bytes() + 1e6


@pytest.mark.torch
@pytest.mark.parametrize("name", [name for name in METHODS if name != "dare"])
def test_methods_agree_with_the_authors_algorithms_in_pytorch(name):
    pytest.importorskip("torch")
    part, tasks = problem.tower("small"), merge_methods.tasks_of(name, 3)
    leaves = problem.draw(part.shapes, tasks)
    given = Problem(name, part, leaves, problem.extras(name, part, tasks))
    own = merge_methods.ours(given)()
    merge, sample = merge_methods.theirs(given)
    other = sample(merge())
    assert set(other) == set(merge_methods.sampled(part))
    found = merge_methods.compared(name, {path: np.asarray(own[path]) for path in other}, other)
    assert found["difference"] < 1e-3


@pytest.mark.torch
def test_dare_in_pytorch_keeps_half_of_the_entries_doubled():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    part = problem.tower("small")
    leaves = problem.draw(part.shapes, 2)
    for leaf in leaves.values():
        leaf[1] = 0
    merge, sample = merge_methods.theirs(Problem("dare", part, leaves, {}))
    factors = [leaf / leaves[path][0] for path, leaf in sample(merge()).items()]
    factors = np.concatenate([factor.ravel() for factor in factors])
    assert set(factors.tolist()) == {0, 2}
    assert 0.9 < factors.mean() < 1.1


@pytest.mark.torch
def test_pairs_take_turns_and_give_ratios(tmp_path, capsys):
    pytest.importorskip("torch")
    file = tmp_path / "figures.json"
    words = ["--model=small", "--tasks=2", "--repeats=2", "--no-files", "--no-memory"]
    assert _run(*words, "--no-scaling", f"--json={file}", "--methods", "magmax", "tsv_c") == 0
    for row in json.loads(file.read_text())["rows"].values():
        ratios = [b / a for a, b in zip(row["seconds"], row["torch_seconds"], strict=True)]
        assert row["ratios"] == pytest.approx(ratios)
        assert row["agrees"]
    assert "torch / ours" in capsys.readouterr().out


PAGE = Path(__file__).parents[1] / "docs" / "speed.md"
RECORD = Path(__file__).parents[1] / "benchmarks" / "results" / "merge_methods.json"


def test_the_page_shows_the_committed_figures(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "110")
    monkeypatch.setenv("NO_COLOR", "1")
    assert _run(f"--read={RECORD}") == 0
    printed = "\n".join(line.rstrip() for line in capsys.readouterr().out.splitlines())
    shown = PAGE.read_text().partition("```text\n")[2].partition("```")[0]
    assert shown.rstrip() == printed.rstrip()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "cannot be read as a benchmark's figures"),
        ("{}", "expected the figures of benchmarks.merge_methods"),
        ('{"benchmark": "merge_methods", "format": 0}', "expected format 1, got 0; run it again"),
    ],
)
def test_another_file_is_refused(tmp_path, capsys, text, says):
    (tmp_path / "x.json").write_text(text)
    assert _run(f"--read={tmp_path / 'x.json'}") == 2
    assert says in capsys.readouterr().err
