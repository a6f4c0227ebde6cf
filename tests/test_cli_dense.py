"""`symerge adapt`, `evaluate` and `verify` on scenes of dense prediction, as a person runs them."""

import json
import shutil

import numpy as np
import pytest
import resnet_checkpoints as nets
import tiny_scenes
from clip_checkpoints import read_all
from commands import contents, symerge
from flax.traverse_util import flatten_dict
from tiny_scenes import COUNT, OUTPUTS, PIXELS, TASKS, write_tasks

from symerge_jax import adapt_files, dense, dense_adapt_files
from symerge_jax.adapt.coefficients import interpolate, per_leaf
from symerge_jax.adapt.dense import AdaptedDense
from symerge_jax.adapt_settings import settings_of
from symerge_jax.adapt_tasks import settings_for
from symerge_jax.checkpoints.decoders import read_decoder, read_decoders
from symerge_jax.checkpoints.open import open_checkpoint
from symerge_jax.checkpoints.resnet import load_resnet
from symerge_jax.data.dense import read_scenes
from symerge_jax.data.tasks_file import read_tasks_file
from symerge_jax.stored_decoders import StoredDecoder, kind_of, own_decoder

pytestmark = pytest.mark.usefixtures("separate")

KINDS = {"segmentation": "segmentation", "depth": "depth", "normals": "normal"}
MAPS = {"segmentation": "labels", "depth": "depths", "normals": "normals"}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return tiny_scenes.made(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def adapted(tmp_path_factory, scenes, separate):
    """The folder that an ordinary run wrote."""
    folder = tmp_path_factory.mktemp("adapted")
    file = write_tasks(folder / "tasks.toml", scenes)
    assert symerge("adapt", file, "--output", folder / "out") == 0
    return folder / "out"


def card(folder):
    return json.loads((folder / "merge_card.json").read_text())


def weights(folder):
    return read_all(folder / "model.safetensors")


def coefficients(folder):
    with np.load(folder / "coefficients.npz", allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def is_statistic(name):
    return "running" in name


# --- adapt: what is written ---------------------------------------------------------------------


def test_the_folder_is_a_whole_model_that_holds_its_checks(capsys, adapted):
    assert {path.name for path in adapted.iterdir()} == {
        "model.safetensors", "config.json", "heads", "coefficients.npz", "reference.npz",
        "merge_card.json",
    }  # fmt: skip
    config = json.loads((adapted / "config.json").read_text())
    assert config == {"architecture": "resnet", "output_stride": 8}
    assert load_resnet(adapted).config == tiny_scenes.SIZES
    heads = read_decoders(adapted)
    assert {name: one.outputs for name, one in heads.items()} == OUTPUTS
    assert all(one.config == tiny_scenes.HEAD for one in heads.values())
    with np.load(adapted / "reference.npz") as file:
        assert set(file.files) == {"inputs", "features", *(f"logits/{task}" for task in TASKS)}
    capsys.readouterr()
    assert symerge("verify", adapted) == 0
    # Weights, config, coefficients, reference, three heads; features, three maps.
    assert "all 11 checks hold" in " ".join(capsys.readouterr().out.split())


def test_coefficients_are_those_of_the_weights_and_statistics_were_recalibrated(scenes, adapted):
    """θ₀ + Σ clip(λ) τ with row j of λ for tensor j is what was written."""
    stored, found, base = coefficients(adapted), weights(adapted), weights(scenes.base)
    experts = [weights(scenes.experts[task]) for task in TASKS]
    assert list(stored["tasks"]) == list(TASKS)
    assert set(stored["tensors"]) == {
        name for name, value in base.items() if value.dtype.kind == "f" and not is_statistic(name)
    }
    assert list(stored["tensors"][:2]) == ["conv1.weight", "bn1.weight"]
    for name, row in zip(stored["tensors"], stored["coefficients"], strict=True):
        moved = sum(
            lam * (one[name] - base[name]) for lam, one in zip(row.clip(0, 1), experts, strict=True)
        )
        np.testing.assert_allclose(found[name], base[name] + moved, atol=1e-5, err_msg=name)
    assert np.abs(stored["coefficients"] - 0.3).max() > 1e-5
    merged = base["bn1.running_mean"] + 0.3 * sum(
        one["bn1.running_mean"] - base["bn1.running_mean"] for one in experts
    )
    assert not np.allclose(found["bn1.running_mean"], merged, atol=1e-3)
    for task, head in read_decoders(adapted).items():
        before = read_decoder(scenes.experts[task] / "heads" / f"{task}.safetensors")
        new, old = (flatten_dict(one.variables, sep="/") for one in (head, before))
        for path in ("params/out/kernel", "batch_stats/last/bn/mean"):
            assert np.any(new[path] != old[path])


def test_what_learns_and_what_becomes_of_statistics(monkeypatch, tmp_path, scenes):
    """The run is as the settings say; statistics with coefficients have rows of their own."""
    seen = {}

    def adapt(network, theta, tau, heads, *rest, **options):
        seen.update(options)
        lam = per_leaf(tau, 0.25)
        return AdaptedDense(interpolate(theta, tau, lam), lam, heads, np.zeros(6, np.float32))

    monkeypatch.setattr(dense_adapt_files, "symerge_dense", adapt)
    lines = "learning_rate = 0.01\nbatch_norm = 'merge_stats'"
    file = read_tasks_file(write_tasks(tmp_path / "tasks.toml", scenes, adapt=lines))
    prepared = adapt_files.prepare(file, report=lambda line: None)
    settings = settings_for(file, prepared.network)
    for method, rates in (
        ("symerge", (0.01, 0.01)), ("symerge_head", (0, 0.01)), ("symerge_coefficients", (0.01, 0)),
    ):  # fmt: skip
        adapted = adapt_files.run(prepared, settings._replace(method=method))
        assert (seen["coefficient_rate"], seen["head_rate"]) == rates
    assert (seen["statistics"], seen["iterations"], seen["batch_size"]) == (
        "merge_stats", 25, COUNT,
    )  # fmt: skip
    out = adapt_files.write(prepared, settings, adapted, {}, tmp_path / "out")
    stored, base, found = coefficients(out), weights(scenes.base), weights(out)
    expected = [name for name, value in base.items() if value.dtype.kind == "f"]
    assert sorted(stored["tensors"]) == sorted(expected)
    name = "layer2.0.bn2.running_var"
    moved = sum(weights(scenes.experts[task])[name] - base[name] for task in TASKS)
    np.testing.assert_allclose(found[name], base[name] + 0.25 * moved, atol=1e-6)


def test_the_card_holds_each_tasks_metrics(scenes, adapted):
    found, truth = card(adapted), read_scenes(scenes.rooms, split="test")
    assert found["settings"] == {
        "method": "symerge", "layer": "classifier", "iterations": 2, "batch_size": 3,
        "learning_rate": 1e-4, "initial_coefficient": 0.3, "seed": 0, "batch_norm": "recalibrate",
    }  # fmt: skip
    for task in TASKS:
        one, labels = found["scores"][task], getattr(truth, MAPS[task])
        expert, merged = (maps_of(folder, task, truth.images) for folder in
                          (scenes.experts[task], adapted))  # fmt: skip
        for own, scores in ((merged, one["scores"]), (expert, one["expert_scores"])):
            assert scores[MAIN[task]] == pytest.approx(by_hand(task, own, labels), rel=1e-3)
        said = expert.argmax(axis=-1) if task == "segmentation" else expert
        said = said[..., 0] if task == "depth" else said
        assert one["from_expert"][MAIN[task]] == pytest.approx(
            by_hand(task, merged, said), rel=1e-3
        )
    assert list(found["scores"]["segmentation"]["scores"]) == ["miou", "pixel_accuracy"]
    assert list(found["scores"]["depth"]["scores"]) == ["depth_abs_error", "depth_rel_error"]
    assert list(found["scores"]["depth"]["from_expert"]) == ["depth_abs_error"]


MAIN = {
    "segmentation": "pixel_accuracy", "depth": "depth_abs_error", "normals": "normal_mean_angle",
}  # fmt: skip


def maps_of(folder, task, images):
    """Maps [n, height, width, m] of a model and one of its decoders."""
    decoder = read_decoder(folder / "heads" / f"{task}.safetensors")
    own = dense.network(tiny_scenes.SIZES, tiny_scenes.HEAD, PIXELS)
    loaded = load_resnet(folder)
    return dense.predict_maps(own, loaded.variables, decoder.variables, images, OUTPUTS[task])


def by_hand(task, maps, truth):
    """Pixel accuracy in percent, metres, or degrees."""
    if task == "segmentation":
        counts = truth >= 0
        return 100 * (maps.argmax(axis=-1) == truth)[counts].mean()
    if task == "depth":
        return np.abs(maps[..., 0] - truth)[truth != 0].mean()
    counts = truth.any(axis=-1)
    p, g = (x[counts].astype(np.float64) for x in (maps, truth))
    cosine = (p * g).sum(-1) / np.linalg.norm(p, axis=-1) / np.linalg.norm(g, axis=-1)
    return np.degrees(np.arccos(cosine.clip(-1, 1))).mean()


def test_defaults_for_scenes_are_the_papers(tmp_path, scenes):
    file = read_tasks_file(write_tasks(tmp_path / "tasks.toml", scenes, adapt=""))
    found = settings_of(file, scenes=True)
    assert (found.learning_rate, found.iterations, found.batch_size) == (1e-4, 25, 16)
    assert (found.initial_coefficient, found.batch_norm) == (0.3, "recalibrate")
    assert settings_of(file).batch_norm is None


# --- adapt: inputs, decoders, kinds -------------------------------------------------------------


def test_labels_never_reach_adaptation(capsys, tmp_path, scenes, adapted):
    """A folder of pictures and nothing else gives the same model."""
    file = write_tasks(tmp_path / "tasks.toml", scenes._replace(rooms=scenes.plain))
    assert symerge("adapt", file, "--output", tmp_path / "out") == 0
    found, expected = contents(tmp_path / "out"), contents(adapted)
    for files in (found, expected):
        files.pop("merge_card.json")
    assert found == expected
    for task, one in card(tmp_path / "out")["scores"].items():
        assert one["scores"] is one["expert_scores"] is None
        assert one["from_expert"] == card(adapted)["scores"][task]["from_expert"]
    said = capsys.readouterr().err
    assert "segmentation: 5 images, 13 maps" in said
    assert "depth: 5 images, one map" in said
    rows = [line.split() for line in said.splitlines() if "normal_mean_angle" in line]
    assert [row[3:] for row in rows] == [["–", "–", "°"]]


def test_the_name_says_the_kind_or_else_the_number_of_maps(tmp_path):
    def decoder(outputs, classes=None):
        return StoredDecoder(nets.decoder(outputs, classes=classes), tmp_path)

    named = {"segmentation": 3, "nyuv2-depth": 1, "Normals": 3, "room_normal_2": 3}
    kinds = [kind_of(name, decoder(outputs)) for name, outputs in named.items()]
    assert kinds == ["segmentation", "depth", "normal", "normal"]
    classes = ("wall", "floor", "rest")
    assert kind_of("rooms", decoder(3, classes)) == "segmentation"
    found = [kind_of("rooms", decoder(outputs)) for outputs in (1, 2, 3, 13)]
    assert found == ["depth", "segmentation", "normal", "segmentation"]


def test_an_experts_decoder_may_be_in_its_weights(tmp_path):
    _, experts = nets.family(tmp_path)
    expert = open_checkpoint(experts[1])
    found = own_decoder(expert, "depth")
    assert found.decoder.outputs == 1
    expected = nets.decoder(1, seed=1).variables["params"]["out"]["kernel"]
    np.testing.assert_array_equal(found.head["params"]["out"]["kernel"], expected)


# --- evaluate -----------------------------------------------------------------------------------


def rows(capsys, *words):
    """(task, metric) → its score, unit and number of scenes, as printed."""
    capsys.readouterr()
    assert symerge("evaluate", *words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["task", "metric", "score", "unit", "scenes"]
    return {tuple(line.split()[:2]): line.split()[2:] for line in lines[1:]}


def test_scenes_are_scored_with_every_decoder_they_have_maps_for(capsys, scenes, adapted):
    found = rows(capsys, adapted, "--task", scenes.rooms)
    for task, one in card(adapted)["scores"].items():
        for metric, value in one["scores"].items():
            printed = found.pop((task, metric))
            assert float(printed[0]) == pytest.approx(value, abs=0.011)
            assert printed[-1] == str(COUNT)
            unit = {"miou": "%", "depth_abs_error": "m", "normal_mean_angle": "°"}.get(metric)
            assert unit in (None, *printed)
    assert not found


def test_the_decoder_of_the_folders_name_or_of_the_option(capsys, tmp_path, scenes, adapted):
    shutil.copytree(scenes.rooms, tmp_path / "depth")
    by_folder = rows(capsys, adapted, "--task", tmp_path / "depth")
    assert list(by_folder) == [("depth", "depth_abs_error"), ("depth", "depth_rel_error")]
    file = adapted / "heads" / "depth.safetensors"
    for head in ("depth", file):
        found = rows(capsys, adapted, "--task", scenes.rooms, "--head", head)
        assert [name for name, _ in found] == ["rooms", "rooms"]
        assert list(found.values()) == list(by_folder.values())
    each = tmp_path / "each" / "01_depth"
    shutil.copytree(adapted, each)
    words = ("--task", scenes.rooms, "--head", "depth", "--limit", 2)
    found = rows(capsys, each.parent, *words)
    assert [cells[-1] for cells in found.values()] == ["2", "2"]


def test_an_expert_is_a_model_too(capsys, scenes, adapted):
    found = rows(capsys, scenes.experts["normals"], "--task", scenes.rooms)
    expected = card(adapted)["scores"]["normals"]["expert_scores"]["normal_mean_angle"]
    assert list(found) == [("normals", "normal_mean_angle")]
    assert float(found["normals", "normal_mean_angle"][0]) == pytest.approx(expected, abs=0.011)
