"""Iso-C and Iso-CTS against their definitions in NumPy, and their laws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from trees_close import assert_trees_close, assert_trees_equal

from symerge_jax.errors import BadInput
from symerge_jax.merge.isotropic import iso_c, iso_cts, split_rank
from symerge_jax.merge.leaves import Leaf

RNG = np.random.default_rng(0)
both = pytest.mark.parametrize("method", [iso_c, iso_cts])


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


def orthogonal(a):
    u, _, vt = np.linalg.svd(a, full_matrices=False)
    return u @ vt


def iso_c_by_definition(tau):
    total = tau.sum(axis=0)
    return np.linalg.svd(total, compute_uv=False).mean() * orthogonal(total)


def iso_cts_by_definition(tau, fraction):
    """As in the paper: whole decompositions, both stacks made orthogonal at once."""
    tasks, m, n = tau.shape
    r = min(m, n)
    own = round((r - int(r * fraction)) / tasks)
    common = r - tasks * own
    u, sigma, vt = np.linalg.svd(tau.sum(axis=0), full_matrices=False)
    lefts, rights, values = [], [], []
    for one in tau:
        rest = one - u[:, :common] @ u[:, :common].T @ one
        left, s, right = np.linalg.svd(rest, full_matrices=False)
        lefts.append(left[:, :own]), values.append(s[:own]), rights.append(right[:own])
    left = np.concatenate([*lefts, u[:, :common]], axis=1)
    right = np.concatenate([*rights, vt[:common]])
    mean = np.concatenate([*values, sigma[:common]]).mean()
    return mean * orthogonal(left) @ orthogonal(right)


@pytest.mark.parametrize("shape", [(3, 20, 13), (3, 13, 20), (2, 16, 16)])
def test_iso_c_is_its_definition(shape, float64):
    tau = RNG.normal(size=shape)
    found = iso_c({"w": jnp.asarray(tau)})["w"]
    np.testing.assert_allclose(found, iso_c_by_definition(tau), atol=1e-12)


@pytest.mark.parametrize("shape", [(3, 20, 13), (3, 13, 20), (2, 16, 16)])
@pytest.mark.parametrize("fraction", [0.01, 0.5, 0.8])
def test_iso_cts_is_its_definition(shape, fraction, float64):
    tau = RNG.normal(size=shape)
    found = iso_cts({"w": jnp.asarray(tau)}, common_fraction=fraction)["w"]
    np.testing.assert_allclose(found, iso_cts_by_definition(tau, fraction), atol=1e-12)


@pytest.mark.parametrize("shape", [(4, 150, 230), (4, 230, 150)])
def test_large_matrices_in_float32_agree_with_the_definition(shape):
    tau = RNG.normal(size=shape).astype(np.float32)
    for method, expected in (
        (iso_c, iso_c_by_definition(tau.astype(np.float64))),
        (iso_cts, iso_cts_by_definition(tau.astype(np.float64), 0.8)),
    ):
        found = method({"w": jnp.asarray(tau)})["w"]
        assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("tasks", "sizes"),
    [
        (8, {768: (616, 19), 1024: (816, 26), 512: (408, 13), 50: (42, 1)}),
        (14, {768: (614, 11), 1024: (814, 15), 512: (414, 7), 50: (36, 1)}),
        (20, {768: (608, 8), 1024: (824, 10), 512: (412, 5), 50: (50, 0)}),
    ],
)
def test_the_rank_is_shared_out_as_published(tasks, sizes):
    for rank, expected in sizes.items():
        assert split_rank(rank, tasks, 0.8) == expected


def test_more_than_the_rank_is_never_shared_out():
    assert split_rank(3, 2, 0.1) == (1, 1)  # (3 − 0) / 2 rounds to 2, and 2 · 2 > 3
    assert split_rank(5, 2, 0.01) == (1, 2)  # half to even


@both
def test_all_directions_weigh_the_same(method, float64):
    sigma = np.linalg.svd(method({"w": jnp.asarray(RNG.normal(size=(3, 20, 13)))})["w"])[1]
    np.testing.assert_allclose(sigma, sigma[0], rtol=1e-12)


def test_iso_c_keeps_the_nuclear_norm_of_the_sum(float64):
    tau = RNG.normal(size=(3, 20, 13))
    found = np.linalg.norm(iso_c({"w": jnp.asarray(tau)})["w"], "nuc")
    np.testing.assert_allclose(found, np.linalg.norm(tau.sum(axis=0), "nuc"))


def test_only_iso_c_is_blind_to_transposition(float64):
    tau = jnp.asarray(RNG.normal(size=(3, 20, 13)))
    lying = jnp.swapaxes(tau, 1, 2)
    np.testing.assert_allclose(iso_c({"w": lying})["w"].T, iso_c({"w": tau})["w"], atol=1e-12)
    assert np.abs(iso_cts({"w": lying})["w"].T - iso_cts({"w": tau})["w"]).max() > 0.1


@both
def test_a_kernel_in_by_out_gives_the_transposed_result(method):
    tau = jnp.asarray(RNG.normal(size=(3, 20, 13)), jnp.float32)
    lying = method({"w": jnp.swapaxes(tau, 1, 2)}, leaves={"w": Leaf("in_out")})["w"]
    np.testing.assert_array_equal(lying.T, method({"w": tau})["w"])


def test_iso_cts_is_iso_c_without_room_for_tasks_and_for_one_task(float64):
    tau = {"w": jnp.asarray(RNG.normal(size=(3, 20, 13)))}
    assert_trees_close(iso_cts(tau, common_fraction=1.0), iso_c(tau), atol=1e-13)
    alone = {"w": tau["w"][:1]}
    assert_trees_close(iso_cts(alone), iso_c(alone), atol=1e-13)
    assert not np.allclose(iso_c(alone)["w"], tau["w"][0])


@both
def test_other_leaves_are_averaged_and_matrices_summed(method):
    one = jnp.asarray(np.linalg.qr(RNG.normal(size=(6, 6)))[0], jnp.float32)
    tau = {"w": jnp.stack([one, one]), "b": jnp.array([[1.0, 2.0], [3.0, 6.0]])}
    options = {} if method is iso_c else {"common_fraction": 1.0}
    expected = {"w": 2 * one, "b": jnp.array([2.0, 4.0])}
    assert_trees_close(method(tau, **options), expected, atol=1e-5)


@both
def test_the_order_of_tasks_does_not_matter(method):
    tau = jnp.asarray(RNG.normal(size=(3, 20, 13)), jnp.float32)
    found = method({"w": tau[jnp.array([2, 0, 1])]})
    assert_trees_close(found, method({"w": tau}), atol=1e-4)


@both
def test_jit_changes_nothing(method):
    tau = {"w": jnp.asarray(RNG.normal(size=(3, 20, 13)), jnp.float32), "b": jnp.ones((3, 2))}
    assert_trees_close(jax.jit(method)(tau), method(tau), atol=1e-4)


@both
def test_fusing_split_leaves_equals_the_fused_leaf(method):
    tau = jnp.asarray(RNG.normal(size=(3, 10, 30)), jnp.float32)
    facts = {name: Leaf("in_out", group="a", part=part) for part, name in enumerate("qkv")}
    parts = dict(zip("qkv", jnp.split(tau, 3, axis=2), strict=True))
    found = method(parts, leaves=facts, fuse_qkv=True)
    fused = method({"w": tau}, leaves={"w": Leaf("in_out")})["w"]
    np.testing.assert_array_equal(np.concatenate([found[n] for n in "qkv"], axis=1), fused)
    assert not np.allclose(method(parts, leaves=facts)["q"], found["q"], atol=1e-2)
    alone = method({"q": parts["q"]}, leaves=facts)
    assert_trees_equal(alone, {"q": method(parts, leaves=facts)["q"]})


@both
def test_a_sum_of_low_rank_gives_a_warning_outside_jit(method):
    low = RNG.normal(size=(2, 12, 2)) @ RNG.normal(size=(2, 2, 12))
    tau = {"a": {"w": jnp.asarray(low, jnp.float32)}, "z": jnp.zeros((2, 3, 3))}
    with pytest.warns(RuntimeWarning, match=rf"{method.__name__}: 1 matrix .* \(first a/w\)"):
        merged = method(tau)
    assert not merged["z"].any()
    assert np.isfinite(jax.jit(method)(tau)["a"]["w"]).all()


@pytest.mark.parametrize("fraction", [0.0, 1.1, float("nan")])
def test_a_fraction_outside_its_range_is_refused(fraction):
    with pytest.raises(BadInput, match=r"iso_cts: common_fraction must lie in \(0, 1\], got"):
        iso_cts({"w": jnp.ones((2, 2, 2))}, common_fraction=fraction)
