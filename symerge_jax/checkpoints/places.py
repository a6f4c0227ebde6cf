"""Where models are written: under a temporary name beside their own, which they take when whole."""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from symerge_jax.errors import BadInput
from symerge_jax.files import explained, make_folder

CARD = "merge_card.json"  # tells a folder that this package wrote


@contextlib.contextmanager
def new_folder(output: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Gives a temporary folder beside `output` that takes its name when the block ends well.

    Args:
        output: the folder to make.
        overwrite: whether a model that is there already may be replaced.

    Raises:
        BadInput: something is there already, or the place cannot be written.
    """
    output = Path(output).resolve()  # a link keeps pointing where it did
    check_output(output, overwrite=overwrite)
    make_folder(output.parent)
    temporary = make_folder(output.parent / f".{output.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        check_output(output, overwrite=overwrite)
        _put(temporary, output)
    except OSError as error:
        raise BadInput(explained(output, error)) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # gone already after the rename


def _put(folder: Path, output: Path) -> None:
    """Renames a folder to `output`; what is there goes only when that has succeeded."""
    if not output.exists():
        os.rename(folder, output)
        return
    old = output.parent / f".{output.name}.{uuid.uuid4().hex}.old"
    os.rename(output, old)
    try:
        os.rename(folder, output)
    except BaseException:
        os.rename(old, output)
        raise
    shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def new_file(output: str | Path) -> Iterator[Path]:
    """Gives a temporary name beside `output` for a file that takes its place when all went well.

    Raises:
        BadInput: the place cannot be written.
    """
    output = Path(output).absolute()
    make_folder(output.parent)
    temporary = output.parent / f".{output.name}.{uuid.uuid4().hex}.tmp"
    try:
        yield temporary
        os.replace(temporary, output)
    except OSError as error:
        raise BadInput(explained(output, error)) from error
    finally:
        temporary.unlink(missing_ok=True)


def check_output(output: str | Path, *, overwrite: bool) -> None:
    """Raises `BadInput` if a model may not be written there; call it before any work."""
    output = Path(output).absolute()
    blocking = next((p for p in output.parents if p.exists() and not p.is_dir()), None)
    if blocking is not None:
        raise BadInput(f"{output}: cannot be written, because {blocking} is a file")
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not overwrite:
        raise BadInput(f"{output}: is there already; choose another name or add --overwrite")
    if not (output.is_dir() and (output / CARD).exists()):
        raise BadInput(
            f"{output}: --overwrite replaces only models with a {CARD}; remove it yourself"
        )
