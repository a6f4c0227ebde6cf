"""Finding and reading the benchmark's sets: four forms, one order of labels."""

import csv
import gzip
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments.tasks import clip_data, clip_tables
from experiments.tasks.clip_data import differences, find_set, part_rows, read_split
from experiments.tasks.clip_names import EUROSAT
from experiments.tasks.clip_sets import SETS
from symerge_jax.data.preprocess import resize_and_crop
from symerge_jax.errors import BadInput

PACKS = Path(os.environ.get("SYMERGE_DATA", Path(__file__).parents[2] / "shared" / "data"))
EUROSAT_FOLDERS = [
    "AnnualCrop", "Forest", "HerbaceousVegetation", "Highway", "Industrial", "Pasture",
    "PermanentCrop", "Residential", "River", "SeaLake",
]  # fmt: skip


def pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encoded(image, kind="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind)
    return buffer.getvalue()


def save(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


@pytest.fixture
def data(tmp_path):
    return tmp_path / "data"


@pytest.fixture
def read(data, tmp_path):
    def read(task, part="test", **options):
        found = find_set(data, task, report=lambda line: None)
        return found, read_split(found, part, size=8, cache=tmp_path / "cache", **options)

    return read


def check(split, images, labels):
    np.testing.assert_array_equal(split.inputs, [resize_and_crop(image, 8) for image in images])
    np.testing.assert_array_equal(split.labels, labels)
    assert split.labels.dtype == np.int32


# --- packs and class folders --------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gtsrb", "GTSRB"])
def test_packs_are_found_under_the_sets_names(data, read, name):
    images = [pixels(9, 12, 3, seed=i) for i in range(4)]
    (data / name).mkdir(parents=True)
    np.savez(data / name / "test.npz", images=np.stack(images), labels=np.array([3, 0, 42, 0]))
    found, split = read("gtsrb")
    assert (found.form, found.folder, list(found.splits)) == ("project", data / name, ["test"])
    check(split, images, [3, 0, 42, 0])


def test_tangankes_name_is_found_and_others_are_not(data):
    for name in ("stanford-cars", "stanford_cars10"):
        (data / name).mkdir(parents=True)
        np.savez(data / name / "test.npz", images=pixels(2, 8, 8), labels=np.array([0, 1]))
    assert find_set(data, "cars").folder == data / "stanford-cars"
    (data / "mnist10").mkdir()
    with pytest.raises(BadInput, match=r"no data of mnist found; looked into mnist, MNIST for"):
        find_set(data, "mnist")


def test_a_pack_of_encoded_files_is_read_row_by_row(data, read):
    images = [pixels(8, 8 + i, 3, seed=i) for i in range(3)]
    files = [np.frombuffer(encoded(image), np.uint8) for image in images]
    (data / "eurosat").mkdir(parents=True)
    np.savez(
        data / "eurosat" / "test.npz",
        jpeg=np.concatenate(files),
        offsets=np.cumsum([0, *map(len, files)]),
        labels=np.array([9, 1, 0]),
    )
    check(read("eurosat")[1], images, [9, 1, 0])


def test_class_folders_get_the_benchmarks_labels(data, read):
    for split in ("train", "test"):
        for i, name in enumerate(["positive", "negative"]):
            save(data / "rendered-sst2" / split / name / "0.png", pixels(8, 8, 3, seed=i))
    found, split = read("rendered_sst2")
    assert found.names == ("negative", "positive")
    check(split, [pixels(8, 8, 3, seed=1), pixels(8, 8, 3, seed=0)], [0, 1])


def test_meta_json_tells_the_order_of_a_packs_labels(data, read):
    (data / "fer2013").mkdir(parents=True)
    names = ["angry", "disgust", "fear", "happy", "sad", "surprise", "neutral"]
    (data / "fer2013" / "meta.json").write_text(json.dumps({"classes": names}))
    images = [pixels(8, 8, seed=i) for i in range(7)]
    np.savez(data / "fer2013" / "test.npz", images=np.stack(images), labels=np.arange(7))
    found, split = read("fer2013")
    check(split, images, [0, 1, 2, 3, 5, 6, 4])
    assert found.names == ("angry", "disgust", "fear", "happy", "neutral", "sad", "surprise")
    kept = find_set(data, "fer2013", keep_order=True)
    np.testing.assert_array_equal(kept.labels("test"), np.arange(7))
    assert kept.names == tuple(names)


def test_packs_that_do_not_fit_are_refused(data, read):
    (data / "mnist").mkdir(parents=True)
    path = data / "mnist" / "test.npz"
    np.savez(path, images=pixels(3, 8, 8))
    with pytest.raises(BadInput, match="test.npz: has no `labels`"):
        read("mnist")
    for images in (pixels(4, 8, 8), pixels(3, 8, 8).astype(np.float32), pixels(3, 8)):
        np.savez(path, images=images, labels=np.arange(3))
        with pytest.raises(BadInput, match=r"expected `images` uint8 \[3,H,W\]"):
            read("mnist")
    np.savez(path, images=pixels(3, 8, 8), labels=np.array([0, 10, 2]))
    with pytest.raises(BadInput, match="label of test image 1 is 10, but mnist has 10 classes"):
        read("mnist")


@pytest.mark.skipif(not (PACKS / "eurosat").is_dir(), reason=f"no data packs in {PACKS}")
def test_real_packs_are_read_and_known_as_subsets(tmp_path):
    reader = find_set(PACKS, "eurosat", report=lambda line: None)
    split = read_split(reader, "test", size=64, cache=tmp_path, limit=50)
    assert split.inputs.shape == (50, 64, 64, 3)
    assert set(split.labels) <= set(range(10))
    assert differences(reader) == [
        "eurosat: expected 2,700 test images, found 1,000",
        "eurosat: expected 21,600 training images, found 2,000",
    ]


# --- parquet ------------------------------------------------------------------------------------


def write_parquet(path, images, labels, *, image="image", label="label", names=None, group=2):
    import pyarrow as pa
    import pyarrow.parquet as pq

    cells = [{"bytes": encoded(one), "path": None} for one in images]
    if image == "img_bytes":
        cells = [cell["bytes"] for cell in cells]
    table = pa.table({image: cells, label: labels})
    if names:
        features = {label: {"names": names, "_type": "ClassLabel"}}
        metadata = {"huggingface": json.dumps({"info": {"features": features}})}
        table = table.replace_schema_metadata(metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=group)


def test_shards_of_a_hub_snapshot_are_one_split(data, read):
    images = [pixels(9, 9, 3, seed=i) for i in range(7)]
    folder = data / "eurosat" / "data"
    write_parquet(folder / "test-00000-of-00002-0a1b.parquet", images[:5], [0, 1, 2, 3, 9])
    write_parquet(folder / "test-00001-of-00002-0a1b.parquet", images[5:], [4, 5])
    write_parquet(folder / "motion_blur-00000-of-00001.parquet", images[:1], [3])
    write_parquet(data / "eurosat" / ".cache" / "test-00000-of-00001.parquet", images, [0] * 7)
    found, split = read("eurosat")
    assert found.form == "parquet"
    assert found.names is None
    check(split, images, [0, 1, 2, 3, 9, 4, 5])
    check(read("eurosat", "motion_blur")[1], images[:1], [3])
    with pytest.raises(BadInput, match="eurosat has no split fog there, only motion_blur, test"):
        read("eurosat", "fog")


def test_class_names_come_from_the_schema_or_from_the_card(data, read):
    images = [pixels(8, 8, 3, seed=i) for i in range(3)]
    path = data / "eurosat" / "test-00000-of-00001.parquet"
    backwards = EUROSAT_FOLDERS[::-1]
    write_parquet(path, images, [0, 1, 9], names=backwards)
    found, split = read("eurosat")
    assert found.names == tuple(EUROSAT_FOLDERS)
    check(split, images, [9, 8, 0])
    write_parquet(path, images, [0, 1, 9])
    listed = "".join(f"        '{i}': {name}\n" for i, name in enumerate(EUROSAT[::-1]))
    (data / "eurosat" / "README.md").write_text(
        "---\ndataset_info:\n  features:\n  - name: label\n    dtype:\n      class_label:\n"
        f"        names:\n{listed.replace('        ', '          ')}---\n# Card\n"
    )
    found, split = read("eurosat")
    assert found.names == EUROSAT
    check(split, images, [9, 8, 0])


def test_the_hubs_conversion_and_its_columns_are_read(data, read):
    images = [pixels(48, 48, seed=i) for i in range(2)]
    write_parquet(
        data / "fer2013" / "default" / "test" / "0000.parquet", images, [3, 6],
        image="img_bytes", label="labels",
    )  # fmt: skip
    check(read("fer2013")[1], images, [3, 6])


def test_true_and_false_are_labels(data, read):
    images = [pixels(8, 8, 3, seed=i) for i in range(2)]
    write_parquet(data / "pcam" / "test-00000-of-00001.parquet", images, [True, False])
    check(read("pcam")[1], images, [1, 0])


def test_one_configuration_of_several_is_read(data, read):
    images = [pixels(8, 8, 3, seed=i) for i in range(2)]
    for i, config in enumerate(["full_numbers", "cropped_digits"]):
        path = data / "svhn" / config / "test-00000-of-00001.parquet"
        write_parquet(path, images[i:], [7] * (2 - i))
    assert len(read("svhn")[1].labels) == 1
    (data / "svhn" / "cropped_digits").rename(data / "svhn" / "digits")
    with pytest.raises(BadInput, match="the split test lies in several folders"):
        read("svhn")


def test_the_benchmarks_test_split_may_have_another_name(data, read):
    images = [pixels(8, 8, 3, seed=i) for i in range(2)]
    write_parquet(data / "food101" / "validation-00000-of-00001.parquet", images, [0, 100])
    found, split = read("food101")
    check(split, images, [0, 100])
    assert list(found.splits) == ["test"]


def test_damaged_tables_are_named(data, read):
    path = data / "dtd" / "test-00000-of-00001.parquet"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"PAR1 nothing PAR1")
    with pytest.raises(BadInput, match="test-00000-of-00001.parquet: cannot be read"):
        read("dtd")
    write_parquet(path, [pixels(8, 8)] * 2, [0, 1], image="picture")
    with pytest.raises(BadInput, match="expected a column of images .image, img, .*found picture"):
        read("dtd")
    import pyarrow as pa
    import pyarrow.parquet as pq

    cells = [{"bytes": None, "path": "x.jpg"}, {"bytes": b"no image", "path": None}]
    pq.write_table(pa.table({"image": cells, "label": [0, 1]}), path)
    with pytest.raises(BadInput, match="row 0 holds no image"):
        read("dtd")
    pq.write_table(pa.table({"image": cells[1:], "label": [0]}), path)
    with pytest.raises(BadInput, match="parquet: row 0: the image cannot be read"):
        read("dtd")


def test_rows_that_nobody_wants_are_not_decoded(data, read):
    images = [pixels(8, 8, 3, seed=i) for i in range(9)]
    path = data / "dtd" / "test-00000-of-00001.parquet"
    write_parquet(path, images, range(9), group=4)
    rows = clip_tables._parquet_images(path, "image", np.array([2, 8]))
    assert [where.rpartition(" ")[2] for _, where in rows] == ["2", "8"]
    split = read("dtd", limit=4)[1]
    kept = np.sort(np.random.default_rng(0).permutation(9)[:4])
    check(split, [images[i] for i in kept], kept)


# --- tensorflow-datasets ------------------------------------------------------------------------


def write_prepared(folder, splits, *, names, form="array_record"):
    """What `download_and_prepare` leaves, without TensorFlow, which it needs."""
    import tensorflow_datasets as tfds
    from array_record.python.array_record_module import ArrayRecordWriter
    from tensorflow_datasets.proto import tf_example_pb2

    folder.mkdir(parents=True)
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(None, None, 1)),
            "label": tfds.features.ClassLabel(names=names),
        }
    )
    features.save_config(str(folder))
    listed = []
    for split, (images, labels) in splits.items():
        path = folder / f"emnist-{split}.array_record-00000-of-00001"
        writer = ArrayRecordWriter(str(path), "group_size:1")
        for image, label in zip(images, labels, strict=True):
            example = tf_example_pb2.Example()
            example.features.feature["image"].bytes_list.value.append(encoded(image))
            example.features.feature["label"].int64_list.value.append(label)
            writer.write(example.SerializeToString())
        writer.close()
        listed.append(
            {
                "name": split,
                "shardLengths": [str(len(labels))],
                "numBytes": "1",
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
            }
        )
    info = {"name": "emnist", "version": "3.1.0", "fileFormat": form, "splits": listed}
    (folder / "dataset_info.json").write_text(json.dumps(info))


