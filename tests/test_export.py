"""Models are written whole or not at all, and are what the public libraries read."""

import errno
import hashlib
import json
import os
from dataclasses import replace

import clip_checkpoints as clips
import huggingface_hub
import ml_dtypes
import numpy as np
import pytest
import safetensors

from symerge_jax.checkpoints import export
from symerge_jax.checkpoints.export import SafetensorsWriter, new_file, new_folder, write_model
from symerge_jax.checkpoints.open import load_clip, open_checkpoint
from symerge_jax.checkpoints.source import TensorInfo
from symerge_jax.errors import BadInput


def infos(tensors):
    return {name: TensorInfo(value.shape, value.dtype) for name, value in tensors.items()}


def left(folder):
    """Every name beneath a folder, hidden ones too."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def content(folder):
    return {p.name: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def model(tmp_path):
    folder = clips.save(tmp_path / "in" / "m", clips.hugging_face(), clips.hugging_face_json())
    return open_checkpoint(folder)


@pytest.fixture
def place(tmp_path):
    """An empty folder to write in."""
    (tmp_path / "place").mkdir()
    return tmp_path / "place"


def full_disk(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


# --- the writer ---------------------------------------------------------------------------------


def test_the_library_reads_every_dtype_that_is_written(place):
    rng = np.random.default_rng(0)
    tensors = {}
    for code, dtype in clips.DTYPES.items():
        top = 2 if code == "BOOL" else 256
        bits = rng.integers(0, top, 6 * np.dtype(dtype).itemsize, np.uint8)
        tensors[f"{code}.matrix"] = bits.view(dtype).reshape(2, 3)
        tensors[f"{code}.scalar"] = bits[: np.dtype(dtype).itemsize].view(dtype).reshape(())
        tensors[f"{code}.empty"] = np.empty((0, 5), dtype)
    order = rng.permutation(sorted(tensors))
    with SafetensorsWriter(place / "x.safetensors", infos(tensors), {"format": "pt"}) as file:
        for name in order:
            file.write(name, tensors[name])
    with safetensors.safe_open(place / "x.safetensors", "np") as read:  # checks every offset
        assert read.metadata() == {"format": "pt"}
        assert set(read.keys()) == set(tensors)
        for name, value in tensors.items():
            if name.startswith("F8_"):
                continue  # the library has no array of these
            found = read.get_tensor(name)
            assert (found.shape, found.dtype) == (value.shape, value.dtype)
            assert found.tobytes() == value.tobytes(), name
    ours = open_checkpoint(place / "x.safetensors")
    clips.assert_same({name: ours.read(name) for name in ours.tensors}, tensors)


def test_every_tensor_is_aligned(place):
    tensors = {
        "a": np.ones(3, np.uint8),
        "b": np.ones(3, np.float64),
        "c": np.ones(5, np.float16),
        "d": np.ones(1, np.float32),
    }
    export.write_tensors(place / "x.safetensors", tensors)
    file = open_checkpoint(place / "x.safetensors").parts[0]
    for name, begin in file.begins.items():
        assert begin % tensors[name].itemsize == 0, name


def test_a_transposed_array_is_written_as_it_looks(place):
    value = np.arange(6, dtype=np.float32).reshape(2, 3).T
    export.write_tensors(place / "x.safetensors", {"w": value})
    np.testing.assert_array_equal(clips.read_all(place / "x.safetensors")["w"], value)


def test_a_dtype_the_format_lacks_is_refused_by_tensor(place):
    with pytest.raises(BadInput, match="tensor w is complex128"):
        export.write_tensors(place / "x.safetensors", {"w": np.ones(2, np.complex128)})
    assert left(place) == []


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16])
def test_what_is_not_finite_is_not_written(place, dtype, value):
    array = np.ones((2, 3), dtype)
    array[1, 2] = value
    with pytest.raises(BadInput, match="w holds NaN or infinity"):
        export.write_tensors(place / "x.safetensors", {"w": array})
    assert left(place) == []


def test_a_number_too_large_for_float32_is_finite_in_float64(place):
    export.write_tensors(place / "x.safetensors", {"w": np.array([1e300])})
    assert clips.read_all(place / "x.safetensors")["w"][0] == 1e300


# --- whole models -------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("prefix", ["", "model."])
def test_open_clip_models_come_out_as_open_clip_names_them(tmp_path, text, prefix):
    start = clips.open_clip(prefix=prefix, text=text) | {f"{prefix}attn_mask": np.arange(3)}
    like = open_checkpoint(clips.save(tmp_path / "in", start, clips.open_clip_json(text=text)))
    tree = clips.params(text=text, seed=1)
    write_model(tmp_path / "out", tree, like=like)
    found = clips.read_all(tmp_path / "out" / "open_clip_model.safetensors")
    clips.assert_same(found, clips.open_clip(text=text, seed=1) | {"attn_mask": np.arange(3)})
    assert load_clip(tmp_path / "out", text=text).vision == load_clip(like).vision


@pytest.mark.parametrize("prefix", ["", "vision_model."])
def test_hugging_face_models_keep_the_names_they_came_with(tmp_path, prefix):
    start = clips.hugging_face(prefix=prefix) | {f"{prefix}embeddings.position_ids": np.arange(5)}
    config = clips.hugging_face_json() | {"transformers_version": "5.0", "my_key": [1]}
    like = open_checkpoint(clips.save(tmp_path / "in", start, config))
    write_model(tmp_path / "out", clips.split(clips.params(seed=1)), like=like)
    found = clips.read_all(tmp_path / "out" / "model.safetensors")
    expected = start | clips.hugging_face(prefix=prefix, seed=1)
    clips.assert_same(found, expected)
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == config


def test_what_the_tree_does_not_hold_is_copied(tmp_path):
    start = clips.hugging_face(text=True) | {"vision_model.embeddings.position_ids": np.arange(5)}
    config = clips.hugging_face_json(text=True)
    like = open_checkpoint(clips.save_sharded(tmp_path / "in", start, config))
    write_model(tmp_path / "out", clips.split(clips.params(seed=1))["vision"], like=like)
    found = clips.read_all(tmp_path / "out" / "model.safetensors")
    clips.assert_same(found, start | clips.hugging_face(seed=1))


def test_tensors_keep_the_dtype_they_came_in(tmp_path):
    start = {
        name: value.astype(np.float16 if "bias" in name else ml_dtypes.bfloat16)
        for name, value in clips.hugging_face().items()
    }
    like = open_checkpoint(clips.save(tmp_path / "in", start, clips.hugging_face_json()))
    tree = clips.split(clips.params(seed=1))
    write_model(tmp_path / "out", tree, like=like)
    found = open_checkpoint(tmp_path / "out")
    assert found.tensors == like.tensors
    expected = clips.hugging_face(seed=1)
    for name, info in found.tensors.items():
        np.testing.assert_array_equal(found.read(name), expected[name].astype(info.dtype))


@pytest.mark.parametrize("fused", [False, True])
def test_a_tower_that_comes_from_no_checkpoint_has_the_layout_of_its_leaves(place, fused):
    tree = clips.params() if fused else clips.split(clips.params())
    write_model(place / "out", tree, like=replace(clips.VISION, fused_qkv=fused))
    loaded = load_clip(place / "out")
    assert loaded.names.layout == ("open_clip" if fused else "hugging_face")
    for name, value in loaded.params.items():
        np.testing.assert_equal(value, tree[name])


def test_companions_are_copied(tmp_path, model):
    for name in ("preprocessor_config.json", "merges.txt", "unrelated.txt"):
        (model.path / name).write_text("{}")
    write_model(tmp_path / "out", clips.split(clips.params()), like=model)
    assert (tmp_path / "out" / "preprocessor_config.json").read_text() == "{}"
    assert (tmp_path / "out" / "merges.txt").exists()
    assert not (tmp_path / "out" / "unrelated.txt").exists()


def test_companions_of_a_model_from_the_hub_are_copied_too(tmp_path, model, monkeypatch):
    (model.path / "merges.txt").write_text("a b")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(model.path))
    monkeypatch.chdir(tmp_path)
    write_model("out", clips.split(clips.params()), like=open_checkpoint("owner/model@v1"))
    assert (tmp_path / "out" / "merges.txt").read_text() == "a b"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.update(class_embedding=np.ones(9, np.float32)), r"has shape \(9,\)"),
        (lambda t: t.update(class_embedding=np.full(8, np.nan, np.float32)), "NaN or infinity"),
    ],
)
def test_a_tree_that_does_not_fit_leaves_nothing(place, model, change, words):
    tree = clips.split(clips.params())["vision"]
    change(tree)
    with pytest.raises(BadInput, match=words):
        write_model(place / "out", tree, like=model)
    assert left(place) == []


def test_a_leaf_that_the_checkpoint_lacks_is_named(tmp_path, place):
    tensors = clips.hugging_face(projection=False)
    config = clips.hugging_face_json(projection=False)
    like = open_checkpoint(clips.save(tmp_path / "in", tensors, config))
    with pytest.raises(BadInput, match=r"in: has no tensor visual_projection\.weight"):
        write_model(place / "out", clips.split(clips.params()), like=like)
    assert left(place) == []


def test_numbers_that_overflow_the_dtype_of_the_checkpoint_are_refused(tmp_path, place):
    tensors = {k: v.astype(np.float16) for k, v in clips.hugging_face().items()}
    like = open_checkpoint(clips.save(tmp_path / "in", tensors, clips.hugging_face_json()))
    tree = clips.split(clips.params())["vision"]
    tree["class_embedding"] = np.full(8, 1e6, np.float32)
    with pytest.raises(BadInput, match="class_embedding holds NaN or infinity"):
        write_model(place / "out", tree, like=like)
    assert left(place) == []


# --- the card -----------------------------------------------------------------------------------


def test_the_card_has_the_hash_of_every_file_and_its_own(place, model):
    head = {"weight": np.ones((2, 6), np.float32), "bias": np.zeros(2, np.float32)}
    out = write_model(
        place / "out", clips.split(clips.params()), like=model, heads={"pets": head},
        classes={"pets": ["cat", "dog"]}, card={"method": "made up", "path": "θ₀"},
    )  # fmt: skip
    card = json.loads((out / "merge_card.json").read_text(encoding="utf-8"))
    assert (card["format"], card["method"], card["path"]) == (1, "made up", "θ₀")
    assert card["files"] == {
        name: hashlib.sha256((out / name).read_bytes()).hexdigest()
        for name in ("config.json", "heads/pets.safetensors", "model.safetensors")
    }
    assert {"python", "symerge_jax", "jax", "numpy"} <= set(card["versions"])
    assert card["sha256"] == export.card_digest(card)
    assert card["sha256"] != export.card_digest({**card, "method": "another"})
    assert card["sha256"] == export.card_digest(dict(reversed(card.items())))


def test_cards_of_models_beneath_are_files_like_any_other(place):
    (place / "00_a").mkdir()
    (place / "00_a" / "merge_card.json").write_text("{}")
    export.write_card(place, {})
    card = json.loads((place / "merge_card.json").read_text())
    assert list(card["files"]) == ["00_a/merge_card.json"]


# --- places -------------------------------------------------------------------------------------


class Stop(Exception):
    pass


@pytest.mark.parametrize("error", [Stop(), KeyboardInterrupt(), BadInput("no")])
def test_a_failure_in_the_middle_leaves_nothing(place, error):
    def attempt():
        with new_folder(place / "out") as folder:
            assert folder.parent == place
            (folder / "half").write_bytes(b"half a model")
            raise error

    with pytest.raises(type(error)):
        attempt()
    assert left(place) == []


@pytest.mark.parametrize("error", [Stop(), KeyboardInterrupt()])
def test_a_failure_while_a_file_is_made_keeps_the_old_one(place, error):
    def attempt():
        with new_file(place / "x") as temporary:
            temporary.write_text("half")
            raise error

    (place / "x").write_text("old")
    with pytest.raises(type(error)):
        attempt()
    assert content(place) == {"x": b"old"}
    with new_file(place / "x") as temporary:
        temporary.write_text("new")
    assert content(place) == {"x": b"new"}


def test_an_empty_folder_may_be_there_already(place, model):
    (place / "out").mkdir()
    write_model(place / "out", clips.split(clips.params()), like=model)
    assert (place / "out" / "merge_card.json").exists()


def test_what_is_there_is_not_touched_without_overwrite(place, model):
    write_model(place / "out", clips.split(clips.params()), like=model)
    before = content(place)
    with pytest.raises(BadInput, match="out: is there already; choose another name or add --over"):
        write_model(place / "out", clips.split(clips.params(seed=1)), like=model)
    assert content(place) == before


def test_overwrite_replaces_the_whole_model(place, model):
    tree, more = clips.split(clips.params()), clips.split(clips.params(seed=1))
    head = {"weight": np.ones((2, 6), np.float32), "bias": np.zeros(2, np.float32)}
    write_model(place / "out", tree, like=model, heads={"old": head})
    write_model(place / "out", more, like=model, overwrite=True)
    assert left(place) == [
        "out",
        "out/config.json",
        "out/merge_card.json",
        "out/model.safetensors",
    ]
    np.testing.assert_equal(load_clip(place / "out").params["vision"], more["vision"])


@pytest.mark.parametrize("kind", ["file", "folder of something else"])
def test_overwrite_replaces_nothing_but_models(place, model, kind):
    if kind == "file":
        (place / "out").write_text("precious")
    else:
        (place / "out").mkdir()
        (place / "out" / "thesis.tex").write_text("precious")
    before = content(place)
    with pytest.raises(BadInput, match=r"--overwrite replaces only models with a merge_card\.json"):
        write_model(place / "out", clips.split(clips.params()), like=model, overwrite=True)
    assert content(place) == before


def test_a_model_that_appears_meanwhile_is_kept(place, model):
    def finish(folder):
        (place / "out").mkdir()
        (place / "out" / "x").write_text("somebody else's")

    with pytest.raises(BadInput, match="is there already"):
        write_model(place / "out", clips.split(clips.params()), like=model, finish=finish)
    assert content(place) == {"x": b"somebody else's"}
    assert left(place) == ["out", "out/x"]


def test_the_old_model_stays_if_the_new_one_cannot_be_put_there(place, model, monkeypatch):
    write_model(place / "out", clips.split(clips.params()), like=model)
    before, rename = content(place), os.rename

    def fail(source, target):
        if str(source).endswith(".tmp"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        rename(source, target)

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(BadInput, match="Input/output error"):
        write_model(place / "out", clips.split(clips.params(seed=1)), like=model, overwrite=True)
    assert content(place) == before
    assert all(name.startswith("out") for name in left(place))


def test_a_link_to_a_model_stays_a_link(place, model):
    write_model(place / "real", clips.split(clips.params()), like=model)
    (place / "link").symlink_to(place / "real")
    more = clips.split(clips.params(seed=1))
    write_model(place / "link", more, like=model, overwrite=True)
    assert (place / "link").is_symlink()
    np.testing.assert_equal(load_clip(place / "real").params["vision"], more["vision"])
    assert {name.partition("/")[0] for name in left(place)} == {"real", "link"}


@pytest.mark.parametrize("below", ["out", "deeper/out"])
def test_a_place_beneath_a_regular_file_is_named(place, model, below):
    (place / "file").write_text("x")
    with pytest.raises(BadInput, match=f"cannot be written, because {place / 'file'} is a file"):
        write_model(place / "file" / below, clips.split(clips.params()), like=model)
    assert left(place) == ["file"]


@pytest.mark.parametrize("after", [0, 1, 7])
def test_a_disk_that_fills_up_leaves_nothing(place, model, monkeypatch, after):
    write, calls = SafetensorsWriter.write, []

    def fills_up(self, name, array):
        calls.append(name)
        if len(calls) > after:
            full_disk()
        write(self, name, array)

    monkeypatch.setattr(SafetensorsWriter, "write", fills_up)
    with pytest.raises(BadInput, match="out: cannot be written, because no space is left there"):
        write_model(place / "out", clips.split(clips.params()), like=model)
    assert left(place) == []


@pytest.mark.parametrize("call", ["truncate", "fsync", "rename"])
def test_a_disk_that_says_so_late_leaves_nothing(place, model, monkeypatch, call):
    monkeypatch.setattr(os, call, full_disk)
    with pytest.raises(BadInput, match="no space is left there"):
        write_model(place / "out", clips.split(clips.params()), like=model)
    assert left(place) == []
