"""The command `python -m experiments.finetune`: what it leaves behind, and what it refuses."""

import json
import os
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy

from experiments import finetune, records
from experiments.finetune import Settings, chosen_recipe
from experiments.tiny import base as tiny
from symerge_jax.checkpoints import export
from symerge_jax.checkpoints.clip import split_qkv, to_hugging_face
from symerge_jax.checkpoints.heads import read_head
from symerge_jax.checkpoints.open import load_clip
from symerge_jax.cli.errors import run
from symerge_jax.cli.progress import Bars
from symerge_jax.models.clip import PRESETS, initial_params

PACKS = Path(os.environ.get("SYMERGE_DATA", Path(__file__).parents[1].parent / "shared" / "data"))


@pytest.fixture(autouse=True)
def separate(monkeypatch):
    """What is set for the whole process is not set for the other tests."""
    monkeypatch.setattr(finetune, "keep_programs", lambda folder: None)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A task of two classes, bright above and bright below, 40 images each for train and test."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    (folder / "halves").mkdir()
    for split in ("train", "test"):
        labels = np.arange(40) % 2
        images = rng.integers(0, 120, (40, 32, 32, 3))
        images[labels == 1, :16] += 100
        np.savez(folder / "halves" / f"{split}.npz", images=images.astype(np.uint8), labels=labels)
    return folder


def command(data, out, *words, task="halves", model="tiny-64x3"):
    words = ("--model", model, "--task", task, "--data", data, "--out", out, *words)
    return run(finetune.main, Settings, [str(word) for word in words], prog="finetune")


def refused(capsys, *args, **options):
    """The one line that says why."""
    assert command(*args, **options) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("symerge: error: ")
    return line


def expert(out):
    return out / "experts" / "tiny-64x3" / "halves"


def weights(out, name="open_clip_model.safetensors"):
    return safetensors.numpy.load_file(expert(out) / name)


def record(out):
    (path,) = out.glob("finetune/*/record.json")
    return records.read(path)


def stopping(monkeypatch, error):
    """Ends the run after its first chunk of steps."""

    def follow(self, *args):
        def on_chunk(losses):
            raise error

        return on_chunk

    monkeypatch.setattr(Bars, "follow", follow)


def test_a_run_leaves_an_expert_and_its_record(capsys, tmp_path, data):
    assert command(data, tmp_path, "--steps", 6, "--batch-size", 8, "--learning-rate", 0.01) == 0
    captured = capsys.readouterr()
    found = record(tmp_path)
    assert captured.out.splitlines()[-1].endswith("record.json")
    assert [r["method"] for r in found["results"]] == ["pretrained", "individual"]
    assert all(r["value"] > 90 and r["n"] == 40 for r in found["results"])
    assert found["settings"]["constants"]["steps"] == 6
    assert "linear probe" in found["settings"]["head_from"]
    (losses,) = tmp_path.glob("finetune/*/losses.csv")
    assert len(losses.read_text().splitlines()) == 7

    loaded = load_clip(expert(tmp_path))
    before = tiny.load().params["vision"]
    assert loaded.vision.heads == tiny.load().config.vision.heads
    changed = jax.tree.map(lambda a, b: not np.array_equal(a, b), loaded.params["vision"], before)
    assert all(jax.tree.leaves(changed))
    head = read_head(expert(tmp_path) / "heads" / "halves.safetensors")
    assert head.classes == ("0", "1")
    card = json.loads((expert(tmp_path) / "merge_card.json").read_text())
    assert card["recipe"]["name"] == "task_arithmetic"
    assert card["scores"]["accuracy"]["individual"] == found["results"][1]["value"]
    assert not list(tmp_path.glob("cache/training/*"))

    line = refused(capsys, data, tmp_path, "--steps", 6)
    assert "is there already; choose another name or add --overwrite" in line
    shutil.copy(expert(tmp_path) / "heads" / "halves.safetensors", tmp_path / "head.safetensors")
    again = ("--steps", 2, "--batch-size", 8, "--head", tmp_path / "head.safetensors")
    assert command(data, tmp_path, "--overwrite", *again) == 0
    now = load_clip(expert(tmp_path)).params["vision"]["projection"]["kernel"]
    assert not np.array_equal(now, loaded.params["vision"]["projection"]["kernel"])
    assert len(list(tmp_path.glob("finetune/*/record.json"))) == 2


def test_an_interrupted_run_goes_on_with_the_same_bits(monkeypatch, capsys, tmp_path, data):
    words = ("--steps", 12, "--batch-size", 8, "--learning-rate", 0.001)
    assert command(data, tmp_path / "whole", *words) == 0
    with monkeypatch.context() as patch:
        stopping(patch, KeyboardInterrupt)
        assert command(data, tmp_path / "cut", *words) == 130
    assert "interrupted" in capsys.readouterr().err
    assert not expert(tmp_path / "cut").exists()
    assert not list(tmp_path.glob("cut/finetune/*"))

    other = ("--steps", 12, "--batch-size", 8, "--learning-rate", 0.002, "--resume")
    assert command(data, tmp_path / "cut", *other) == 2
    assert "holds the state of a run with another recipe" in capsys.readouterr().err

    seen = []
    real = finetune.finetune_batches
    monkeypatch.setattr(
        finetune,
        "finetune_batches",
        lambda *a, on_chunk, **k: real(*a, on_chunk=lambda x: seen.append(len(x)), **k),
    )
    assert command(data, tmp_path / "cut", *words, "--resume") == 0
    assert seen == [8, 4]  # what was saved, and the rest
    ours, theirs = weights(tmp_path / "cut"), weights(tmp_path / "whole")
    for name in theirs:
        np.testing.assert_array_equal(ours[name], theirs[name])
    assert record(tmp_path / "cut")["results"] == record(tmp_path / "whole")["results"]


