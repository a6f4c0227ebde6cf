"""Killed at any moment and started again, an experiment ends with the record of one left alone."""

import json
import multiprocessing
import random
import time

import pytest
import survivor

from symerge_jax.files import write_atomically

PARTS = ("experiment", "setting", "results", "summary", "notes", "stored_encoders")
# The processes are forked from one that has imported everything and started nothing of JAX.
LIVES = multiprocessing.get_context("forkserver")
LIVES.set_forkserver_preload(["survivor"])


def live(folder, seconds=None):
    """One life, killed after some seconds; returns the exit code."""
    process = LIVES.Process(target=survivor.life, args=(str(folder),))
    process.start()
    process.join(seconds)
    if process.is_alive():
        process.kill()
        process.join()
    code = process.exitcode
    process.close()
    return code


def found(folder):
    """What the records say that does not depend on time."""
    records = [json.loads(path.read_text()) for path in folder.rglob("record.json")]
    return [{part: record[part] for part in PARTS} for record in records]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A record, its programs, and how long it takes with them."""
    folder = tmp_path_factory.mktemp("undisturbed")
    assert live(folder / "first") == 0
    (record,) = found(folder / "first")
    programs = folder / "first" / "cache" / "compiled"
    copy_programs(programs, folder / "second")
    since = time.monotonic()
    assert live(folder / "second") == 0
    took = time.monotonic() - since
    assert found(folder / "second") == [record]
    return record, took, programs


def copy_programs(programs, folder):
    for path in programs.iterdir():
        write_atomically(folder / "cache" / "compiled" / path.name, path.read_bytes())


def survives(undisturbed, folder, kills, seconds):
    record, took, programs = undisturbed
    copy_programs(programs, folder)
    moments = random.Random(0)
    killed, until = 0, time.monotonic() + seconds
    while killed < kills and time.monotonic() < until:
        if live(folder, moments.uniform(0.1, took)) == 0:
            # It got through: from the start again, as who is at its end cannot be killed.
            assert found(folder)[-1] == record
            folder = folder.with_name(f"{folder.name}-")
            copy_programs(programs, folder)
        else:
            killed += 1
    assert live(folder) == 0
    records = found(folder)
    assert records
    assert all(one == record for one in records)
    assert not (folder / "cache" / "unfinished").is_dir() or not any(
        (folder / "cache" / "unfinished").iterdir()
    )
    return killed


def test_killed_five_times(undisturbed, tmp_path):
    assert survives(undisturbed, tmp_path / "run", 5, 60) == 5


@pytest.mark.slow
def test_killed_fifty_times(undisturbed, tmp_path):
    killed = survives(undisturbed, tmp_path / "run", 50, 240)
    assert killed == 50