def test_prepared_sets_are_read_without_tensorflow(data, read):
    images = [pixels(28, 28, seed=i) for i in range(4)]
    digits = [str(i) for i in range(10)]
    splits = {"train": (images, [0, 1, 2, 3]), "test": (images[:2], [9, 8])}
    write_prepared(data / "emnist" / "letters" / "3.1.0", splits, names=[*"abc"])
    write_prepared(data / "emnist" / "digits" / "3.1.0", splits, names=digits)
    found, split = read("emnist")
    assert found.form == "tfds"
    assert found.folder == data / "emnist" / "digits" / "3.1.0"
    assert (found.splits["train"].count, found.splits["test"].count) == (4, 2)
    check(split, images[:2], [9, 8])
    check(read("emnist", "train", limit=9)[1], *kept_in_train(images))


def kept_in_train(images):
    kept = np.setdiff1d(np.arange(4), np.random.default_rng(0).permutation(4)[:1])
    return [images[i] for i in kept], kept


def test_a_set_prepared_as_tfrecord_is_refused_with_the_remedy(data, read):
    write_prepared(
        data / "svhn_cropped" / "3.0.0", {"test": ([pixels(8, 8)], [0])}, names=[*"0123456789"],
        form="tfrecord",
    )  # fmt: skip
    with pytest.raises(BadInput, match='prepare it again with .*file_format="array_record"'):
        read("svhn")


