"""Commands on RoBERTa folders: merge, inspect, convert and verify, as a person runs them."""

import json
import shutil

import numpy as np
import pytest
import roberta_checkpoints as texts
from clip_checkpoints import assert_same, hugging_face, read_all, save, write_safetensors
from commands import refused, symerge

from symerge_jax import verify  # noqa: F401 (else a thread imports it while types are checked)
from symerge_jax.checkpoints.roberta import load_roberta
from symerge_jax.checkpoints.roberta_heads import read_text_heads
from symerge_jax.models.roberta import classify, encode_tokens

pytestmark = pytest.mark.usefixtures("separate")


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    return texts.family(tmp_path_factory.mktemp("family"))


def merge(family, out, method="task_arithmetic", *words):
    base, experts = family
    return symerge(
        "merge", method, "--pretrained", base, "--experts", *experts, "--output", out, *words
    )


def encoder_of(folder):
    found = read_all(folder / "model.safetensors")
    names = set(texts.tensors(None))
    return {name: value for name, value in found.items() if name in names}


# --- merge --------------------------------------------------------------------------------------


def test_the_encoder_is_merged_and_every_classifier_becomes_a_head(capsys, tmp_path, family):
    base, experts = family
    assert merge(family, tmp_path / "out", "task_arithmetic", "--scale", 0.4) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines() == [str(tmp_path / "out")]
    assert f"{base}: left out, no part of the encoder: " in " ".join(captured.err.split())
    assert f"{texts.LEAVES} tensors merged, 0 copied" in captured.err

    found, start = read_all(tmp_path / "out" / "model.safetensors"), encoder_of(base)
    assert set(found) == set(start)
    thetas = [encoder_of(expert) for expert in experts]
    for name, theta in start.items():
        tau = sum(one[name] - theta for one in thetas)
        np.testing.assert_allclose(found[name], theta + 0.4 * tau, rtol=1e-5, atol=1e-6)

    heads = read_text_heads(tmp_path / "out")
    assert list(heads) == ["task0", "task1", "task2"]
    assert [head.outputs for head in heads.values()] == [3, 2, 1]
    assert heads["task1"].classes == ("class 0", "class 1")
    for expert, head in zip(experts, heads.values(), strict=True):
        stored = load_roberta(expert).head
        np.testing.assert_array_equal(stored["out_proj"]["kernel"], head.head["out_proj"]["kernel"])


def test_a_merged_folder_is_a_model_with_its_tokenizer(tmp_path, family):
    base, _ = family
    assert merge(family, tmp_path / "out", "weight_average") == 0
    loaded = load_roberta(tmp_path / "out")
    assert loaded.config == texts.SIZES
    assert loaded.head is None
    for name in ("vocab.json", "merges.txt"):
        assert (tmp_path / "out" / name).read_bytes() == (base / name).read_bytes()
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["RobertaModel"]
    assert not {"id2label", "label2id", "problem_type"} & set(config)
    card = json.loads((tmp_path / "out" / "merge_card.json").read_text())
    assert card["layout"] == "roberta"


def test_the_reference_of_a_merge_is_what_the_model_computes(capsys, tmp_path, family):
    assert merge(family, tmp_path / "out", "ties") == 0
    with np.load(tmp_path / "out" / "reference.npz") as file:
        stored = {name: file[name] for name in file.files}
    assert set(stored) == {"inputs", "features", *(f"logits/task{k}" for k in range(3))}
    assert (stored["inputs"].dtype, stored["inputs"].shape) == (np.int32, (2, 12))
    assert (stored["inputs"] == 1).sum(axis=1).tolist() == [0, 6]
    loaded = load_roberta(tmp_path / "out")
    features = encode_tokens(loaded.config)(loaded.params, stored["inputs"])
    np.testing.assert_allclose(stored["features"], features, rtol=1e-4, atol=1e-5)
    head = read_text_heads(tmp_path / "out")["task0"].head
    np.testing.assert_allclose(stored["logits/task0"], classify(head, features), atol=1e-4)
    capsys.readouterr()
    assert symerge("verify", tmp_path / "out") == 0
    # Weights, config, two of the tokenizer, reference, three heads; features, three logits.
    assert "all 12 checks hold" in " ".join(capsys.readouterr().out.split())


