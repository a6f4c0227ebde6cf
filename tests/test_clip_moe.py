"""The image tower with mixtures for MLPs: laws of routing, and agreement with the plain tower."""

import inspect
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from trees_close import assert_trees_close

from symerge_jax import trees
from symerge_jax.adapt.coefficients import interpolate
from symerge_jax.adapt.wemoe import Mixture, mixture
from symerge_jax.checkpoints.clip import split_qkv
from symerge_jax.errors import BadInput
from symerge_jax.models import clip_moe
from symerge_jax.models.clip import (
    PRESETS,
    VisionConfig,
    encode_image,
    initial_params,
    param_shapes,
)
from symerge_jax.models.clip_moe import (
    Router,
    encode_image_moe,
    initial_router,
    mixture_mlp,
    mlp_leaves,
)
from symerge_jax.models.transformer import quick_gelu

TASKS = 3
SMALL = VisionConfig(image_size=8, patch_size=4, width=8, depth=2, heads=2, projection=6)
PLAIN = jax.jit(encode_image(SMALL))
LAMBDA = 0.3
RNG = np.random.default_rng(9)
IMAGES = RNG.normal(size=(4, 8, 8, 3)).astype(np.float32)
TOKENS = RNG.normal(size=(2, 5, 8)).astype(np.float32)

# Compiling is what takes time here: no optimisations, few different programs.
pytestmark = pytest.mark.usefixtures("separate")

every_form = pytest.mark.parametrize("mixing", ["weights", "outputs"])
every_depth = pytest.mark.parametrize("depth", [0, 1, 2])


class World(NamedTuple):
    """The small tower, three task vectors, and what a tower with mixtures takes of them."""

    pretrained: dict
    task_vectors: dict
    parts: Mixture


def made(pretrained, task_vectors):
    parts = mixture(pretrained, task_vectors, mlp_leaves(pretrained), coefficient=LAMBDA)
    return World(pretrained, task_vectors, parts)


@pytest.fixture(scope="module")
def world():
    rng = np.random.default_rng(0)

    def near(leaf, *more):
        return 0.2 * rng.normal(size=(*more, *leaf.shape)).astype(np.float32)

    start = initial_params(SMALL, jax.random.key(0))
    pretrained = jax.tree.map(lambda leaf: np.asarray(leaf) + near(leaf), start)
    return made(pretrained, jax.tree.map(lambda leaf: near(leaf, TASKS), pretrained))


def features(world, router, images=IMAGES, mask=None, config=SMALL, **options):
    encode = jax.jit(encode_image_moe(config, **options))
    return np.asarray(encode(*world.parts, router, images, mask))


def features_by_batch(world, images, mask=(True, True, True, True)):
    return features(world, router(), images, np.array(mask), batch_reduce=True)


def plain_features(world, mlp_gate):
    """Of the plain tower, with these coefficients for the MLPs and λ for all other leaves."""
    coefficients = jax.tree.map(
        lambda mlp: np.asarray(mlp_gate if mlp else [LAMBDA] * TASKS, np.float32),
        mlp_leaves(world.pretrained),
    )
    theta = jax.jit(interpolate)(world.pretrained, world.task_vectors, coefficients)
    return np.asarray(PLAIN(theta, IMAGES))


def router(depth=2):
    """With matrices of size 0.2, so that images differ in their gates."""
    drawn = initial_router(SMALL, TASKS, jax.random.key(0), depth=depth)
    return jax.tree.map(lambda x: 20 * np.asarray(x) if x.ndim == 2 else np.asarray(x), drawn)


def constant_router(gate, depth=2):
    """Says the same of every image."""
    gate = np.asarray(gate, np.float32)
    if depth == 0:
        return {f"blocks_{i}": {"gate": gate} for i in range(SMALL.depth)}
    out = {"kernel": np.zeros((SMALL.width, TASKS), np.float32), "bias": gate}
    return {name: own | {"out": out} for name, own in router(depth).items()}


def close(a, b, tolerance=1e-5):
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("depth", "mixing"), [(0, "weights"), (2, "weights"), (2, "outputs")])
def test_with_a_constant_gate_of_lambda_it_is_task_arithmetic(world, depth, mixing):
    gate = [LAMBDA] * TASKS
    ours = features(world, constant_router(gate, depth), depth=depth, mixing=mixing)
    close(ours, plain_features(world, gate))


