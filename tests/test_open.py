"""A person's checkpoint is found whatever its form, and refused with a sentence otherwise."""

import json
import os
from pathlib import Path

import clip_checkpoints as clips
import huggingface_hub
import numpy as np
import pytest
from huggingface_hub.errors import (
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

from symerge_jax.checkpoints.open import open_checkpoint
from symerge_jax.errors import BadInput

INDEX = "model.safetensors.index.json"


@pytest.fixture
def tensors():
    return clips.hugging_face()


@pytest.fixture
def config():
    return clips.hugging_face_json()


def assert_holds(path, tensors):
    checkpoint = open_checkpoint(path)
    clips.assert_same({name: checkpoint.read(name) for name in checkpoint.tensors}, tensors)
    return checkpoint


def refusal(path):
    with pytest.raises(BadInput) as caught:
        open_checkpoint(path)
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- files --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["x.safetensors", "no_suffix", "x.bin"])
def test_a_safetensors_file_is_told_by_its_name_or_first_bytes(tmp_path, tensors, name):
    clips.write_safetensors(tmp_path / name, tensors)
    checkpoint = assert_holds(tmp_path / name, tensors)
    assert checkpoint.container == "safetensors"
    assert checkpoint.config is None
    assert checkpoint.files == (tmp_path / name,)


@pytest.mark.parametrize("name", ["x.pt", "x.bin", "no_suffix"])
def test_a_torch_file_is_told_by_its_first_bytes(tmp_path, tensors, name):
    clips.write_torch(tmp_path / name, tensors)
    assert assert_holds(tmp_path / name, tensors).container == "torch zip"


def test_a_weights_file_that_is_named_brings_its_config(tmp_path, tensors, config):
    folder = clips.save(tmp_path / "model", tensors, config)
    checkpoint = assert_holds(folder / "model.safetensors", tensors)
    assert checkpoint.config == config
    other = clips.write_safetensors(folder / "other.safetensors", tensors)
    assert open_checkpoint(other).config is None  # the config says nothing of it


