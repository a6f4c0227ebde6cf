"""The regression line, its band and the correlation."""

import numpy as np
import pytest
from scipy import stats

from experiments.regression import band, fit_line

X = np.array([1.0, 2.0, 3.0, 4.0])
Y = np.array([1.0, 3.0, 2.0, 5.0])


def test_a_line_by_hand():
    # Σ(x−x̄)(y−ȳ) = 5.5, Sxx = 5, Syy = 8.75; x̄ = 2.5, ȳ = 2.75
    line = fit_line(X, Y)
    assert line.slope == pytest.approx(1.1)
    assert line.intercept == pytest.approx(0)
    assert line.r == pytest.approx(5.5 / np.sqrt(5 * 8.75))
    np.testing.assert_allclose(line.at([0, 10]), [0, 11], atol=1e-12)


def test_the_p_value_is_that_of_the_t_statistic():
    line = fit_line(X, Y)
    t = line.r * np.sqrt(2 / (1 - line.r**2))
    assert line.p == pytest.approx(2 * stats.t.sf(t, df=2))


def test_the_band_is_that_of_the_normal_equations():
    # Independently: the variance of a + b·x is s² (1, x) (XᵀX)⁻¹ (1, x)ᵀ.
    design = np.stack([np.ones(4), X], axis=1)
    weights, (rest,), *_ = np.linalg.lstsq(design, Y, rcond=None)
    covariance = rest / 2 * np.linalg.inv(design.T @ design)
    at = np.array([-1.0, 2.5, 7.0])
    rows = np.stack([np.ones(3), at], axis=1)
    half = 4.302653 * np.sqrt(np.einsum("ij,jk,ik->i", rows, covariance, rows))  # t at .975, df 2
    low, high = band(fit_line(X, Y), at)
    np.testing.assert_allclose(low, rows @ weights - half, rtol=1e-6)
    np.testing.assert_allclose(high, rows @ weights + half, rtol=1e-6)


def test_the_band_holds_the_true_line_as_often_as_it_says():
    rng = np.random.default_rng(0)
    x = np.linspace(0, 1, 10)
    inside = 0
    for _ in range(400):
        low, high = band(fit_line(x, 2 * x + rng.normal(0, 1, 10)), 0.8)
        inside += bool(low <= 1.6 <= high)
    assert 0.92 < inside / 400 < 0.98


def test_points_on_a_line_have_no_band():
    line = fit_line(X, 3 * X - 1)
    assert line.r == pytest.approx(1)
    low, high = band(line, X)
    np.testing.assert_allclose(high - low, 0, atol=1e-9)


@pytest.mark.parametrize(("x", "y"), [([1, 1, 1], [1, 2, 3]), ([1, 2, 3], [7, 7, 7])])
def test_no_line_where_all_is_the_same(x, y):
    assert fit_line(x, y) is None
