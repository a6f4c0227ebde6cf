"""Classification heads in files: what is written is read, and nothing else passes for one."""

import json
from pathlib import Path

import clip_checkpoints as clips
import numpy as np
import pytest
import safetensors

from symerge_jax.checkpoints.export import write_head
from symerge_jax.checkpoints.heads import copy_heads, read_head, read_heads
from symerge_jax.checkpoints.open import open_checkpoint
from symerge_jax.errors import BadInput

FILES = Path(__file__).parent / "torch_files"
WEIGHT = np.arange(12, dtype=np.float32).reshape(3, 4)
BIAS = np.array([0.5, -1, 2], np.float32)


def saved(tmp_path, metadata=None, **tensors):
    return clips.write_safetensors(tmp_path / "head.safetensors", tensors, metadata)


@pytest.mark.parametrize("classes", [None, ["cat", "dog", "forêt, 猫"]])
def test_a_head_survives_with_its_class_names(tmp_path, classes):
    write_head(tmp_path, "pets", {"weight": WEIGHT, "bias": BIAS}, classes)
    found = read_head(tmp_path / "heads" / "pets.safetensors")
    np.testing.assert_array_equal(found.head["weight"], WEIGHT)
    np.testing.assert_array_equal(found.head["bias"], BIAS)
    assert found.classes == (None if classes is None else tuple(classes))
    assert read_heads(tmp_path).keys() == {"pets"}


def test_the_library_finds_the_class_names_in_the_metadata(tmp_path):
    write_head(tmp_path, "pets", {"weight": WEIGHT, "bias": BIAS}, ["a", "b", "c"])
    with safetensors.safe_open(tmp_path / "heads" / "pets.safetensors", "np") as file:
        assert json.loads(file.metadata()["classes"]) == ["a", "b", "c"]
        np.testing.assert_array_equal(file.get_tensor("weight"), WEIGHT)


def test_a_transposed_weight_is_written_as_it_looks(tmp_path):
    write_head(tmp_path, "pets", {"weight": np.asfortranarray(WEIGHT), "bias": BIAS}, None)
    found = read_head(tmp_path / "heads" / "pets.safetensors")
    np.testing.assert_array_equal(found.head["weight"], WEIGHT)


def test_without_a_bias_it_is_zero(tmp_path):
    found = read_head(saved(tmp_path, weight=WEIGHT))
    np.testing.assert_array_equal(found.head["bias"], np.zeros(3, np.float32))


@pytest.mark.parametrize("prefix", ["", "linear.", "classification_head."])
def test_a_prefix_does_not_matter(tmp_path, prefix):
    found = read_head(saved(tmp_path, **{f"{prefix}weight": WEIGHT, f"{prefix}bias": BIAS}))
    np.testing.assert_array_equal(found.head["bias"], BIAS)


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F64"])
def test_heads_are_read_in_float32(tmp_path, dtype):
    found = read_head(saved(tmp_path, weight=WEIGHT.astype(clips.DTYPES[dtype])))
    assert found.head["weight"].dtype == np.float32
    np.testing.assert_array_equal(found.head["weight"], WEIGHT)


@pytest.mark.parametrize("layout", ["zip", "legacy", "plain"])
def test_pickled_heads_are_read_without_pytorch(layout):
    found = read_head(FILES / f"head_{layout}.pt")
    with np.load(FILES / "expected.npz") as expected:
        np.testing.assert_array_equal(found.head["weight"], expected["head|weight"])
        np.testing.assert_array_equal(found.head["bias"], expected["head|bias"])
    assert found.classes is None


def test_a_head_for_features_of_any_length_is_refused(tmp_path, monkeypatch):
    from symerge_jax.checkpoints import heads

    part = heads.open_part(FILES / "head_zip.pt")
    object.__setattr__(part, "module", part.module._replace(normalize=False))
    monkeypatch.setattr(heads, "open_part", lambda path: part)
    with pytest.raises(BadInput, match="made for features that are not normalised"):
        read_head(FILES / "head_zip.pt")


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"bias": BIAS}, "expected a head with the tensors weight and bias, found bias"),
        ({"weight": WEIGHT, "scale": BIAS}, "expected a head with the tensors weight and bias"),
        ({"a.weight": WEIGHT, "b.weight": WEIGHT}, "expected a head .* found a.weight, b.weight"),
        ({"weight": WEIGHT, "bias": BIAS, "more": BIAS}, "expected a head"),
        ({"weight": WEIGHT[0]}, r"weight has shape \(4,\), expected \[classes, features\]"),
        ({"weight": WEIGHT, "bias": BIAS[:2]}, r"weight has 3 classes, but bias has shape \(2,\)"),
        ({"weight": WEIGHT, "bias": BIAS[:, None]}, r"but bias has shape \(3, 1\)"),
        ({"weight": WEIGHT * np.float32(np.nan)}, "holds NaN or infinity"),
        ({"weight": WEIGHT, "bias": BIAS + np.float32(np.inf)}, "holds NaN or infinity"),
    ],
)
def test_what_is_no_head_is_refused(tmp_path, tensors, words):
    path = saved(tmp_path, **tensors)
    with pytest.raises(BadInput, match=words) as caught:
        read_head(path)
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        ('["a", "b"]', "names 2 classes, but its weight has 3"),
        ("[", "are not JSON"),
        ("5", "expected a JSON list"),
        ("null", "expected a JSON list"),
        ('{"a": 0, "b": 1, "c": 2}', "expected a JSON list"),
    ],
)
def test_class_names_that_do_not_fit_are_refused(tmp_path, classes, words):
    with pytest.raises(BadInput, match=words):
        read_head(saved(tmp_path, {"classes": classes}, weight=WEIGHT))


def test_a_head_that_is_not_there_is_named(tmp_path):
    with pytest.raises(BadInput, match="x.safetensors: there is no such file"):
        read_head(tmp_path / "x.safetensors")


@pytest.fixture
def models(tmp_path):
    """Two models, each with a head of its own beside the weights, and one in common."""
    made = []
    for name in ("eurosat", "dtd"):
        folder = clips.save(tmp_path / name, clips.hugging_face())
        write_head(folder, name, {"weight": WEIGHT, "bias": BIAS}, ["a", "b", name])
        write_head(folder, "common", {"weight": WEIGHT, "bias": BIAS}, None)
        made.append(folder)
    return made


def test_heads_beside_models_are_copied(tmp_path, models):
    copy_heads(map(open_checkpoint, models), tmp_path / "out")
    found = read_heads(tmp_path / "out")
    assert list(found) == ["common", "dtd", "eurosat"]
    assert found["dtd"].classes == ("a", "b", "dtd")


def test_two_different_heads_of_one_name_are_refused(tmp_path, models):
    write_head(models[1], "common", {"weight": WEIGHT + 1, "bias": BIAS}, None)
    with pytest.raises(BadInput, match=r"dtd/heads/common.safetensors: another model has a differ"):
        copy_heads(map(open_checkpoint, models), tmp_path / "out")