@pytest.mark.parametrize("path", ["nothing", "/nothing/at/all", "a b/c"])
def test_nothing_there_is_named(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    assert refusal(path).startswith(f"{path}: there is no such file or folder; expected a check")


# --- folders ------------------------------------------------------------------------------------


def test_a_hugging_face_folder(tmp_path, tensors, config):
    folder = clips.save(tmp_path / "model", tensors, config)
    (folder / "preprocessor_config.json").write_text('{"crop_size": 8}')
    checkpoint = assert_holds(folder, tensors)
    assert checkpoint.config == config
    assert checkpoint.preprocessor == {"crop_size": 8}
    assert {path.name for path in checkpoint.files} == {
        "model.safetensors",
        "config.json",
        "preprocessor_config.json",
    }


@pytest.mark.parametrize("name", ["pytorch_model.bin", "open_clip_pytorch_model.bin"])
def test_a_folder_with_a_torch_file(tmp_path, tensors, config, name):
    clips.write_torch(tmp_path / name, tensors)
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert assert_holds(tmp_path, tensors).config == config


def test_safetensors_come_before_pickles_of_the_same_model(tmp_path, tensors):
    clips.write_torch(tmp_path / "pytorch_model.bin", {"w": np.ones(2)})
    clips.save(tmp_path, tensors)
    assert_holds(tmp_path, tensors)


def test_an_open_clip_folder(tmp_path):
    tensors, config = clips.open_clip(), clips.open_clip_json()
    folder = clips.save(tmp_path / "m", tensors, config, name="open_clip_model.safetensors")
    assert assert_holds(folder, tensors).config == config


def test_open_clip_weights_take_open_clips_config_where_both_lie_there(tmp_path):
    tensors = clips.open_clip()
    config = clips.open_clip_json()
    folder = clips.save(tmp_path / "m", tensors, config, name="open_clip_model.safetensors")
    (folder / "config.json").write_text('{"architecture": "vit_base_patch32_clip_224"}')
    assert open_checkpoint(folder).config == config
    assert open_checkpoint(folder / "open_clip_model.safetensors").config == config


def test_the_only_weights_of_a_folder_are_taken_whatever_they_are_called(tmp_path, tensors):
    clips.write_torch(tmp_path / "finetuned.pt", tensors)
    (tmp_path / "notes.txt").write_text("not weights")
    assert_holds(tmp_path, tensors)


def test_a_folder_with_several_weights_says_which(tmp_path, tensors):
    for name in ("b.safetensors", "a.safetensors"):
        clips.write_safetensors(tmp_path / name, tensors)
    assert "found a.safetensors, b.safetensors: name the file you mean" in refusal(tmp_path)


def test_an_empty_folder_says_what_was_expected(tmp_path):
    message = refusal(tmp_path)
    assert message.startswith(f"{tmp_path}: expected model.safetensors")
    assert "found none of it" in message


def test_a_folder_of_models_per_task_names_one(tmp_path, tensors):
    for name in ("00_eurosat", "01_dtd"):
        clips.save(tmp_path / name, tensors)
    message = refusal(tmp_path)
    assert "one model per task; name one of its folders" in message
    assert message.endswith(str(tmp_path / "00_eurosat"))


def test_a_file_with_a_number_is_no_folder_of_a_task(tmp_path, tensors):
    clips.write_torch(tmp_path / "00_expert.pt", tensors)
    assert_holds(tmp_path, tensors)


# --- shards -------------------------------------------------------------------------------------


def test_a_sharded_model_is_one_checkpoint(tmp_path, tensors, config):
    folder = clips.save_sharded(tmp_path / "m", tensors, config, shards=3)
    checkpoint = assert_holds(folder, tensors)
    assert checkpoint.container == "safetensors, 3 shards"
    assert folder / INDEX in checkpoint.files
    assert_holds(folder / INDEX, tensors)


def test_a_sharded_torch_model_is_one_checkpoint(tmp_path, tensors):
    names = list(tensors)
    index = {name: f"pytorch_model-{i % 2}.bin" for i, name in enumerate(names)}
    for i in range(2):
        mine = {name: tensors[name] for name in names[i::2]}
        clips.write_torch(tmp_path / f"pytorch_model-{i}.bin", mine)
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": index}))
    assert_holds(tmp_path, tensors)


def test_the_index_that_is_named_is_the_one_that_is_read(tmp_path, tensors):
    clips.save(tmp_path, {"another": np.ones(3, np.float32)})
    clips.save_sharded(tmp_path, tensors)
    assert_holds(tmp_path / INDEX, tensors)


def rewritten(folder, change):
    place = folder / INDEX
    index = json.loads(place.read_text())
    change(index["weight_map"])
    place.write_text(json.dumps(index))


@pytest.mark.parametrize(
    "name", ["../x.safetensors", "/etc/passwd", "sub/x.safetensors", "..", ".", "", "a\0b", 3, None]
)
def test_an_index_reaches_no_file_outside_its_folder(tmp_path, tensors, name):
    clips.write_safetensors(tmp_path / "x.safetensors", tensors)
    folder = clips.save_sharded(tmp_path / "m", tensors)
    clips.save(folder / "sub", tensors, name="x.safetensors")
    first = next(iter(tensors))
    rewritten(folder, lambda weight_map: weight_map.update({first: name}))
    message = refusal(folder)
    assert message.startswith(f"{folder / INDEX}: weight_map sends {first} to ")
    assert "no file of this folder" in message


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m.update(gone="model-00001-of-00002.safetensors"), "says that gone is in"),
        (lambda m: m.pop(next(iter(m))), "does not list tensor"),
        (lambda m: m.update(dict.fromkeys(m, "model-00001-of-00002.safetensors")), "which lacks"),
        (lambda m: m.update(gone="model-3.safetensors"), "model-3.safetensors: cannot be read"),
        (lambda m: m.clear(), "expected an object weight_map"),
    ],
    ids=["a tensor no shard has", "a tensor unlisted", "the wrong shard", "no such shard", "empty"],
)
def test_an_index_that_does_not_fit_its_shards_is_refused(tmp_path, tensors, change, words):
    folder = clips.save_sharded(tmp_path / "m", tensors)
    rewritten(folder, change)
    assert words in refusal(folder)


# --- adapters, damaged descriptions -------------------------------------------------------------


