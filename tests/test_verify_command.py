"""`symerge verify`: 0 for the model that was written, 1 for another, 2 for what is none."""

import json
import shutil

import pytest
import tiny_experts
from commands import contents, refused, symerge

from symerge_jax import verify as verification

pytestmark = pytest.mark.usefixtures("separate")


@pytest.fixture(scope="session")
def merged(tmp_path_factory):
    tiny = tiny_experts.made(tmp_path_factory.getbasetemp())
    out = tmp_path_factory.mktemp("merged") / "model"
    experts = tiny.experts["open_clip"].values()
    words = ("--pretrained", tiny.base["open_clip"], "--experts", *experts, "--output", out)
    assert symerge("merge", "weight_average", *words) == 0
    return out


@pytest.fixture
def model(tmp_path, merged):
    return shutil.copytree(merged, tmp_path / "model")


def verify(capsys, model):
    capsys.readouterr()
    code = symerge("verify", model)
    captured = capsys.readouterr()
    assert captured.err == ""
    return code, captured.out


def test_a_model_as_it_was_written(capsys, model):
    before = contents(model)
    code, text = verify(capsys, model)
    assert code == 0
    # Weights, config, reference and three heads; features and three sets of logits.
    assert text.splitlines()[-1].endswith("all 10 checks hold")
    assert "FAILED" not in text
    assert contents(model) == before


def test_a_model_that_was_moved_is_the_same(capsys, tmp_path, model):
    assert verify(capsys, model.rename(tmp_path / "elsewhere"))[0] == 0


@pytest.mark.parametrize(
    "name",
    ["open_clip_model.safetensors", "open_clip_config.json", "heads/sky.safetensors"],
)
def test_a_changed_byte_fails(capsys, model, name):
    content = bytearray((model / name).read_bytes())
    content[len(content) // 2] ^= 1
    (model / name).write_bytes(content)
    code, text = verify(capsys, model)
    assert code == 1
    last = " ".join(text.split())
    assert f"1 of 6 checks failed: {name} is not the file that was written" in last


def test_a_missing_file_fails(capsys, model):
    (model / "heads" / "sky.safetensors").unlink()
    code, text = verify(capsys, model)
    assert code == 1
    assert "heads/sky.safetensors is missing" in " ".join(text.split())


def test_a_changed_card_fails(capsys, model):
    path = model / "merge_card.json"
    card = json.loads(path.read_text())
    card["method"] = "ties"
    path.write_text(json.dumps(card))
    code, text = verify(capsys, model)
    assert code == 1
    assert "merge_card.json was changed after it was written" in " ".join(text.split())


def test_a_card_cut_short_fails(capsys, model):
    path = model / "merge_card.json"
    path.write_bytes(path.read_bytes()[:100])
    code, text = verify(capsys, model)
    assert code == 1
    assert "merge_card.json" in text


def test_other_numbers_fail(capsys, model, monkeypatch):
    """As on a machine that computes something else from the same files."""
    outputs = verification._outputs

    def different(*args):
        return {name: value + 0.01 for name, value in outputs(*args).items()}

    monkeypatch.setattr(verification, "_outputs", different)
    code, text = verify(capsys, model)
    assert code == 1
    assert "4 of 10 checks failed: largest relative difference" in " ".join(text.split())


def test_a_folder_without_a_card(capsys, tmp_path):
    (tmp_path / "model").mkdir()
    says = refused(capsys, "verify", tmp_path / "model", among=tmp_path)
    assert f"{tmp_path / 'model'}: no merge_card.json here" in says


def test_a_folder_that_is_not_there(capsys, tmp_path):
    assert "no merge_card.json here" in refused(capsys, "verify", tmp_path / "x", among=tmp_path)


def test_a_card_of_another_format(capsys, tmp_path, model):
    path = model / "merge_card.json"
    card = json.loads(path.read_text()) | {"format": 99}
    card["sha256"] = verification.export.card_digest(card)
    path.write_text(json.dumps(card))
    says = refused(capsys, "verify", model, among=tmp_path)
    assert "format 99, expected 1" in says


def test_no_folder_named(capsys, tmp_path):
    assert "symerge verify --help" in refused(capsys, "verify", among=tmp_path)
