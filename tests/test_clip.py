"""CLIP's towers and converters: agreement with the recorded models, and laws of both layouts."""

import json
import os
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from symerge_jax.checkpoints.clip import (
    from_hugging_face,
    from_open_clip,
    fuse_qkv,
    source_names,
    split_qkv,
    to_hugging_face,
    to_open_clip,
)
from symerge_jax.errors import BadInput
from symerge_jax.models.clip import (
    PRESETS,
    TextConfig,
    VisionConfig,
    VisionTower,
    encode_image,
    encode_text,
    initial_params,
    param_shapes,
)

GOLDEN = Path(os.environ.get("SYMERGE_GOLDEN", Path(__file__).parents[2] / "shared" / "golden"))
needs_golden = pytest.mark.skipif(
    not (GOLDEN / "models.npz").is_file(), reason=f"no golden arrays at {GOLDEN}"
)
HUGGING_FACE, OPEN_CLIP = "clip_vision_with_projection", "open_clip_quickgelu"
both_precisions = pytest.mark.parametrize("bits", [32, 64])


def golden(model):
    """Returns the recorded arrays of one model by kind, and its config."""
    with np.load(GOLDEN / "models.npz") as file:
        arrays = {name: file[name] for name in file.files if name.startswith(f"{model}/")}
    kinds: dict = {}
    for name, array in arrays.items():
        _, kind, rest = name.split("/", 2)
        kinds.setdefault(kind, {})[rest] = array
    config = json.loads((GOLDEN / "models.json").read_text())["models"][model]["config"]
    return kinds, config


def relative(ours, theirs):
    return np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max()


def cast(tree, bits):
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, f"float{bits}"), tree)


def image_features(config, params, images, dtype=None):
    return jax.jit(encode_image(config, dtype=dtype))(params, images)


def text_features(config, params, tokens, dtype=None):
    return jax.jit(encode_text(config, dtype=dtype))(params, jnp.asarray(tokens))


def check(ours, kinds, name, bits):
    assert ours.dtype == f"float{bits}"
    tolerance = {32: 1e-5, 64: 1e-9}[bits]
    assert relative(ours, kinds[f"output_f{bits}"][name]) <= tolerance


SMALL = VisionConfig(image_size=8, patch_size=4, width=8, depth=2, heads=2, projection=6)
SMALL_TEXT = TextConfig(
    vocabulary=11, length=5, width=12, depth=2, heads=3, projection=6, eos_token=7
)
IMAGES = np.random.default_rng(9).normal(size=(3, 8, 8, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def tower():
    """A small image tower with every leaf away from zero and one."""
    generator = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: leaf + 0.1 * generator.normal(size=leaf.shape).astype(np.float32),
        initial_params(SMALL, jax.random.key(0)),
    )


@needs_golden
@both_precisions
def test_hugging_face_image_features_agree(bits):
    kinds, config = golden(HUGGING_FACE)
    with jax.enable_x64(bits == 64):
        model = from_hugging_face(kinds["state_dict"], config)
        images = cast(kinds["input"]["pixel_values"].transpose(0, 2, 3, 1), bits)
        features = image_features(model.vision, cast(model.params["vision"], bits), images)
        check(features, kinds, "image_embeds", bits)


@needs_golden
@both_precisions
def test_hugging_face_hidden_states_agree(bits):
    kinds, config = golden(HUGGING_FACE)
    with jax.enable_x64(bits == 64):
        model = from_hugging_face(kinds["state_dict"], config)
        images = cast(kinds["input"]["pixel_values"].transpose(0, 2, 3, 1), bits)
        tower = VisionTower(model.vision, every_token=True)
        _, state = jax.jit(partial(tower.apply, capture_intermediates=True))(
            {"params": cast(model.params["vision"], bits)}, images
        )
        hidden = state["intermediates"]["blocks_1"]["__call__"][0]
        check(hidden, kinds, "last_hidden_state", bits)


@needs_golden
@both_precisions
def test_open_clip_features_and_logits_agree(bits):
    kinds, config = golden(OPEN_CLIP)
    with jax.enable_x64(bits == 64):
        model = from_open_clip(kinds["state_dict"], config)
        params = cast(model.params, bits)
        images = cast(kinds["input"]["images"].transpose(0, 2, 3, 1), bits)
        image = image_features(model.vision, params["vision"], images)
        text = text_features(model.text, params["text"], kinds["input"]["text"])
        check(image, kinds, "image_features", bits)
        check(text, kinds, "text_features", bits)
        image, text = (x / jnp.linalg.norm(x, axis=1, keepdims=True) for x in (image, text))
        logits = jnp.exp(params["logit_scale"]) * image @ text.T
        check(logits, kinds, "logits_per_image", bits)


@needs_golden
def test_recorded_state_dicts_survive_the_round_trip():
    for name, read, write in (
        (HUGGING_FACE, from_hugging_face, to_hugging_face),
        (OPEN_CLIP, from_open_clip, to_open_clip),
    ):
        kinds, config = golden(name)
        model = read(kinds["state_dict"], config)
        written = write(model.params, prefix=model.prefix)
        assert written.keys() == kinds["state_dict"].keys()
        for key, array in written.items():
            np.testing.assert_array_equal(array, kinds["state_dict"][key])


@needs_golden
def test_open_clip_names_come_in_the_order_of_the_source():
    kinds, config = golden(OPEN_CLIP)
    params = from_open_clip(kinds["state_dict"], config).params
    names = source_names(params, "open_clip")
    assert [name for name, _ in names] == list(kinds["state_dict"])
    assert {path for _, path in names} == set(flatten_dict(params, sep="/"))


def test_fused_and_split_layouts_compute_the_same(tower):
    fused = image_features(SMALL, tower, IMAGES)
    split = image_features(replace(SMALL, fused_qkv=False), split_qkv(tower), IMAGES)
    np.testing.assert_allclose(fused, split, rtol=1e-5, atol=1e-6)
    joined = fuse_qkv(split_qkv(tower))
    jax.tree.map(np.testing.assert_array_equal, joined, dict(tower))


def test_patch_embedding_is_the_strided_convolution(tower):
    apply = partial(VisionTower(SMALL).apply, capture_intermediates=is_first_norm)
    _, state = jax.jit(apply)({"params": tower}, IMAGES)
    ours = state["intermediates"]["ln_pre"]["__call__"][0].reshape(3, 5, 8)[:, 1:]
    kernel = np.asarray(tower["patch_embedding"]["kernel"])
    dimensions = ("NHWC", "HWIO", "NHWC")
    x = jax.lax.conv_general_dilated(IMAGES, kernel, (4, 4), "VALID", dimension_numbers=dimensions)
    x = np.asarray(x).reshape(3, 4, 8) + np.asarray(tower["position_embedding"])[None, 1:]
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    x = x * np.asarray(tower["ln_pre"]["scale"]) + np.asarray(tower["ln_pre"]["bias"])
    np.testing.assert_allclose(ours, x, rtol=1e-4, atol=1e-5)


def is_first_norm(module, _):
    return module.name == "ln_pre"


def test_leaving_out_what_the_feature_does_not_read_changes_nothing(tower):
    images = jnp.asarray(IMAGES)

    def loss(params, every_token):
        return VisionTower(SMALL, every_token=every_token).apply({"params": params}, images).sum()

    gradient = jax.jit(jax.grad(loss), static_argnums=1)
    short, full = (gradient(tower, every) for every in (False, True))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), short, full)