def test_a_changed_head_fails_the_check(capsys, tmp_path, family):
    assert merge(family, tmp_path / "out", "weight_average") == 0
    path = tmp_path / "out" / "heads" / "task1.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert symerge("verify", tmp_path / "out") == 1
    assert "heads/task1.safetensors is not the file" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("method", ["tsv_m", "iso_c", "lines", "pcb", "consensus", "breadcrumbs"])
def test_methods_that_ask_about_leaves_run(tmp_path, family, method):
    assert merge(family, tmp_path / "out", method) == 0
    found = read_all(tmp_path / "out" / "model.safetensors")
    assert set(found) == set(texts.tensors(None))
    assert all(np.isfinite(value).all() for value in found.values())


def test_query_key_and_value_can_be_one_matrix(tmp_path, family):
    assert merge(family, tmp_path / "apart", "tsv_m") == 0
    assert merge(family, tmp_path / "fused", "tsv_m", "--fuse-qkv") == 0
    apart, fused = (read_all(tmp_path / d / "model.safetensors") for d in ("apart", "fused"))
    differing = {name for name in apart if not np.allclose(apart[name], fused[name], atol=1e-6)}
    parts = (".query.weight", ".key.weight", ".value.weight")
    assert differing
    assert all(name.endswith(parts) for name in differing)


def test_a_method_with_a_model_per_task(tmp_path, family):
    assert merge(family, tmp_path / "out", "emr") == 0
    for k in range(3):
        folder = tmp_path / "out" / f"0{k}_task{k}"
        assert load_roberta(folder).config == texts.SIZES
        assert f"task{k}" in read_text_heads(folder)
    assert symerge("verify", tmp_path / "out") == 0


def test_experts_saved_by_other_classes_and_in_other_years(tmp_path, family):
    base, experts = family
    bare = {
        texts.old_names({name.removeprefix("roberta."): None}).popitem()[0]: value
        for name, value in encoder_of(base).items()
    }
    old = save(tmp_path / "old", bare, texts.config(None))
    assert merge((old, experts), tmp_path / "a", "weight_average") == 0
    assert merge(family, tmp_path / "b", "weight_average") == 0
    assert_same(
        read_all(tmp_path / "a" / "model.safetensors"),
        read_all(tmp_path / "b" / "model.safetensors"),
    )


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"layer_norm_eps": 1e-12}, "has layer norm eps 1e-12, but {base} has 1e-05"),
        ({"num_attention_heads": 4}, "has heads 4, but {base} has 2"),
        ({"hidden_act": "gelu_new"}, "config: hidden_act is 'gelu_new', expected 'gelu'"),
    ],
)
def test_experts_that_compute_something_else_are_refused(capsys, tmp_path, family, change, says):
    base, experts = family
    odd = shutil.copytree(experts[0], tmp_path / "odd")
    config = json.loads((odd / "config.json").read_text())
    (odd / "config.json").write_text(json.dumps(config | change))
    words = ("--pretrained", base, "--experts", odd, experts[1], "--output", tmp_path / "out")
    line = refused(capsys, "merge", "ties", *words, among=tmp_path)
    assert f"{odd}: {says.format(base=base)}" in line


def test_another_vocabulary_is_refused(capsys, tmp_path, family):
    base, experts = family
    odd = shutil.copytree(experts[0], tmp_path / "odd")
    tensors = read_all(odd / "model.safetensors")
    name = "roberta.embeddings.word_embeddings.weight"
    tensors[name] = np.concatenate([tensors[name], tensors[name][:1]])
    write_safetensors(odd / "model.safetensors", tensors)
    words = ("--pretrained", base, "--experts", odd, experts[1], "--output", tmp_path / "out")
    line = refused(capsys, "merge", "ties", *words, among=tmp_path)
    assert f"{odd}: tensor {name} has shape (24, 8), in {base} it has (23, 8)" in line


