"""Tensors of a PyTorch file as places in it: storage, offset, shape and stride; no numbers yet.

These are the functions that the pickle machine may call for PyTorch's names. A tensor is checked
against the size of its storage here, a storage against the file by whoever finds its place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from symerge_jax.checkpoints.byte_reader import ByteRange
from symerge_jax.checkpoints.pickle_names import (
    Call,
    Calls,
    Global,
    Malformed,
    Stub,
    Unreadable,
    printable,
)

# torch.<name> → dtype.
DTYPES: Mapping[str, Any] = {
    "float64": np.float64,
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
    "float8_e4m3fnuz": ml_dtypes.float8_e4m3fnuz,
    "float8_e5m2": ml_dtypes.float8_e5m2,
    "float8_e5m2fnuz": ml_dtypes.float8_e5m2fnuz,
    "complex64": np.complex64,
    "complex128": np.complex128,
    "int64": np.int64,
    "int32": np.int32,
    "int16": np.int16,
    "int8": np.int8,
    "uint64": np.uint64,
    "uint32": np.uint32,
    "uint16": np.uint16,
    "uint8": np.uint8,
    "bool": np.bool_,
}
# torch.<name>Storage → dtype. Of the quantised ones (Q…) only the size of an element counts.
STORAGES: Mapping[str, Any] = {
    "Double": np.float64,
    "Float": np.float32,
    "Half": np.float16,
    "BFloat16": ml_dtypes.bfloat16,
    "ComplexFloat": np.complex64,
    "ComplexDouble": np.complex128,
    "Long": np.int64,
    "Int": np.int32,
    "Short": np.int16,
    "Char": np.int8,
    "Byte": np.uint8,
    "Bool": np.bool_,
    "Untyped": np.uint8,
    "QInt8": np.int8,
    "QUInt8": np.uint8,
    "QInt32": np.int32,
    "QUInt4x2": np.uint8,
}
# What a tensor is that has none of the usual forms, by the function that would have made it.
UNUSUAL: Mapping[str, str] = {
    "torch._utils._rebuild_qtensor": "quantised: save tensor.dequantize()'s values",
    "torch._utils._rebuild_sparse_tensor": "sparse: save its .to_dense()",
    "torch._utils._rebuild_sparse_csr_tensor": "sparse: save its .to_dense()",
    "torch._utils._rebuild_nested_tensor": "nested: save its parts one by one",
    "torch._utils._rebuild_meta_tensor_no_storage": "without values, on the meta device",
    "torch._utils._rebuild_wrapper_subclass": "of a class of its own: save its full_tensor()",
    "torch._utils._rebuild_device_tensor_from_numpy": "in NumPy's form: save its .cpu()",
    "torch._utils._rebuild_xla_tensor": "in NumPy's form: save its .cpu()",
    "numpy.core.multiarray._reconstruct": "a NumPy array: save torch.from_numpy(array)",
    "numpy._core.multiarray._reconstruct": "a NumPy array: save torch.from_numpy(array)",
    "torch.nn.parameter.UninitializedParameter": "not initialised: run the model once",
    "torch.nn.parameter.UninitializedBuffer": "not initialised: run the model once",
}

_LARGEST = 1 << 62  # of any size, stride or offset: beyond it the numbers are not PyTorch's


@dataclass(eq=False, slots=True)
class Storage:
    """A run of bytes that tensors look into.

    Attributes:
        dtype: of its elements.
        nbytes: its length.
        start: position of its first byte in the file, or in `memory`; None until it is found.
        memory: the bytes that `start` counts in, where they are not those of the file.
        packed: compressed length of a deflated zip entry that begins at `start`; else None.
        swapped: whether its numbers are big-endian.
        root, skip: of a view of another storage: that one, and the bytes left out before it.
    """

    dtype: np.dtype
    nbytes: int
    start: int | None = None
    memory: bytes | None = None
    packed: int | None = None
    swapped: bool = False
    root: Storage | None = None
    skip: int = 0


@dataclass(eq=False, frozen=True, slots=True)
class Tensor:
    """A strided view of a storage; offset and stride count elements of `dtype`."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of its elements laid side by side."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def span(self) -> int:
        """Elements of the storage from its first to its last."""
        if 0 in self.shape:
            return 0
        return 1 + sum((n - 1) * step for n, step in zip(self.shape, self.stride, strict=True))

    @property
    def is_contiguous(self) -> bool:
        """Whether its elements lie side by side in row-major order."""
        expected = 1
        for n, step in zip(reversed(self.shape), reversed(self.stride), strict=True):
            if n != 1 and step != expected:
                return 0 in self.shape
            expected *= n
        return True

    @property
    def view(self) -> tuple[object, ...]:
        """Equal for two tensors that are the same elements of the same storage."""
        return id(self.storage), self.offset, self.shape, self.stride, self.dtype


