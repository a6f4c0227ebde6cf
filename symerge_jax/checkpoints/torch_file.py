"""PyTorch checkpoints without PyTorch: what is in the file at once, the numbers when asked for.

Reads what `torch.save` (old and new layout) and `pickle.dump` write: state dicts, checkpoints that
hold one, and whole modules, whose classes need not exist here. Nothing in the file is executed
(`unpickle`); a file that asks for more than data is refused.

Opening costs a few milliseconds whatever the size of the tensors. Nothing stays open between two
reads. The checksums of a zip's tensors are not verified, as PyTorch does not either.
"""

from __future__ import annotations

import os
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from symerge_jax.checkpoints.byte_reader import BytesFile
from symerge_jax.checkpoints.module_facts import ModuleFacts, find_tensors, module_facts
from symerge_jax.checkpoints.pickle_names import Malformed, Unreadable, printable
from symerge_jax.checkpoints.source import TensorInfo
from symerge_jax.checkpoints.torch_containers import Content, read_content
from symerge_jax.checkpoints.torch_tensors import Storage, Tensor
from symerge_jax.errors import BadInput

# An expanded tensor (stride 0) is larger than its bytes in the file: up to the file's size or this.
LARGEST_EXPANDED = 16 << 20

_PICKLE = b"\x80"  # how protocols 2 and above begin
# What is often saved under a checkpoint's name, by its first bytes.
_OTHERS = (
    (b"version https://git-lfs", "a git-lfs pointer, not the file itself: run git lfs pull"),
    (b"<!doctype html", "an HTML page, as a failed download leaves one: download it again"),
    (b"<html", "an HTML page, as a failed download leaves one: download it again"),
    (b"<?xml", "an XML page, as a failed download leaves one: download it again"),
    (b"\x89png", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"\x1f\x8b", "compressed with gzip: unpack it first"),
    (b"\x89hdf", "an HDF5 file, which PyTorch does not write"),
    (b"\x93numpy", "a NumPy array, not a checkpoint"),
    (b"gguf", "a GGUF file, which PyTorch does not write"),
)


@dataclass(frozen=True, eq=False)
class TorchFile:
    """A PyTorch file.

    Attributes:
        path: the file.
        container: 'torch zip', 'torch legacy' or 'pickle'.
        tensors: dotted name → shape and dtype, in the order of `state_dict()`.
        module: what its classes say, if it is a whole module; None for a state dict.
        aliases: name → earlier name of the very same numbers (tied weights).
        places: name → where its numbers are.
        metadata: always empty; PyTorch files have none.
    """

    path: Path
    container: str
    tensors: dict[str, TensorInfo]
    module: ModuleFacts | None
    aliases: dict[str, str]
    places: dict[str, Tensor] = field(repr=False)
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def files(self) -> tuple[Path, ...]:
        """The file."""
        return (self.path,)

    def read(self, name: str, out: np.ndarray | None = None) -> np.ndarray:
        """Reads one tensor, C-contiguous and in this machine's byte order, from any thread.

        Args:
            name: one of `tensors`.
            out: an array of its shape and dtype, C-contiguous, to read into.

        Raises:
            BadInput: there is no such tensor, or the file can no longer be read.
        """
        if name not in self.places:
            raise BadInput(f"{self.path}: there is no tensor {name} in it")
        tensor = self.places[name]
        array = np.empty(tensor.shape, tensor.dtype) if out is None else out
        assert array.flags.c_contiguous, "the bytes of a tensor go to contiguous memory"
        expected = self.tensors[name]
        assert (array.shape, array.dtype) == expected, f"{name}: expected {expected}"
        try:
            _read(self.path, tensor, array)
        except OSError as error:
            raise BadInput(f"{self.path}: cannot be read ({error.strerror or error})") from error
        except (EOFError, zlib.error) as error:
            raise BadInput(
                f"{self.path}: the bytes of tensor {name} are not all there; the file changed "
                "since it was opened, or was not copied completely: copy it again"
            ) from error
        return array


