"""Opened checkpoints: any dtype bit by bit, read lazily, and never half a file unnoticed."""

import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from clip_checkpoints import DTYPES, write_safetensors

from symerge_jax.checkpoints.open import open_checkpoint
from symerge_jax.checkpoints.source import TensorInfo, joined, open_safetensors
from symerge_jax.errors import BadInput


def drawn(shape, dtype, seed=0):
    """Random bits of a dtype; for bool, which has only two, random truth."""
    rng = np.random.default_rng(seed)
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    top = 2 if dtype is np.bool_ else 256
    return rng.integers(0, top, size, np.uint8).view(dtype).reshape(shape)


@pytest.fixture
def tensors():
    rng = np.random.default_rng(0)
    return {f"t{i}": rng.normal(size=(i + 1, 7)).astype(np.float32) for i in range(6)}


@pytest.fixture
def path(tmp_path, tensors):
    return write_safetensors(tmp_path / "x.safetensors", tensors)


@pytest.mark.parametrize("code", DTYPES)
def test_every_dtype_comes_bit_by_bit_with_scalars_and_empty_tensors(tmp_path, code):
    dtype = DTYPES[code]
    stored = {
        "matrix": drawn((2, 3), dtype),
        "scalar": drawn((), dtype, 1),
        "empty": drawn((0, 4), dtype),
        "vector": drawn((5,), dtype, 2),
    }
    file = open_safetensors(write_safetensors(tmp_path / "x.safetensors", stored))
    assert file.tensors == {k: TensorInfo(v.shape, v.dtype) for k, v in stored.items()}
    for name, value in stored.items():
        assert file.tensors[name].nbytes == value.nbytes
        out = np.empty_like(value)
        assert file.read(name, out) is out
        found = file.read(name)
        assert (found.shape, found.dtype) == (value.shape, value.dtype)
        assert found.tobytes() == out.tobytes() == value.tobytes()


def test_what_the_library_writes_is_read(tmp_path, tensors):
    safetensors.numpy.save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "pt"})
    file = open_safetensors(tmp_path / "x.safetensors")
    assert file.metadata == {"format": "pt"}
    assert set(file.tensors) == set(tensors)
    for name, value in tensors.items():
        np.testing.assert_array_equal(file.read(name), value)


def test_names_come_in_the_order_of_the_numbers_not_of_the_header(tmp_path):
    header = {
        "b": {"dtype": "U8", "shape": [2], "data_offsets": [3, 5]},
        "a": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]},
    }
    text = json.dumps(header).encode()
    place = tmp_path / "x.safetensors"
    place.write_bytes(len(text).to_bytes(8, "little") + text + b"abcde")
    file = open_safetensors(place)
    assert list(file.tensors) == ["a", "b"]
    assert file.read("b").tobytes() == b"de"


def test_a_tensor_is_read_into_a_row_of_a_larger_array(path, tensors):
    rows = np.zeros((3, *tensors["t2"].shape), np.float32)
    open_safetensors(path).read("t2", rows[1])
    np.testing.assert_array_equal(rows[1], tensors["t2"])
    assert not rows[0].any()
    assert not rows[2].any()


def test_a_file_larger_than_memory_is_opened_and_read_in_part(tmp_path):
    most = 1 << 40
    header = {
        "large": {"dtype": "U8", "shape": [most], "data_offsets": [0, most]},
        "small": {"dtype": "U8", "shape": [3], "data_offsets": [most, most + 3]},
    }
    text = json.dumps(header).encode()
    place = tmp_path / "x.safetensors"
    try:
        with open(place, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.seek(most, os.SEEK_CUR)
            file.write(b"end")
    except OSError as error:
        pytest.skip(f"no sparse files here ({error})")
    assert open_safetensors(place).read("small").tobytes() == b"end"


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's /proc")
def test_nothing_stays_open_or_mapped_between_reads(path):
    file = open_safetensors(path)
    kept = file.read("t3")
    handles = [os.readlink(f"/proc/self/fd/{n}") for n in _handles()]
    assert str(path) not in handles
    assert str(path) not in Path("/proc/self/maps").read_text()
    assert kept.flags.owndata


def _handles():
    return [n for n in os.listdir("/proc/self/fd") if os.path.islink(f"/proc/self/fd/{n}")]


def test_threads_read_without_disturbing_each_other(path, tensors):
    file = open_safetensors(path)
    start = threading.Barrier(8)

    def all_of(seed):
        start.wait()
        for name in np.random.default_rng(seed).permutation(sorted(tensors) * 20):
            assert file.read(name).tobytes() == tensors[name].tobytes()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(all_of, range(8)))


# --- damage -------------------------------------------------------------------------------------


def _header(**entries):
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text


