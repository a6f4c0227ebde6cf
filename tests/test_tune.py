"""The choice of a scale on validation inputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from symerge_jax.errors import BadInput
from symerge_jax.tune import tune_scale

# One weight w = λ · τ*: the model says class 1 where w · x > 1, whatever the head.
PRETRAINED, TASK_VECTOR = {"w": jnp.zeros((), jnp.float32)}, {"w": jnp.ones((), jnp.float32)}
HEADS = [{"sign": jnp.float32(1)}, {"sign": jnp.float32(-1)}]
X = np.array([0.5, 1.0, 2.0, 4.0, 8.0], np.float32)


def apply(model, x):
    params, head = model
    z = head["sign"] * (params["w"] * x - 1)
    return jnp.stack([jnp.zeros_like(z), z], axis=1)


def truth(scale, sign):
    return (sign * (scale * X - 1) > 0).astype(np.int32)


@pytest.mark.parametrize("batch_size", [1, 2, 100])
@pytest.mark.parametrize("chunk_bytes", [1, 8, 1 << 20])
def test_accuracies_are_those_of_each_scale(batch_size, chunk_bytes):
    tuned = tune_scale(
        apply, PRETRAINED, TASK_VECTOR, [0.3, 0.1, 0.7], HEADS, [X, X[:3]],
        [truth(0.3, 1), truth(0.3, -1)[:3]], batch_size=batch_size, chunk_bytes=chunk_bytes,
    )  # fmt: skip
    np.testing.assert_allclose(tuned.scales, [0.1, 0.3, 0.7], rtol=1e-6)
    for scale, row in zip(tuned.scales, tuned.accuracies, strict=True):
        agree = truth(scale, 1) == truth(0.3, 1), truth(scale, -1)[:3] == truth(0.3, -1)[:3]
        np.testing.assert_allclose(row, [100 * one.mean() for one in agree])
    assert tuned.scale == pytest.approx(0.3)


def test_the_smallest_of_equal_scales_wins():
    truths = [truth(0.3, 1), truth(0.3, -1)]
    tuned = tune_scale(apply, PRETRAINED, TASK_VECTOR, [0.4, 0.3, 0.35], HEADS, [X, X], truths)
    assert np.ptp(tuned.scores) == 0
    assert tuned.scale == pytest.approx(0.3)


def test_tasks_weigh_by_what_their_expert_reaches():
    # Scale 0.2 is right for task 0 alone, 0.6 for task 1 alone; the weaker expert counts more.
    truths = [truth(0.2, 1), truth(0.6, -1)]
    for reference, expected in (((100, 50), 0.6), ((50, 100), 0.2)):
        tuned = tune_scale(
            apply, PRETRAINED, TASK_VECTOR, [0.2, 0.6], HEADS, [X, X], truths, reference=reference
        )
        assert tuned.scale == pytest.approx(expected)
        np.testing.assert_allclose(
            tuned.scores, (tuned.accuracies / np.array(reference)).mean(axis=1)
        )


def test_the_grid_is_one_program():
    lowered = []

    def counting(model, x):
        lowered.append(1)
        return apply(model, x)

    truths = [truth(0.3, 1), truth(0.3, -1)]
    scales = np.linspace(0.1, 1, 10)
    tune_scale(counting, PRETRAINED, TASK_VECTOR, scales, HEADS, [X, X], truths, chunk_bytes=1)
    assert len(lowered) == 1


def test_nothing_to_try_is_refused():
    with pytest.raises(BadInput, match="at least one scale"):
        tune_scale(apply, PRETRAINED, TASK_VECTOR, [], HEADS, [X, X], [X, X])
    with pytest.raises(BadInput, match="2 heads, inputs of 1 tasks"):
        tune_scale(apply, PRETRAINED, TASK_VECTOR, [1], HEADS, [X], [X])


def test_trees_of_any_float_work():
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PRETRAINED)

    def widened(model, x):
        return apply(({"w": model[0]["w"].astype(jnp.float32)}, model[1]), x)

    tuned = tune_scale(widened, half, TASK_VECTOR, [0.5], HEADS, [X, X], [truth(0.5, 1)] * 2)
    assert tuned.scale == 0.5