@pytest.mark.parametrize(("depth", "tolerance"), [(0, 1e-5), (2, 0.05)])
def test_routers_start_at_or_near_task_arithmetic(world, depth, tolerance):
    start = initial_router(SMALL, TASKS, jax.random.key(0), depth=depth)
    expected = plain_features(world, [LAMBDA] * TASKS)
    assert 0 < abs(features(world, start, depth=depth) - expected).max() < tolerance


@every_form
@pytest.mark.parametrize("k", [0, 2])
def test_a_one_hot_gate_takes_the_mlps_of_one_expert(world, k, mixing):
    one_hot = np.arange(TASKS) == k
    ours = features(world, constant_router(one_hot), mixing=mixing)
    close(ours, plain_features(world, one_hot))


def test_both_forms_agree(world):
    weights, outputs = (features(world, router(), mixing=m) for m in ("weights", "outputs"))
    close(weights, outputs)
    gates = plain_features(world, [LAMBDA] * TASKS)
    assert abs(weights - gates).max() > 0.05, "the gates must matter"


@pytest.mark.parametrize("gates", [1, 2], ids=["one gate", "a gate per image"])
def test_both_forms_of_a_mixture_agree_with_their_gradients(world, gates):
    mlps = [tree["blocks_0"]["mlp"] for tree in world[:2]]
    gate = np.random.default_rng(3).normal(size=(gates, TASKS)).astype(np.float32)

    @partial(jax.jit, static_argnames="mixing")
    def value_and_gradients(gate, x, mlps, mixing):
        def total(gate, x):
            y = mixture_mlp(*mlps, gate, x, activation=quick_gelu, mixing=mixing)
            return jnp.square(y).sum(), y

        return jax.value_and_grad(total, (0, 1), has_aux=True)(gate, x)

    weights, outputs = (
        value_and_gradients(gate, TOKENS, mlps, mixing) for mixing in ("weights", "outputs")
    )
    assert_trees_close(weights, outputs, rtol=1e-4, atol=1e-5)


@every_form
def test_one_image_by_hand(mixing):
    def dense(kernel, bias):
        return {"kernel": np.float32(kernel), "bias": np.float32(bias)}

    phi0 = {"fc": dense([[1.0]], [0.5]), "proj": dense([[2.0]], [0.0])}
    tau = {
        "fc": dense([[[1.0]], [[3.0]]], [[0.0], [1.0]]),
        "proj": dense([[[-1.0]], [[0.0]]], [[1.0], [2.0]]),
    }
    # g = (1, 1/2): fc becomes 3.5 x + 1, proj y + 2; the tokens are 1 and −2
    apply = jax.jit(partial(mixture_mlp, activation=jax.nn.relu, mixing=mixing))
    y = apply(phi0, tau, np.float32([[1.0, 0.5]]), np.float32([[[1.0], [-2.0]]]))
    close(y, [[[6.5], [2.0]]])


def test_the_weights_of_the_middle_gate_are_the_mean_of_the_weights(world):
    phi0, tau = (tree["blocks_0"]["mlp"]["fc"]["kernel"] for tree in world[:2])
    mixed = partial(jax.jit(clip_moe._mixed), phi0, tau)
    a, b = np.float32([[0.9, -0.4, 0.1]]), np.float32([[0.2, 1.7, 0.0]])
    close(mixed((a + b) / 2), (np.asarray(mixed(a)) + np.asarray(mixed(b))) / 2, 1e-6)


def test_images_are_routed_one_by_one(world):
    ours, order = features(world, router()), np.array([2, 0, 3, 1])
    close(features(world, router(), IMAGES[order]), ours[order])
    others = np.concatenate([IMAGES[:1], -3 * IMAGES[1:]])
    close(features(world, router(), others)[0], ours[0])
    by_batch = features_by_batch(world, others) - features_by_batch(world, IMAGES)
    assert abs(by_batch[0]).max() > 1e-3


def test_routing_by_batch_is_routing_by_image_where_all_images_are_one(world):
    same = np.repeat(IMAGES[:1], 4, axis=0)
    close(features_by_batch(world, same), features(world, router(), same))


def test_a_gate_for_the_batch_does_not_see_padding(world):
    twice = features_by_batch(world, IMAGES[[0, 0, 2, 2]])  # the mean over both is that over four
    padded = IMAGES[[0, 1, 2, 3]]
    padded[1::2] = 7.0
    masked = features_by_batch(world, padded, (True, False, True, False))
    close(masked[::2], twice[::2])
    assert abs(features_by_batch(world, padded) - masked)[::2].max() > 1e-3


