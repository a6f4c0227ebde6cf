"""The benchmark of text encoders runs, agrees with itself and writes its figures."""

import json

import numpy as np
import pytest

from benchmarks import roberta_step
from symerge_jax.cli.errors import run
from symerge_jax.models.roberta_config import PRESETS, RobertaConfig

SMALL = ["--model=small", "--tasks=2", "--steps=2", "--batch-size=4", "--repeats=1", "--texts=8"]


@pytest.fixture(autouse=True)
def small_model(monkeypatch):
    """A preset of one block, which compiles in a fraction of the others' time."""
    config = RobertaConfig(vocabulary=40, width=16, depth=1, heads=2)
    monkeypatch.setitem(PRESETS, "small", config)


def command(*words):
    words = [*SMALL, *map(str, words)]
    return run(roberta_step.main, roberta_step.Settings, words, prog="roberta_step")


@pytest.mark.slow
def test_it_compares_and_writes_its_figures(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(roberta_step, "in_torch", lambda *args: None)  # as without PyTorch
    monkeypatch.setattr(roberta_step, "LONGEST", 32)  # two buckets, so that little is compiled
    assert command("--json", tmp_path / "figures.json") == 0
    found = json.loads((tmp_path / "figures.json").read_text())
    assert list(found) == ["benchmark", "settings", "buckets", "forward", "environment"]
    assert found["buckets"]["agree"]
    assert found["buckets"]["largest_difference"] < 1e-4
    assert 2 * 4 * 4 <= found["buckets"]["tokens"] < 2 * 4 * 32  # those that are no padding
    assert found["forward"] is None
    assert "PyTorch is not installed" in capsys.readouterr().out


def test_losses_that_part_end_with_code_1(monkeypatch, capsys):
    monkeypatch.setattr(roberta_step, "in_torch", lambda *args: None)
    losses = iter([0.0, 0.01, 0.0, 0.01])  # of the two ways, to compile and timed
    monkeypatch.setattr(roberta_step, "adapt", lambda *args: np.full(2, next(losses)))
    assert command() == 1
    assert "largest difference 1.0e-02" in capsys.readouterr().out


def test_lengths_are_those_of_short_texts():
    config, rng = PRESETS["small"], np.random.default_rng(0)
    for kind, mean in (("cola", 11), ("sst2", 25)):
        tokens = roberta_step.texts_like(kind, 400, config, rng)
        lengths = (tokens != config.pad_token).sum(axis=1)
        assert abs(lengths.mean() - mean) < 2.5
        assert (tokens[np.arange(400), lengths - 1] != config.pad_token).all()


@pytest.mark.parametrize(
    ("words", "says"),
    [(["--model=smal"], "did you mean small"), (["--steps=0"], "steps must be at least 1, got 0")],
)
def test_bad_options_are_refused_in_one_line(capsys, words, says):
    assert command(*words) == 2
    assert says in capsys.readouterr().err
