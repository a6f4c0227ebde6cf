"""Gram matrices and Fisher diagonals against their definitions, and their files."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import linen as nn
from flax.traverse_util import flatten_dict
from trees_close import assert_trees_close, assert_trees_equal

from symerge_jax import trees
from symerge_jax.errors import BadInput
from symerge_jax.models.clip import VisionTower, initial_params
from symerge_jax.models.clip_config import VisionConfig
from symerge_jax.second_moments import (
    Moment,
    fisher_diagonal,
    gram_matrices,
    load_moments,
    save_moments,
)

RNG = np.random.default_rng(0)


def drawn(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


class Small(nn.Module):
    """Norm → layer → the same layer again on its output."""

    @nn.compact
    def __call__(self, x):
        x = nn.LayerNorm(epsilon=0.1, name="norm")(x)
        layer = nn.Dense(3, name="layer")
        return layer(jnp.tanh(layer(x)))


def small(params, x):
    return Small().apply({"params": params}, x)


@pytest.fixture
def params():
    norm = {"scale": drawn(3), "bias": drawn(3)}
    return {"norm": norm, "layer": {"kernel": drawn(3, 3), "bias": drawn(3)}}


@pytest.fixture(autouse=True)
def relaxed_ranks():
    """Flax's own layers add biases of one axis."""
    with jax.numpy_rank_promotion("allow"):
        yield


def test_gram_matrices_by_hand(params):
    x = np.asarray(RNG.normal(size=(4, 5, 3)), np.float32)
    plain = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 0.1)
    first = plain * params["norm"]["scale"] + params["norm"]["bias"]
    second = np.tanh(first @ params["layer"]["kernel"] + params["layer"]["bias"])
    rows = np.concatenate([first, second]).reshape(-1, 3)
    found = gram_matrices(small, params, [x[:3], x[3:]])
    assert found["norm"]["bias"] is None
    assert found["layer"]["bias"] is None
    expected = Moment(rows.T @ rows / 40, np.float32(40))
    assert_trees_close(found["layer"]["kernel"], expected, rtol=1e-5)
    expected = Moment(np.square(plain).mean(axis=(0, 1)), np.float32(20))
    assert_trees_close(found["norm"]["scale"], expected, rtol=1e-4)


def test_batches_of_any_size_give_the_same_sums(params):
    x = drawn(6, 3)
    whole = gram_matrices(small, params, [x])
    assert_trees_close(gram_matrices(small, params, iter([x[:1], x[1:5], x[5:]])), whole)


CONFIG = VisionConfig(
    image_size=8, patch_size=4, width=8, depth=2, heads=2, projection=6, fused_qkv=False
)


@pytest.fixture(scope="module")
def tower():
    params = initial_params(CONFIG, jax.random.key(0))
    params = jax.tree.map(lambda p: p + 0.1 * drawn(*p.shape), params)
    images = drawn(5, 8, 8, 3)

    def apply(params, images):
        return VisionTower(CONFIG, every_token=True).apply({"params": params}, images)

    return apply, params, images


def test_every_linear_layer_and_norm_of_a_tower_is_seen(tower):
    apply, params, images = tower
    patches = ("patch_embedding/kernel",)
    found = flatten_dict(gram_matrices(apply, params, [images], patches=patches), sep="/")
    leaves = flatten_dict(params, sep="/")
    assert set(found) == set(leaves)
    for path, moment in found.items():
        if path.endswith("scale"):
            assert moment.mean.shape == leaves[path].shape
        elif path.endswith("kernel"):
            size = leaves[path].size // leaves[path].shape[-1]
            assert moment.mean.shape == (size, size)
        else:
            assert moment is None
    assert float(found["blocks_1/attention/query/kernel"].rows) == 5 * CONFIG.tokens
    assert float(found["projection/kernel"].rows) == 5
    assert float(found["patch_embedding/kernel"].rows) == 5 * CONFIG.grid**2


def test_patches_run_over_channel_row_and_column(tower):
    apply, params, images = tower
    found = gram_matrices(apply, params, [images], patches=["patch_embedding/kernel"])
    rows = [
        np.asarray(image[4 * i : 4 * i + 4, 4 * j : 4 * j + 4]).transpose(2, 0, 1).ravel()
        for image in images
        for i in range(2)
        for j in range(2)
    ]
    expected = np.stack(rows).T @ np.stack(rows) / len(rows)
    np.testing.assert_allclose(found["patch_embedding"]["kernel"].mean, expected, atol=1e-5)


def test_parameters_that_the_network_does_not_take_are_refused(params):
    def apply(params, x):
        return small(params["inner"], x)

    with pytest.raises(BadInput, match=r"has its weights at .*, which the parameters lack"):
        gram_matrices(apply, {"inner": params}, [drawn(2, 3)])


