"""From options to an exit code: parse a settings dataclass, run, and say errors in one line.

Shared by the commands of `symerge` and the scripts in `experiments/`.
"""

import contextlib
import difflib
import inspect
import io
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from symerge_jax import interrupt
from symerge_jax.cli import memory
from symerge_jax.errors import BadInput

DONE, CHECK_FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, interrupt.EXIT_CODE

_OWN_OPTIONS = "--version shows the version, --debug the traceback of an error."


def run(
    main: Callable[[Any], int | None],
    settings_class: type,
    argv: Sequence[str] | None,
    *,
    prog: str,
) -> int:
    """Parses `argv` into `settings_class`, calls `main` with it and returns the exit code.

    Hyphens and underscores are interchangeable in option names. Bad options, `BadInput`, files
    that cannot be read or written, missing packages and a lack of memory end in one line on stderr
    and code 2. Ctrl-C and SIGTERM are handled as `interrupt` says.

    Args:
        main: takes the settings; returns an exit code, or None for 0.
        settings_class: a frozen dataclass; its docstring becomes the help text.
        argv: the words after the program's name; `sys.argv[1:]` when None.
        prog: the program as a person types it, for the help text.

    Returns:
        0 done, 1 a check failed or the program has a defect, 2 bad input, 130 interrupted.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    if "--version" in words:
        print(version_line())
        return DONE
    try:
        with interrupt.handled():
            return main(parse(settings_class, words, prog=prog)) or DONE
    except SystemExit as stop:  # tyro's way out of --help
        return stop.code if isinstance(stop.code, int) else DONE
    except KeyboardInterrupt:
        print(interrupt.last_words(), file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        return fail(error, debug=debug, settings_class=settings_class)


def parse(settings_class: type, words: Sequence[str], *, prog: str) -> Any:
    """Returns `settings_class` filled from `words`.

    Raises:
        BadInput: an option is unknown (the nearest known one is named), or its value is unusable.
        SystemExit: `--help` was asked for and printed.
    """
    import tyro

    words = [_hyphenated(word) for word in words]
    about = f"{inspect.cleandoc(settings_class.__doc__ or '')}\n\n{_OWN_OPTIONS}"
    boxes = io.StringIO()
    try:
        with contextlib.redirect_stderr(boxes):
            return tyro.cli(settings_class, args=words, prog=prog, description=about)
    except SystemExit as stop:
        if not stop.code:
            raise
    reason = _unknown_option(words, settings_class) or _first_paragraph(boxes.getvalue())
    raise BadInput(f"{reason}; see `{prog} --help`")


def fail(error: BaseException, *, debug: bool = False, settings_class: type | None = None) -> int:
    """Prints `error` as one line on stderr, and its traceback too, and returns the exit code.

    Args:
        error: what ended the command.
        debug: whether the traceback is wanted.
        settings_class: of the command, whose options can be of help.
    """
    if debug:
        traceback.print_exception(error)
    if memory.is_lack_of_memory(error):
        options = [] if settings_class is None else _options(settings_class)
        error = BadInput(memory.explained(error, options))
    # Messages from elsewhere may span lines; a person's terminal and `grep` get one.
    message = " ".join(str(error).split())
    known = isinstance(error, (BadInput, OSError, ImportError))
    if not known:
        message = f"unexpected {type(error).__name__}: {message}"
        message += "" if debug else " (--debug shows where)"
    print(f"symerge: error: {message}", file=sys.stderr)
    return BAD_INPUT if known else CHECK_FAILED


def nearest(word: str, known: Iterable[str]) -> str:
    """Returns ` (did you mean X?)` for the entry of `known` most like `word`, or nothing."""
    bare = {name.lstrip("-"): name for name in known}  # shared dashes are no likeness
    found = difflib.get_close_matches(word.lstrip("-"), bare, n=1, cutoff=0.5)
    return f" (did you mean {bare[found[0]]}?)" if found else ""


def version_line() -> str:
    """Returns what `--version` prints."""
    from symerge_jax import __version__

    return f"symerge {__version__}"


def _hyphenated(word: str) -> str:
    """`--task_count=8` → `--task-count=8`; values stay as they are."""
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value


def _unknown_option(words: Sequence[str], settings_class: type) -> str:
    """Names the first option that `settings_class` does not have, and the nearest one it has."""
    known = _options(settings_class)
    for word in words:
        name = word.partition("=")[0]
        if name.startswith("--") and name not in known:
            return f"unknown option {name}{nearest(name, known)}"
    return ""


def _options(settings_class: type) -> list[str]:
    """Every option name of `settings_class`, read from its help text."""
    import tyro

    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        tyro.cli(settings_class, args=["--help"])
    return [*re.findall(r"--[a-z][\w.-]*", _plain(text.getvalue())), "--version", "--debug"]


def _first_paragraph(boxes: str) -> str:
    """The parser's message without its frame: what follows the title, up to the next rule."""
    lines = [line for line in _plain(boxes).splitlines() if line]
    message: list[str] = []
    for line in lines[1:]:  # the first line is the title
        if not set(line) <= set("─━-"):
            message.append(line)
        elif message:
            break
    return " ".join(message).rstrip(".") or "the options could not be read"


def _plain(text: str) -> str:
    """`text` without colours, box sides and padding."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", text)
    return "\n".join(line.strip(" │|╭╮╰╯") for line in text.splitlines())
