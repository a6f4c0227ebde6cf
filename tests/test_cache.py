"""The cache returns what was made, notices damage, and says why it cannot be written."""

import errno
import os
from pathlib import Path

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from symerge_jax.cache import cached, digest, flatten, unflatten
from symerge_jax.errors import BadInput

KEY = {"model": "tiny", "seed": 0, "rates": [0.1, 0.2]}


def tree():
    return {
        "block": {
            "w": jnp.arange(6, dtype=jnp.float32).reshape(2, 3),
            "strided": np.arange(6).reshape(2, 3).T,
        },
        "bias": np.array([1, 2], ml_dtypes.bfloat16),
        "mask": np.array([[True], [False]]),
        "empty": np.zeros((0, 3), np.uint8),
        "step": np.array(7, np.int32),
    }


class Maker:
    """Makes the tree and counts how often it was asked to."""

    def __init__(self):
        self.calls = 0

    def __call__(self):
        self.calls += 1
        return tree()


def refuse():
    raise AssertionError("made although it is in the cache")


def assert_is_the_tree(found):
    flat, expected = flatten(found), flatten(tree())
    assert list(flat) == list(expected)
    for name, array in expected.items():
        assert flat[name].dtype == array.dtype
        np.testing.assert_array_equal(flat[name], array)


def only_file(folder):
    (file,) = (path for path in folder.rglob("*") if path.is_file())
    return file


def test_a_hit_returns_what_a_miss_returned(tmp_path):
    missed = cached(tmp_path, "experts", KEY, tree)
    hit = cached(tmp_path, "experts", KEY, refuse)
    assert_is_the_tree(missed)
    assert_is_the_tree(hit)
    assert list(missed) == list(hit)
    assert only_file(tmp_path).parent == tmp_path / "experts"


@pytest.mark.parametrize(
    "other",
    [
        {**KEY, "seed": 1},
        {**KEY, "seed": False},
        {**KEY, "new": None},
        {**KEY, "rates": [0.2, 0.1]},
    ],
)
def test_another_key_is_another_entry(tmp_path, other):
    make = Maker()
    cached(tmp_path, "experts", KEY, make)
    cached(tmp_path, "experts", other, make)
    cached(tmp_path, "other_kind", KEY, make)
    assert make.calls == 3


def test_equal_keys_find_each_other_whatever_their_order_and_number_types(tmp_path):
    key = {"images": np.arange(4), "n": 3, "at": Path("x"), "pair": (1, 2)}
    same = {"pair": [1, 2], "at": Path("x"), "n": np.int64(3), "images": np.arange(4)}
    cached(tmp_path, "experts", key, tree)
    assert_is_the_tree(cached(tmp_path, "experts", same, refuse))


def test_no_folder_means_no_cache(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert_is_the_tree(cached(None, "experts", KEY, tree))
    assert os.listdir(tmp_path) == []


def damage_every_which_way(content):
    """Names and contents of damaged copies of a file."""
    last, half = len(content) - 1, len(content) // 2
    yield "empty", b""
    yield "garbage", b"not a cache file at all"
    yield "truncated", content[:half]
    yield "one byte short", content[:-1]
    yield "longer", content + b"x"
    for position in (0, 20, half, last):
        flipped = bytearray(content)
        flipped[position] ^= 1
        yield f"byte {position} flipped", bytes(flipped)


def test_a_damaged_file_is_made_again_and_reported(tmp_path):
    cached(tmp_path, "experts", KEY, tree)
    file = only_file(tmp_path)
    whole = file.read_bytes()
    for name, damaged in damage_every_which_way(whole):
        file.write_bytes(damaged)
        lines, make = [], Maker()
        assert_is_the_tree(cached(tmp_path, "experts", KEY, make, report=lines.append))
        assert make.calls == 1, name
        assert len(lines) == 1, name
        assert str(file) in lines[0]
        assert "damaged cache file" in lines[0]
        assert "\n" not in lines[0]
        assert_is_the_tree(cached(tmp_path, "experts", KEY, refuse))


def test_every_byte_of_the_arrays_is_under_the_checksum(tmp_path):
    cached(tmp_path, "experts", KEY, lambda: {"w": np.arange(8, dtype=np.uint8)})
    file = only_file(tmp_path)
    whole = file.read_bytes()
    for position in range(len(whole) - 8, len(whole)):
        flipped = bytearray(whole)
        flipped[position] ^= 128
        file.write_bytes(flipped)
        lines = []
        cached(
            tmp_path,
            "experts",
            KEY,
            lambda: {"w": np.arange(8, dtype=np.uint8)},
            report=lines.append,
        )
        assert "checksum" in lines[0]


def test_a_file_of_another_key_is_not_believed(tmp_path):
    cached(tmp_path, "experts", {"seed": 1}, lambda: {"w": np.ones(2)})
    other = only_file(tmp_path).read_bytes()
    cached(tmp_path, "experts", KEY, tree)
    for file in (tmp_path / "experts").iterdir():
        file.write_bytes(other)
    lines = []
    assert_is_the_tree(cached(tmp_path, "experts", KEY, tree, report=lines.append))
    assert "another key" in lines[0]


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(BadInput, match=r"safetensors: cannot be written, because no space is left"):
        cached(tmp_path, "experts", KEY, tree)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_cache_that_cannot_be_written_is_found_out_before_the_work(tmp_path):
    (tmp_path / "cache").write_text("a regular file")
    with pytest.raises(BadInput, match="is a file where a folder is needed"):
        cached(tmp_path / "cache", "experts", KEY, refuse)


def test_nothing_is_stored_when_making_fails(tmp_path):
    def fail():
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        cached(tmp_path, "experts", KEY, fail)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_flatten_and_unflatten_are_inverse():
    flat = {"a/b/c": np.ones(1), "a/b/d": np.ones(2), "e": np.ones(3)}
    assert flatten(unflatten(flat)).keys() == flat.keys()
    for bad in ({"a/b": np.ones(1)}, {"": np.ones(1)}, {"a": {}}):
        with pytest.raises(AssertionError, match="cannot store"):
            flatten(bad)


def test_digest_is_about_content():
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    same = [
        digest({"a": array, "b": 1}),
        digest({"b": 1, "a": jnp.asarray(array)}),
        digest({"b": 1, "a": np.asfortranarray(array)}),
    ]
    assert len(set(same)) == 1
    assert len(same[0]) == 64


def test_digest_tells_things_apart():
    array = np.arange(6, dtype=np.float32)
    things = [
        (1,), (1.0,), (True,), ("1",), (b"1",), (None,), ("None",), (), ("",), ("a", "b"), ("ab",),
        (["a", "b"],), (["a"], ["b"]), ({"a": "b"},), ({"a": {"b": 1}},), ({"a": 1, "b": 1},),
        (Path("a"),), ("a",), (array,), (array.reshape(2, 3),), (array.astype(np.float64),),
        (array.view(np.int32),), (array[:5],), (np.float32(1),),
        (array.astype(ml_dtypes.bfloat16),),
    ]  # fmt: skip
    assert len({digest(*thing) for thing in things}) == len(things)


def test_digest_refuses_what_has_no_content():
    for thing in (object(), {1, 2}, np.array([object()])):
        with pytest.raises(TypeError, match="by content"):
            digest(thing)
