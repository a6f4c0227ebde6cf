"""Ctrl-C and SIGTERM: at once, or after the chunk where work can save itself."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from symerge_jax import interrupt
from symerge_jax.parallel import run_jobs

NOTE = "symerge: stopping after this chunk; once more to stop at once\n"
KEPT = (
    "symerge: interrupted; what was done is kept, and the same command goes on from there with "
    "--resume\n"
)
BOTH = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])


@pytest.fixture(autouse=True)
def plain_handlers():
    """What a process starts with; workers of the tests may ignore Ctrl-C."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_handlers_are_given_back():
    with interrupt.handled():
        inside = signal.getsignal(signal.SIGTERM)
        with interrupt.handled():  # a command inside a command
            assert signal.getsignal(signal.SIGTERM) is inside
        assert signal.getsignal(signal.SIGTERM) is inside
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert signal.set_wakeup_fd(-1) == -1


def test_a_signal_that_is_ignored_stays_ignored():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with interrupt.handled():
        signal.raise_signal(signal.SIGINT)
        assert not interrupt.asked()


def test_other_threads_are_left_alone():
    def work():
        with interrupt.handled(), interrupt.deferred():
            return signal.getsignal(signal.SIGTERM)

    assert run_jobs([work], jax.devices()[:1]) == [signal.SIG_DFL]


@BOTH
def test_the_first_signal_interrupts_at_once(number):
    with interrupt.handled(), pytest.raises(KeyboardInterrupt):
        signal.raise_signal(number)
    assert not interrupt.asked()


@BOTH
def test_work_that_saves_itself_is_asked_and_a_second_signal_interrupts(number, capsys):
    def work():
        with interrupt.deferred():
            with interrupt.deferred():
                signal.raise_signal(number)
                assert interrupt.asked()
                assert not interrupt.insisted()
            assert interrupt.asked()  # the inner block leaves it to the outer one
            signal.raise_signal(number)
            pytest.fail("not interrupted")

    with interrupt.handled(), pytest.raises(KeyboardInterrupt):
        work()
    assert capsys.readouterr().err == NOTE
    assert not interrupt.asked()


def test_leaving_the_block_interrupts_who_did_not_look():
    done = []

    def work():
        with interrupt.deferred():
            signal.raise_signal(signal.SIGINT)
            done.append("all of the block")
        pytest.fail("not interrupted")

    with interrupt.handled(), pytest.raises(KeyboardInterrupt):
        work()
    assert done


def test_an_error_of_the_block_says_more():
    def work():
        with interrupt.deferred():
            signal.raise_signal(signal.SIGINT)
            raise ZeroDivisionError

    with interrupt.handled(), pytest.raises(ZeroDivisionError):
        work()


def test_work_does_not_begin_once_it_was_asked_to_stop():
    with interrupt.handled():
        with pytest.raises(KeyboardInterrupt), interrupt.deferred():
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt), interrupt.deferred():
            pytest.fail("it began")
    with interrupt.deferred():  # of another command
        assert not interrupt.asked()


def test_jobs_in_threads_save_and_end_the_rest():
    saved, begun = [], []

    def job(i):
        begun.append(i)
        with interrupt.deferred():
            if len(begun) == 2:
                os.kill(os.getpid(), signal.SIGINT)
            for _ in range(1000):
                time.sleep(0.01)
                if interrupt.asked():
                    saved.append(i)
                    raise KeyboardInterrupt

    with interrupt.handled(), pytest.raises(KeyboardInterrupt):
        run_jobs([lambda i=i: job(i) for i in range(20)], jax.devices()[:1] * 2)
    assert sorted(saved) == [0, 1]


