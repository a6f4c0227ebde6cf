"""`symerge evaluate`: the accuracy of a model with the head that is meant."""

import shutil

import numpy as np
import pytest
import safetensors.numpy
from commands import contents, refused, symerge
from tiny_experts import CLASSES, PER_CLASS, TASKS, VISION

from symerge_jax.checkpoints.heads import read_head
from symerge_jax.checkpoints.open import load_clip
from symerge_jax.classifier import encoder
from symerge_jax.evaluate import predict

pytestmark = pytest.mark.usefixtures("separate")


@pytest.fixture(scope="session")
def model(tmp_path_factory, tiny):
    """A merged model with the heads of all tasks."""
    out = tmp_path_factory.mktemp("merged") / "model"
    words = (
        "--pretrained",
        tiny.base["open_clip"],
        "--experts",
        *tiny.experts["open_clip"].values(),
    )
    assert symerge("merge", "task_arithmetic", *words, "--output", out) == 0
    return out


def evaluate(capsys, model, *words):
    """Returns task → (accuracy, calibration error, images) of the printed rows."""
    capsys.readouterr()
    assert symerge("evaluate", model, "--task", *words) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    rows = [line.split() for line in captured.out.splitlines()[1:]]
    return {name: (float(accuracy), float(ece), int(n)) for name, accuracy, ece, n in rows}


def by_hand(model, head, images, labels):
    """Accuracy and calibration error in percent, in plain NumPy after the encoder."""
    features = predict(encoder(VISION), load_clip(model).params["vision"], images)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    logits = features @ head.head["weight"].T + head.head["bias"]
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    confidence = (exponents / exponents.sum(axis=1, keepdims=True)).max(axis=1)
    right = logits.argmax(axis=1) == labels
    bins = np.clip(np.ceil(confidence * 15) - 1, 0, 14)
    gaps = [abs(right[bins == b].sum() - confidence[bins == b].sum()) for b in range(15)]
    return 100 * right.mean(), 100 * sum(gaps) / len(labels)


def test_accuracy_and_calibration_error(capsys, tiny, model):
    found = evaluate(capsys, model, *(tiny.folder / "packs" / task for task in TASKS))
    assert list(found) == list(TASKS)
    for task in TASKS:
        with np.load(tiny.folder / "packs" / task / "test.npz") as pack:
            images, labels = pack["images"], pack["labels"]
        accuracy, ece = by_hand(
            model, read_head(model / "heads" / f"{task}.safetensors"), images, labels
        )
        assert found[task][0] == pytest.approx(accuracy, abs=0.005)
        assert found[task][1] == pytest.approx(ece, abs=0.02)
        assert found[task][2] == PER_CLASS * len(CLASSES[task])


def test_class_folders_and_packs_agree(capsys, tiny, model):
    packs, images = (
        evaluate(capsys, model, *(tiny.folder / kind / task for task in TASKS))
        for kind in ("packs", "images")
    )
    assert packs == images


def test_an_expert_is_a_model_too(capsys, tiny):
    found = evaluate(capsys, tiny.experts["open_clip"]["fruit"], tiny.folder / "packs" / "fruit")
    assert found["fruit"][0] > 60


def test_the_batch_size_does_not_matter(capsys, tiny, model):
    folder = tiny.folder / "packs" / "fruit"
    whole, parts = (
        evaluate(capsys, model, folder),
        evaluate(capsys, model, folder, "--batch-size", 7),
    )
    assert parts["fruit"] == pytest.approx(whole["fruit"], abs=0.02)


def test_a_limit_takes_the_first_images(capsys, tiny, model, tmp_path):
    with np.load(tiny.folder / "packs" / "fruit" / "test.npz") as pack:
        first = {name: pack[name][:9] for name in ("images", "labels")}
    (tmp_path / "fruit").mkdir()
    np.savez(tmp_path / "fruit" / "test.npz", **first)
    limited = evaluate(capsys, model, tiny.folder / "packs" / "fruit", "--limit", 9)
    assert limited == evaluate(capsys, model, tmp_path / "fruit")
    assert limited["fruit"][2] == 9


def test_the_present_folder_is_a_task(capsys, tiny, model, monkeypatch):
    monkeypatch.chdir(tiny.folder / "packs" / "sky")
    assert list(evaluate(capsys, model, ".")) == ["sky"]


def test_a_head_by_name_and_by_file(capsys, tiny, model, tmp_path):
    shutil.copytree(tiny.folder / "packs" / "fruit", tmp_path / "apples")
    usual = evaluate(capsys, model, tiny.folder / "packs" / "fruit")["fruit"]
    for head in ("fruit", model / "heads" / "fruit.safetensors"):
        assert evaluate(capsys, model, tmp_path / "apples", "--head", head)["apples"] == usual


