"""Objectives, on a few rows of numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from symerge_jax.adapt.objectives import (
    FILTERS,
    ExpertLabels,
    entropy,
    exclude,
    masked_mean,
    self_label,
)


def logits_for(probabilities):
    return jnp.log(jnp.array([probabilities]))


# merged model: class 0 with probability 0.6
MERGED = logits_for([0.6, 0.3, 0.1])


@pytest.mark.parametrize(
    ("agree", "expert_confidence", "code", "paper"),
    [
        (True, 0.5, True, False),  # the merged model is surer
        (False, 0.5, False, False),
        (True, 0.7, True, True),  # the expert is
        (False, 0.7, True, True),
    ],
)
def test_the_truth_table_of_the_filters(agree, expert_confidence, code, paper):
    label = 0 if agree else 2
    expert = ExpertLabels(jnp.array([label]), jnp.array([expert_confidence]))
    kept = {name: bool(keep(MERGED, expert)[0]) for name, keep in FILTERS.items()}
    assert kept == {"none": True, "code": code, "paper": paper}


@pytest.mark.parametrize("label", [0, 2])
def test_equal_confidence_is_kept(label):
    confidence = jax.nn.softmax(MERGED).max(axis=1)
    expert = ExpertLabels(jnp.array([label]), confidence)
    assert all(keep(MERGED, expert)[0] for keep in FILTERS.values())


def test_filters_have_no_gradient():
    expert = ExpertLabels(jnp.array([2]), jnp.array([0.5]))
    for keep in FILTERS.values():
        gradient = jax.grad(lambda z, keep=keep: keep(z, expert).astype(z.dtype).sum())(MERGED)
        assert not gradient.any()


def test_self_label_by_hand():
    logits = jnp.log(jnp.array([[0.6, 0.3, 0.1], [0.2, 0.2, 0.6]]))
    expert = ExpertLabels(jnp.array([1, 2]), jnp.array([0.9, 0.9]))
    np.testing.assert_allclose(self_label(logits, expert), -np.log([0.3, 0.6]), rtol=1e-6)


def test_self_label_is_small_where_the_merged_model_says_the_same_surely():
    expert = ExpertLabels(jnp.array([0]), jnp.array([0.9]))
    assert self_label(jnp.array([[50.0, 0.0]]), expert)[0] == 0


def test_entropy_lies_between_zero_and_log_of_the_classes():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(50, 7)) * 5, jnp.float32)
    values = entropy(logits)
    assert (values >= 0).all()
    assert (values <= jnp.log(7.0)).all()
    np.testing.assert_allclose(entropy(jnp.zeros((1, 7))), jnp.log(jnp.array([7.0])), rtol=1e-6)
    assert entropy(jnp.array([[1000.0, 0.0]]))[0] == 0


def test_entropy_of_a_uniform_prediction_has_no_gradient():
    gradient = jax.grad(lambda z: entropy(z).sum())(jnp.ones((1, 5)))
    np.testing.assert_allclose(gradient, 0, atol=1e-7)


def test_excluded_classes_contribute_nothing():
    logits = jnp.array([[1.0, 2.0, 0.5]])
    exists = jnp.array([[True, True, True, False, False]])
    padded = exclude(jnp.array([[1.0, 2.0, 0.5, 80.0, -3.0]]), exists)
    expert = ExpertLabels(jnp.array([1]), jnp.array([0.4]))
    np.testing.assert_array_equal(entropy(padded), entropy(logits))
    np.testing.assert_array_equal(self_label(padded, expert), self_label(logits, expert))
    for keep in FILTERS.values():
        assert keep(padded, expert) == keep(logits, expert)


@pytest.mark.parametrize("objective", ["entropy", "self_label"])
def test_excluded_classes_have_no_gradient_and_no_nan(objective):
    exists = jnp.array([[True, True, False]])
    expert = ExpertLabels(jnp.array([1]), jnp.array([0.4]))

    def loss(z):
        z = exclude(z, exists)
        return (entropy(z) if objective == "entropy" else self_label(z, expert)).sum()

    gradient = jax.grad(loss)(jnp.array([[1.0, 2.0, 90.0]]))
    assert np.isfinite(gradient).all()
    assert gradient[0, 2] == 0
    assert gradient[0, :2].all()


def test_one_row_of_existing_classes_serves_the_whole_batch():
    logits = exclude(jnp.ones((4, 3)), jnp.array([[True, False, True]]))
    assert (logits[:, 1] < -1e8).all()
    assert (logits[:, ::2] == 1).all()


def test_masked_mean_counts_what_the_mask_keeps():
    values = jnp.array([1.0, 100.0, 5.0])
    assert masked_mean(values, jnp.array([True, False, True])) == 3


def test_masked_mean_of_nothing_is_zero_with_zero_gradient():
    nothing = jnp.zeros(3, bool)
    value, gradient = jax.value_and_grad(masked_mean)(jnp.array([1.0, 2.0, 3.0]), nothing)
    assert value == 0
    assert not gradient.any()


def test_masked_mean_does_not_look_at_what_it_leaves_out():
    values = jnp.array([1.0, jnp.nan, jnp.inf])
    assert masked_mean(values, jnp.array([True, False, False])) == 1