# --- the layouts of the authors -----------------------------------------------------------------


@pytest.mark.parametrize("train", ["Training", "Final_Training/Images"])
@pytest.mark.parametrize("inner", ["", "GTSRB"])
def test_the_files_of_the_traffic_sign_benchmark(data, read, train, inner):
    base = data / "gtsrb" / inner
    images = [pixels(8, 9, 3, seed=i) for i in range(3)]
    for i in range(3):
        save(base / train / f"{20 * i:05}" / "00000_00000.ppm", images[i])
        save(base / "Final_Test" / "Images" / f"{i:05}.ppm", images[i])
    with open(data / "gtsrb" / "GT-final_test.csv", "w", newline="") as file:
        table = csv.writer(file, delimiter=";")
        table.writerow(["Filename", "Width", "Height", "ClassId"])
        table.writerows([[f"{i:05}.ppm", 9, 8, label] for i, label in enumerate([42, 0, 7])])
    found, split = read("gtsrb")
    assert found.form == "raw"
    check(split, images, [42, 0, 7])
    np.testing.assert_array_equal(found.labels("train"), [0, 20, 40])


def test_the_table_of_the_expression_challenge(data, read):
    images = [pixels(48, 48, seed=i) for i in range(4)]
    usages = ["PublicTest", "Training", "PrivateTest", "Training"]
    (data / "FER2013").mkdir(parents=True)
    with open(data / "FER2013" / "fer2013.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["emotion", "pixels", "Usage"])
        for image, label, usage in zip(images, [4, 6, 5, 0], usages, strict=True):
            table.writerow([label, " ".join(map(str, image.reshape(-1))), usage])
    found, split = read("fer2013")
    assert found.splits["train"].count == 2
    check(split, [images[0], images[2]], [5, 6])  # sad and surprise, alphabetically
    np.testing.assert_array_equal(found.labels("train"), [4, 0])


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_mnists_file_format(data, read, suffix):
    images = pixels(3, 28, 28)

    def write(name, axes, content):
        header = bytes([0, 0, 8, len(axes)]) + b"".join(n.to_bytes(4, "big") for n in axes)
        whole = header + content.tobytes()
        path = data / "emnist" / "EMNIST" / "raw" / (name + suffix)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(whole) if suffix else whole)

    write("emnist-digits-test-images-idx3-ubyte", (3, 28, 28), images)
    write("emnist-digits-test-labels-idx1-ubyte", (3,), np.array([9, 0, 4], np.uint8))
    write("emnist-letters-test-images-idx3-ubyte", (3, 28, 28), images)
    found, split = read("emnist")
    assert found.form == "raw"
    check(split, images, [9, 0, 4])
    write("emnist-digits-test-images-idx3-ubyte", (4, 28, 28), images)
    with pytest.raises(BadInput, match="images-idx3-ubyte.*: cannot be read"):
        read("emnist", limit=2)


