"""SHA-256 of input files: worked out beside other work, and remembered while a file stays the same.

A checkpoint is hashed once for the card of the first model made from it. The hash is kept with the
file's size, time of change and inode, as git keeps those of a working tree; a file changed in the
last seconds is not trusted, since its time could stay the same through another change; nor is one
whose time lies ahead of the clock. Without trust a file is hashed again, which is never wrong.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from symerge_jax.checkpoints.source import Checkpoint, stamp
from symerge_jax.errors import BadInput
from symerge_jax.files import write_atomically

FILE = "sha256.json"
RECENT_S = 10.0
MOST = 10_000  # entries kept

# At each piece a thread that hashes waits for the interpreter, up to 5 ms if another one computes;
# hashlib's own pieces of 256 kB would wait four times as long as they hash.
HASH_BYTES = 8 << 20


def sha256(path: Path) -> str:
    """Returns the SHA-256 of a file, 64 hexadecimal digits."""
    state, buffer = hashlib.sha256(), memoryview(bytearray(HASH_BYTES))
    try:
        with open(path, "rb", buffering=0) as file:
            while count := file.readinto(buffer):
                state.update(buffer[:count])
        return state.hexdigest()
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror or error})") from error


@contextlib.contextmanager
def hashing() -> Iterator[ThreadPoolExecutor]:
    """Gives a pool for `hash_files`; what nobody waits for any more is dropped at the end."""
    pool = ThreadPoolExecutor(max_workers=2)
    try:
        yield pool
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def start_hashing(
    checkpoints: Iterable[Checkpoint], pool: ThreadPoolExecutor, memory: Path | None = None
) -> dict[Path, Any]:
    """Starts hashing all files of some checkpoints: path → a future of its SHA-256.

    Args:
        checkpoints: opened ones.
        pool: of `hashing`.
        memory: folder in which `remember` kept hashes; None hashes everything.
    """
    known = {} if memory is None else _read(memory / FILE)
    paths = dict.fromkeys(path for one in checkpoints for path in one.files)
    return {path: pool.submit(_known_or_hashed, path, known) for path in paths}


def hash_files(paths: Iterable[Path], pool: ThreadPoolExecutor) -> dict[Path, Any]:
    """Starts hashing files: path → a future of its SHA-256."""
    return {path: pool.submit(sha256, path) for path in dict.fromkeys(paths)}


def remember(hashes: dict[Path, Any], memory: Path) -> None:
    """Keeps finished hashes of `start_hashing` for the next run, where there can be a folder."""
    known = _read(memory / FILE)
    for path, future in hashes.items():
        known[str(path.resolve())] = [*stamp(path), future.result(), time.time()]
    newest = sorted(known.items(), key=lambda entry: entry[1][-1])[-MOST:]
    with contextlib.suppress(BadInput):
        write_atomically(memory / FILE, json.dumps(dict(newest)))


def _known_or_hashed(path: Path, known: dict[str, list[Any]]) -> str:
    now, entry = stamp(path), known.get(str(path.resolve()))
    if entry is not None and entry[:3] == list(now):
        settled = entry[4] - now.modified / 1e9 > RECENT_S
        if settled:
            return entry[3]
    return sha256(path)


def _read(path: Path) -> dict[str, list[Any]]:
    """Reads what was remembered; anything damaged is forgotten."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {name: entry for name, entry in found.items() if _is_entry(entry)}
    except (OSError, ValueError, AttributeError, RecursionError):
        return {}


def _is_entry(entry: object) -> bool:
    match entry:
        case [int(), int(), int(), str(digest), int() | float()]:
            return len(digest) == 64
    return False
