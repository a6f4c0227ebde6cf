"""Merging files gives what merging trees in memory gives, tensor by tensor."""

import errno
import json
import os
from dataclasses import replace

import clip_checkpoints as clips
import numpy as np
import pytest
from merging import (
    COUNTER,
    TORCH_FILES,
    assert_close,
    assert_noticed,
    both_ways,
    everyone,
    in_memory,
    merged_by_files,
    moved,
    per_task,
    recorded,
    refusal,
    shared,
    written,
)

from symerge_jax.checkpoints.export import SafetensorsWriter, write_head
from symerge_jax.checkpoints.heads import copy_heads
from symerge_jax.checkpoints.open import load_clip, open_checkpoint
from symerge_jax.merge import METHODS, Method
from symerge_jax.merge_files import merge_files
from symerge_jax.merge_plan import plan
from symerge_jax.verify import verify, write_reference


@pytest.fixture
def tensors():
    """θ₀ as Hugging Face names it, with an integer buffer."""
    return clips.hugging_face() | {COUNTER: np.arange(5)}


@pytest.fixture
def folders(tmp_path, tensors):
    """θ₀ and three experts as Hugging Face folders."""
    return written(tmp_path, tensors, [moved(tensors, k) for k in range(3)])


# --- numbers --------------------------------------------------------------------------------------


# Every method in single precision; the others are a matter of how leaves are handed over.
@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *((name, "F32") for name in shared),
        *(
            (name, d)
            for name in ("task_arithmetic", "ties", "iso_c")
            for d in ("F64", "F16", "BF16")
        ),
    ],
)
def test_files_merge_as_trees_do(tmp_path, tensors, name, dtype):
    start = {k: v if k == COUNTER else v.astype(clips.DTYPES[dtype]) for k, v in tensors.items()}
    experts = [moved(start, k) for k in range(3)]
    result = merged_by_files(tmp_path / "out", written(tmp_path, start, experts), name)
    found = clips.read_all(tmp_path / "out" / "model.safetensors")
    assert_close(found, in_memory(start, experts, name), 1e-13 if dtype == "F64" else 1e-6)
    assert (result.merged, result.copied) == (len(start) - 1, 1)


@pytest.mark.parametrize("name", per_task)
def test_files_of_each_task_merge_as_trees_do(tmp_path, tensors, name):
    experts = [moved(tensors, k) for k in range(3)]
    merged_by_files(tmp_path / "out", written(tmp_path, tensors, experts), name)
    for k, expected in enumerate(in_memory(tensors, experts, name)):
        (folder,) = (tmp_path / "out").glob(f"{k:02d}_*")
        assert_close(clips.read_all(folder / "model.safetensors"), expected)


def test_two_experts_are_joined_on_the_sphere(tmp_path, tensors):
    experts = [moved(tensors, k) for k in range(2)]
    merged_by_files(tmp_path / "out", written(tmp_path, tensors, experts), "slerp")
    found = clips.read_all(tmp_path / "out" / "model.safetensors")
    assert_close(found, in_memory(tensors, experts, "slerp"))


@pytest.mark.parametrize("name", ["tsv_m", "iso_cts"])
def test_query_key_and_value_can_be_one_matrix(tmp_path, tensors, name):
    experts = [moved(tensors, k) for k in range(3)]
    folders = written(tmp_path, tensors, experts)
    merged_by_files(tmp_path / "out", folders, name, options={"fuse_qkv": True})
    found = clips.read_all(tmp_path / "out" / "model.safetensors")
    assert_close(found, in_memory(tensors, experts, name, fuse_qkv=True), 1e-5)
    apart = in_memory(tensors, experts, name)
    assert any(np.abs(found[k] - apart[k]).max() > 1e-4 for k in found if "q_proj.weight" in k)


@pytest.mark.parametrize("layout", ["hugging_face", "open_clip"])
def test_either_layout_is_merged_in_its_own_names(tmp_path, layout):
    make = getattr(clips, layout)
    config = getattr(clips, f"{layout}_json")()
    start = make()
    experts = [moved(start, k) for k in range(3)]
    merged_by_files(tmp_path / "out", written(tmp_path, start, experts, config), "task_arithmetic")
    file = "model" if layout == "hugging_face" else "open_clip_model"
    found = clips.read_all(tmp_path / "out" / f"{file}.safetensors")
    assert_close(found, in_memory(start, experts, "task_arithmetic"))
    assert load_clip(tmp_path / "out").names.layout == layout


