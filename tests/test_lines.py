"""LiNeS by hand, over several bases, and from leaves on disk."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from from_disk import over_disk
from trees_close import assert_trees_close

from symerge_jax.errors import BadInput
from symerge_jax.merge import METHODS
from symerge_jax.merge.average import weight_average
from symerge_jax.merge.leaves import Leaf
from symerge_jax.merge.lines import lines, plan
from symerge_jax.merge.task_arithmetic import task_arithmetic
from symerge_jax.merge.ties import ties

RNG = np.random.default_rng(6)
SHAPES = {"stem": (4,), "block_0": (3, 5), "block_1": (3, 5), "block_2": (20_000,), "norm": ()}
TAU = {k: jnp.asarray(RNG.normal(size=(4, *s)), jnp.float32) for k, s in SHAPES.items()}
DEPTHS = {k: Leaf(depth=int(k[-1])) if k.startswith("block") else Leaf() for k in SHAPES}


def test_by_hand():
    factors = {"stem": 0.25, "block_0": 0.25, "block_1": 0.55, "block_2": 0.85, "norm": 0.25}
    merged = lines(TAU, beta=0.6, leaves=DEPTHS)
    total = task_arithmetic(TAU)
    # α = 1/K with task arithmetic; leaves after the last block have α too
    assert_trees_close(merged, {k: factors[k] * total[k] for k in total})


def test_beta_zero_is_the_average_and_one_task_the_expert():
    assert_trees_close(lines(TAU, beta=0.0, leaves=DEPTHS), weight_average(TAU))
    alone = jax.tree.map(lambda tau: tau[:1], TAU)
    expected = jax.tree.map(lambda tau: tau[0], TAU)
    assert_trees_close(lines(alone, beta=0.0, leaves=DEPTHS), expected)


def test_without_depths_every_leaf_is_outside_the_blocks():
    assert_trees_close(lines(TAU), weight_average(TAU))


def test_a_single_block_has_the_first_factor():
    one = {k: Leaf(depth=0) for k in SHAPES}
    assert_trees_close(lines(TAU, leaves=one), weight_average(TAU))


def test_alpha_makes_up_for_what_the_base_trims():
    merged = lines(TAU, base="ties", beta=0.5, density=0.05, aggregate="sum", leaves=DEPTHS)
    trimmed = ties(TAU, density=0.05, aggregate="sum")
    total = task_arithmetic(TAU)
    sizes = [
        sum(float(np.abs(np.asarray(x, np.float64)).sum()) for x in jax.tree.leaves(tree))
        for tree in (total, trimmed)
    ]
    alpha = sizes[0] / sizes[1] / 4
    assert alpha > 0.3
    expected = {k: (alpha + 0.5 * (DEPTHS[k].depth or 0) / 2) * x for k, x in trimmed.items()}
    assert_trees_close(merged, expected, rtol=1e-5)


def test_it_is_linear_with_task_arithmetic():
    scaled = lines(jax.tree.map(lambda x: -3 * x, TAU), leaves=DEPTHS)
    expected = jax.tree.map(lambda x: -3 * x, lines(TAU, leaves=DEPTHS))
    assert_trees_close(scaled, expected, atol=1e-5)


def test_zero_task_vectors_give_zero():
    merged = lines(jax.tree.map(jnp.zeros_like, TAU), leaves=DEPTHS)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(merged))


@pytest.mark.parametrize("base", ["task_arithmetic", "ties"])
def test_jit_and_leaves_from_disk_change_nothing(base):
    merged = lines(TAU, base=base, leaves=DEPTHS)
    assert_trees_close(over_disk(plan, TAU, base=base, leaves=DEPTHS), merged)
    jitted = jax.jit(lambda tau: lines(tau, base=base, leaves=DEPTHS))(TAU)
    assert_trees_close(jitted, merged, atol=2e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base": "lines"}, "lines: base must be one of the shared methods .*, got 'lines'"),
        ({"base": "nothing"}, "got 'nothing'"),
        ({"beta": -0.1}, "lines: beta must be a number from 0, got -0.1"),
        ({"beta": float("nan")}, "got nan"),
        ({"densty": 0.2}, "lines: the base task_arithmetic has no option 'densty'; it has none"),
        ({"base": "ties", "densty": 0.2}, "has no option 'densty'; it has aggregate, density"),
        ({"base": "ties", "density": 0.0}, r"ties: density must lie in \(0, 1\]"),
        ({"leaves": {k: Leaf() for k in SHAPES}}, "lines: no leaf has a depth"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(BadInput, match=message):
        lines(TAU, **options)


def test_a_base_can_join_query_key_and_value():
    tau = {name: jax.random.normal(jax.random.key(k), (2, 6, 6)) for k, name in enumerate("qkv")}
    facts = {name: Leaf("out_in", depth=0, group="g", part=part) for part, name in enumerate("qkv")}
    joined = METHODS["iso_c"].merge(tau, leaves=facts, fuse_qkv=True)
    found = lines(tau, base="iso_c", leaves=facts, fuse_qkv=True, beta=0.0)
    plain, ours = (sum(np.abs(np.asarray(x)).sum() for x in tree.values())
                   for tree in (jax.tree.map(lambda x: x.sum(0), tau), joined))  # fmt: skip
    for name, leaf in joined.items():
        np.testing.assert_allclose(found[name], leaf * plain / ours / 2, rtol=1e-4, atol=1e-6)
