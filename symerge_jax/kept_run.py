"""The state of one run in a folder of its own, touched only when there is something to keep.

Most runs end before their first state is due: those open no folder of orbax, which would take
longer than some of them. The folder's lock is held all the while.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from symerge_jax import interrupt
from symerge_jax.adapt.keeping import SECONDS, Keep
from symerge_jax.cache import digest
from symerge_jax.files import removed
from symerge_jax.lock import only_one

_busy: dict[Path, threading.Lock] = {}
_busy_lock = threading.Lock()


class _Lazy:
    """A `TrainingState` that is opened when it is first needed."""

    def __init__(self, folder: Path, identity: Mapping[str, object], stack: contextlib.ExitStack):
        self._folder, self._identity, self._stack = folder, identity, stack
        self._opened: Any = None

    def latest(self) -> int | None:
        """Returns the newest step that was saved whole, or None."""
        return self._state().latest() if self._opened or self._folder.is_dir() else None

    def save(self, step: int, tree: Any, meta: Any = None) -> None:
        """Starts writing a step, beside a JSON value."""
        self._state().save(step, tree, meta)

    def restore(self, template: Any) -> Any:
        """Reads the newest step."""
        return self._state().restore(template)

    def _state(self) -> Any:
        if self._opened is None:
            from symerge_jax.checkpoints.training_state import TrainingState  # half a second

            state = TrainingState(self._folder, self._identity)
            self._opened = self._stack.enter_context(state)
        return self._opened


class Saver:
    """Keeps the state of a loop of one's own: some time after the last, and when asked to stop."""

    def __init__(self, keep: Keep | None, *, seconds: float = SECONDS) -> None:
        """Begins to count the time; without a place to keep it in, nothing is kept."""
        self._keep, self._seconds, self._time = keep, seconds, time.monotonic()

    def found(self, template: Any) -> Any:
        """Returns step, tree and meta of what an interrupted run left, or None."""
        if self._keep is None or self._keep.state.latest() is None:
            return None
        return self._keep.state.restore(template)

    def chunk_done(self, step: int, tree: Any, meta: Callable[[], Any]) -> None:
        """Saves if it is time to; to be called inside `interrupt.deferred`.

        Args:
            step: done so far.
            tree: the state.
            meta: gives what JSON can hold.

        Raises:
            KeyboardInterrupt: it was asked to stop; the state is saved, if it is kept at all.
        """
        due = interrupt.asked() or time.monotonic() - self._time >= self._seconds
        if self._keep is not None and due:
            self._keep.state.save(step, tree, meta())  # pyright: ignore[reportCallIssue]
            self._time = time.monotonic()
        if interrupt.asked():
            raise KeyboardInterrupt


@contextlib.contextmanager
def kept_run(folder: Path, identity: Mapping[str, object], *, resume: bool) -> Iterator[Keep]:
    """Gives a run a place for its state; when the block ends well, nothing is left of it.

    Threads of one process that make the same run take turns.

    Args:
        folder: of this run alone.
        identity: all that the run depends on, as JSON has it.
        resume: whether to go on from what an interrupted run left; else that is removed.

    Raises:
        BadInput: another process is at work on this run, or the folder cannot be used, or it holds
            the state of another run.
    """
    folder = folder.absolute()
    with _busy_lock:
        turn = _busy.setdefault(folder, threading.Lock())
    try:
        with turn, only_one(folder):
            state = folder / "state"
            if not resume:
                removed(state)
            with contextlib.ExitStack() as stack:
                yield Keep(_Lazy(state, identity, stack))
            removed(state)
    finally:
        with contextlib.suppress(OSError):  # it is not empty: what was interrupted stays
            folder.rmdir()


def unfinished(cache: Path | None, kind: str, key: Mapping[str, object]) -> Path | None:
    """Returns where the state of what the cache shall hold is kept meanwhile.

    Args:
        cache: its root; None keeps nothing.
        kind: of entry.
        key: of the entry.

    Returns:
        None where nothing is kept, as with several processes, which would have to save at once.
    """
    if cache is None or jax.process_count() > 1:
        return None
    return cache / "unfinished" / digest(kind, key)


def discard(folder: Path) -> None:
    """Removes a state folder; see `checkpoints.training_state.discard`."""
    from symerge_jax.checkpoints import training_state  # orbax takes half a second

    training_state.discard(folder)
