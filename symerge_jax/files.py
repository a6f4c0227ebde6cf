"""Files written whole or not at all, with errors a person can act on."""

import contextlib
import errno
import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from symerge_jax.errors import BadInput


def write_atomically(path: str | Path, content: bytes | str | Callable[[BinaryIO], object]) -> Path:
    """Writes a file under a temporary name beside it, then renames it into place.

    A reader sees the old file or the new one, never a part; a failed write leaves nothing behind.

    Args:
        path: the file; missing folders above it are made, an existing file is replaced.
        content: bytes, text (stored as UTF-8), or a function that writes to an open binary file.

    Returns:
        The path.

    Raises:
        BadInput: the place is not writable, lies beneath a file, or the disk is full.
    """
    path = Path(path)
    make_folder(path.parent)
    if os.path.isdir(path):  # unlike Path.is_dir, False for what may not be looked at
        raise BadInput(
            f"{path}: expected a file to write, found a folder; remove it or choose another name."
        )
    temporary = path.parent / f".{uuid.uuid4().hex}.tmp"
    try:
        _write(temporary, content)
        os.replace(temporary, path)
    except OSError as error:
        raise BadInput(explained(path, error)) from error
    finally:
        _remove(temporary)  # gone already after a rename; else also after Ctrl-C
    return path


def make_folder(path: str | Path) -> Path:
    """Makes a folder and those above it; one that exists is fine.

    Raises:
        BadInput: something above it is a file, or the place is not writable.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(explained(path, error)) from error
    return path


def writable_folder(path: str | Path) -> Path:
    """Makes a folder, and a file in it for a moment: before the work whose result goes there.

    Raises:
        BadInput: as `make_folder`, or the folder is there but takes no files.
    """
    folder = make_folder(path)
    probe = folder / f".{uuid.uuid4().hex}.tmp"
    try:
        probe.touch()
    except OSError as error:
        raise BadInput(explained(folder, error)) from error
    finally:
        _remove(probe)
    return folder


def removed(folder: Path) -> None:
    """Removes a folder and all in it, if it is there; it is never seen in part."""
    gone = folder.with_name(f".{folder.name}.removed")
    shutil.rmtree(gone, ignore_errors=True)  # of a process that was killed here
    with contextlib.suppress(FileNotFoundError):
        folder.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def _write(path: Path, content: bytes | str | Callable[[BinaryIO], object]) -> None:
    with open(path, "xb") as file:
        if callable(content):
            content(file)
        else:
            file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())  # some file systems report a full disk only here


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return  # the error that brought us here says more


def explained(path: Path, error: OSError) -> str:
    """Returns one sentence on why `path` could not be written."""
    blocking = next((p for p in (path, *path.parents) if os.path.isfile(p)), None)
    if error.errno in (errno.ENOTDIR, errno.EEXIST) and blocking is not None:
        return (
            f"{path}: cannot be written, because {blocking} is a file where a folder is needed; "
            "choose another place."
        )
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"{path}: cannot be written, because no space is left there; free some, or choose a "
            "folder on another disk."
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return (
            f"{path}: cannot be written ({error.strerror}); change the folder's permissions, or "
            "choose another folder."
        )
    return f"{path}: cannot be written ({error.strerror or error}); choose another place."
