"""Losses without labels against the true loss: ranks by hand, and the script on a small scene."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import small_scene
from scipy import special, stats

from experiments import proxy_loss, records
from experiments.proxy_loss import (
    METHODS,
    PAPER,
    cross_entropy,
    entropy,
    over_seeds,
    spearman,
    true_label_loss,
)
from experiments.tasks.task import Split, Task
from symerge_jax.adapt import objectives
from symerge_jax.adapt.objectives import EXCLUDED, ExpertLabels
from symerge_jax.cli.errors import run


def test_ranks_with_ties_by_hand():
    # ranks 1, 2.5, 2.5, 4 and 1, 3, 2, 4: covariance 4.5, variances 4.5 and 5
    assert spearman(np.array([0, 7, 7, 9]), np.array([1, 3, 2, 4])) == pytest.approx(
        4.5 / np.sqrt(4.5 * 5)
    )


@pytest.mark.parametrize("values", [2, 5, 1000])
def test_ranks_agree_with_scipy(values):
    rng = np.random.default_rng(values)
    a, b = rng.integers(0, values, (2, 60)).astype(float)
    assert spearman(a, b) == pytest.approx(stats.spearmanr(a, b).statistic)


def test_only_the_order_counts():
    a = np.array([0.1, 0.5, 0.2, 0.9])
    assert spearman(a, np.exp(30 * a)) == pytest.approx(1)
    assert spearman(a, -(a**3)) == pytest.approx(-1)


def test_a_constant_has_no_rank_correlation():
    assert spearman(np.zeros(5), np.arange(5)) is None
    assert spearman(np.arange(5), np.zeros(5)) is None


def test_losses_by_hand():
    log_p = np.log([[0.5, 0.25, 0.25], [0.125, 0.75, 0.125]])
    np.testing.assert_allclose(
        entropy(log_p), [1.5 * np.log(2), 0.75 * np.log(4 / 3) + 0.25 * np.log(8)]
    )
    np.testing.assert_allclose(cross_entropy(log_p, np.array([1, 1])), np.log([4, 4 / 3]))
    split = Split(np.zeros((2, 1, 1, 3), np.uint8), np.array([0, 2], np.int32))
    task = Task("t", ("a", "b", "c"), None, split, split, None)
    np.testing.assert_allclose(true_label_loss(log_p, task), np.log([2, 8]))


def test_losses_are_those_that_adaptation_sees():
    logits = np.random.default_rng(0).normal(0, 4, (20, 5)).astype(np.float32)
    logits[:, 4] = EXCLUDED
    labels = np.arange(20, dtype=np.int32) % 4
    log_p = special.log_softmax(logits.astype(np.float64), axis=1)
    expert = ExpertLabels(jnp.asarray(labels), jnp.ones(20))
    np.testing.assert_allclose(entropy(log_p), objectives.entropy(jnp.asarray(logits)), rtol=2e-4)
    np.testing.assert_allclose(
        cross_entropy(log_p, labels), objectives.self_label(jnp.asarray(logits), expert), rtol=2e-4
    )


def test_seeds_are_averaged_where_they_are_known():
    found = over_seeds([[0.2, None, None], [0.4, 0.5, None]])
    np.testing.assert_allclose(found, [0.3, 0.5, np.nan])


def test_the_papers_changes_are_those_it_prints():
    found = PAPER["ViT-B-32"]["entropy"]
    change = np.subtract(found["after"], found["before"])  # Δ of Table C (a)
    np.testing.assert_allclose(
        change, [-0.34, -1.19, -0.01, 0.08, -0.09, -0.51, -0.04, -0.09], atol=0.005
    )


def test_the_script_leaves_correlations_and_a_picture(monkeypatch, capsys, tmp_path):
    small_scene.install(monkeypatch, proxy_loss)
    words = ["--out", str(tmp_path), "--seeds", "0", "2"]
    assert run(proxy_loss.main, proxy_loss.Settings, words, prog="script") == 0
    path = Path(capsys.readouterr().out.splitlines()[-1])
    record = records.read(path)
    assert records.methods(record) == list(METHODS)
    found = record["data"]["spearman"]
    assert set(found) == {"entropy", "self_label"}
    assert set(found["entropy"]) == {"task_arithmetic", "adamerging", "entropy_joint", "symerge"}
    rows = np.array(found["self_label"]["symerge"], float)
    assert rows.shape == (2, 3)
    assert np.abs(rows).max() <= 1
    assert path.with_name("correlations.png").stat().st_size > 10_000
