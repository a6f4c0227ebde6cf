"""Heads of text classifiers in files of their own: both ways, and refused if they do not fit."""

import jax
import numpy as np
import pytest
import roberta_checkpoints as texts
from clip_checkpoints import assert_same, read_all, save, write_safetensors

from symerge_jax.checkpoints.heads import read_head
from symerge_jax.checkpoints.open import open_checkpoint
from symerge_jax.checkpoints.roberta_export import write_own_heads
from symerge_jax.checkpoints.roberta_heads import (
    head_tensors,
    read_text_head,
    read_text_heads,
    write_text_head,
)
from symerge_jax.errors import BadInput


def assert_head(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("outputs", [1, 2, 5])
def test_a_head_survives_its_file(tmp_path, outputs):
    names = None if outputs == 1 else [f"c{i}" for i in range(outputs)]
    path = write_text_head(tmp_path, "rte", texts.head(outputs), names)
    assert path == tmp_path / "heads" / "rte.safetensors"
    stored = read_text_head(path)
    assert_head(stored.head, texts.head(outputs))
    assert stored.classes == (None if names is None else tuple(names))
    assert (stored.outputs, stored.path) == (outputs, path)


def test_tensors_of_the_file_have_pytorchs_names_and_axes(tmp_path):
    head = texts.head(3)
    found = read_all(write_text_head(tmp_path, "a", head))
    assert_same(
        found,
        {
            "dense.weight": head["dense"]["kernel"].T,
            "dense.bias": head["dense"]["bias"],
            "out_proj.weight": head["out_proj"]["kernel"].T,
            "out_proj.bias": head["out_proj"]["bias"],
        },
    )


def test_names_of_a_whole_classifier_are_accepted(tmp_path):
    tensors = {f"classifier.{name}": value for name, value in head_tensors(texts.head()).items()}
    path = write_safetensors(tmp_path / "x.safetensors", tensors)
    assert_head(read_text_head(path).head, texts.head())


def test_all_heads_of_a_folder_are_found_by_name(tmp_path):
    for name in ("sst2", "cola"):
        write_text_head(tmp_path, name, texts.head(2))
    assert list(read_text_heads(tmp_path)) == ["cola", "sst2"]
    assert read_text_heads(tmp_path / "nothing") == {}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"out_proj.bias": None}, "expected a head with the tensors dense.weight, dense.bias"),
        ({"weight": np.ones(2)}, "expected a head with the tensors dense.weight"),
        ({"dense.weight": np.ones((8, 6))}, r"dense.weight of the head has shape \(8, 6\)"),
        ({"out_proj.weight": np.ones((2, 8))}, r"has shape \(2, 8\), expected \(3, 8\)"),
        ({"out_proj.weight": np.full((3, 8), np.nan)}, "out_proj.weight holds NaN or infinity"),
    ],
)
def test_what_is_no_head_is_refused(tmp_path, change, words):
    tensors = head_tensors(texts.head()) | change
    tensors = {name: np.asarray(v) for name, v in tensors.items() if v is not None}
    path = write_safetensors(tmp_path / "x.safetensors", tensors)
    with pytest.raises(BadInput, match=words) as caught:
        read_text_head(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_class_names_must_count_the_outputs(tmp_path):
    tensors = head_tensors(texts.head())
    path = write_safetensors(tmp_path / "x.safetensors", tensors, {"classes": '["a", "b"]'})
    with pytest.raises(BadInput, match="names 2 classes, but its weight has 3"):
        read_text_head(path)


def test_a_head_that_is_not_there_is_named(tmp_path):
    with pytest.raises(BadInput, match="x.safetensors: there is no such file"):
        read_text_head(tmp_path / "x.safetensors")


def test_a_text_head_is_no_linear_head(tmp_path):
    path = write_text_head(tmp_path, "a", texts.head())
    with pytest.raises(BadInput, match="expected a head with the tensors weight and bias"):
        read_head(path)


def test_a_head_that_is_not_finite_is_not_written(tmp_path):
    head = texts.head()
    head["dense"]["bias"] = np.full(8, np.inf, np.float32)
    with pytest.raises(BadInput, match="head a: dense.bias holds NaN or infinity"):
        write_text_head(tmp_path, "a", head)
    assert not list(tmp_path.iterdir())


def test_classifiers_of_experts_become_files(tmp_path):
    models = [
        save(tmp_path / "x", texts.tensors(2), texts.config(2, ["no", "yes"])),
        save(tmp_path / "y", texts.tensors(None), texts.config(None)),
    ]
    opened = [open_checkpoint(model) for model in models]
    write_own_heads(["a", "b"], opened, tmp_path / "out")
    write_own_heads(["a", "b"], opened, tmp_path / "out")  # the same once more is no conflict
    found = read_text_heads(tmp_path / "out")
    assert list(found) == ["a"]
    assert found["a"].classes == ("no", "yes")
    assert_head(found["a"].head, texts.head(2))
    write_text_head(tmp_path / "out", "a", texts.head(2, seed=5))
    with pytest.raises(BadInput, match="x: the classifier in its weights is another than heads/a"):
        write_own_heads(["a", "b"], opened, tmp_path / "out")
