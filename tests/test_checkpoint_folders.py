"""Public experts: their folder layouts, and the vision benchmark run on stand-ins of that form."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments import checkpoint_folders, scene, vision
from experiments.tasks.clip_sets import clip_set
from symerge_jax.checkpoints import export
from symerge_jax.checkpoints.clip import split_qkv, to_hugging_face, to_open_clip
from symerge_jax.checkpoints.clip_layouts import hugging_face_config
from symerge_jax.cli.errors import run as run_command
from symerge_jax.errors import BadInput
from symerge_jax.models import clip_config
from symerge_jax.models.clip import initial_params

SETS = [clip_set("mnist"), clip_set("eurosat")]
VISION = replace(
    clip_config.PRESETS["ViT-B-32"].vision,
    image_size=32, patch_size=16, width=384, depth=1, heads=6, projection=16,
)  # fmt: skip


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def test_hugging_face_experts_are_found(tmp_path):
    for name in ("clip-vit-base-patch32", "clip-vit-base-patch32_mnist"):
        (tmp_path / name).mkdir()
    with pytest.raises(BadInput, match="clip-vit-base-patch32_eurosat: the expert is expected"):
        checkpoint_folders.find(tmp_path, "ViT-B-32", SETS)
    (tmp_path / "clip-vit-base-patch32_eurosat").mkdir()
    found = checkpoint_folders.find(tmp_path, "ViT-B-32", SETS)
    assert found.layout == "tanganke"
    assert [place.encoder.name for place in found.experts] == [
        "clip-vit-base-patch32_mnist",
        "clip-vit-base-patch32_eurosat",
    ]
    assert [place.head for place in found.experts] == [None, None]


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("inside", [True, False])
def test_task_vector_experts_are_found(tmp_path, suffix, inside):
    root = tmp_path / "ViT-B-32" if inside else tmp_path
    names = ("zeroshot", "MNIST/finetuned", "EuroSAT/finetuned", "head_MNIST", "head_EuroSAT")
    touch(root, *(name + suffix for name in names))
    found = checkpoint_folders.find(tmp_path, "ViT-B-32", SETS)
    assert found.layout == "task_vectors"
    assert found.pretrained == root / f"zeroshot{suffix}"
    assert found.experts[1] == (
        root / f"EuroSAT/finetuned{suffix}",
        root / f"head_EuroSAT{suffix}",
    )


def test_tall_experts_are_found_with_either_name_of_a_head(tmp_path):
    root = tmp_path / "ViT-B-32"
    touch(root, "MNISTVal/nonlinear_finetuned.pt", "EuroSATVal/nonlinear_finetuned.pt")
    touch(root, "EuroSATVal/nonlinear_zeroshot.pt", "head_MNISTVal.pt", "head_EuroSAT.pt")
    found = checkpoint_folders.find(tmp_path, "ViT-B-32", SETS)
    assert found.layout == "tall_masks"
    assert found.pretrained == root / "EuroSATVal/nonlinear_zeroshot.pt"
    assert [place.head.name for place in found.experts] == ["head_MNISTVal.pt", "head_EuroSAT.pt"]


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("EuroSAT/finetuned.pt", "EuroSAT/finetuned.pt: the expert"),
        ("head_MNIST.pt", "head_MNIST.pt: its head"),
        ("zeroshot.pt", "experiments.prepare vision --model ViT-B-32"),
    ],
)
def test_a_missing_file_is_named_with_its_place(tmp_path, missing, message):
    names = {"zeroshot.pt", "MNIST/finetuned.pt", "EuroSAT/finetuned.pt", "head_MNIST.pt",
             "head_EuroSAT.pt"}  # fmt: skip
    touch(tmp_path / "ViT-B-32", *(names - {missing}))
    with pytest.raises(BadInput, match=message):
        checkpoint_folders.find(tmp_path, "ViT-B-32", SETS)


@pytest.fixture
def benchmark(tmp_path, monkeypatch):
    """Checkpoints in two public layouts, and packs of random images in the place of the data."""
    small = clip_config.ClipConfig(VISION, clip_config.PRESETS["ViT-B-32"].text)
    monkeypatch.setitem(clip_config.PRESETS, "ViT-B-32", small)
    monkeypatch.setattr(scene, "keep_programs", lambda folder: None)
    start = jax.tree.map(np.asarray, initial_params(VISION, jax.random.key(0)))
    rng = np.random.default_rng(0)

    def expert():
        return jax.tree.map(
            lambda x: (x + 0.01 * rng.standard_normal(x.shape)).astype(np.float32), start
        )

    def head(classes):
        weight = rng.standard_normal((classes, 16)).astype(np.float32)
        return {"weight": 10 * weight, "bias": np.zeros(classes, np.float32)}

    pickled, hub = tmp_path / "pickled" / "ViT-B-32", tmp_path / "hub"
    towers = {"": start, "MNIST": expert(), "EuroSAT": expert()}
    for name, tower in towers.items():
        place = (
            pickled / name / "finetuned.safetensors" if name else pickled / "zeroshot.safetensors"
        )
        place.parent.mkdir(parents=True, exist_ok=True)
        export.write_tensors(place, to_open_clip(tower, prefix="model."))
        folder = hub / ("clip-vit-base-patch32" + (f"_{name.lower()}" if name else ""))
        folder.mkdir(parents=True)
        export.write_tensors(folder / "model.safetensors", to_hugging_face(split_qkv(tower)))
        text = json.dumps(hugging_face_config(replace(VISION, fused_qkv=False), None))
        (folder / "config.json").write_text(text)
        if name:
            own = head(10)
            export.write_tensors(pickled / f"head_{name}.safetensors", own)
            export.write_head(folder, name.lower(), own, None)
    for name, shape in (("mnist", (28, 28)), ("eurosat", (64, 64, 3))):
        (tmp_path / "data" / name).mkdir(parents=True)
        for part, count in (("train", 60), ("test", 40)):
            images = rng.integers(0, 256, (count, *shape), np.uint8)
            labels = np.arange(count, dtype=np.int32) % 10
            np.savez(tmp_path / "data" / name / f"{part}.npz", images=images, labels=labels)
    return tmp_path


def run(root, layout, *words):
    given = ["--model", "ViT-B-32", "--tasks", "mnist", "eurosat", "--iterations", "2"]
    given += ["--checkpoints", str(root / layout), "--data", str(root / "data"), "--limit", "20"]
    given += ["--cache", str(root / "cache"), "--out", str(root / "runs"), "--devices", "1"]
    return run_command(vision.main, vision.Settings, [*given, *words], prog="vision")


def read_record(capsys):
    path = Path(capsys.readouterr().out.strip().splitlines()[-1])
    return path, json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("layout", ["pickled", "hub"])
def test_the_benchmark_runs_on_public_checkpoints(benchmark, layout, capsys):
    assert run(benchmark, layout, "--methods", "pretrained", "task_arithmetic", "symerge") == 0
    path, record = read_record(capsys)
    assert record["setting"] == "checkpoints"
    assert record["settings"]["layout"] == {"pickled": "task_vectors", "hub": "tanganke"}[layout]
    assert record["settings"]["constants"]["recipe"] is None
    assert set(record["summary"]) == {"pretrained", "individual", "task_arithmetic", "symerge"}
    counts = {(one["task"], one["n"]) for one in record["results"]}
    assert counts == {("mnist", 20), ("eurosat", 20)}
    assert any("expected 10,000 test images" in note for note in record["notes"])
    folder = path.parent
    with np.load(folder / "coefficients.npz") as stored:
        assert stored["symerge"].shape == (len(stored["tensors"]), 2)
        assert str(stored["tensors"][0]).startswith(
            {"pickled": "visual.", "hub": "vision_"}[layout]
        )
    names = {file.name for file in (folder / "model").iterdir()}
    assert {"heads", "merge_card.json", "reference.npz"} < names


def test_both_layouts_of_one_model_give_the_same_experts(benchmark, capsys):
    values = {}
    for layout in ("pickled", "hub"):
        assert run(benchmark, layout, "--methods", "individual", "--iterations", "1") == 0
        _, record = read_record(capsys)
        values[layout] = [one["value"] for one in record["results"] if one["metric"] == "accuracy"]
    assert values["pickled"] == values["hub"]


def test_a_head_of_another_set_is_refused(benchmark, capsys):
    wrong = {"weight": np.ones((3, 16), np.float32), "bias": np.zeros(3, np.float32)}
    (benchmark / "pickled/ViT-B-32/head_MNIST.safetensors").unlink()
    export.write_tensors(benchmark / "pickled/ViT-B-32/head_MNIST.safetensors", wrong)
    assert run(benchmark, "pickled", "--methods", "pretrained") == 2
    assert "has 3 classes, but MNIST has 10" in capsys.readouterr().err
    assert not (benchmark / "runs" / "vision").exists()


def test_another_size_of_model_is_refused(benchmark, monkeypatch, capsys):
    larger = replace(VISION, width=768, heads=12)
    monkeypatch.setitem(
        clip_config.PRESETS,
        "ViT-B-32",
        clip_config.ClipConfig(larger, clip_config.PRESETS["ViT-B-32"].text),
    )
    assert run(benchmark, "hub", "--methods", "pretrained") == 2
    assert "its width is 384, but that of ViT-B-32 is 768" in capsys.readouterr().err