def storage_dtype(kind: object) -> np.dtype:
    """Returns the element dtype of a storage class such as `torch.FloatStorage`.

    Raises:
        Unreadable: there is no such class.
    """
    if isinstance(kind, Global) and kind.module.split(".")[0] == "torch":
        name = kind.qualname.removesuffix("Storage")
        if name != kind.qualname and name in STORAGES:
            return np.dtype(STORAGES[name])
    raise Unreadable(
        f"it holds a storage of the unknown type {printable(kind)}; save the tensors as float32."
    )


def storage_size(numel: object, dtype: np.dtype) -> int:
    """Returns the bytes of `numel` elements.

    Raises:
        Malformed: that is no number of elements.
    """
    if not isinstance(numel, int) or not 0 <= numel < _LARGEST:
        raise Malformed(f"a storage claims {printable(numel)} elements")
    return numel * dtype.itemsize


def torch_calls(load_from_bytes: Callable[[ByteRange | bytes], object]) -> Calls:
    """The functions for PyTorch's names.

    Args:
        load_from_bytes: reads a whole file that is embedded in a pickle.
    """

    def embedded(call: Call, args: tuple[Any, ...]) -> object:
        match args:
            case (ByteRange() | bytes() as content,):
                return load_from_bytes(content)
        raise Malformed("a storage is embedded as something that is no bytes")

    return {**_CALLS, "torch.storage._load_from_bytes": embedded}


def _rebuild_tensor(call: Call, args: tuple[Any, ...]) -> object:
    # storage, offset, size, stride[, requires_grad, hooks[, metadata]]
    if len(args) > 6 and args[6]:
        raise Unreadable(
            "it holds a lazily conjugated or negated tensor; save its .resolve_conj()."
        )
    match args:
        case (Storage(dtype=dtype), *_):
            return _tensor(args, dtype)
    raise Malformed("a tensor is rebuilt from unknown parts")


def _rebuild_tensor_v3(call: Call, args: tuple[Any, ...]) -> object:
    # storage, offset, size, stride, requires_grad, hooks, dtype[, metadata]
    return _tensor(args, _dtype(args[6]))


def _dtype(name: object) -> np.dtype:
    if isinstance(name, Global) and name.module == "torch" and name.qualname in DTYPES:
        return np.dtype(DTYPES[name.qualname])
    raise Unreadable(
        f"it holds a tensor of the unknown dtype {printable(name)}; save it as float32."
    )


def _tensor(args: tuple[Any, ...], dtype: np.dtype) -> Tensor:
    match args:
        case (Storage() as storage, int(offset), tuple(shape), tuple(stride), *_):
            pass
        case _:
            raise Malformed("a tensor is rebuilt from unknown parts")
    numbers = (offset, *shape, *stride)
    if not all(isinstance(n, int) and 0 <= n < _LARGEST for n in numbers):
        raise Malformed("a tensor has a size, stride or offset that cannot be")
    if len(shape) != len(stride) or len(shape) > 32:
        raise Malformed(f"a tensor has {len(shape)} sizes and {len(stride)} strides")
    tensor = Tensor(storage, offset, shape, stride, dtype)
    needed = (offset + tensor.span) * dtype.itemsize if tensor.span else 0
    if needed > storage.nbytes:
        raise Unreadable(
            f"a tensor of shape {printable(shape)} needs {needed} bytes of a storage that has "
            f"{storage.nbytes}; the file is damaged: download or save it again."
        )
    return tensor


def _first(call: Call, args: tuple[Any, ...]) -> object:
    # A parameter is the tensor it was made from, which may be an unusual one.
    if args and isinstance(args[0], Tensor | Stub):
        return args[0]
    raise Malformed("a parameter is made from what is no tensor")


def _size(call: Call, args: tuple[Any, ...]) -> object:
    match args:
        case (list() | tuple() as sizes,):
            return tuple(sizes)
    raise Malformed("a size is made from what is no list")


def _rebuild_from_type(call: Call, args: tuple[Any, ...]) -> object:
    # function, class, arguments, state: subclasses of Tensor, and tensors with attributes
    return call(args[0], args[2])


def _from_cpu_tensor(call: Call, args: tuple[Any, ...]) -> object:
    # tensor, dtype, device, requires_grad
    match args:
        case (Tensor() as tensor, name, *_) if _dtype(name) == tensor.dtype:
            return tensor
    raise Malformed("a tensor of another device has no values")


_CALLS: Calls = {
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v3": _rebuild_tensor_v3,
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_parameter_with_state": _first,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _from_cpu_tensor,
    "torch._tensor._rebuild_from_type": _rebuild_from_type,
    "torch._tensor._rebuild_from_type_v2": _rebuild_from_type,
    "torch.tensor._rebuild_from_type": _rebuild_from_type,  # the module's name until 1.8
    "torch.nn.parameter.Parameter": _first,
    "torch.nn.parameter.Buffer": _first,
    "torch.Size": _size,
}
