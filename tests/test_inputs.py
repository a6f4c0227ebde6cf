"""Images of a task for a head: where they lie, and labels as rows of the head."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from symerge_jax.checkpoints.heads import StoredHead
from symerge_jax.data.images import draw_images, read_images
from symerge_jax.errors import BadInput
from symerge_jax.inputs import find_inputs, read_inputs


def head(count, *names):
    weight = np.zeros((count, 4), np.float32)
    return StoredHead({"weight": weight, "bias": weight[:, 0]}, names or None, Path("head.file"))


def pack(path, labels=None, count=6):
    path.parent.mkdir(parents=True, exist_ok=True)
    images = np.arange(count, dtype=np.uint8)[:, None, None, None] * np.ones((8, 8, 3), np.uint8)
    np.savez(path, images=images, **({} if labels is None else {"labels": np.array(labels)}))
    return path


def folders(split, **classes):
    """Class folders with so many images each, grey levels counting up."""
    level = 0
    for name, count in classes.items():
        (split / name).mkdir(parents=True)
        for _ in range(count):
            Image.fromarray(np.full((8, 8, 3), level, np.uint8)).save(split / name / f"{level}.png")
            level += 1
    return split


def labels_of(path, head):
    return read_inputs(path, head, size=8)[1].tolist()


@pytest.mark.parametrize("name", ["pets", "pets/test", "pets/test.npz"])
def test_a_pack_by_any_of_its_names(tmp_path, name):
    path = pack(tmp_path / "pets" / "test.npz", [0, 1, 0, 1, 0, 1])
    assert find_inputs(tmp_path / name) == path


@pytest.mark.parametrize("name", ["pets", "pets/test"])
def test_a_folder_by_any_of_its_names(tmp_path, name):
    path = folders(tmp_path / "pets" / "test", cat=1, dog=1)
    assert find_inputs(tmp_path / name) == path


def test_a_folder_of_images_alone_is_taken_as_it_is(tmp_path):
    path = folders(tmp_path, pets=2) / "pets"
    assert find_inputs(path) == path
    assert read_inputs(path, head(2), size=8)[1] is None


def test_what_is_missing_is_named_with_its_neighbours(tmp_path):
    pack(tmp_path / "pets" / "test.npz")
    with pytest.raises(BadInput, match="does not exist.*did you mean .*/pets"):
        read_inputs(tmp_path / "pet", head(2), size=8)


def test_a_limit_takes_the_first_images(tmp_path):
    path = pack(tmp_path / "test.npz", [0, 1, 1, 1, 0, 1])
    images, labels = read_inputs(path, head(2), size=8, limit=2)
    assert images[:, 0, 0, 0].tolist() == [0, 1]
    assert labels.tolist() == [0, 1]


def test_labels_of_a_pack_are_rows_of_the_head(tmp_path):
    path = pack(tmp_path / "test.npz", [0, 1, 0, 1, 0, 1])
    # Three rows although the largest label is 1: test images may lack a class.
    assert labels_of(path, head(3, "dog", "cat", "cow")) == [0, 1, 0, 1, 0, 1]


def test_a_pack_without_labels(tmp_path):
    assert read_inputs(pack(tmp_path / "test.npz"), head(2), size=8)[1] is None


def test_class_folders_are_found_by_name(tmp_path):
    split = folders(tmp_path / "test", cat=1, cow=1, dog=2)
    assert labels_of(split, head(3, "dog", "cat", "cow")) == [1, 2, 0, 0]


def test_class_folders_may_lack_classes_of_the_head(tmp_path):
    split = folders(tmp_path / "test", cow=1, dog=1)
    assert labels_of(split, head(3, "cat", "cow", "dog")) == [1, 2]


def test_class_folders_of_a_head_without_names_count_in_sorted_order(tmp_path):
    assert labels_of(folders(tmp_path / "test", cow=1, dog=2), head(2)) == [0, 1, 1]
    assert labels_of(tmp_path / "test", head(2, "a cow", "a dog")) == [0, 1, 1]


def test_the_class_folders_of_train_count_too(tmp_path):
    folders(tmp_path / "train", cat=1, cow=1, dog=1)
    assert labels_of(folders(tmp_path / "test", cow=1, dog=1), head(3)) == [1, 2]


def test_meta_sets_the_order_of_class_folders(tmp_path):
    folders(tmp_path / "test", cow=1, dog=2)
    (tmp_path / "meta.json").write_text('{"classes": ["dog", "cow"]}')
    assert labels_of(tmp_path / "test", head(2)) == [1, 0, 0]
    assert labels_of(tmp_path / "test", head(2, "cow", "dog")) == [0, 1, 1]


def test_meta_names_the_labels_of_a_pack(tmp_path):
    path = pack(tmp_path / "test.npz", [0, 0, 0, 1, 1, 2])
    (tmp_path / "meta.json").write_text('{"classes": ["dog", "cow", "cat"]}')
    assert labels_of(path, head(3, "cat", "cow", "dog")) == [2, 2, 2, 1, 1, 0]
    assert labels_of(path, head(3)) == [0, 0, 0, 1, 1, 2]


@pytest.mark.parametrize(
    ("head", "says"),
    [
        (head(2), "has 3 classes, but head.file has 2"),
        (head(4), "has 3 classes, but head.file has 4"),
        (head(4, "cat", "cow", "hen", "pig"), "has 3 classes, but head.file has 4"),
    ],
)
def test_another_number_of_classes_is_refused(tmp_path, head, says):
    with pytest.raises(BadInput, match=says):
        read_inputs(folders(tmp_path / "test", cat=1, cow=1, dog=1), head, size=8)


def test_a_label_without_a_row_is_refused(tmp_path):
    path = pack(tmp_path / "test.npz", [0, 1, 2, 3, 0, 1])
    with pytest.raises(BadInput, match=r"test.npz: has labels up to 3, but head.file has 3"):
        read_inputs(path, head(3), size=8)


def encoded_pack(path, count):
    """A pack of PNG files end to end."""
    files = []
    for level in range(count):
        content = io.BytesIO()
        Image.fromarray(np.full((8, 8, 3), level, np.uint8)).save(content, "png")
        files.append(np.frombuffer(content.getvalue(), np.uint8))
    offsets = np.cumsum([0, *map(len, files)])
    np.savez(path, jpeg=np.concatenate(files), offsets=offsets)
    return path


@pytest.mark.parametrize("count", [4, 9])
def test_images_are_drawn_with_a_seed_in_the_order_of_the_whole(tmp_path, count):
    places = (
        pack(tmp_path / "a.npz", [0, 1, 0, 1, 0, 1, 0], count=7),
        encoded_pack(tmp_path / "b.npz", 7),
        folders(tmp_path / "c", cat=3, dog=4),
        folders(tmp_path, d=7) / "d",
    )
    for place in places:
        rows = np.sort(np.random.default_rng(5).permutation(7)[:count])
        expected = read_images(place, size=8).images[rows]
        np.testing.assert_array_equal(draw_images(place, count, size=8, seed=5), expected)


def test_the_first_split_that_is_there_is_found(tmp_path):
    test = pack(tmp_path / "pets" / "test.npz")
    assert find_inputs(tmp_path / "pets", splits=("train", "test")) == test
    train = folders(tmp_path / "pets" / "train", cat=1)
    assert find_inputs(tmp_path / "pets", splits=("train", "test")) == train
    assert find_inputs(tmp_path / "pets") == test
