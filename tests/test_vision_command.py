"""The command `python -m experiments.vision`: what it refuses, and what a run leaves behind."""

import csv
import errno
import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from experiments import experts, records, scene, vision, vision_run
from experiments.options import keep_programs
from experiments.tasks import images
from experiments.tiny import base as tiny
from symerge_jax.cli.errors import run
from symerge_jax.errors import BadInput

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def separate(monkeypatch):
    """What is set for the whole process is not set for the other tests."""
    jax.devices()  # tests share the process's devices
    monkeypatch.setattr(scene, "keep_programs", lambda folder: None)


@pytest.fixture
def out(tmp_path):
    return tmp_path / "runs"


@pytest.fixture
def data(tmp_path):
    """Two tasks of a person's own: a pack, and class folders."""
    folder = tmp_path / "data"
    rng = np.random.default_rng(0)
    (folder / "packed").mkdir(parents=True)
    for split, n in (("train", 20), ("test", 6)):
        pixels = rng.integers(0, 256, (n, 8, 8, 3), dtype=np.uint8)
        np.savez(folder / "packed" / f"{split}.npz", images=pixels, labels=np.arange(n) % 3)
        for name in ("cat", "dog"):
            (folder / "files" / split / name).mkdir(parents=True)
            for i in range(n // 2):
                Image.fromarray(pixels[i]).save(folder / "files" / split / name / f"{i}.png")
    return folder


def command(*words):
    """Runs the command in this process; returns its exit code."""
    return run(vision.main, vision.Settings, [str(w) for w in words], prog="vision")


def left_behind(folder):
    """All but whole files of the cache."""
    found = {p for p in folder.rglob("*") if not p.is_dir()}
    return {p for p in found if p.parent.parent.name != "cache" or p.suffix != ".safetensors"}


def assert_refused(capsys, out, *words, says, early=True):
    """Exit code 2, one line that says why, and nothing half-written."""
    code = command("--out", out, *words)
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert code == 2, captured.err
    assert lines[-1].startswith("symerge: error: ")
    assert says in lines[-1]
    assert len(lines) == 1 or not early
    assert "Traceback" not in captured.err
    assert captured.out == ""
    assert left_behind(out) == set()
    assert not list(out.glob("vision/*")), "a run's folder without a run"
    return lines


# --- inputs -------------------------------------------------------------------------------------


def test_a_missing_data_folder(capsys, out, data):
    says = f"{data}s: does not exist; {data.parent} holds data; did you mean {data}"
    assert_refused(capsys, out, "--data", f"{data}s", says=says)


def test_a_data_folder_without_tasks(capsys, out, tmp_path):
    (tmp_path / "data" / "notes").mkdir(parents=True)
    assert_refused(capsys, out, "--data", tmp_path / "data", says="no task found; expected folders")


def test_a_data_folder_with_one_task(capsys, out, data):
    shutil.rmtree(data / "packed")
    says = "merging needs at least two tasks, found only files"
    assert_refused(capsys, out, "--data", data, says=says)


def test_an_unknown_task_of_a_data_folder(capsys, out, data):
    words = ("--data", data, "--tasks", "files", "pact")
    says = "unknown task 'pact' (did you mean packed?); known: files, packed"
    assert_refused(capsys, out, *words, says=says)


def test_an_empty_class_folder(capsys, out, data):
    for file in (data / "files" / "train" / "dog").iterdir():
        file.unlink()
    assert_refused(capsys, out, "--data", data, says=f"{data}/files/train/dog: expected images")


@pytest.mark.parametrize("keep", [0, 30, 100])
def test_a_truncated_image(capsys, out, data, keep):
    path = data / "files" / "train" / "cat" / "3.png"
    path.write_bytes(path.read_bytes()[:keep])
    assert_refused(capsys, out, "--data", data, says=f"{path}: the image cannot be read")


def test_a_truncated_pack(capsys, out, data):
    path = data / "packed" / "train.npz"
    path.write_bytes(path.read_bytes()[:200])
    assert_refused(capsys, out, "--data", data, says=f"{path}: is damaged")


def test_a_label_outside_the_classes(capsys, out, data):
    (data / "packed" / "meta.json").write_text('{"classes": ["a", "b"]}')
    says = "packed/test.npz: the label of row 2 is 2, but there are 2 classes"
    assert_refused(capsys, out, "--data", data, says=says)


@pytest.mark.parametrize(
    ("labels", "says"),
    [({}, "have no labels"), ({"labels": np.ones(20, np.int32)}, "fewer than two classes")],
)
def test_labels_that_train_no_expert(capsys, out, data, labels, says):
    path = data / "packed" / "train.npz"
    np.savez(path, images=np.load(path)["images"], **labels)
    assert_refused(capsys, out, "--data", data, says=says)


# --- options ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--tasks digits", "at least two experts, got --tasks digits"),
        ("--tasks digits digits", "--tasks names one thing twice"),
        ("--tasks digits ruens", "unknown task 'ruens' (did you mean runes?)"),
        ("--task-count 9", "9"),
        ("--methods symrge", "unknown method 'symrge' (did you mean symerge?)"),
        ("--methods ties ties", "--methods names one thing twice"),
        ("--metods symerge", "unknown option --metods (did you mean --methods?)"),
        ("--iterations 0", "--iterations must be at least 1, got 0"),
        ("--iterations many", "many"),
        ("--limit -3", "--limit must be at least 1, got -3"),
        ("--limit 1 --data .", "--limit must be at least 2 with --data"),
        ("--seeds -1", "--seeds must be numbers from 0 upwards"),
        ("--seeds 1 1", "--seeds names one thing twice"),
        ("--devices 1000", "--devices 1000: this machine shows"),
        ("--devices 0", "--devices must be at least 1"),
        ("--parallel date", "date"),
        ("--dtype float16", "float16"),
        ("--model ViT-B-32", "--model ViT-B-32 needs --checkpoints DIR"),
        ("--model ViT-B-33", "got ViT-B-33 (did you mean ViT-B-32?)"),
        ("--checkpoints somewhere", "--checkpoints needs --model"),
    ],
)
@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_a_bad_option(capsys, out, words, says, dry):
    assert_refused(capsys, out, *words.split(), *dry, says=says)
    assert not out.exists()


