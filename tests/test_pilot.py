"""The pilot study: classifiers trained with labels on merged features, put on every encoder."""

import jax.numpy as jnp
import numpy as np
import pytest
from pair_command import TASKS, assert_refused, install, record_of, run_command, values

from experiments import pilot
from experiments.pilot import Crossed, Settings
from experiments.tasks.task import Split
from symerge_jax.adapt.objectives import EXCLUDED
from symerge_jax.errors import BadInput

ORIGINAL = np.array([[90.0, 10, 20], [30, 95, 50], [60, 70, 85]])


def test_gains_are_means_over_the_other_encoders():
    trained = np.stack([ORIGINAL, ORIGINAL + [[-50, 4, 8], [10, -50, 2], [20, 6, -50]]])
    found = pilot.gains(Crossed(ORIGINAL, trained))
    np.testing.assert_array_equal(found, [[0, 0, 0], [15, 5, 5]])


def test_the_record_holds_matrices_of_every_seed():
    found = pilot.data({2: Crossed(ORIGINAL, ORIGINAL[None] + 1)}, [0.3], ["a", "b", "c"])
    assert found["original"]["2"][1][0] == 30
    assert found["trained"]["2"][0][1][0] == 31
    assert found["gains"]["2"] == [[1, 1, 1]]


def separable(seed=0, n=96, classes=3):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n).astype(np.int32)
    features = rng.normal(0, 0.1, (n, 4)).astype(np.float32)
    features[np.arange(n), labels] += 1
    return features, Split(np.zeros((n, 1), np.uint8), labels)


def first_head():
    bias = np.array([0, 0, 0, EXCLUDED], np.float32)  # the fourth class is padding
    weight = np.random.default_rng(1).normal(0, 1, (4, 4)).astype(np.float32)
    weight[3] = 0
    return {"weight": jnp.asarray(weight), "bias": jnp.asarray(bias)}


def test_a_classifier_learns_from_labels_and_padding_stays_shut():
    features, train = separable()
    head = first_head()
    trained = pilot.supervised_head(head, features, train, rate=0.1, batch_size=10, seed=0)

    before, after = pilot._hits(
        {name: np.stack([head[name], trained[name]]) for name in head}, features, train.labels
    )
    assert before < after == 96
    np.testing.assert_array_equal(trained["weight"][3], 0)
    assert trained["bias"][3] == np.float32(EXCLUDED)


def test_the_epoch_ends_with_a_short_batch():
    # One image beyond whole batches: Adam's first step moves every weight by the rate, so a head
    # that saw n steps has moved by at most n times the rate.
    features, train = separable(n=21)
    trained = pilot.supervised_head(first_head(), features, train, rate=1e-3, batch_size=10, seed=0)
    moved = np.abs(trained["weight"] - first_head()["weight"]).max()
    assert 2e-3 < moved <= 3.001e-3


def test_a_seed_changes_the_order_and_nothing_else_does():
    features, train = separable()

    def weight(seed):
        return np.asarray(
            pilot.supervised_head(first_head(), features, train, 0.05, 10, seed)["weight"]
        )

    np.testing.assert_array_equal(weight(1), weight(1))
    assert np.abs(weight(1) - weight(2)).max() > 0


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (Settings(lambdas=()), "--lambdas must be above 0"),
        (Settings(lambdas=(0.1, 0.0)), "--lambdas must be above 0"),
        (Settings(lambdas=(1.5,)), "at most 1"),
        (Settings(lambdas=(float("nan"),)), "--lambdas must be"),
        (Settings(rate=0.0), "--rate must be a positive number"),
        (Settings(batch_size=0), "--batch-size must be at least 1"),
    ],
)
def test_bad_settings_are_refused(settings, says):
    with pytest.raises(BadInput, match=says):
        pilot.chosen_lambdas(settings)


def test_lambdas_come_out_ascending_and_once():
    assert pilot.chosen_lambdas(Settings(lambdas=(0.5, 0.1, 0.5))) == [0.1, 0.5]
    assert pilot.chosen_lambdas(Settings(quick=True)) == [0.1, 0.2, 0.3]


def test_sets_without_training_images_are_refused_early(capsys, tmp_path):
    (tmp_path / "mnist").mkdir()
    rng = np.random.default_rng(0)
    np.savez(
        tmp_path / "mnist" / "test.npz",
        images=rng.integers(0, 255, (4, 8, 8), dtype=np.uint8),
        labels=np.arange(4, dtype=np.int32),
    )
    words = ("--model", "ViT-B-32", "--checkpoints", tmp_path, "--data", tmp_path)
    says = "mnist has no split train there, only test"
    assert_refused(capsys, pilot, *words, "--tasks", "mnist", "eurosat", says=says)


def test_a_run_from_end_to_end(capsys, tmp_path, monkeypatch):
    install(monkeypatch, pilot)
    assert run_command(pilot, "--lambdas", "0.1", "1", "--out", tmp_path) == 0
    record, folder = record_of(capsys.readouterr())
    found = record["data"]
    assert found["lambdas"] == [0.1, 1]
    assert np.shape(found["trained"]["0"]) == (2, 3, 3)
    original = np.array(found["original"]["0"])
    own = dict(zip(TASKS, original.diagonal(), strict=True))
    assert values(record, "individual") == pytest.approx(own)
    trained = np.array(found["trained"]["0"][1])  # λ = 1
    assert values(record, "cross_task_1")[TASKS[0]] == pytest.approx(trained[1:, 0].mean())
    for name in ("gains", "original", "trained", "matrices"):
        assert folder.joinpath(f"{name}.png").stat().st_size > 5000
