"""Experts in pairs: what is scored, how it is put in order and averaged, and what is drawn."""

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from experiments import figures_pairs as figures
from experiments import pairs
from experiments.regression import fit_line


def assert_picture(path):
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert min(image.size) > 200
        assert len(image.getcolors(maxcolors=1 << 24) or ()) > 10


def test_accuracy_and_loss_by_hand():
    logits = np.log(np.array([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]], np.float32))
    accuracy, loss = pairs.compare(logits, np.array([0, 2]))
    assert accuracy == 50
    assert loss == pytest.approx(-(np.log(0.5) + np.log(0.1)) / 2, rel=1e-6)


def test_large_logits_and_excluded_classes_keep_the_loss_finite():
    logits = np.array([[5000.0, 0.0, -1e9], [0.0, 5000.0, -1e9]], np.float32)
    assert pairs.compare(logits, np.array([0, 0])) == (50, 2500)


def test_the_mean_over_others_leaves_the_diagonal_out():
    matrix = np.array([[100.0, 1, 2], [3, 100, 4], [5, 6, 100]])
    np.testing.assert_array_equal(pairs.others_mean(matrix, 1), [1.5, 3.5, 5.5])  # by encoder
    np.testing.assert_array_equal(pairs.others_mean(matrix, 0), [4, 3.5, 3])  # by task


def test_scores_land_in_the_cell_of_their_encoder_and_task():
    def score(a, b):
        if a is None:
            return [(k, k / 100) for k in range(3)]
        if a == b:  # on every task
            return [(10 * a + k, 0.5) for k in range(3)]
        return [(100 * a + 10 * b, 1.0), (100 * a + 10 * b + 1, 2.0)]  # on a's task, on b's

    found = pairs.gather(3, score)
    np.testing.assert_array_equal(found.cross, [[0, 1, 2], [10, 11, 12], [20, 21, 22]])
    # The mean of 0 and 2 on the task of 2 stands where encoder 0 meets task 2.
    np.testing.assert_array_equal(found.merged, [[0, 11, 21], [10, 11, 121], [20, 120, 22]])
    np.testing.assert_array_equal(found.merged_loss[0], [0.5, 2, 2])
    np.testing.assert_array_equal(found.merged_loss[:, 0], [0.5, 1, 1])
    np.testing.assert_array_equal(found.pretrained, [0, 1, 2])
    np.testing.assert_array_equal(found.pretrained_loss, [0, 0.01, 0.02])


def test_halfway_is_the_mean_of_two_experts():
    pretrained = {"w": jnp.array([1.0, 1.0])}
    task_vectors = {"w": jnp.array([[2.0, 0.0], [9.0, 9.0], [0.0, -4.0]])}
    found = pairs.halfway(pretrained, task_vectors, 0, 2)["w"]
    np.testing.assert_array_equal(found, [2, -1])
    np.testing.assert_array_equal(pairs.halfway(pretrained, task_vectors, 1, 1)["w"], [10, 10])


def line(n):
    x = np.linspace(20, 80, n)
    return fit_line(x, 0.5 * x + 30 + np.random.default_rng(0).normal(0, 4, n))


def test_pictures_of_many_tasks(tmp_path):
    values = np.random.default_rng(0).uniform(0, 100, (20, 20))
    names = [f"task{i}" for i in range(20)]
    assert_picture(figures.matrix(values, names, "accuracy", tmp_path / "m.png"))
    assert_picture(figures.correlation(line(20), names, tmp_path / "c.png"))
