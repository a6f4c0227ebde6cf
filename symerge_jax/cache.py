"""A disk cache of expensive arrays, found again by the content of what they were made from.

One entry is one safetensors file, `<folder>/<kind>/<sha256 of the key>.safetensors`: the arrays
under names like `a/b/c`, and in the metadata the key itself, a format number and a checksum of the
arrays. A file that fails its checksum is made again.
"""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy

from symerge_jax.errors import BadInput
from symerge_jax.files import make_folder, writable_folder, write_atomically

_LOG = logging.getLogger(__name__)

# Part of every key: entries of another format are not found, and so are made again.
FORMAT = 1

Arrays = dict[str, Any]  # nested: str → array or Arrays


class _Damaged(Exception):
    """A cache file whose content is not what was written."""


def cached(
    folder: str | Path | None,
    kind: str,
    key: Mapping[str, object],
    make: Callable[[], Arrays],
    *,
    report: Callable[[str], object] = _LOG.warning,
    renew: bool = False,
) -> Arrays:
    """Returns what `make()` returned for this key: from disk if it is there, else made and stored.

    Args:
        folder: root of the cache; None stores nothing.
        kind: what the arrays are ("experts", "task_vectors"): a sub-folder.
        key: everything the arrays depend on: strings, numbers, lists, dicts, paths and arrays
            (which count by their content). Hash larger inputs with `digest` first.
        make: makes the arrays, a nested dict with names free of "/" and no empty dict in it.
        report: receives one line when a damaged file is found and made again.
        renew: make and store again even if it is there.

    Returns:
        The nested dict with NumPy arrays at its leaves, names sorted; the same on a hit as on a
        miss.

    Raises:
        BadInput: the file cannot be read or written (permissions, no space left, a file in place
            of a folder). Found out before `make` is called wherever possible.
    """
    if folder is None:
        return unflatten(flatten(make()))
    text = _canonical({"format": FORMAT, "kind": kind, "key": key})
    name = hashlib.sha256(text.encode()).hexdigest()
    path = make_folder(Path(folder) / kind) / f"{name}.safetensors"
    if os.path.exists(path) and not renew:
        try:
            return unflatten(_read(path, text))
        except _Damaged as damage:
            report(f"{path}: damaged cache file ({damage}); making it again.")
    writable_folder(path.parent)
    arrays = flatten(make())
    metadata = {"key": text, "sha256": digest(text, arrays)}
    write_atomically(path, safetensors.numpy.save(arrays, metadata=metadata))
    return unflatten(arrays)


def digest(*things: object) -> str:
    """SHA-256 of arrays, nested dicts, lists and tuples, strings, bytes, numbers, None and paths.

    Arrays count by dtype, shape and content, dicts by their entries whatever the order. NumPy and
    JAX arrays of equal content are equal; 1, 1.0, True and "1" all differ.

    Returns:
        64 hexadecimal digits.

    Raises:
        TypeError: a thing has no content that could be hashed.
    """
    state = hashlib.sha256()
    for thing in things:
        _update(state, thing)
    return state.hexdigest()


def flatten(tree: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Nested dict of arrays → {"a/b/c": array}, names sorted, arrays on the host and contiguous."""
    flat: dict[str, np.ndarray] = {}
    for name, value in tree.items():
        assert name, "cannot store an empty name"
        assert "/" not in name, f"cannot store the name {name!r}, which has a / in it"
        if isinstance(value, Mapping):
            assert value, f"cannot store the empty dict {name!r}"
            flat |= {f"{name}/{inner}": array for inner, array in flatten(value).items()}
        else:
            flat[name] = np.asarray(value, order="C")  # safetensors stores strided memory as it is
    return dict(sorted(flat.items()))


def unflatten(flat: Mapping[str, np.ndarray]) -> Arrays:
    """{"a/b/c": array} → nested dict, the inverse of `flatten`."""
    tree: Arrays = {}
    for name, array in sorted(flat.items()):
        *parents, last = name.split("/")
        branch = tree
        for parent in parents:
            branch = branch.setdefault(parent, {})
        branch[last] = array
    return tree


def _read(path: Path, text: str) -> dict[str, np.ndarray]:
    try:
        with safetensors.safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict)
    except OSError as error:
        raise BadInput(
            f"{path}: the cache file cannot be read ({error.strerror or error}); change its "
            "permissions, remove it, or choose another cache folder."
        ) from error
    except Exception as error:  # a damaged header can raise nearly anything
        raise _Damaged(f"not a safetensors file: {error}") from error
    if metadata.get("key") != text:
        raise _Damaged("it holds another key")
    if metadata.get("sha256") != digest(text, arrays):
        raise _Damaged("its checksum does not match its arrays")
    return arrays


def _canonical(value: object) -> str:
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), allow_nan=False, default=_json_value
    )


def _json_value(value: object) -> object:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Path):
        return str(value)
    return {"sha256": digest(value)}


def _update(state: "hashlib._Hash", thing: object) -> None:
    """Feeds one thing with its type and length, so that no two things read the same."""
    if isinstance(thing, Mapping):
        state.update(b"dict:%d:" % len(thing))
        for name in sorted(thing):
            _update(state, name)
            _update(state, thing[name])
    elif isinstance(thing, list | tuple):
        state.update(b"list:%d:" % len(thing))
        for item in thing:
            _update(state, item)
    elif isinstance(thing, np.ndarray | np.generic | jax.Array):
        array = np.asarray(thing, order="C")
        if array.dtype.hasobject:
            raise TypeError("cannot hash an array of Python objects by content")
        state.update(f"array:{array.dtype.name}:{array.shape}:".encode())
        state.update(array.reshape(-1).view(np.uint8).data)
    elif thing is None or isinstance(thing, bool | int | float | str | Path | bytes):
        content = thing if isinstance(thing, bytes) else str(thing).encode()
        kind = "Path" if isinstance(thing, Path) else type(thing).__name__
        state.update(f"{kind}:{len(content)}:".encode() + content)
    else:
        raise TypeError(f"cannot hash a {type(thing).__name__} by content")
