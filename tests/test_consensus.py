"""Consensus by hand and at the ends of its threshold."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from from_disk import over_disk
from trees_close import assert_trees_equal
from two_tasks import APART, TEN, row

from symerge_jax.errors import BadInput
from symerge_jax.merge.consensus import consensus, plan
from symerge_jax.merge.task_arithmetic import task_arithmetic
from symerge_jax.merge.ties import ties

TAU = {"w": jnp.asarray(np.random.default_rng(4).normal(size=(4, 13, 7)), jnp.float32)}


def test_by_hand():
    assert_trees_equal(consensus(TEN), row(3, 0, -2, 0, 0, 0, 0, 0, 0, 3))


def test_threshold_zero_is_the_base_and_one_drops_what_nobody_uses():
    assert_trees_equal(consensus(TAU, threshold=0), task_arithmetic(TAU))
    alone = {"w": TAU["w"][:1]}
    assert_trees_equal(consensus(alone, threshold=1), {"w": TAU["w"][0]})


def test_a_threshold_nobody_reaches_gives_zero():
    assert not consensus(TAU, threshold=5)["w"].any()
    assert not consensus({"w": TAU["w"][:1]})["w"].any()
    assert not consensus(APART)["w"].any()
    assert_trees_equal(consensus(APART, threshold=1), row(1, 3, 0, 2))


def test_a_higher_threshold_keeps_less():
    kept = [np.asarray(consensus(TAU, threshold=n)["w"] != 0) for n in range(6)]
    assert all(
        (b <= a).all() and a.sum() > b.sum() for a, b in zip(kept[1:5], kept[2:6], strict=True)
    )


def test_the_base_ties_gives_masks_of_ties():
    merged = ties(TAU, density=0.5, aggregate="sum")
    assert_trees_equal(consensus(TAU, base="ties", density=0.5, threshold=0), merged)
    kept = np.asarray(consensus(TAU, base="ties", density=0.5)["w"])
    assert np.isin(kept, np.append(np.asarray(merged["w"]), 0.0)).all()


@pytest.mark.parametrize("base", ["task_arithmetic", "ties"])
def test_jit_and_leaves_from_disk_change_nothing(base):
    merged = consensus(TAU, base=base)
    assert_trees_equal(over_disk(plan, TAU, base=base), merged)
    assert_trees_equal(jax.jit(lambda tau: consensus(tau, base=base))(TAU), merged)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": -1}, "consensus: threshold must be a whole number from 0, got -1"),
        ({"mask_scale": -0.4}, "consensus: mask_scale must be positive"),
        ({"base": "emr"}, "consensus: base must be one of task_arithmetic, ties, got 'emr'"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(BadInput, match=message):
        over_disk(plan, TEN, **options)
