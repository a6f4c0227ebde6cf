"""The command line: `symerge COMMAND …`, or `python -m symerge_jax COMMAND …`.

A command is one file beside this one, with a frozen dataclass `Settings` (whose docstring is the
help text) and a function `main(settings)`, plus its line in `COMMANDS`.
"""

import sys
from collections.abc import Sequence
from importlib import import_module

from symerge_jax.cli.errors import fail, nearest, run, version_line
from symerge_jax.errors import BadInput

# name → what it does, in one line; the module of that name holds the command.
COMMANDS = {
    "merge": "merge experts into one model, without data",
    "moments": "make the statistics of an expert that lot, regmean and fisher merge with",
    "adapt": "merge experts and adapt the merge to unlabelled inputs",
    "evaluate": "score a merged model on labelled images",
    "convert": "write a checkpoint in another layout",
    "inspect": "say what checkpoints hold and how they are related",
    "verify": "check that a merged model is the one that was written",
    "methods": "list the merging methods",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code.

    Args:
        argv: the words after `symerge`; `sys.argv[1:]` when None.

    Returns:
        0 done, 1 a check failed, 2 bad input, 130 interrupted.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    position = next((i for i, word in enumerate(words) if not word.startswith("-")), None)
    if position is None:
        return _without_command(words)
    command = words.pop(position).replace("_", "-")
    if command not in COMMANDS:
        known = nearest(command, COMMANDS)
        return fail(BadInput(f"there is no command {command!r}{known}; see `symerge --help`"))
    module = import_module(f"{__name__}.{command.replace('-', '_')}")
    return run(module.main, module.Settings, words, prog=f"symerge {command}")


def _without_command(words: list[str]) -> int:
    if "--version" in words:
        print(version_line())
        return 0
    unknown = [word for word in words if word not in ("-h", "--help", "--debug")]
    if unknown:
        return fail(BadInput(f"unknown option {unknown[0]} before a command; see `symerge --help`"))
    print(_help())
    return 0


def _help() -> str:
    width = max(map(len, COMMANDS))
    return "\n".join(
        [
            "usage: symerge [--version] [--debug] COMMAND [OPTIONS]",
            "",
            "Merge fine-tuned models into one, and adapt the merge to unlabelled inputs.",
            "",
            "commands:",
            *(f"  {name:<{width}}  {summary}" for name, summary in COMMANDS.items()),
            "",
            "options:",
            "  --help     this text; after COMMAND, that command's options and defaults",
            "  --version  the version of symerge_jax",
            "  --debug    show the traceback of an error",
        ]
    )
