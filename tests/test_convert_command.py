"""`symerge convert`: the same model under other names, and nothing lost on the way."""

import json
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from commands import refused, symerge
from tiny_experts import LAYOUTS

from symerge_jax.checkpoints.open import load_clip, open_checkpoint
from symerge_jax.classifier import encoder
from symerge_jax.evaluate import predict

pytestmark = pytest.mark.usefixtures("separate")

TORCH_FILES = Path(__file__).parent / "torch_files"
FILES = {"open_clip": "open_clip_model.safetensors", "hugging_face": "model.safetensors"}
TO = {"open_clip": "open_clip", "hugging_face": "hf"}
every_layout = pytest.mark.parametrize("layout", LAYOUTS)


def other(layout):
    return LAYOUTS[1 - LAYOUTS.index(layout)]


def tensors(folder, layout):
    return safetensors.numpy.load_file(folder / FILES[layout])


def assert_same_tensors(found, expected):
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        np.testing.assert_array_equal(found[name], value, err_msg=name)


@every_layout
@pytest.mark.parametrize("kind", ["base", "full"])
def test_there_and_back_gives_the_same_tensors(tmp_path, tiny, layout, kind):
    source = getattr(tiny, kind)[layout]
    assert symerge("convert", source, tmp_path / "there", "--to", TO[other(layout)]) == 0
    assert symerge("convert", tmp_path / "there", tmp_path / "back", "--to", TO[layout]) == 0
    expected = getattr(tiny, kind)[other(layout)]
    assert_same_tensors(
        tensors(tmp_path / "there", other(layout)), tensors(expected, other(layout))
    )
    assert_same_tensors(tensors(tmp_path / "back", layout), tensors(source, layout))
    assert open_checkpoint(tmp_path / "back").config == open_checkpoint(source).config


@every_layout
def test_the_layout_it_has_already(tmp_path, tiny, layout):
    assert symerge("convert", tiny.full[layout], tmp_path / "copy", "--to", TO[layout]) == 0
    assert_same_tensors(tensors(tmp_path / "copy", layout), tensors(tiny.full[layout], layout))


@every_layout
def test_the_features_are_the_same(tmp_path, tiny, layout):
    source = tiny.experts[layout]["fruit"]
    assert symerge("convert", source, tmp_path / "out", "--to", TO[other(layout)]) == 0
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    before, after = (load_clip(folder) for folder in (source, tmp_path / "out"))
    assert before.vision.fused_qkv != after.vision.fused_qkv
    features = [predict(encoder(m.vision), m.params["vision"], images) for m in (before, after)]
    np.testing.assert_allclose(*features, rtol=1e-5, atol=1e-5)


@every_layout
def test_what_lies_beside_the_weights_comes_along(capsys, tmp_path, tiny, layout):
    source = shutil.copytree(tiny.full[layout], tmp_path / "source")
    shutil.copytree(tiny.experts[layout]["sky"] / "heads", source / "heads")
    assert symerge("convert", source, tmp_path / "out", "--to", TO[other(layout)]) == 0
    assert capsys.readouterr().out.splitlines() == [str(tmp_path / "out")]
    for name in ("heads/sky.safetensors", "vocab.json", "merges.txt"):
        assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes()
    card = json.loads((tmp_path / "out" / "merge_card.json").read_text())
    assert card["method"] == "convert"
    assert card["inputs"]["source"]["path"] == str(source)
    assert symerge("verify", tmp_path / "out") == 0


def test_half_precision_stays(tmp_path, tiny):
    source = tmp_path / "half"
    source.mkdir()
    shutil.copy(tiny.base["hugging_face"] / "config.json", source)
    half = {
        name: value.astype(ml_dtypes.bfloat16)
        for name, value in tensors(tiny.base["hugging_face"], "hugging_face").items()
    }
    safetensors.numpy.save_file(half, source / "model.safetensors")
    assert symerge("convert", source, tmp_path / "there", "--to", "open_clip") == 0
    assert symerge("convert", tmp_path / "there", tmp_path / "back", "--to", "hf") == 0
    assert_same_tensors(tensors(tmp_path / "back", "hugging_face"), half)