def test_no_request_is_lost_at_the_end_of_a_block():
    """Whenever the signal comes, the job or the main thread is interrupted."""
    for delay in np.linspace(0, 0.002, 20):
        caught = []

        def job(delay=delay, caught=caught):
            try:
                with interrupt.deferred():
                    time.sleep(delay)
            except KeyboardInterrupt:
                caught.append(True)

        with interrupt.handled():
            try:
                thread = threading.Thread(target=job)
                thread.start()
                signal.raise_signal(signal.SIGINT)
                time.sleep(0)
            except KeyboardInterrupt:
                caught.append(True)
            thread.join()
        assert caught, f"after {delay} s"


# --- a command in a process of its own ----------------------------------------------------------

COMMAND = """
import dataclasses, sys, time
import jax.numpy as jnp, numpy as np
from symerge_jax.cli.errors import run
from symerge_jax.finetune import finetune
from symerge_jax.recipes import Recipe

@dataclasses.dataclass(frozen=True)
class Settings:
    "A run."
    folder: str = ""
    pause: float = 0.0

def main(settings):
    rng = np.random.default_rng(0)
    params = {"kernel": jnp.asarray(rng.normal(size=(4, 3)), jnp.float32)}
    head = {"weight": jnp.asarray(rng.normal(size=(2, 3)), jnp.float32)}
    images, labels = rng.normal(size=(10, 4)).astype(np.float32), np.arange(10) % 2

    def on_chunk(losses):
        print(len(losses), flush=True)
        time.sleep(settings.pause)

    finetune(
        lambda p, x: x @ p["kernel"], lambda h, f: f @ h["weight"].T, params, head, images, labels,
        Recipe(steps=12, batch_size=4, learning_rate=0.1), chunk_steps=3, on_chunk=on_chunk,
        state_folder=settings.folder or None, save_every=1000,
    )

sys.exit(run(main, Settings, None, prog="run"))
"""
WHOLE_CHUNKS = "3\n" * 4


def start(*words):
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, *map(str, words)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip


def test_a_command_saves_what_is_done_and_goes_on(tmp_path):
    folder = ("--folder", tmp_path / "state")
    cut = start(*folder, "--pause", 1)
    assert cut.stdout.readline() == "3\n"
    cut.send_signal(signal.SIGTERM)
    out, err = cut.communicate(timeout=60)
    assert (cut.returncode, out, err) == (130, "", NOTE + KEPT)
    assert sorted(path.name for path in (tmp_path / "state").iterdir()) == ["3", "identity.json"]
    out, err = start(*folder).communicate(timeout=60)
    assert (out, err) == (WHOLE_CHUNKS, "")


@pytest.mark.parametrize("kept", [True, False])
def test_a_second_signal_stops_at_once_and_half_a_state_is_none(tmp_path, kept):
    command = start(*(("--folder", tmp_path / "state") if kept else ()), "--pause", 60)
    assert command.stdout.readline() == "3\n"
    begin = time.monotonic()
    command.send_signal(signal.SIGINT)
    if kept:
        assert command.stderr.readline() == NOTE
        command.send_signal(signal.SIGINT)
    out, err = command.communicate(timeout=30)
    assert (command.returncode, out, err) == (130, "", "symerge: interrupted\n")
    assert time.monotonic() - begin < 10
    if kept:  # nothing was saved, and nothing else is in the way of the next run
        out, err = start("--folder", tmp_path / "state").communicate(timeout=60)
        assert (out, err) == (WHOLE_CHUNKS, "")


def test_who_is_stuck_in_one_long_step_hears_the_answer_at_once():
    code = """
import hashlib
from symerge_jax import interrupt
interrupt.GRACE_S = 0.5
with interrupt.handled(), interrupt.deferred():
    interrupt.saved()
    print("in", flush=True)
    # One step of Python's that lets other threads run, as a program on a device is.
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2_000_000_000)
"""
    command = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert command.stdout.readline() == "in\n"
    time.sleep(0.5)  # until it is in that step
    command.send_signal(signal.SIGINT)
    assert command.stderr.readline() == NOTE
    command.send_signal(signal.SIGTERM)
    _, err = command.communicate(timeout=20)
    assert (command.returncode, err) == (130, KEPT)