def test_an_expert_has_the_layout_of_its_pretrained_model(tmp_path, data):
    """A Hugging Face folder, fine-tuned with the projection frozen."""
    config = PRESETS["tiny-64x3"].vision
    tower = split_qkv(jax.tree.map(np.asarray, initial_params(config, jax.random.key(0))))
    folder = tmp_path / "clip"
    folder.mkdir()
    tensors = to_hugging_face({"vision": tower})
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    export.write_config(folder, "hugging_face", config, None)
    words = ("--pretrained", folder, "--recipe", "fusion-bench", "--steps", 3, "--batch-size", 8)
    assert command(data, tmp_path, *words, "--dtype", "bfloat16", "--limit", 20) == 0
    found = weights(tmp_path, "model.safetensors")
    assert set(found) == set(tensors)
    for name, tensor in tensors.items():
        assert np.array_equal(found[name], tensor) == (name == "visual_projection.weight"), name
    assert record(tmp_path)["setting"] == "checkpoints"
    assert {r["n"] for r in record(tmp_path)["results"]} == {20}


@pytest.mark.skipif(not (PACKS / "eurosat").is_dir(), reason="needs the data packs (SYMERGE_DATA)")
def test_sets_of_the_benchmark_are_cut_from_their_stored_images(capsys, tmp_path):
    words = ("--steps", 2, "--batch-size", 8, "--limit", 30)
    assert command(PACKS, tmp_path, *words, task="eurosat") == 0
    assert "30 training and 30 test images, 10 classes" in capsys.readouterr().err
    head = read_head(
        tmp_path / "experts" / "tiny-64x3" / "eurosat" / "heads" / "eurosat.safetensors"
    )
    assert len(head.classes) == 10


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--steps", 0), "--steps must be at least 1, got 0"),
        (("--steps", 5, "--epochs", 2), "--epochs and --steps both say how long"),
        (("--learning-rate", 3), "--learning-rate must be between 0 and 1, got 3"),
        (("--recipe", "fusion"), "unknown recipe 'fusion' (did you mean fusion_bench?)"),
        (("--limit", 1), "--limit must be at least 2"),
        (("--seed", -1), "--seed must be a number from 0 upwards"),
    ],
)
def test_options_that_cannot_be_are_refused_in_one_line(capsys, tmp_path, data, words, says):
    assert says in refused(capsys, data, tmp_path / "out", *words)
    assert not (tmp_path / "out").exists()


def test_models_and_tasks_that_are_not_there_are_refused(capsys, tmp_path, data):
    assert "needs --pretrained" in refused(capsys, data, tmp_path, model="ViT-B-32")
    assert "did you mean tiny-64x3?" in refused(capsys, data, tmp_path, model="tiny-64")
    assert "did you mean halves?" in refused(capsys, data, tmp_path, task="halfs")
    assert "must be a name, not a path" in refused(capsys, data, tmp_path, task="../halves")


def test_a_head_of_another_shape_is_refused(capsys, tmp_path, data):
    path = tmp_path / "head.safetensors"
    head = {"weight": np.ones((3, 64), np.float32), "bias": np.zeros(3, np.float32)}
    safetensors.numpy.save_file(head, path)
    says = "its weight is [3, 64], expected [2, 64]"
    assert says in refused(capsys, data, tmp_path, "--head", path)


def recipe(*words, images=21_600):
    words = {"task": "eurosat", "data": tiny.HOME} | dict(zip(words[::2], words[1::2], strict=True))
    return chosen_recipe(Settings(**words), images)


def test_epochs_and_batches_are_those_of_the_set_and_the_model():
    base = recipe()
    assert (base.steps, base.batch_size, base.accumulate) == (12 * 169, 128, 1)
    large = recipe("model", "ViT-L-14")
    assert (large.steps, large.batch_size, large.accumulate) == (12 * 338 // 2, 64, 2)
    assert large.clip == 0.5
    assert recipe("epochs", 3).steps == 3 * 169
    assert recipe("task", "mine", images=1000).steps == 250 * 8 + 48  # 256 passes of 8 batches
    assert recipe("steps", 7, "learning_rate", 1e-6).learning_rate == 1e-6
    bench = recipe("recipe", "fusion_bench")
    assert (bench.steps, bench.batch_size) == (4000, 32)
    assert recipe("recipe", "fusion_bench", "epochs", 2, "batch_size", 128).steps == 2 * 169