def test_left_overs_of_a_text_tower_are_named(capsys, tmp_path, tiny):
    source = shutil.copytree(tiny.base["open_clip"], tmp_path / "source")
    left = {"logit_scale": np.array(4.6, np.float32)}
    left |= {"token_embedding.weight": np.ones((5, 4), np.float32)}
    path = source / FILES["open_clip"]
    safetensors.numpy.save_file(tensors(source, "open_clip") | left, path)
    assert symerge("convert", source, tmp_path / "out", "--to", "hf") == 0
    said = capsys.readouterr().err
    assert "left out, no part of the image tower: " in said
    assert all(name in said for name in left)
    expected = tensors(tiny.base["hugging_face"], "hugging_face")
    assert_same_tensors(tensors(tmp_path / "out", "hugging_face"), expected)


# --- one safetensors file -----------------------------------------------------------------------


@pytest.mark.parametrize("form", ["zip", "legacy", "plain"])
def test_a_pytorch_file_becomes_a_safetensors_file(tmp_path, form):
    source = TORCH_FILES / f"encoder_{form}.pt"
    assert symerge("convert", source, tmp_path / "out.safetensors", "--to", "safetensors") == 0
    found = safetensors.numpy.load_file(tmp_path / "out.safetensors")
    with np.load(TORCH_FILES / "expected.npz") as file:
        expected = {
            name.partition("|")[2]: file[name] for name in file.files if name.startswith("encoder|")
        }
    assert_same_tensors(found, expected)
    assert {path.name for path in tmp_path.iterdir()} == {"out.safetensors"}


def test_a_safetensors_file_keeps_names_dtypes_and_metadata(tmp_path):
    arrays = {
        "b": np.arange(6, dtype=ml_dtypes.bfloat16).reshape(2, 3),
        "a": np.arange(4, dtype=np.int64),
        "scalar": np.ones((), np.float64),
        "empty": np.zeros((0, 3), np.float32),
    }
    safetensors.numpy.save_file(arrays, tmp_path / "in.safetensors", metadata={"by": "me"})
    out = tmp_path / "new" / "out.safetensors"
    assert symerge("convert", tmp_path / "in.safetensors", out, "--to", "safetensors") == 0
    assert_same_tensors(safetensors.numpy.load_file(out), arrays)
    with safetensors.safe_open(out, framework="np") as file:
        assert file.metadata() == {"by": "me", "format": "pt"}


def test_shards_become_one_file(tmp_path):
    parts = {"one.safetensors": {"a": np.ones(2)}, "two.safetensors": {"b": np.zeros(3)}}
    for name, arrays in parts.items():
        safetensors.numpy.save_file(arrays, tmp_path / name)
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    out = tmp_path / "out.safetensors"
    assert symerge("convert", tmp_path, out, "--to", "safetensors") == 0
    assert_same_tensors(safetensors.numpy.load_file(out), {"a": np.ones(2), "b": np.zeros(3)})


def test_a_file_may_take_its_own_place(tmp_path):
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file({"a": np.arange(3.0)}, path)
    assert symerge("convert", path, path, "--to", "safetensors", "--overwrite") == 0
    assert_same_tensors(safetensors.numpy.load_file(path), {"a": np.arange(3.0)})


# --- what is refused ----------------------------------------------------------------------------


@pytest.fixture
def refusal(capsys, tmp_path):
    def of(source, *words, out="out", to="hf"):
        words = ("convert", source, tmp_path / out, "--to", to, *words)
        return refused(capsys, *words, among=tmp_path)

    return of


