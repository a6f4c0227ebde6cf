"""One member of an npz file: an array, and no more memory than the file can fill."""

import math
from typing import Any

import numpy as np


def read_member(pack: Any, name: str) -> np.ndarray:
    """Reads an array of an opened npz file.

    NumPy makes room for what the header of an array claims before it reads; here a header that
    claims more than the member holds is refused.

    Args:
        pack: from `np.load` with `allow_pickle=False`.
        name: one of `pack.files`.

    Raises:
        ValueError: the member is no array, or shorter than it claims. NumPy, zipfile and zlib raise
            nearly anything else.
    """
    held = pack.zip.getinfo(f"{name}.npy").file_size if f"{name}.npy" in pack.zip.namelist() else 0
    if held:
        with pack.zip.open(f"{name}.npy") as member:
            claimed = _claimed(member)
        if claimed > held:
            raise ValueError(f"it claims {claimed} bytes and holds {held}")
    array = pack[name]
    if not isinstance(array, np.ndarray):  # NumPy gives the bytes of what is no array
        raise ValueError("no array")
    return array


def _claimed(member: Any) -> int:
    """The bytes of the array that a header describes; 0 for a header of another version."""
    version = np.lib.format.read_magic(member)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read is None:
        return 0
    shape, _, dtype = read(member)
    return 0 if dtype.hasobject else math.prod(shape) * dtype.itemsize
