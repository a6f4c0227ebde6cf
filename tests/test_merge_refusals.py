"""`symerge merge`: options that leave a method nothing to do, and numbers that are none."""

import numpy as np
import pytest
import safetensors.numpy
from commands import symerge

from symerge_jax.merge import METHODS

KERNEL = "conv.weight"


def model(value):
    kernel = np.full((4, 4), value, np.float32) + np.eye(4, dtype=np.float32)
    return {KERNEL: kernel, "conv.bias": np.full(4, value, np.float32)}


def many(tmp_path, count):
    paths = [tmp_path / f"e{k}.safetensors" for k in range(count)]
    for k, path in enumerate(paths):
        safetensors.numpy.save_file(model(k + 1), path)
    safetensors.numpy.save_file(model(0), tmp_path / "base.safetensors")
    return ["--pretrained", tmp_path / "base.safetensors", "--experts", *paths,
            "--output", tmp_path / "out"]  # fmt: skip


@pytest.mark.parametrize("method", ["tsv_m", "tsv_c"])
def test_more_experts_than_directions_are_refused(capsys, tmp_path, method):
    assert symerge("merge", method, *many(tmp_path, 5)) == 2
    says = capsys.readouterr().err
    assert f"{method}: 5 experts share the 4 directions of the largest matrix" in says
    assert not (tmp_path / "out").exists()


def test_a_common_part_that_leaves_no_task_a_direction_is_refused(capsys, tmp_path):
    words = many(tmp_path, 3)
    assert symerge("merge", "iso_cts", *words, "--common-fraction", "0.9") == 2
    says = capsys.readouterr().err
    assert "--common-fraction 0.9 of at most 4 directions leaves none for each of 3 tasks" in says
    assert symerge("merge", "iso_cts", *words, "--common-fraction", "1") == 0
    says = capsys.readouterr().err.replace("\n", " ")
    assert f"warning: 1 tensors lack full rank (first {KERNEL})" in says


@pytest.mark.parametrize(
    # LiNeS needs blocks, which this network does not have.
    "method",
    [name for name, one in METHODS.items() if "moments" not in one.needs and name != "lines"],
)
def test_a_number_that_is_not_finite_is_found_by_every_method(capsys, tmp_path, method):
    words = many(tmp_path, 2)
    bad = model(2)
    bad[KERNEL][2, 3] = np.nan
    path = tmp_path / "e1.safetensors"
    safetensors.numpy.save_file(bad, path)
    more = ["--common-fraction", "0.5"] if method == "iso_cts" else []
    assert symerge("merge", method, *words, *more) == 2
    assert f"{path}: tensor {KERNEL} holds NaN or infinity" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("method", "words", "says"),
    [
        ("ties", ["--quantile-extra-zeros", "-50"], "quantile_extra_zeros must lie between 0 and"),
        ("pcb", ["--quantile-extra-zeros", "-1"], "quantile_extra_zeros must lie between 0 and"),
        (
            "dare",
            ["--seed", "99999999999999999999"],
            "dare: seed must lie between 0 and 4294967295",
        ),
        ("dare", ["--seed", "-1"], "dare: seed must lie between 0 and 4294967295, got -1"),
    ],
)
def test_numbers_out_of_range_are_refused(capsys, tmp_path, method, words, says):
    assert symerge("merge", method, *many(tmp_path, 2), *words) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_threshold_beyond_the_tasks_keeps_nothing(tmp_path):
    assert symerge("merge", "consensus", *many(tmp_path, 2), "--threshold", "99999999999") == 0
    found = safetensors.numpy.load_file(tmp_path / "out" / "model.safetensors")
    np.testing.assert_array_equal(found[KERNEL], np.eye(4))
