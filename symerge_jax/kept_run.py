"""The state of one adaptation in a folder of its own, touched only when there is something to keep.

Most runs end before their first state is due: those open no folder of orbax, which would take
longer than some of them. The folder's lock is held all the while.
"""

from __future__ import annotations

import contextlib
import shutil
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from symerge_jax.adapt.keeping import Keep
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

    def save(self, step: int, tree: Any) -> None:
        """Starts writing a step."""
        self._state().save(step, tree)

    def restore(self, template: Any) -> Any:
        """Reads the newest step."""
        return self._state().restore(template)

    def _state(self) -> Any:
        if self._opened is None:
            from symerge_jax.checkpoints.training_state import TrainingState  # half a second

            state = TrainingState(self._folder, self._identity)
            self._opened = self._stack.enter_context(state)
        return self._opened


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
    with turn, only_one(folder):
        state = folder / "state"
        if not resume:
            shutil.rmtree(state, ignore_errors=True)
        with contextlib.ExitStack() as stack:
            yield Keep(_Lazy(state, identity, stack))
        shutil.rmtree(state, ignore_errors=True)
    with contextlib.suppress(OSError):  # what was interrupted stays
        folder.rmdir()
