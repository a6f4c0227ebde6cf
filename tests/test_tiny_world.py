"""The generated world: repeatable, balanced, with separate test pictures and distinct classes."""

import numpy as np
import pytest

from experiments.tiny import world
from experiments.tiny.drawing import random_style
from experiments.tiny.glyphs import digit_rows

SPLITS = ("easy", "hard", "train", "test")
every_task = pytest.mark.parametrize("name", world.TASKS)


def test_the_world_has_its_twenty_tasks_in_order():
    assert world.TASKS == (
        "digits", "numbers", "letters", "signs", "textures", "angles", "arrows", "terrain",
        "shapes", "counts", "segments", "colors", "runes", "places",
        "lower", "clocks", "bricks", "bars", "relations", "freqs",
    )  # fmt: skip
    assert set(world.TASKS) - set(world.PRETRAINING) == {"digits", "runes"}


@every_task
@pytest.mark.parametrize("split", SPLITS)
def test_a_set_repeats_and_is_balanced(name, split):
    count = 40
    pictures, labels = world.images(name, split=split, count=count, seed=3)
    again, labels_again = world.images(name, split=split, count=count, seed=3)
    assert pictures.shape == (count, 32, 32, 3)
    assert pictures.dtype == np.uint8
    assert labels.shape == (count,)
    assert labels.dtype == np.int32
    assert np.array_equal(pictures, again)
    assert np.array_equal(labels, labels_again)
    counts = np.bincount(labels, minlength=len(world.FAMILIES[name].classes))
    assert counts.max() - counts.min() <= 1
    assert pictures.std(axis=(1, 2)).min() > 0


@every_task
def test_seeds_and_splits_share_no_picture(name):
    sets = [
        world.images(name, split=split, count=32, seed=seed)[0]
        for split in SPLITS
        for seed in (0, 1)
    ]
    pictures = np.concatenate(sets).reshape(len(SPLITS) * 2 * 32, -1)
    assert len(np.unique(pictures, axis=0)) == len(pictures)


def test_recorded_digits_are_split_by_row():
    _, train, test = digit_rows()
    assert not set(np.concatenate(train).tolist()) & set(np.concatenate(test).tolist())
    assert min(map(len, train)) > 100
    assert min(map(len, test)) >= 50  # 500 balanced test pictures show 500 different rows


@every_task
def test_class_names_are_distinct_and_short(name):
    classes = world.FAMILIES[name].classes
    assert len(set(classes)) == len(classes)
    longest = max(len(t.split()) - 1 for t in world.TEMPLATES)
    assert max(len(c.split()) for c in classes) + longest <= 12  # the tokenizer's length


def test_class_names_differ_between_tasks():
    names = [word for family in world.FAMILIES.values() for word in family.classes]
    assert len(set(names)) == len(names)


@every_task
def test_classes_look_different(name):
    # The same random numbers under every label: only the class can make a difference.
    family = world.FAMILIES[name]
    style = random_style(np.random.default_rng(5), hard=False)
    drawn = np.stack(
        [family.draw(np.random.default_rng(6), c, style) for c in range(len(family.classes))]
    )
    changed = (np.abs(drawn[:, None] - drawn[None]).max(-1) > 40).sum((2, 3))
    pairs = changed[~np.eye(len(drawn), dtype=bool)]
    assert pairs.min() >= 6  # pixels


@pytest.mark.parametrize("name", ["arrows", "places"])
def test_mean_pictures_tell_the_class(name):
    means = []
    for seed in (0, 1):
        pictures, labels = world.images(name, split="train", count=480, seed=seed)
        grey = pictures.astype(np.float32).mean(-1)
        means.append(np.stack([grey[labels == c].mean(0) for c in range(labels.max() + 1)]))
    distances = np.square(means[0][:, None] - means[1][None]).sum((2, 3))
    assert np.array_equal(distances.argmin(1), np.arange(len(distances)))


def test_the_look_of_a_task_is_the_same_for_every_seed():
    for name in ("letters", "counts"):
        tones = [
            world.images(name, split="train", count=64, seed=seed)[0].mean((0, 1, 2))
            for seed in (0, 7)
        ]
        assert np.abs(tones[0] - tones[1]).max() < 10


@pytest.mark.parametrize(
    "change", [{"name": "clouds"}, {"split": "validation"}, {"count": -1}, {"seed": -1}]
)
def test_bad_arguments_are_refused(change):
    arguments = {"name": "digits", "split": "train", "count": 2, "seed": 0} | change
    with pytest.raises(ValueError, match="got"):
        world.images(arguments.pop("name"), **arguments)


def test_an_empty_set_is_possible():
    pictures, labels = world.images("signs", split="test", count=0, seed=0)
    assert pictures.shape == (0, 32, 32, 3)
    assert labels.shape == (0,)


def test_the_digest_is_stable_hex():
    digest = world.worlds_digest()
    assert digest == world.worlds_digest()
    assert len(digest) == 64
    assert int(digest, 16) >= 0
