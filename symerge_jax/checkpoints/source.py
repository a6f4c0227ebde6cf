"""One checkpoint, opened lazily: names, shapes and dtypes at once, the numbers when asked for.

A checkpoint is a safetensors file, a PyTorch file, or a folder as Hugging Face and open_clip lay
them out (`open_checkpoint` in `checkpoints.open` tells them apart). Nothing stays open or mapped
between two reads: pages of a mapped file would count as memory of this process.

The safetensors format is that of https://huggingface.co/docs/safetensors: eight bytes of header
length, a JSON header, the numbers. The library checks the header; the bytes are read straight into
the array that is asked for.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import ml_dtypes
import numpy as np
import safetensors

from symerge_jax.errors import BadInput

_DTYPES: dict[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
    "C64": np.complex64,
}
NAMES = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}


class TensorInfo(NamedTuple):
    """Shape and dtype of a stored tensor."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of the array."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


@runtime_checkable
class Part(Protocol):
    """One file of a checkpoint: `SafetensorsFile` here, `TorchFile` in `checkpoints.torch_file`."""

    @property
    def path(self) -> Path: ...
    @property
    def container(self) -> str: ...
    @property
    def tensors(self) -> dict[str, TensorInfo]: ...
    @property
    def metadata(self) -> dict[str, str]: ...
    @property
    def module(self) -> Any: ...
    def read(self, name: str, out: np.ndarray | None = None) -> np.ndarray: ...


@dataclass(frozen=True)
class SafetensorsFile:
    """A safetensors file.

    Attributes:
        path: the file.
        tensors: name → shape and dtype, in the order of the file.
        metadata: the header's free text.
        begins: name → position of its first byte in the file.
    """

    path: Path
    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]
    begins: dict[str, int]
    container: str = "safetensors"
    module: None = None

    def read(self, name: str, out: np.ndarray | None = None) -> np.ndarray:
        """Reads one tensor, into `out` where it is given.

        Raises:
            BadInput: the file cannot be read, or ends before the tensor does.
        """
        info = self.tensors[name]
        array = np.empty(info.shape, info.dtype) if out is None else out
        assert array.flags.c_contiguous, "the bytes of a tensor go to contiguous memory"
        assert (array.shape, array.dtype) == info, f"{name}: {array.shape} {array.dtype} for {info}"
        view = array.reshape(-1).view(np.uint8).data
        try:
            with open(self.path, "rb", buffering=0) as file:
                file.seek(self.begins[name])
                done = 0
                while done < len(view) and (count := file.readinto(view[done:])):
                    done += count
        except OSError as error:
            raise BadInput(f"{self.path}: cannot be read ({error.strerror or error})") from error
        if done < len(view):
            raise BadInput(
                f"{self.path}: the file ends inside tensor {name}; it changed while it was read, "
                "or was not copied completely: copy it again"
            )
        return array


def open_safetensors(path: str | Path) -> SafetensorsFile:
    """Reads the header of a safetensors file.

    Raises:
        BadInput: the file is not readable, not in this format, or shorter than its header says.
    """
    path = Path(path)
    try:
        with safetensors.safe_open(path, framework="np") as checked:  # checks every offset
            metadata = checked.metadata() or {}
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror or error})") from error
    except Exception as error:  # the library has one class for all that can be wrong
        raise BadInput(
            f"{path}: not a whole safetensors file ({error}); download or copy it again"
        ) from error
    header.pop("__metadata__", None)
    entries = sorted(header.items(), key=lambda entry: entry[1]["data_offsets"])
    for name, entry in entries:
        if entry["dtype"] not in _DTYPES:
            raise BadInput(f"{path}: tensor {name} has the unknown dtype {entry['dtype']}")
    return SafetensorsFile(
        path,
        {
            name: TensorInfo(tuple(entry["shape"]), np.dtype(_DTYPES[entry["dtype"]]))
            for name, entry in entries
        },
        metadata,
        {name: 8 + length + entry["data_offsets"][0] for name, entry in entries},
    )


class Stamp(NamedTuple):
    """What tells that a file is still the one that was opened."""

    size: int
    modified: int
    inode: int


def stamp(path: Path) -> Stamp:
    """Returns the stamp of a file.

    Raises:
        BadInput: there is no such file, or it may not be looked at.
    """
    try:
        found = os.stat(path)
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror or error})") from error
    return Stamp(found.st_size, found.st_mtime_ns, found.st_ino)


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A checkpoint of one or several files, whose tensors have one set of names.

    Attributes:
        path: what the person named.
        parts: the files with tensors.
        where: tensor name → its file, in the order of the files.
        config: the parsed config.json or open_clip_config.json beside the tensors.
        extra: other files that were read: configuration and index.
        revision: of a download from the hub, its commit.
    """

    path: Path
    parts: tuple[Part, ...]
    where: dict[str, Part]
    config: Mapping[str, Any] | None = None
    preprocessor: Mapping[str, Any] | None = None
    extra: tuple[Path, ...] = ()
    revision: str | None = None
    stamps: dict[Path, Stamp] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Notes what the files look like now."""
        self.stamps.update({path: stamp(path) for path in self.files})

    @cached_property
    def tensors(self) -> dict[str, TensorInfo]:
        """Name → shape and dtype."""
        return {name: part.tensors[name] for name, part in self.where.items()}

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file that belongs to the checkpoint."""
        return (*(part.path for part in self.parts), *self.extra)

    @property
    def container(self) -> str:
        """Kind of file."""
        kind = self.parts[0].container
        return kind if len(self.parts) == 1 else f"{kind}, {len(self.parts)} shards"

    @property
    def metadata(self) -> dict[str, str]:
        """Free text in the header of the first file."""
        return self.parts[0].metadata

    @property
    def module(self) -> Any:
        """`ModuleFacts` of a pickled module, else None."""
        return self.parts[0].module

    def read(self, name: str, out: np.ndarray | None = None) -> np.ndarray:
        """Reads one tensor, into `out` (same shape and dtype, contiguous) where it is given."""
        return self.where[name].read(name, out)

    def check_unchanged(self) -> None:
        """Raises `BadInput` if a file is not the one that was opened."""
        for path, before in self.stamps.items():
            if stamp(path) != before:
                raise BadInput(
                    f"{path}: the file changed while it was read; wait until whoever writes it "
                    "is done, and start again"
                )


def joined(path: Path, parts: Sequence[Part], **rest: Any) -> Checkpoint:
    """Returns the checkpoint that `parts` make up.

    Raises:
        BadInput: two files hold a tensor of the same name, or there is no tensor at all.
    """
    where: dict[str, Part] = {}
    for part in parts:
        for name in part.tensors:
            if name in where:
                raise BadInput(f"{path}: tensor {name} is in {where[name].path.name} and "
                               f"{part.path.name}; expected it once")  # fmt: skip
            where[name] = part
    if not where:
        raise BadInput(f"{path}: holds no tensors")
    return Checkpoint(path, tuple(parts), where, **rest)
