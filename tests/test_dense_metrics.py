"""Metrics on maps: worked by hand, as scikit-learn counts, by streaming as all at once."""

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, jaccard_score

from experiments import records
from symerge_jax import dense_metrics
from symerge_jax.dense_metrics import (
    DENSE_METRICS,
    depth_scores,
    normal_scores,
    segmentation_scores,
)
from symerge_jax.evaluate import predict

PACKS = Path(os.environ.get("SYMERGE_DATA", Path(__file__).parents[1].parent / "shared" / "data"))

# As programs, the way they are used: compiled once for a shape instead of operation by operation.
confusions = jax.jit(dense_metrics.confusions)
depth_sums = jax.jit(dense_metrics.depth_sums)
angle_sums = jax.jit(dense_metrics.angle_sums)
COMPILED = {"segmentation": confusions, "depth": depth_sums, "normal": angle_sums}


def one_hot(classes, count=13):
    return np.eye(count, dtype=np.float32)[classes]


def drawn(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def drawn_classes(*shape, low=0, seed=0):
    return np.random.default_rng(seed).integers(low, 13, shape).astype(np.int8)


def angle(normals, truth, **options):
    return normal_scores(angle_sums(normals, truth), **options)["normal_mean_angle"]


# --- segmentation -------------------------------------------------------------------------------


def test_segmentation_by_hand():
    # 16 pixels of 3 classes; the last column does not count.
    labels = np.array([[[0, 0, 1, -1], [0, 0, 1, -1], [2, 2, 1, -1], [2, 2, 1, -1]]], np.int8)
    predicted = np.array([[[0, 0, 1, 0], [0, 1, 1, 1], [2, 2, 1, 2], [0, 2, 1, 2]]])
    scores = segmentation_scores(confusions(one_hot(predicted, 3), labels))
    # IoU: class 0: 3 / 5; class 1: 4 / 5; class 2: 3 / 4. Right: 10 of 12.
    assert scores["miou"] == pytest.approx(100 * (3 / 5 + 4 / 5 + 3 / 4) / 3)
    assert scores["pixel_accuracy"] == pytest.approx(100 * 10 / 12)


def test_confusions_are_those_of_scikit_learn():
    labels, predicted = drawn_classes(3, 6, 8, low=-1), drawn_classes(3, 6, 8, seed=1)
    found = np.asarray(confusions(one_hot(predicted), labels))
    for image in range(3):
        counts = labels[image] != -1
        expected = confusion_matrix(
            labels[image][counts], predicted[image][counts], labels=range(13)
        )
        np.testing.assert_array_equal(found[image], expected)
    counts = labels != -1
    mean = jaccard_score(labels[counts], predicted[counts], average="macro")
    assert segmentation_scores(found)["miou"] == pytest.approx(100 * mean)


def test_a_class_that_is_nowhere_is_left_out_and_one_only_predicted_counts():
    labels = np.zeros((3, 6, 8), np.int8)
    assert segmentation_scores(confusions(one_hot(labels), labels))["miou"] == 100
    predicted = labels.copy()
    predicted[:, :2] = 5
    scores = segmentation_scores(confusions(one_hot(predicted), labels))
    assert scores["miou"] == pytest.approx(100 * (4 / 6 + 0) / 2)


@pytest.mark.skipif(not (PACKS / "nyuv2").is_dir(), reason="the data packs are not here")
def test_published_maps_of_nyuv2_against_their_neighbours():
    with np.load(PACKS / "nyuv2" / "test_label13_maps.npz") as pack:
        labels = pack["label13"][:9]
    predicted, labels = np.maximum(labels[:-1], 0), labels[1:]
    scores = segmentation_scores(confusions(one_hot(predicted), labels))
    counts = labels != -1
    matrix = confusion_matrix(labels[counts], predicted[counts], labels=range(13))
    union = matrix.sum(0) + matrix.sum(1) - np.diag(matrix)
    expected = np.diag(matrix)[union > 0] / union[union > 0]
    assert scores["miou"] == pytest.approx(100 * expected.mean())
    assert scores["pixel_accuracy"] == pytest.approx(100 * np.trace(matrix) / matrix.sum())


# --- depth --------------------------------------------------------------------------------------


def test_depth_by_hand():
    truth = np.array([[[1.0, 2.0, 0.0, 4.0]] * 4] * 2, np.float32)
    depths = np.array([[[1.5, 2.0, 9.0, 3.0]] * 4] * 2, np.float32)[..., None]
    scores = depth_scores(depth_sums(depths, truth))
    assert scores["depth_abs_error"] == pytest.approx((0.5 + 0 + 1) / 3)
    assert scores["depth_rel_error"] == pytest.approx((0.5 + 0 + 0.25) / 3)


def test_the_mean_over_batches_differs_as_by_hand():
    # Errors of 1 m on the 16 pixels of the first image, of 3 m on the 4 that count of the second.
    truth = np.full((2, 4, 4), 2, np.float32)
    truth[1, 1:] = 0
    depths = (truth + np.array([[[1]], [[3]]], np.float32))[..., None]
    sums = depth_sums(depths, truth)
    assert depth_scores(sums)["depth_abs_error"] == pytest.approx((16 * 1 + 4 * 3) / 20)
    assert depth_scores(sums, batch_size=1)["depth_abs_error"] == pytest.approx((1 + 3) / 2)
    assert depth_scores(sums, batch_size=1)["depth_rel_error"] == pytest.approx((0.5 + 1.5) / 2)
    assert depth_scores(sums, batch_size=2) == depth_scores(sums)


def test_the_last_batch_may_be_smaller_and_weighs_the_same():
    truth = np.ones((3, 6, 8), np.float32)
    depths = (truth + np.array([[[1]], [[2]], [[6]]], np.float32))[..., None]
    scores = depth_scores(depth_sums(depths, truth), batch_size=2)
    assert scores["depth_abs_error"] == pytest.approx((1.5 + 6) / 2)


# --- normals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("degrees", [0.0, 0.01, 1.0, 45.0, 90.0, 135.0, 179.9, 180.0])
def test_a_rotation_gives_its_angle(degrees):
    truth = unit(drawn(2, 4, 4, 3))
    # Rotated in a plane that holds the normal itself.
    aside = unit(np.cross(truth, drawn(2, 4, 4, 3, seed=1)))
    c, s = np.float32(np.cos(np.radians(degrees))), np.float32(np.sin(np.radians(degrees)))
    assert angle(c * truth + s * aside, truth) == pytest.approx(degrees, abs=1e-4)
    assert angle(7 * (c * truth + s * aside), truth) == pytest.approx(degrees, abs=1e-4)


def test_angles_by_hand():
    truth = np.array([[[[0, 0, 1], [0, 0, 1], [0, 0, 1], [0, 0, 0]]] * 4] * 2, np.float32)
    normals = np.array([[[[0, 0, 7], [3, 0, 3], [0, 0, -0.1], [5, 5, 5]]] * 4] * 2, np.float32)
    assert angle(normals, truth) == pytest.approx((0 + 45 + 180) / 3, rel=1e-6)


def test_a_predicted_normal_of_length_zero_is_at_right_angles():
    nothing = np.zeros((2, 4, 4, 3), np.float32)
    assert angle(nothing, unit(drawn(2, 4, 4, 3))) == pytest.approx(90)


def test_the_mean_angle_over_batches_differs_as_by_hand():
    truth = np.tile(np.array([0, 0, 1], np.float32), (2, 4, 4, 1))
    normals = truth.copy()
    normals[1] = [0, 1, 0]
    truth[1, 1:] = 0
    assert angle(normals, truth) == pytest.approx(4 * 90 / 20)
    assert angle(normals, truth, batch_size=1) == pytest.approx((0 + 90) / 2)


# --- all ----------------------------------------------------------------------------------------


def outputs_and_truth(task, seed=0):
    """Outputs of three images, their truth, and what they are where it does not count."""
    gaps = np.random.default_rng(seed).random((3, 6, 8)) < 0.3
    match task:
        case "segmentation":
            truth = np.where(gaps, np.int8(-1), drawn_classes(3, 6, 8, seed=seed))
            return drawn(3, 6, 8, 13), truth, gaps
        case "depth":
            truth = np.where(gaps, 0, 1 + np.abs(drawn(3, 6, 8, seed=seed)))
            return 1 + np.abs(drawn(3, 6, 8, 1, seed=1)), truth, gaps
    truth = np.where(gaps[..., None], 0, unit(drawn(3, 6, 8, 3, seed=seed)))
    return drawn(3, 6, 8, 3, seed=1), truth, gaps


every_task = pytest.mark.parametrize("task", DENSE_METRICS)


def test_the_names_are_those_of_records():
    assert [metric.names for metric in DENSE_METRICS.values()] == [
        ("miou", "pixel_accuracy"), ("depth_abs_error", "depth_rel_error"), ("normal_mean_angle",),
    ]  # fmt: skip
    assert {name for metric in DENSE_METRICS.values() for name in metric.names} == records._DENSE


@every_task
def test_scores_have_the_names_of_the_table(task):
    metric = DENSE_METRICS[task]
    outputs, truth, _ = outputs_and_truth(task)
    assert tuple(metric.scores(COMPILED[task](outputs, truth))) == metric.names


@every_task
def test_pixels_that_do_not_count_change_nothing(task):
    sums, scores = COMPILED[task], DENSE_METRICS[task].scores
    outputs, truth, gaps = outputs_and_truth(task)
    other = np.where(gaps[..., None], 100 * np.roll(outputs, 1, -1) + 5, outputs)
    assert scores(sums(outputs, truth)) == scores(sums(other, truth))


@every_task
def test_streaming_gives_what_one_batch_gives(task):
    metric = DENSE_METRICS[task]
    outputs, truth, _ = outputs_and_truth(task)

    def sums(params, inputs):
        return metric.sums(params * inputs[0], inputs[1])

    streamed = predict(sums, jnp.float32(1), (outputs, truth), batch_size=2)
    whole = metric.scores(COMPILED[task](outputs, truth))
    assert metric.scores(streamed) == pytest.approx(whole, rel=1e-6)


@every_task
def test_compiling_changes_nothing(task):
    metric = DENSE_METRICS[task]
    outputs, truth, _ = outputs_and_truth(task)
    compiled = metric.scores(COMPILED[task](outputs, truth))
    plain = metric.scores(metric.sums(jnp.asarray(outputs), jnp.asarray(truth)))
    assert compiled == pytest.approx(plain, rel=1e-6)


@every_task
def test_a_set_of_which_no_pixel_counts_has_no_score(task):
    metric = DENSE_METRICS[task]
    outputs, truth, _ = outputs_and_truth(task)
    nothing = np.full_like(truth, -1 if task == "segmentation" else 0)
    assert all(np.isnan(v) for v in metric.scores(COMPILED[task](outputs, nothing)).values())


@pytest.mark.parametrize("task", ["depth", "normal"])
def test_a_batch_of_which_no_pixel_counts_is_left_out(task):
    scores = DENSE_METRICS[task].scores
    outputs, truth, _ = outputs_and_truth(task)
    truth[1] = 0
    sums = COMPILED[task](outputs, truth)
    kept = type(sums)(*(np.asarray(each)[[0, 2]] for each in sums))
    assert scores(sums, batch_size=1) == scores(kept, batch_size=1)
