"""Supervisors between pre-trained model and expert."""

import ablation_world
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from trees_close import assert_trees_close, assert_trees_equal

from experiments import records, supervisor
from experiments.options import Options


@pytest.fixture
def out(tmp_path):
    return tmp_path / "runs"


def test_the_head_lies_between_the_first_and_the_experts_own():
    first = {"weight": jnp.array([[0.0, 4.0]]), "bias": jnp.array([1.0])}
    own = {"weight": jnp.array([[2.0, 0.0]]), "bias": jnp.array([1.0])}
    quarter = {"weight": jnp.array([[0.5, 3.0]]), "bias": jnp.array([1.0])}
    assert_trees_equal(supervisor.between(first, own, 0.25), quarter)
    assert_trees_equal(supervisor.between(first, own, 0.0), first)
    assert supervisor.between(first, own, 1.0) is own


def test_supervisors_go_from_the_pretrained_model_to_the_expert(tmp_path):
    scene = ablation_world.scene_of(Options(out=tmp_path))
    (seed,) = scene.seeds.values()
    experts, start = seed.experts, scene.model.pretrained
    none, half, whole = (supervisor.weakened(experts, start, c) for c in (0.0, 0.5, 1.0))
    assert len(half.params) == 3
    assert_trees_equal(none.params[1], start)
    middle = jax.tree.map(lambda a, b: (a + b) / 2, start, experts.params[1])
    assert_trees_close(half.params[1], middle)
    assert_trees_equal(list(whole.params)[1], experts.params[1])
    assert half.task_vectors is experts.task_vectors  # what is merged does not change
    assert_trees_equal(half.stacked, experts.stacked)  # the first heads are the experts' here


def test_strengths_come_once_and_ascending():
    assert supervisor.chosen_strengths(supervisor.Settings()) == tuple(np.arange(11) / 10)
    assert supervisor.chosen_strengths(supervisor.Settings(quick=True)) == (0, 0.5, 1)
    chosen = supervisor.chosen_strengths(supervisor.Settings(strengths=(1.0, 0.25, 1.0)))
    assert chosen == (0.25, 1.0)
    assert [supervisor.name_of(c) for c in chosen] == ["supervisor_0.25", "supervisor_1"]


def test_the_paper_has_rows_of_the_grid():
    assert set(supervisor.PAPER) < {supervisor.name_of(c) for c in supervisor.GRID}


def test_a_run_leaves_a_record_and_a_picture(monkeypatch, capsys, out):
    words = ("--strengths", "1", "0")
    record, folder = ablation_world.recorded(monkeypatch, capsys, supervisor, out, *words)
    assert records.methods(record) == ["individual", "supervisor_0", "supervisor_1"]
    assert record["data"] == {"strength": [0, 1]}
    values = [
        ablation_world.values(record, name, "supervisor_accuracy")
        for name in ("supervisor_0", "supervisor_1")
    ]
    assert values[1] == [100, 100, 100]
    assert min(values[0]) < 100
    assert (folder / "supervisor.png").is_file()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--strengths 0.5 1.5", "--strengths must be numbers from 0 to 1, got 1.5"),
        ("--strengths nan", "--strengths must be numbers from 0 to 1, got nan"),
        ("--methods symerge", "--methods symerge: this experiment has runs of its own"),
    ],
)
def test_a_bad_option(monkeypatch, capsys, out, words, says):
    ablation_world.refused(monkeypatch, capsys, supervisor, out, *words.split(), says=says)