def test_bfloat16_is_close_and_returns_float32(tower):
    exact = image_features(SMALL, tower, IMAGES)
    rough = image_features(SMALL, tower, IMAGES, jnp.bfloat16)
    assert rough.dtype == jnp.float32
    assert 0 < relative(rough, np.asarray(exact)) < 0.05


def test_no_promotion_is_implicit():
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        for dtype in (None, jnp.bfloat16):
            images = jax.ShapeDtypeStruct(IMAGES.shape, jnp.float32)
            jax.eval_shape(encode_image(SMALL, dtype=dtype), param_shapes(SMALL), images)
            for pooling in ("eos", "argmax", "last", "mean"):
                config = replace(SMALL_TEXT, pooling=pooling, causal=pooling != "mean")
                tokens = jax.ShapeDtypeStruct((2, config.length), jnp.int32)
                jax.eval_shape(encode_text(config, dtype=dtype), param_shapes(config), tokens)


def drawn_features(config, tokens):
    return text_features(config, initial_params(config, jax.random.key(1)), tokens)


def test_eos_pooling_takes_the_first_end_and_argmax_the_highest_id():
    tokens = [[1, 7, 9, 7, 0]]
    by_eos = drawn_features(replace(SMALL_TEXT, pooling="eos"), tokens)
    np.testing.assert_allclose(
        by_eos, drawn_features(replace(SMALL_TEXT, pooling="last"), [[1, 7]]), atol=1e-6
    )
    by_id = drawn_features(replace(SMALL_TEXT, pooling="argmax"), tokens)
    np.testing.assert_allclose(
        by_id, drawn_features(replace(SMALL_TEXT, pooling="last"), [[1, 7, 9]]), atol=1e-6
    )
    assert relative(by_eos, np.asarray(by_id)) > 1e-3


def test_mean_pooling_does_not_see_padding():
    config = replace(SMALL_TEXT, pooling="mean", causal=False)
    np.testing.assert_allclose(
        drawn_features(config, [[1, 2, 3, 0, 0]]), drawn_features(config, [[1, 2, 3]]), atol=1e-6
    )


def test_tiny_preset_has_the_leaves_and_numbers_of_the_small_world():
    leaves = jax.tree.leaves(param_shapes(PRESETS["tiny-64x3"].vision))
    assert (len(leaves), sum(leaf.size for leaf in leaves)) == (44, 167_744)


@pytest.mark.parametrize(
    ("name", "fused", "projection", "rows"),
    [
        ("ViT-B-32", True, 512, 152),
        ("ViT-L-14", True, 768, 296),
        ("ViT-B-32", False, 512, 200),
        ("ViT-B-32", False, None, 199),
        ("ViT-L-14", False, None, 391),
    ],
)
def test_number_of_leaves_is_the_number_of_coefficient_rows(name, fused, projection, rows):
    config = replace(PRESETS[name].vision, fused_qkv=fused, projection=projection)
    shapes = param_shapes(config)
    layout = "open_clip" if fused else "hugging_face"
    assert len(jax.tree.leaves(shapes)) == len(source_names(shapes, layout)) == rows