LORA = {"base_model.model.vision_model.encoder.layers.0.self_attn.q_proj.lora_A.weight": np.ones(2)}


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "model.safetensors"])
def test_a_lora_adapter_is_refused_as_folder_and_as_file(tmp_path, name):
    adapter = {k: v.astype(np.float32) for k, v in LORA.items()}
    clips.save(tmp_path, adapter, name=name)
    for path in (tmp_path, tmp_path / name):
        assert "a LoRA adapter" in refusal(path)
    (tmp_path / "adapter_config.json").write_text("{}")
    message = refusal(tmp_path)
    assert message.startswith(f"{tmp_path}: a LoRA adapter")
    assert "merge_and_unload" in message


def test_a_sharded_lora_adapter_is_refused(tmp_path, tensors):
    adapter = {k: v.astype(np.float32) for k, v in LORA.items()}
    assert "a LoRA adapter" in refusal(clips.save_sharded(tmp_path / "m", tensors | adapter))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[1]", "expected a JSON object, got list"),
        (b"[" * 100_000, "not valid JSON"),
        (b"", "not valid JSON"),
    ],
)
@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", INDEX])
def test_a_description_that_cannot_be_read_is_named(tmp_path, tensors, name, content, words):
    folder = clips.save_sharded(tmp_path / "m", tensors)
    (folder / name).write_bytes(content)
    message = refusal(folder)
    assert message.startswith(f"{folder / name}: ")
    assert words in message


def test_a_config_that_is_a_folder_is_named(tmp_path, tensors):
    folder = clips.save(tmp_path / "m", tensors)
    (folder / "config.json").mkdir()
    assert "config.json: cannot be read" in refusal(folder)


# --- the hub ------------------------------------------------------------------------------------


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(tmp_path, monkeypatch, tensors, config):
    """A hub with one model; `calls` has what was asked for."""
    folder = clips.save(tmp_path / "hub" / "snapshots" / COMMIT, tensors, config)
    calls = []

    def snapshot_download(repository, *, revision=None, allow_patterns):
        calls.append((repository, revision, tuple(allow_patterns)))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.chdir(tmp_path)
    return folder, calls


@pytest.mark.parametrize("revision", [None, "main", "v1.0", "refs/pr/3", COMMIT])
def test_a_name_on_the_hub_is_pinned_to_its_commit(hub, tensors, revision):
    folder, calls = hub
    name = "owner/some-model.v2" + (f"@{revision}" if revision else "")
    checkpoint = assert_holds(name, tensors)
    assert checkpoint.revision == COMMIT
    assert checkpoint.path == Path(name)
    assert checkpoint.config == clips.hugging_face_json()
    assert folder / "config.json" in checkpoint.files
    assert [call[:2] for call in calls] == [("owner/some-model.v2", revision)]
    assert not any(".bin" in pattern for pattern in calls[0][2])


def test_pickles_are_fetched_only_where_there_is_nothing_else(hub, tensors):
    folder, calls = hub
    (folder / "model.safetensors").unlink()
    clips.write_torch(folder / "pytorch_model.bin", tensors)
    assert_holds("owner/model", tensors)
    assert [any("bin" in pattern for pattern in call[2]) for call in calls] == [False, True]


def test_a_folder_here_comes_before_the_hub(hub, tmp_path, tensors):
    clips.save(tmp_path / "owner" / "model", tensors)
    assert open_checkpoint("owner/model").revision is None
    assert hub[1] == []


@pytest.mark.parametrize("path", ["./model", "../model", "owner/model.pt", "a/b.safetensors"])
def test_a_path_mistyped_is_not_asked_for_on_the_hub(hub, path):
    assert refusal(path).startswith(f"{path}: there is no such file or folder")
    assert hub[1] == []


@pytest.mark.parametrize(
    "error",
    [
        LocalEntryNotFoundError("no network, and\nnot in the cache"),
        HFValidationError("Repo id must be …"),
        OSError(28, os.strerror(28)),
    ],
)
def test_a_name_that_cannot_be_had_is_named_with_the_reason(hub, monkeypatch, error):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    message = refusal("owner/model@v2")
    assert message.startswith("owner/model at revision v2: neither a file or folder here nor to be")
    assert message.endswith("give the path of a local copy")


def test_without_a_network_and_without_a_copy_the_hub_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    assert "owner/model: neither a file or folder here nor to be had" in refusal("owner/model")
    assert issubclass(RepositoryNotFoundError, OSError)  # the other way to be refused
