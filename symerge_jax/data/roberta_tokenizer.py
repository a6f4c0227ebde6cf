"""Texts → RoBERTa's token ids: byte-level byte pairs, from vocabulary files or trained on texts.

Liu et al., "RoBERTa: A Robustly Optimized BERT Pretraining Approach", 2019
(https://arxiv.org/abs/1907.11692), takes the byte pairs of GPT-2 (Radford et al., "Language Models
are Unsupervised Multitask Learners", 2019) and numbers them by how often they occur. A text becomes
<s> A </s> and a pair <s> A </s></s> B </s>. A vocabulary is a folder in one of three forms:

    vocab.json, merges.txt               Hugging Face's, with RoBERTa's ids
    tokenizer.json                       Hugging Face's, in one file
    encoder.json, vocab.bpe, dict.txt    GPT-2's two files and fairseq's dictionary

fairseq's dictionary has one GPT-2 id a line, whose RoBERTa id is 4 + the line's number from 0. A
text that spells out a mark, such as "<mask>", gets the id of the mark, as in Hugging Face's code.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from symerge_jax.errors import BadInput
from symerge_jax.files import write_atomically

if TYPE_CHECKING:
    from tokenizers import Tokenizer

START, PAD, END, UNKNOWN, MASK = "<s>", "<pad>", "</s>", "<unk>", "<mask>"
FIRST_MARKS = (START, PAD, END, UNKNOWN)  # ids 0 to 3; <mask> has any other
PAD_ID = 1

# The four marks of a pair, and one token of it.
SHORTEST = 5

_FORMS = (
    ("vocab.json", "merges.txt"),
    ("tokenizer.json",),
    ("encoder.json", "vocab.bpe", "dict.txt"),
)

# fairseq fills its dictionary up to a multiple of this with made-up words, before <mask>.
_DICTIONARY_MULTIPLE = 8
_MADE_UP = "madeupword"

# Texts encoded at a time: what the library returns takes far more memory than the ids.
_CHUNK = 4096

_VERSION_LINE = "#version: 0.2"


class RobertaTokenizer:
    """RoBERTa's encoding with one vocabulary.

    Attributes:
        vocabulary: token → id.
        merges: pairs of symbols in the order they are joined in.
        prefix_space: whether a text is encoded as if a space stood before it.
        where: what to call the vocabulary in errors.
        rows: the rows that an embedding of these ids needs, one more than the largest id.
    """

    def __init__(
        self,
        vocabulary: dict[str, int],
        merges: list[tuple[str, str]],
        *,
        prefix_space: bool = False,
        where: str = "the vocabulary",
    ) -> None:
        """Checks that the vocabulary is RoBERTa's in form.

        Raises:
            BadInput: a mark is missing or has another id, two tokens share one, a byte has no
                symbol, or a merge makes no token.
        """
        _check_ids(vocabulary, where)
        self.vocabulary = vocabulary
        self.merges = merges
        self.prefix_space = prefix_space
        self.where = where
        self.rows = 1 + max(vocabulary.values())
        self._model = _byte_pairs(vocabulary, merges, prefix_space, where)

    def __call__(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None, *, max_length: int = 128
    ) -> np.ndarray:
        """Returns ids int32 [n, length], padded at the end with 1.

        Args:
            texts: n of them; an empty text is its marks alone.
            pairs: n second texts.
            max_length: longer rows are cut, of a pair always the text that is longer just then
                (the first if they are alike), at its end. `length` is that of the longest row.

        Raises:
            BadInput: `max_length` leaves no room for a token between the marks.
        """
        assert not isinstance(texts, str), "expected a sequence of texts"
        if max_length < SHORTEST:
            raise BadInput(f"max_length must be at least {SHORTEST}, got {max_length}")
        if pairs is None:
            rows = [_single(ids, max_length) for ids in self._ids(texts)]
        else:
            both = zip(self._ids(texts), self._ids(pairs), strict=True)
            rows = [_pair(first, second, max_length) for first, second in both]
        tokens = np.full((len(rows), max(map(len, rows), default=0)), PAD_ID, np.int32)
        for padded, row in zip(tokens, rows, strict=True):
            padded[: len(row)] = row
        return tokens

    def _ids(self, texts: Sequence[str]) -> Iterator[np.ndarray]:
        """The ids of each text, without marks around and not cut."""
        # Cutting by the library itself would put together all the pieces that are cut off as well.
        for begin in range(0, len(texts), _CHUNK):
            chunk = list(texts[begin : begin + _CHUNK])
            for encoding in self._model.encode_batch_fast(chunk, add_special_tokens=False):
                yield np.array(encoding.ids, np.int32)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all that the ids depend on, as 64 hexadecimal digits."""
        content = [sorted(self.vocabulary.items()), self.merges, self.prefix_space]
        return sha256(json.dumps(content).encode()).hexdigest()

    def check_rows(self, rows: int, model: str = "the model") -> None:
        """Raises `BadInput` if an id has no row among the `rows` of the model's embedding."""
        if self.rows > rows:
            raise BadInput(
                f"{self.where}: has ids up to {self.rows - 1}, but {model} embeds {rows} tokens; "
                "use the vocabulary that the model was trained with"
            )

    def save(self, folder: str | Path) -> None:
        """Writes vocab.json, merges.txt and tokenizer_config.json, as Hugging Face reads them.

        Raises:
            BadInput: the place is not writable.
        """
        folder = Path(folder)
        ordered = dict(sorted(self.vocabulary.items(), key=lambda item: item[1]))
        lines = [_VERSION_LINE, *(" ".join(pair) for pair in self.merges)]
        config = {"tokenizer_class": "RobertaTokenizer", "add_prefix_space": self.prefix_space}
        write_atomically(folder / "vocab.json", json.dumps(ordered, ensure_ascii=False))
        write_atomically(folder / "merges.txt", "\n".join(lines) + "\n")
        write_atomically(folder / "tokenizer_config.json", json.dumps(config, indent=2) + "\n")


