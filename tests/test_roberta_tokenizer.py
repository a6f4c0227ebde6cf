"""RoBERTa's tokenizer: ids that are known, transformers' on real sentences, files of all forms."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from symerge_jax.data.roberta_tokenizer import (
    FIRST_MARKS,
    MASK,
    RobertaTokenizer,
    read_tokenizer,
    train_tokenizer,
)
from symerge_jax.errors import BadInput

PACKS = Path(os.environ.get("SYMERGE_DATA", Path(__file__).parents[2] / "shared" / "data"))
VOCABULARY = PACKS / "bpe_gpt2"
needs_vocabulary = pytest.mark.skipif(
    not (VOCABULARY / "dict.txt").is_file(), reason=f"no GPT-2 vocabulary at {VOCABULARY}"
)
STRANGE = [
    "",
    " ",
    "\t two\u00a0spaces \u2028 and a line\u0085end",
    "naïve café façade – 東京 ☕️ 👩‍👩‍👧 e\u0301 \ufb01",
    "\ufeffmark \x00 \x7f \U0010ffff",
    "literal <s> marks </s><pad> and <mask>, <unk>",
    "I'd they'll 'S 12345 !?...",
    "a" * 300,
    "word " * 150,
]


@pytest.fixture(scope="module")
def bytes_only():
    """One token per byte of UTF-8, so lengths are known."""
    return train_tokenizer(["x"], 261)


@pytest.fixture(scope="module")
def trained():
    return train_tokenizer(["the cat sat on the mat, the dog lay on the log"] * 3, 290)


@pytest.fixture(scope="module")
def roberta():
    return read_tokenizer(VOCABULARY)


def ids(tokenizer, text):
    return [tokenizer.vocabulary[symbol] for symbol in text]


# --- what comes out -----------------------------------------------------------------------------


def test_a_text_stands_between_marks_and_rows_are_padded_with_1(bytes_only):
    tokens = bytes_only(["ab", "", "abc"])
    assert tokens.dtype == np.int32
    a, b, c = ids(bytes_only, "abc")
    np.testing.assert_array_equal(tokens, [[0, a, b, 2, 1], [0, 2, 1, 1, 1], [0, a, b, c, 2]])


def test_a_pair_has_two_marks_between(bytes_only):
    a, b, c = ids(bytes_only, "abc")
    expected = [[0, a, 2, 2, b, c, 2], [0, 2, 2, a, 2, 1, 1], [0, 2, 2, 2, 1, 1, 1]]
    np.testing.assert_array_equal(bytes_only(["a", "", ""], ["bc", "a", ""]), expected)


def test_of_a_pair_the_longer_text_is_cut_first(bytes_only):
    a, b = ids(bytes_only, "ab")

    def lengths(first, second, max_length):
        (row,) = bytes_only(["a" * first], ["b" * second], max_length=max_length)
        return list(row).count(a), list(row).count(b)

    assert lengths(10, 3, 10) == (3, 3)
    assert lengths(3, 10, 11) == (3, 4)
    assert lengths(10, 2, 12) == (6, 2)
    assert lengths(5, 5, 14) == (5, 5)
    assert lengths(5, 5, 13) == (4, 5)
    assert lengths(9, 9, 5) == (0, 1)


def test_a_single_text_keeps_its_end_mark(bytes_only):
    a = bytes_only.vocabulary["a"]
    np.testing.assert_array_equal(bytes_only(["a" * 300], max_length=5), [[0, a, a, a, 2]])
    assert bytes_only(["a" * 300]).shape == (1, 128)


def test_every_character_has_a_token(bytes_only):
    (row,) = bytes_only(["é東👩"])
    assert len(row) == 2 + 2 + 3 + 4
    assert 3 not in row


def test_chunks_change_nothing(trained, monkeypatch):
    texts = ["the " * i for i in range(23)]
    whole = trained(texts)
    monkeypatch.setattr("symerge_jax.data.roberta_tokenizer._CHUNK", 5)
    np.testing.assert_array_equal(trained(texts), whole)


def test_no_text_gives_no_row(trained):
    assert trained([]).shape == (0, 0)


def test_a_length_without_room_is_refused(trained):
    with pytest.raises(BadInput, match="at least 5, got 4"):
        trained(["a"], max_length=4)


# --- RoBERTa's own ids --------------------------------------------------------------------------


@needs_vocabulary
def test_ids_are_robertas(roberta):
    assert roberta.rows == 50265
    assert roberta.vocabulary[MASK] == 50264
    assert roberta.vocabulary["<|endoftext|>"] == 50260
    tokens = roberta(["Hello world", " Hello world"])
    np.testing.assert_array_equal(tokens, [[0, 31414, 232, 2], [0, 20920, 232, 2]])


@needs_vocabulary
def test_all_forms_of_the_vocabulary_give_the_same_ids(roberta, tmp_path):
    roberta.save(tmp_path / "two")
    whole = {
        "model": {
            "type": "BPE",
            "vocab": roberta.vocabulary,
            "merges": [" ".join(pair) for pair in roberta.merges],
        },
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False},
        "added_tokens": [{"id": i, "content": mark} for i, mark in enumerate(FIRST_MARKS)],
        "normalizer": None,
    }
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "tokenizer.json").write_text(json.dumps(whole), encoding="utf-8")
    expected = roberta(STRANGE)
    for path in (tmp_path / "two", tmp_path / "one"):
        found = read_tokenizer(path, rows=50265)
        assert found.digest == roberta.digest
        np.testing.assert_array_equal(found(STRANGE), expected)


def sentences():
    """2,000 sentences and 2,000 pairs out of all tasks of the pack."""
    singles, pairs = [], []
    for path in sorted((PACKS / "glue").glob("*/*.tsv")):
        for line in path.read_text(encoding="utf-8").split("\n")[1:200]:
            first, *rest = sorted(line.split("\t"), key=len)[::-1]
            singles.append(first)
            pairs.append((first, rest[0]) if rest else (first, ""))
    rng = np.random.default_rng(0)
    chosen = rng.permutation(len(singles))[:2000]
    assert len(chosen) == 2000
    return [singles[i] for i in chosen], [pairs[i] for i in chosen]


@needs_vocabulary
@pytest.mark.skipif(not (PACKS / "glue").is_dir(), reason="no GLUE pack")
@pytest.mark.parametrize("max_length", [128, 40])
def test_ids_are_those_of_transformers(roberta, tmp_path, max_length):
    transformers = pytest.importorskip("transformers")
    roberta.save(tmp_path)
    singles, pairs = sentences()
    singles += STRANGE
    pairs += [(a, b) for a in STRANGE for b in STRANGE]
    settings = {"padding": True, "truncation": True, "max_length": max_length}
    for kind in {transformers.RobertaTokenizer, transformers.RobertaTokenizerFast}:  # one in new
        theirs = kind.from_pretrained(tmp_path)
        expected = theirs(singles, return_tensors="np", **settings)["input_ids"]
        np.testing.assert_array_equal(roberta(singles, max_length=max_length), expected)
        first, second = map(list, zip(*pairs, strict=True))
        expected = theirs(first, second, return_tensors="np", **settings)["input_ids"]
        np.testing.assert_array_equal(roberta(first, second, max_length=max_length), expected)


# --- training -----------------------------------------------------------------------------------


def test_training_puts_the_marks_where_roberta_has_them(trained):
    assert [trained.vocabulary[mark] for mark in FIRST_MARKS] == [0, 1, 2, 3]
    assert trained.vocabulary[MASK] == trained.rows - 1
    assert 261 < trained.rows <= 290
    assert sorted(trained.vocabulary.values()) == list(range(trained.rows))


def test_training_joins_what_is_frequent(trained, bytes_only):
    assert "Ġthe" in trained.vocabulary
    assert trained(["on the"]).shape[1] < bytes_only(["on the"]).shape[1]


def test_training_twice_gives_the_same():
    texts = [f"{a} {b}ing {a}{b}" for a in ("sing", "ring", "bring") for b in ("lo", "da", "be")]
    first, second = train_tokenizer(texts, 280), train_tokenizer(texts, 280)
    assert first.digest == second.digest
    assert first.merges == second.merges


def test_a_saved_tokenizer_is_read_back(trained, tmp_path):
    trained.save(tmp_path / "folder")
    found = read_tokenizer(tmp_path / "folder")
    assert found.digest == trained.digest
    texts = ["the cat", "naïve 東京", ""]
    np.testing.assert_array_equal(found(texts), trained(texts))


def test_a_space_before_the_text_is_kept_in_the_settings(trained, tmp_path):
    spaced = RobertaTokenizer(trained.vocabulary, trained.merges, prefix_space=True)
    np.testing.assert_array_equal(spaced(["the cat"]), trained([" the cat"]))
    assert spaced.digest != trained.digest
    spaced.save(tmp_path)
    assert read_tokenizer(tmp_path).prefix_space


def test_too_small_a_vocabulary_is_refused():
    with pytest.raises(BadInput, match=r"at least 261 \(256 bytes and 5 marks\), got 260"):
        train_tokenizer(["x"], 260)


# --- what is refused ----------------------------------------------------------------------------


def test_ids_beyond_the_embedding_are_refused(trained, tmp_path):
    trained.save(tmp_path)
    assert read_tokenizer(tmp_path, rows=trained.rows).rows == trained.rows
    with pytest.raises(BadInput, match=f"ids up to {trained.rows - 1}, but the model embeds 100 "):
        read_tokenizer(tmp_path, rows=100)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(BadInput, match="found none of them"):
        read_tokenizer(tmp_path)
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(BadInput, match="found vocab.json;"):
        read_tokenizer(tmp_path)
    with pytest.raises(BadInput, match="absent: expected a RoBERTa vocabulary"):
        read_tokenizer(tmp_path / "absent")


@pytest.mark.parametrize(
    ("vocabulary", "message"),
    [
        ("[]", "expected a JSON object, found a list"),
        ("{", "cannot be read as JSON"),
        ('{"a": "0"}', "a whole number, for each token"),
        ('{"<s>": 1}', "expected <s> to be token 0, as in RoBERTa, found 1"),
        ('{"<s>": 0, "<pad>": 1, "</s>": 2}', "expected <unk> to be token 3.* found no such token"),
        ('{"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "a": 3}', "a different id"),
        ('{"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3}', "lacks the byte symbol"),
    ],
)
def test_a_vocabulary_that_is_not_robertas_is_refused(tmp_path, vocabulary, message):
    (tmp_path / "vocab.json").write_text(vocabulary)
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    with pytest.raises(BadInput, match=message):
        read_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("merges", "message"),
    [
        ("#version: 0.2\na b c\n", "two symbols each, found 'a b c'"),
        ("a ź\n", "its merges do not fit its tokens"),
    ],
)
def test_merges_that_do_not_fit_are_refused(bytes_only, tmp_path, merges, message):
    bytes_only.save(tmp_path)
    (tmp_path / "merges.txt").write_text(merges, encoding="utf-8")
    with pytest.raises(BadInput, match=message):
        read_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {}}, "byte-pair model with its vocabulary"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "expected the pre-tokenizer ByteLevel"),
        ({"normalizer": {"type": "NFC"}}, "expected no normalizer"),
        ({"added_tokens": [{"id": 300, "content": "<new>"}]}, "the added token '<new>'"),
    ],
)
def test_a_tokenizer_of_another_kind_is_refused(trained, tmp_path, change, message):
    whole = {
        "model": {"vocab": trained.vocabulary, "merges": [list(pair) for pair in trained.merges]},
        "pre_tokenizer": {"type": "ByteLevel"},
    }
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(whole))
    assert read_tokenizer(path).digest == trained.digest
    path.write_text(json.dumps(whole | change))
    with pytest.raises(BadInput, match=message):
        read_tokenizer(path)


def test_made_up_words_of_a_dictionary_fill_it_up_to_a_multiple_of_8(bytes_only, tmp_path):
    encoder = {symbol: i - 4 for symbol, i in bytes_only.vocabulary.items() if 4 <= i < 260}
    (tmp_path / "encoder.json").write_text(json.dumps(encoder), encoding="utf-8")
    (tmp_path / "vocab.bpe").write_text("#version: 0.2\n")
    made_up = [f"madeupword{i:04} 0" for i in range(9)]
    (tmp_path / "dict.txt").write_text("\n".join([*(f"{i} 5" for i in range(256)), *made_up]))
    found = read_tokenizer(tmp_path)
    assert found.vocabulary["madeupword0003"] == 263
    assert found.vocabulary[MASK] == 264
    np.testing.assert_array_equal(found(["abc"]), bytes_only(["abc"]))


@pytest.mark.parametrize(
    ("line", "message"),
    [("999 5", "in line 2, found '999 5'"), ("7", "in line 2"), ("3 5", "line 2 names the id 3")],
)
def test_a_wrong_dictionary_is_refused(tmp_path, line, message):
    encoder = {chr(0x100 + i): i for i in range(256)}
    (tmp_path / "encoder.json").write_text(json.dumps(encoder))
    (tmp_path / "vocab.bpe").write_text("")
    (tmp_path / "dict.txt").write_text(f"3 9\n{line}\n")
    with pytest.raises(BadInput, match=message):
        read_tokenizer(tmp_path)
