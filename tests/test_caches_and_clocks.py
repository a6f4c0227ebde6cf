"""What runs survive: caches that are damaged or read-only, clocks that are wrong."""

import ast
import inspect
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from experiments import records
from symerge_jax import cache
from symerge_jax.checkpoints import hashes
from symerge_jax.checkpoints.source import Checkpoint
from symerge_jax.data import dense, image_cache, text_cache
from symerge_jax.data.dense import read_scenes
from symerge_jax.data.image_cache import decode_all
from symerge_jax.data.text_cache import tokens_of
from symerge_jax.data.text_columns import TextColumns
from symerge_jax.data.text_files import read_table
from symerge_jax.errors import BadInput

ROOT = Path(__file__).resolve().parents[1]

unchecked = inspect.unwrap(tokens_of)  # without the tests' own checks of types


class Counted:
    """Something expensive that a cache keeps, and how often it was made."""

    def __init__(self, kind, root, monkeypatch):
        self.kind, self.folder, self.made = kind, root / "cache", 0
        self.lines = []
        self.texts, self.scene = root / "texts.tsv", root / "scenes" / "0.npz"
        self.texts.write_text("sentence\nsome text\n")
        self.scene.parent.mkdir()
        np.savez(
            self.scene, rgb=np.ones((4, 6, 3), np.uint8), label13=np.ones((4, 6), np.int8),
            depth=np.ones((4, 6), np.float32), normal=np.full((4, 6, 3), 3**-0.5, np.float32),
        )  # fmt: skip
        real = dense._write

        def write(path, count, maps):
            self.made += path.stem == "images"
            real(path, count, maps)

        monkeypatch.setattr(dense, "_write", write)

    def __call__(self):
        if self.kind == "arrays":
            made = cache.cached(self.folder, "x", {}, self._arrays, report=self.lines.append)
            return made["array"]
        if self.kind == "images":
            return decode_all(
                self._images(), 2, size=8, cache=self.folder, key={}, report=self.lines.append
            )
        if self.kind == "scenes":
            return read_scenes(
                self.scene.parent, cache=self.folder, report=self.lines.append
            ).images
        return unchecked(
            read_table(self.texts), TextColumns(("sentence",), None), self._tokens, max_length=8,
            cache=self.folder, report=self.lines.append,
        )  # fmt: skip

    def _arrays(self):
        self.made += 1
        return {"array": np.arange(4)}

    def _images(self):
        self.made += 1
        yield from ((np.full((8, 8), i, np.uint8), f"image {i}") for i in range(2))

    @property
    def _tokens(self):
        def encode(*texts, max_length):
            self.made += 1
            return np.arange(max_length, dtype=np.int32)[None]

        encode.digest = "vocabulary"
        return encode


@pytest.fixture(params=["arrays", "images", "scenes", "tokens"])
def expensive(request, tmp_path, monkeypatch):
    return Counted(request.param, tmp_path, monkeypatch)


def entry(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())[0]


def test_a_read_only_cache_is_found_out_before_the_work(expensive, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError(30, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "touch", refuse)
        with pytest.raises(BadInput, match="Read-only file system.; change the folder's perm"):
            expensive()
        assert expensive.made == 0
    expensive()
    monkeypatch.setattr(Path, "touch", refuse)
    expensive()  # what is there can be read all the same
    assert expensive.made == 1


def test_a_file_in_place_of_a_cache_is_found_out_before_the_work(expensive):
    expensive.folder.write_text("")
    with pytest.raises(BadInput, match="is a file where a folder is needed; choose another place"):
        expensive()
    assert expensive.made == 0


@pytest.mark.parametrize("damage", ["half", "empty", "zip", "header", "number"])
def test_a_damaged_entry_is_made_again(expensive, damage):
    whole = np.array(expensive())
    path = entry(expensive.folder)
    content = path.read_bytes()
    with open(path, "wb") as file:
        if damage == "zip":
            np.savez(file, array=whole)
        elif damage == "number":
            np.save(file, np.uint8(3))
        else:
            broken = {"half": content[: len(content) // 2], "empty": b"", "header": content[:9] * 9}
            file.write(broken[damage])
    np.testing.assert_array_equal(expensive(), whole)
    assert expensive.made == 2
    assert len(expensive.lines) == 1
    assert "damaged cache file" in expensive.lines[0]
    expensive()
    assert expensive.made == 2


def test_an_entry_of_another_version_is_not_found(expensive, monkeypatch):
    expensive()
    for module in (cache, dense, image_cache, text_cache):
        monkeypatch.setattr(module, "FORMAT", 99)
    expensive()
    assert expensive.made == 2
    assert expensive.lines == []


# --- clocks -------------------------------------------------------------------------------------


def remembered(path, memory):
    with hashes.hashing() as pool:
        started = hashes.start_hashing([Checkpoint(path, (), {}, extra=(path,))], pool, memory)
        found = started[path].result()
    hashes.remember(started, memory)
    return found


@pytest.mark.parametrize("skew", [-1e6, 1e6], ids=["slow", "fast"])
def test_hashes_are_right_whatever_the_clocks_say(tmp_path, monkeypatch, skew):
    path, memory, now = tmp_path / "weights", tmp_path / "memory", time.time()
    path.write_bytes(b"one")
    os.utime(path, (now + skew,) * 2)
    first = remembered(path, memory)
    assert remembered(path, memory) == first
    monkeypatch.setattr(time, "time", lambda: now - 1e7)  # the clock is set back
    path.write_bytes(b"two")
    os.utime(path, (now + skew + 1,) * 2)
    assert remembered(path, memory) == hashes.sha256(path) != first


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{",
        "[" * 9999,
        '{"%s": 5}',
        '{"%s": [1, 2, 3, 4, 5]}',
        '{"%s": [3, 1, 1, "x", "y"]}',
    ],
)
def test_damaged_memory_of_hashes_is_forgotten(tmp_path, content):
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / hashes.FILE).write_text(content.replace("%s", str(path)))
    assert remembered(path, tmp_path / "memory") == hashes.sha256(path)
    kept = json.loads((tmp_path / "memory" / hashes.FILE).read_text())
    assert kept[str(path)][3] == hashes.sha256(path)


def test_runs_that_start_together_get_folders_of_their_own(tmp_path, monkeypatch):
    now = datetime.now(UTC)
    record = records.new_record("vision", "tiny", {})

    def at(when):
        monkeypatch.setattr(records, "datetime", SimpleNamespace(now=lambda zone: when))
        with ThreadPoolExecutor(8) as pool:
            return list(pool.map(lambda _: records.new_folder(record, tmp_path), range(20)))

    folders = [*at(now), *at(now - timedelta(hours=1)), *at(now)]
    assert len(set(folders)) == 60


def test_a_clock_that_is_set_back_makes_no_negative_duration(monkeypatch):
    record = records.new_record("vision", "tiny", {})
    times = iter(range(100, 0, -1))
    monkeypatch.setattr(time, "time", lambda: next(times))
    with records.phase(record, "merge"):
        pass
    assert record["phases_s"]["merge"] >= 0


def test_durations_never_come_from_the_clock_on_the_wall():
    sources = [*(ROOT / "symerge_jax").rglob("*.py"), *(ROOT / "experiments").rglob("*.py")]
    texts = {path: path.read_text(encoding="utf-8") for path in sources}
    users = {
        path.name
        for path, text in texts.items()
        if "time.time" in text
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "time.time"
    }
    assert users <= {"hashes.py"}  # which compares with times of files