def hugging_face(tower, prefix="vision_model."):
    return to_hugging_face(split_qkv(tower), prefix=prefix)


SPLIT = replace(SMALL, fused_qkv=False)


def test_both_prefixes_and_counters_are_accepted(tower):
    plain = {k: v for k, v in hugging_face(tower, "").items() if "visual_projection" not in k}
    plain["embeddings.position_ids"] = np.arange(5)[None]
    model = from_hugging_face(plain, replace(SPLIT, projection=None))
    assert list(model.aside) == ["embeddings.position_ids"]
    assert model.prefix == ""
    whole = from_hugging_face(hugging_face(tower), SPLIT)
    np.testing.assert_array_equal(
        model.params["vision"]["class_embedding"], whole.params["vision"]["class_embedding"]
    )
    assert "projection" in whole.params["vision"]


def test_text_leftovers_of_an_image_encoder_are_put_aside(tower):
    tensors = to_open_clip(tower, prefix="model.")
    leftovers = {f"model.{name}": np.ones(()) for name in ("logit_scale", "ln_final.bias")}
    model = from_open_clip(leftovers | tensors, SMALL)
    assert (model.prefix, model.text) == ("model.", None)
    assert model.aside == leftovers
    again = to_open_clip(model.params, prefix=model.prefix)
    assert again.keys() == tensors.keys()


def test_full_models_survive_the_round_trip(tower):
    text = initial_params(SMALL_TEXT, jax.random.key(3))
    full = {"vision": tower, "text": text, "logit_scale": np.float32(2.5)}
    config = PRESETS["ViT-B-32"]._replace(vision=SMALL, text=SMALL_TEXT)
    again = from_open_clip(to_open_clip(full), config)
    jax.tree.map(np.testing.assert_array_equal, again.params, full)

    split = full | {"vision": split_qkv(tower), "text": split_qkv(text)}
    config = config._replace(vision=SPLIT, text=replace(SMALL_TEXT, fused_qkv=False))
    tensors = to_hugging_face(split)
    again = from_hugging_face(tensors, config)
    jax.tree.map(np.testing.assert_array_equal, again.params, split)
    assert [name for name, _ in source_names(split, "hugging_face")] == list(tensors)


def test_sizes_are_read_from_the_shapes():
    for fused, write, read in (
        (True, to_open_clip, from_open_clip),
        (False, to_hugging_face, from_hugging_face),
    ):
        config = replace(PRESETS["ViT-B-32"].vision, depth=2, fused_qkv=fused)
        params = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), param_shapes(config))
        assert read(write(params)).vision == config


def test_half_precision_is_kept(tower):
    half = jax.tree.map(lambda leaf: np.asarray(leaf, np.float16), tower)
    model = from_open_clip(to_open_clip(half), SMALL)
    assert {leaf.dtype for leaf in jax.tree.leaves(model.params)} == {np.dtype(np.float16)}


LAYER = "vision_model.encoder.layers.1.mlp.fc1.weight"


@pytest.mark.parametrize(
    ("change", "config", "message"),
    [
        (lambda t: t.pop(LAYER), SPLIT, f"{LAYER} is missing"),
        (lambda t: t.update(extra=np.ones(3)), SPLIT, r"extra \(3,\) belongs to no known part"),
        (
            lambda t: t.update({LAYER: t[LAYER][:, :5]}),
            SPLIT,
            r"fc1.weight has shape \(32, 5\), expected \(32, 8\)",
        ),
        (lambda t: t.update({LAYER: t[LAYER][0]}), SPLIT, "expected 2 axes"),
        (lambda t: None, replace(SPLIT, depth=1), "layers.1.self_attn.k_proj.weight"),
        (lambda t: None, replace(SPLIT, depth=3), "layers.2.self_attn.k_proj.weight is missing"),
        (lambda t: None, SMALL, "give a config with fused_qkv=False"),
        (lambda t: None, None, "attention heads cannot be told from width 8; give a config"),
        (lambda t: t.clear(), SPLIT, "expected exactly one tensor named"),
    ],
)
def test_the_first_offending_name_is_in_the_error(tower, change, config, message):
    tensors = hugging_face(tower)
    change(tensors)
    with pytest.raises(BadInput, match=message):
        from_hugging_face(tensors, config)


def test_a_tree_is_written_in_its_own_layout_only(tower):
    with pytest.raises(BadInput, match="apply split_qkv first"):
        to_hugging_face(tower)
    with pytest.raises(BadInput, match="apply fuse_qkv first"):
        to_open_clip(split_qkv(tower))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": 3}, "no multiple of heads"),
        ({"patch_size": 3}, "no multiple of patch_size"),
        ({"activation": "relu"}, "activation is 'relu'"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(change, message):
    with pytest.raises(BadInput, match=message):
        replace(SMALL, **change)