@pytest.mark.parametrize("options", [{"density": 0.5}, {"aggregate": "sum"}])
def test_options_and_scale_reach_the_method(tmp_path, tensors, folders, options):
    merged_by_files(tmp_path / "out", folders, "ties", scale=0.7, options=options)
    experts = [moved(tensors, k) for k in range(3)]
    found = clips.read_all(tmp_path / "out" / "model.safetensors")
    assert_close(found, in_memory(tensors, experts, "ties", scale=0.7, **options))
    card = json.loads((tmp_path / "out" / "merge_card.json").read_text())
    assert card["settings"] == {"scale": 0.7, **options}


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *((name, np.float32) for name in shared if METHODS[name].streams),
        ("task_arithmetic", np.float16),
    ],
)
def test_leaf_by_leaf_and_all_at_once_agree(tmp_path, tensors, monkeypatch, name, dtype):
    start = {k: v if k == COUNTER else v.astype(dtype) for k, v in tensors.items()}
    folders = written(tmp_path, start, [moved(start, k) for k in range(3)])
    one = merged_by_files(tmp_path / "a", folders, name)
    monkeypatch.setitem(METHODS, name, replace(METHODS[name], streams=False))
    other = merged_by_files(tmp_path / "b", folders, name)
    found, expected = (clips.read_all(tmp_path / x / "model.safetensors") for x in "ab")
    assert_close(found, expected)
    assert other[:2] == one[:2]
    np.testing.assert_allclose(other.distances, one.distances, rtol=1e-5)


def test_distances_are_those_of_the_task_vectors(tmp_path, tensors, folders):
    found = merged_by_files(tmp_path / "out", folders, "weight_average").distances
    floats = [k for k in tensors if k != COUNTER]
    norm = sum(np.square(tensors[k], dtype=np.float64).sum() for k in floats)
    for k, ratio in enumerate(found):
        expert = moved(tensors, k)
        far = sum(np.square(expert[n] - tensors[n], dtype=np.float64).sum() for n in floats)
        assert ratio == pytest.approx(np.sqrt(far / norm), rel=1e-4)


# --- what is copied -------------------------------------------------------------------------------


@both_ways
def test_leaves_nobody_changed_are_copied_bit_by_bit(tmp_path, tensors, name):
    start = tensors | {"vision_model.pre_layrnorm.bias": np.full(8, -0.0, np.float32)}
    kept = [k for k in start if "pre_layrnorm" in k or ".mlp." in k]
    experts = [moved(start, k) | {n: start[n] for n in kept} for k in range(3)]
    result = merged_by_files(tmp_path / "out", written(tmp_path, start, experts), name)
    found = clips.read_all(tmp_path / "out" / "model.safetensors")
    for n in [*kept, COUNTER]:
        assert found[n].tobytes() == start[n].tobytes(), n
    assert result.copied == len(kept) + 1
    assert_close(found, in_memory(start, experts, name))


@both_ways
def test_a_leaf_that_one_expert_changed_is_merged(tmp_path, tensors, name):
    experts = [moved(tensors, 0), *(dict(tensors) for _ in range(2))]
    for k, leaf in ((1, "class_embedding"), (2, "position_embedding.weight")):
        experts[k][f"vision_model.embeddings.{leaf}"] = moved(tensors, k)[
            f"vision_model.embeddings.{leaf}"
        ]
    merged_by_files(tmp_path / "out", written(tmp_path, tensors, experts), name)
    found = clips.read_all(tmp_path / "out" / "model.safetensors")
    assert_close(found, in_memory(tensors, experts, name))


@both_ways
def test_integer_buffers_are_the_pretrained_models(tmp_path, tensors, name):
    experts = [moved(tensors, k) | {COUNTER: np.arange(5) + 7} for k in range(2)]
    del experts[1][COUNTER]
    merged_by_files(tmp_path / "out", written(tmp_path, tensors, experts), name)
    found = clips.read_all(tmp_path / "out" / "model.safetensors")
    np.testing.assert_array_equal(found[COUNTER], np.arange(5))


@both_ways
@pytest.mark.parametrize("prefix", ["vision_model.", ""])
def test_a_full_clip_with_experts_of_the_image_tower_alone(tmp_path, name, prefix):
    start = clips.hugging_face(text=True)
    towers = [moved(clips.hugging_face(projection=False), k) for k in range(3)]
    config = clips.hugging_face_json(projection=False)
    base = clips.save(tmp_path / "base", start, clips.hugging_face_json(text=True))
    cut = len("vision_model.")
    experts = [
        clips.save(tmp_path / f"e{k}", {prefix + n[cut:]: v for n, v in tower.items()}, config)
        for k, tower in enumerate(towers)
    ]
    merged_by_files(tmp_path / "out", (base, experts), name)
    found = clips.read_all(tmp_path / "out" / "model.safetensors")
    assert_close(found, start | in_memory({n: start[n] for n in towers[0]}, towers, name))
    for n in start:  # projection, text tower and logit scale
        if n not in towers[0]:
            assert found[n].tobytes() == start[n].tobytes(), n
    assert load_clip(tmp_path / "out", text=True).text is not None


