"""Training-free methods against the outputs of other implementations."""

import numpy as np
import pytest
from golden_files import golden

from symerge_jax.merge import METHODS
from symerge_jax.merge.ties import ties
from symerge_jax.task_vectors import add, subtract


def part(arrays, prefix):
    return {k[len(prefix) + 1 :]: v for k, v in arrays.items() if k.startswith(prefix + "/")}


@pytest.fixture(scope="module")
def case():
    arrays, _ = golden("training_free")
    pretrained = part(arrays, "pretrained")
    return (
        arrays,
        pretrained,
        subtract([part(arrays, f"expert/task{k}") for k in range(4)], pretrained),
    )


def assert_agrees(merged, expected, *, tolerance=1e-5):
    """Relative to the largest entry of each tensor."""
    assert set(merged) == set(expected)
    for name, theirs in expected.items():
        bound = tolerance * max(float(np.abs(theirs).max()), 1e-30)
        np.testing.assert_allclose(merged[name], theirs, rtol=0, atol=bound, err_msg=name)


def test_weight_average(case):
    arrays, pretrained, tau = case
    merged = add(pretrained, METHODS["weight_average"].merge(tau))
    assert_agrees(merged, part(arrays, "simple_average/fusionbench"))


@pytest.mark.parametrize("source", ["authors", "fusionbench"])
def test_task_arithmetic(case, source):
    arrays, pretrained, tau = case
    method = METHODS["task_arithmetic"]
    merged = add(pretrained, method.merge(tau), scale=method.scale)
    assert_agrees(merged, part(arrays, f"task_arithmetic_0.3/{source}"))


def test_ties(case):
    arrays, pretrained, tau = case
    merged = ties(tau, density=0.2, aggregate="sum")
    expected = part(arrays, "ties_k20_sum_taskvector/authors")
    assert_agrees(merged, expected)
    for name, theirs in expected.items():
        np.testing.assert_array_equal(merged[name] != 0, theirs != 0, err_msg=name)
    weights = part(arrays, "ties_k20_sum_0.3/authors")
    assert_agrees(add(pretrained, merged, scale=0.3), weights)
