"""Scenes with maps: every layout is read alike, everything wrong is named."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from symerge_jax.data import dense
from symerge_jax.data.dense import Scenes, read_scene_images, read_scenes
from symerge_jax.errors import BadInput

PACKS = Path(os.environ.get("SYMERGE_DATA", Path(__file__).parents[1].parent / "shared" / "data"))
SIZE = (6, 8)


def drawn(count=3, size=SIZE, seed=0):
    """Scenes of which a tenth of the pixels does not count."""
    rng = np.random.default_rng(seed)
    shape = (count, *size)
    gaps = rng.random(shape) < 0.1
    normals = rng.normal(size=(*shape, 3)).astype(np.float32)
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    return Scenes(
        rng.integers(0, 256, (*shape, 3), dtype=np.uint8),
        np.where(gaps, -1, rng.integers(0, 13, shape)).astype(np.int8),
        np.where(gaps, 0, rng.uniform(0.5, 9, shape)).astype(np.float32),
        np.where(gaps[..., None], 0, normals).astype(np.float32),
    )


def save_mtan(folder, scenes, names=None):
    """As MTAN: images as shares, labels as floats, depths with a channel, numbers as names."""
    for i, (image, labels, depth, normal) in enumerate(zip(*scenes, strict=True)):
        name = str(i) if names is None else names[i]
        for kind, array in (
            ("image", image / 255), ("label", labels.astype(np.float32)),
            ("depth", depth[..., None]), ("normal", normal),
        ):  # fmt: skip
            (folder / kind).mkdir(parents=True, exist_ok=True)
            np.save(folder / kind / f"{name}.npy", array)


def save_npz(folder, scenes, **more):
    folder.mkdir(parents=True, exist_ok=True)
    for i, (image, labels, depth, normal) in enumerate(zip(*scenes, strict=True)):
        arrays = {"rgb": image, "label13": labels, "depth": depth, "normal": normal} | more
        kept = {name: array for name, array in arrays.items() if array is not None}
        np.savez_compressed(folder / f"{i:04}.npz", **kept)


def save_parquet(file, scenes, **more):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    columns = {
        "image": np.moveaxis(scenes.images / np.float32(255), -1, 1),
        "segmentation": scenes.labels.astype(np.int64),
        "depth": scenes.depths[:, None],
        "normal": np.moveaxis(scenes.normals, -1, 1),
    } | more
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(
        pa.table({name: pa.array(array.tolist()) for name, array in columns.items()}), file
    )


def save_own(folder, scenes):
    """As people keep them: pictures, with labels in 8 bits, and npy files."""
    save_mtan(folder, scenes, [f"room {i}" for i in range(len(scenes.images))])
    for kind, maps in (("image", scenes.images), ("label", scenes.labels.astype(np.uint8))):
        for i, each in enumerate(maps):
            (folder / kind / f"room {i}.npy").unlink()
            Image.fromarray(each).save(folder / kind / f"room {i}.png")


def assert_same(found, expected):
    for name, array, other in zip(Scenes._fields, found, expected, strict=True):
        assert array.dtype == other.dtype, name
        np.testing.assert_allclose(array, other, atol=1e-6, err_msg=name)


# --- layouts ------------------------------------------------------------------------------------


@pytest.mark.parametrize("save", [save_mtan, save_npz, save_own])
def test_every_layout_of_a_folder(tmp_path, save):
    scenes = drawn()
    save(tmp_path, scenes)
    assert_same(read_scenes(tmp_path), scenes)
    np.testing.assert_array_equal(read_scene_images(tmp_path), scenes.images)


def test_parquet_in_shards(tmp_path):
    scenes = drawn(11)
    save_parquet(
        tmp_path / "data" / "val-00000-of-00002.parquet", Scenes(*(x[:10] for x in scenes))
    )
    save_parquet(
        tmp_path / "data" / "val-00001-of-00002.parquet", Scenes(*(x[10:] for x in scenes))
    )
    save_parquet(tmp_path / "data" / "train-00000-of-00001.parquet", drawn(2, seed=1))
    assert_same(read_scenes(tmp_path, split="test"), scenes)
    assert_same(read_scenes(tmp_path, split="train"), drawn(2, seed=1))
    shard = tmp_path / "data" / "train-00000-of-00001.parquet"
    np.testing.assert_array_equal(read_scene_images(shard), drawn(2, seed=1).images)


def test_splits_as_folders(tmp_path):
    save_mtan(tmp_path / "train", drawn(4))
    save_mtan(tmp_path / "val", drawn(2, seed=1))
    assert_same(read_scenes(tmp_path, split="train"), drawn(4))
    assert_same(read_scenes(tmp_path, split="test"), drawn(2, seed=1))


def test_numbered_scenes_come_in_the_order_of_their_numbers(tmp_path):
    save_mtan(tmp_path, drawn(12))
    np.testing.assert_array_equal(read_scene_images(tmp_path), drawn(12).images)


def test_one_npz_is_one_scene(tmp_path):
    save_npz(tmp_path, drawn())
    assert_same(read_scenes(tmp_path / "0001.npz"), Scenes(*(x[1:2] for x in drawn())))


def test_pixels_that_are_not_valid_do_not_count(tmp_path):
    valid = np.zeros(SIZE, bool)
    valid[2:4, 3:] = True
    save_npz(tmp_path, drawn(), valid=valid)
    found, whole = read_scenes(tmp_path), drawn()
    np.testing.assert_array_equal(found.labels, np.where(valid, whole.labels, -1))
    np.testing.assert_array_equal(found.depths, np.where(valid, whole.depths, 0))
    np.testing.assert_array_equal((found.normals != 0).any(-1), valid & (whole.labels != -1))
    np.testing.assert_array_equal(found.images, whole.images)


def test_images_alone_are_enough_to_adapt(tmp_path):
    save_mtan(tmp_path / "a", drawn())
    for kind in ("label", "depth", "normal"):
        for file in (tmp_path / "a" / kind).iterdir():
            file.write_bytes(b"not to be opened")
    np.testing.assert_array_equal(read_scene_images(tmp_path / "a"), drawn().images)
    save_npz(tmp_path / "b", drawn(), label13=None, depth=None, normal=None)
    np.testing.assert_array_equal(read_scene_images(tmp_path / "b"), drawn().images)


def test_maps_that_are_not_needed_and_not_there_do_not_count(tmp_path):
    save_npz(tmp_path, drawn(), depth=None, normal=None)
    found = read_scenes(tmp_path, need=["labels"])
    np.testing.assert_array_equal(found.labels, drawn().labels)
    assert not found.depths.any()
    assert not found.normals.any()
    assert found.normals.shape == (3, *SIZE, 3)


def test_normals_come_out_with_length_one(tmp_path):
    scenes = drawn()
    save_npz(tmp_path, scenes._replace(normals=scenes.normals * np.float32(0.7)))
    assert_same(read_scenes(tmp_path), scenes)


@pytest.mark.parametrize("new", [(2, 4), (12, 16), SIZE])
def test_scenes_are_brought_to_one_size(tmp_path, new):
    # Four quarters, each of one colour, class, depth and normal.
    quarters = np.kron([[0, 1], [2, 3]], np.ones((3, 4), int))[None]
    directions = np.array([[1, 0, 0], [0, -1, 0], [0, 0, 1], [0, 0.6, 0.8]], np.float32)
    levels = (60 * quarters[..., None]).astype(np.uint8)
    scenes = Scenes(
        np.repeat(levels, 3, axis=-1), quarters.astype(np.int8),
        1 + quarters.astype(np.float32), directions[quarters],
    )  # fmt: skip
    save_npz(tmp_path, scenes)
    found = read_scenes(tmp_path, size=new)
    expected = np.kron([[0, 1], [2, 3]], np.ones((new[0] // 2, new[1] // 2), int))[None]
    np.testing.assert_array_equal(found.labels, expected)
    np.testing.assert_array_equal(found.depths, 1 + expected)
    np.testing.assert_allclose(found.normals, directions[expected], atol=1e-6)
    corners = found.images[0, :: new[0] - 1, :: new[1] - 1]
    blur = 25 if new[0] < SIZE[0] else 2  # images made smaller are smoothed
    np.testing.assert_allclose(corners[..., 0].ravel(), [0, 60, 120, 180], atol=blur)


def test_labels_of_255_in_8_bits_do_not_count(tmp_path):
    scenes = drawn()
    assert (scenes.labels == -1).any()
    save_npz(tmp_path, scenes._replace(labels=scenes.labels.astype(np.uint8)))
    np.testing.assert_array_equal(read_scenes(tmp_path).labels, scenes.labels)


@pytest.mark.skipif(not (PACKS / "nyuv2").is_dir(), reason="the data packs are not here")
def test_real_scenes():
    found = read_scenes(PACKS / "nyuv2", need=["labels"])
    assert found.images.shape == (4, 288, 384, 3)
    assert found.images.std() > 30
    assert found.labels.min() == -1
    assert len(np.unique(found.labels)) >= 9
    with pytest.raises(BadInput, match="expected depth maps of the scenes, found none"):
        read_scenes(PACKS / "nyuv2")
    billiards = read_scenes(PACKS / "nyuv2" / "0433.npz")
    known = billiards.depths[billiards.depths > 0]
    assert 0.5 < known.min() < known.max() < 10
    lengths = np.linalg.norm(billiards.normals, axis=-1)
    np.testing.assert_allclose(lengths[lengths > 0], 1, atol=1e-5)
    assert 0.5 < (lengths > 0).mean() < 0.9


# --- the cache ----------------------------------------------------------------------------------


def test_a_cache_is_mapped_and_found_again(tmp_path, monkeypatch):
    save_mtan(tmp_path / "data", drawn())
    first = read_scenes(tmp_path / "data", cache=tmp_path / "cache")
    monkeypatch.setattr(dense, "CHECKS", {})  # a second conversion would fail
    second = read_scenes(tmp_path / "data", cache=tmp_path / "cache")
    for found in (first, second):
        assert all(isinstance(array, np.memmap) for array in found)
        assert_same(found, drawn())


def test_a_cache_is_made_again_when_files_change_or_it_is_damaged(tmp_path):
    save_npz(tmp_path / "data", drawn())
    read_scenes(tmp_path / "data", cache=tmp_path / "cache")
    save_npz(tmp_path / "data", drawn(seed=1))
    assert_same(read_scenes(tmp_path / "data", cache=tmp_path / "cache"), drawn(seed=1))
    for file in (tmp_path / "cache").rglob("depths.npy"):
        file.write_bytes(file.read_bytes()[:-50])
    lines = []
    found = read_scenes(tmp_path / "data", cache=tmp_path / "cache", report=lines.append)
    assert_same(found, drawn(seed=1))
    assert len(lines) == 1
    assert "damaged" in lines[0]


# --- what is wrong ------------------------------------------------------------------------------


def sentence(call):
    """The one sentence of the error that the call raises."""
    with pytest.raises(BadInput) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text
    assert text.endswith(".")
    return text


@pytest.mark.parametrize(
    ("kind", "array", "words"),
    [
        (
            "depth",
            np.full(SIZE, 2500.0),
            "depths in metres, found 2500 to 2500, all above 100",
        ),
        ("depth", np.full(SIZE, 2500, np.uint16), "divide by 1000 if they are millimetres"),
        ("depth", np.full(SIZE, -1.0), "found -1 in row 0, column 0; set what is not known to 0"),
        ("depth", np.full(SIZE, np.nan), "found nan in row 0, column 0"),
        ("depth", np.zeros((*SIZE, 3)), "a depth map as floats [height, width], found float64"),
        ("depth", np.ones((6, 4)), "a map of 6 x 8 pixels like its image, found 6 x 4"),
        ("label", np.full(SIZE, 13), "labels from 0 to 12, or -1 for pixels to ignore, found 13"),
        ("label", np.full(SIZE, -2), "found -2 in row 0, column 0"),
        ("label", np.full(SIZE, 2.5), "found 2.5 in row 0"),
        ("label", np.full(SIZE, np.nan), "found nan in row 0"),
        ("label", np.full(SIZE, 40, np.uint8), "found 40 in row 0, column 0; map the classes"),
        (
            "label",
            np.zeros((*SIZE, 3), np.uint8),
            "integers [height, width], found uint8",
        ),
        ("label", np.zeros((8, 6), int), "a map of 6 x 8 pixels like its image, found 8 x 6"),
        ("normal", np.ones((*SIZE, 3)) * 2, "normals of length 1, 0 where not known, found (2, 2"),
        ("normal", np.full((*SIZE, 3), np.nan), "found (nan, nan, nan) in row 0"),
        (
            "normal",
            np.ones((*SIZE, 3), np.uint8),
            "floats [height, width, 3], found uint8",
        ),
        ("normal", np.ones(SIZE), "normals as floats [height, width, 3], found float64 (6, 8)"),
        ("image", np.full((*SIZE, 3), 2.0), "floats from 0 to 1, found float64 from 2 to 2"),
        ("image", np.full((*SIZE, 3), np.nan), "found float64 from nan to nan"),
        ("image", np.zeros(SIZE, np.uint8), "an image as uint8 [height, width, 3]"),
        ("image", np.zeros((5, 8, 3), np.uint8), "6 x 8 pixels as in the first scene, found 5 x 8"),
    ],
)
def test_a_map_that_is_something_else_is_named(tmp_path, kind, array, words):
    save_mtan(tmp_path, drawn())
    np.save(tmp_path / kind / "1.npy", array)
    text = sentence(lambda: read_scenes(tmp_path))
    assert text.startswith(str(tmp_path / kind / "1.npy"))
    assert words in text


def test_the_same_in_an_npz_and_in_parquet(tmp_path):
    far = drawn()._replace(depths=1000 * drawn().depths + 200)
    save_npz(tmp_path / "a", far)
    text = sentence(lambda: read_scenes(tmp_path / "a"))
    assert text.startswith(f"{tmp_path / 'a' / '0000.npz'}: `depth`: expected depths in metres")
    save_parquet(tmp_path / "x.parquet", far)
    text = sentence(lambda: read_scenes(tmp_path / "x.parquet"))
    assert text.startswith(f"{tmp_path / 'x.parquet'}: depth of row 0: expected depths in metres")


def test_a_map_that_is_missing_is_named(tmp_path):
    save_mtan(tmp_path / "a", drawn())
    (tmp_path / "a" / "depth" / "2.npy").unlink()
    text = sentence(lambda: read_scenes(tmp_path / "a"))
    assert f"{tmp_path / 'a' / 'depth'}: expected a file of the same name for" in text
    assert "found no 2 of type .npy among 2" in text
    for kind in ("depth", "normal"):
        for file in (tmp_path / "a" / kind).iterdir():
            file.unlink()
        (tmp_path / "a" / kind).rmdir()
    text = sentence(lambda: read_scenes(tmp_path / "a"))
    assert text.startswith(f"{tmp_path / 'a' / 'depth'}: expected depth maps of the scenes")
    save_npz(tmp_path / "b", drawn(), normal=None)
    assert "0000.npz: `normal`: expected normal maps" in sentence(
        lambda: read_scenes(tmp_path / "b")
    )
    save_npz(tmp_path / "c", drawn(), rgb=None)
    text = sentence(lambda: read_scenes(tmp_path / "c"))
    assert "expected npz files with `rgb`" in text
    assert "found label13, depth, normal in 0002.npz" in text


def test_a_mask_of_another_size_is_named(tmp_path):
    save_npz(tmp_path, drawn(), valid=np.ones((5, 8), bool))
    assert "expected `valid` of 6 x 8 pixels" in sentence(lambda: read_scenes(tmp_path))


def test_damaged_files_are_named(tmp_path):
    save_mtan(tmp_path / "a", drawn())
    file = tmp_path / "a" / "normal" / "1.npy"
    whole = file.read_bytes()
    for content in (b"", whole[:40], whole[: len(whole) // 2], b"garbage" * 40):
        file.write_bytes(content)
        text = sentence(lambda: read_scenes(tmp_path / "a"))
        assert text.startswith(f"{file}: ")
        assert "copy it again" in text
    save_npz(tmp_path / "b", drawn())
    file = tmp_path / "b" / "0001.npz"
    whole = file.read_bytes()
    flipped = bytearray(whole)
    flipped[100] ^= 255  # in the pixels
    for content in (b"", whole[: len(whole) // 2], b"garbage" * 40, bytes(flipped)):
        file.write_bytes(content)
        text = sentence(lambda: read_scenes(tmp_path / "b"))
        assert text.startswith(f"{file}: ")
        assert "damaged" in text
    save_parquet(tmp_path / "x.parquet", drawn())
    file = tmp_path / "x.parquet"
    file.write_bytes(file.read_bytes()[:-30])
    assert "cannot be read as parquet" in sentence(lambda: read_scenes(file))
    save_own(tmp_path / "c", drawn())
    for kind in ("image", "label"):
        file = tmp_path / "c" / kind / "room 1.png"
        whole = file.read_bytes()
        file.write_bytes(whole[: len(whole) // 2])
        assert sentence(lambda: read_scenes(tmp_path / "c")).startswith(f"{file}: ")
        file.write_bytes(whole)


def test_no_pickle_is_opened(tmp_path):
    save_mtan(tmp_path, drawn())
    np.save(tmp_path / "label" / "0.npy", np.array([None] * 4), allow_pickle=True)
    assert "damaged or not an npy file" in sentence(lambda: read_scenes(tmp_path))


def test_parquet_of_something_else_is_named(tmp_path):
    scenes = drawn()
    save_parquet(tmp_path / "a.parquet", scenes, image=np.array(["a", "b", "c"]))
    text = sentence(lambda: read_scenes(tmp_path / "a.parquet"))
    assert "image of row 0: expected a nested list of numbers, found string" in text
    import pyarrow as pa
    import pyarrow.parquet as pq

    ragged = pa.array([[[1.0, 2.0], [3.0]]])
    pq.write_table(pa.table({"image": ragged}), tmp_path / "b.parquet")
    text = sentence(lambda: read_scene_images(tmp_path / "b.parquet"))
    assert "image of row 0: expected lists of one length, found 1 to 2" in text
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "c.parquet")
    text = sentence(lambda: read_scene_images(tmp_path / "c.parquet"))
    assert "expected a column image, found text" in text


def test_places_without_scenes_are_named(tmp_path):
    (tmp_path / "empty").mkdir()
    text = sentence(lambda: read_scenes(tmp_path / "empty"))
    assert "expected scenes (a folder image, npz or parquet files), found nothing" in text
    assert "does not exist" in sentence(lambda: read_scenes(tmp_path / "nowhere"))
    (tmp_path / "a" / "image").mkdir(parents=True)
    assert "expected images (npy, .png" in sentence(lambda: read_scenes(tmp_path / "a"))
    (tmp_path / "notes.txt").write_text("no scene")
    assert "a file of type .txt" in sentence(lambda: read_scenes(tmp_path / "notes.txt"))
    save_mtan(tmp_path / "splits" / "train", drawn())
    text = sentence(lambda: read_scenes(tmp_path / "splits"))
    assert text.endswith(f"give {tmp_path / 'splits' / 'train'}.")
    text = sentence(lambda: read_scenes(tmp_path / "splits", split="test"))
    assert "expected a folder test or val or validation" in text
    assert "found train" in text


def test_two_files_of_one_scene_are_named(tmp_path):
    save_own(tmp_path, drawn())
    np.save(tmp_path / "image" / "room 0.npy", drawn().images[0])
    text = sentence(lambda: read_scenes(tmp_path))
    assert "is a second file for the scene of room 0.npy" in text


def test_labels_in_colours_are_named(tmp_path):
    save_own(tmp_path, drawn())
    Image.fromarray(drawn().images[0]).save(tmp_path / "label" / "room 0.png")
    assert "save the numbers, not colours" in sentence(lambda: read_scenes(tmp_path))
