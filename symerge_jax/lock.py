"""One run at a time in a folder: a lock that the kernel drops however its holder ends.

The lock is of the open file `.lock` in the folder, not the file's being there: what a killed
process left behind locks nothing. Where the system or its file system has no such locks, nothing is
locked.
"""

from __future__ import annotations

import contextlib
import errno
import os
import platform
from collections.abc import Iterator
from pathlib import Path

from symerge_jax.errors import BadInput
from symerge_jax.files import explained, make_folder

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

FILE = ".lock"
_TAKEN = (errno.EWOULDBLOCK, errno.EACCES)
_FIELDS = 2  # process and machine


@contextlib.contextmanager
def only_one(folder: str | Path) -> Iterator[Path]:
    """Holds the folder's lock during the block, and gives the folder.

    Args:
        folder: made if it is not there.

    Raises:
        BadInput: somebody holds the lock, in this process or another one, or the folder cannot be
            written.
    """
    folder = make_folder(Path(folder).absolute())
    path = folder / FILE
    file = _locked(path)
    try:
        yield folder
    finally:
        # Removed while it is still locked: who opened it meanwhile sees that it is gone.
        if fcntl is not None:
            with contextlib.suppress(OSError):
                if _is_there(path, file):
                    os.unlink(path)
        os.close(file)


def _locked(path: Path) -> int:
    """Opens and locks the file; returns its descriptor."""
    while True:
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:  # who was here has just removed the folder
            make_folder(path.parent)
            continue
        except OSError as error:
            raise BadInput(explained(path, error)) from error
        try:
            if fcntl is None:
                return file
            _lock(path, file)
            # Between opening and locking its last holder may have removed it.
            if _is_there(path, file):
                return file
        except BaseException:
            os.close(file)
            raise
        os.close(file)


def _lock(path: Path, file: int) -> None:
    assert fcntl is not None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _TAKEN:
            raise BadInput(_taken(path, file)) from error
        return  # some network file systems have no locks
    with contextlib.suppress(OSError):  # a full disk: the lock holds without a name in it
        os.ftruncate(file, 0)
        os.pwrite(file, f"{os.getpid()} {platform.node()}\n".encode(), 0)


def _taken(path: Path, file: int) -> str:
    words = os.pread(file, 300, 0).decode(errors="replace").split()
    who = "another process"
    if len(words) == _FIELDS and words[0].isdecimal():
        here = words[1] == platform.node()
        who = f"process {words[0]}{'' if here else f' on {words[1]}'}"
        if here and int(words[0]) == os.getpid():
            who = "this process itself"
    return (
        f"{path.parent}: {who} is at work in this folder; wait until it is done or stop it, or "
        "choose another folder"
    )


def _is_there(path: Path, file: int) -> bool:
    """Whether the path still leads to the open file."""
    try:
        found, ours = os.stat(path), os.fstat(file)
    except FileNotFoundError:
        return False
    return (found.st_dev, found.st_ino) == (ours.st_dev, ours.st_ino)
