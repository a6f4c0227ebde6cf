"""Figures: a PNG of sensible size comes out, for small and large runs."""

import numpy as np
import pytest
from PIL import Image

from experiments import figures, records


def run(tasks, methods):
    rng = np.random.default_rng(0)
    record = records.new_record("vision", "tiny", {})
    for method in methods:
        for task in tasks:
            records.add_result(
                record,
                method=method,
                seed=0,
                task=task,
                metric="accuracy",
                value=float(rng.uniform(30, 90)),
                n=500,
            )
    return record


def assert_picture(path):
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert min(image.size) > 200
        assert len(image.getcolors(maxcolors=1 << 24) or ()) > 10


@pytest.mark.parametrize("tasks", [1, 8, 20])
def test_accuracy_per_task(tasks, tmp_path):
    methods = ["pretrained", "individual", "ties", "adamerging", "symerge"]
    record = run([f"task{i}" for i in range(tasks)], methods)
    assert_picture(figures.accuracy_per_task(record, tmp_path / "figure.png"))


@pytest.mark.parametrize("methods", [["individual"], ["symerge"]])
def test_accuracy_of_one_method(methods, tmp_path):
    assert_picture(figures.accuracy_per_task(run(["a", "b"], methods), tmp_path / "figure.png"))


def test_missing_scores_leave_a_gap(tmp_path):
    record = run(["a", "b"], ["individual", "symerge"])
    record["results"].pop()
    assert_picture(figures.accuracy_per_task(record, tmp_path / "figure.png"))


@pytest.mark.parametrize("blocks", [0, 2, 24])
def test_coefficient_heatmap(blocks, tmp_path):
    names = [
        "visual.conv1.weight",
        *(f"visual.resblocks.{b}.{leaf}" for b in range(blocks) for leaf in ("w", "b")),
        "visual.proj",
    ]
    lam = np.random.default_rng(0).normal(0.2, 0.4, (len(names), 3))
    assert_picture(figures.coefficient_heatmap(lam, names, ["a", "b", "c"], tmp_path / "h.png"))


def test_coefficients_must_fit_their_names(tmp_path):
    with pytest.raises(ValueError, match="expected 1 tensors × 2 tasks"):
        figures.coefficient_heatmap(np.zeros((2, 1)), ["w"], ["a", "b"], tmp_path / "h.png")


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("vision_model.encoder.layers.3.mlp.fc1.weight", "block 3"),
        ("visual.transformer.resblocks.11.attn.in_proj_weight", "block 11"),
        ("blocks/0/mlp/kernel", "block 0"),
        ("roberta.encoder.layer.7.output.dense.bias", "block 7"),
        ("visual.ln_pre.weight", "ln_pre"),
        ("visual.proj", "proj"),
        ("weight", "weight"),
    ],
)
def test_block_of_a_tensor(name, label):
    assert figures._block(name) == label


@pytest.mark.parametrize("steps", [8, 37, 4000])
def test_learning_curves(steps, tmp_path):
    curves = {"symerge": np.linspace(2, 1, steps), "adamerging": np.linspace(1.5, 1, steps)}
    assert_picture(figures.learning_curves(curves, 8, tmp_path / "l.png"))


def test_smoothing_keeps_a_constant_and_the_length():
    np.testing.assert_allclose(figures._smooth(np.full(100, 3.0)), 3.0)
    # three values, half-width 1: (1+2)/2, (1+2+6)/3, (2+6)/2
    np.testing.assert_allclose(figures._smooth(np.array([1.0, 2.0, 6.0])), [1.5, 3.0, 4.0])