def open_torch(path: str | Path) -> TorchFile:
    """Reads names, shapes and dtypes of a PyTorch file, and what its classes say.

    Args:
        path: a file of `torch.save` or `pickle.dump`: a state dict, a dict with one under
            `state_dict`, `model_state_dict`, `model`, …, or a whole module.

    Raises:
        BadInput: the file is not readable or no checkpoint, is damaged, holds tensors that have no
            plain array, or asks to call what no checkpoint needs.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            start = file.read(512)
            file.seek(0)
            content = _content(file, size, start)
        tensors, module = find_tensors(content.root)
        _check_sizes(tensors, size)
        facts = None if module is None else module_facts(module, content.made)
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror or error})") from error
    except Unreadable as error:
        raise BadInput(f"{path}: {error}") from error
    infos = {name: TensorInfo(t.shape, t.dtype) for name, t in tensors.items()}
    return TorchFile(path, content.container, infos, facts, _aliases(tensors), tensors)


def _content(file: BytesFile, size: int, start: bytes) -> Content:
    """Reads a file whose first bytes are known, with other kinds of file told by them."""
    if not start:
        raise Unreadable("the file is empty; download or save it again.")
    head = start.lstrip().lower()
    for magic, what in _OTHERS:
        if head.startswith(magic):
            raise Unreadable(f"no PyTorch checkpoint but {what}.")
    if start[257:262] == b"ustar":
        raise Unreadable(
            "a tar archive, the format of PyTorch before 0.1.10; load it with an old PyTorch and "
            "save its state dict anew."
        )
    try:
        return read_content(file, size)
    except Malformed as error:
        if start.startswith((_PICKLE, b"PK")):
            raise Unreadable(
                f"a damaged or incomplete PyTorch file ({error}); download or save it again."
            ) from error
        raise Unreadable(
            f"no PyTorch checkpoint: it begins with {printable(start[:16])}; expected a file of "
            "torch.save."
        ) from error


def _check_sizes(tensors: dict[str, Tensor], size: int) -> None:
    for name, tensor in tensors.items():
        if tensor.nbytes > max(tensor.storage.nbytes, size, LARGEST_EXPANDED):
            raise Unreadable(
                f"tensor {printable(name)} of shape {printable(tensor.shape)} claims "
                f"{tensor.nbytes} bytes, but the file has {size}; save it as .contiguous()."
            )


def _aliases(tensors: dict[str, Tensor]) -> dict[str, str]:
    first: dict[tuple[object, ...], str] = {}
    aliases = {}
    for name, tensor in tensors.items():
        earlier = first.setdefault(tensor.view, name)
        if earlier != name and tensor.span:
            aliases[name] = earlier
    return aliases


# --- numbers ------------------------------------------------------------------------------------


def _read(path: Path, tensor: Tensor, out: np.ndarray) -> None:
    """Fills `out`, of the tensor's shape and dtype."""
    if not tensor.span:
        return
    if tensor.is_contiguous:
        _fill(path, tensor, out.reshape(-1))
    else:
        span = np.empty(tensor.span, tensor.dtype)
        _fill(path, tensor, span)
        steps = [step * tensor.dtype.itemsize for step in tensor.stride]
        np.copyto(out, np.lib.stride_tricks.as_strided(span, tensor.shape, steps, writeable=False))


def _fill(path: Path, tensor: Tensor, flat: np.ndarray) -> None:
    """Fills one-dimensional `flat` with the storage's elements from the tensor's offset on."""
    storage, skip = tensor.storage, tensor.offset * tensor.dtype.itemsize
    if storage.root is not None:
        storage, skip = storage.root, skip + storage.skip
    target = flat.view(np.uint8)
    if storage.memory is None and storage.packed is None:
        assert storage.start is not None
        _fill_from_file(path, storage.start + skip, target.data)
    else:
        content = _in_memory(path, storage)
        if skip + len(target) > len(content):
            raise EOFError
        target[:] = np.frombuffer(content, np.uint8, len(target), skip)
    if storage.swapped:
        # Of a complex number, each half.
        unit = tensor.dtype.itemsize // (2 if tensor.dtype.kind == "c" else 1)
        flat.view(f"u{unit}").byteswap(inplace=True)


def _fill_from_file(path: Path, position: int, view: memoryview) -> None:
    with open(path, "rb", buffering=0) as file:
        file.seek(position)
        done = 0
        while done < len(view):
            count = file.readinto(view[done:])
            if not count:
                raise EOFError
            done += count


def _in_memory(path: Path, storage: Storage) -> memoryview:
    """All of a storage that is packed, or that came in text form."""
    start = storage.start
    assert start is not None
    if storage.packed is None:
        assert storage.memory is not None
        return memoryview(storage.memory)[start : start + storage.nbytes]
    packed = bytearray(storage.packed)
    if storage.memory is None:
        _fill_from_file(path, start, memoryview(packed))
    else:
        packed[:] = storage.memory[start : start + storage.packed]
    return memoryview(zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, storage.nbytes))
