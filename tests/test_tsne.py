"""Features in the plane: which task and points, shares by hand, and the script on a small scene."""

from pathlib import Path

import numpy as np
import pytest
import small_scene

from experiments import records, tsne
from experiments.tsne import (
    METHODS,
    Settings,
    View,
    chosen_points,
    chosen_task,
    described,
    embedded,
    top_share,
)
from symerge_jax.cli.errors import run
from symerge_jax.errors import BadInput


def test_the_share_of_the_most_frequent_class():
    assert top_share(np.array([2, 0, 2, 2, 1])) == 60
    assert top_share(np.array([3, 3])) == 100


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({}, "textures"),
        ({"task": "signs"}, "signs"),
        ({"tasks": ("signs", "runes")}, "signs"),
    ],
)
def test_the_task_that_is_drawn(settings, name):
    assert chosen_task(Settings(**settings)) == name


def test_textures_of_ones_own_are_found_by_their_name(tmp_path):
    for name in ("mnist", "dtd10"):
        (tmp_path / name / "train" / "a").mkdir(parents=True)
        (tmp_path / name / "test" / "a").mkdir(parents=True)
    assert chosen_task(Settings(data=tmp_path, tasks=("mnist", "dtd10"))) == "dtd10"


def test_few_images_are_all_drawn_and_many_at_random():
    assert chosen_points(6, 10).tolist() == list(range(6))
    some = chosen_points(100, 10)
    assert len(set(some.tolist())) == 10
    assert some.tolist() == sorted(some.tolist())
    np.testing.assert_array_equal(some, chosen_points(100, 10))
    with pytest.raises(BadInput, match="3 test images"):
        chosen_points(3, 10)


def test_groups_far_apart_stay_apart_in_the_plane():
    rng = np.random.default_rng(0)
    middles = np.repeat(np.eye(3, 5), 20, axis=0)
    points = embedded(middles + rng.normal(0, 0.01, middles.shape))
    assert points.shape == (60, 2)
    groups = points.reshape(3, 20, 2)
    inside = max(np.ptp(group, axis=0).max() for group in groups)
    centres = groups.mean(axis=1)
    between = min(np.linalg.norm(centres[i] - centres[j]) for i, j in [(0, 1), (0, 2), (1, 2)])
    assert between > inside


def test_the_record_has_the_first_seeds_points_and_every_seeds_share(monkeypatch):
    monkeypatch.setattr(tsne, "embedded", lambda features: features[:, :2] + 0.001)
    features = np.arange(12.0).reshape(4, 3)
    views = {
        ("before", 5): View(features, np.array([0, 0, 1, 1])),
        ("before", 6): View(-features, np.array([0, 0, 0, 1])),
    }
    found = described("signs", np.array([0, 1, 1, 1]), views, np.array([0, 2]))
    assert found == {
        "task": "signs",
        "true_top_share": 75,
        "top_share": {"before": [50, 75]},
        "labels": [0, 1],
        "predictions": {"before": [0, 1]},
        "points": {"before": [[0, 6], [1, 7]]},
    }


@pytest.mark.parametrize("count", [5, 15, 47])
def test_classes_have_colours_of_their_own(count):
    axes = tsne.figures._figure(3, 3).subplots()
    classes = np.arange(count)
    tsne.scatter(axes, classes * 1.0, classes * 1.0, classes, count)
    assert len(np.unique(axes.collections[0].get_facecolor(), axis=0)) == count


def test_the_script_draws_one_task_before_and_after(monkeypatch, capsys, tmp_path):
    small_scene.install(monkeypatch, tsne)
    words = ["--out", str(tmp_path), "--seeds", "1", "0"]
    assert run(tsne.main, Settings, words, prog="script") == 0
    path = Path(capsys.readouterr().out.splitlines()[-1])
    record = records.read(path)
    assert records.methods(record) == list(METHODS)
    data = record["data"]
    assert data["task"] == "textures"
    assert data["true_top_share"] == 50
    assert {len(shares) for shares in data["top_share"].values()} == {2}
    assert np.array(data["points"]["entropy_joint"]).shape == (2, 12)
    assert path.with_name("tsne.png").stat().st_size > 10_000
