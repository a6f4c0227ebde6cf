"""Image tasks: every layout is read, everything wrong is named."""

import io
import os
import pickle
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from symerge_jax.data import decode
from symerge_jax.data.images import find_tasks, read_images, read_task
from symerge_jax.data.preprocess import resize_and_crop
from symerge_jax.errors import BadInput

PACKS = Path(os.environ.get("SYMERGE_DATA", Path(__file__).parents[1].parent / "shared" / "data"))


def pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def save_png(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


def save_pack(path, **arrays):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **arrays)


def encoded(image, kind="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind)
    return np.frombuffer(buffer.getvalue(), np.uint8)


def jpeg_pack(path, files, **more):
    offsets = np.cumsum([0, *map(len, files)])
    save_pack(path, **({"jpeg": np.concatenate(files), "offsets": offsets} | more))


def pack_task(folder, *, train=20, test=10, **more):
    for split, n in (("train", train), ("test", test)):
        save_pack(
            folder / f"{split}.npz",
            **({"images": pixels(n, 8, 8, seed=n), "labels": np.arange(n) % 5} | more),
        )


def folder_task(folder, classes=("cat", "dog"), splits=("train", "test"), each=3):
    for split in splits:
        for name in classes:
            for i in range(each):
                save_png(folder / split / name / f"{i}.png", pixels(8, 8, 3, seed=i))


# --- layouts ------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(28, 28), (28, 28, 3), (40, 30, 3), (8, 8)])
def test_a_pack_of_pixels(tmp_path, shape):
    images = pixels(5, *shape)
    save_pack(tmp_path / "x.npz", images=images, labels=np.array([0, 1, 2, 1, 0], np.int64))
    found = read_images(tmp_path / "x.npz", size=8)
    assert found.images.dtype == np.uint8
    assert found.labels.dtype == np.int32
    np.testing.assert_array_equal(found.labels, [0, 1, 2, 1, 0])
    np.testing.assert_array_equal(found.images, [resize_and_crop(image, 8) for image in images])


def test_a_pack_of_encoded_files(tmp_path):
    images = [pixels(12, 12, 3), pixels(12, 20, 3), pixels(8, 8)]
    jpeg_pack(tmp_path / "x.npz", [encoded(image) for image in images])
    found = read_images(tmp_path / "x.npz", size=8)
    assert found.labels is None
    np.testing.assert_array_equal(found.images, [resize_and_crop(image, 8) for image in images])


def test_class_folders_are_numbered_in_sorted_order(tmp_path):
    folder_task(tmp_path, classes=("dog", "cat"), splits=("test",), each=2)
    found = read_images(tmp_path / "test", size=8)
    assert found.classes == ("cat", "dog")
    np.testing.assert_array_equal(found.labels, [0, 0, 1, 1])
    np.testing.assert_array_equal(found.images[3], pixels(8, 8, 3, seed=1))


def test_a_folder_without_class_folders_is_unlabelled(tmp_path):
    for name in ("b.PNG", "a.jpeg", "c.webp", "d.bmp", "e.ppm", "f.tif", "g.jpg"):
        save_png(tmp_path / name, pixels(9, 9, 3))
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / ".hidden.png").write_bytes(b"")
    found = read_images(tmp_path, size=8)
    assert len(found.images) == 7
    assert found.labels is None
    assert found.classes is None


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_every_8_bit_mode_is_read(tmp_path, mode):
    image = Image.fromarray(pixels(9, 9, 3)).convert(mode)
    for i in range(2):
        image.save(tmp_path / f"{i}.tif")
    found = read_images(tmp_path, size=9).images
    np.testing.assert_array_equal(found[0], np.asarray(image.convert("RGB")))


def test_meta_sets_label_order_names_for_prompts_and_templates(tmp_path):
    folder_task(tmp_path / "pets")
    (tmp_path / "pets" / "meta.json").write_text(
        '{"classes": ["dog", "cat"], "clip_classes": [["dog", "puppy"], "cat"], '
        '"templates": ["a photo of a {}."], "source": "ignored"}'
    )
    task = read_task(tmp_path, "pets", size=8)
    assert task.classes == task.test.classes == ("dog", "cat")
    assert task.clip_classes == (("dog", "puppy"), ("cat",))
    assert task.templates == ("a photo of a {}.",)
    np.testing.assert_array_equal(task.test.labels, [1, 1, 1, 0, 0, 0])


