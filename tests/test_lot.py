"""LOT: the least-squares task vector of each layer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from trees_close import assert_trees_close, assert_trees_equal

from symerge_jax import trees
from symerge_jax.errors import BadInput
from symerge_jax.leaf_facts import tower_leaves
from symerge_jax.merge.leaves import Leaf
from symerge_jax.merge.lot import lot
from symerge_jax.models.clip import VisionTower, initial_params
from symerge_jax.models.clip_config import VisionConfig
from symerge_jax.second_moments import Moment, gram_matrices

RNG = np.random.default_rng(0)
KERNEL = {"w": Leaf("in_out")}


def moments_of(xs):
    """Stacked moments of inputs x [rows, in] per task."""
    means = np.stack([x.T @ x / len(x) for x in xs])
    rows = np.array([len(x) for x in xs])
    return {"w": Moment(jnp.asarray(means, jnp.float32), jnp.asarray(rows, jnp.float32))}


def objective(xs, taus, t):
    return sum(np.square(x @ (t - tau)).sum() for x, tau in zip(xs, taus, strict=True))


@pytest.fixture
def layer():
    """Inputs of unequal number and size, and task vectors [in, out]."""
    xs = [RNG.normal(size=(n, 6)) * (1 + k) for k, n in enumerate((9, 30, 14))]
    return xs, RNG.normal(size=(3, 6, 4)).astype(np.float32)


def test_it_solves_the_normal_equations(layer):
    xs, tau = layer
    found = lot({"w": jnp.asarray(tau)}, moments=moments_of(xs), leaves=KERNEL)["w"]
    stacked = np.concatenate(xs)
    targets = np.concatenate([x @ one for x, one in zip(xs, tau, strict=True)])
    expected = np.linalg.lstsq(stacked, targets, rcond=None)[0]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    residual = stacked.T @ (stacked @ found - targets)
    np.testing.assert_allclose(residual, 0, atol=1e-4 * np.abs(stacked.T @ targets).max())


def test_rows_may_weigh_the_same_for_every_task(layer):
    xs, tau = layer
    options = {"moments": moments_of(xs), "leaves": KERNEL, "normalise_rows": True}
    found = lot({"w": jnp.asarray(tau)}, **options)["w"]
    same = [x / np.sqrt(len(x)) for x in xs]
    stacked = np.concatenate(same)
    targets = np.concatenate([x @ one for x, one in zip(same, tau, strict=True)])
    np.testing.assert_allclose(found, np.linalg.lstsq(stacked, targets, rcond=None)[0], atol=1e-5)


def test_no_other_task_vector_comes_closer(layer):
    xs, tau = layer
    found = lot({"w": jnp.asarray(tau)}, moments=moments_of(xs), leaves=KERNEL)["w"]
    best = objective(xs, tau, found)
    assert best < objective(xs, tau, tau.mean(axis=0))
    for _ in range(5):
        assert best < objective(xs, tau, found + 0.01 * RNG.normal(size=found.shape))


def test_inputs_in_separate_subspaces_are_all_served():
    xs = [np.zeros((10, 9)) for _ in range(3)]
    for k, x in enumerate(xs):
        x[:, 3 * k : 3 * k + 2] = RNG.normal(size=(10, 2))
    tau = RNG.normal(size=(3, 9, 4)).astype(np.float32)
    found = lot({"w": jnp.asarray(tau)}, moments=moments_of(xs), leaves=KERNEL)["w"]
    for x, one in zip(xs, tau, strict=True):
        np.testing.assert_allclose(x @ found, x @ one, atol=1e-5)
    np.testing.assert_allclose(found[2::3], 0, atol=1e-7)  # what no input has stays


def test_fewer_rows_than_features_leave_the_rest_alone():
    """Rounding of the Gram matrices must not pass for small eigenvalues."""
    xs = [(RNG.normal(size=(20, 120)) * 10).astype(np.float32) for _ in range(2)]
    tau = RNG.normal(size=(1, 120, 5)).astype(np.float32).repeat(2, axis=0)
    found = lot({"w": jnp.asarray(tau)}, moments=moments_of(xs), leaves=KERNEL)["w"]
    stacked = np.concatenate(xs).astype(np.float64)
    expected = np.linalg.pinv(stacked) @ stacked @ tau[0]
    np.testing.assert_allclose(found, expected, atol=2e-4)


def test_equal_task_vectors_and_one_task_come_back(layer):
    xs, tau = layer
    equal = {"w": jnp.asarray(np.repeat(tau[:1], 3, axis=0))}
    assert_trees_close(
        lot(equal, moments=moments_of(xs), leaves=KERNEL), {"w": jnp.asarray(tau[0])}, atol=1e-5
    )
    alone = lot({"w": jnp.asarray(tau[:1])}, moments=moments_of(xs[:1]), leaves=KERNEL)
    assert_trees_close(alone, {"w": jnp.asarray(tau[0])}, atol=1e-5)


def test_orientations_give_the_transposed_result(layer):
    xs, tau = layer
    kernel = lot({"w": jnp.asarray(tau)}, moments=moments_of(xs), leaves=KERNEL)["w"]
    weight = lot({"w": jnp.asarray(tau.transpose(0, 2, 1))}, moments=moments_of(xs))["w"]
    np.testing.assert_allclose(weight.T, kernel, atol=1e-6)


def test_convolutions_are_products_with_patches():
    tau = jnp.asarray(RNG.normal(size=(2, 2, 2, 3, 4)), jnp.float32)  # HWIO
    moments = moments_of([RNG.normal(size=(40, 12)), RNG.normal(size=(40, 12))])
    found = lot({"w": tau}, moments=moments, leaves={"w": Leaf("conv_hwio")})["w"]
    flat = tau.transpose(0, 4, 3, 1, 2).reshape(2, 4, 12)
    expected = lot({"w": flat}, moments=moments)["w"]
    np.testing.assert_allclose(found.transpose(3, 2, 0, 1).reshape(4, 12), expected, atol=1e-6)
    torch_layout = {"w": flat.reshape(2, 4, 3, 2, 2)}
    same = lot(torch_layout, moments=moments, leaves={"w": Leaf("conv_oihw")})["w"]
    np.testing.assert_allclose(same.reshape(4, 12), expected, atol=1e-6)


def test_norm_scales_by_hand():
    tau = {"scale": jnp.array([[1.0, 2.0, 3.0], [5.0, 6.0, 7.0]])}
    second = jnp.array([[1.0, 2.0, 0.0], [3.0, 0.0, 0.0]])
    moments = {"scale": Moment(second, jnp.array([2.0, 1.0]))}
    # sums 2·1 and 1·3; 2·2 and 0; none: the mean
    expected = {"scale": jnp.array([(2 + 15) / 5, 2.0, 5.0])}
    assert_trees_close(lot(tau, moments=moments), expected)


def test_all_else_is_averaged_and_scalars_stay():
    tau = {"bias": jnp.array([[1.0, 2.0], [3.0, 4.0]]), "logit_scale": jnp.array([1.0, 2.0])}
    expected = {"bias": jnp.array([2.0, 3.0]), "logit_scale": jnp.array(0.0)}
    assert_trees_equal(lot(tau, moments={}), expected)


CONFIG = VisionConfig(
    image_size=8, patch_size=4, width=8, depth=2, heads=2, projection=6, fused_qkv=False
)


@pytest.fixture(scope="module")
def world():
    """A tiny tower, three experts near it and what enters their layers."""
    start = initial_params(CONFIG, jax.random.key(0))
    rng = np.random.default_rng(3)
    tau = jax.tree.map(
        lambda p: jnp.asarray(0.1 * rng.normal(size=(3, *p.shape)), jnp.float32), start
    )

    def apply(params, images):
        return VisionTower(CONFIG, every_token=True).apply({"params": params}, images)

    moments = []
    for k in range(3):
        expert = jax.tree.map(lambda p, t, k=k: p + t[k], start, tau)
        images = jnp.asarray(rng.normal(size=(6, 8, 8, 3)) * (1 + k), jnp.float32)
        patches = ["patch_embedding/kernel"]
        moments.append(gram_matrices(apply, expert, [images], patches=patches))
    return tau, trees.stack(moments), tower_leaves(start)


def quadratic(gram, rows, tau, t):
    """Σ_k ‖X_k (T − τ_k)‖² from Gram matrices, leaves [in, out]."""
    away = np.asarray(t)[None] - np.asarray(tau)
    return np.einsum("k,kio,kij,kjo->", np.asarray(rows), away, np.asarray(gram), away)


def test_every_layer_of_a_tower_comes_closer_than_the_mean(world):
    tau, moments, facts = world
    merged = lot(tau, moments=moments, leaves=facts)
    for path in (("blocks_0", "attention", "key"), ("blocks_1", "mlp", "proj"), ("projection",)):
        at = [tau, moments, merged]
        for name in (*path, "kernel"):
            at = [branch[name] for branch in at]
        own, moment, found = at
        ours = quadratic(moment.mean, moment.rows, own, found)
        assert ours < 0.999 * quadratic(moment.mean, moment.rows, own, own.mean(axis=0))
    np.testing.assert_allclose(
        merged["class_embedding"], tau["class_embedding"].mean(axis=0), atol=1e-6
    )


def test_a_leaf_alone_gives_the_same_bits_and_jit_changes_little(world):
    tau, moments, facts = world
    whole = lot(tau, moments=moments, leaves=facts)
    for name in ("ln_post", "projection", "patch_embedding"):
        alone = lot({name: tau[name]}, moments={name: moments[name]}, leaves={name: facts[name]})
        assert_trees_equal(alone[name], whole[name])
    jitted = jax.jit(lambda tau, moments: lot(tau, moments=moments, leaves=facts))
    assert_trees_close(jitted(tau, moments), whole, atol=1e-5)


def test_the_order_of_tasks_does_not_matter(world):
    order = jnp.array([2, 0, 1])
    tau, moments, facts = world
    shuffled = jax.tree.map(lambda x: x[order], (tau, moments))
    found = lot(shuffled[0], moments=shuffled[1], leaves=facts)
    assert_trees_close(found, lot(tau, moments=moments, leaves=facts), atol=1e-5)


def refusal(tau, moments, **options):
    with pytest.raises(BadInput) as caught:
        lot(tau, moments=moments, **options)
    return str(caught.value)


def test_bad_statistics_are_refused_in_one_sentence(layer):
    xs, tau = layer
    tau = {"w": jnp.asarray(tau)}
    good = moments_of(xs)["w"]
    assert "needs statistics of each expert" in refusal(tau, None)
    assert "of another model, they have the leaf v" in refusal(tau, {"v": good})
    bad = Moment(good.mean.at[0, 0, 0].set(jnp.inf), good.rows)
    assert "lot: the statistics of w are not finite" in refusal(tau, {"w": bad})
    two = Moment(good.mean[:2], good.rows[:2])
    assert "does not belong to task vectors (3, 6, 4)" in refusal(tau, {"w": two})
    # without facts the kernel [in, out] is read as [out, in]
    assert "has shape (6, 6), expected (4, 4)" in refusal(tau, {"w": good})
    assert "do not say how the matrix lies" in refusal(tau, {"w": good}, leaves={"w": Leaf()})
    assert "no Gram matrices" in refusal(tau, {"w": good.mean})
    assert "rcond must lie in [0, 1)" in refusal(tau, {"w": good}, rcond=1.0)
