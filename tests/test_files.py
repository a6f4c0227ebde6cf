"""Files come out whole or not at all, and say why not."""

import errno
import os

import pytest

from symerge_jax.errors import BadInput
from symerge_jax.files import make_folder, write_atomically


def test_bytes_text_and_writers_are_written_with_their_folders(tmp_path):
    contents = {"a/x.bin": b"\x00\xff", "b/c/x.txt": "θ₀", "y": lambda file: file.write(b"written")}
    for name, content in contents.items():
        assert write_atomically(tmp_path / name, content) == tmp_path / name
    assert (tmp_path / "a/x.bin").read_bytes() == b"\x00\xff"
    assert (tmp_path / "b/c/x.txt").read_text(encoding="utf-8") == "θ₀"
    assert (tmp_path / "y").read_bytes() == b"written"


def test_an_existing_file_is_replaced(tmp_path):
    write_atomically(tmp_path / "x", "old")
    write_atomically(tmp_path / "x", "new")
    assert (tmp_path / "x").read_text() == "new"


@pytest.mark.parametrize("error", [ValueError("not our doing"), KeyboardInterrupt()])
def test_a_failing_writer_keeps_the_old_file_and_leaves_nothing_else(tmp_path, error):
    def broken(file):
        file.write(b"half")
        raise error

    write_atomically(tmp_path / "x", "old")
    with pytest.raises(type(error)):
        write_atomically(tmp_path / "x", broken)
    assert os.listdir(tmp_path) == ["x"]
    assert (tmp_path / "x").read_text() == "old"


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "no space is left there; free some"),
        (errno.EDQUOT, "no space is left there; free some"),
        (errno.EROFS, "Read-only file system"),
        (errno.EACCES, "change the folder's permissions"),
        (errno.EIO, "Input/output error"),
    ],
)
def test_a_full_or_read_only_disk_is_named_and_nothing_stays(
    tmp_path, monkeypatch, call, number, words
):
    def fail(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(BadInput, match=words) as caught:
        write_atomically(tmp_path / "x", b"content")
    assert str(caught.value).startswith(f"{tmp_path / 'x'}: cannot be written")
    assert os.listdir(tmp_path) == []


def test_a_disk_that_fills_up_while_writing_is_named(tmp_path):
    def fill(file):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(BadInput, match="no space is left"):
        write_atomically(tmp_path / "x", fill)
    assert os.listdir(tmp_path) == []


def test_a_file_in_place_of_a_folder_is_named(tmp_path):
    (tmp_path / "runs").write_text("a regular file")
    for attempt in (
        lambda: write_atomically(tmp_path / "runs" / "record.json", "{}"),
        lambda: write_atomically(tmp_path / "runs" / "deeper" / "record.json", "{}"),
        lambda: make_folder(tmp_path / "runs"),
    ):
        with pytest.raises(BadInput, match="runs is a file where a folder is needed"):
            attempt()


def test_a_folder_in_place_of_the_file_is_named(tmp_path):
    (tmp_path / "record.json").mkdir()
    with pytest.raises(BadInput, match="expected a file to write, found a folder"):
        write_atomically(tmp_path / "record.json", "{}")


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_named(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(BadInput, match="change the folder's permissions"):
        write_atomically(tmp_path / "x", "content")