@pytest.mark.parametrize("option", ["--out", "--cache"])
def test_a_folder_beneath_a_file(capsys, out, data, tmp_path, option, monkeypatch):
    monkeypatch.setattr(scene, "keep_programs", keep_programs)
    file = tmp_path / "file"
    file.write_text("not a folder")
    words = ("--data", data, option, file / "below")
    assert_refused(capsys, out, *words, says=f"{file} is a file where a folder is needed")
    assert file.read_text() == "not a folder"


def test_a_dry_run_writes_nothing(capsys, out, data):
    assert command("--out", out, "--data", data, "--methods", "ties", "--dry-run") == 0
    text = capsys.readouterr().out
    assert "files, packed" in text
    assert "individual, ties" in text
    assert command("--out", out, "--tasks", "runes", "shapes", "--dry-run") == 0
    assert "runes, shapes" in capsys.readouterr().out
    assert not out.exists()


# --- the base, the cache, the disk --------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("base.safetensors", lambda content: content[:-100]),
        ("base.safetensors", lambda content: content[:-1] + bytes([content[-1] ^ 1])),
        ("base.json", lambda content: b"{}"),
        ("base.json", lambda content: content[:500]),
    ],
)
def test_a_damaged_base(capsys, out, tmp_path, monkeypatch, name, damage):
    folder = tmp_path / "base"
    folder.mkdir()
    for file in ("base.json", "base.safetensors"):
        shutil.copy(tiny.HOME / file, folder / file)
    (folder / name).write_bytes(damage((folder / name).read_bytes()))
    monkeypatch.setattr(tiny, "load", functools.partial(tiny.load, folder))
    assert_refused(capsys, out, says="restore base.safetensors and base.json")


WORDS = ("--tasks", "shapes", "runes", "--methods", "weight_average", "task_arithmetic")


@pytest.fixture
def small_world(monkeypatch):
    """Few pictures, and experts that are the base with noise."""
    monkeypatch.setattr(images, "TRAIN", 40)
    monkeypatch.setattr(images, "TEST", 16)

    def noisy(model, tasks, recipe, seeds, **_):
        rng = np.random.default_rng(0)

        def moved(x):
            return x + rng.normal(scale=0.01, size=x.shape).astype(x.dtype)

        heads = [task.head for task in tasks]
        made = [{"params": jax.tree.map(moved, model.pretrained), "head": head} for head in heads]
        return {seed: experts._together(model, made, heads) for seed in seeds}

    monkeypatch.setattr(vision_run, "make_experts", noisy)


def fill_the_disk(monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)


def test_a_full_disk_from_the_start(capsys, out, small_world, monkeypatch):
    fill_the_disk(monkeypatch)
    assert_refused(capsys, out, *WORDS, says="no space is left")


def test_a_full_disk_at_the_end(capsys, out, small_world, monkeypatch):
    monkeypatch.setattr(vision, "draw", lambda *_: fill_the_disk(monkeypatch))
    lines = assert_refused(capsys, out, *WORDS, says="no space is left", early=False)
    assert sum(line.startswith("symerge: error") for line in lines) == 1


def test_a_damaged_cache_file_is_made_again(capsys, out, small_world, monkeypatch):
    def stop(*_, **__):
        raise BadInput("far enough")

    monkeypatch.setattr(vision_run, "make_experts", stop)
    assert command("--out", out, *WORDS) == 2
    assert "damaged" not in capsys.readouterr().err
    files = sorted((out / "cache" / "pictures").iterdir())
    files[0].write_bytes(files[0].read_bytes()[:-5])
    assert command("--out", out, *WORDS) == 2
    lines = capsys.readouterr().err.splitlines()
    (line,) = (line for line in lines if "damaged" in line)
    assert line.startswith(f"{files[0]}: damaged cache file")
    assert line.endswith("making it again.")
    assert command("--out", out, *WORDS) == 2
    assert "damaged" not in capsys.readouterr().err


