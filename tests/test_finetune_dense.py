"""`python -m experiments.finetune` on scenes: what it leaves behind, and what it refuses."""

import json
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy

from experiments import finetune, finetune_dense, records, resnet_folders
from experiments.finetune_dense import chosen_recipe
from experiments.finetune_run import Settings
from experiments.tasks import rooms
from symerge_jax.checkpoints.decoders import read_decoder
from symerge_jax.checkpoints.resnet import load_resnet, to_torchvision
from symerge_jax.checkpoints.resnet_export import save_resnet
from symerge_jax.cli.errors import run
from symerge_jax.cli.progress import Bars
from symerge_jax.dense import dense_scores
from symerge_jax.models.resnet import initial_variables
from symerge_jax.models.resnet_config import DECODERS, PRESETS, DecoderConfig
from symerge_jax.verify import verify

MODEL = "tiny-resnet"
SIZE = (32, 48)
STEPS = 6
BATCH = ("--batch-size", 4, "--learning-rate", 0.02)


@pytest.fixture(scope="module", autouse=True)
def separate():
    """What is set for the whole process is not set for other tests; a small decoder compiles soon.

    Its dilations are not the usual ones: they must be in its file to be found again. What is
    traced for the module is only used again by tests that promote as strictly.
    """
    strict = jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise")
    with pytest.MonkeyPatch.context() as patch, strict[0], strict[1]:
        patch.setattr(finetune_dense, "keep_programs", lambda folder: None)
        patch.setattr(finetune_dense, "CHUNK", STEPS // 2)
        patch.setitem(DECODERS, MODEL, DecoderConfig(features=128, width=8, rates=(2,)))
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two walls, bright and dark: classes 3 and 11, a few pixels unknown, at 1 and 2 metres."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for split, n in (("train", 9), ("val", 3)):
        (folder / split).mkdir()
        for i in range(n):
            bright = np.roll(np.arange(SIZE[1]) < 24, rng.integers(48))[None].repeat(SIZE[0], 0)
            image = rng.integers(0, 60, (*SIZE, 3)) + 190 * bright[..., None]
            labels = np.where(rng.random(SIZE) < 0.1, -1, np.where(bright, 3, 11))
            np.savez(
                folder / split / f"{i}.npz", rgb=image.astype(np.uint8),
                label13=labels.astype(np.int8), depth=np.where(bright, 1, 2).astype(np.float32),
            )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A trunk with random weights; as in old files of torchvision, nothing counts batches."""
    folder = tmp_path_factory.mktemp("start")
    config = PRESETS[MODEL]
    return save_resnet(folder, initial_variables(config, jax.random.key(0)), config, counts={})


def command(data, out, *words, task="segmentation", model=MODEL):
    words = ("--model", model, "--task", task, "--data", data, "--out", out, *words)
    return run(finetune.main, Settings, [str(word) for word in words], prog="finetune")


def refused(capsys, *args, **options):
    """The line that says why, after notes on files."""
    assert command(*args, **options) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    line = captured.err.splitlines()[-1]
    assert line.startswith("symerge: error: ")
    return line


def experts(out):
    return out / "experts" / MODEL


@pytest.fixture(scope="module")
def made(tmp_path_factory, data, start):
    """The folder of a run."""
    out = tmp_path_factory.mktemp("out")
    assert command(data, out, "--pretrained", start, "--steps", STEPS, *BATCH) == 0
    return out


def record_of(out):
    (path,) = out.glob("finetune/*/record.json")
    return records.read(path)


def metrics(record):
    return {result["metric"]: (result["value"], result["n"]) for result in record["results"]}


def test_a_run_leaves_a_record_with_the_tasks_metrics(made):
    record = record_of(made)
    assert list(metrics(record)) == ["miou", "pixel_accuracy"]
    assert {n for _, n in metrics(record).values()} == {3}
    assert record["settings"]["recipe"] == "fusion_bench"
    constants = record["settings"]["constants"]
    assert (constants["steps"], constants["halve_every"]) == (STEPS, 30)  # 9 scenes, batches of 4
    (losses,) = made.glob("finetune/*/losses.csv")
    values = [float(line.split(",")[1]) for line in losses.read_text().splitlines()[1:]]
    assert len(values) == STEPS
    assert values[-1] < 0.8 * values[0]
    assert not list(made.glob("cache/training/*"))


def test_an_expert_has_all_of_the_trunk_trained_and_says_what_it_is(made, start):
    folder = experts(made) / "segmentation"
    before, after = load_resnet(start), load_resnet(folder)
    assert after.config == before.config
    changed = jax.tree.map(lambda a, b: not np.array_equal(a, b), after.variables, before.variables)
    assert all(jax.tree.leaves(changed))  # running statistics too
    assert {int(count) for count in after.counts.values()} == {STEPS}
    decoder = read_decoder(folder / "heads" / "segmentation.safetensors")
    assert decoder.config == DECODERS[MODEL]
    assert decoder.classes == rooms.KINDS["segmentation"].classes
    assert decoder.counts is not None
    assert {int(count) for count in decoder.counts.values()} == {STEPS}
    assert np.abs(decoder.variables["batch_stats"]["image"]["bn"]["mean"]).max() > 0
    config = json.loads((folder / "config.json").read_text())
    assert config == {"architecture": MODEL, "output_stride": 8}
    card = json.loads((folder / "merge_card.json").read_text())
    assert card["recipe"]["name"] == "fusion_bench"
    assert card["scores"]["miou"]["individual"] == metrics(record_of(made))["miou"][0]
    for name in ("pretrained", "segmentation"):
        assert all(finding.holds for finding in verify(experts(made) / name))


def test_an_expert_is_read_beside_its_trunk_and_scores_as_it_did(made, data):
    tasks = rooms.from_folder(data, ["segmentation"])
    found = resnet_folders.find(experts(made), ["segmentation"])
    assert found.pretrained == experts(made) / "pretrained"
    read = resnet_folders.read(found, tasks, SIZE, "float32")
    assert read.decoders == DECODERS[MODEL]
    test = tasks[0].test
    scores = dense_scores(
        read.network, read.experts.params[0], read.experts.heads[0], test.inputs, test.labels, 13,
        "segmentation",
    )  # fmt: skip
    recorded = metrics(record_of(made))
    assert {name: pytest.approx(value) for name, value in scores.items()} == {
        name: value for name, (value, _) in recorded.items()
    }


def test_an_interrupted_run_goes_on_with_the_same_bits(monkeypatch, capsys, made, data, start):
    out, words = made / "cut", ("--pretrained", start, "--steps", STEPS, *BATCH)

    def stop(losses):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Bars, "follow", lambda *args: stop)
        assert command(data, out, *words) == 130
    assert "interrupted" in capsys.readouterr().err
    assert not (experts(out) / "segmentation").exists()
    assert not list(out.glob("finetune/*"))
    line = refused(capsys, data, out, *words, "--learning-rate", 0.1, "--resume")
    assert "holds the state of a run with another recipe" in line

    seen = []
    monkeypatch.setattr(Bars, "follow", lambda *args: lambda losses: seen.append(len(losses)))
    assert command(data, out, *words, "--resume") == 0
    assert seen == [3, 3]  # what was saved, and the rest
    for name in ("model.safetensors", "heads/segmentation.safetensors"):
        ours, theirs = (
            safetensors.numpy.load_file(experts(root) / "segmentation" / name)
            for root in (out, made)
        )
        for key in theirs:
            np.testing.assert_array_equal(ours[key], theirs[key])


def test_what_is_there_already_is_kept(capsys, tmp_path, made, data, start):
    line = refused(capsys, data, made, "--pretrained", start)
    assert "is there already; choose another name or add --overwrite" in line
    config = PRESETS[MODEL]
    other = save_resnet(tmp_path, initial_variables(config, jax.random.key(1)), config)
    line = refused(capsys, data, made, "--pretrained", other, task="depth")
    assert "pretrained: is another pre-trained model than" in line
    line = refused(capsys, data, made, "--pretrained", other, "--overwrite")
    assert "pretrained: is another pre-trained model than" in line


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--batch-size", 1), "--batch-size must be at least 2: batch normalisation in training"),
        (("--limit", 1), "--limit must be at least 2: a batch is of two scenes or more"),
        (("--head", "x"), "--head goes with CLIP; the decoder of a ResNet is trained from scratch"),
        (("--vocabulary", "x"), "--vocabulary goes with texts"),
        (("--recipe", "fusion_bank"), "unknown recipe 'fusion_bank' (did you mean fusion_bench?)"),
        ((), "--model tiny-resnet needs --pretrained: a file or folder with a ResNet"),
        (("--pretrained", "x.pth"), "x.pth: there is no such file or folder"),
    ],
)
def test_options_that_cannot_be_are_refused_in_one_line(capsys, tmp_path, data, words, says):
    assert says in refused(capsys, data, tmp_path / "out", *words)
    assert not (tmp_path / "out" / "experts").exists()


def test_tasks_and_models_of_other_kinds_are_refused(capsys, tmp_path, data, start):
    words = ("--pretrained", start)
    line = refused(capsys, data, tmp_path, *words, task="depths")
    assert "unknown task 'depths' (did you mean depth?); known: segmentation, depth, normal" in line
    line = refused(capsys, data, tmp_path, *words, model="small-resnet")
    assert "its blocks is (1, 1, 1, 1), but that of small-resnet is (2, 2, 2, 2)" in line
    bare = to_torchvision(load_resnet(start).variables)
    bare = {name: value for name, value in bare.items() if "running" not in name}
    safetensors.numpy.save_file(bare, tmp_path / "bare.safetensors")
    line = refused(capsys, data, tmp_path, "--pretrained", tmp_path / "bare.safetensors")
    assert "bn1.running_mean is missing, a running statistic of batch normalisation" in line


def test_scenes_that_do_not_fit_are_refused(capsys, tmp_path, data, start):
    words = ("--pretrained", start)
    line = refused(capsys, data, tmp_path / "o", *words, task="normal")
    assert "expected normal maps of the scenes, found none" in line
    assert "expected a folder train" in refused(capsys, data / "val", tmp_path / "o", *words)
    shutil.copytree(data, tmp_path / "d")
    with np.load(tmp_path / "d" / "val" / "0.npz") as scene:
        arrays = dict(scene)
    np.savez(tmp_path / "d" / "val" / "0.npz", **{**arrays, "label13": arrays["label13"] + 2})
    line = refused(capsys, tmp_path / "d", tmp_path / "o", *words)
    assert "expected labels from 0 to 12, or -1 for pixels to ignore, found 13" in line
    for file in (tmp_path / "d" / "val").iterdir():
        np.savez(file, **{name: array[:16] for name, array in arrays.items()})
    line = refused(capsys, tmp_path / "d", tmp_path / "o", *words)
    assert "expected scenes of one size, found (32, 48) in train and (16, 48) in test" in line


@pytest.mark.parametrize(("task", "maps"), [("segmentation", np.int8), ("depth", np.float32)])
def test_each_task_has_its_maps_of_few_or_all_scenes(tmp_path, data, task, maps):
    settings = Settings(task=task, data=data, model=MODEL, out=tmp_path, limit=4)
    train, test = finetune_dense.read_data(settings)
    assert (train.inputs.shape, test.inputs.shape) == ((4, *SIZE, 3), (3, *SIZE, 3))
    assert (train.labels.shape, train.labels.dtype) == ((4, *SIZE), maps)
    bright = train.inputs.mean(axis=-1) > 128  # whichever were drawn, maps and images go together
    wall = train.labels == (3 if task == "segmentation" else 1)
    assert not (wall & ~bright).any()
    assert wall.any()


def test_the_recipe_takes_the_options():
    def recipe(**options):
        return chosen_recipe(Settings(task="depth", data="data", model="resnet50", **options), 795)

    assert (recipe().steps, recipe().batch_size, recipe().halve_every) == (2000, 16, 500)
    assert (recipe().learning_rate, recipe().head_rate, recipe().optimiser) == (1e-4, 1e-4, "adam")
    fewer = recipe(epochs=2, batch_size=8, accumulate=2, learning_rate=1e-3)
    assert (fewer.steps, fewer.accumulate, fewer.halve_every) == (100, 2, 500)
    assert fewer.head_rate == fewer.learning_rate == 1e-3
    assert (recipe(steps=7).steps, recipe(steps=7).halve_every) == (7, 500)