@every_depth
def test_the_order_of_the_tokens_does_not_move_the_gate(depth):
    gate = partial(jax.jit(Router(TASKS, depth).apply), {"params": router(depth)["blocks_0"]})
    ours = gate(TOKENS)
    close(gate(TOKENS[:, [0, 4, 2, 1, 3]]), ours)
    assert ours.shape == ((1, TASKS) if depth == 0 else (2, TASKS))


def test_a_router_is_two_layers_on_each_token():
    own = router()["blocks_0"]
    own["hidden"]["bias"] = np.linspace(-1, 1, 8, dtype=np.float32)
    hidden = np.maximum(TOKENS @ own["hidden"]["kernel"] + own["hidden"]["bias"], 0)
    expected = (hidden @ own["out"]["kernel"] + own["out"]["bias"]).mean(axis=1)
    close(jax.jit(Router(TASKS).apply)({"params": own}, TOKENS), expected)


def test_fused_and_split_layouts_compute_the_same(world):
    split = made(*(split_qkv(tree) for tree in world[:2]))  # along the last axis, not `task`
    config = replace(SMALL, fused_qkv=False)
    close(features(split, router(), config=config), features(world, router()))


def test_bfloat16_is_close_and_returns_float32(world):
    exact, rough = (features(world, router(), dtype=dtype) for dtype in (None, jnp.bfloat16))
    assert rough.dtype == jnp.float32
    assert 0 < abs(rough - exact).max() < 0.05 * abs(exact).max()


@pytest.mark.parametrize(
    ("name", "per_block", "mlps"), [("ViT-B-32", 596_744, 48), ("ViT-L-14", 1_057_800, 96)]
)
def test_numbers_of_the_published_sizes(name, per_block, mlps):
    config = PRESETS[name].vision
    drawn = jax.eval_shape(partial(initial_router, config, 8), jax.random.key(0))
    sizes = [sum(leaf.size for leaf in jax.tree.leaves(block)) for block in drawn.values()]
    assert sizes == [per_block] * config.depth
    assert sum(jax.tree.leaves(mlp_leaves(param_shapes(config)))) == mlps


def test_first_routers_are_drawn_around_lambda():
    config = replace(SMALL, width=64, heads=4)
    drawn = initial_router(config, TASKS, jax.random.key(0), coefficient=0.1)
    hidden = [block["hidden"] for block in drawn.values()]
    out = [block["out"] for block in drawn.values()]
    for dense in (*hidden, *out):
        np.testing.assert_allclose(np.std(dense["kernel"]), 0.01, rtol=0.2)
    assert not np.array_equal(hidden[0]["kernel"], hidden[1]["kernel"])
    assert not any(np.any(dense["bias"]) for dense in hidden)
    assert all((np.asarray(dense["bias"]) == np.float32(0.1)).all() for dense in out)


def test_mlps_are_marked_and_nothing_else():
    marked = mlp_leaves(param_shapes(SMALL))
    names = [p for p, mlp in zip(trees.paths(marked), jax.tree.leaves(marked), strict=True) if mlp]
    assert names == [
        f"blocks_{i}/mlp/{layer}/{leaf}"
        for i in range(2)
        for layer in ("fc", "proj")
        for leaf in ("bias", "kernel")
    ]


def test_the_same_arguments_give_the_same_function():
    assert encode_image_moe(SMALL, depth=1) is encode_image_moe(replace(SMALL), depth=1)
    assert encode_image_moe(SMALL, depth=1) is not encode_image_moe(SMALL, depth=2)


unchecked = inspect.unwrap(encode_image_moe)  # without the tests' own checks of types and shapes


@pytest.mark.parametrize(
    ("options", "message"),
    [({"depth": 3}, "must be 0, 1 or 2, got 3"), ({"mixing": "both"}, "got 'both'")],
)
def test_unknown_options_are_refused(options, message):
    with pytest.raises(BadInput, match=message):
        unchecked(SMALL, **options)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: router(depth=1),
        lambda: initial_router(SMALL, TASKS + 1, jax.random.key(0)),
        lambda: {"blocks_0": router()["blocks_0"]},
    ],
    ids=["depth", "tasks", "blocks"],
)
def test_a_router_of_other_sizes_is_refused(world, wrong):
    with pytest.raises(BadInput, match="router of blocks_[01]: expected shapes .* for depth 2"):
        features(world, wrong())
