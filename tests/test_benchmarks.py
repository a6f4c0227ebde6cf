"""Benchmarks run, agree with themselves and write their figures; timings are not looked at."""

import json

import numpy as np
import pytest

from benchmarks import adaptation_step, merge_io
from benchmarks.adaptation_step import Settings
from symerge_jax.cli.errors import run
from symerge_jax.errors import BadInput
from symerge_jax.models import clip

SMALL = ["--model=small", "--tasks=2", "--steps=6", "--batch-size=4", "--repeats=1", "--images=8"]


@pytest.fixture(autouse=True)
def small_model(monkeypatch):
    """A preset of one block, which compiles in a fraction of the others' time."""
    vision = clip.VisionConfig(
        image_size=16, patch_size=8, width=16, depth=1, heads=2, projection=8
    )
    text = clip.PRESETS["tiny-64x3"].text
    monkeypatch.setitem(clip.PRESETS, "small", clip.ClipConfig(vision, text))


def _run(words):
    return run(adaptation_step.main, Settings, words, prog="python -m benchmarks.adaptation_step")


def test_adaptation_step_writes_its_figures(tmp_path, capsys):
    file = tmp_path / "new" / "figures.json"
    assert _run([*SMALL, f"--json={file}"]) == 0
    found = json.loads(file.read_text())
    assert list(found) == [
        "benchmark",
        "settings",
        "compiled",
        "eager",
        "ratio",
        "losses",
        "environment",
    ]
    assert found["settings"] == {
        "model": "small",
        "tasks": 2,
        "steps": 6,
        "batch_size": 4,
        "repeats": 1,
        "images": 8,
    }
    for loop in ("compiled", "eager"):
        assert set(found[loop]) == {
            "compile_seconds",
            "run_seconds",
            "ms_per_step",
            "images_per_second",
        }
        assert len(found[loop]["run_seconds"]) == 1
    assert set(found["ratio"]) == {"pairs", "median", "min", "max"}
    assert found["losses"]["agree"]
    assert "commit" in found["environment"]["git"] or found["environment"]["git"] is None
    printed = capsys.readouterr().out
    assert "losses agree" in printed
    assert "eager / compiled" in printed


def test_loops_that_part_end_with_code_1(monkeypatch, capsys):
    monkeypatch.setattr(adaptation_step, "compiled_loop", lambda problem: np.zeros(6))
    monkeypatch.setattr(adaptation_step, "eager_loop", lambda step, problem: np.full(6, 0.01))
    assert _run(SMALL) == 1
    assert "losses differ" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--model=tiny-64x4"], "did you mean tiny-64x3"),
        (["--steps=0"], "steps must be at least 1, got 0"),
    ],
)
def test_bad_options_are_one_line(words, expected, capsys):
    assert _run(words) == 2
    assert expected in capsys.readouterr().err


def test_merge_io_writes_its_figures(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(merge_io, "torch_files", lambda models, folder: [])
    file = tmp_path / "figures.json"
    words = ["--model=tiny-64x3", "--experts=2", "--repeats=1", f"--json={file}"]
    assert run(merge_io.main, merge_io.Settings, words, prog="merge_io") == 0
    found = json.loads(file.read_text())
    assert list(found) == [
        "benchmark",
        "settings",
        "rows",
        "import_leaves_jax_out",
        "notes",
        "environment",
    ]
    assert list(found["rows"]) == ["read", "merge, warm", "merge, cold", "import", "help"]
    for row in found["rows"].values():
        assert len(row["seconds"]) == len(row["ratios"]) == len(row["peak_bytes"]) == 1
        assert row["seconds"][0] > 0
    # Python alone is a few megabytes, and one with JAX more than a hundred.
    assert found["rows"]["merge, warm"]["peak_bytes"][0] > 1e8
    assert found["rows"]["import"]["peak_bytes"][0] < 1e8
    assert found["import_leaves_jax_out"] is True
    printed = capsys.readouterr().out
    assert "merge, cold" in printed
    assert "no .pt rows: PyTorch" in printed


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--model=ViT-B-33"], "did you mean ViT-B-32"),
        (["--experts=1"], "experts must be at least 2, got 1"),
        (["--folder=/nothing"], "/nothing: expected the folders base, expert0"),
    ],
)
def test_bad_options_of_merge_io_are_one_line(words, expected, capsys):
    assert run(merge_io.main, merge_io.Settings, words, prog="merge_io") == 2
    assert expected in capsys.readouterr().err


def test_a_command_that_fails_says_why(tmp_path):
    with pytest.raises(BadInput, match=r"exit code 2: symerge: error: .* no such file or folder"):
        merge_io.merged([tmp_path / str(k) for k in range(3)], work=tmp_path, warm=True)
