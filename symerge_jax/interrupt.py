"""Ctrl-C and SIGTERM as a request: work that can save itself ends its chunk, saves and stops.

A command runs inside `handled`. Loops that keep their state run inside `deferred`, look at `asked`
after each chunk, save, and raise KeyboardInterrupt themselves; everything else is interrupted at
once. Whoever asks a second time gets KeyboardInterrupt wherever the main thread is, and the end of
the process should that thread not come out of what it is in.

Python runs signal handlers between two of its own steps, and a chunk is one step that may take
minutes. A thread that is woken by the signal itself therefore tells the person and the loops.
Without `handled`, as in a notebook, nothing is deferred: Ctrl-C is what Python makes of it.
"""

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType

EXIT_CODE = 130
# How long a second request may take to get out of one step of the main thread, or of other threads.
GRACE_S = 5.0

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_TELL = b"\0"  # no signal has this number


@dataclass
class _State:
    handling: bool = False
    deferred: int = 0  # blocks that are entered and not left, of all threads
    asked: bool = False
    saved: bool = False
    sent: int = 0  # signals that came, as the watching thread counts them
    received: int = 0  # those of them that the main thread has seen; two may be seen as one
    told: bool = False


_now = _State()
_count = threading.Lock()
_depth = threading.local()


@contextlib.contextmanager
def handled() -> Iterator[None]:
    """Handles SIGINT and SIGTERM in the block, and gives them back as they were.

    Does nothing outside the main thread, inside another such block, and to a signal that the
    process was started to ignore (as by nohup).
    """
    if _now.handling or threading.current_thread() is not threading.main_thread():
        yield
        return
    _now.saved = _now.told = False
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    receiver, sender = socket.socketpair()
    sender.setblocking(False)
    watcher = threading.Thread(target=_watch, args=(receiver,), name="signals", daemon=True)
    watcher.start()
    wakeup = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)

    def receive(number: int, frame: FrameType | None) -> None:
        _now.received += 1
        # In this order: a block that is being left meanwhile sees it, or is no longer counted.
        _now.asked = True
        if not _now.deferred or max(_now.received, _now.sent) > 1:
            raise KeyboardInterrupt
        with contextlib.suppress(OSError):
            sender.send(_TELL)

    _now.handling = True
    try:
        for number, old in before.items():
            if old is not None and old is not signal.SIG_IGN:
                signal.signal(number, receive)
        yield
    finally:
        for number, old in before.items():
            if old is not None:
                signal.signal(number, old)
        signal.set_wakeup_fd(wakeup)
        sender.close()  # which ends the watcher
        watcher.join()
        receiver.close()
        _now.handling = _now.asked = False
        _now.sent = _now.received = 0


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Marks work that saves itself when it is `asked` to stop; from any thread, also nested.

    Raises:
        KeyboardInterrupt: it was asked to stop before the outermost block of this thread began, or
            while it ran, and nothing was raised inside.
    """
    depth: int = getattr(_depth, "value", 0)
    if _now.asked and not depth:
        raise KeyboardInterrupt
    with _count:
        _now.deferred += 1
    _depth.value = depth + 1
    try:
        yield
    finally:
        _depth.value = depth
        with _count:
            _now.deferred -= 1
    if _now.asked and not depth:
        raise KeyboardInterrupt


def asked() -> bool:
    """Whether to save, and raise KeyboardInterrupt."""
    return _now.asked


def insisted() -> bool:
    """Whether it was asked a second time: nothing more is to be saved."""
    return max(_now.received, _now.sent) > 1


def saved() -> None:
    """Notes that a state is on the disk from which `--resume` goes on."""
    _now.saved = True


def last_words() -> str:
    """Returns what to tell a person whose command was interrupted."""
    kept = "; what was done is kept, and the same command goes on from there with --resume"
    return f"symerge: interrupted{kept if _now.saved else ''}"


def _watch(receiver: socket.socket) -> None:
    """Hears of signals even while the main thread is inside one long step."""
    end: threading.Timer | None = None
    while heard := receiver.recv(1):
        if heard[0] in _SIGNALS:
            _now.sent += 1
        if (heard == _TELL or _now.deferred) and not _now.told:
            _now.asked = _now.told = True
            _say("symerge: stopping after this chunk; once more to stop at once")
        if _now.sent > 1 and end is None:
            end = threading.Timer(GRACE_S, _end)
            end.daemon = True
            end.start()
    if end is not None:
        end.cancel()


def _end() -> None:
    """Ends the process; files are written under other names first, so none is left half made."""
    _say(last_words())
    os._exit(EXIT_CODE)


def _say(line: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # nobody listens any more
        print(line, file=sys.stderr, flush=True)
