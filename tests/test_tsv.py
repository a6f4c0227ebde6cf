"""TSV-Merge and TSV-Compress against their definition in NumPy, and their laws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from trees_close import assert_trees_close, assert_trees_equal

from symerge_jax import trees
from symerge_jax.errors import BadInput
from symerge_jax.merge.leaves import Leaf
from symerge_jax.merge.tsv import compress_tsv_c, rank_budget, tsv_c, tsv_m

RNG = np.random.default_rng(0)
QKV = {name: Leaf("in_out", group="a", part=part) for part, name in enumerate("qkv")}


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


def by_definition(tau):
    """TSV-Merge of [task, m, n] in float64, by the Gram matrices' inverse roots."""
    tasks, m, n = tau.shape
    s = min(m, n) // tasks
    u, sigma, v = [], [], []
    for one in tau:
        left, values, right = np.linalg.svd(one)
        u.append(left[:, :s]), sigma.append(values[:s]), v.append(right[:s].T)
    u, v = np.concatenate(u, axis=1), np.concatenate(v, axis=1)

    def orthogonal(x):
        values, vectors = np.linalg.eigh(x.T @ x)
        return x @ vectors @ np.diag(values**-0.5) @ vectors.T

    return orthogonal(u) @ np.diag(np.concatenate(sigma)) @ orthogonal(v).T


@pytest.mark.parametrize("shape", [(3, 20, 13), (3, 13, 20), (4, 16, 16), (2, 5, 9)])
def test_the_merge_is_its_definition(shape, float64):
    tau = RNG.normal(size=shape)
    found = tsv_m({"w": jnp.asarray(tau)})["w"]
    np.testing.assert_allclose(found, by_definition(tau), atol=1e-12)


def test_large_matrices_in_float32_agree_with_the_definition():
    tau = RNG.normal(size=(6, 200, 150))
    tau += 8 * RNG.normal(size=(6, 200, 4)) @ RNG.normal(size=(6, 4, 150))
    expected = by_definition(tau.astype(np.float32).astype(np.float64))
    found = tsv_m({"w": jnp.asarray(tau, jnp.float32)})["w"]
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


def test_the_spectrum_is_that_of_all_kept_triplets(float64):
    tau = RNG.normal(size=(3, 20, 13))
    kept = [np.linalg.svd(one, compute_uv=False)[:4] for one in tau]
    found = np.linalg.svd(tsv_m({"w": jnp.asarray(tau)})["w"], compute_uv=False)
    expected = np.append(np.sort(np.concatenate(kept))[::-1], 0)
    np.testing.assert_allclose(found, expected, atol=1e-13)


def test_transposing_task_vectors_transposes_the_merge(float64):
    tau = jnp.asarray(RNG.normal(size=(3, 20, 13)))
    found = tsv_m({"w": tau})["w"]
    np.testing.assert_allclose(tsv_m({"w": jnp.swapaxes(tau, 1, 2)})["w"].T, found, atol=1e-13)
    lying = tsv_m({"w": jnp.swapaxes(tau, 1, 2)}, leaves={"w": Leaf("in_out")})["w"]
    np.testing.assert_allclose(lying.T, found, atol=1e-13)


def test_tasks_in_separate_blocks_add_up(float64):
    tau = np.zeros((2, 8, 8))
    tau[0, :4, :4], tau[1, 4:, 4:] = RNG.normal(size=(2, 4, 4))
    found = tsv_m({"w": jnp.asarray(tau)})["w"]
    np.testing.assert_allclose(found, tau.sum(axis=0), atol=1e-13)


def test_one_task_alone_is_that_task():
    tau = {"w": jnp.asarray(RNG.normal(size=(1, 6, 4)), jnp.float32), "b": jnp.ones((1, 3))}
    for method in (tsv_m, lambda tau: jax.tree.map(lambda x: x[0], tsv_c(tau))):
        assert_trees_close(method(tau), {"w": tau["w"][0], "b": tau["b"][0]}, atol=1e-5)


@pytest.mark.parametrize(
    ("tasks", "budgets"), [(8, (6, 64, 96, 128)), (14, (3, 36, 54, 73)), (20, (2, 25, 38, 51))]
)
def test_rank_budgets_of_the_usual_sizes(tasks, budgets):
    sizes = (50, 512, 768, 1024)
    assert tuple(rank_budget(tasks, size, 4 * size) for size in sizes) == budgets
    assert rank_budget(49, 49, 49) == 1  # 49 · (1 / 49) is less than 1 in floating point


def test_a_matrix_with_less_than_one_triplet_per_task_is_averaged():
    tau = jnp.asarray(RNG.normal(size=(3, 1, 7)), jnp.float32)
    np.testing.assert_allclose(tsv_m({"w": tau})["w"], tau.mean(axis=0), rtol=1e-5)


