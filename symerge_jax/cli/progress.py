"""Progress bars on the terminal: one line per job, with loss, inputs per second and time left."""

import threading
import time
from collections.abc import Callable

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

CONSOLE = Console(stderr=True)


def say(text: str) -> None:
    """Prints one line on stderr: never folded, and brackets in a file's name are no markup."""
    CONSOLE.print(text, soft_wrap=True, highlight=False, markup=False)


class Bars:
    """Bars of jobs that run at the same time; where stderr is no terminal, a line when one ends."""

    def __init__(self) -> None:
        """Makes bars that show nothing yet."""
        self._progress = Progress(
            TextColumn("{task.description:<34}", markup=False),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}  {task.fields[speed]} inputs/s"),
            TimeRemainingColumn(compact=True),
            console=CONSOLE,
            disable=not CONSOLE.is_terminal,
        )
        self._lock = threading.Lock()

    def __enter__(self) -> "Bars":
        """Starts drawing."""
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Stops drawing and leaves the bars as they are."""
        self._progress.stop()

    def follow(self, name: str, steps: int, inputs_per_step: int) -> Callable[[np.ndarray], None]:
        """Returns a function that takes the losses of each chunk of a job with `steps` steps."""
        with self._lock:
            bar = self._progress.add_task(name, total=steps, loss="–", speed="–", start=False)
        begun, done, timed = 0.0, 0, 0

        def advance(losses: np.ndarray) -> None:
            nonlocal begun, done, timed
            done += len(losses)
            if not begun:  # the first chunk also compiled the program: it says nothing of speed
                begun = time.monotonic()
                self._progress.start_task(bar)
            else:
                timed += len(losses)
            seconds = max(time.monotonic() - begun, 1e-9)
            speed = f"{timed * inputs_per_step / seconds:.0f}" if timed else "–"
            loss = f"{float(np.mean(losses)):.3f}"
            self._progress.update(bar, completed=done, loss=loss, speed=speed)
            if done >= steps and not CONSOLE.is_terminal:
                say(f"{name}: {steps} steps, last loss {loss}, {speed} inputs/s")

        return advance
