"""A merged model is checked file by file, and by what it computes."""

import json

import clip_checkpoints as clips
import numpy as np
import pytest
from merging import COUNTER, assert_noticed, failures, merged_by_files, moved, recorded, written

from symerge_jax.checkpoints.export import write_head
from symerge_jax.checkpoints.heads import copy_heads
from symerge_jax.errors import BadInput
from symerge_jax.merge_files import merge_files
from symerge_jax.merge_plan import plan
from symerge_jax.verify import verify, write_reference


@pytest.fixture
def tensors():
    """θ₀ as Hugging Face names it, with an integer buffer."""
    return clips.hugging_face() | {COUNTER: np.arange(5)}


@pytest.fixture
def folders(tmp_path, tensors):
    """θ₀ and three experts as Hugging Face folders."""
    return written(tmp_path, tensors, [moved(tensors, k) for k in range(3)])


@pytest.fixture
def merged(tmp_path, folders):
    write_head(folders[1][0], "eurosat", {"weight": np.ones((2, 6)), "bias": np.zeros(2)}, None)
    chosen = plan(*folders)

    def finish(folder):
        copy_heads(chosen.experts, folder)
        write_reference(folder)

    merge_files(chosen, "task_arithmetic", tmp_path / "out", finish=finish)
    return tmp_path / "out"


def test_verify_recomputes_features_and_logits(merged):
    findings = list(verify(merged))
    assert all(finding.holds for finding in findings)
    computed = {f.what for f in findings if f.what.endswith("of the reference inputs")}
    assert computed == {
        "features of the reference inputs",
        "logits/eurosat of the reference inputs",
    }


def test_verify_finds_a_network_that_computes_something_else(merged, monkeypatch):
    from symerge_jax import verify as checks

    encode = checks.encode_once
    monkeypatch.setattr(checks, "encode_once", lambda *args: encode(*args) * np.float32(1.01))
    failed = failures(merged)
    assert failed == ["features of the reference inputs"]  # logits are of normalised features


def test_a_head_put_there_later_is_no_failure(merged):
    write_head(merged, "later", {"weight": np.ones((2, 6)), "bias": np.zeros(2)}, None)
    assert failures(merged) == []


def test_a_card_of_another_format_says_who_reads_it(merged):
    from symerge_jax.checkpoints.export import card_digest, write_json

    card = json.loads((merged / "merge_card.json").read_text()) | {"format": 2}
    write_json(merged / "merge_card.json", card | {"sha256": card_digest(card)})
    with pytest.raises(BadInput, match="format 2, expected 1; read it with the version"):
        list(verify(merged))


def test_a_folder_without_a_card_is_refused(tmp_path):
    with pytest.raises(BadInput, match=r"no merge_card\.json here"):
        list(verify(tmp_path))


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_every_byte_of_a_merged_model_counts(tmp_path, kind):
    folders, _ = recorded(kind, tmp_path / "in")
    out = tmp_path / "out"
    merged_by_files(out, folders, "task_arithmetic", finish=write_reference)
    assert {path.name for path in out.iterdir()} == {
        "file": {"merge_card.json", "model.safetensors"},  # sizes unknown: nothing to compute
        "folder": {"config.json", "merge_card.json", "model.safetensors", "reference.npz"},
    }[kind]
    assert all(finding.holds for finding in verify(out))
    for path in sorted(out.iterdir()):
        assert_noticed(out, path)
    assert all(finding.holds for finding in verify(out))
