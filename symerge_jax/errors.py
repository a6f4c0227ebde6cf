"""The one exception for bad input from outside: files, folders, options."""

from collections.abc import Sequence


class BadInput(ValueError):
    """A file, folder or setting that came from outside cannot be used as it is.

    The message is one sentence: which file or option, what was expected, what came instead, and
    what to do about it. The commands print it after `symerge: error: ` and exit with code 2, so it
    never needs a traceback to be understood.
    """


class Diverged(BadInput):
    """A run whose numbers are no longer finite.

    Attributes:
        task: position of the task in whose step that was.
    """

    def __init__(self, message: str, task: int) -> None:
        """Keeps the task, whose name the caller may know."""
        super().__init__(message)
        self.task = task

    def named(self, names: Sequence[str]) -> BadInput:
        """Returns the error with the task's name before it."""
        return BadInput(f"{names[self.task]}: {self}")
