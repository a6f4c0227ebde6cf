"""Accuracy on the way at several rates: names, and the script on a small scene."""

from pathlib import Path

import numpy as np
import small_scene

from experiments import curves, records
from symerge_jax.cli.errors import run


def test_the_settings_own_rate_is_always_there_and_has_the_plain_name():
    assert list(curves.named((5e-2, 1e-4), 1e-2).items()) == [
        ("symerge_rate_0.0001", 1e-4),
        ("symerge", 1e-2),
        ("symerge_rate_0.05", 5e-2),
    ]
    assert len(curves.named(curves.RATES, 1e-2)) == len(curves.RATES)


def test_the_script_looks_as_often_as_asked(monkeypatch, capsys, tmp_path):
    small_scene.install(monkeypatch, curves, iterations=10)
    words = ["--out", str(tmp_path), "--seeds", "0", "1", "--rates", "0.1", "--points", "4"]
    assert run(curves.main, curves.Settings, words, prog="script") == 0
    path = Path(capsys.readouterr().out.splitlines()[-1])
    record = records.read(path)
    names = ["individual", "task_arithmetic", "symerge", "symerge_rate_0.1"]
    assert records.methods(record) == names
    data = record["data"]
    assert data["iterations"] == [0, 2, 4, 6, 8, 10]
    assert data["rates"] == {"symerge": 0.01, "symerge_rate_0.1": 0.1}
    assert np.shape(data["accuracy"]["symerge"]) == (2, 6)
    assert np.shape(data["accuracy_per_task"]) == (3, 6)
    # The curve begins where Task Arithmetic is and ends with the record's own mean.
    means = {method: one["mean"] for method, one in records.summarise(record).items()}
    mean = np.mean(data["accuracy"]["symerge"], axis=0)
    np.testing.assert_allclose(
        mean[[0, -1]], [means["task_arithmetic"], means["symerge"]], atol=0.01
    )
    np.testing.assert_allclose(np.mean(data["accuracy_per_task"], axis=0), mean, atol=0.01)
    for picture in ("learning_curve", "learning_rates"):
        assert path.with_name(f"{picture}.png").stat().st_size > 10_000
