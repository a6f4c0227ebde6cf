"""Memory that ran out, in one sentence: how much was asked for, and which options need less."""

from __future__ import annotations

import re
from collections.abc import Collection

# What the runtimes of JAX and NumPy write, the most exact form first: "184549376B", "40 bytes".
_BYTES = re.compile(r"\b(\d+) ?(?:B|bytes?)\b")
_ROUNDED = re.compile(r"\b(\d+(?:\.\d*)?) ?([KMGTPE])(i?)B?\b")
_POWERS = {unit: power for power, unit in enumerate("KMGTPE", start=1)}

# options that must be there, and what to do with them.
_WAYS = (
    (("--max-memory",), "a lower --max-memory"),
    (("--dtype",), "--dtype bfloat16"),
    (("--batch-size",), "a smaller --batch-size"),
    (("--limit",), "a smaller --limit"),
    (("--parallel", "--devices"), "--parallel data --devices N to share the work"),
)


def is_lack_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, of a device or of the machine."""
    if isinstance(error, MemoryError):
        return True
    text = str(error)
    # XLA's status for this is also that of a full disk, and of any other quota.
    return isinstance(error, RuntimeError) and bool(
        re.search(r"out of memory|failed to allocate", text, re.IGNORECASE)
    )


def explained(error: BaseException, options: Collection[str] = ()) -> str:
    """Returns one sentence on memory that ran out.

    Args:
        error: of which `is_lack_of_memory` holds.
        options: names of those the command has, such as --limit.
    """
    count = _asked_for(str(error))
    much = "" if count is None else f": {_gigabytes(count)} were asked for at once"
    ways = [way for needed, way in _WAYS if set(needed) <= set(options)]
    help_ = " or ".join(filter(None, [", ".join(ways[:-1]), *ways[-1:]]))
    help_ = help_ or "fewer inputs, smaller models or a smaller batch size"
    return f"out of memory{much}; try {help_}, or a machine or device with more memory"


def _asked_for(text: str) -> float | None:
    """The bytes of the request; later numbers of a message tell of other buffers."""
    line = text.strip().split("\n", 1)[0]
    if found := _BYTES.search(line):
        return float(found[1])
    if found := _ROUNDED.search(line):
        return float(found[1]) * (1024 if found[3] else 1000) ** _POWERS[found[2]]
    return None


def _gigabytes(count: float) -> str:
    return f"{count / 1e9:.3g} GB" if count < 1e12 else f"{count / 1e9:.0f} GB"
