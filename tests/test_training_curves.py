"""Curves of an adaptation, by hand, and what is read off them."""

import numpy as np
import pytest
from small_scene import outcome

from experiments import figures
from experiments.training_curves import Curve, Line, curve_of, draw_lines, ramp, settled, spread

START = outcome("start", [[0, 0, 0, 1], [1, 1, 0, 0]])  # 25 % and 50 %


def curve(values, iterations=None):
    values = np.array(values, float)
    return Curve(
        np.arange(len(values)) if iterations is None else np.array(iterations), values[None]
    )


def test_a_curve_is_the_mean_over_tasks_from_the_start_on():
    one = outcome("run", [[1], [1]], curve=[[40, 60], [60, 100]])
    found = curve_of([one], [START], every=5, iterations=10)
    assert found.iterations.tolist() == [0, 5, 10]
    assert found.accuracy.tolist() == [[37.5, 50, 80]]


def test_the_last_look_is_at_the_end_of_the_run():
    one = outcome("run", [[1], [1]], curve=[[40, 40], [50, 50], [60, 60]])
    assert curve_of([one], [START], every=5, iterations=12).iterations.tolist() == [0, 5, 10, 12]
    one = outcome("run", [[1], [1]], curve=[[40, 40]])
    assert curve_of([one], [START], every=50, iterations=12).iterations.tolist() == [0, 12]


def test_a_method_without_looks_has_its_end():
    found = curve_of([outcome("run", [[1, 1], [1, 0]])], [START], every=5, iterations=20)
    assert found.iterations.tolist() == [0, 20]
    assert found.accuracy.tolist() == [[37.5, 75]]


def test_seeds_are_rows():
    seeds = [outcome("run", [[1], [1]], seed=s, curve=[[40 + 20 * s] * 2]) for s in range(2)]
    found = curve_of(seeds, [START, START], every=5, iterations=5)
    assert found.accuracy.tolist() == [[37.5, 40], [37.5, 60]]
    assert found.mean.tolist() == [37.5, 50]
    assert found.rows() == [[37.5, 40], [37.5, 60]]


@pytest.mark.parametrize(
    ("values", "at"),
    [
        ([50, 89, 90], 10),  # 89 is one point off, no more
        ([50, 88.9, 90], 20),
        ([90, 50, 90], 20),  # it came back
        ([90, 90, 90], 0),
    ],
)
def test_a_curve_is_settled_where_it_stays_within_a_point(values, at):
    assert settled(curve(values, [0, 10, 20])) == at


def test_the_spread_is_best_less_worst_at_each_point():
    found = spread([curve([10, 80]), curve([40, 82]), curve([30, 79])])
    assert found.tolist() == [30, 3]


def test_the_spread_is_of_means_over_seeds():
    one = Curve(np.arange(1), np.array([[0.0], [100.0]]))
    assert spread([one, curve([50])]).tolist() == [0]


def test_colours_of_a_ramp_differ():
    assert len(set(ramp(7))) == 7


def test_lines_are_drawn_with_their_spread_over_seeds():
    axes = figures._figure(4, 3).subplots()
    several = Curve(np.arange(3), np.array([[1.0, 2, 3], [3, 4, 5]]))
    draw_lines(axes, [Line("a", several, "#000000"), Line("b", curve([1, 2, 3]), "#111111")])
    assert [line.get_label() for line in axes.get_lines()] == ["a", "b"]
    np.testing.assert_array_equal(axes.get_lines()[0].get_ydata(), [2, 3, 4])
    assert len(axes.collections) == 1  # the band of "a"; one seed has none
