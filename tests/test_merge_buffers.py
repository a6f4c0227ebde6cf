"""`symerge merge --buffers`: what becomes of the running statistics of batch normalisation."""

import json

import numpy as np
import pytest
import safetensors.numpy
from commands import symerge

from symerge_jax import verify  # noqa: F401 (else a thread imports it, unchecked)

KERNEL, MEAN, VAR, COUNT = (
    "conv.weight", "bn.running_mean", "bn.running_var", "bn.num_batches_tracked",
)  # fmt: skip


def model(kernel, mean, var, count):
    return {
        KERNEL: np.full((4, 4), kernel, np.float32) + np.eye(4, dtype=np.float32),
        MEAN: np.array(mean, np.float32),
        VAR: np.array(var, np.float32),
        COUNT: np.array(count, np.int64),
    }


@pytest.fixture
def merge(tmp_path):
    """Merges two small networks with batch normalisation; gives the tensors and the card."""
    start = model(0, [0, 0], [1, 1], 0)
    experts = [model(1, [2, 4], [3, 0.1], 7), model(3, [4, 0], [1, 0.2], 9)]
    for name, tensors in zip(("base", "a", "b"), (start, *experts), strict=True):
        safetensors.numpy.save_file(tensors, tmp_path / f"{name}.safetensors")

    def run(method, *words, code=0):
        files = [tmp_path / f"{name}.safetensors" for name in ("base", "a", "b")]
        given = ["--pretrained", files[0], "--experts", *files[1:], "--output", tmp_path / "out"]
        assert symerge("merge", method, *given, *words) == code
        if code:
            return None, None
        card = json.loads((tmp_path / "out" / "merge_card.json").read_text())
        return safetensors.numpy.load_file(tmp_path / "out" / "model.safetensors"), card

    return run


def test_running_statistics_are_merged_like_parameters_but_no_variance_falls_below_0(merge):
    found, card = merge("task_arithmetic", "--scale", "1")
    np.testing.assert_allclose(found[MEAN], [6, 4])
    np.testing.assert_allclose(found[VAR], [3, 0])  # 1 + (−0.9) + (−0.8) = −0.7
    assert found[COUNT] == 0
    assert card["tensors"] == {"merged": 3, "copied": 1}
    assert "buffers" not in card["settings"]


def test_running_statistics_can_take_the_experts_mean_whatever_the_scale(merge):
    found, card = merge("task_arithmetic", "--scale", "1", "--buffers", "mean")
    np.testing.assert_allclose(found[MEAN], [3, 2])
    np.testing.assert_allclose(found[VAR], [2, 0.15])
    np.testing.assert_allclose(found[KERNEL], 4 + np.eye(4))
    assert card["tensors"] == {"merged": 3, "copied": 1}
    assert card["settings"]["buffers"] == "mean"


def test_running_statistics_can_stay_as_they_were(merge):
    found, card = merge("task_arithmetic", "--scale", "1", "--buffers", "pretrained")
    np.testing.assert_allclose(found[MEAN], [0, 0])
    np.testing.assert_allclose(found[VAR], [1, 1])
    np.testing.assert_allclose(found[KERNEL], 4 + np.eye(4))
    assert card["tensors"] == {"merged": 1, "copied": 3}


def test_running_statistics_set_aside_take_no_part_in_a_quantile(merge):
    """Of 16 kernel entries, all equal, TIES keeps all; beside a's three larger statistics, none."""
    found, _ = merge("ties", "--density", "0.1", "--buffers", "pretrained")
    np.testing.assert_allclose(found[KERNEL], 2 + np.eye(4))
    found, _ = merge("ties", "--density", "0.1", "--overwrite")
    np.testing.assert_allclose(found[KERNEL], 3 + np.eye(4))


def test_a_running_mean_that_is_not_finite_is_refused(capsys, merge, tmp_path):
    bad = model(1, [np.nan, 0], [1, 1], 0)
    path = tmp_path / "c.safetensors"
    safetensors.numpy.save_file(bad, path)
    words = ["--experts", tmp_path / "a.safetensors", path, "--buffers", "mean"]
    merge("task_arithmetic", *words, code=2)
    assert f"{path}: tensor {MEAN} holds NaN or infinity" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_a_per_task_method_would_store_is_said(capsys, merge, tmp_path):
    files = [tmp_path / f"{name}.safetensors" for name in ("base", "a", "b")]
    words = ["--pretrained", files[0], "--experts", *files[1:], "--output", tmp_path / "out"]
    assert symerge("merge", "emr", *words) == 0
    # 20 numbers of 4 bytes: a model per task, 160; θ₀ 80, u 80, masks 2 · (2 + 1 + 1), g 8.
    says = capsys.readouterr().err
    assert "emr: a model per task, 160 B in 2 folders" in says
    assert "masks or factors would take 176 B" in says
