"""Bootstrap intervals and paired tests, against closed forms."""

import numpy as np
import pytest
from scipy import stats

from experiments.intervals import interval, paired_p


def drawn(share, n, seed=0):
    right = np.zeros(n, bool)
    right[: round(share * n)] = True
    return np.random.default_rng(seed).permutation(right)


def test_an_interval_is_that_of_the_normal_approximation():
    tasks = [drawn(0.9, 400), drawn(0.6, 200)]
    low, high = interval(tasks)
    spread = 0.5 * np.sqrt(0.9 * 0.1 / 400 + 0.6 * 0.4 / 200)
    np.testing.assert_allclose([low, high], [75 - 196 * spread, 75 + 196 * spread], atol=0.4)


def test_seeds_of_equal_answers_make_no_interval_shorter():
    task = drawn(0.7, 300)
    assert interval([np.stack([task] * 3)]) == interval([task])


def test_what_is_always_right_has_no_width():
    assert interval([np.ones(50, bool), np.ones(20, bool)]) == (100, 100)


def test_a_paired_test_is_the_sign_test_where_all_differences_are_equal():
    left, right = np.zeros(100, bool), np.zeros(100, bool)
    left[:15], right[15:20] = True, True
    expected = stats.binomtest(15, 20).pvalue
    assert paired_p([left], [right]) == pytest.approx(expected, abs=0.02)
    assert paired_p([right], [left]) == paired_p([left], [right])


def test_equal_methods_do_not_differ():
    task = drawn(0.5, 60)
    assert paired_p([task, task], [task, task]) == 1


def test_opposite_differences_of_two_tasks_cancel():
    better, worse = drawn(1.0, 40), drawn(0.5, 40)
    assert paired_p([better, worse], [worse, better]) == pytest.approx(1, abs=0.05)
    assert paired_p([better, better], [worse, worse]) < 0.01
