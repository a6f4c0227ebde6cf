"""Texts that make no sense, made from texts that do: what a small model learns to compare with.

From unlabelled texts alone. A pair of sentences loses its sense when the second one comes from
elsewhere, as in BERT's next sentence prediction (Devlin et al. 2018, section 3.1); a single
sentence, when words trade places. In front stand easy pairs, a sentence twice or with any other
sentence: a small model learns to compare from these, and hardly ever without them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

START, PAD, END = 0, 1, 2  # RoBERTa's marks: <s> A </s>, or <s> A </s></s> B </s>
SWAPS = 0.3  # of a single sentence's words trade places


class Texts(NamedTuple):
    """Texts to pre-train on.

    Attributes:
        tokens: int32 [n, length], padded at the end; the first `easy` are easy pairs.
        sense: bool [n], whether a text makes sense.
        easy: how many.
    """

    tokens: np.ndarray
    sense: np.ndarray
    easy: int


def with_nonsense(tokens: np.ndarray, *, seed: int = 0) -> Texts:
    """Adds an easy pair and a text without sense for each text.

    Args:
        tokens: int32 [n, length] as RoBERTa encodes one or two sentences.
        seed: of what is drawn.

    Returns:
        3 n texts of the same length: easy pairs, the given texts, their spoiled copies.
    """
    rng, length = np.random.default_rng(seed), tokens.shape[1]
    texts = [sentences(row) for row in tokens]
    firsts, pairs = [text[0] for text in texts], [text[1] for text in texts if len(text) == 2]
    same = rng.random(len(texts)) < 0.5
    easy = []
    for first, again in zip(firsts, same, strict=True):
        own = first[: (length - 4) // 2]
        other = own if again else firsts[rng.integers(len(firsts))][: (length - 4) // 2]
        easy.append([own, other])
    spoiled = [
        [text[0], pairs[rng.integers(len(pairs))]] if len(text) == 2 else [_swapped(text[0], rng)]
        for text in texts
    ]
    count = len(texts)
    sense = np.concatenate([same, np.ones(count, bool), np.zeros(count, bool)])
    made = [_encoded(text, length) for text in easy]
    nonsense = [_encoded(text, length) for text in spoiled]
    return Texts(np.concatenate([made, tokens, nonsense]).astype(np.int32), sense, count)


def sentences(row: np.ndarray) -> list[np.ndarray]:
    """Returns the one or two sentences of an encoded text, int [words] each, without marks."""
    words = row[1:][row[1:] != PAD]
    marks = np.flatnonzero(words == END)
    if len(marks) < 2:  # a text that was cut may lack its last mark
        return [words[words != END]]
    return [words[: marks[0]], words[marks[0] + 2 :][words[marks[0] + 2 :] != END]]


def _swapped(words: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    count = min(len(words), max(2, round(SWAPS * len(words))))
    places = rng.choice(len(words), count, replace=False)
    swapped = words.copy()
    swapped[places] = words[np.roll(places, 1)]
    return swapped


def _encoded(text: list[np.ndarray], length: int) -> np.ndarray:
    """Encodes sentences as RoBERTa does; cuts what is longer than a row."""
    ids = [START, *text[0], END]
    if len(text) == 2:
        ids += [END, *text[1], END]
    row = np.full(length, PAD, np.int32)
    row[: min(len(ids), length)] = ids[:length]
    return row
