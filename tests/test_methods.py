"""The names of a vision table's rows, and how many inputs each method sees."""

import jax
import numpy as np
import pytest

from experiments.adapting import blocks, present, schedule_of, spread
from experiments.methods import (
    ADAPTIVE,
    Constants,
    Run,
    base_of,
    check_method,
    is_adaptive,
    part_of,
)
from symerge_jax.errors import BadInput

CONSTANTS = Constants(None, 50, 32, 0.01, 0.001, 0.001, 0.3)
SIZES = [200, 90]


@pytest.mark.parametrize(
    ("name", "base", "part"),
    [
        ("surgery", "adamerging", None),
        ("probsurgery_on_task_arithmetic", "task_arithmetic", None),
        ("symerge_block_12", None, "12"),
        ("symerge_late", None, "late"),
        ("symerge_head", None, None),
        ("symerge", None, None),
        ("symerge_block_", None, None),
        ("ties", None, None),
    ],
)
def test_a_name_says_what_a_method_stands_on(name, base, part):
    assert base_of(name) == base
    assert part_of(name) == part


@pytest.mark.parametrize("name", [*ADAPTIVE, "surgery_on_ties", "symerge_block_3", "symerge_all"])
def test_methods_that_learn_are_known(name):
    assert is_adaptive(name)
    check_method(name, 3)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("symerge_block_4", "the image tower has blocks 1 to 3"),
        ("symerge_block_0", "the image tower has blocks 1 to 3"),
        ("surgery_on_tie", "unknown base 'tie' .did you mean ties"),
        ("surgry", "unknown method 'surgry' .did you mean surgery"),
        ("symerge_block_two", "unknown method 'symerge_block_two'"),
    ],
)
def test_what_is_not_known_is_refused(name, says):
    with pytest.raises(BadInput, match=says):
        check_method(name, 3)


@pytest.mark.parametrize("method", ADAPTIVE)
def test_every_method_sees_as_many_inputs_of_each_task(method):
    schedule = schedule_of(Run(method), SIZES, CONSTANTS, 0)
    per_task = np.bincount(schedule.task_ids) * schedule.batch_size
    np.testing.assert_array_equal(per_task, [50 * 32] * 2)


@pytest.mark.parametrize("method", ADAPTIVE)
def test_online_every_method_sees_each_input_once(method):
    schedule = schedule_of(Run(method, protocol="online"), SIZES, CONSTANTS, 0)
    for task, size in enumerate(SIZES):
        own = schedule.task_ids == task
        assert schedule.sample_mask[own].sum() == size


def test_blocks_are_counted_from_one():
    norm = {"scale": np.zeros(4), "bias": np.zeros(4)}
    params = {"ln_pre": norm} | {f"blocks_{i}": {"ln_1": norm} for i in range(3)}

    def inside(part):
        chosen = blocks(params, part)
        assert not any(chosen["ln_pre"].values())
        return [name for name, tree in chosen.items() if all(jax.tree.leaves(tree))]

    found = {part: inside(part) for part in ("1", "3", "early", "late", "all")}
    assert found == {
        "1": ["blocks_0"],
        "3": ["blocks_2"],
        "early": ["blocks_0"],
        "late": ["blocks_1", "blocks_2"],
        "all": ["blocks_0", "blocks_1", "blocks_2"],
    }


def test_what_is_absent_is_stored_as_nothing_and_comes_back():
    like = {"a": {"x": 1.0, "y": 2.0}, "b": {"z": 3.0}}
    part = {"a": {"x": np.ones(2), "y": None}, "b": {"z": None}}
    stored = present(part)
    assert set(stored) == {"a"}
    assert set(stored["a"]) == {"x"}
    back = spread(stored, like)
    assert back["a"]["x"] is part["a"]["x"]
    assert back["a"]["y"] is None
    assert back["b"] == {"z": None}
