"""Runs the commands of pair experiments in this process, in the small scene."""

import json
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import small_scene

from experiments import records
from symerge_jax.cli.errors import run

TASKS = tuple(small_scene.CLASSES)


def run_command(module, *words):
    """Returns the exit code of `python -m experiments.<module>`."""
    return run(module.main, module.Settings, [str(w) for w in words], prog=module.__name__)


def install(monkeypatch, *modules, tasks=TASKS):
    """Lets scripts run in the small scene, with these of its tasks and images to train on."""
    classes = {name: small_scene.CLASSES[name] for name in tasks}
    monkeypatch.setattr(small_scene, "CLASSES", classes)
    bars = SimpleNamespace(follow=lambda *_: lambda losses: None)

    @contextmanager
    def begin(experiment, settings, **_):
        made = small_scene.scene(experiment, settings)
        yield made._replace(
            around=made.around._replace(bars=bars),
            tasks=[task._replace(train=task.validation) for task in made.tasks],
        )

    for module in modules:
        monkeypatch.setattr(module, "begin", begin)


def record_of(captured):
    """Reads the record whose path is the last line printed; it is strict JSON."""
    path = Path(captured.out.splitlines()[-1])
    json.loads(path.read_text("utf-8"), parse_constant=lambda name: 1 / 0)
    return records.read(path), path.parent


def values(record, method, seed=0):
    """Returns a method's accuracies, by task."""
    found = [r for r in record["results"] if (r["method"], r["seed"]) == (method, seed)]
    return {r["task"]: r["value"] for r in found if r["metric"] == "accuracy"}


def assert_refused(capsys, module, *words, says):
    """Exit code 2 and one line that says why."""
    assert run_command(module, *words) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith("symerge: error: ")
    assert says in line
    assert captured.out == ""