def test_a_projection_that_experts_carry_is_merged(tmp_path):
    start = clips.hugging_face(text=True)
    towers = [moved(clips.hugging_face(), k) for k in range(3)]
    base = clips.save(tmp_path / "base", start, clips.hugging_face_json(text=True))
    experts = [
        clips.save(tmp_path / f"e{k}", tower, clips.hugging_face_json())
        for k, tower in enumerate(towers)
    ]
    merged_by_files(tmp_path / "out", (base, experts), "task_arithmetic")
    found = clips.read_all(tmp_path / "out" / "model.safetensors")
    expected = in_memory({n: start[n] for n in towers[0]}, towers, "task_arithmetic")
    assert (found["visual_projection.weight"] != start["visual_projection.weight"]).any()
    assert_close(found, start | expected)


def test_sharded_and_torch_experts_merge_with_the_rest(tmp_path):
    start = clips.hugging_face()
    experts = [moved(start, k) for k in range(3)]
    config = clips.hugging_face_json()
    base = clips.save_sharded(tmp_path / "base", start, config)
    clips.write_torch(tmp_path / "torch" / "pytorch_model.bin", experts[1])
    places = [
        clips.save(tmp_path / "whole", experts[0], config),
        tmp_path / "torch",
        clips.save_sharded(tmp_path / "sharded", experts[2], config, shards=3),
    ]
    merged_by_files(tmp_path / "out", (base, places), "task_arithmetic")
    found = clips.read_all(tmp_path / "out" / "model.safetensors")
    assert_close(found, in_memory(start, experts, "task_arithmetic"))


def test_a_model_of_another_kind_is_merged_too(tmp_path):
    rng = np.random.default_rng(0)
    start = {"a.weight": rng.normal(size=(3, 4)).astype(np.float32), "n": np.arange(3)}
    experts = [moved(start, k) for k in range(2)]
    paths = [
        clips.write_safetensors(tmp_path / f"{k}.safetensors", one)
        for k, one in enumerate([start, *experts])
    ]
    folders = (paths[0], paths[1:])
    merged_by_files(tmp_path / "out", folders, "weight_average", finish=write_reference)
    found = clips.read_all(tmp_path / "out" / "model.safetensors")
    assert_close(found, in_memory(start, experts, "weight_average"))
    assert not (tmp_path / "out" / "reference.npz").exists()
    assert all(finding.holds for finding in verify(tmp_path / "out"))


def test_scalars_and_empty_tensors_are_merged(tmp_path, monkeypatch):
    start = {"s": np.float32(2), "e": np.empty((0, 3), np.float32), "w": np.ones(2, np.float32)}
    start = {name: np.asarray(value) for name, value in start.items()}
    experts = [start | {"s": np.asarray(np.float32(s)), "w": start["w"] + 1} for s in (3, 5)]
    paths = [
        clips.write_safetensors(tmp_path / f"{k}.safetensors", one)
        for k, one in enumerate([start, *experts])
    ]
    for name in ("weight_average", "ties"):
        merged_by_files(tmp_path / name, (paths[0], paths[1:]), name)
        found = clips.read_all(tmp_path / name / "model.safetensors")
        assert (found["s"].shape, found["e"].shape) == ((), (0, 3))
        assert_close(found, in_memory(start, experts, name))
    for streams in (True, False):
        method = Method(everyone, scale=1.0, kind="per_task", streams=streams)
        monkeypatch.setitem(METHODS, "everyone", method)
        merged_by_files(tmp_path / f"{streams}", (paths[0], paths[1:]), "everyone")
        for k, expert in enumerate(experts):
            folder = tmp_path / f"{streams}" / f"0{k}_{k + 1}"
            assert_close(clips.read_all(folder / "model.safetensors"), expert)


# --- pickled modules ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["zip", "legacy", "plain"])
def test_pickled_encoders_become_an_open_clip_folder(tmp_path, kind):
    start = open_checkpoint(TORCH_FILES / f"encoder_{kind}.pt")
    numbers = {name: start.read(name) for name in start.where}
    bare = {name.removeprefix("model."): value for name, value in numbers.items()}
    experts = [moved(bare, k) for k in range(2)]
    places = [
        clips.write_torch(
            tmp_path / name / "finetuned.pt",
            {f"model.{n}": v for n, v in one.items() if v.dtype == np.float32},
        )
        for name, one in zip(("eurosat", "dtd"), experts, strict=True)
    ]
    chosen = plan(TORCH_FILES / f"encoder_{kind}.pt", places)
    assert (chosen.layout, chosen.names) == ("open_clip", ("eurosat", "dtd"))
    merge_files(chosen, "task_arithmetic", tmp_path / "out", finish=write_reference)
    found = clips.read_all(tmp_path / "out" / "open_clip_model.safetensors")
    assert_close(found, in_memory(bare, experts, "task_arithmetic"))
    assert all(finding.holds for finding in verify(tmp_path / "out"))