def test_a_clip_and_a_roberta_are_not_merged(capsys, tmp_path, family):
    base, experts = family
    clip = write_safetensors(tmp_path / "clip.safetensors", hugging_face())
    words = ("--pretrained", base, "--experts", experts[0], clip, "--output", tmp_path / "out")
    line = refused(capsys, "merge", "ties", *words, among=tmp_path)
    assert "has the hugging_face layout" in line
    assert "the roberta layout" in line


# --- inspect ------------------------------------------------------------------------------------


def test_inspect_says_what_a_classifier_is_and_how_a_family_is_related(capsys, family):
    base, experts = family
    assert symerge("inspect", base, *experts, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    start, first, _, last = found["files"]
    assert first["architecture"] == (
        "RoBERTa encoder: width 8, 2 blocks, 2 heads, 23 token ids, texts up to 12 tokens, "
        "head of 3 outputs"
    )
    assert start["architecture"].endswith("no head")
    assert last["architecture"].endswith("head of 1 outputs")
    assert (first["layout"], first["activation"]) == ("roberta", "gelu")
    assert "lm_head.bias" in start["left_out"]
    assert set(first["left_out"]) == set(texts.tensors()) - set(texts.tensors(None))
    relation = found["relation"]
    assert relation["pretrained"] == 0
    assert relation["blocks"] == ["all", "input", "block 0", "block 1"]
    assert relation["left_out"] == []
    assert all(relation["same_start"])
    assert symerge("inspect", experts[0]) == 0
    assert "left out of merges" in capsys.readouterr().out


# --- convert ------------------------------------------------------------------------------------


def test_convert_writes_todays_names_and_keeps_the_classifier(capsys, tmp_path):
    tensors = texts.old_names(texts.tensors(2)) | {
        "roberta.pooler.dense.bias": np.ones(8, np.float32),
        "roberta.embeddings.position_ids": np.arange(14)[None],
    }
    source = save(tmp_path / "old", tensors, texts.config(2, ["no", "yes"], mine=1))
    (source / "tokenizer.json").write_text("{}")
    assert symerge("convert", source, tmp_path / "out", "--to", "hf") == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines() == [str(tmp_path / "out")]
    said = " ".join(captured.err.split())
    assert "roberta.pooler.dense.bias, roberta.embeddings.position_ids" in said
    assert_same(read_all(tmp_path / "out" / "model.safetensors"), texts.tensors(2))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["id2label"], config["mine"]) == ({"0": "no", "1": "yes"}, 1)
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "{}"
    with np.load(tmp_path / "out" / "reference.npz") as file:
        assert file["logits"].shape == (2, 2)
    assert symerge("verify", tmp_path / "out") == 0


def test_convert_to_one_file_keeps_everything(tmp_path):
    source = save(tmp_path / "m", texts.language_model(), texts.config(None))
    out = tmp_path / "out.safetensors"
    assert symerge("convert", source, out, "--to", "safetensors") == 0
    assert_same(read_all(out), texts.language_model())


def test_open_clip_has_no_names_for_it(capsys, tmp_path):
    source = save(tmp_path / "m", texts.tensors(), texts.config())
    words = ("convert", source, tmp_path / "out", "--to", "open_clip")
    line = refused(capsys, *words, among=tmp_path)
    assert f"{source}: a RoBERTa, which open_clip's layout has no names for; take --to hf" in line


def test_a_missing_tensor_is_named(capsys, tmp_path):
    tensors = texts.tensors()
    del tensors["roberta.encoder.layer.0.intermediate.dense.bias"]
    source = save(tmp_path / "m", tensors, texts.config())
    line = refused(capsys, "convert", source, tmp_path / "out", "--to", "hf", among=tmp_path)
    assert f"{source}: tensor roberta.encoder.layer.0.intermediate.dense.bias is missing" in line
