"""CLIP models are read with the sizes their description states, or refused with a sentence."""

import json
from dataclasses import replace

import clip_checkpoints as clips
import jax
import numpy as np
import pytest

from symerge_jax.checkpoints import open as open_module
from symerge_jax.checkpoints.clip import to_open_clip
from symerge_jax.checkpoints.clip_layouts import hugging_face_config
from symerge_jax.checkpoints.open import load_clip
from symerge_jax.data import preprocess
from symerge_jax.errors import BadInput
from symerge_jax.models.clip import PRESETS, param_shapes


@pytest.fixture
def tensors():
    return clips.hugging_face()


@pytest.fixture
def config():
    return clips.hugging_face_json()


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("layout", ["hugging_face", "open_clip"])
def test_the_towers_that_are_asked_for_are_read(tmp_path, layout, text):
    tree = clips.params(text=True)
    if layout == "hugging_face":
        tensors, config = clips.hugging_face(text=True), clips.hugging_face_json(text=True)
        tree = clips.split(tree)
    else:
        tensors, config = clips.open_clip(text=True), clips.open_clip_json(text=True)
    loaded = load_clip(clips.save(tmp_path / "m", tensors, config), text=text)
    assert set(loaded.params) == ({"vision", "text", "logit_scale"} if text else {"vision"})
    assert (loaded.text is not None) == text
    for name, value in loaded.params.items():
        np.testing.assert_equal(value, tree[name])


def test_weights_without_a_config_say_what_was_assumed(tmp_path):
    config = PRESETS["ViT-B-32"].vision
    small = replace(config, width=384, depth=1, heads=6, image_size=32, patch_size=16)
    tree = jax.tree.map(lambda x: np.ones(x.shape, np.float32), param_shapes(small))
    loaded = load_clip(clips.write_safetensors(tmp_path / "x.safetensors", to_open_clip(tree)))
    assert loaded.vision == small
    assert loaded.notes == (
        "no config beside the weights: taking QuickGELU, as in OpenAI's models",
    )


def test_another_kind_of_model_is_refused(tmp_path):
    clips.write_safetensors(tmp_path / "x.safetensors", {"layer.weight": np.ones((2, 2))})
    with pytest.raises(BadInput, match=r"no CLIP image tower in it; .*found layer\.weight"):
        load_clip(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("preprocessor", "words"),
    [
        ({"crop_size": {"height": 9, "width": 9}}, "crop size 9"),
        ({"crop_size": 224}, "crop size 224"),
        ({"image_mean": [0.5, 0.5, 0.5]}, "image mean"),
        ({"image_std": [0.5, 0.5, 0.5]}, "image standard deviation"),
    ],
)
def test_preprocessing_for_other_images_is_refused(tmp_path, tensors, config, preprocessor, words):
    folder = clips.save(tmp_path / "m", tensors, config)
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    with pytest.raises(BadInput, match=f"was made with {words}"):
        load_clip(folder)


def test_clips_own_preprocessing_is_accepted(tmp_path, tensors, config):
    folder = clips.save(tmp_path / "m", tensors, config)
    facts = {
        "crop_size": {"height": 8, "width": 8},
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(facts))
    assert load_clip(folder).vision.image_size == 8


def test_sizes_come_from_the_config_not_from_a_guess(tmp_path, tensors):
    sizes = replace(clips.VISION, fused_qkv=False, heads=4, activation="gelu", layer_norm_eps=1e-6)
    loaded = load_clip(clips.save(tmp_path / "m", tensors, hugging_face_config(sizes, None)))
    assert loaded.vision == replace(sizes, mlp_width=32)


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_size": "8"},
        {"hidden_size": None},
        {"num_attention_heads": 0},
        {"num_attention_heads": 3},
        {"patch_size": 3},
        {"num_hidden_layers": [2]},
        {"hidden_act": "relu"},
        {"vision_config": [1]},
        {"vision_config": None},
        {"text_config": 5},
    ],
    ids=str,
)
def test_a_config_with_impossible_sizes_is_named(tmp_path, tensors, config, change):
    folder = clips.save(tmp_path / "m", tensors, config | change)
    with pytest.raises(BadInput, match="m: |m/config.json: ") as caught:
        load_clip(folder)
    assert str(tmp_path) in str(caught.value)


def test_preprocessing_is_compared_with_what_is_applied():
    assert (open_module._MEAN, open_module._STD) == (preprocess.CLIP_MEAN, preprocess.CLIP_STD)