def test_rendered_sentences_lie_one_folder_deeper(data, read):
    base = data / "RenderedSST2" / "rendered-sst2"
    for split in ("train", "valid", "test"):
        for i, name in enumerate(["negative", "positive"]):
            save(base / split / name / "0.png", pixels(8, 8, 3, seed=i))
    found, split = read("rendered_sst2")
    assert found.form == "raw"
    check(split, [pixels(8, 8, 3, seed=i) for i in range(2)], [0, 1])


# --- parts --------------------------------------------------------------------------------------


def counted(key, **counts):
    """A reader of a set whose splits have so many images, of two classes."""
    splits = {
        name: clip_data.Rows(n, lambda n=n: np.arange(n) % 2, lambda rows: iter(()), ())
        for name, n in counts.items()
    }
    return clip_data.Reader(SETS[key], "raw", Path("x"), None, splits, None)


@pytest.mark.parametrize(
    ("count", "held_out"), [(20, 2), (5, 1), (49_999, 4_999), (200_000, 5_000)]
)
def test_validation_is_a_tenth_of_train_and_at_most_five_thousand(count, held_out):
    reader = counted("pcam", train=count, validation=7, test=3)
    (split, train), (same, validation) = (part_rows(reader, p) for p in ("train", "validation"))
    assert split == same == "train"
    assert len(validation) == held_out
    np.testing.assert_array_equal(np.sort([*train, *validation]), np.arange(count))
    again = part_rows(reader, "validation")[1]
    np.testing.assert_array_equal(again, validation)


