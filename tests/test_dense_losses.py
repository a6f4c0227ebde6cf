"""Losses on maps: worked by hand, blind to pixels that do not count, without NaN in gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from symerge_jax import dense_losses

SHAPE = (2, 4, 4)

# As programs: compiled once for a shape instead of operation by operation.
segmentation_loss = jax.jit(dense_losses.segmentation_loss)
depth_loss = jax.jit(dense_losses.depth_loss)
normal_loss = jax.jit(dense_losses.normal_loss)
self_segmentation = jax.jit(dense_losses.self_segmentation)
self_depth = jax.jit(dense_losses.self_depth)
self_normal = jax.jit(dense_losses.self_normal, static_argnames="normalise")


def drawn(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def drawn_labels(seed=0):
    labels = np.random.default_rng(seed).integers(-1, 13, SHAPE).astype(np.int8)
    labels[0, 0, 0] = -1
    return labels


def test_segmentation_by_hand():
    # Two classes, probability 0.75 for class 0 everywhere; of 16 pixels 12 count, 9 of class 0.
    logits = np.tile(np.log(np.array([0.75, 0.25], np.float32)), (1, 4, 4, 1))
    labels = np.array([[[0, 0, 0, -1]] * 3 + [[1, 1, 1, -1]]], np.int8)
    expected = -(9 * np.log(0.75) + 3 * np.log(0.25)) / 12
    np.testing.assert_allclose(segmentation_loss(logits, labels), expected, rtol=1e-6)


def test_depth_by_hand():
    truth = np.array([[[1.0, 2.0, 0.0, 4.0]] * 4] * 2, np.float32)
    depths = np.array([[[1.5, 2.0, 9.0, 3.0]] * 4] * 2, np.float32)[..., None]
    np.testing.assert_allclose(depth_loss(depths, truth), (0.5 + 0 + 1) / 3, rtol=1e-6)


def test_normals_by_hand():
    # A quarter of the pixels each at 0°, 90° and 180° (1 - cos is 0, 1, 2), and one unknown.
    truth = np.array([[[[0, 0, 1], [0, 0, 1], [0, 0, 1], [0, 0, 0]]] * 4] * 2, np.float32)
    normals = np.array([[[[0, 0, 7], [3, 0, 0], [0, 0, -0.1], [5, 5, 5]]] * 4] * 2, np.float32)
    np.testing.assert_allclose(normal_loss(normals, truth), 1.0, rtol=1e-6)


def test_a_normal_whose_components_cancel_counts():
    truth = unit(np.tile(np.array([1, 1, -2], np.float32), (*SHAPE, 1)))
    assert float(normal_loss(-truth, truth)) == pytest.approx(2.0, rel=1e-6)


def test_pixels_that_do_not_count_have_no_gradient():
    labels = drawn_labels()
    truth = np.where(labels == -1, np.float32(0), np.float32(2))
    vectors = np.where((labels == -1)[..., None], 0, unit(drawn(*SHAPE, 3, seed=1)))
    for loss, target, channels in (
        (segmentation_loss, labels, 13), (depth_loss, truth, 1), (normal_loss, vectors, 3),
    ):  # fmt: skip
        gradient = jax.grad(loss)(drawn(*SHAPE, channels), target)
        still = np.abs(np.asarray(gradient)).max(axis=-1) == 0
        np.testing.assert_array_equal(still, labels == -1)


def test_a_batch_of_which_no_pixel_counts_gives_zero_and_no_gradient():
    for loss, target, channels in (
        (segmentation_loss, np.full(SHAPE, -1, np.int8), 13),
        (depth_loss, np.zeros(SHAPE, np.float32), 1),
        (normal_loss, np.zeros((*SHAPE, 3), np.float32), 3),
    ):
        value, gradient = jax.value_and_grad(loss)(drawn(*SHAPE, channels), target)
        assert float(value) == 0
        assert not np.asarray(gradient).any()


def test_the_gradient_at_a_normal_of_length_zero_is_a_number():
    truth = unit(drawn(*SHAPE, 3))
    for loss in (normal_loss, lambda p, g: self_normal(p, g).mean()):
        assert np.isfinite(np.asarray(jax.grad(loss)(jnp.zeros((*SHAPE, 3)), truth))).all()


def test_losses_to_an_expert_are_those_to_its_labels_when_all_pixels_count():
    logits, expert = drawn(*SHAPE, 13), drawn(*SHAPE, 13, seed=1).argmax(-1)
    np.testing.assert_allclose(
        self_segmentation(logits, expert).mean(), segmentation_loss(logits, expert), rtol=1e-6
    )
    depths, said = drawn(*SHAPE, 1), drawn(*SHAPE, 1, seed=1)
    np.testing.assert_allclose(
        self_depth(depths, said).mean(), depth_loss(depths, said[..., 0]), rtol=1e-6
    )


def test_losses_to_an_expert_have_one_value_per_image():
    depths = np.zeros((*SHAPE, 1), np.float32)
    depths[1] = 3
    np.testing.assert_allclose(self_depth(depths, np.ones_like(depths)), [1.0, 2.0])


def test_normals_to_an_expert_by_hand():
    normals = np.tile(np.array([0, 0, 5], np.float32), (*SHAPE, 1))
    expert = np.tile(np.array([0, 2, 0], np.float32), (*SHAPE, 1))
    np.testing.assert_allclose(self_normal(normals, expert), 2 * [(0 + 1 + 1) / 3], rtol=1e-6)
    raw = self_normal(normals, expert, normalise=False)
    np.testing.assert_allclose(raw, 2 * [(0 + 2 + 5) / 3], rtol=1e-6)
