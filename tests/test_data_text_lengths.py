"""Rows of tokens by length."""

import numpy as np

from symerge_jax.data.text_lengths import inverse_order, length_order, text_lengths


def test_rows_are_ordered_by_length_and_back():
    tokens = np.array([[0, 5, 6, 2], [0, 2, 1, 1], [0, 7, 2, 1], [0, 8, 2, 1], [1, 1, 1, 1]])
    np.testing.assert_array_equal(text_lengths(tokens), [4, 2, 3, 3, 0])
    order = length_order(tokens)
    np.testing.assert_array_equal(order, [4, 1, 2, 3, 0])
    np.testing.assert_array_equal(tokens[order][inverse_order(order)], tokens)


def test_padding_inside_a_text_does_not_end_it():
    np.testing.assert_array_equal(text_lengths(np.array([[0, 1, 1, 2, 1]])), [4])
    np.testing.assert_array_equal(text_lengths(np.array([[0, 9, 9]]), pad=9), [1])
