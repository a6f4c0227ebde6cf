"""ResNet's trunk and its decoders: agreement with recorded models, and laws of their parts."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import resnet_checkpoints as nets
from flax.traverse_util import flatten_dict

from symerge_jax.batch_stats import floor_variances, merge_stats
from symerge_jax.checkpoints.resnet import from_torchvision, source_names
from symerge_jax.errors import BadInput
from symerge_jax.models.batch_norm import EPSILON, BatchNorm, moments
from symerge_jax.models.dense_heads import (
    DECODERS,
    OUTPUTS,
    DecoderConfig,
    decode,
    decode_in_training,
    decoder_shapes,
    initial_decoder,
    resize_corners,
    stack_decoders,
    unstack_decoders,
)
from symerge_jax.models.resnet import (
    PRESETS,
    ResNetConfig,
    classify,
    encode_images,
    encode_in_training,
    initial_variables,
    variable_shapes,
)

# Compiling is what takes time here: no optimisations, few different programs.
pytestmark = pytest.mark.usefixtures("separate")

GOLDEN = Path(__file__).parent / "golden"


def read(name):
    """The recorded arrays by kind, and the config."""
    kinds = {}
    with np.load(GOLDEN / f"{name}.npz") as file:
        for key in file.files:
            kind, rest = key.split("/", 1)
            kinds.setdefault(kind, {})[rest] = file[key]
    return kinds, json.loads((GOLDEN / f"{name}.json").read_text())["config"]


@pytest.fixture(scope="module")
def dense():
    """The recorded dilated network as our variables in float64, and what it gave."""
    kinds, config = read("resnet_dense")
    found = from_torchvision(kinds["state_dict"], rates=config["decoder"]["rates"])
    own = {task: one._replace(variables=cast(one.variables, 64))
           for task, one in found.decoders.items()}  # fmt: skip
    return kinds, found._replace(variables=cast(found.variables, 64), decoders=own)


def cast(tree, bits):
    return jax.tree.map(lambda leaf: np.asarray(leaf, f"float{bits}"), tree)


def relative(ours, theirs):
    assert ours.shape == theirs.shape
    return np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max()


def close(ours, theirs, tolerance=1e-6):
    np.testing.assert_allclose(np.asarray(ours), np.asarray(theirs), rtol=0, atol=tolerance)


# --- recorded models ----------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [32, 64])
def test_features_and_logits_agree_with_torchvisions(bits):
    kinds, config = read("resnet")
    expected, tolerance = kinds[f"output_f{bits}"], {32: 2e-5, 64: 1e-9}[bits]
    with jax.enable_x64(bits == 64):
        model = from_torchvision(kinds["state_dict"], output_stride=32)
        assert list(model.config.planes) == config["planes"]
        images = jnp.asarray(kinds["input"]["pixel_values"], f"float{bits}").transpose(0, 2, 3, 1)
        features = jax.jit(encode_images(model.config))(cast(model.variables, bits), images)
        assert features.dtype == f"float{bits}"
        assert relative(features.mean(axis=(1, 2)), expected["features"]) <= tolerance
        logits = classify(cast(model.classifier, bits), features)
        assert relative(logits, expected["logits"]) <= tolerance


def test_a_dilated_trunk_and_its_decoders_agree_when_evaluated(dense):
    kinds, model = dense
    images, expected = kinds["input"]["images"], kinds["eval"]
    assert relative(expected["features"], kinds["train"]["features"]) > 0.1  # modes differ

    @jax.jit
    def run(trunk, decoders):
        features = encode_images(model.config)(trunk, images)
        maps = {
            task: decode(one.config, images.shape[1:3])(decoders[task], features)
            for task, one in model.decoders.items()
        }
        return {"features": features, **maps}

    with jax.enable_x64(True):
        found = run(model.variables, {t: one.variables for t, one in model.decoders.items()})
    assert set(found) == set(expected)
    for name, value in found.items():
        assert relative(value, expected[name]) <= 1e-9, name


def test_a_dilated_trunk_and_a_decoder_agree_in_training_whatever_is_padded(dense):
    kinds, model = dense
    images, expected = kinds["input"]["images"], kinds["train"]
    padded = np.concatenate([images, np.full_like(images[:1], 0.7)])
    one = model.decoders["segmentation"]

    @jax.jit
    def run(trunk, decoder, mask):
        features, moved = encode_in_training(model.config)(trunk, padded, mask)
        maps, stats = decode_in_training(one.config, images.shape[1:3])(decoder, features, mask)
        return features, maps, moved, stats

    with jax.enable_x64(True):
        counts = np.array([True, True, False])
        features, maps, moved, stats = run(model.variables, one.variables, counts)
    assert relative(features[:2], expected["features"]) <= 1e-9
    assert relative(maps[:2], expected["segmentation"]) <= 1e-9
    check_moved(moved, kinds["moved"], "encoder.", model.variables)
    stem = "decoders.segmentation."
    close(stats["last"]["bn"]["var"], kinds["moved"][f"{stem}2.running_var"], 1e-9)
    image = f"{stem}0.convs.4.2.running_mean"
    close(stats["image"]["bn"]["mean"], kinds["moved"][image], 1e-9)


def check_moved(stats, expected, prefix, variables):
    """Every running statistic of a trunk moved as PyTorch moves it."""
    flat = flatten_dict({**variables, "batch_stats": stats}, sep="/")
    compared = 0
    for name, path in source_names(variables):
        if path.startswith("batch_stats/"):
            close(flat[path], expected[prefix + name], 1e-9)
            compared += 1
    assert compared == 2 * (1 + 4 + 3 * (4 + 3))


# --- sizes --------------------------------------------------------------------------------------


def test_a_resnet_50_has_159_tensors_to_train_and_106_statistics():
    shapes = variable_shapes(PRESETS["resnet50"])
    assert len(jax.tree.leaves(shapes["params"])) == 53 + 106
    assert len(jax.tree.leaves(shapes["batch_stats"])) == 106
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == 25_557_032 - 2_049_000
    assert len(source_names(shapes)) == 265
    assert len(source_names({"params": shapes["params"]})) == 159


def test_a_decoder_of_13_classes_has_16_million_parameters():
    shapes = decoder_shapes(DECODERS["resnet50"], OUTPUTS["segmentation"])
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == 16_128_781


def test_the_last_stages_are_dilated_instead_of_strided():
    places = PRESETS["resnet50"].places()
    assert [p.stride for p in places if p.index == 0] == [1, 2, 1, 1]
    assert [p.dilation for p in places] == [1] * 7 + [1, 2, 2, 2, 2, 2] + [2, 4, 4]
    plain = ResNetConfig(output_stride=32).places()
    assert [p.stride for p in plain if p.index == 0] == [1, 2, 2, 2]
    assert {p.dilation for p in plain} == {1}


@pytest.mark.parametrize(
    ("preset", "size", "expected"),
    [("resnet50", (288, 384), (36, 48, 2048)), ("tiny-resnet", (50, 64), (7, 8, 128))],
)
def test_features_have_an_eighth_of_the_resolution(preset, size, expected):
    config = PRESETS[preset]
    images = jax.ShapeDtypeStruct((2, *size, 3), jnp.uint8)
    found = jax.eval_shape(encode_images(config), variable_shapes(config), images)
    assert found.shape == (2, *expected)


@pytest.mark.parametrize(
    ("sizes", "says"),
    [
        ({"output_stride": 4}, "output_stride is 4, expected 8, 16 or 32"),
        ({"blocks": (1, 2)}, "expected four numbers each"),
        ({"stem": 0}, "must all be at least 1"),
    ],
)
def test_sizes_that_make_no_network_are_refused(sizes, says):
    with pytest.raises(BadInput, match=says):
        ResNetConfig(**sizes)
    with pytest.raises(BadInput, match="must all be at least 1"):
        DecoderConfig(rates=(0,))


def test_presets_fit_their_decoders():
    assert {name: one.features for name, one in PRESETS.items()} == {
        name: one.features for name, one in DECODERS.items()
    }


def test_fresh_variables_keep_the_scale_of_their_input():
    variables = initial_variables(PRESETS["tiny-resnet"], jax.random.key(0))
    kernel = variables["params"]["layer2_0"]["conv2"]["kernel"]
    assert kernel.std() == pytest.approx(np.sqrt(2 / (9 * 16)), rel=0.1)
    stats = variables["batch_stats"]["layer4_0"]["bn3"]
    assert (stats["mean"].sum(), stats["var"].min()) == (0, 1)
    decoder = initial_decoder(DecoderConfig(features=8, width=16), 3, jax.random.key(1))
    assert decoder["params"]["out"]["bias"].tolist() == [0, 0, 0]
    assert decoder["params"]["last"]["conv"]["kernel"].std() == pytest.approx(1 / np.sqrt(432), 0.1)


# --- batch normalisation ------------------------------------------------------------------------


@jax.jit
def normalised(x, variables, mask=None):
    found, moved = BatchNorm(True).apply(variables, x, mask, mutable=["batch_stats"])
    return found, moved["batch_stats"]


def test_batch_normalisation_by_hand():
    x = jnp.array([1.0, 3.0, 5.0, 7.0]).reshape(2, 1, 2, 1)  # mean 4, variance 5 or 20/3
    variables = {
        "params": {"scale": jnp.array([2.0]), "bias": jnp.array([1.0])},
        "batch_stats": {"mean": jnp.array([10.0]), "var": jnp.array([2.0])},
    }
    found, moved = normalised(x, variables)
    close(found.ravel(), 1 + 2 * np.array([-3, -1, 1, 3]) / np.sqrt(5 + EPSILON))
    close(moved["mean"], [0.9 * 10 + 0.1 * 4])
    close(moved["var"], [0.9 * 2 + 0.1 * 20 / 3])
    evaluated = jax.jit(BatchNorm().apply)(variables, x)
    close(evaluated.ravel(), 1 + 2 * (x.ravel() - 10) / np.sqrt(2 + EPSILON))


def test_a_single_value_leaves_running_statistics_as_they_are():
    x = jnp.array([1.0, 3.0]).reshape(2, 1, 1, 1)
    variables = {
        "params": {"scale": jnp.ones(1), "bias": jnp.zeros(1)},
        "batch_stats": {"mean": jnp.array([10.0]), "var": jnp.array([2.0])},
    }
    _, moved = normalised(x, variables, jnp.array([True, False]))
    assert (moved["mean"].item(), moved["var"].item()) == (10, 2)


def test_a_batch_of_one_value_per_channel_is_refused():
    with pytest.raises(BadInput, match="a batch of one image gives one value per channel"):
        moments(jnp.ones((1, 1, 1, 4)), None)
    config = DecoderConfig(features=4, width=2, rates=(1,))
    shapes = decoder_shapes(config, 1)
    features = jax.ShapeDtypeStruct((1, 3, 3, 4), jnp.float32)
    with pytest.raises(BadInput, match="take batches of at least two images"):
        jax.eval_shape(decode_in_training(config), shapes, features)
    assert jax.eval_shape(decode(config), shapes, features).shape == (1, 3, 3, 1)


def test_merged_statistics_by_hand():
    pretrained = {"bn": {"mean": jnp.array([1.0, 2.0]), "var": jnp.array([1.0, 0.5])}}
    tau = {"bn": {"mean": jnp.array([[1.0, 0], [0, 4]]), "var": jnp.array([[2.0, -1], [0, -1]])}}
    lam = jnp.array([0.5, 0.25])
    merge = jax.jit(merge_stats)
    found = merge(pretrained, tau, lam)
    close(found["bn"]["mean"], [1.5, 3])
    close(found["bn"]["var"], [2, 1e-5])  # 0.5 − 0.5 − 0.25
    each = {"bn": {"mean": jnp.array([1.0, 1]), "var": jnp.array([0.0, 0])}}
    found = merge(pretrained, tau, each)
    close(found["bn"]["mean"], [2, 6])
    close(found["bn"]["var"], [1, 0.5])


def test_a_floor_is_for_variances_alone():
    stats = {"bn1": {"mean": -jnp.ones(2), "var": jnp.array([-1.0, 3])}}
    tree = {"params": {"bn1": {"bias": -jnp.ones(2)}}, "batch_stats": stats}
    found = floor_variances(tree, floor=0.5)
    assert found["batch_stats"]["bn1"]["var"].tolist() == [0.5, 3]
    assert found["batch_stats"]["bn1"]["mean"].tolist() == [-1, -1]
    assert found["params"]["bn1"]["bias"].tolist() == [-1, -1]


# --- decoders -----------------------------------------------------------------------------------


def test_resizing_keeps_corners_and_is_linear_between():
    maps = jnp.array([[0.0, 3.0], [6.0, 9.0]]).reshape(1, 2, 2, 1)
    found = resize_corners(maps, (3, 4))[0, :, :, 0]
    close(found, [[0, 1, 2, 3], [3, 4, 5, 6], [6, 7, 8, 9]], 1e-5)
    assert resize_corners(maps, (1, 1)).ravel().tolist() == [0]
    close(resize_corners(maps, (2, 2)), maps)
    one = jnp.full((1, 1, 1, 2), 5.0)
    close(resize_corners(one, (2, 3)), jnp.full((1, 2, 3, 2), 5.0))


def test_stacked_decoders_have_zero_maps_beside_their_own():
    config = DecoderConfig(features=4, width=4, rates=(1, 2))
    own = [nets.drawn(decoder_shapes(config, n), n) for n in (3, 1)]
    outputs = []

    @jax.jit
    def stacked_together(trees):
        tree, counts = stack_decoders(trees)
        outputs.extend(counts)
        return tree

    stacked = stacked_together(own)
    assert outputs == [3, 1]
    out = stacked["params"]["out"]
    assert (out["kernel"].shape, out["bias"].shape) == ((2, 1, 1, 4, 3), (2, 3))
    assert not np.asarray(out["kernel"][1, ..., 1:]).any()
    assert not np.asarray(out["bias"][1, 1:]).any()
    apart = jax.jit(lambda tree: unstack_decoders(tree, outputs))(stacked)
    for again, before in zip(apart, own, strict=True):
        jax.tree.map(np.testing.assert_array_equal, again, before)
    with pytest.raises(BadInput, match="at least one decoder"):
        stack_decoders([])
    wider = nets.drawn(decoder_shapes(DecoderConfig(features=4, width=5, rates=(1, 2)), 3), 0)
    with pytest.raises(BadInput, match=r"decoder 1: .* only decoders of one width"):
        stack_decoders([own[0], wider])


def test_what_is_dropped_follows_the_key():
    config = DecoderConfig(features=4, width=4, rates=(1,))
    variables = nets.drawn(decoder_shapes(config, 1), 0)
    features = np.random.default_rng(0).normal(size=(4, 6, 6, 4)).astype(np.float32)
    run = jax.jit(decode_in_training(config))
    first, again, other = (run(variables, features, None, jax.random.key(k))[0] for k in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert relative(other, np.asarray(first)) > 0.01


def test_uint8_images_in_half_precision_give_nearly_what_floats_give():
    config = PRESETS["tiny-resnet"]
    variables = nets.drawn(variable_shapes(config), 0)
    pixels = np.random.default_rng(0).integers(0, 256, (1, 16, 24, 3), np.uint8)
    exact = jax.jit(encode_images(config))(variables, pixels.astype(np.float32) / 255)
    half = jax.jit(encode_images(config, dtype="bfloat16"))(variables, pixels)
    assert half.dtype == jnp.float32
    assert 0 < relative(half, np.asarray(exact)) < 0.1
    assert encode_images(config, dtype="bfloat16") is encode_images(config, dtype=jnp.bfloat16)