@pytest.mark.parametrize(
    ("part", "key", "value", "says"),
    [
        ("vision_config", "layer_norm_eps", 1e-6, "the LayerNorm epsilon 1e-06 instead of 1e-05"),
        ("text_config", "layer_norm_eps", 1e-6, "the LayerNorm epsilon 1e-06 instead of 1e-05"),
        ("text_config", "hidden_act", "gelu", "the activations quick_gelu for images and gelu"),
        ("text_config", "eos_token_id", 7, "the end of text 7, which is not the last"),
    ],
)
def test_what_open_clip_cannot_say(refusal, tmp_path, tiny, part, key, value, says):
    source = shutil.copytree(tiny.full["hugging_face"], tmp_path / "source")
    config = json.loads((source / "config.json").read_text())
    config[part][key] = value
    (source / "config.json").write_text(json.dumps(config))
    line = refusal(source, to="open_clip")
    assert f"{source}: has {says}" in line
    assert "which open_clip's layout cannot say" in line
    assert symerge("convert", source, tmp_path / "out", "--to", "hf") == 0
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written[part][key] == value


def test_an_image_tower_without_projection(refusal, tmp_path, tiny):
    source = tmp_path / "source"
    source.mkdir()
    shutil.copy(tiny.base["hugging_face"] / "config.json", source)
    arrays = tensors(tiny.base["hugging_face"], "hugging_face")
    arrays.pop("visual_projection.weight")
    safetensors.numpy.save_file(arrays, source / "model.safetensors")
    assert "has no projection (visual_projection)" in refusal(source, to="open_clip")
    assert symerge("convert", source, tmp_path / "out", "--to", "hf") == 0
    assert_same_tensors(tensors(tmp_path / "out", "hugging_face"), arrays)


def test_an_output_that_is_there(refusal, tmp_path, tiny):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    assert "is there already" in refusal(tiny.base["open_clip"])
    assert "--overwrite replaces only models" in refusal(tiny.base["open_clip"], "--overwrite")
    (tmp_path / "out.safetensors").write_text("mine")
    says = refusal(tiny.base["open_clip"], out="out.safetensors", to="safetensors")
    assert "is there already" in says


def test_a_name_that_is_no_safetensors_file(refusal, tiny):
    says = refusal(tiny.base["open_clip"], out="out.bin", to="safetensors")
    assert "expected a name that ends with .safetensors" in says


def test_an_unknown_layout(refusal, tiny):
    says = refusal(tiny.base["open_clip"], to="onnx")
    assert "onnx" in says
    assert "safetensors" in says


def test_a_source_that_is_not_there(refusal, tmp_path):
    assert f"{tmp_path / 'gone'}: there is no such file or folder" in refusal(tmp_path / "gone")


@pytest.mark.parametrize("to", ["hf", "open_clip"])
def test_a_model_that_is_no_clip(refusal, tmp_path, to):
    path = tmp_path / "other.safetensors"
    safetensors.numpy.save_file({"layer.weight": np.ones((2, 2))}, path)
    says = refusal(path, to=to)
    assert f"{path}: no CLIP image tower in it" in says
    assert "found layer.weight" in says


@pytest.mark.parametrize("to", ["hf", "safetensors"])
def test_a_lora_adapter(refusal, tmp_path, to):
    path = tmp_path / "adapter_model.safetensors"
    safetensors.numpy.save_file({"base.q_proj.lora_A.weight": np.ones((2, 2))}, path)
    assert "a LoRA adapter" in refusal(path, out="out.safetensors", to=to)


def test_a_tensor_that_is_missing(refusal, tmp_path, tiny):
    source = shutil.copytree(tiny.base["open_clip"], tmp_path / "source")
    arrays = tensors(source, "open_clip")
    arrays.pop("visual.ln_pre.bias")
    safetensors.numpy.save_file(arrays, source / FILES["open_clip"])
    assert f"{source}: tensor visual.ln_pre.bias is missing" in refusal(source)


def test_a_number_that_is_none(refusal, tmp_path, tiny):
    source = shutil.copytree(tiny.base["open_clip"], tmp_path / "source")
    arrays = tensors(source, "open_clip")
    arrays["visual.ln_pre.bias"][0] = np.inf
    safetensors.numpy.save_file(arrays, source / FILES["open_clip"])
    says = refusal(source)
    assert "vision_model.pre_layrnorm.bias holds NaN or infinity" in says
