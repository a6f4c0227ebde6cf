"""Methods that work entry by entry, against the outputs of the authors' code."""

import jax
import numpy as np
import pytest
from from_disk import over_disk
from golden_files import golden

from symerge_jax.merge.emr import compress_emr, emr
from symerge_jax.merge.ties import plan as plan_ties
from symerge_jax.task_vectors import add, subtract


def part(arrays, prefix):
    return {k[len(prefix) + 1 :]: v for k, v in arrays.items() if k.startswith(prefix + "/")}


@pytest.fixture(scope="module")
def case():
    arrays, notes = golden("training_free")
    pretrained = part(arrays, "pretrained")
    experts = [part(arrays, f"expert/task{k}") for k in range(4)]
    return arrays, notes, pretrained, subtract(experts, pretrained)


def assert_agrees(merged, expected, *, tolerance=1e-6):
    """Relative to the largest entry of each tensor."""
    assert set(merged) == set(expected)
    for name, theirs in expected.items():
        bound = tolerance * max(float(np.abs(theirs).max()), 1e-30)
        np.testing.assert_allclose(merged[name], theirs, rtol=0, atol=bound, err_msg=name)


def test_the_unified_vector_of_emr(case):
    arrays, _, _, tau = case
    small = compress_emr(tau)
    for name, theirs in part(arrays, "emr_unified_taskvector/authors").items():
        np.testing.assert_array_equal(small.vector[name], theirs, err_msg=name)


def test_the_rescalers_of_emr_in_both_forms(case):
    arrays, notes, _, tau = case
    np.testing.assert_allclose(
        compress_emr(tau).factors, arrays["emr_rescalers/authors"], rtol=1e-6
    )
    contrast = notes["outputs"]["emr_rescalers/authors"]["global_l1_alternative_for_contrast"]
    np.testing.assert_allclose(compress_emr(tau, rescale="global").factors, contrast, rtol=1e-6)


@pytest.mark.parametrize("k", range(4))
def test_the_model_of_each_task_by_emr(case, k):
    arrays, _, pretrained, tau = case
    expected = part(arrays, f"emr/task{k}/authors")
    whole = jax.tree.map(lambda x: x[k], emr(tau))
    assert_agrees(add(pretrained, whole), expected)
    assert_agrees(add(pretrained, compress_emr(tau).materialise(k)), expected)


def test_ties_from_leaves_on_disk(case):
    arrays, _, _, tau = case
    merged = over_disk(plan_ties, tau, density=0.2, aggregate="sum")
    expected = part(arrays, "ties_k20_sum_taskvector/authors")
    assert_agrees(merged, expected)
    for name, theirs in expected.items():
        np.testing.assert_array_equal(merged[name] != 0, theirs != 0, err_msg=name)
