"""The embedded language world: eight text tasks over one small English-like grammar.

They mirror what GLUE asks for, and carry names of their own: two tasks on one sentence, six on two;
one of them with three classes, one a regression, one small and skewed. Meaning decides, not words:
most tasks hold pairs of examples of the same words and different labels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np

from experiments.tiny import language_pairs as pairs
from experiments.tiny import language_single as single
from experiments.tiny.language_words import WORDS
from symerge_jax.errors import BadInput

VERSION = 1
LENGTH = 28  # tokens of the longest text
START, PAD, END, UNKNOWN = range(4)  # the ids that RoBERTa gives to <s>, <pad>, </s> and <unk>
IDS = {word: i for i, word in enumerate(WORDS, start=4)}
MASK = 4 + len(WORDS)
VOCABULARY = MASK + 1
TEST = 500

Split: TypeAlias = Literal["train", "test"]
Metric: TypeAlias = Literal["accuracy", "matthews", "pearson_spearman"]


class Kind(NamedTuple):
    """One task.

    Attributes:
        classes: names in label order; one name for a regression.
        make: (generator, label) → a sentence or two; for a regression generator → (pair, score).
        metric: what it is scored by, a name in symerge_jax.text_metrics.METRICS.
        train: examples to train an expert on.
        shares: of the classes among a hundred examples; equal if empty.
    """

    classes: tuple[str, ...]
    make: Callable[..., Any]
    metric: Metric = "accuracy"
    train: int = 4000
    shares: tuple[int, ...] = ()

    @property
    def regression(self) -> bool:
        """Whether labels are scores."""
        return len(self.classes) == 1


KINDS: dict[str, Kind] = {
    "grammar": Kind(
        ("wrong", "right"), single.grammar, metric="matthews", train=1000, shares=(30, 70)
    ),
    "sentiment": Kind(("bad", "good"), single.sentiment),
    "paraphrase": Kind(("different", "same"), pairs.paraphrase),
    "similarity": Kind(("score",), pairs.similarity, metric="pearson_spearman"),
    "duplicate": Kind(("different", "same"), pairs.duplicate),
    "inference": Kind(("entailed", "open", "contradicted"), pairs.inference),
    "answer": Kind(("no answer", "answer"), pairs.answer),
    "entailment": Kind(("open", "entailed"), pairs.entailment),
}
TASKS = tuple(KINDS)


class Examples(NamedTuple):
    """Texts of one or two sentences, and labels: int32 [n], or scores float32 [n] from 0 to 5."""

    texts: list[tuple[str, ...]]
    labels: np.ndarray


def examples(name: str, *, split: Split, count: int, seed: int = 0) -> Examples:
    """Writes the examples of a split, the same for the same arguments.

    No text stands twice, in one split or both, and no first sentence stands in both: first
    sentences belong to a split by their hash.

    Args:
        name: one of `TASKS`.
        split: "train" or "test".
        count: of examples; the classes have their shares of it, to one example.
        seed: any number.

    Raises:
        BadInput: no such task.
    """
    if name not in KINDS:
        raise BadInput(f"expected a task of {', '.join(TASKS)}; got {name!r}")
    kind = KINDS[name]
    rng = Random(f"language {seed} {name} {split}")
    labels = _labels(kind, count, rng)
    texts: dict[tuple[str, ...], float] = {}
    for label in labels:
        while True:
            if kind.regression:
                text, value = kind.make(rng)
            else:
                text, value = kind.make(rng, label), label
            text = (text,) if isinstance(text, str) else text
            fresh = text not in texts and len(set(text)) == len(text)
            if fresh and fits(text) and _split_of(text[0]) == split:
                break
        texts[text] = value
    dtype = np.float32 if kind.regression else np.int32
    return Examples(list(texts), np.array(list(texts.values()), dtype))


def _labels(kind: Kind, count: int, rng: Random) -> list[int]:
    """Returns labels in a random order."""
    shares = kind.shares or (1,) * len(kind.classes)
    hundred = [label for label, share in enumerate(shares) for _ in range(share)]
    # Every stretch of the list holds the classes in proportion: 7 of 10, not 70 and then 30.
    spread = sorted(range(len(hundred)), key=lambda i: (i * 0.6180339887) % 1)
    labels = [hundred[spread[i % len(spread)]] for i in range(count)]
    return sorted(labels, key=lambda _: rng.random())


def _split_of(text: str) -> Split:
    """One sentence in five is for testing."""
    return "test" if hashlib.sha256(text.encode()).digest()[0] % 5 == 0 else "train"


def fits(text: tuple[str, ...]) -> bool:
    """Whether a text has at most `LENGTH` tokens, marks included."""
    return sum(len(sentence.split()) + 2 for sentence in text) <= LENGTH


def tokens(texts: Sequence[tuple[str, ...]], length: int = LENGTH) -> np.ndarray:
    """Returns token ids, int32 [text, length]: <s> A </s>, or <s> A </s> </s> B </s>, then padding.

    Raises:
        BadInput: a text is too long or has a word that is not of this world.
    """
    rows = np.full((len(texts), length), PAD, np.int32)
    for row, text in zip(rows, texts, strict=True):
        ids = [START]
        for i, sentence in enumerate(text):
            try:
                ids += [END] * (i > 0) + [IDS[word] for word in sentence.split()] + [END]
            except KeyError as error:
                raise BadInput(f"text {sentence!r}: the word {error} is unknown here") from None
        if len(ids) > length:
            raise BadInput(f"text {text}: expected at most {length} tokens, got {len(ids)}")
        row[: len(ids)] = ids
    return rows


def world_digest() -> str:
    """A sha256 in hex over the code that writes the texts, for the keys of caches."""
    state = hashlib.sha256(str(VERSION).encode())
    for part in ("words", "grammar", "single", "pairs", "corpus", "world"):
        state.update((Path(__file__).parent / f"language_{part}.py").read_bytes())
    return state.hexdigest()