def test_pickled_encoders_with_different_activations_are_refused(tmp_path):
    files = [TORCH_FILES / f"{name}_zip.pt" for name in ("encoder", "exact")]
    message = refusal(tmp_path / "out", (files[0], [files[0], files[1]]))
    assert message.startswith(f"{files[1]}: has activation gelu, but {files[0]} has quick_gelu")


# --- one model per task ---------------------------------------------------------------------------


@pytest.mark.parametrize("streams", [True, False])
def test_per_task_methods_write_one_model_per_task(
    tmp_path, tensors, folders, monkeypatch, streams
):
    method = Method(everyone, scale=1.0, kind="per_task", streams=streams)
    monkeypatch.setitem(METHODS, "everyone", method)
    kept = "vision_model.pre_layrnorm.bias"
    for k, place in enumerate(folders[1]):
        clips.save(place, moved(tensors, k) | {kept: tensors[kept]})
        write_head(place, place.name, {"weight": np.ones((2, 6)), "bias": np.zeros(2)}, None)
    chosen = plan(*folders)

    def finish(folder):
        copy_heads(chosen.experts, folder)
        write_reference(folder)

    merge_files(chosen, "everyone", tmp_path / "out", finish=finish)
    models = sorted(path.name for path in (tmp_path / "out").iterdir() if path.is_dir())
    assert models == ["00_eurosat", "01_dtd", "02_svhn"]
    for k, name in enumerate(models):
        place = tmp_path / "out" / name
        expected = moved(tensors, k) | {kept: tensors[kept], COUNTER: tensors[COUNTER]}
        assert_close(clips.read_all(place / "model.safetensors"), expected)
        assert load_clip(place).vision.depth == 1
        card = json.loads((place / "merge_card.json").read_text())
        assert (card["task"], card["tasks"]) == (name[3:], ["eurosat", "dtd", "svhn"])
        assert all(finding.holds for finding in verify(place))
    findings = list(verify(tmp_path / "out"))
    assert all(finding.holds for finding in findings)
    named = {finding.what for finding in findings}
    assert {f"{name}/{file}" for name in models for file in ("config.json", "merge_card.json")} <= (
        named
    )


def test_a_card_changed_in_one_of_several_models_is_found(tmp_path, folders, monkeypatch):
    method = Method(everyone, scale=1.0, kind="per_task", streams=True)
    monkeypatch.setitem(METHODS, "everyone", method)
    merged_by_files(tmp_path / "out", folders, "everyone")
    for path in sorted((tmp_path / "out").rglob("*")):
        if path.is_file():
            assert_noticed(tmp_path / "out", path)
    assert all(finding.holds for finding in verify(tmp_path / "out"))


def test_a_disk_that_fills_up_with_several_models_leaves_nothing(tmp_path, folders, monkeypatch):
    method = Method(everyone, scale=1.0, kind="per_task", streams=True)
    monkeypatch.setitem(METHODS, "everyone", method)
    enter, calls = SafetensorsWriter.__enter__, []

    def second_fails(self):
        calls.append(self)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return enter(self)

    monkeypatch.setattr(SafetensorsWriter, "__enter__", second_fails)
    assert "no space is left" in refusal(tmp_path / "out", folders, "everyone")


# --- recorded outputs of other implementations ----------------------------------------------------


RECORDED = [
    ("weight_average", {}, None, "simple_average/fusionbench"),
    ("task_arithmetic", {}, None, "task_arithmetic_0.3/authors"),
    ("task_arithmetic", {}, None, "task_arithmetic_0.3/fusionbench"),
    ("ties", {"density": 0.2, "aggregate": "sum"}, 0.3, "ties_k20_sum_0.3/authors"),
]


@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.parametrize(("name", "options", "scale", "key"), RECORDED)
def test_merged_files_agree_with_other_implementations(tmp_path, kind, name, options, scale, key):
    folders, part = recorded(kind, tmp_path / "in")
    merged_by_files(tmp_path / "out", folders, name, options=options, scale=scale)
    found = clips.read_all(tmp_path / "out" / "model.safetensors")
    expected = part(key)
    assert set(found) == set(expected)
    for tensor, theirs in expected.items():
        bound = 1e-5 * float(np.abs(theirs).max())
        np.testing.assert_allclose(found[tensor], theirs, rtol=0, atol=bound, err_msg=tensor)