def test_experts_of_another_precision_are_not_reused(out, small_world, monkeypatch):
    names = []

    def stop(model, *_, **__):
        names.append(model.name)
        raise BadInput("far enough")

    monkeypatch.setattr(vision_run, "make_experts", stop)
    for dtype in ("float32", "bfloat16"):
        command("--out", out, *WORDS, "--dtype", dtype)
    assert len(set(names)) == 2


def assert_is_a_record(path, *, methods, tasks, metrics, seeds=(0,)):
    """The contract of `record.json`, and `table.csv` beside it."""
    record = records.read(path)
    assert (record["format"], record["experiment"]) == (1, "vision")
    assert record["settings"]["tasks"] == tasks
    assert {"jax", "symerge_jax", "device_kind", "command"} <= set(record["environment"])
    assert all(seconds >= 0 for seconds in record["phases_s"].values())
    found = {(r["method"], r["seed"], r["task"], r["metric"]) for r in record["results"]}
    wanted = {(m, s, t, x) for m in methods for s in seeds for t in tasks for x in metrics}
    assert found == wanted
    assert all(
        set(r) == {"method", "seed", "task", "metric", "value", "n"} for r in record["results"]
    )
    assert list(record["summary"]) == methods
    for summary in record["summary"].values():
        assert set(summary) == {"mean", "std", "normalised", "metrics"}
        assert set(summary["metrics"]) == set(metrics)
        assert 0 <= summary["mean"] <= 100
        assert (summary["std"] is None) == (len(seeds) == 1)
    assert record["summary"]["individual"]["normalised"] == pytest.approx(100)
    rows = list(csv.reader((path.parent / "table.csv").read_text("utf-8").splitlines()))
    columns = [f"{task}:{metric}" for task in tasks for metric in metrics]
    assert rows[0] == ["method", *columns, "mean", "std", "normalised"]
    assert [row[0] for row in rows[1:]] == methods
    return record


def is_png(path):
    with Image.open(path) as image:
        image.load()
        return image.format == "PNG" and min(image.size) > 100


def test_a_run_without_adaptation(capsys, out, small_world):
    assert command("--out", out, *WORDS, "--seeds", "3", "5") == 0
    path = Path(capsys.readouterr().out.splitlines()[-1])
    assert path.is_absolute()
    assert path.is_relative_to(out / "vision")
    record = assert_is_a_record(
        path,
        methods=["individual", "weight_average", "task_arithmetic"],
        tasks=["shapes", "runes"],
        metrics=["accuracy", "ece"],
        seeds=(3, 5),
    )
    assert record["setting"] == "tiny"
    assert {r["n"] for r in record["results"]} == {16}
    assert sum("chosen on validation images" in note for note in record["notes"]) == 2
    assert is_png(path.with_name("accuracy.png"))


# --- from end to end ----------------------------------------------------------------------------


def process(*words):
    """Runs the command as a person does; returns the record's path and what stderr said."""
    done = subprocess.run(
        [sys.executable, "-m", "experiments.vision", *map(str, words)],
        cwd=ROOT, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.splitlines()[-1]), done.stderr


@pytest.mark.slow
def test_a_quick_run_from_end_to_end(tmp_path):
    words = ("--quick", "--tasks", "shapes", "runes", "--methods", "ties", "symerge")
    words += ("--iterations", "3", "--limit", "20", "--out", tmp_path)
    path, said = process(*words)
    record = assert_is_a_record(
        path,
        methods=["individual", "ties", "symerge"],
        tasks=["shapes", "runes"],
        metrics=["accuracy", "ece"],
    )
    assert path.parents[2] == tmp_path
    assert record["settings"]["iterations"] == 3
    for name in ("accuracy", "coefficients", "learning_curves"):
        assert is_png(path.with_name(f"{name}.png"))
    stored = np.load(path.with_name("coefficients.npz"))
    assert list(stored["tasks"]) == ["shapes", "runes"]
    assert stored["symerge"].shape == (len(stored["tensors"]), 2)
    assert "symerge, seed 0: 6 steps" in said
    assert "Warning" not in said

    (kept,) = (tmp_path / "cache" / "adapted").iterdir()
    size = kept.stat().st_size
    kept.write_bytes(kept.read_bytes()[: size // 2])
    mended, said = process(*words, "--resume")
    assert mended != path
    assert records.read(mended)["results"] == record["results"]
    assert f"{kept}: damaged cache file" in said
    assert kept.stat().st_size == size
    assert "expert" not in said.replace("experts", "")  # only what was damaged ran again


@pytest.mark.slow
def test_own_images_from_end_to_end(tmp_path, data):
    words = ("--quick", "--data", data, "--methods", "symerge", "--iterations", "2")
    path, _ = process(*words, "--out", tmp_path / "runs", "--cache", tmp_path / "kept")
    record = assert_is_a_record(
        path,
        methods=["individual", "symerge"],
        tasks=["files", "packed"],
        metrics=["accuracy", "ece", "held_out_accuracy"],
    )
    assert record["setting"] == "images"
    held_out = {r["n"] for r in record["results"] if r["metric"] == "held_out_accuracy"}
    assert held_out == {3}
    assert not (tmp_path / "runs" / "cache").exists()
