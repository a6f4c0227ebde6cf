"""Killed at any moment and started again, an experiment ends with the record of one left alone."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

HERE = Path(__file__).parent
PARTS = ("experiment", "setting", "results", "summary", "notes", "stored_encoders")


class Lives:
    """Starts processes of survivor.py, one at a time, and kills them."""

    def __init__(self, programs):
        paths = {**os.environ, "PYTHONPATH": os.pathsep.join((str(HERE.parent), str(HERE)))}
        self.server = subprocess.Popen(
            [sys.executable, HERE / "survivor.py", programs],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=paths,
        )  # fmt: skip

    def live(self, folder, seconds=None):
        """One life, killed after some seconds; returns the exit code."""
        print(folder, file=self.server.stdin, flush=True)
        process = int(self.server.stdout.readline())
        killer = None
        if seconds is not None:
            killer = threading.Timer(seconds, self.kill, [process])
            killer.start()
        code = int(self.server.stdout.readline())
        if killer is not None:
            killer.cancel()
            killer.join()
        return code

    @staticmethod
    def kill(process):
        # It may have ended in this very moment.
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


@pytest.fixture(scope="module")
def lives(tmp_path_factory):
    found = Lives(tmp_path_factory.mktemp("programs"))
    yield found
    found.server.stdin.close()
    found.server.wait(timeout=60)
    found.server.stdout.close()


def found(folder):
    """What the records say that does not depend on time."""
    records = [json.loads(path.read_text()) for path in folder.rglob("record.json")]
    return [{part: record[part] for part in PARTS} for record in records]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, lives):
    """A record, and how long it takes with all programs compiled."""
    folder = tmp_path_factory.mktemp("undisturbed")
    assert lives.live(folder / "first") == 0
    (record,) = found(folder / "first")
    since = time.monotonic()
    assert lives.live(folder / "second") == 0
    took = time.monotonic() - since
    assert found(folder / "second") == [record]
    return record, took


def survives(lives, undisturbed, folder, kills, seconds):
    record, took = undisturbed
    moments = random.Random(0)
    killed, until = 0, time.monotonic() + seconds
    while killed < kills and time.monotonic() < until:
        if lives.live(folder, moments.uniform(0.1, 0.35 * took)) == 0:
            # It got through: from the start again, as who is at its end cannot be killed.
            assert found(folder)[-1] == record
            folder = folder.with_name(f"{folder.name}-")
        else:
            killed += 1
    assert lives.live(folder) == 0
    records = found(folder)
    assert records
    assert all(one == record for one in records)
    assert not (folder / "cache" / "unfinished").is_dir() or not any(
        (folder / "cache" / "unfinished").iterdir()
    )
    return killed


def test_killed_five_times(lives, undisturbed, tmp_path):
    assert survives(lives, undisturbed, tmp_path / "run", 5, 60) == 5


@pytest.mark.slow
def test_killed_fifty_times(lives, undisturbed, tmp_path):
    killed = survives(lives, undisturbed, tmp_path / "run", 50, 300)
    assert killed == 50