def test_a_pack_without_names_is_named_by_its_labels_in_either_split(tmp_path):
    pack_task(tmp_path / "x")
    save_pack(tmp_path / "x" / "test.npz", images=pixels(2, 8, 8), labels=np.array([0, 7]))
    for need_train in (True, False):
        task = read_task(tmp_path, "x", size=8, need_train=need_train)
        assert task.classes == tuple("01234567")


def test_an_unlabelled_task(tmp_path):
    save_pack(tmp_path / "x" / "test.npz", images=pixels(2, 8, 8))
    task = read_task(tmp_path, "x", size=8, need_train=False)
    assert (task.train, task.validation, task.test.labels, task.classes) == (None,) * 4


def test_validation_is_a_tenth_of_train_drawn_with_seed_0(tmp_path):
    pack_task(tmp_path / "x", train=25)
    everything = read_images(tmp_path / "x" / "train.npz", size=8)
    task = read_task(tmp_path, "x", size=8)
    rows = np.sort(np.random.default_rng(0).permutation(25)[:2])
    np.testing.assert_array_equal(task.validation.images, everything.images[rows])
    np.testing.assert_array_equal(task.validation.labels, everything.labels[rows])
    np.testing.assert_array_equal(task.train.images, np.delete(everything.images, rows, axis=0))
    np.testing.assert_array_equal(task.train.labels, np.delete(everything.labels, rows))


def test_finding_tasks_passes_over_other_folders(tmp_path):
    pack_task(tmp_path / "b_pack")
    folder_task(tmp_path / "a_folder")
    jpeg_pack(tmp_path / "c_jpeg" / "test.npz", [encoded(pixels(8, 8))] * 2)
    save_png(tmp_path / "d_unlabelled" / "test" / "0.png", pixels(8, 8))
    save_pack(tmp_path / "scenes" / "test.npz", rgb=pixels(2, 8, 8, 3))
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "test.npz").write_text("no npz")
    (tmp_path / "empty" / "test" / "cat").mkdir(parents=True)
    (tmp_path / ".git" / "test").mkdir(parents=True)
    save_png(tmp_path / "only_train" / "train" / "0.png", pixels(8, 8))
    (tmp_path / "README.md").write_text("a file")
    assert find_tasks(tmp_path) == ("a_folder", "b_pack", "c_jpeg", "d_unlabelled")


def test_thousands_of_small_images_take_less_than_a_second(tmp_path):
    save_pack(tmp_path / "x.npz", images=pixels(3000, 28, 28))
    start = time.process_time()  # of this process alone, so that a busy machine does not matter
    read_images(tmp_path / "x.npz", size=32)
    assert time.process_time() - start < 1


@pytest.mark.skipif(not PACKS.is_dir(), reason="the data packs are not here")
@pytest.mark.parametrize(
    ("name", "classes"),
    [("mnist", 10), ("fashion_mnist", 10), ("kmnist", 10), ("cifar10", 10), ("cifar100", 100),
     ("gtsrb", 43), ("fer2013", 7), ("eurosat", 10)],
)  # fmt: skip
def test_the_real_packs(name, classes):
    task = read_task(PACKS, name, size=32)
    assert name in find_tasks(PACKS)
    assert task.train.images.shape == (1800, 32, 32, 3)
    assert task.validation.images.shape == (200, 32, 32, 3)
    assert task.test.images.shape == (1000, 32, 32, 3)
    assert len(task.classes) == len(task.clip_classes) == classes
    for split in (task.train, task.test):
        assert set(split.labels) == set(range(classes))
        assert split.images.std() > 10


# --- bad packs ----------------------------------------------------------------------------------


def sentence(call):
    """The one sentence of the error that the call raises."""
    with pytest.raises(BadInput) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text
    assert text.endswith(".")
    return text


