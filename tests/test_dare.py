"""DARE: what is dropped, what stays, and that nothing but the seed decides."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from from_disk import over_disk
from trees_close import assert_trees_close, assert_trees_equal

from symerge_jax.errors import BadInput
from symerge_jax.merge import METHODS
from symerge_jax.merge.dare import dare, plan
from symerge_jax.merge.leaves import Leaf
from symerge_jax.merge.task_arithmetic import task_arithmetic
from symerge_jax.merge.ties import ties

RNG = np.random.default_rng(8)
TAU = {
    "a": jnp.asarray(RNG.normal(size=(3, 40, 50)), jnp.float32),
    "b": {"c": jnp.asarray(RNG.normal(size=(3, 70)), jnp.float32)},
}


def test_density_one_is_the_base():
    assert_trees_equal(dare(TAU, density=1.0), task_arithmetic(TAU))
    assert_trees_equal(dare(TAU, density=1.0, base="ties"), ties(TAU))


def test_an_entry_is_dropped_or_divided_by_the_density():
    ones = {"w": jnp.ones((1, 30_000))}
    kept = np.asarray(dare(ones, density=0.2)["w"])
    np.testing.assert_allclose(np.unique(kept), [0, 65536 / 13107], rtol=1e-7)
    # six standard deviations of a binomial share
    assert abs((kept > 0).mean() - 0.2) < 6 * (0.2 * 0.8 / 30_000) ** 0.5


def test_tasks_and_leaves_drop_different_entries():
    ones = {"u": jnp.ones((2, 4000)), "v": jnp.ones((2, 4000))}
    both = dare(ones)
    alike = np.mean(np.asarray(both["u"]) == np.asarray(both["v"]))
    assert 0.25 < alike < 0.5  # 3/8 by chance
    values = np.asarray(both["u"])
    assert (values == 2).any()  # kept for one task alone
    assert set(np.unique(values)) == {0, 2, 4}


def test_the_mean_over_seeds_is_the_base():
    tau = {"w": jnp.array([[1.0, -2.0, 3.0], [0.5, 0.0, -1.0]])}
    draws = np.stack([dare(tau, seed=s)["w"] for s in range(100)])
    error = draws.std(axis=0) / 10
    np.testing.assert_array_less(np.abs(draws.mean(axis=0) - tau["w"].sum(0)), 5 * error + 1e-6)


def test_only_the_seed_changes_the_draw():
    assert_trees_equal(dare(TAU, seed=3), dare(TAU, seed=3))
    assert not np.array_equal(dare(TAU, seed=3)["a"], dare(TAU, seed=4)["a"])
    assert_trees_equal(dare({"b": TAU["b"]})["b"], dare(TAU)["b"])  # other leaves play no part


def test_a_fixed_draw_scales_with_the_task_vectors():
    scaled = dare(jax.tree.map(lambda x: -4 * x, TAU))
    assert_trees_equal(scaled, jax.tree.map(lambda x: -4 * x, dare(TAU)))


@pytest.mark.parametrize("base", ["task_arithmetic", "ties"])
def test_jit_and_leaves_from_disk_change_nothing(base):
    merged = dare(TAU, base=base)
    assert_trees_equal(over_disk(plan, TAU, base=base), merged)
    assert_trees_close(jax.jit(lambda tau: dare(tau, base=base))(TAU), merged)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"density": 0.0}, r"dare: density must lie in \(0, 1\], got 0.0"),
        ({"base": "dare"}, "dare: base must be one of the shared methods .*, got 'dare'"),
        ({"rho": 0.5}, "dare: the base task_arithmetic has no option 'rho'; it has none"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(BadInput, match=message):
        dare(TAU, **options)


@pytest.mark.parametrize("base", ["lines", "iso_cts", "breadcrumbs", "tsv_m"])
def test_facts_about_leaves_reach_the_base(base):
    tau = {"a": {"w": jax.random.normal(jax.random.key(0), (2, 12, 8))},
           "b": {"w": jax.random.normal(jax.random.key(1), (2, 12, 8))}}  # fmt: skip
    facts = {"a": {"w": Leaf("in_out", depth=0)}, "b": {"w": Leaf("in_out", depth=1)}}
    expected = METHODS[base].merge(tau, leaves=facts)
    assert_trees_equal(dare(tau, density=1.0, base=base, leaves=facts), expected)
    with_defaults = METHODS[base].merge(tau)
    differs = not np.allclose(with_defaults["b"]["w"], expected["b"]["w"], atol=1e-4)
    assert differs == (base != "tsv_m")  # which does not care how a matrix lies


def test_the_choice_of_a_generator_elsewhere_changes_nothing():
    expected = dare(TAU)
    with jax.default_prng_impl("rbg"):
        assert_trees_equal(dare(TAU), expected)
