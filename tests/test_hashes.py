"""Hashes of input files, and when a remembered one is believed."""

import hashlib
import json
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from clip_checkpoints import write_safetensors

from symerge_jax.checkpoints import hashes
from symerge_jax.checkpoints.hashes import hash_files, hashing, remember, sha256, start_hashing
from symerge_jax.checkpoints.open import open_checkpoint
from symerge_jax.checkpoints.source import Checkpoint
from symerge_jax.errors import BadInput


@pytest.fixture
def old(tmp_path):
    path = tmp_path / "old.bin"
    path.write_bytes(b"weights")
    os.utime(path, (time.time() - 100,) * 2)
    return path


def run(*paths, memory):
    with hashing() as pool:
        started = start_hashing([Checkpoint(paths[0], (), {}, extra=paths)], pool, memory)
        found = {path: future.result() for path, future in started.items()}
    remember(started, memory)
    return found


@pytest.mark.parametrize("size", [0, 1, 8, 9, 20])
def test_pieces_do_not_change_the_hash(tmp_path, monkeypatch, size):
    monkeypatch.setattr(hashes, "HASH_BYTES", 8)
    content = os.urandom(size)
    (tmp_path / "x").write_bytes(content)
    assert sha256(tmp_path / "x") == hashlib.sha256(content).hexdigest()
    with hashing() as pool:
        assert hash_files([tmp_path / "x"], pool)[tmp_path / "x"].result() == sha256(tmp_path / "x")


def test_a_file_that_stays_the_same_is_hashed_once(old, tmp_path, monkeypatch):
    first = run(old, memory=tmp_path / "memory")
    monkeypatch.setattr(hashes, "sha256", lambda path: pytest.fail("hashed again"))
    assert run(old, memory=tmp_path / "memory") == first


def test_a_changed_file_is_hashed_again(old, tmp_path):
    before = run(old, memory=tmp_path / "memory")
    old.write_bytes(b"Weights")  # the same size
    os.utime(old, (time.time() - 50,) * 2)
    after = run(old, memory=tmp_path / "memory")
    assert after[old] == hashlib.sha256(b"Weights").hexdigest() != before[old]


def test_a_file_changed_a_moment_ago_is_not_believed(old, tmp_path, monkeypatch):
    os.utime(old)  # now: another change could leave the time as it is
    run(old, memory=tmp_path / "memory")
    hashed = []
    monkeypatch.setattr(hashes, "sha256", lambda path: hashed.append(path) or "fresh")
    assert run(old, memory=tmp_path / "memory") == {old: "fresh"}
    assert hashed == [old]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"x": 3}', '{"x": [1, 2]}'])
def test_a_damaged_memory_is_forgotten(old, tmp_path, content):
    memory = tmp_path / "memory"
    memory.mkdir()
    (memory / hashes.FILE).write_text(content)
    assert run(old, memory=memory)[old] == hashlib.sha256(b"weights").hexdigest()
    assert len(json.loads((memory / hashes.FILE).read_text())) >= 1


def test_no_place_for_the_memory_is_no_error(old, tmp_path):
    (tmp_path / "file").write_text("")
    assert run(old, memory=tmp_path / "file" / "memory")[old] == sha256(old)


def test_hashes_are_sha256_of_each_file_once(tmp_path):
    write_safetensors(tmp_path / "model.safetensors", {"w": np.ones(3, np.float32)})
    (tmp_path / "config.json").write_text("{}")
    checkpoint = open_checkpoint(tmp_path)
    with hashing() as pool:
        found = start_hashing([checkpoint, checkpoint], pool)
        assert {path.name: future.result() for path, future in found.items()} == {
            name: hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
            for name in ("model.safetensors", "config.json")
        }


def test_hashing_a_file_that_is_gone_is_bad_input(tmp_path):
    with pytest.raises(BadInput, match="gone: cannot be read"):
        sha256(tmp_path / "gone")


def test_hashes_nobody_waits_for_are_dropped(monkeypatch):
    begun, go = [], threading.Event()

    def slow(path):
        begun.append(path)
        go.wait(10)

    monkeypatch.setattr(hashes, "sha256", slow)
    with hashing() as pool:
        futures = hash_files([Path(str(i)) for i in range(20)], pool)
    go.set()
    assert sum(future.cancelled() for future in futures.values()) >= 18
    assert len(begun) <= 2
