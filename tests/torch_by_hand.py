"""PyTorch files written opcode by opcode, so that they can be anything but what PyTorch writes."""

import io
import pickle
import struct
import zipfile

import numpy as np
import pytest

from symerge_jax.checkpoints.torch_file import open_torch
from symerge_jax.errors import BadInput


def numbers(n):
    return np.arange(n, dtype="<f4").tobytes()


def text(value):
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def integers(*values):
    return b"(" + b"".join(b"L%dL\n" % value for value in values) + b"t"


def floats(*shape, stride=None, offset=0, key="0", numel=8, kind="FloatStorage", view=None):
    """The opcodes of a float32 tensor; `view` as in the legacy layout, b"" without."""
    if stride is None:
        stride = [int(np.prod(shape[i + 1 :])) for i in range(len(shape))]
    identity = b"(" + text("storage") + b"ctorch\n" + kind.encode() + b"\n" + text(key)
    identity += text("cpu") + b"L%dL\n" % numel + (b"" if view is None else view) + b"tQ"
    rest = b"L%dL\n" % offset + integers(*shape) + integers(*stride) + b"\x89}"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + identity + rest + b"tR"


def a_dict(tensors):
    return b"\x80\x02}(" + b"".join(text(k) + v for k, v in tensors.items()) + b"u."


def make_zip(tensors, storages, *, compression=zipfile.ZIP_STORED, extra=()):
    content = tensors if isinstance(tensors, bytes) else a_dict(tensors)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        archive.writestr("archive/data.pkl", content)
        for key, data in storages.items():
            archive.writestr(f"archive/data/{key}", data)
        for name, data in extra:
            archive.writestr(name, data)
    return buffer.getvalue()


def make_legacy(tensors, storages, *, magic=0x1950A86A20F9469CFC6C):
    content = tensors if isinstance(tensors, bytes) else a_dict(tensors)
    start = b"".join(pickle.dumps(x, 2) for x in (magic, 1001, {"little_endian": True}))
    data = b"".join(struct.pack("<q", len(d) // 4) + d for d in storages.values())
    return start + content + pickle.dumps(list(storages), 2) + data


def make_plain(embedded, shape=(8,)):
    """A plain pickle of one float32 tensor whose storage is the file `embedded`."""
    storage = b"ctorch.storage\n_load_from_bytes\n(B" + struct.pack("<I", len(embedded))
    storage += embedded + b"tR"
    rest = b"L0L\n" + integers(*shape) + integers(1) + b"\x89}"
    return (
        b"\x80\x03}"
        + text("w")
        + b"ctorch._utils\n_rebuild_tensor_v2\n("
        + storage
        + rest
        + (b"tRs.")
    )


def storage_alone(view=None):
    identity = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu")
    return b"\x80\x02" + identity + b"I8\n" + (b"" if view is None else view) + b"tQ."


def saved(tmp_path, content):
    (tmp_path / "x.pt").write_bytes(content)
    return tmp_path / "x.pt"


def assert_refused(path, *words):
    with pytest.raises(BadInput) as caught:
        open_torch(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert len(message) < 500
    for word in words:
        assert word in message, message
