"""The three layouts of PyTorch files: zip, legacy stream, plain pickle.

- zip (`torch.save` since 1.6): `<name>/data.pkl`, and each storage as `<name>/data/<key>`, stored
  without compression, so that its numbers lie in the file as they are.
- legacy (`torch.save` before): pickles of a magic number, a version, facts on the machine, the
  object, the storages' keys; then for each key its element count in eight bytes, and the numbers.
- plain (`pickle.dump`): one pickle; each storage is a call of `torch.storage._load_from_bytes` with
  a small file of its own, legacy or zip, as its bytes. Protocols 0 to 2 write bytes as text, which
  has to be kept in memory; the others stay in the file.

Each function returns the object with its tensors as places in the file. Numbers in zip files have
the byte order of the entry `byteorder`, all others are little-endian.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from typing import NamedTuple

from symerge_jax.checkpoints.byte_reader import ByteRange, BytesFile, Reader
from symerge_jax.checkpoints.pickle_names import Global, Malformed, Unreadable, printable
from symerge_jax.checkpoints.torch_tensors import (
    Storage,
    storage_dtype,
    storage_size,
    torch_calls,
)
from symerge_jax.checkpoints.unpickle import load

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
ZIP_MAGIC = b"PK\x03\x04"
# The pickle of a model has some 100 kB. Also the most that a compressed entry may hold.
MAX_UNPACKED = 256 << 20
# PyTorch never compresses. Other programs do, and weights shrink by a few percent.
MAX_RATIO = 100
_SMALL = 1 << 20  # zeros may shrink by more


class Content(NamedTuple):
    """What a file holds.

    Attributes:
        root: the object that was saved.
        container: 'torch zip', 'torch legacy' or 'pickle'.
        made: names of all classes and functions that became stubs, in the file's order.
    """

    root: object
    container: str
    made: tuple[str, ...]


def read_content(file: BytesFile, size: int) -> Content:
    """Reads all but the numbers.

    Args:
        file: an open file, at its start.
        size: its length in bytes.

    Raises:
        Malformed: it is none of the layouts, or damaged.
        Unreadable: it asks to call what is refused, or holds what cannot be read.
    """
    made: dict[str, None] = {}
    if file.read(4) == ZIP_MAGIC:
        return Content(_read_zip(file, size, 0, None, made), "torch zip", tuple(made))
    reader = Reader(file, 0, size)
    root = load(reader, torch_calls(lambda content: _embedded(content, made)), made=made)
    if root != LEGACY_MAGIC:
        return Content(root, "pickle", tuple(made))
    return Content(_read_legacy(reader, made), "torch legacy", tuple(made))


def _no_embedding(content: ByteRange | bytes) -> object:
    raise Unreadable("it embeds files within files, which PyTorch does only in plain pickles.")


def _embedded(content: ByteRange | bytes, made: dict[str, None]) -> object:
    """Reads the file that a plain pickle holds for each storage."""
    if isinstance(content, bytes):
        content = ByteRange(Reader(io.BytesIO(content), 0, len(content), content), 0, len(content))
    outer, start, length = content
    inner = Reader(outer.file, start, start + length, outer.memory)
    try:
        if length >= 4 and inner.take(4) == ZIP_MAGIC:
            rest = inner.take(length - 4)
            return _read_zip(io.BytesIO(ZIP_MAGIC + rest), length, start, outer.memory, made)
        inner = Reader(outer.file, start, start + length, outer.memory)
        if load(inner) != LEGACY_MAGIC:
            raise Malformed("a storage is embedded in a layout that is not PyTorch's")
        return _read_legacy(inner, made)
    finally:
        outer.resume()


# --- legacy stream ------------------------------------------------------------------------------


def _read_legacy(reader: Reader, made: dict[str, None]) -> object:
    """Reads what follows the magic number."""
    storages: dict[str, Storage] = {}
    views: dict[str, Storage] = {}

    def persistent(identity: object) -> object:
        match identity:
            case ("module", Global() as kind, *_):  # a class, with its source text
                return kind
            case ("storage", kind, str(key), _, numel, view):
                if key not in storages:
                    dtype = storage_dtype(kind)
                    size = storage_size(numel, dtype)
                    storages[key] = Storage(dtype, size, memory=reader.memory)
                return storages[key] if view is None else _view(storages[key], view, views)
        raise Malformed("its pickle refers to a storage in an unknown way")

    load(reader, made=made)  # protocol version
    load(reader, made=made)  # byte order and sizes of the machine; the numbers are little-endian
    root = load(reader, torch_calls(_no_embedding), persistent, made=made)
    keys = load(reader, made=made)
    if not isinstance(keys, list):
        raise Malformed("it has no list of storages")
    for key in keys:
        _locate(reader, key, storages)
    for key, storage in storages.items():
        if storage.start is None:
            raise Unreadable(f"it lacks storage {printable(key)}; download or save it again.")
    return root


def _locate(reader: Reader, key: object, storages: dict[str, Storage]) -> None:
    """Notes where a storage's numbers begin, and passes over them."""
    numel = int.from_bytes(reader.take(8), "little", signed=True)
    storage = storages.get(key) if isinstance(key, str) else None
    if storage is None:
        raise Malformed("it holds a storage that no tensor has")
    if numel * storage.dtype.itemsize != storage.nbytes:
        raise Unreadable(
            f"storage {printable(key)} holds {numel * storage.dtype.itemsize} bytes where its "
            f"tensors need {storage.nbytes}; the file is damaged: download or save it again."
        )
    storage.start = reader.position
    try:
        reader.skip(storage.nbytes)
    except Malformed:
        raise Unreadable(
            f"it ends inside storage {printable(key)}; it was not copied completely: download or "
            "save it again."
        ) from None