WHOLE = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x10\0\0",
        _header(a=WHOLE),
        _header(a=WHOLE) + bytes(7),
        _header(a=WHOLE) + bytes(9),
        _header(a=WHOLE)[:-3],
        (1 << 62).to_bytes(8, "little") + b"{}",
        (4).to_bytes(8, "little") + b"\xff\xfe\x00\x01",
        (6).to_bytes(8, "little") + b"[1, 2]",
        _header(a={**WHOLE, "shape": [3]}) + bytes(8),
        _header(a={**WHOLE, "shape": [-2]}) + bytes(8),
        _header(a={**WHOLE, "data_offsets": [8, 0]}) + bytes(8),
        _header(a={**WHOLE, "dtype": "F33"}) + bytes(8),
        _header(a=WHOLE, b={**WHOLE, "data_offsets": [4, 12]}) + bytes(12),
        _header(a=WHOLE, b={**WHOLE, "data_offsets": [12, 20]}) + bytes(20),
        b"PK\x03\x04" + bytes(60),
    ],
    ids=[
        "empty",
        "three bytes",
        "no numbers",
        "a number short",
        "a byte too much",
        "half a header",
        "a header longer than the file",
        "a header of noise",
        "a header that is a list",
        "a shape of other size",
        "a negative shape",
        "offsets backwards",
        "an unknown dtype",
        "tensors that overlap",
        "a hole",
        "a zip",
    ],
)
def test_a_damaged_file_is_refused_by_name(tmp_path, content):
    place = tmp_path / "x.safetensors"
    place.write_bytes(content)
    with pytest.raises(BadInput, match="safetensors file|unknown dtype") as caught:
        open_safetensors(place)
    assert str(caught.value).startswith(f"{place}: ")
    assert "\n" not in str(caught.value)


def test_a_dtype_without_an_array_is_refused_by_tensor(tmp_path):
    place = tmp_path / "x.safetensors"
    entry = {"dtype": "F8_E8M0", "shape": [4], "data_offsets": [0, 4]}
    place.write_bytes(_header(a=WHOLE | {"data_offsets": [4, 12]}, odd=entry) + bytes(12))
    with pytest.raises(BadInput, match="tensor odd has the unknown dtype F8_E8M0"):
        open_safetensors(place)


@pytest.mark.parametrize("make", [lambda p: None, Path.mkdir], ids=["absent", "a folder"])
def test_what_cannot_be_read_is_named(tmp_path, make):
    place = tmp_path / "x.safetensors"
    make(place)
    with pytest.raises(BadInput, match="x.safetensors: cannot be read"):
        open_safetensors(place)


def test_a_file_cut_after_it_was_opened_gives_no_half_tensor(path):
    file = open_safetensors(path)
    os.truncate(path, path.stat().st_size - 4)
    assert file.read("t0").shape == (1, 7)
    with pytest.raises(BadInput, match="the file ends inside tensor t5; it changed while"):
        file.read("t5")


def test_a_file_gone_after_it_was_opened_is_named(path):
    file = open_safetensors(path)
    path.unlink()
    with pytest.raises(BadInput, match="x.safetensors: cannot be read"):
        file.read("t0")


# --- change -------------------------------------------------------------------------------------


def _same_size(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(0, 1))


def _replaced(path):
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    os.utime(other, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    os.replace(other, path)


def _grown(path):
    before = path.stat()
    path.write_bytes(path.read_bytes() + b"\0")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("change", [_same_size, _replaced, _grown, Path.unlink])
def test_a_file_that_changes_while_it_is_read_is_noticed(path, change):
    checkpoint = open_checkpoint(path)
    checkpoint.read("t1")
    checkpoint.check_unchanged()
    change(path)
    with pytest.raises(BadInput, match="x.safetensors: (the file changed|cannot be read)"):
        checkpoint.check_unchanged()


def test_a_changed_config_is_noticed_too(tmp_path, tensors):
    write_safetensors(tmp_path / "model.safetensors", tensors)
    (tmp_path / "config.json").write_text("{}")
    checkpoint = open_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text('{"hidden_act": "gelu"}')
    with pytest.raises(BadInput, match="config.json: the file changed"):
        checkpoint.check_unchanged()


# --- several files ------------------------------------------------------------------------------


def test_parts_are_joined_in_their_order(tmp_path, tensors):
    parts = [
        open_safetensors(write_safetensors(tmp_path / f"{i}.safetensors", {f"t{i}": tensors["t1"]}))
        for i in (2, 0, 1)
    ]
    checkpoint = joined(tmp_path, parts)
    assert list(checkpoint.tensors) == ["t2", "t0", "t1"]
    assert checkpoint.container == "safetensors, 3 shards"
    np.testing.assert_array_equal(checkpoint.read("t1"), tensors["t1"])


def test_a_tensor_in_two_files_is_refused(tmp_path, tensors):
    parts = [
        open_safetensors(write_safetensors(tmp_path / f"{i}.safetensors", tensors)) for i in "ab"
    ]
    with pytest.raises(BadInput, match=r"tensor t0 is in a\.safetensors and b\.safetensors"):
        joined(tmp_path, parts)


def test_a_file_without_tensors_is_refused(tmp_path):
    write_safetensors(tmp_path / "x.safetensors", {}, {"format": "pt"})
    with pytest.raises(BadInput, match="holds no tensors"):
        open_checkpoint(tmp_path / "x.safetensors")