def test_eurosat_brings_its_own_validation():
    reader = counted("eurosat", train=50, validation=7, test=3)
    assert part_rows(reader, "validation")[0] == "validation"
    assert len(part_rows(reader, "train")[1]) == 50
    assert len(part_rows(counted("eurosat", train=50, test=3), "train")[1]) == 45


def test_counts_are_compared_with_the_table():
    whole = {"train": 6_920, "test": 1_821}
    assert differences(counted("rendered_sst2", **whole)) == []
    assert differences(counted("rendered_sst2", **whole | {"test": 1_820})) == [
        "rendered_sst2: expected 1,821 test images, found 1,820"
    ]
    assert differences(counted("sun397", train=19_850, test=19_887)) == [
        "sun397: expected 397 classes, found 2"
    ]
    assert differences(counted("sun397", test=7))[1] == (
        "sun397: expected 19,850 or 19,887 test images, found 7"
    )


def test_forms_are_tried_in_their_order(data):
    write_parquet(data / "dtd" / "test-00000-of-00001.parquet", [pixels(8, 8)], [0])
    lines = []
    assert find_set(data, "dtd", report=lines.append).form == "parquet"
    np.savez(data / "dtd" / "test.npz", images=pixels(2, 8, 8), labels=np.array([0, 1]))
    assert find_set(data, "dtd", report=lines.append).form == "project"
    assert lines == [
        f"dtd: {data / 'dtd'} (parquet: 1 test)",
        f"dtd: {data / 'dtd'} (project: 2 test)",
    ]


def test_decoded_images_are_found_again_until_the_files_change(data, read, tmp_path):
    images = [pixels(8, 8, 3, seed=i) for i in range(3)]
    path = data / "dtd" / "test-00000-of-00001.parquet"
    write_parquet(path, images, [0, 1, 2])

    def entries():
        return len(list((tmp_path / "cache").rglob("*.npy")))

    read("dtd")
    read("dtd")
    assert entries() == 1
    write_parquet(path, images[::-1], [0, 1, 2])
    check(read("dtd")[1], images[::-1], [0, 1, 2])
    assert entries() == 2
