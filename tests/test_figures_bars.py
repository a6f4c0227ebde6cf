"""Figures of ablations: a PNG comes out, whatever is missing; where axes begin."""

import numpy as np
import pytest
from PIL import Image

from experiments import figures_bars, records


def assert_picture(path):
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert min(image.size) > 200
        assert len(image.getcolors(maxcolors=1 << 24) or ()) > 10


@pytest.mark.parametrize(("groups", "series"), [(1, 1), (9, 4), (20, 2)])
def test_bars(tmp_path, groups, series):
    rng = np.random.default_rng(0)
    values = {f"series {i}": rng.uniform(40, 90, groups).tolist() for i in range(series)}
    values["series 0"][0] = None
    path = figures_bars.grouped_bars(
        [f"some group {i}" for i in range(groups)], values, tmp_path / "bars.png",
        title="what is seen",
        spread={"series 0": [1.5] * groups},
        lines={"a level": 77.0, "no level": None},
    )  # fmt: skip
    assert_picture(path)


@pytest.mark.parametrize("logarithmic", [True, False])
def test_a_curve(tmp_path, logarithmic):
    path = figures_bars.curves(
        [1e-3, 1e-2, 1e-1], {"one": [50.0, None, 60.0]}, tmp_path / "curve.png",
        title="what is seen", xlabel="rate", logarithmic=logarithmic, marked=1e-2,
        spread={"one": [1.0, None, 2.0]}, lines={"a level": 55.0},
    )  # fmt: skip
    assert_picture(path)


def test_a_shaded_table(tmp_path):
    values = [[50.0, 60.0], [None, 60.0], [70.0, 60.0]]
    path = figures_bars.shaded_table(
        ["a", "b", "c"], ["x", "y"], values, tmp_path / "table.png", title="what is seen"
    )
    assert_picture(path)


def test_shades_are_those_of_a_column():
    cells = np.array([[50.0, 60.0, np.nan], [60.0, 60.0, np.nan], [70.0, 60.0, np.nan]])
    expected = [[0, 0.5, 0.5], [0.5, 0.5, 0.5], [1, 0.5, 0.5]]
    np.testing.assert_allclose(figures_bars._shades(cells), expected)


def test_axes_begin_at_a_round_number_below_all_values():
    for values in ([50.0, 60.0], [81.0, 99.0], [3.0, 97.0], [90.0], [0.0]):
        low, high = figures_bars._limits(np.array([*values, np.nan]))
        assert low % 10 == 0
        assert 0 <= low <= min(values)
        assert low < high
        assert high >= max(values)
    assert figures_bars._limits(np.array([81.0, 99.0]))[0] == 70


def test_means_over_tasks_are_those_of_the_summary():
    record = records.new_record("trial", "tiny", {})
    for seed, values in ((0, (40, 60)), (1, (42, 62))):
        for task, value in zip("xy", values, strict=True):
            records.add_result(
                record, method="a", seed=seed, task=task, metric="accuracy", value=value, n=1
            )
    mean, std = figures_bars.over_tasks(record, ["a", "absent"], "accuracy")
    assert mean == [51, None]
    assert std == [pytest.approx(2**0.5), None]
