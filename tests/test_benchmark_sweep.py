"""The benchmark of sweeps counts programs and compares losses; timings are not looked at."""

import json

import jax
import numpy as np
import pytest

from benchmarks import sweep
from symerge_jax.adapt.sweep import Point
from symerge_jax.cli.errors import run
from symerge_jax.models import clip

SMALL = [
    "--model=small", "--tasks=2", "--classes=3", "--points=3", "--iterations=2",
    "--head-iterations=2", "--batch-size=4", "--repeats=1", "--images=8",
]  # fmt: skip


@pytest.fixture(autouse=True)
def small_model(monkeypatch):
    """A tower that is compiled in no time: eight pixels, scaled by what all weights add up to."""
    vision = clip.VisionConfig(
        image_size=16, patch_size=8, width=16, depth=1, heads=2, projection=8
    )
    text = clip.PRESETS["tiny-64x3"].text
    monkeypatch.setitem(clip.PRESETS, "small", clip.ClipConfig(vision, text))

    def encode(params, images):
        scale = sum(leaf.mean() for leaf in jax.tree.leaves(params))
        return scale * images.reshape(len(images), -1)[:, :8]

    monkeypatch.setattr(clip, "encode_image", lambda config: encode)


def command(words):
    return run(sweep.main, sweep.Settings, words, prog="python -m benchmarks.sweep")


def test_it_writes_its_figures(tmp_path, capsys):
    file = tmp_path / "figures.json"
    assert command([*SMALL, f"--json={file}"]) == 0
    found = json.loads(file.read_text())
    assert list(found) == ["benchmark", "settings", "kinds", "environment"]
    assert list(found["kinds"]) == ["encoder", "heads only"]
    for kind, singles in zip(found["kinds"].values(), (3, 1), strict=True):
        assert kind["singles"] == singles
        assert kind["steps"] == 4
        assert kind["programs"] <= 1  # none, if a test before has compiled it
        assert kind["programs_later"] == 0
        assert kind["losses_agree"]
        assert len(kind["ratio"]["pairs"]) == 1
    assert found["kinds"]["encoder"]["programs"] == 1
    assert "medians of 1" in capsys.readouterr().out


def test_losses_that_differ_end_with_code_1(monkeypatch, capsys):
    def kinds(settings, devices):
        kind = sweep.Kind([Point()], lambda: [np.ones(2)], lambda point: np.zeros(2), 1)
        return {"encoder": kind}

    monkeypatch.setattr(sweep, "kinds", kinds)
    assert command(SMALL) == 1
    assert "encoder" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("--model=smal", "did you mean small"),
        ("--points=0", "points must be at least 1, got 0"),
        ("--lanes=0", "lanes must be at least 1, got 0"),
    ],
)
def test_bad_options_are_one_line(word, says, capsys):
    assert command([*SMALL, word]) == 2
    assert says in capsys.readouterr().err