GOOD = {"images": pixels(4, 8, 8), "labels": np.array([0, 1, 2, 0])}


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"images": pixels(4, 8, 8) / 255}, "uint8 [N,H,W] or [N,H,W,3], found float64 (4, 8, 8)"),
        ({"images": np.full((4, 8, 8), np.nan, np.float32)}, "found float32 (4, 8, 8)"),
        ({"images": pixels(4, 64)}, "found uint8 (4, 64)"),
        ({"images": pixels(4, 3, 8, 8)}, "found uint8 (4, 3, 8, 8)"),
        ({"images": pixels(4, 0, 8)}, "found 8 x 0 pixels"),
        ({"images": pixels(4, 1, 60_000)}, "60000 x 1 pixels are more than can be read"),
        ({"images": pixels(3, 8, 8)}, "found 3 images and 4 labels"),
        ({"images": pixels(1, 8, 8), "labels": np.array([0])}, "at least 2 images, found 1"),
        ({"images": pixels(0, 8, 8), "labels": np.array([], int)}, "at least 2 images, found 0"),
        ({"labels": np.array([0, 1, -1, 2])}, "label of row 2 is -1, expected 0 or more"),
        ({"labels": np.array([0, 1, 2**40, 2])}, f"label of row 2 is {2**40}"),
        ({"labels": np.array([0, 3, 5, 2])}, "row 1 is 3, but there are 3 classes (labels 0 to 2)"),
        ({"labels": np.array([0, 1, np.nan, 2])}, "`labels` as integers [N], found float64 (4,)"),
        ({"labels": np.eye(4, dtype=int)}, "`labels` as integers [N], found int64 (4, 4)"),
        ({"labels": np.array(["a", "b", "c", "d"])}, "`labels` as integers [N], found <U1 (4,)"),
        ({"images": np.array([None] * 4)}, "`images` holds Python objects, which are never opened"),
        ({"labels": np.array([None] * 4)}, "`labels` holds Python objects, which are never opened"),
    ],
)
def test_a_bad_pack_of_pixels_is_named(tmp_path, arrays, words):
    file = tmp_path / "x.npz"
    save_pack(file, **(GOOD | arrays))
    text = sentence(lambda: read_images(file, size=32, classes="abc"))
    assert text.startswith(str(file))
    assert words in text


def test_a_pack_without_images_is_named(tmp_path):
    save_pack(tmp_path / "x.npz", rgb=pixels(2, 8, 8, 3), depth=pixels(2, 8, 8))
    text = sentence(lambda: read_images(tmp_path / "x.npz", size=8))
    assert "expected an array `images` (or `jpeg` and `offsets`), found rgb, depth" in text
    np.savez(tmp_path / "x.npz")
    assert "found no array" in sentence(lambda: read_images(tmp_path / "x.npz", size=8))


