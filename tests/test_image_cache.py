"""Images decoded once into a mapped file."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from symerge_jax.data import image_cache
from symerge_jax.data.image_cache import decode_all, files_key
from symerge_jax.data.preprocess import resize_and_crop
from symerge_jax.errors import BadInput


def pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encoded(image, kind="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind)
    return np.frombuffer(buffer.getvalue(), np.uint8)


def named(images):
    return [(image, f"image {i}") for i, image in enumerate(images)]


def never():
    raise AssertionError("the images were read again")
    yield


def entries(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_files_bytes_and_pixels_come_out_alike(tmp_path):
    image = pixels(12, 20, 3)
    Image.fromarray(image).save(tmp_path / "x.png")
    sources = [tmp_path / "x.png", encoded(image), image, image[..., 0]]
    found = decode_all(named(sources), 4, size=8, cache=tmp_path / "cache", key={})
    assert found.dtype == np.uint8
    assert found.shape == (4, 8, 8, 3)
    for row in found[:3]:
        np.testing.assert_array_equal(row, resize_and_crop(image, 8))
    np.testing.assert_array_equal(found[3], resize_and_crop(image[..., 0], 8))


def test_chunks_and_threads_change_nothing(tmp_path, monkeypatch):
    images = [pixels(9, 9 + i, seed=i) for i in range(23)]
    expected = np.stack([resize_and_crop(image, 8) for image in images])
    for chunk, workers in ((1, 1), (7, 2), (100, None)):
        monkeypatch.setattr(image_cache, "CHUNK", chunk)
        done = []
        found = decode_all(
            named(images), 23, size=8, cache=tmp_path / str(chunk), key={}, workers=workers,
            progress=done.append,
        )  # fmt: skip
        np.testing.assert_array_equal(found, expected)
        assert done == [*range(chunk, 23, chunk), 23]


def test_a_second_time_they_are_found_without_being_read(tmp_path):
    first = decode_all(named([pixels(8, 8)]), 1, size=8, cache=tmp_path, key={"of": "x"})
    again = decode_all(never(), 1, size=8, cache=tmp_path, key={"of": "x"})
    np.testing.assert_array_equal(again, first)
    assert isinstance(again, np.memmap)
    assert not again.flags.writeable
    assert len(entries(tmp_path)) == 1


@pytest.mark.parametrize("other", [{"size": 4}, {"key": {"of": "y"}}, {"count": 2}])
def test_another_size_key_or_count_is_another_entry(tmp_path, other):
    same = {"size": 8, "key": {"of": "x"}, "count": 1}
    for settings in (same, same | other):
        images = named([pixels(8, 8)] * settings["count"])
        decode_all(images, cache=tmp_path, **settings)
    assert len(entries(tmp_path)) == 2


@pytest.mark.parametrize("damage", ["cut", "text", "shape"])
def test_a_damaged_entry_is_made_again(tmp_path, damage):
    image = pixels(8, 8, 3)
    decode_all(named([image]), 1, size=8, cache=tmp_path, key={})
    (path,) = entries(tmp_path)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    elif damage == "text":
        path.write_text("no array")
    else:
        np.save(path, np.zeros((1, 4, 4, 3), np.uint8))
    lines = []
    found = decode_all(named([image]), 1, size=8, cache=tmp_path, key={}, report=lines.append)
    np.testing.assert_array_equal(found[0], image)
    assert len(lines) == 1
    assert "damaged cache file" in lines[0]


def test_pickled_objects_are_never_opened(tmp_path):
    decode_all(named([pixels(8, 8)]), 1, size=8, cache=tmp_path, key={})
    (path,) = entries(tmp_path)
    np.save(path, np.array([print], object), allow_pickle=True)
    lines = []
    decode_all(named([pixels(8, 8)]), 1, size=8, cache=tmp_path, key={}, report=lines.append)
    assert len(lines) == 1


def test_an_image_that_cannot_be_read_leaves_nothing_behind(tmp_path):
    images = [*named([pixels(8, 8)] * 3), (np.arange(9, dtype=np.uint8), "the bad one")]
    with pytest.raises(BadInput, match="the bad one: the image cannot be read"):
        decode_all(images, 4, size=8, cache=tmp_path, key={})
    assert entries(tmp_path) == []


def test_a_wrong_count_is_refused(tmp_path):
    with pytest.raises(BadInput, match="expected 3 images to decode, found 2"):
        decode_all(named([pixels(8, 8)] * 2), 3, size=8, cache=tmp_path, key={})
    assert entries(tmp_path) == []


def test_too_little_space_is_found_out_before_the_work(tmp_path):
    with pytest.raises(BadInput, match="decoded images need 150528.0 GB, but .* GB are free there"):
        decode_all(never(), 10**9, size=224, cache=tmp_path, key={})


def test_small_files_count_by_content(tmp_path):
    (tmp_path / "a").write_bytes(b"1")
    before = files_key([tmp_path / "a"], root=tmp_path)
    os.utime(tmp_path / "a", ns=(5, 5))
    assert files_key([tmp_path / "a"], root=tmp_path) == before
    (tmp_path / "a").write_bytes(b"2")
    assert files_key([tmp_path / "a"], root=tmp_path) != before


def test_large_files_count_by_name_size_and_time(tmp_path, monkeypatch):
    monkeypatch.setattr(image_cache, "SMALL", 3)
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(b"1234")
        os.utime(tmp_path / name, ns=(5, 5))
    keys = [files_key([tmp_path / name], root=tmp_path) for name in ("a", "b")]
    assert keys[0] != keys[1]
    os.utime(tmp_path / "a", ns=(6, 6))
    assert files_key([tmp_path / "a"], root=tmp_path) != keys[0]


def test_a_moved_folder_keeps_its_key(tmp_path):
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a").write_bytes(b"1")
    keys = {files_key([tmp_path / n / "a"], root=tmp_path / n) for n in ("here", "there")}
    assert len(keys) == 1


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(BadInput, match="absent: cannot be read"):
        files_key([Path(tmp_path / "absent")], root=tmp_path)
