"""Writes a safetensors file tensor by tensor, so that a model never has to lie in memory whole.

The format is that of https://huggingface.co/docs/safetensors: eight bytes of header length, a JSON
header, the numbers.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from symerge_jax.checkpoints.source import NAMES, TensorInfo
from symerge_jax.errors import BadInput


class SafetensorsWriter:
    """A safetensors file whose tensors are written one at a time, in any order.

    Use as a context manager. The header says from the start where each tensor goes.
    """

    def __init__(
        self,
        path: Path,
        tensors: Mapping[str, TensorInfo],
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        self._path, self._tensors = path, tensors
        header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
        self._begins: dict[str, int] = {}
        begin = 0
        # Largest items first, as the library itself orders them: every tensor stays aligned.
        order = sorted(tensors.items(), key=lambda item: (-item[1].dtype.itemsize, item[0]))
        for name, info in order:
            if info.dtype not in NAMES:
                raise BadInput(
                    f"tensor {name} is {info.dtype}, which the safetensors format does not have"
                )
            end = begin + info.nbytes
            header[name] = {
                "dtype": NAMES[info.dtype],
                "shape": list(info.shape),
                "data_offsets": [begin, end],
            }
            self._begins[name] = begin
            begin = end
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._start, self._size = 8 + len(text), 8 + len(text) + begin
        self._text = len(text).to_bytes(8, "little") + text
        self._left = set(tensors)

    def __enter__(self) -> SafetensorsWriter:
        self._file: BinaryIO = open(self._path, "xb", buffering=0)  # noqa: SIM115 (closed on exit)
        try:
            _write_all(self._file, self._text)
            os.truncate(self._file.fileno(), self._size)
        except BaseException:
            self._file.close()
            raise
        return self

    def write(self, name: str, array: np.ndarray) -> None:
        """Writes one tensor; its shape and dtype are those announced."""
        info = self._tensors[name]
        assert (array.shape, array.dtype) == info, f"{name}: {array.shape} {array.dtype}, {info}"
        self._left.remove(name)
        self._file.seek(self._start + self._begins[name])
        _write_all(self._file, np.ascontiguousarray(array).reshape(-1).view(np.uint8))

    def __exit__(self, kind: Any, value: Any, trace: Any) -> None:
        try:
            if kind is None:
                assert not self._left, f"tensor {min(self._left)} was not written"
                os.fsync(self._file.fileno())  # some file systems report a full disk only here
        finally:
            self._file.close()


def _write_all(file: BinaryIO, data: Any) -> None:
    view = memoryview(data)
    while len(view):
        view = view[file.write(view) :]