def _view(root: Storage, view: object, views: dict[str, Storage]) -> Storage:
    """Part of a storage as one of its own, in files from before PyTorch 0.4."""
    match view:
        case (str(key), int(offset), int(numel)) if offset >= 0:
            size = storage_size(numel, root.dtype)
            skip = offset * root.dtype.itemsize
            if skip + size > root.nbytes:
                raise Malformed("a view reaches beyond its storage")
            return views.setdefault(key, Storage(root.dtype, size, root=root, skip=skip))
    raise Malformed("a view of a storage has an unknown form")


# --- zip ----------------------------------------------------------------------------------------


def _read_zip(
    file: BytesFile, size: int, base: int, memory: bytes | None, made: dict[str, None]
) -> object:
    """Reads an archive of `size` bytes that begins at `base` of the file, or of `memory`."""
    try:
        archive = zipfile.ZipFile(file)
    except Exception as error:  # a damaged directory can raise nearly anything
        raise Malformed(f"its zip directory cannot be read: {printable(error)}") from error
    with archive:
        entries = _entries(archive)
        folder = _folder(entries)
        order = _unpacked(archive, entries.get(f"{folder}/byteorder"), 16)
        if order not in (b"", b"little", b"big"):
            raise Unreadable(f"its byte order is {printable(order)}; expected little or big.")
        content = _unpacked(archive, entries[f"{folder}/data.pkl"], MAX_UNPACKED)
        find = _finder(file, size, base, entries, folder)
        storages: dict[str, Storage] = {}

        def persistent(identity: object) -> object:
            match identity:
                case ("storage", kind, str(key), _, numel):
                    if key not in storages:
                        dtype = storage_dtype(kind)
                        storage = Storage(dtype, storage_size(numel, dtype), memory=memory)
                        storage.swapped = order == b"big"
                        storages[key] = find(key, storage)
                    return storages[key]
            raise Malformed("its pickle refers to a storage in an unknown way")

        reader = Reader(io.BytesIO(content), 0, len(content), content)
        return load(reader, torch_calls(_no_embedding), persistent, made=made)


def _entries(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """Name → entry, with what PyTorch would not write refused."""
    entries: dict[str, zipfile.ZipInfo] = {}
    for entry in archive.infolist():
        name = printable(entry.filename)
        if entry.filename in entries:
            raise Unreadable(f"its zip has two entries named {name}; download or save it again.")
        if entry.flag_bits & 1:
            raise Unreadable(f"its zip entry {name} is encrypted; save it without a password.")
        packed = entry.compress_type != zipfile.ZIP_STORED
        if packed and (
            entry.compress_type != zipfile.ZIP_DEFLATED
            or entry.file_size > MAX_UNPACKED
            or entry.file_size > max(_SMALL, MAX_RATIO * entry.compress_size)
        ):
            raise Unreadable(
                f"its zip entry {name} unpacks from {entry.compress_size} to {entry.file_size} "
                "bytes; PyTorch does not compress: unpack the archive and pack it with zip -0."
            )
        if not packed and entry.file_size != entry.compress_size:
            raise Malformed(f"its zip entry {name} has two lengths")
        entries[entry.filename] = entry
    return entries


def _folder(entries: dict[str, zipfile.ZipInfo]) -> str:
    """The one folder that everything is in."""
    found = [name.removesuffix("/data.pkl") for name in entries if name.endswith("/data.pkl")]
    found = [folder for folder in found if "/" not in folder]
    if len(found) != 1:
        raise Unreadable(
            "it is a zip archive but none of torch.save, which has one <name>/data.pkl; expected "
            "a PyTorch checkpoint."
        )
    if f"{found[0]}/constants.pkl" in entries:
        raise Unreadable(
            "it is a TorchScript archive, a program; load it with torch.jit.load and save its "
            "state_dict() with torch.save."
        )
    return found[0]


def _unpacked(archive: zipfile.ZipFile, entry: zipfile.ZipInfo | None, limit: int) -> bytes:
    """An entry's content with its checksum verified, b"" without one."""
    if entry is None:
        return b""
    if entry.file_size > limit:
        raise Unreadable(
            f"its zip entry {printable(entry.filename)} has {entry.file_size} bytes, expected at "
            f"most {limit}; save the state dict alone."
        )
    try:
        return archive.read(entry)
    except Exception as error:  # as for the directory
        raise Malformed(
            f"its zip entry {printable(entry.filename)} cannot be read: {printable(error)}"
        ) from error


def _finder(
    file: BytesFile, size: int, base: int, entries: dict[str, zipfile.ZipInfo], folder: str
) -> Callable[[str, Storage], Storage]:
    """A function that notes where a storage's entry begins."""

    def find(key: str, storage: Storage) -> Storage:
        entry = entries.get(f"{folder}/data/{key}")
        held = 0 if entry is None else entry.file_size
        if held < storage.nbytes:
            raise Unreadable(
                f"storage {printable(key)} holds {held} bytes where its tensors need "
                f"{storage.nbytes}; the file is damaged: download or save it again."
            )
        storage.start = base
        if entry is not None:
            storage.start += _entry_start(file, size, entry)
            storage.packed = entry.compress_size if entry.compress_type else None
        return storage

    return find


def _entry_start(file: BytesFile, size: int, entry: zipfile.ZipInfo) -> int:
    """Position of an entry's bytes, which follow a header of its own length."""
    if 0 <= entry.header_offset < size:
        file.seek(entry.header_offset)
        header = file.read(30)
        names = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        start = entry.header_offset + 30 + names
        if header[:4] == ZIP_MAGIC and start + entry.compress_size <= size:
            return start
    raise Unreadable(
        f"its zip entry {printable(entry.filename)} does not lie in the file; the file is damaged: "
        "download or save it again."
    )
