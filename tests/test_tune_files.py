"""`symerge adapt` with a training-free method: the scale that agrees most with the experts."""

import json

import jax
import numpy as np
import pytest
import safetensors.numpy
from commands import contents, symerge
from tiny_experts import write_tasks

from symerge_jax import adapt_files
from symerge_jax.data.tasks_file import read_tasks_file
from symerge_jax.tune import grid_of
from symerge_jax.tune_files import merge_and_tune

pytestmark = pytest.mark.usefixtures("separate")


def card(folder):
    return json.loads((folder / "merge_card.json").read_text())


@pytest.mark.parametrize("method", ["task-arithmetic", "iso_cts"])
def test_the_scale_on_the_card_has_the_best_agreement_and_made_the_model(tmp_path, tiny, method):
    file = write_tasks(tmp_path / "tasks.toml", tiny)
    assert symerge("adapt", file, "--method", method, "--output", tmp_path / "out") == 0
    found = card(tmp_path / "out")
    tried = {float(scale): value for scale, value in found["settings"]["agreement"].items()}
    name = method.replace("-", "_")
    assert sorted(tried) == pytest.approx(sorted(grid_of(name)))
    best = max(tried.values())
    assert found["settings"]["scale"] == min(s for s, value in tried.items() if value == best)
    agreements = [score["agreement"] for score in found["scores"].values()]
    assert np.mean(agreements) == pytest.approx(best, abs=1e-3)
    assert not (tmp_path / "out" / "coefficients.npz").exists()
    assert symerge("verify", tmp_path / "out") == 0


def test_the_model_is_that_of_merge_with_this_scale(tmp_path, tiny):
    file = write_tasks(tmp_path / "tasks.toml", tiny)
    assert symerge("adapt", file, "--method", "task_arithmetic", "--output", tmp_path / "out") == 0
    tasks = read_tasks_file(file)
    words = ["--pretrained", tasks.pretrained, "--experts", *(task.expert for task in tasks.tasks)]
    scale = card(tmp_path / "out")["settings"]["scale"]
    merged = tmp_path / "merged"
    assert symerge("merge", "task_arithmetic", *words, "--scale", scale, "--output", merged) == 0
    name = "open_clip_model.safetensors"
    expected = safetensors.numpy.load_file(merged / name)
    for key, value in safetensors.numpy.load_file(tmp_path / "out" / name).items():
        np.testing.assert_allclose(value, expected[key], rtol=1e-5, atol=1e-7)


def test_labels_have_no_part_in_the_choice(tmp_path, tiny):
    file = read_tasks_file(write_tasks(tmp_path / "tasks.toml", tiny))
    file = file._replace(adapt={"method": "ties"})
    prepared = adapt_files.prepare(file, report=lambda line: None)
    without = prepared._replace(tasks=[task._replace(labels=None) for task in prepared.tasks])
    with_labels, tuned = merge_and_tune(prepared, "ties")
    blind, also = merge_and_tune(without, "ties")
    assert tuned.scale == also.scale
    jax.tree.map(np.testing.assert_array_equal, with_labels.params, blind.params)


def test_the_choice_is_repeatable(tmp_path, tiny):
    file = write_tasks(tmp_path / "tasks.toml", tiny)
    for name in ("a", "b"):
        assert symerge("adapt", file, "--method", "magmax", "--output", tmp_path / name) == 0
    found, again = contents(tmp_path / "a"), contents(tmp_path / "b")
    found.pop("merge_card.json"), again.pop("merge_card.json")
    assert found == again


def test_a_per_task_method_is_refused(capsys, tmp_path, tiny):
    file = write_tasks(tmp_path / "tasks.toml", tiny)
    assert symerge("adapt", file, "--method", "emr", "--output", tmp_path / "out") == 2
    says = capsys.readouterr().err
    assert "method must be one of symerge" in says
    assert "got 'emr'" in says


def test_the_seed_of_a_random_method_counts_and_is_on_the_card(tmp_path, tiny):
    file = write_tasks(tmp_path / "tasks.toml", tiny)
    for name, seed in (("a", 3), ("b", 4)):
        words = ["--method", "dare", "--seed", seed, "--output", tmp_path / name]
        assert symerge("adapt", file, *words) == 0
        assert card(tmp_path / name)["settings"]["seed"] == seed
    name = "open_clip_model.safetensors"
    assert (tmp_path / "a" / name).read_bytes() != (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize("option", ["--iterations", "--seed"])
def test_an_option_that_has_no_part_is_refused(capsys, tmp_path, tiny, option):
    file = write_tasks(tmp_path / "tasks.toml", tiny)
    words = ["--method", "ties", option, 3, "--output", tmp_path / "out"]
    assert symerge("adapt", file, *words) == 2
    assert f"{option} has no part in ties, which trains nothing" in capsys.readouterr().err
