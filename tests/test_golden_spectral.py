"""TSV-Merge and Iso-C against the outputs of their authors' code."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_files import golden

from symerge_jax.leaf_facts import named_leaves
from symerge_jax.merge.isotropic import iso_c
from symerge_jax.merge.tsv import tsv_m
from symerge_jax.task_vectors import subtract


def part(arrays, prefix):
    return {k[len(prefix) + 1 :]: v for k, v in arrays.items() if k.startswith(prefix + "/")}


@pytest.fixture(scope="module")
def case():
    arrays, _ = golden("training_free")
    pretrained = part(arrays, "pretrained")
    experts = [part(arrays, f"expert/task{k}") for k in range(4)]
    facts = named_leaves({k: v.shape for k, v in pretrained.items()}, "hugging_face")
    return arrays, pretrained, experts, facts


def assert_agrees(merged, expected, *, tolerance):
    """Relative to the largest entry of each tensor."""
    assert set(merged) == set(expected)
    for name, theirs in expected.items():
        bound = tolerance * max(float(np.abs(theirs).max()), 1e-30)
        np.testing.assert_allclose(merged[name], theirs, rtol=0, atol=bound, err_msg=name)


@pytest.mark.parametrize("with_facts", [True, False])
@pytest.mark.parametrize(
    ("method", "key"), [(tsv_m, "tsvm_taskvector"), (iso_c, "iso_c_taskvector")]
)
def test_task_vectors_agree(case, method, key, with_facts):
    arrays, pretrained, experts, facts = case
    merged = method(subtract(experts, pretrained), leaves=facts if with_facts else None)
    assert_agrees(merged, part(arrays, f"{key}/authors"), tolerance=1e-4)


def test_tsv_m_agrees_in_float64(case):
    arrays, pretrained, experts, facts = case
    with jax.enable_x64(True):
        wide = [{k: jnp.asarray(v, jnp.float64) for k, v in one.items()} for one in experts]
        start = {k: jnp.asarray(v, jnp.float64) for k, v in pretrained.items()}
        merged = tsv_m(subtract(wide, start), leaves=facts)
        assert_agrees(merged, part(arrays, "tsvm_taskvector_f64/authors"), tolerance=1e-9)