def read_tokenizer(path: str | Path, *, rows: int | None = None) -> RobertaTokenizer:
    """Reads a vocabulary from a folder in one of the three forms, or from one of its files.

    Args:
        path: the folder or file. Where a folder has more than one form, the first above counts.
        rows: rows of the model's embedding, which the ids must fit.

    Raises:
        BadInput: files are missing, damaged or no such vocabulary, or an id has no row.
    """
    path = Path(path)
    folder = path.parent if path.is_file() else path
    files = _form(folder)
    read = {"vocab.json": _read_two, "tokenizer.json": _read_whole, "encoder.json": _read_fairseq}
    vocabulary, merges, prefix_space = read[files[0]](folder)
    tokenizer = RobertaTokenizer(
        vocabulary, merges, prefix_space=prefix_space, where=str(folder / files[0])
    )
    if rows is not None:
        tokenizer.check_rows(rows)
    return tokenizer


def train_tokenizer(
    texts: Iterable[str], vocab_size: int, *, min_frequency: int = 2
) -> RobertaTokenizer:
    """Learns byte pairs from texts; equal texts give equal vocabularies.

    As in RoBERTa, <s> <pad> </s> <unk> have the ids 0 to 3 and <mask> the last one. Between them
    come the 256 bytes, then the joined pairs.

    Args:
        texts: whatever the tokenizer is to be good at.
        vocab_size: ids in all; fewer come out where the texts hold too few pairs.
        min_frequency: pairs that occur less often are not joined.

    Raises:
        BadInput: `vocab_size` leaves no room for the bytes and marks.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    alphabet = pre_tokenizers.ByteLevel.alphabet()
    smallest = len(FIRST_MARKS) + len(alphabet) + 1
    if vocab_size < smallest:
        raise BadInput(
            f"vocab_size must be at least {smallest} (256 bytes and 5 marks), got {vocab_size}"
        )
    model = Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,  # without <mask>
        min_frequency=min_frequency,
        show_progress=False,
        special_tokens=list(FIRST_MARKS),
        initial_alphabet=alphabet,
    )
    model.train_from_iterator(texts, trainer)
    learned = json.loads(model.to_str())["model"]
    vocabulary = learned["vocab"]
    merges = [_merge(merge, Path("tokenizer.json")) for merge in learned["merges"]]
    return RobertaTokenizer(vocabulary | {MASK: len(vocabulary)}, merges)


# --- rows ---------------------------------------------------------------------------------------

_START_ID, _END_ID = FIRST_MARKS.index(START), FIRST_MARKS.index(END)


def _single(ids: np.ndarray, max_length: int) -> np.ndarray:
    return np.concatenate([[_START_ID], ids[: max_length - 2], [_END_ID]], dtype=np.int32)


def _pair(first: np.ndarray, second: np.ndarray, max_length: int) -> np.ndarray:
    """A row of both, cut token by token where the longer one is just then."""
    room = max_length - 4
    if len(first) <= len(second):
        kept = max(min(len(first), room // 2), room - len(second))
    else:
        kept = room - max(min(len(second), room // 2), room - len(first))
    marks = [_END_ID, _END_ID]
    parts = [[_START_ID], first[:kept], marks, second[: room - kept], [_END_ID]]
    return np.concatenate(parts, dtype=np.int32)


# --- the library's model ------------------------------------------------------------------------


def _byte_pairs(
    vocabulary: dict[str, int], merges: list[tuple[str, str]], prefix_space: bool, where: str
) -> Tokenizer:
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

    for symbol in pre_tokenizers.ByteLevel.alphabet():
        if symbol not in vocabulary:  # it would be left out of texts without a word
            raise BadInput(f"{where}: lacks the byte symbol {symbol!r}; it is no byte-level BPE")
    try:
        model = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    except Exception as error:  # the library raises nothing more special
        reason = " ".join(str(error).split())[:200]
        raise BadInput(f"{where}: its merges do not fit its tokens ({reason})") from error
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    marks = [mark for mark in (*FIRST_MARKS, MASK) if mark in vocabulary]
    model.add_special_tokens([AddedToken(mark, normalized=False) for mark in marks])
    return model


def _check_ids(vocabulary: dict[str, int], where: str) -> None:
    for i, mark in enumerate(FIRST_MARKS):
        if vocabulary.get(mark) != i:
            found = vocabulary.get(mark, "no such token")
            raise BadInput(
                f"{where}: expected {mark} to be token {i}, as in RoBERTa, found {found}; use a "
                "RoBERTa vocabulary"
            )
    ids = vocabulary.values()
    if min(ids) < 0 or max(ids) >= 2**31 or len(set(ids)) < len(ids):
        raise BadInput(f"{where}: expected a different id, from 0 to 2147483647, for each token")


# --- files --------------------------------------------------------------------------------------

_Parts = tuple[dict[str, int], list[tuple[str, str]], bool]


def _form(folder: Path) -> tuple[str, ...]:
    for files in _FORMS:
        if all((folder / name).is_file() for name in files):
            return files
    present = [name for files in _FORMS for name in files if (folder / name).is_file()]
    raise BadInput(
        f"{folder}: expected a RoBERTa vocabulary (vocab.json and merges.txt, or tokenizer.json, "
        f"or encoder.json, vocab.bpe and dict.txt), found {' and '.join(present) or 'none of them'}"
        "; copy the missing files there, or give another folder"
    )


def _read_two(folder: Path) -> _Parts:
    path, config = folder / "vocab.json", folder / "tokenizer_config.json"
    vocabulary = _ids(_json(path), path)
    settings = _json(config) if config.is_file() else {}
    merges = _merges(folder / "merges.txt")
    return vocabulary, merges, settings.get("add_prefix_space") is True


def _read_whole(folder: Path) -> _Parts:
    path = folder / "tokenizer.json"
    content = _json(path)
    model, splits = content.get("model"), content.get("pre_tokenizer")
    if not isinstance(model, dict) or not {"vocab", "merges"} <= set(model):
        raise BadInput(f"{path}: expected a byte-pair model with its vocabulary and merges")
    if not isinstance(splits, dict) or splits.get("type") != "ByteLevel":
        raise BadInput(f"{path}: expected the pre-tokenizer ByteLevel, as RoBERTa has")
    if content.get("normalizer") is not None:
        raise BadInput(f"{path}: expected no normalizer, as RoBERTa has none")
    vocabulary = _ids(model["vocab"], path)
    for token, number in _added(content.get("added_tokens") or [], path):
        if token not in (*FIRST_MARKS, MASK):
            raise BadInput(
                f"{path}: has the added token {token!r}; only RoBERTa's five marks are known here"
            )
        vocabulary.setdefault(token, number)
    if not isinstance(model["merges"], list):
        raise BadInput(f"{path}: expected a list of merges")
    merges = [_merge(merge, path) for merge in model["merges"]]
    return vocabulary, merges, splits.get("add_prefix_space") is True


def _read_fairseq(folder: Path) -> _Parts:
    path = folder / "dict.txt"
    encoder = _ids(_json(folder / "encoder.json"), folder / "encoder.json")
    tokens = {str(i): token for token, i in encoder.items()}
    vocabulary = {mark: i for i, mark in enumerate(FIRST_MARKS)}
    for number, line in enumerate(_lines(path), 1):
        name = line.rpartition(" ")[0]
        token = tokens.get(name)
        if token is None and not name.startswith(_MADE_UP):
            raise BadInput(
                f"{path}: expected an id of encoder.json and a count in line {number}, found "
                f"{line!r}"
            )
        if token in vocabulary:
            raise BadInput(f"{path}: line {number} names the id {name} a second time")
        if token is not None:
            vocabulary[token] = len(vocabulary)
        elif len(vocabulary) % _DICTIONARY_MULTIPLE:  # made-up words beyond are another model's
            vocabulary[name] = len(vocabulary)
    vocabulary[MASK] = len(vocabulary)
    return vocabulary, _merges(folder / "vocab.bpe"), False


def _added(entries: Any, path: Path) -> Iterator[tuple[str, int]]:
    for entry in entries if isinstance(entries, list) else [entries]:
        match entry:
            case {"content": str(token), "id": int(number)}:
                yield token, number
            case _:
                raise BadInput(f"{path}: expected added_tokens with an id and a content each")


def _ids(content: Any, path: Path) -> dict[str, int]:
    if not isinstance(content, dict) or not all(type(i) is int for i in content.values()):
        raise BadInput(f"{path}: expected an id, a whole number, for each token")
    return content


def _merges(path: Path) -> list[tuple[str, str]]:
    return [_merge(line, path) for line in _lines(path) if not line.startswith("#version")]


def _merge(merge: Any, path: Path) -> tuple[str, str]:
    # Older files have the two symbols of a merge in one text, newer ones as a pair.
    match merge.split(" ") if isinstance(merge, str) else merge:
        case [str(left), str(right)]:
            return left, right
    raise BadInput(f"{path}: expected merges of two symbols each, found {merge!r}")


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path}: cannot be read as JSON ({error}); copy it again") from error
    if not isinstance(content, dict):
        raise BadInput(f"{path}: expected a JSON object, found a {type(content).__name__}")
    return content


def _lines(path: Path) -> list[str]:
    # Not splitlines, which would also split at characters that are no line ends.
    return [line for line in _text(path).replace("\r\n", "\n").split("\n") if line]


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: cannot be read as a vocabulary ({error})") from error
