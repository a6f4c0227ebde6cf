"""Tokens of text files, encoded once into a file that later runs map into memory.

One entry is `<cache>/tokens/<sha256>.npy`, int32 [n, length]; the name is the hash of the file, the
columns, the vocabulary and the length that rows are cut to.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np

from symerge_jax.cache import digest
from symerge_jax.data.image_cache import files_key
from symerge_jax.data.roberta_tokenizer import RobertaTokenizer
from symerge_jax.data.text_columns import TextColumns
from symerge_jax.data.text_files import Table, texts_of
from symerge_jax.files import make_folder, writable_folder, write_atomically

# Part of every key: entries of another format, or of another way to encode, are made again.
FORMAT = 1

_LOG = logging.getLogger(__name__)


def tokens_of(
    table: Table,
    columns: TextColumns,
    tokenizer: RobertaTokenizer,
    *,
    max_length: int,
    cache: str | Path | None,
    report: Callable[[str], object] = _LOG.warning,
) -> np.ndarray:
    """Encodes the texts of a file, or finds them encoded.

    Args:
        table: the file's content.
        columns: which columns the texts are in.
        tokenizer: encodes them.
        max_length: longer rows are cut to it.
        cache: root of the cache; None stores nothing.
        report: receives one line when a damaged file is found and made again.

    Returns:
        int32 [n, length], padded at the end; from a cache read-only and mapped.

    Raises:
        BadInput: a row lacks a text, or the cache cannot be written.
    """
    texts = [texts_of(table, column) for column in columns.texts]
    if cache is None:
        return tokenizer(*texts, max_length=max_length)
    key = {
        "format": FORMAT,
        "file": files_key([table.path], root=table.path.parent),
        "columns": list(table.columns),  # all of them: without a header, names tell the place
        "texts": list(columns.texts),
        "rows": len(texts[0]),
        "tokenizer": tokenizer.digest,
        "max_length": max_length,
    }
    path = make_folder(Path(cache) / "tokens") / f"{digest(key)}.npy"
    if path.exists():
        try:
            return _open(path, len(texts[0]), max_length)
        except _Damaged as damage:
            report(f"{path}: damaged cache file ({damage}); making it again.")
    writable_folder(path.parent)
    tokens = tokenizer(*texts, max_length=max_length)

    def write(file: BinaryIO) -> None:
        np.save(file, tokens)

    return _open(write_atomically(path, write), len(tokens), max_length)


class _Damaged(Exception):
    """A cache file whose content is not what was written."""


def _open(path: Path, count: int, max_length: int) -> np.ndarray:
    try:
        tokens = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # a damaged header can raise nearly anything
        raise _Damaged(str(error)) from error
    if not isinstance(tokens, np.ndarray):  # NumPy opens zip files too
        raise _Damaged("not a single array")
    fits = tokens.ndim == 2 and tokens.shape[0] == count and tokens.shape[1] <= max_length
    if not fits or tokens.dtype != np.int32:
        raise _Damaged(f"expected int32 ({count}, …), found {tokens.dtype} {tokens.shape}")
    return tokens
