"""What an adaptation keeps while it runs, so that an interrupted one goes on with the same bits."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from symerge_jax.adapt.steps import Carry

EVERY = 1000  # micro-steps
SECONDS = 120.0


class StateFolder(Protocol):
    """Where trees are kept by step; `checkpoints.training_state.TrainingState` is one."""

    def latest(self) -> int | None:
        """Returns the newest step that was saved whole, or None."""

    def save(self, step: int, tree: Any) -> None:
        """Starts writing a step; the arrays may be changed or donated as soon as it returns."""

    def restore(self, template: Any) -> Any:
        """Returns what was saved as the newest step, as the attribute `tree`."""


class Keep(NamedTuple):
    """Where and how often the state is kept.

    Attributes:
        state: a folder of this run's own.
        every: micro-steps between two states, at least.
        seconds: or this long after the last, whichever comes first.
    """

    state: StateFolder
    every: int = EVERY
    seconds: float = SECONDS


class Done(NamedTuple):
    """What has been done of a run.

    Attributes:
        carry: the state.
        losses: per chunk, float [step].
        extras: per chunk, leaves [step, ...].
    """

    carry: Carry
    losses: list[np.ndarray]
    extras: list[Any]


class Keeper:
    """Keeps a run's state now and then; without a folder, nothing."""

    def __init__(self, keep: Keep | None) -> None:
        """Begins to count steps and seconds."""
        self._keep = keep
        self._step, self._time = 0, time.monotonic()

    @property
    def says(self) -> str:
        """What to add to the reason why a run ends early."""
        return "" if self._keep is None else "; the state before that step is kept"

    def found(self, carry: Carry, outputs: Callable[[], tuple[Any, Any]]) -> Done | None:
        """Returns what an interrupted run has done, or None.

        Args:
            carry: at the start of the run, whose structure and places the found one has.
            outputs: gives the shapes of one step's loss and extra.
        """
        step = None if self._keep is None else self._keep.state.latest()
        if self._keep is None or step is None:
            return None

        def stacked(one: Any) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((step, *one.shape), one.dtype)

        loss, extra = jax.tree.map(stacked, outputs())
        template = {"carry": carry, "losses": loss, "extra": extra}
        tree = self._keep.state.restore(template).tree
        self._step = step
        losses, extra = jax.tree.map(np.asarray, (tree["losses"], tree["extra"]))
        return Done(tree["carry"], [losses], [extra])

    def chunk_done(self, done: Done) -> None:
        """Keeps the state if it is time to."""
        if self._keep is None:
            return
        step = int(done.carry.step)
        waited = time.monotonic() - self._time
        # How long something took differs between processes, and all of them must save at once.
        late = waited >= self._keep.seconds and jax.process_count() == 1
        if step - self._step >= self._keep.every or late:
            self.save(done)

    def save(self, done: Done) -> None:
        """Keeps the state, unless this step's is there already."""
        step = int(done.carry.step)
        if self._keep is None or step <= (self._keep.state.latest() or 0):
            return
        extra = jax.tree.map(lambda *parts: np.concatenate(parts), *done.extras)
        tree = {"carry": done.carry, "losses": np.concatenate(done.losses), "extra": extra}
        self._keep.state.save(step, tree)
        self._step, self._time = step, time.monotonic()