def test_a_leaf_no_task_changed_stays_zero():
    assert not tsv_m({"w": jnp.zeros((3, 8, 8))})["w"].any()


def test_a_task_that_lacks_directions_leaves_those_of_others_alone(float64):
    tau = RNG.normal(size=(2, 8, 8))
    tau[1] = 0
    best = np.linalg.svd(tau[0])
    expected = best[0][:, :4] * best[1][:4] @ best[2][:4]
    np.testing.assert_allclose(tsv_m({"w": jnp.asarray(tau)})["w"], expected, atol=1e-12)


def test_equal_tasks_give_a_warning_outside_jit():
    tau = {"w": jnp.tile(jnp.asarray(RNG.normal(size=(1, 8, 8)), jnp.float32), (2, 1, 1))}
    with pytest.warns(RuntimeWarning, match=r"tsv_m: 1 matrix lacks full rank \(first w\)"):
        tsv_m(tau)
    assert np.isfinite(jax.jit(tsv_m)(tau)["w"]).all()


def test_jit_changes_nothing():
    tau = {"w": jnp.asarray(RNG.normal(size=(3, 9, 7)), jnp.float32), "b": jnp.ones((3, 2))}
    for method in (tsv_m, tsv_c):
        assert_trees_close(jax.jit(method)(tau), method(tau), atol=1e-5)


def split(tau):
    """[task, in, 3 d] → q, k, v."""
    return dict(zip("qkv", jnp.split(tau, 3, axis=2), strict=True))


def test_fusing_split_leaves_equals_the_fused_leaf():
    tau = jnp.asarray(RNG.normal(size=(3, 8, 24)), jnp.float32)
    for method, axis in ((tsv_m, 1), (tsv_c, 2)):
        fused = method({"w": tau}, leaves={"w": Leaf("in_out")})["w"]
        found = method(split(tau), leaves=QKV, fuse_qkv=True)
        np.testing.assert_array_equal(np.concatenate([found[n] for n in "qkv"], axis=axis), fused)
        apart = method(split(tau), leaves=QKV)
        assert not np.allclose(apart["q"], found["q"], atol=1e-2)


def test_a_unit_alone_gives_the_same_bits():
    rest = {"w": jnp.asarray(RNG.normal(size=(3, 8, 8)), jnp.float32), "b": jnp.ones((3, 2))}
    tau = rest | split(jnp.asarray(RNG.normal(size=(3, 8, 24)), jnp.float32))
    facts = QKV | {"w": Leaf("out_in"), "b": Leaf()}
    for method in (tsv_m, tsv_c):
        whole = method(tau, leaves=facts, fuse_qkv=True)
        for names in ("qkv", "w", "b"):
            alone = method({name: tau[name] for name in names}, leaves=facts, fuse_qkv=True)
            assert_trees_equal(alone, {name: whole[name] for name in names})


def test_compression_leaves_the_discarded_singular_values(float64):
    tau = RNG.normal(size=(3, 20, 13))
    found = np.asarray(tsv_c({"w": jnp.asarray(tau)})["w"])
    for ours, theirs in zip(found, tau, strict=True):
        sigma = np.linalg.svd(theirs, compute_uv=False)
        np.testing.assert_allclose(np.square(ours - theirs).sum(), np.square(sigma[4:]).sum())
        np.testing.assert_allclose(np.linalg.svd(ours, compute_uv=False)[:4], sigma[:4])


def test_compressed_tasks_know_their_size_and_give_each_task():
    tau = {
        "w": jnp.asarray(RNG.normal(size=(3, 20, 13)), jnp.float32),
        "projection": jnp.asarray(RNG.normal(size=(3, 6, 9)), jnp.float32),
        "b": jnp.asarray(RNG.normal(size=(3, 5)), jnp.bfloat16),
        "ids": None,
    }
    facts = {"w": Leaf("out_in"), "projection": Leaf(), "b": Leaf()}
    stored = compress_tsv_c(tau, leaves=facts)
    # four triplets per task of w, two of the projection, the bias whole in two bytes each
    assert stored.nbytes == 4 * 3 * (4 * (20 + 13 + 1) + 2 * (6 + 9 + 1)) + 2 * 3 * 5
    each = tsv_c(tau, leaves=facts)
    for k in range(3):
        assert_trees_close(stored.materialise(k), jax.tree.map(lambda x, k=k: x[k], each))
    assert trees.paths(stored.materialise(0)) == trees.paths(tau)
    traced = jax.jit(lambda stored, k: stored.materialise(k))(stored, 1)
    assert_trees_close(traced, stored.materialise(1))


def test_half_of_a_group_is_refused():
    tau = split(jnp.ones((2, 4, 12)))
    del tau["k"]
    for method in (tsv_m, tsv_c):
        with pytest.raises(BadInput, match="a has only q, v of its query, key and value"):
            method(tau, leaves=QKV, fuse_qkv=True)