def test_statistics_need_finite_inputs_and_at_least_one_batch(params):
    with pytest.raises(BadInput, match="at least one batch of inputs, got none"):
        gram_matrices(small, params, [])
    with pytest.raises(BadInput, match="at least one batch of inputs, got none"):
        fisher_diagonal(small, params, [], lambda x: x)
    bad = drawn(2, 3).at[0, 0].set(jnp.nan)
    with pytest.raises(BadInput, match="the inputs of layer/kernel are not finite"):
        gram_matrices(small, params, [bad])
    with pytest.raises(BadInput, match="the gradients of layer/bias are not finite"):
        fisher_diagonal(small, params, [bad], lambda x: x)


def linear(params, x):
    return x @ params["w"]


def linear_fisher(w, x):
    """E_x x_i² p_j (1 − p_j), worked out for the softmax of x W."""
    p = np.exp(x @ w)
    p /= p.sum(axis=1, keepdims=True)
    return np.einsum("ni,nj->ij", x**2, p * (1 - p)) / len(x)


@pytest.mark.parametrize("at_once", [1, 3, 100])
def test_the_fisher_diagonal_of_a_linear_softmax(at_once):
    w, x = drawn(4, 3), drawn(8, 4)
    batches = [x[:5], x[5:]]
    params = {"w": w, "step": jnp.array(3)}
    found = fisher_diagonal(linear, params, batches, lambda y: y, at_once=at_once)
    assert found["step"] is None
    np.testing.assert_allclose(found["w"], linear_fisher(w, x), rtol=1e-4)


def test_the_squared_gradient_of_a_batch_is_something_else():
    w, x = drawn(4, 3), jnp.tile(drawn(1, 4), (4, 1))
    found = fisher_diagonal(linear, {"w": w}, [x], lambda y: y)
    one = fisher_diagonal(linear, {"w": w}, [x[:1]], lambda y: y)
    assert_trees_close(found, one, rtol=1e-5)  # not four times as large


def test_drawn_labels_are_right_on_average_and_repeatable():
    w, x = drawn(3, 3), jnp.tile(drawn(2, 3), (2000, 1))
    options = {"key": jax.random.key(1), "at_once": 4000}
    found = fisher_diagonal(linear, {"w": w}, [x], lambda y: y, **options)
    np.testing.assert_allclose(found["w"], linear_fisher(w, x), rtol=0.2, atol=0.02)
    assert_trees_equal(fisher_diagonal(linear, {"w": w}, [x], lambda y: y, **options), found)
    halves = [x[:1500], x[1500:]]
    again = fisher_diagonal(linear, {"w": w}, halves, lambda y: y, **options)
    assert_trees_close(again, found, rtol=1e-4)


def test_the_head_takes_part_but_has_no_diagonal():
    w, x, head = drawn(4, 5), drawn(6, 4), drawn(5, 3)
    found = fisher_diagonal(linear, {"w": w}, [x], lambda y: y @ head)
    p = np.exp(x @ w @ head)
    p /= p.sum(axis=1, keepdims=True)
    expected = np.zeros((4, 5))
    for row, answer in zip(np.asarray(x), p, strict=True):
        for c, weight in enumerate(answer):
            slope = np.asarray(head) @ (np.eye(3)[c] - answer)
            expected += weight * np.outer(row, slope) ** 2 / 6
    np.testing.assert_allclose(found["w"], expected, rtol=1e-4)


def test_files_give_back_what_was_saved(tmp_path, params):
    x = drawn(4, 3)
    for found in (
        gram_matrices(small, params, [x]),
        fisher_diagonal(small, params, [x], lambda y: y),
    ):
        path = save_moments(tmp_path / "expert.safetensors", found, params)
        assert_trees_equal(load_moments(path, params), found)
    stacked = trees.stack([gram_matrices(small, params, [x])] * 2)
    assert stacked["layer"]["kernel"].mean.shape == (2, 3, 3)
    assert stacked["layer"]["kernel"].rows.shape == (2,)


def test_statistics_of_another_model_are_refused(tmp_path, params):
    path = tmp_path / "expert.safetensors"
    save_moments(path, gram_matrices(small, params, [drawn(4, 3)]), params)
    other = jax.tree.map(lambda p: p + 1e-6, params)
    with pytest.raises(BadInput, match=r"expert.safetensors: holds the statistics of another mod"):
        load_moments(path, other)


def test_files_of_other_kinds_are_refused(tmp_path, params):
    path = tmp_path / "x.safetensors"
    with pytest.raises(BadInput, match="x.safetensors: cannot be read as statistics"):
        load_moments(path, params)
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(BadInput, match="x.safetensors: cannot be read as statistics"):
        load_moments(path, params)
    safetensors.numpy.save_file({"a": np.zeros(2, np.float32)}, path)
    with pytest.raises(BadInput, match="expected statistics in format 1, found another kind"):
        load_moments(path, params)
