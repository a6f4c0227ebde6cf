"""The evaluation loop."""

import jax.numpy as jnp
import numpy as np
import pytest

from symerge_jax.errors import BadInput
from symerge_jax.evaluate import evaluate, predict

INPUTS = {"x": np.arange(14, dtype=np.float32).reshape(7, 2)}


def apply(params, inputs):
    return {"sum": inputs["x"].sum(axis=1) * params, "twice": inputs["x"] * 2}


def total(params, inputs):
    return apply(params, inputs)["sum"]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 100])
def test_the_batch_size_does_not_matter(batch_size):
    outputs = predict(apply, jnp.float32(3), INPUTS, batch_size=batch_size)
    np.testing.assert_array_equal(outputs["sum"], INPUTS["x"].sum(axis=1) * 3)
    np.testing.assert_array_equal(outputs["twice"], INPUTS["x"] * 2)
    assert isinstance(outputs["sum"], np.ndarray)


def test_jax_arrays_are_inputs_too():
    outputs = predict(total, jnp.float32(1), {"x": jnp.asarray(INPUTS["x"])}, batch_size=3)
    np.testing.assert_array_equal(outputs, INPUTS["x"].sum(axis=1))


def test_one_program_serves_any_number_of_inputs():
    traces = []

    def counted(params, inputs):
        traces.append(1)
        return inputs * params

    for count in (2, 5, 8):
        predict(counted, jnp.float32(2), np.ones((count, 3), np.float32), batch_size=4)
    assert len(traces) == 1


def test_a_metric_sees_the_whole_set_once():
    seen = []

    def count(outputs, truth):
        seen.append((outputs.shape, truth.shape))
        return outputs.shape[0]

    truth = np.arange(7)
    scores = evaluate(
        total,
        jnp.float32(1),
        INPUTS,
        truth,
        {"n": count, "max": lambda o, t: o.max()},
        batch_size=3,
    )
    assert seen == [((7,), (7,))]
    assert scores == {"n": 7.0, "max": 25.0}
    assert all(type(value) is float for value in scores.values())


def test_nothing_to_evaluate_and_unequal_counts_are_refused():
    with pytest.raises(BadInput, match="at least one input, got none"):
        predict(total, jnp.float32(1), {"x": np.zeros((0, 2), np.float32)})
    with pytest.raises(BadInput, match="7 inputs, but 6 labels"):
        evaluate(total, jnp.float32(1), INPUTS, np.arange(6), {})
