"""Coefficients that are zero: shares by hand, and the script on a small scene."""

from pathlib import Path

import numpy as np
import pytest
import small_scene

from experiments import records, sparsity
from experiments.sparsity import counted
from experiments.vision_start import GENERATED
from symerge_jax.cli.errors import run

# Two seeds of three tensors and two tasks, as learned: what is negative counts as zero.
LAM = np.array([
    [[-0.2, 0.3], [0.0, 1.4], [9e-6, 1.0]],
    [[0.5, 0.5], [2e-5, 0.5], [-1.0, 0.5]],
])  # fmt: skip


def test_shares_by_hand():
    found = counted(LAM, None)
    assert found["near_zero"] == [pytest.approx(50), pytest.approx(100 / 6)]
    assert found["one"] == [pytest.approx(100 / 3), 0]
    assert found["near_zero_per_task"] == [pytest.approx(100 * 4 / 6), 0]
    assert "near_zero_with_text_tensors" not in found


def test_tensors_of_the_text_tower_are_never_zero():
    # 3 of 6 entries are near zero; with three more tensors, 3 of 12
    found = counted(LAM[:1], 3)
    assert found["near_zero_with_text_tensors"] == [pytest.approx(25)]


def test_open_clips_tensors_are_152_and_158():
    found = counted(np.zeros((1, 152, 8)), sparsity.TEXT_ROWS)
    assert found["near_zero"] == [100]
    assert found["near_zero_with_text_tensors"] == [pytest.approx(100 * 152 / 158)]


@pytest.mark.parametrize(("own", "other"), [(0.01, 0.001), (0.001, 0.01)])
def test_coefficients_alone_have_the_settings_rate_and_another(own, other):
    constants = GENERATED._replace(rate=0.01, coefficient_rate=own)
    assert sparsity.rates_of(constants) == {
        "symerge_coefficients": own,
        f"symerge_coefficients_rate_{other}": other,
        "symerge": 0.01,
    }


def test_the_script_leaves_shares_pictures_and_coefficients(monkeypatch, capsys, tmp_path):
    small_scene.install(monkeypatch, sparsity)
    words = ["--out", str(tmp_path), "--seeds", "0", "1"]
    assert run(sparsity.main, sparsity.Settings, words, prog="script") == 0
    path = Path(capsys.readouterr().out.splitlines()[-1])
    record = records.read(path)
    names = ["symerge_coefficients", "symerge_coefficients_rate_0.001", "symerge"]
    assert records.methods(record) == ["individual", *names]
    with np.load(path.with_name("coefficients.npz")) as stored:
        lam, tensors = stored["symerge"], stored["tensors"]
        assert stored["tasks"].tolist() == list(small_scene.CLASSES)
    assert lam.shape == (len(tensors), 3)
    assert tensors[0].startswith("visual.")
    data = record["data"]
    assert data["tensors"] == len(tensors)
    assert [data[name]["coefficient_rate"] for name in names] == [0.01, 0.001, 0.01]
    found = data["symerge"]
    assert found["near_zero"][0] == pytest.approx(100 * np.mean(lam < 1e-5))
    assert len(found["near_zero"]) == 2
    assert "near_zero_with_text_tensors" not in found  # there is no text tower
    for name in names:
        assert path.with_name(f"{name}.png").stat().st_size > 5_000
