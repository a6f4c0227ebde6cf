"""Matrices among the leaves, their singular triplets and polar factors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from trees_close import assert_trees_equal

from symerge_jax.errors import BadInput
from symerge_jax.merge import spectral
from symerge_jax.merge.leaves import Leaf
from symerge_jax.merge.spectral import Unit, canonical, cut, joined, leading, polar, restore, units

RNG = np.random.default_rng(0)
RUN = jax.jit(leading, static_argnums=1)


def drawn(*shape, dtype=np.float32):
    return jnp.asarray(RNG.normal(size=shape), dtype)


def with_spectrum(m, n, sigma):
    r = min(m, n)
    u, v = (np.linalg.qr(RNG.normal(size=(size, r)))[0] for size in (m, n))
    return u @ np.diag(sigma) @ v.T


@pytest.mark.parametrize(
    ("orientation", "shape", "entry"),
    [
        ("out_in", (3, 4), lambda leaf, o, i: leaf[o, i]),
        ("in_out", (4, 3), lambda leaf, o, i: leaf[i, o]),
        # 12 = 3 channels of 2 × 2, the channel slowest
        ("conv_oihw", (3, 3, 2, 2), lambda leaf, o, i: leaf[o, i // 4, i // 2 % 2, i % 2]),
        ("conv_hwio", (2, 2, 3, 3), lambda leaf, o, i: leaf[i // 2 % 2, i % 2, i // 4, o]),
    ],
)
def test_each_orientation_becomes_out_by_in_and_back(orientation, shape, entry):
    leaf = drawn(2, *shape)
    matrices = canonical(leaf, orientation)
    for o, i in [(0, 0), (2, 1), (1, matrices.shape[2] - 1)]:
        np.testing.assert_array_equal(matrices[:, o, i], [entry(one, o, i) for one in leaf])
    np.testing.assert_array_equal(restore(matrices[1], orientation, shape), leaf[1])


@pytest.mark.parametrize("orientation", ["out_in", "in_out"])
def test_parts_join_along_out_and_are_cut_again(orientation):
    parts = tuple(
        drawn(2, *(shape if orientation == "out_in" else shape[::-1]))
        for shape in [(3, 5), (2, 5), (4, 5)]
    )
    whole = joined(parts, orientation)
    assert whole.shape == (2, 9, 5)
    like = tuple(jax.ShapeDtypeStruct(part.shape[1:], part.dtype) for part in parts)
    for piece, part in zip(cut(whole[1], like, orientation), parts, strict=True):
        np.testing.assert_array_equal(piece, part[1])


FACTS = {
    "value": Leaf("in_out", group="a", part=2),
    "query": Leaf("in_out", group="a", part=0),
    "bias": Leaf(),
    "key": Leaf("in_out", group="a", part=1),
    "conv": Leaf("conv_hwio"),
}


def test_units_are_leaves_unless_told_to_fuse():
    assert {unit.paths for unit in units(FACTS)} == {("query",), ("key",), ("value",)}
    fused = units(FACTS, fuse_qkv=True, conv_as_matrix=True)
    assert fused == [Unit(("conv",), "conv_hwio"), Unit(("query", "key", "value"), "in_out")]


def test_a_group_that_is_not_whole_is_refused():
    with pytest.raises(BadInput, match="a has only query, value of its query, key and value"):
        units({path: FACTS[path] for path in ("query", "value")}, fuse_qkv=True)


SPECTRA = {
    "steep": lambda x: np.exp(-6 * x),
    "heavy tail": lambda x: 1 / (1 + 50 * x) + 0.01,
    "flat": lambda x: 1.2 - x,
    "few large": lambda x: np.where(x < 0.02, 1.0 - 5 * x, 0.05 * (1.2 - x)),
    "low rank": lambda x: np.where(x < 0.3, 1.0 - x, 0.0),
    "vanishing": lambda x: np.exp(-30 * x),
}


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("shape", [(160, 160), (300, 140), (130, 200)])
@pytest.mark.parametrize("scale", [1.0, 1e-18, 1e18])
def test_leading_triplets_are_as_close_as_the_svd_to_float64(shape, spectrum, scale):
    a = with_spectrum(*shape, SPECTRA[spectrum](np.arange(min(shape)) / min(shape)))
    a = a.astype(np.float32)
    u, sigma, vt = np.linalg.svd(a.astype(np.float64), full_matrices=False)
    for rank in (3, 30):
        ours = [np.asarray(x, np.float64) for x in RUN(jnp.asarray(a * np.float32(scale)), rank)]
        np.testing.assert_allclose(ours[1] / scale, sigma[:rank], rtol=1e-5, atol=3e-6 * sigma[0])
        best = u[:, :rank] * sigma[:rank] @ vt[:rank]
        # the part of A that is kept: within the gap, as far as float32 can tell
        assert np.abs(ours[0] * ours[1] / scale @ ours[2] - best).max() < 2e-5 * sigma[0]
        for factor in (ours[0].T, ours[2]):
            np.testing.assert_allclose(factor @ factor.T, np.eye(rank), atol=1e-5)


def test_the_gram_matrix_is_left_where_it_cannot_tell():
    trusted = jax.jit(lambda a: spectral._leading_basis(a, 40)[1])
    r = np.arange(160) / 160
    assert trusted(jnp.asarray(with_spectrum(160, 160, 1.2 - r), jnp.float32))
    for sigma in (np.exp(-30 * r), np.zeros(160), np.where(r < 0.1, 1.0, 0.0)):
        assert not trusted(jnp.asarray(with_spectrum(160, 160, sigma), jnp.float32))


def test_polar_is_the_nearest_matrix_with_orthonormal_rows_or_columns():
    for shape in [(6, 4), (4, 6), (5, 5)]:
        a = np.asarray(drawn(*shape), np.float64)
        factor, sigma = polar(jnp.asarray(a, jnp.float32))
        gram = a.T @ a if shape[0] >= shape[1] else a @ a.T
        values, vectors = np.linalg.eigh(gram)
        root = vectors / np.sqrt(values) @ vectors.T
        expected = a @ root if shape[0] >= shape[1] else root @ a
        np.testing.assert_allclose(factor, expected, atol=1e-5)
        np.testing.assert_allclose(sigma, np.sqrt(values[::-1]), rtol=1e-5)


def sums_of_rows(tau):
    return tau.sum(axis=0), jnp.ones((), tau.dtype)


def merged(task_vectors, **options):
    options = {"leaves": None, "fuse_qkv": False, "conv_as_matrix": False} | options
    return spectral.over_matrices(sums_of_rows, task_vectors, **options)


def test_matrices_go_to_the_method_and_the_rest_is_averaged():
    tau = {"w": drawn(2, 3, 4), "b": drawn(2, 3), "conv": drawn(2, 2, 2, 3, 4), "s": drawn(2)}
    result = merged({**tau, "ids": None})
    assert result["ids"] is None
    np.testing.assert_allclose(result["w"], tau["w"].sum(axis=0), rtol=1e-6)
    for name in ("b", "conv", "s"):
        np.testing.assert_allclose(result[name], tau[name].mean(axis=0), rtol=1e-6)


def test_convolutions_are_matrices_where_told():
    tau = {"conv": drawn(2, 2, 2, 3, 4)}
    result = merged(tau, leaves={"conv": Leaf("conv_hwio")}, conv_as_matrix=True)
    np.testing.assert_allclose(result["conv"], tau["conv"].sum(axis=0), rtol=1e-6)


def test_half_precision_is_worked_out_in_float32():
    tau = {"w": jnp.full((3, 2, 2), 1 + 2**-7, jnp.bfloat16), "b": jnp.ones((3, 2), jnp.bfloat16)}
    result = merged(tau)
    assert_trees_equal(
        result, {"w": jnp.full((2, 2), 3.0234375, jnp.bfloat16), "b": jnp.ones(2, jnp.bfloat16)}
    )


def test_float64_runs_inside_a_program_of_float32():
    @jax.jit
    def small(x):
        with spectral.precise() as dtype:
            return ((x.astype(dtype) + 1e-12) - x.astype(dtype)).astype(jnp.float32)

    np.testing.assert_allclose(small(jnp.ones(3)), 1e-12, rtol=1e-3)
