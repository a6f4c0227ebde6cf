"""Adapted heads on other encoders: which pairs count, and what the numbers are."""

import ablation_world
import jax.numpy as jnp
import numpy as np
import pytest
from trees_close import assert_trees_equal

from experiments import records, transfer
from experiments.methods import Outcome
from experiments.options import Options
from symerge_jax.adapt.coefficients import per_leaf
from symerge_jax.adapt.symerge import Adapted


@pytest.fixture
def out(tmp_path):
    return tmp_path / "runs"


def test_a_task_is_averaged_over_the_encoders_of_the_others():
    cross = np.array([[90.0, 10.0, 20.0], [30.0, 91.0, 40.0], [50.0, 60.0, 92.0]])
    np.testing.assert_allclose(transfer.over_others(cross), [40.0, 35.0, 30.0])


@pytest.mark.parametrize("tasks", [2, 3, 8])
def test_the_mean_over_tasks_is_that_over_all_ordered_pairs(tasks):
    cross = np.random.default_rng(0).uniform(0, 100, (tasks, tasks))
    pairs = [cross[i, j] for i in range(tasks) for j in range(tasks) if i != j]
    assert len(pairs) == tasks * (tasks - 1)
    assert transfer.over_others(cross).mean() == pytest.approx(np.mean(pairs))


def test_one_task_alone_keeps_its_coefficients():
    lam = {"a": jnp.array([0.1, 0.2, 0.3]), "b": np.array([0.4, 0.5, 0.6], np.float32)}
    expected = {"a": jnp.array([0.0, 0.2, 0.0]), "b": jnp.array([0.0, 0.5, 0.0])}
    assert_trees_equal(transfer.only(lam, 1), expected)


def scene_and_outcomes(tmp_path):
    """SyMerge's heads are the original ones; AdaMerging has learned coefficients of 1."""
    scene = ablation_world.scene_of(Options(out=tmp_path))
    (seed,) = scene.seeds.values()
    adapted = unmoved(scene, seed)
    return scene, seed, [Outcome(m, 0, False, [], adapted) for m in ("symerge", "adamerging")]


def unmoved(scene, seed):
    lam = per_leaf(seed.experts.task_vectors, 1.0)
    heads = seed.experts.stacked
    return Adapted(scene.model.pretrained, lam, heads, np.zeros(0), np.zeros((0, 1), bool))


@pytest.mark.parametrize("encoder", transfer.ENCODERS)
def test_equal_heads_give_equal_numbers_and_full_coefficients_the_experts(tmp_path, encoder):
    scene, seed, learned = scene_and_outcomes(tmp_path)
    original, adapted = transfer.crossed(scene, seed, encoder, learned, 1.0)
    assert (original.method, adapted.method) == (encoder, f"{encoder}_adapted_heads")
    np.testing.assert_array_equal(original.cross, adapted.cross)
    np.testing.assert_array_equal(np.diag(original.cross), [100, 100, 100])  # θ₀ + τ_k is θ_k
    assert (original.cross < 100).any()


def test_the_scale_is_that_of_task_arithmetic_alone(tmp_path):
    scene, seed, learned = scene_and_outcomes(tmp_path)
    for encoder, same in (("task_arithmetic", False), ("adamerging", True)):
        one, other = (transfer.crossed(scene, seed, encoder, learned, s)[0] for s in (0.0, 1.0))
        assert np.array_equal(one.cross, other.cross) == same


def test_a_run_leaves_a_record_and_a_picture(monkeypatch, capsys, out):
    def adapt(scene, runs):
        (seed,) = scene.seeds.values()
        return [one._replace(adapted=unmoved(scene, seed))
                for one in ablation_world.told(runs, scene)]  # fmt: skip

    monkeypatch.setattr(transfer, "adapt", adapt)
    record, folder = ablation_world.recorded(monkeypatch, capsys, transfer, out, "--scale", "0.4")
    assert records.methods(record) == ["individual", "symerge", *sorted_rows()]
    assert record["data"]["scale"] == 0.4
    for method, matrix in record["data"]["cross"].items():
        expected = transfer.over_others(np.array(matrix))
        found = ablation_world.values(record, method, "cross_accuracy")
        np.testing.assert_allclose(found, expected)
    assert {r["n"] for r in record["results"] if r["metric"] == "cross_accuracy"} == {18, 16, 20}
    assert (folder / "transfer.png").is_file()


def sorted_rows():
    return [one + ending for ending in ("", "_adapted_heads") for one in transfer.ENCODERS]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--scale inf", "--scale must be a finite number, got inf"),
        ("--methods ties", "unknown method 'ties'"),
    ],
)
def test_a_bad_option(monkeypatch, capsys, out, words, says):
    ablation_world.refused(monkeypatch, capsys, transfer, out, *words.split(), says=says)
