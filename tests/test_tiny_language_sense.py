"""Texts without sense: what is made from one or two sentences."""

import numpy as np
import pytest

from experiments.tiny.language_sense import END, PAD, START, sentences, with_nonsense

SINGLE = [START, 10, 11, 12, 13, END, PAD, PAD, PAD, PAD, PAD, PAD]
PAIR = [START, 20, 21, END, END, 30, 31, END, PAD, PAD, PAD, PAD]
OTHER = [START, 22, END, END, 40, 41, 42, END, PAD, PAD, PAD, PAD]
ROWS = np.array([SINGLE, PAIR, OTHER], np.int32)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (SINGLE, [[10, 11, 12, 13]]),
        (PAIR, [[20, 21], [30, 31]]),
        ([START, 20, END, END, 30, 31], [[20], [30, 31]]),  # cut
        ([START, 20, 21, 22], [[20, 21, 22]]),
        ([START, END, PAD, PAD], [[]]),
    ],
)
def test_marks_part_sentences(row, expected):
    assert [part.tolist() for part in sentences(np.array(row))] == expected


def test_given_texts_stay_and_stand_between_easy_pairs_and_nonsense():
    found = with_nonsense(ROWS)
    assert found.easy == 3
    assert found.tokens.shape == (9, 12)
    np.testing.assert_array_equal(found.tokens[3:6], ROWS)
    np.testing.assert_array_equal(found.sense[3:], [True] * 3 + [False] * 3)


def test_an_easy_pair_makes_sense_where_its_sentences_are_equal():
    for seed in range(10):
        found = with_nonsense(ROWS, seed=seed)
        for row, sense in zip(found.tokens[:3], found.sense, strict=False):
            first, second = sentences(row)
            if sense:
                np.testing.assert_array_equal(first, second)


def test_nonsense_has_the_words_of_a_sentence_in_another_order():
    spoiled = with_nonsense(ROWS).tokens[6]
    assert spoiled.tolist() != SINGLE
    assert sorted(spoiled.tolist()) == sorted(SINGLE)


def test_nonsense_keeps_the_first_of_two_sentences():
    seconds = set()
    for seed in range(20):
        first, second = sentences(with_nonsense(ROWS, seed=seed).tokens[7])
        assert first.tolist() == [20, 21]
        seconds.add(tuple(second.tolist()))
    assert (40, 41, 42) in seconds


def test_the_same_seed_gives_the_same_texts():
    a, b = with_nonsense(ROWS, seed=3), with_nonsense(ROWS, seed=3)
    np.testing.assert_array_equal(a.tokens, b.tokens)
    np.testing.assert_array_equal(a.sense, b.sense)
