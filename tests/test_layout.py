"""Names of tensors: one common name per tensor, whatever class of model saved it."""

import clip_checkpoints as clips
import numpy as np
import pytest

from symerge_jax.checkpoints.layout import check_same_layout, is_text, names_of
from symerge_jax.checkpoints.open import open_checkpoint
from symerge_jax.errors import BadInput


def named(path, tensors):
    return names_of(open_checkpoint(clips.write_safetensors(path / "x.safetensors", tensors)))


def with_prefix(tensors, prefix):
    return {prefix + name: value for name, value in tensors.items()}


PATCH = "vision_model.embeddings.patch_embedding.weight"


@pytest.mark.parametrize("prefix", ["vision_model.", "", "clip.vision_model.", "model.clip."])
def test_hugging_face_names_are_common_whatever_stands_before_them(tmp_path, prefix):
    names = named(tmp_path, clips.hugging_face(prefix=prefix))
    assert (names.layout, names.prefix) == ("hugging_face", prefix)
    assert set(names.source) == set(clips.hugging_face())
    assert names.source[PATCH] == f"{prefix}embeddings.patch_embedding.weight"
    outer = prefix.removesuffix("vision_model.")
    assert names.source["visual_projection.weight"] == f"{outer}visual_projection.weight"


@pytest.mark.parametrize("prefix", ["", "model.", "module.model."])
def test_open_clip_names_are_common_whatever_stands_before_them(tmp_path, prefix):
    names = named(tmp_path, clips.open_clip(prefix=prefix))
    assert (names.layout, names.prefix) == ("open_clip", prefix)
    assert set(names.source) == set(clips.open_clip())
    assert names.source["visual.conv1.weight"] == f"{prefix}visual.conv1.weight"


@pytest.mark.parametrize("make", [clips.hugging_face, clips.open_clip])
def test_the_image_tower_of_a_full_model_has_the_names_of_one_alone(tmp_path, make):
    full, alone = named(tmp_path, make(text=True)), named(tmp_path, make())
    layout = full.layout
    assert {name for name in full.source if not is_text(name, layout)} == set(alone.source)
    assert sum(is_text(name, layout) for name in full.source) == len(make(text=True)) - len(make())
    assert all(name == source for name, source in full.source.items())


def test_a_flattened_tower_beside_a_text_tower_keeps_the_texts_names(tmp_path):
    tensors = clips.hugging_face(prefix="", text=True)
    names = named(tmp_path, tensors)
    assert set(names.source) == set(clips.hugging_face(text=True))


def test_common_names_keep_the_files_order(tmp_path):
    tensors = dict(sorted(clips.hugging_face().items(), reverse=True))
    names = named(tmp_path, tensors)
    assert list(names.source.values()) == list(tensors)


@pytest.mark.parametrize(
    ("make", "buffer"),
    [
        (clips.hugging_face, "vision_model.embeddings.position_ids"),
        (clips.open_clip, "attn_mask"),
        (clips.open_clip, "input_resolution"),
        (clips.open_clip, "context_length"),
        (clips.open_clip, "vocab_size"),
    ],
)
def test_buffers_are_aside(tmp_path, make, buffer):
    names = named(tmp_path, make() | {buffer: np.arange(5)})
    assert names.aside == (buffer,)
    assert set(names.source) == set(make())


def test_left_overs_of_a_text_tower_are_text(tmp_path):
    left = {
        "model.logit_scale": np.float32(4.6),
        "model.positional_embedding": np.ones((5, 8), np.float32),
        "model.token_embedding.weight": np.ones((11, 8), np.float32),
    }
    names = named(tmp_path, clips.open_clip(prefix="model.") | left)
    found = {source for name, source in names.source.items() if is_text(name, "open_clip")}
    assert found == set(left)


def test_another_kind_of_model_keeps_its_names(tmp_path):
    tensors = {"encoder.conv1.weight": np.ones(2), "bn.running_mean": np.zeros(2)}
    names = named(tmp_path, tensors)
    assert (names.layout, names.prefix) == ("plain", "")
    assert names.source == {name: name for name in tensors}
    assert not any(is_text(name, "plain") for name in tensors)


def test_two_tensors_of_one_name_are_refused(tmp_path):
    tensors = clips.open_clip(prefix="model.")
    with pytest.raises(BadInput, match=r"visual\.proj and .*visual\.proj are the same tensor"):
        named(tmp_path, tensors | {"visual.proj": tensors["model.visual.proj"]})


@pytest.mark.parametrize("make", [clips.hugging_face, clips.open_clip])
def test_two_image_towers_in_one_file_are_refused(tmp_path, make):
    tensors = with_prefix(make(), "student.") | with_prefix(make(), "teacher.")
    with pytest.raises(BadInput, match=r"several image towers: student\..*, teacher\."):
        named(tmp_path, tensors)


def test_mixed_layouts_are_refused_with_what_to_do(tmp_path):
    both = [
        ("a", named(tmp_path, clips.hugging_face())),
        ("b", named(tmp_path, clips.hugging_face(prefix=""))),
    ]
    assert check_same_layout(both) == "hugging_face"
    with pytest.raises(BadInput, match="c has the open_clip layout, a the hugging_face layout; .*"):
        check_same_layout([*both, ("c", named(tmp_path, clips.open_clip()))])
    with pytest.raises(BadInput, match="d has the plain layout"):
        check_same_layout([*both, ("d", named(tmp_path, {"w": np.ones(2)}))])
