"""Texts → token ids: whole words for small worlds, CLIP's byte-pair encoding for the real one.

Both are called with a list of texts and return int32 ids [texts, length].

CLIP's encoding is that of Sennrich et al., "Neural Machine Translation of Rare Words with Subword
Units", 2015 (https://arxiv.org/abs/1508.07909) on UTF-8 bytes, with OpenAI's vocabulary file.
"""

from __future__ import annotations

import gzip
import html
import json
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from symerge_jax.errors import BadInput

Tokenizer = Callable[[Sequence[str]], np.ndarray]

START, END = "<|startoftext|>", "<|endoftext|>"
# The merges CLIP uses: 49,408 ids − 2 · 256 bytes − the two marks above.
MERGES = 49408 - 512 - 2
OPENAI_FILE = "bpe_simple_vocab_16e6.txt.gz"
# Contractions, words, single digits and runs of anything else (OpenAI's simple tokenizer).
PIECES = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)


class WordTokenizer:
    """One id per lower-case word of a fixed vocabulary; 0 is padding.

    Attributes:
        words: id → word; `words[0]` is the empty padding word.
        length: ids per text.
    """

    def __init__(self, texts: Iterable[str], length: int) -> None:
        """Takes the words of `texts`, sorted, as the vocabulary; `length` is ids per text."""
        self.words = ("", *sorted({word for text in texts for word in text.lower().split()}))
        self.length = length
        self._ids = {word: i for i, word in enumerate(self.words)}

    @property
    def vocabulary(self) -> int:
        """Number of ids, padding included."""
        return len(self.words)

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Returns int32 ids [texts, length].

        Raises:
            BadInput: a word is unknown or a text is too long.
        """
        tokens = np.zeros((len(texts), self.length), np.int32)
        for row, text in zip(tokens, texts, strict=True):
            words = text.lower().split()
            if len(words) > self.length:
                raise BadInput(
                    f"text {text!r}: expected at most {self.length} words, got {len(words)}"
                )
            for i, word in enumerate(words):
                if word not in self._ids:
                    raise BadInput(
                        f"text {text!r}: the word {word!r} is not among the "
                        f"{len(self.words) - 1} known ones"
                    )
                row[i] = self._ids[word]
        return tokens


def clip_tokenizer(path: str | Path, *, length: int = 77, pad_with_end: bool = False) -> Tokenizer:
    """Returns CLIP's tokenizer, with the ids of OpenAI's code.

    Texts are cleaned (Unicode NFC, HTML entities, white space, lower case), cut to `length` with
    the end mark kept, and padded. OpenAI's code also mends wrongly decoded text and curly quotes
    with ftfy, which is left out.

    Args:
        path: bpe_simple_vocab_16e6.txt.gz, or a folder with that file, with vocab.json and
            merges.txt, or with tokenizer.json.
        length: ids per text.
        pad_with_end: pad with the end mark, as Hugging Face, instead of 0, as OpenAI.

    Raises:
        BadInput: a file is missing or is no such vocabulary.
    """
    vocabulary, merges = _read_vocabulary(Path(path))
    model = _byte_pairs(vocabulary, merges)
    start, end = vocabulary[START], vocabulary[END]

    def tokenise(texts: Sequence[str]) -> np.ndarray:
        tokens = np.full((len(texts), length), end if pad_with_end else 0, np.int32)
        for row, encoding in zip(
            tokens, model.encode_batch([_clean(t) for t in texts]), strict=True
        ):
            ids = [start, *encoding.ids[: length - 2], end]
            row[: len(ids)] = ids
        return tokens

    return tokenise


def _clean(text: str) -> str:
    text = unicodedata.normalize("NFC", text)  # the part of ftfy that ordinary text needs
    text = html.unescape(html.unescape(text))  # twice, as OpenAI's code
    return " ".join(text.split()).lower()


def _byte_pairs(vocabulary: dict[str, int], merges: list[tuple[str, str]]):  # noqa: ANN202
    """Returns a `tokenizers.Tokenizer` of CLIP's rules without marks, cutting or padding."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    bpe = models.BPE(
        vocab=vocabulary,
        merges=merges,
        unk_token=END,
        end_of_word_suffix="</w>",
        continuing_subword_prefix="",
    )
    model = Tokenizer(bpe)
    model.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    model.add_special_tokens([START, END])
    return model


def _read_vocabulary(path: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Reads token → id and the merges in order, from either form."""
    if path.is_dir():
        vocabulary, merges = _read_folder(path)
    else:
        # The first line is a header; the file holds more merges than CLIP uses.
        merges = _merges(_lines(path)[1 : MERGES + 1], path)
        symbols = _byte_symbols()
        tokens = [*symbols, *(symbol + "</w>" for symbol in symbols)]
        tokens += ["".join(pair) for pair in merges]
        vocabulary = {token: i for i, token in enumerate([*tokens, START, END])}
    for token in (START, END):
        if token not in vocabulary:
            raise BadInput(f"{path}: the vocabulary lacks {token}; it is not CLIP's")
    return vocabulary, merges


def _read_folder(folder: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    whole = folder / "tokenizer.json"
    if (folder / OPENAI_FILE).is_file():
        return _read_vocabulary(folder / OPENAI_FILE)
    if (folder / "vocab.json").is_file() or not whole.is_file():
        lines = _lines(folder / "merges.txt")
        merges = _merges([line for line in lines if not line.startswith("#version")], folder)
        return _json(folder / "vocab.json"), merges
    model = _json(whole).get("model")
    if not isinstance(model, dict) or not {"vocab", "merges"} <= set(model):
        raise BadInput(f"{whole}: expected a byte-pair model with its vocabulary and merges")
    # Older files have the two symbols of a merge in one text, newer ones as a pair.
    lines = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    return model["vocab"], _merges(lines, whole)


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads("\n".join(_lines(path)))
    except json.JSONDecodeError as error:
        raise BadInput(f"{path}: expected JSON, got {error}") from None
    if not isinstance(content, dict):
        raise BadInput(f"{path}: expected a JSON object, got a {type(content).__name__}")
    return content


def _merges(lines: list[str], path: Path) -> list[tuple[str, str]]:
    pairs = []
    for line in lines:
        match line.split():
            case []:
                continue
            case [left, right]:
                pairs.append((left, right))
            case _:
                raise BadInput(f"{path}: expected merges of two symbols a line, got {line!r}")
    return pairs


def _lines(path: Path) -> list[str]:
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: cannot be read as a CLIP vocabulary ({error})") from None
    return text.split("\n")


def _byte_symbols() -> list[str]:
    """Returns a printable character per byte, in the order of OpenAI's first 256 ids.

    Printable Latin-1 stands for itself and comes first; the rest follows, from U+0100 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [chr(byte) for byte in printable] + [chr(0x100 + i) for i in range(256 - len(printable))]
