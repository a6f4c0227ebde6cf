"""Bytes of a file taken in order and never past an end, and ranges of bytes left where they are."""

from __future__ import annotations

import io
from typing import NamedTuple

from symerge_jax.checkpoints.pickle_names import Malformed

MAX_LINE = 1 << 20  # of a number, name or text in the text opcodes of a pickle


BytesFile = io.BufferedReader | io.BytesIO


class ByteRange(NamedTuple):
    """A byte string left where it is: `length` bytes from `start` of what the reader reads."""

    reader: Reader
    start: int
    length: int


class Reader:
    """Reads `file` from `start`, never past `end`.

    Attributes:
        memory: what `file` wraps where that is no file on disk, so that ranges of it can be kept.
    """

    def __init__(self, file: BytesFile, start: int, end: int, memory: bytes | None = None):
        self.file, self.position, self.end, self.memory = file, start, end, memory
        self.resume()

    def resume(self) -> None:
        """Puts the file back to this reader's place after somebody else read from it."""
        self.file.seek(self.position)

    def take(self, n: int) -> bytes:
        """Returns the next n bytes, all of them."""
        content = self.file.read(n) if 0 <= n <= self.end - self.position else b""
        if len(content) != n:
            raise Malformed("it ends in the middle of a record")
        self.position += n
        return content

    def skip(self, n: int) -> None:
        """Passes over n bytes, which must be there."""
        if not 0 <= n <= self.end - self.position:
            raise Malformed("it ends in the middle of a record")
        self.position += n
        self.resume()

    def line(self) -> bytes:
        """Returns the next line without its end."""
        content = self.file.readline(min(MAX_LINE, self.end - self.position))
        if not content.endswith(b"\n"):
            raise Malformed("it ends in the middle of a line")
        self.position += len(content)
        return content[:-1]
