"""`python -m experiments.all`: every script is there, gets its options, and is in the documents."""

import json
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest

from experiments import all as everything
from experiments import records
from experiments.options import Options
from symerge_jax.cli.errors import run
from symerge_jax.errors import BadInput

ROOT = Path(__file__).resolve().parents[1]


def command(*words):
    return run(everything.main, everything.Settings, [str(w) for w in words], prog="all")


@pytest.mark.parametrize("name", everything.EXPERIMENTS)
def test_every_experiment_takes_the_shared_options_and_is_listed(name):
    module = import_module(f"experiments.{name}")
    assert issubclass(module.Settings, Options)
    assert f"python -m experiments.{name}" in (module.__doc__ or "")
    assert f"| `{name}` |" in (ROOT / "docs" / "experiments.md").read_text()


def test_the_list_has_every_script_that_makes_a_record():
    makes = {
        path.stem
        for path in (ROOT / "experiments").glob("*.py")
        if "with begin(" in path.read_text() and path.stem != "vision_run"
    }
    assert makes == set(everything.EXPERIMENTS)


@pytest.fixture
def stubs(monkeypatch, tmp_path):
    """Two scripts that note their options; the second fails."""
    seen = []

    def script(name, fails=False):
        def main(settings):
            seen.append((name, settings))
            if fails:
                raise BadInput("no such thing")
            record = records.new_record(name, "tiny", settings)
            folder = records.new_folder(record, settings.out)
            (folder / "picture.png").write_bytes(b"png")
            print(records.write(record, folder))
            return 0

        return SimpleNamespace(main=main, Settings=Options)

    known = {"experiments.vision": script("vision"), "experiments.tsne": script("tsne", fails=True)}
    monkeypatch.setattr(everything, "import_module", known.__getitem__)
    return seen


def test_options_go_to_each_and_one_failure_does_not_stop_the_rest(stubs, tmp_path, capsys):
    words = ("--only", "tsne", "vision", "--out", tmp_path / "runs", "--limit", 7)
    assert command(*words, "--keep", tmp_path / "kept") == 1
    assert [name for name, _ in stubs] == ["tsne", "vision"]
    assert all(settings.limit == 7 for _, settings in stubs)
    captured = capsys.readouterr()
    assert "tsne: no such thing" in captured.err
    assert "failed" in captured.out
    kept = tmp_path / "kept" / "vision"
    assert json.loads((kept / "tiny.json").read_text())["experiment"] == "vision"
    assert (kept / "tiny_picture.png").read_bytes() == b"png"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--only", "visoin"), "unknown experiment 'visoin' (did you mean vision?)"),
        (("--limit", 0), "--limit must be at least 1, got 0"),
    ],
)
def test_bad_options_are_one_line(words, says, capsys):
    assert command(*words) == 2
    assert says in capsys.readouterr().err