def test_a_file_of_the_tasks_name_is_no_head(capsys, tiny, model, tmp_path, monkeypatch):
    (tmp_path / "fruit").write_text("apples, mostly")
    monkeypatch.chdir(tmp_path)
    assert "fruit" in evaluate(capsys, model, tiny.folder / "packs" / "fruit")


def test_a_merge_per_task_uses_the_model_of_the_task(capsys, tiny, tmp_path):
    for k, task in enumerate(TASKS):
        shutil.copytree(tiny.experts["open_clip"][task], tmp_path / "each" / f"{k:02d}_{task}")
    folders = [tiny.folder / "packs" / task for task in TASKS]
    found = evaluate(capsys, tmp_path / "each", *folders)
    for task, folder in zip(TASKS, folders, strict=True):
        assert found[task] == evaluate(capsys, tiny.experts["open_clip"][task], folder)[task]
    shutil.copytree(folders[0], tmp_path / "stone")
    words = ("evaluate", tmp_path / "each", "--task", tmp_path / "stone")
    says = refused(capsys, *words, among=tmp_path)
    assert "holds one model per task, but none of 'stone': 00_fruit, 01_sky, 02_earth" in says


def test_nothing_is_written(capsys, tiny, model):
    before = contents(model)
    evaluate(capsys, model, tiny.folder / "packs" / "sky")
    assert contents(model) == before


# --- what is refused ----------------------------------------------------------------------------


@pytest.fixture
def refusal(capsys, tmp_path):
    def of(model, *words):
        return refused(capsys, "evaluate", model, *words, among=tmp_path)

    return of


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--limit", 0), "--limit must be at least 1, got 0"),
        (("--limit", -5), "--limit must be at least 1, got -5"),
        (("--batch-size", 0), "--batch-size must be at least 1, got 0"),
        (("--hed", "fruit"), "unknown option --hed (did you mean --head?)"),
        (
            ("--head", "fruits"),
            "has no head 'fruits' (did you mean fruit?); it has earth, fruit, sky",
        ),
        (("--head", "qqq"), "has no head 'qqq'; it has earth, fruit, sky; name one with --head"),
    ],
)
def test_a_bad_option(refusal, tiny, model, words, says):
    assert says in refusal(model, "--task", tiny.folder / "packs" / "fruit", *words)


def test_a_task_that_has_no_head(refusal, tiny, model, tmp_path):
    shutil.copytree(tiny.folder / "packs" / "fruit", tmp_path / "frut")
    says = refusal(model, "--task", tmp_path / "frut")
    assert f"{model}: has no head 'frut' (did you mean fruit?)" in says


def test_a_model_without_heads(refusal, tiny):
    says = refusal(tiny.base["open_clip"], "--task", tiny.folder / "packs" / "fruit")
    assert "has no head 'fruit', nor any other" in says


def test_a_model_that_is_not_there(refusal, tiny, tmp_path):
    says = refusal(tmp_path / "modle", "--task", tiny.folder / "packs" / "fruit")
    assert f"{tmp_path / 'modle'}: there is no such folder" in says


def test_a_task_that_is_not_there(refusal, tiny, model):
    says = refusal(model, "--task", tiny.folder / "pack" / "fruit")
    assert "does not exist" in says
    assert f"did you mean {tiny.folder / 'packs'}" in says


def test_a_folder_without_a_task(refusal, model, tmp_path):
    (tmp_path / "fruit").mkdir()
    assert "expected images" in refusal(model, "--task", tmp_path / "fruit")


def test_images_without_labels(refusal, tiny, model, tmp_path):
    says = refusal(model, "--task", tiny.folder / "unlabelled" / "fruit")
    assert "have no labels, so there is nothing to score" in says
    with np.load(tiny.folder / "packs" / "fruit" / "test.npz") as pack:
        images = pack["images"]
    (tmp_path / "fruit").mkdir()
    np.savez(tmp_path / "fruit" / "test.npz", images=images)
    assert "have no labels" in refusal(model, "--task", tmp_path / "fruit")


def test_a_head_of_another_task(refusal, tiny, model):
    says = refusal(model, "--task", tiny.folder / "packs" / "fruit", "--head", "sky")
    assert f"has labels up to 2, but {model / 'heads' / 'sky.safetensors'} has 2 classes" in says
    says = refusal(model, "--task", tiny.folder / "images" / "sky", "--head", "fruit")
    assert "has 2 classes, but" in says


def test_a_head_for_other_features(refusal, tiny, model, tmp_path):
    path = tmp_path / "wide.safetensors"
    head = {"weight": np.ones((3, 48), np.float32), "bias": np.zeros(3, np.float32)}
    safetensors.numpy.save_file(head, path)
    says = refusal(model, "--task", tiny.folder / "packs" / "fruit", "--head", path)
    assert f"{path}: the head takes features of width 48, but {model} gives 24" in says
