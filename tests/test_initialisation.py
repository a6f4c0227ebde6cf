"""Where coefficients start: names, and the script on a small scene."""

from pathlib import Path

import numpy as np
import small_scene
from trees_close import assert_trees_equal

from experiments import initialisation, records
from experiments.initialisation import named, part_of
from symerge_jax.cli.errors import run


def test_the_settings_own_start_is_always_there_and_has_the_plain_name():
    names = named((0.5, 0.3), 0.1)
    assert names == {
        "symerge_head": 0.1,
        "symerge_head_from_0.3": 0.3,
        "symerge_head_from_0.5": 0.5,
        "symerge": 0.1,
        "symerge_from_0.3": 0.3,
        "symerge_from_0.5": 0.5,
    }
    assert [part_of(name) for name in names] == 3 * ["symerge_head"] + 3 * ["symerge"]
    assert named((0.3, 0.5), 0.3) == named((0.5,), 0.3)


def test_the_script_starts_from_constants_and_from_adamerging(monkeypatch, capsys, tmp_path):
    learned, starts = {}, {}  # by seed

    def adapt(scene, runs, constants=None):
        outcomes = small_scene.adapt(scene, runs, constants)
        found = [one for one in outcomes if one.method == "adamerging"]
        learned.update({one.seed: one.adapted.coefficients for one in found})
        given = [one.start for one in runs if one.start is not None]
        starts.update({number: start for start in given for number in scene.seeds})
        return outcomes

    small_scene.install(monkeypatch, initialisation, iterations=10)
    monkeypatch.setattr(initialisation, "adapt", adapt)
    words = ["--out", str(tmp_path), "--seeds", "0", "1", "--coefficients", "0.5", "--every", "5"]
    assert run(initialisation.main, initialisation.Settings, words, prog="script") == 0
    path = Path(capsys.readouterr().out.splitlines()[-1])
    record = records.read(path)
    constants = ["symerge_head", "symerge_head_from_0.5", "symerge", "symerge_from_0.5"]
    assert set(records.methods(record)) == {
        "individual", "task_arithmetic", "adamerging", *constants,
        "symerge_from_adamerging", "surgery", "surgery_on_task_arithmetic",
    }  # fmt: skip

    data = record["data"]
    assert list(data["coefficients"]) == constants
    for name in (*constants, "symerge_from_adamerging"):
        assert data["iterations"][name] == [0, 5, 10]
        assert np.shape(data["accuracy"][name]) == (2, 3)
    assert data["iterations"]["surgery"] == [0, 10]
    mean = {name: np.mean(data["accuracy"][name], axis=0) for name in constants}
    gap = np.abs(mean["symerge"] - mean["symerge_from_0.5"])
    np.testing.assert_allclose(data["spread"]["symerge"], gap, atol=0.002)
    # Before the first step it does not matter what will be trained.
    assert mean["symerge"][0] == mean["symerge_head"][0]
    adamerging = records.summarise(record)["adamerging"]["mean"]
    for name in ("surgery", "symerge_from_adamerging"):
        start = np.mean(data["accuracy"][name], axis=0)[0]
        np.testing.assert_allclose(start, adamerging, atol=0.01)
    for picture in ("initial_coefficients", "adamerging_start"):
        assert path.with_name(f"{picture}.png").stat().st_size > 10_000

    assert set(starts) == {0, 1}
    for number, start in starts.items():
        assert_trees_equal(start, learned[number])
