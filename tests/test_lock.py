"""One run at a time in a folder, whatever became of the one before."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import pytest

from symerge_jax import lock
from symerge_jax.checkpoints.training_state import TrainingState, discard
from symerge_jax.errors import BadInput
from symerge_jax.lock import only_one

HOLDER = """
import sys, time
from symerge_jax.lock import only_one
with only_one(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds the lock of a folder, until it is killed."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    words = [sys.executable, "-c", HOLDER, str(tmp_path / "run")]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_the_folder_is_made_and_nothing_stays_in_it(tmp_path):
    with only_one(tmp_path / "new" / "run") as folder:
        assert [path.name for path in folder.iterdir()] == [lock.FILE]
    assert list(folder.iterdir()) == []


def test_a_second_process_is_told_who_is_there_and_a_killed_one_locks_nothing(tmp_path, holder):
    with pytest.raises(BadInput) as told:
        TrainingState(tmp_path / "run", {})
    assert str(told.value) == (
        f"{tmp_path}/run: process {holder.pid} is at work in this folder; wait until it is done or "
        "stop it, or choose another folder"
    )
    with pytest.raises(BadInput, match=f"process {holder.pid} is at work"):
        discard(tmp_path / "run")
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (tmp_path / "run" / lock.FILE).read_text().startswith(str(holder.pid))
    with only_one(tmp_path / "run"):
        pass
    discard(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_one_process_cannot_open_a_state_twice(tmp_path):
    with TrainingState(tmp_path, {}) as store:
        with pytest.raises(BadInput, match="this process itself is at work in this folder"):
            TrainingState(tmp_path, {})
        store.save(1, jnp.zeros(2))
        assert store.latest() == 1  # who was refused has changed nothing
    with TrainingState(tmp_path, {}) as store:
        assert store.latest() == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "identity.json"]


def test_a_state_that_is_refused_is_free_again(tmp_path):
    with TrainingState(tmp_path, {"rate": 1}) as store:
        store.save(1, jnp.zeros(2))
    for _ in range(2):
        with pytest.raises(BadInput, match="another rate"):
            TrainingState(tmp_path, {"rate": 2})


def test_what_a_lock_file_holds_does_not_matter(tmp_path):
    for content in (b"", b"\xff\xfe", b"1", b"one two", b"9" * 10_000, b"1 elsewhere\n"):
        (tmp_path / lock.FILE).write_bytes(content)
        with only_one(tmp_path):
            pass


def test_a_file_that_was_removed_before_it_was_locked_is_opened_anew(tmp_path, monkeypatch):
    real, removed = lock._lock, []

    def late(path, file):
        if not removed:
            removed.append(True)
            path.unlink()
        real(path, file)

    monkeypatch.setattr(lock, "_lock", late)
    with (
        only_one(tmp_path),
        pytest.raises(BadInput, match="this process itself"),
        only_one(tmp_path),
    ):
        pass
    assert removed


def test_where_no_file_can_be_made_it_is_told(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="is a file where a folder is needed"), only_one(
        tmp_path / "file"
    ):  # fmt: skip
        pass

    def refuse(*args):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "open", refuse)
    with (
        pytest.raises(BadInput, match=r"cannot be written \(Read-only file system\); change"),
        only_one(tmp_path),
    ):
        pass


def test_file_systems_without_locks_are_worked_on_without(tmp_path, monkeypatch):
    def unknown(*args):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(lock.fcntl, "flock", unknown)
    with only_one(tmp_path), only_one(tmp_path):
        pass
    monkeypatch.setattr(lock, "fcntl", None)
    with only_one(tmp_path), only_one(tmp_path):
        pass
