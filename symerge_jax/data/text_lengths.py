"""Rows of tokens in the order of their length, so that batches hold rows that are alike.

A program that cuts a batch to its longest row then does little work on padding.
"""

import numpy as np

from symerge_jax.data.roberta_tokenizer import PAD_ID


def text_lengths(tokens: np.ndarray, pad: int = PAD_ID) -> np.ndarray:
    """Tokens of each row up to its last that is no padding.

    Args:
        tokens: int [n, length], padded at the end.
        pad: id of the padding.

    Returns:
        int64 [n], 0 to length.
    """
    last = tokens.shape[1] - np.argmax(tokens[:, ::-1] != pad, axis=1)
    return np.where((tokens != pad).any(axis=1), last, 0).astype(np.int64)


def length_order(tokens: np.ndarray, pad: int = PAD_ID) -> np.ndarray:
    """Row numbers int64 [n], shortest row first, rows of one length in the order they had.

    `tokens[order]` is sorted; outputs on it go back to the first order by `[inverse_order(order)]`.
    """
    return np.argsort(text_lengths(tokens, pad), kind="stable")


def inverse_order(order: np.ndarray) -> np.ndarray:
    """The order int64 [n] that undoes `order`: `x[order][inverse_order(order)]` is `x`."""
    inverse = np.empty(len(order), np.int64)
    inverse[order] = np.arange(len(order))
    return inverse
