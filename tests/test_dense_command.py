"""`python -m experiments.dense`: a small run in each setting, and what it refuses."""

import shutil

import jax
import numpy as np
import pytest
import tiny_scenes

from experiments import dense, dense_start, records, scene
from experiments.tasks import rooms as tasks
from experiments.tiny import rooms, rooms_base
from symerge_jax.checkpoints.decoders import read_decoders
from symerge_jax.checkpoints.open import open_checkpoint
from symerge_jax.checkpoints.resnet import load_resnet
from symerge_jax.cli.errors import run
from symerge_jax.models.resnet import initial_variables
from symerge_jax.recipes import Recipe

ROWS = ("individual", "task_arithmetic", "symerge")
MAIN = {"segmentation": "miou", "depth": "depth_abs_error", "normal": "normal_mean_angle"}


@pytest.fixture(autouse=True)
def separate(monkeypatch):
    """What is set for the whole process is not set for the other tests."""
    jax.devices()  # tests share the process's devices
    monkeypatch.setattr(scene, "keep_programs", lambda folder: None)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A ResNet with its three experts, and scenes of them in two splits."""
    folder = tmp_path_factory.mktemp("dense")
    found = tiny_scenes.made(folder)
    models, data = folder / "models", folder / "data"
    shutil.copytree(found.base, models / "resnet50")
    for task, path in found.experts.items():
        name = task.removesuffix("s")
        shutil.copytree(path, models / name)
        head = models / name / "heads" / f"{task}.safetensors"
        head.rename(head.with_stem(name))
    shutil.copytree(found.rooms / "val", data / "test")
    for i in range(4):  # a tenth of them is for validation: as many as are tested, for one program
        shutil.copytree(found.rooms / "val", data / "train" / str(i))
    for scene_file in sorted((data / "train").glob("*/*.npz")):
        scene_file.rename(data / "train" / f"{scene_file.parent.name}{scene_file.name}")
    for i in range(4):
        (data / "train" / str(i)).rmdir()
    return models, data


def command(*words):
    """Runs the command in this process; returns its exit code."""
    words = [*map(str, words), "--devices", "1"]
    return run(dense.main, dense.Settings, words, prog="dense")


def refused(capsys, *words):
    """The one line with which a command gives up."""
    assert command(*words) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("symerge: error: ")
    assert not any("Traceback" in line for line in lines)
    return lines[-1]


def values(record, method):
    rows = [r for r in record["results"] if r["method"] == method]
    return {(r["task"], r["metric"]): r["value"] for r in rows}


@pytest.mark.slow
def test_experts_that_are_read_give_a_record_pictures_and_a_model(made, tmp_path, capsys):
    models, data = made
    status = command(
        "--model", "resnet50", "--checkpoints", models, "--data", data, "--out", tmp_path,
        "--iterations", 1, "--limit", 2, "--methods", *ROWS[1:],
    )  # fmt: skip
    out = capsys.readouterr().out
    assert status == 0
    record = records.read(out.splitlines()[-1])
    assert (record["setting"], record["experiment"]) == ("checkpoints", "dense")
    assert set(records.methods(record)) == set(ROWS)
    for method in ROWS:
        found = values(record, method)
        assert {metric for _, metric in found} == set(dense.METRICS)
        assert np.isfinite(list(found.values())).all()
        assert record["summary"][method]["mean"] is None
    assert record["summary"]["individual"]["normalised"] == pytest.approx(100)
    assert record["settings"]["constants"]["batch_norm"] == "recalibrate"
    folder = next((tmp_path / "dense").iterdir())
    for name in ("metrics", *tasks.TASKS):
        assert (folder / f"{name}.png").stat().st_size > 5000
    assert set(read_decoders(folder / "model")) == set(tasks.TASKS)
    trunk = load_resnet(folder / "model").variables
    start = load_resnet(models / "resnet50").variables
    assert jax.tree.structure(trunk) == jax.tree.structure(start)
    assert open_checkpoint(folder / "model").path == folder / "model"
    assert (folder / "model" / "reference.npz").is_file()


@pytest.mark.slow
def test_the_embedded_world_trains_experts_from_a_small_trunk(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(rooms, "TRAIN", 12)
    monkeypatch.setattr(rooms, "TEST", 3)
    monkeypatch.setitem(dense_start.DECODERS, rooms_base.MODEL, tiny_scenes.HEAD)
    start = initial_variables(tiny_scenes.SIZES, jax.random.key(0))
    base = rooms_base.Base(tiny_scenes.SIZES, start, 0.0, "knows nothing")
    monkeypatch.setattr(rooms_base, "load", lambda cache, **more: base)
    short = Recipe(steps=2, batch_size=4, learning_rate=1e-3, head_rate=1e-3, optimiser="adam")
    constants = dense_start.GENERATED._replace(recipe=short, iterations=2, batch_size=2)
    monkeypatch.setattr(dense_start, "GENERATED", constants)
    words = ("--out", tmp_path, "--methods", "symerge", "--tasks", "depth", "segmentation")
    assert command(*words) == 0
    record = records.read(capsys.readouterr().out.splitlines()[-1])
    assert record["setting"] == "tiny"
    main = {r["task"]: r["metric"] for r in reversed(record["results"])}
    assert main == {task: MAIN[task] for task in ("depth", "segmentation")}
    assert {"pre-training", "experts", "predictions", "adaptation"} <= set(record["phases_s"])
    assert command(*words, "--resume") == 0  # everything is there
    again = records.read(capsys.readouterr().out.splitlines()[-1])
    assert again["results"] == record["results"]


def test_the_row_of_the_ablation_that_is_symerge_itself_is_left_out():
    names = dense.chosen_methods(dense.Settings(batch_norm="merge_stats"))
    assert "symerge_recalibrate" in names
    assert "symerge_merge_stats" not in names


def test_one_test_scene_is_refused_before_anything_is_trained(made, tmp_path, capsys):
    models, data = made
    words = ("--model", "resnet50", "--checkpoints", models, "--data", data, "--out", tmp_path)
    said = refused(capsys, *words, "--limit", 1, "--methods", "symerge")
    assert "one test scene has no variance" in said


def test_a_dry_run_says_what_would_be_done(capsys):
    assert command("--dry-run", "--batch-norm", "merge_stats") == 0
    out = capsys.readouterr().out
    assert "tasks: segmentation, depth, normal (embedded world)" in out
    assert "task_arithmetic_recalibrate" in out


def test_all_methods_are_those_that_scenes_have_a_use_for():
    names = dense.chosen_methods(dense.Settings(methods=("all",)))
    assert names[0] == "individual"
    rows = {*dense.ABLATION} - {"symerge_recalibrate"}  # which is SyMerge
    assert {"dare", "breadcrumbs", "tall_masks", "symerge", *rows} <= set(names)
    assert "symerge_recalibrate" not in names
    assert not {"adamerging", "wemoe", "fisher", "pretrained", "surgery"} & set(names)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--methods", "adamerging"), "depths and normals have no entropy"),
        (("--methods", "surgery"), "depths and normals have no entropy"),
        (("--methods", "wemoe"), "not available for scenes"),
        (("--methods", "symerge_early"), "not available for scenes"),
        (("--methods", "symerge_block_3"), "not available for scenes"),
        (("--methods", "symmerge"), "unknown method"),
        (("--tasks", "depth", "edges"), "unknown task 'edges'"),
        (("--model", "resnet18"), "--model must be one of"),
        (("--model", "resnet50", "--data", "x"), "needs --checkpoints DIR"),
        (("--checkpoints", "x"), "--checkpoints needs --model"),
        (("--size", "64", "64"), "--size goes with --data"),
        (("--data", "x", "--size", "4", "4"), "expected at least 8 pixels"),
        (("--batch-mean", "0"), "--batch-mean must be at least 1"),
        (("--data", "/nowhere/at/all"), "/nowhere/at/all"),
    ],
)
def test_options_that_make_no_sense_are_refused(words, said, tmp_path, capsys):
    assert said in refused(capsys, *words, "--out", tmp_path)