def test_offsets_that_do_not_fit_are_named(tmp_path):
    files = [encoded(pixels(8, 8), "JPEG"), encoded(pixels(9, 9), "JPEG")]
    first, total = len(files[0]), len(files[0]) + len(files[1])
    for offsets, words in (
        ([0, total, first], f"must increase, but row 1 goes from {total} to {first}"),
        ([0, 0, total], "must increase, but row 0 goes from 0 to 0"),
        ([0, first, total - 1], f"from 0 to the {total} bytes of `jpeg`, found 0 to {total - 1}"),
        ([0, first, total + 9], f"found 0 to {total + 9}"),
        ([5, first, total], f"found 5 to {total}"),
        ([0.0, first, total], "expected `offsets` as integers [N+1], found float64 (3,)"),
        ([[0, first, total]], "expected `offsets` as integers [N+1], found int64 (1, 3)"),
        (np.array([], int), "expected `offsets` as integers [N+1], found int64 (0,)"),
    ):
        jpeg_pack(tmp_path / "x.npz", files, offsets=np.array(offsets))
        assert words in sentence(lambda: read_images(tmp_path / "x.npz", size=8))
    jpeg_pack(tmp_path / "x.npz", files, jpeg=np.zeros(total, np.int8))
    text = sentence(lambda: read_images(tmp_path / "x.npz", size=8))
    assert f"`jpeg` as uint8 [bytes], found int8 ({total},)" in text


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_truncated_image_in_a_pack_is_named_by_row_and_bytes(tmp_path, kind):
    whole = encoded(pixels(40, 40, 3), kind)
    files = [whole, whole[: len(whole) // 2], whole]
    jpeg_pack(tmp_path / "x.npz", files)
    text = sentence(lambda: read_images(tmp_path / "x.npz", size=8))
    start, end = len(whole), len(whole) + len(files[1])
    assert f"x.npz: row 1 (bytes {start} to {end} of `jpeg`): the image cannot be read" in text


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_damaged_pack_is_named(tmp_path, save):
    file = tmp_path / "x.npz"
    save(file, **GOOD)
    whole = file.read_bytes()
    flipped = bytearray(whole)
    flipped[200] ^= 255
    for content in (b"", b"garbage" * 50, whole[: len(whole) // 2], whole[:-30], flipped):
        file.write_bytes(content)
        text = sentence(lambda: read_images(file, size=8))
        assert text.startswith(str(file))
        assert "damaged" in text


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_no_pickle_is_opened(tmp_path):
    (tmp_path / "pickle.npz").write_bytes(pickle.dumps(Bomb(tmp_path / "exploded")))
    assert "damaged or not an npz" in sentence(lambda: read_images(tmp_path / "pickle.npz", size=8))
    save_pack(tmp_path / "x.npz", images=np.array([Bomb(tmp_path / "exploded")], object))
    assert "never opened" in sentence(lambda: read_images(tmp_path / "x.npz", size=8))
    assert not (tmp_path / "exploded").exists()


def test_a_single_array_is_no_pack(tmp_path):
    with open(tmp_path / "x.npz", "wb") as file:
        np.save(file, pixels(4, 8, 8))
    assert "found a single array" in sentence(lambda: read_images(tmp_path / "x.npz", size=8))


# --- bad images ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not one of PNG, JPEG"),
        (b"this is text", "not one of PNG, JPEG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not one of PNG, JPEG"),
        (encoded(pixels(40, 40, 3))[:3000].tobytes(), "truncated"),
        (encoded(pixels(40, 40, 3), "JPEG")[:1000].tobytes(), "truncated"),
        (encoded(pixels(40, 40).astype(np.uint16)).tobytes(), "expected 8 bits a value"),
        (encoded(pixels(1, 60_000)).tobytes(), "60000 x 1 pixels are more than can be read"),
    ],
)
def test_a_bad_image_is_named(tmp_path, content, words):
    folder_task(tmp_path / "x", splits=("test",))
    bad = tmp_path / "x" / "test" / "dog" / "1.png"
    bad.write_bytes(content)
    text = sentence(lambda: read_images(tmp_path / "x" / "test", size=32))
    assert text.startswith(f"{bad}: ")
    assert words in text


def test_an_image_with_too_many_pixels_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    save_png(tmp_path / "0.png", pixels(8, 8))
    Image.new("1", (13_400, 13_400)).save(tmp_path / "1.png")  # 180 megapixels: PIL refuses
    assert "at most 50 megapixels" in sentence(lambda: read_images(tmp_path, size=8))
    Image.new("1", (10_000, 10_000)).save(tmp_path / "1.png")  # 100: PIL warns
    assert "at most 50 megapixels" in sentence(lambda: read_images(tmp_path, size=8))
    monkeypatch.setattr(decode, "MAX_PIXELS", 63)
    assert "0.png: 8 x 8 pixels" in sentence(lambda: read_images(tmp_path, size=4))


# --- bad folders --------------------------------------------------------------------------------


def test_a_missing_folder_is_named_with_what_is_there(tmp_path):
    pack_task(tmp_path / "data" / "eurosat")
    missing = tmp_path / "date"
    for call in (
        lambda: find_tasks(missing),
        lambda: read_task(missing, "x", size=8),
        lambda: read_images(missing, size=8),
    ):
        text = sentence(call)
        assert f"{missing}: does not exist; {tmp_path} holds data" in text
        assert f"did you mean {tmp_path / 'data'}" in text
    text = sentence(lambda: read_images(tmp_path / "data" / "eurosat" / "tests.npz", size=8))
    assert f"did you mean {tmp_path / 'data' / 'eurosat' / 'test.npz'}" in text
    text = sentence(lambda: find_tasks(tmp_path / "nowhere" / "at" / "all"))
    assert "check the path" in text


def test_a_file_in_place_of_a_folder_is_named(tmp_path):
    (tmp_path / "data").write_text("a file")
    assert "expected a folder, found a file" in sentence(lambda: find_tasks(tmp_path / "data"))


def test_an_unknown_task_is_named_with_the_nearest(tmp_path):
    for name in ("eurosat", "mnist"):
        pack_task(tmp_path / name)
    text = sentence(lambda: read_task(tmp_path, "eurosta", size=8))
    assert "has no task 'eurosta', only eurosat, mnist; did you mean eurosat" in text
    assert "give one of those" in sentence(lambda: read_task(tmp_path, "zzz", size=8))
    text = sentence(lambda: read_task(tmp_path / "mnist", "mnist", size=8))
    assert f"{tmp_path / 'mnist'} itself is a task" in text


def test_a_missing_split_is_named(tmp_path):
    pack_task(tmp_path / "x")
    (tmp_path / "x" / "train.npz").unlink()
    assert "neither train.npz nor a folder train" in sentence(
        lambda: read_task(tmp_path, "x", size=8)
    )
    (tmp_path / "x" / "test.npz").unlink()
    assert "neither test.npz nor a folder test" in sentence(
        lambda: read_task(tmp_path, "x", size=8, need_train=False)
    )


def test_two_layouts_at_once_are_named(tmp_path):
    folder_task(tmp_path / "x")
    save_pack(tmp_path / "x" / "test.npz", **GOOD)
    text = sentence(lambda: read_task(tmp_path, "x", size=8))
    assert "has both test.npz and a folder test; keep one" in text
    save_png(tmp_path / "y" / "stray.png", pixels(8, 8))
    save_png(tmp_path / "y" / "cat" / "0.png", pixels(8, 8))
    text = sentence(lambda: read_images(tmp_path / "y", size=8))
    assert "expected class folders or images, found both (cat and stray.png)" in text


def test_empty_folders_are_named(tmp_path):
    folder_task(tmp_path / "x")
    (tmp_path / "x" / "test" / "ape").mkdir()
    (tmp_path / "x" / "train" / "ape").mkdir()
    text = sentence(lambda: read_task(tmp_path, "x", size=8))
    assert f"{tmp_path / 'x' / 'test' / 'ape'}: expected images (.png" in text
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("no image")
    text = sentence(lambda: read_images(tmp_path / "empty", size=8))
    assert f"{tmp_path / 'empty'}: expected images" in text


def test_a_single_image_is_too_few(tmp_path):
    save_png(tmp_path / "0.png", pixels(8, 8))
    assert "at least 2 images, found 1" in sentence(lambda: read_images(tmp_path, size=8))


def test_class_folders_that_do_not_fit_are_named(tmp_path):
    folder_task(tmp_path / "x")
    save_png(tmp_path / "x" / "test" / "wolf" / "0.png", pixels(8, 8))
    wolf = tmp_path / "x" / "test" / "wolf"
    for need in (True, False):
        text = sentence(partial(read_task, tmp_path, "x", size=8, need_train=need))
        assert f"{wolf}: is a class folder that {tmp_path / 'x' / 'train'} lacks" in text
    text = sentence(lambda: read_images(tmp_path / "x" / "test", size=8, classes=("cat", "dog")))
    assert f"{wolf}: is not one of the 2 classes (cat, dog)" in text


def test_a_class_without_test_images_is_fine(tmp_path):
    folder_task(tmp_path / "x", classes=("ape", "cat", "dog"), splits=("train",))
    folder_task(tmp_path / "x", splits=("test",))
    np.testing.assert_array_equal(read_task(tmp_path, "x", size=8).test.labels, [1, 1, 1, 2, 2, 2])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "cannot be read as JSON"),
        (b"\xff\xfe", "cannot be read as JSON"),
        (b'["cat"]', "expected a JSON object, found a list"),
        (b'{"classes": "cat"}', 'expected `classes` as a list of strings, found "cat"'),
        (b'{"classes": [0, 1]}', "expected `classes` as a list of strings, found [0, 1]"),
        (b'{"classes": ["cat", "cat"]}', "`classes` names 'cat' twice"),
        (b'{"clip_classes": "cat"}', "expected `clip_classes` as a list"),
        (b'{"clip_classes": ["cat", 3]}', "expected `clip_classes[1]` as a list of strings"),
        (b'{"clip_classes": ["cat", []]}', "expected `clip_classes[1]` as a list of strings"),
        (b'{"clip_classes": ["cat", null]}', "`clip_classes[1]` is empty"),
        (b'{"classes": ["a", "b"], "clip_classes": ["a"]}', "2 `classes` but 1 `clip_classes`"),
        (b'{"clip_classes": ["a"]}', "1 `clip_classes`, but the images have 5 classes"),
        (b'{"templates": ["a photo"]}', "template 'a photo' has no {}"),
        (b'{"classes": ["a", "b"]}', "label of row 2 is 2, but there are 2 classes"),
    ],
)
def test_a_bad_meta_file_is_named(tmp_path, content, words):
    pack_task(tmp_path / "x")
    (tmp_path / "x" / "meta.json").write_bytes(content)
    assert words in sentence(lambda: read_task(tmp_path, "x", size=8))
