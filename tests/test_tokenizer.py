"""Tokenizers: whole words, and CLIP's byte pairs against known ids and transformers."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from symerge_jax.errors import BadInput
from symerge_jax.models import tokenizer
from symerge_jax.models.tokenizer import WordTokenizer, clip_tokenizer

DATA = Path(os.environ.get("SYMERGE_DATA", Path(__file__).parents[2] / "shared" / "data"))
VOCABULARY = DATA / "bpe_clip" / "bpe_simple_vocab_16e6.txt.gz"
needs_vocabulary = pytest.mark.skipif(
    not VOCABULARY.is_file(), reason=f"no CLIP vocabulary at {VOCABULARY}"
)
TEXTS = [
    "a photo of a cat",
    'a photo of the number: "7".',
    "A  Centered\tsatellite photo of the brushland or shrubland.",
    "it's Rock'n'roll, they'll say: 2024 times!?",
    "naïve café façade – 東京 ☕️",
    "",
    "cafe\u0301",  # decomposed
    "word " * 100,
]


def test_words_have_ids_and_padding_is_zero():
    tokenise = WordTokenizer(["a photo of {}".format("dog"), "A CAT"], 4)
    assert tokenise.words == ("", "a", "cat", "dog", "of", "photo")
    assert tokenise.vocabulary == 6
    tokens = tokenise(["A photo", "a cat of dog"])
    assert tokens.dtype == np.int32
    np.testing.assert_array_equal(tokens, [[1, 5, 0, 0], [1, 2, 4, 3]])


def test_unknown_and_surplus_words_are_named():
    tokenise = WordTokenizer(["a cat"], 2)
    with pytest.raises(BadInput, match="the word 'dog' is not among the 2 known"):
        tokenise(["a dog"])
    with pytest.raises(BadInput, match="at most 2 words, got 3"):
        tokenise(["a cat a"])


@needs_vocabulary
def test_ids_are_openais():
    tokens = clip_tokenizer(VOCABULARY)(["a photo of a cat", "A Photo  of a Cat"])
    assert tokens.shape == (2, 77)
    assert tokens.dtype == np.int32
    np.testing.assert_array_equal(tokens[0, :8], [49406, 320, 1125, 539, 320, 2368, 49407, 0])
    np.testing.assert_array_equal(tokens[0], tokens[1])
    assert not tokens[0, 7:].any()


@needs_vocabulary
def test_long_texts_keep_the_end_mark():
    tokens = clip_tokenizer(VOCABULARY, length=8)(["cat " * 30])
    np.testing.assert_array_equal(tokens, [[49406, *[2368] * 6, 49407]])


@needs_vocabulary
def test_html_entities_are_undone_twice():
    tokenise = clip_tokenizer(VOCABULARY)
    np.testing.assert_array_equal(*tokenise(["cats &amp;amp; dogs", "cats & dogs"]))


def write_folder(folder):
    """Writes the vocabulary as Hugging Face's two files."""
    vocabulary, merges = tokenizer._read_vocabulary(VOCABULARY)
    assert len(vocabulary) == 49408
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), "utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", "utf-8")


@needs_vocabulary
def test_both_forms_of_the_vocabulary_give_the_same_ids(tmp_path):
    write_folder(tmp_path)
    np.testing.assert_array_equal(
        clip_tokenizer(tmp_path)(TEXTS), clip_tokenizer(VOCABULARY)(TEXTS)
    )


@needs_vocabulary
@pytest.mark.slow
def test_ids_are_those_of_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    write_folder(tmp_path)
    theirs = transformers.CLIPTokenizer.from_pretrained(tmp_path, model_max_length=77)
    expected = theirs(TEXTS, padding="max_length", truncation=True, return_tensors="np")
    ours = clip_tokenizer(tmp_path, pad_with_end=True)(TEXTS)
    np.testing.assert_array_equal(ours, expected["input_ids"])


def test_files_that_are_no_vocabulary_are_refused(tmp_path):
    with pytest.raises(BadInput, match="merges.txt: cannot be read"):
        clip_tokenizer(tmp_path)
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    (tmp_path / "vocab.json").write_text('{"a": 0}')
    with pytest.raises(BadInput, match="lacks <|startoftext|>"):
        clip_tokenizer(tmp_path)
    (tmp_path / "merges.txt").write_text("a b c\n")
    with pytest.raises(BadInput, match="two symbols a line, got 'a b c'"):
        clip_tokenizer(tmp_path)
    (tmp_path / "x.txt.gz").write_bytes(b"no gzip")
    with pytest.raises(BadInput, match="x.txt.gz: cannot be read"):
        clip_tokenizer(tmp_path / "x.txt.gz")
