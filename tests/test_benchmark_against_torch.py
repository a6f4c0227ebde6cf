"""The comparison with PyTorch runs and agrees with itself; times are not looked at."""

import json

import jax
import numpy as np
import pytest

from benchmarks import against_torch, floor
from benchmarks import against_torch_process as process
from benchmarks.against_torch import Settings
from symerge_jax.cli.errors import run
from symerge_jax.models import clip

SMALL = ["--model=small", "--tasks=3", "--steps=7", "--batch-size=4", "--repeats=1", "--images=6"]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """A preset of two blocks: one that works out every token, and the last."""
    vision = clip.VisionConfig(
        image_size=16, patch_size=8, width=16, depth=2, heads=2, projection=8
    )
    text = clip.PRESETS["tiny-64x3"].text
    monkeypatch.setitem(clip.PRESETS, "small", clip.ClipConfig(vision, text))
    monkeypatch.setattr(floor, "bandwidth", lambda: 1e10)
    monkeypatch.setattr(floor, "matrix_rate", lambda *args: 1e10)
    # PyTorch's threads spin, which takes many times as long where other tests run beside.
    monkeypatch.setattr(against_torch, "cores", lambda: 1)
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    platforms = jax.config.jax_platforms
    yield
    jax.config.update("jax_platforms", platforms)


def command(*words):
    words = [*SMALL, *map(str, words)]
    return run(against_torch.main, Settings, words, prog="python -m benchmarks.against_torch")


@pytest.mark.torch
@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_the_three_agree_and_write_their_figures(dtype, tmp_path, capsys):
    pytest.importorskip("torch")
    file = tmp_path / "figures.json"
    words = ["--no-memory", f"--dtype={dtype}", f"--json={file}"]
    if dtype == "bfloat16":
        words.append("--no-floor")  # whose step compiles for seconds
    assert command(*words) == 0
    found = json.loads(file.read_text())
    assert set(found) == {
        "benchmark", "settings", "ratio_published", "ratio_improved", "ratio_merge",
        "ratio_merge_improved", "published", "improved", "ours", "first_seconds", "expert_ms",
        "pairs", "merge", "losses", "floor", "memory", "environment",
        *(["times_floor"] if dtype == "float32" else []),
    }  # fmt: skip
    for name in ("published", "improved"):
        theirs, ours = found[name]["ms_per_step"], found["ours"]["ms_per_step"]
        assert found[f"ratio_{name}"] == pytest.approx(theirs / ours)
        assert len(found[name]["all_ms_per_step"]) == len(found["pairs"][name]["all"]) == 1
    merge = found["merge"]
    assert found["ratio_merge"] == pytest.approx(merge["published"]["ms"] / merge["ours"]["ms"])
    losses = found["losses"]
    assert losses["agree"]
    assert losses["first"] > 0.5  # the filter kept samples
    assert max(losses["largest_difference"].values()) < (1e-5 if dtype == "float32" else 0.05)
    printed = capsys.readouterr().out
    assert "losses agree" in printed
    assert "published / ours" in printed


@pytest.mark.torch
def test_samples_are_dropped_alike():
    pytest.importorskip("torch")
    import torch

    from benchmarks.against_torch_rules import self_labelled
    from symerge_jax.adapt import objectives

    rng = np.random.default_rng(0)
    logits = rng.normal(size=(64, 5)).astype(np.float32)
    label, confidence = rng.integers(0, 5, 64).astype(np.int32), rng.random(64, np.float32)
    expert = objectives.ExpertLabels(label, confidence)
    kept = objectives.keep_agreeing_or_unsure(logits, expert)
    assert 0 < kept.sum() < 64
    ours = objectives.masked_mean(objectives.self_label(logits, expert), kept)
    theirs = self_labelled(*map(torch.from_numpy, (logits, label.astype(np.int64), confidence)))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


@pytest.mark.torch
def test_each_loop_runs_alone(monkeypatch, capsys):
    pytest.importorskip("torch")
    monkeypatch.setattr(process, "cores", lambda: 1)
    settings = {
        "model": "small", "tasks": 2, "batch_size": 4, "images": 4, "device": "cpu",
        "dtype": "float32", "precision": "highest", "torch_compile": False,
    }  # fmt: skip

    for loop in ("published", "improved", "ours"):
        process.main([loop, json.dumps(settings)])
        own = json.loads(capsys.readouterr().out)
        assert own["peak_bytes"] > 1e8  # Python with its libraries
        assert own["device_peak_bytes"] is None
        assert ("compile_seconds" in own) == (loop == "ours")


def test_ours_starts_twice_from_one_folder_of_programs(monkeypatch):
    started = []

    def measured(loop, settings, programs=None):
        started.append((loop, programs))
        return {"peak_bytes": 10, "compile_seconds": float(len(started))}

    monkeypatch.setattr(process, "measured", measured)
    memory = process.in_processes({})
    assert [loop for loop, _ in started] == ["published", "improved", "ours", "ours"]
    assert started[2][1] == started[3][1] is not None
    assert memory["ours"]["compile_seconds"] == {"cold": 3, "kept": 4}


@pytest.mark.slow
def test_a_process_reads_the_programs_that_the_one_before_it_kept(tmp_path):
    settings = {
        "model": "tiny-64x3", "tasks": 2, "batch_size": 4, "images": 4, "device": "cpu",
        "dtype": "float32", "precision": "highest", "torch_compile": False,
    }  # fmt: skip
    cold, kept = (process.measured("ours", settings, tmp_path) for _ in range(2))
    assert 0 < kept["compile_seconds"] < cold["compile_seconds"]
    assert kept["peak_bytes"] > 1e8


@pytest.mark.torch
def test_losses_that_part_end_with_code_1(monkeypatch, capsys):
    pytest.importorskip("torch")
    monkeypatch.setattr(against_torch, "compiled_loop", lambda problem: np.zeros(7))
    assert command("--no-memory", "--no-floor") == 1
    assert "losses differ" in capsys.readouterr().out


def test_without_pytorch_it_says_so_in_one_line(monkeypatch, capsys):
    monkeypatch.setattr(against_torch, "torch_version", lambda: None)
    assert command() == 2
    said = capsys.readouterr().err
    assert "compares with PyTorch, which is not installed" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--model=smal"], "did you mean small"),
        (["--steps=0"], "steps must be at least 1, got 0"),
        (["--device=gpu"], "--device gpu: JAX runs on cpu"),
    ],
)
def test_bad_options_are_one_line(words, expected, monkeypatch, capsys):
    monkeypatch.setattr(against_torch, "torch_version", lambda: "2")
    assert command(*words) == 2
    assert expected in capsys.readouterr().err
