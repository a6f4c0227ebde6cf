"""RoBERTa checkpoints are read whatever class saved them, written back, or refused by name."""

import itertools
import json

import jax
import numpy as np
import pytest
import roberta_checkpoints as texts
from clip_checkpoints import (
    assert_same,
    hugging_face,
    read_all,
    save,
    save_sharded,
    write_safetensors,
    write_torch,
)
from flax.traverse_util import flatten_dict
from torch_by_hand import floats, make_legacy

from symerge_jax.checkpoints.export import write_model
from symerge_jax.checkpoints.layout import names_of
from symerge_jax.checkpoints.open import load_clip, open_checkpoint
from symerge_jax.checkpoints.roberta import (
    from_hugging_face,
    load_head,
    load_roberta,
    source_names,
    to_hugging_face,
)
from symerge_jax.checkpoints.roberta_export import save_roberta
from symerge_jax.checkpoints.roberta_heads import read_text_heads
from symerge_jax.errors import BadInput
from symerge_jax.leaf_facts import named_leaves, tower_leaves
from symerge_jax.merge.leaves import Leaf
from symerge_jax.models.roberta import param_shapes
from symerge_jax.models.roberta_config import PRESETS, RobertaConfig


def assert_params(found, expected=None):
    jax.tree.map(
        np.testing.assert_array_equal, found, texts.params() if expected is None else expected
    )


def write_legacy(path, tensors):
    """A state dict of float32 in the container of PyTorch before 1.6."""
    arrays = {name: np.asarray(value, "<f4") for name, value in tensors.items()}
    entries = {
        name: floats(*value.shape, key=str(i), numel=value.size, view=b"N")
        for i, (name, value) in enumerate(arrays.items())
    }
    storages = {str(i): value.tobytes() for i, value in enumerate(arrays.values())}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(make_legacy(entries, storages))


# --- reading ------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["safetensors", "shards", "zip", "legacy"])
def test_a_classifier_is_read_from_every_container(tmp_path, form):
    folder, tensors = tmp_path / "model", texts.tensors()
    if form == "safetensors":
        save(folder, tensors, texts.config())
    elif form == "shards":
        save_sharded(folder, tensors, texts.config())
    else:
        write = write_torch if form == "zip" else write_legacy
        folder.mkdir()
        write(folder / "pytorch_model.bin", tensors)
        (folder / "config.json").write_text(json.dumps(texts.config()))
    loaded = load_roberta(folder)
    assert_params(loaded.params)
    assert_params(loaded.head, texts.head())
    assert loaded.config == texts.SIZES
    assert (loaded.classes, loaded.notes) == (None, ())
    assert loaded.names.layout == "roberta"
    assert len(loaded.names.source) == texts.LEAVES


def test_an_encoder_alone_has_no_head(tmp_path):
    for prefix in ("", "roberta."):
        tensors = texts.tensors(None, prefix=prefix)
        loaded = load_roberta(save(tmp_path / f"m{prefix}", tensors, texts.config(None)))
        assert_params(loaded.params)
        assert loaded.head is None
        assert loaded.names.prefix == prefix
        assert load_head(loaded.source) is None


def test_a_language_model_is_read_without_what_is_no_encoder(tmp_path):
    loaded = load_roberta(save(tmp_path / "m", texts.language_model(), texts.config(None)))
    assert_params(loaded.params)
    assert loaded.head is None
    assert set(loaded.names.left_out) == set(texts.language_model()) - set(texts.tensors(None))
    assert len(loaded.names.source) == texts.LEAVES


def test_gamma_and_beta_are_weight_and_bias(tmp_path):
    old = texts.old_names(texts.tensors())
    assert sum(name.endswith((".gamma", ".beta")) for name in old) == 2 + 4 * texts.SIZES.depth
    loaded = load_roberta(save(tmp_path / "m", old, texts.config()))
    assert_params(loaded.params)
    assert set(loaded.names.source) == set(texts.tensors(None))


def test_an_encoder_that_was_saved_alone_with_old_names_and_a_pooler():
    tensors = texts.old_names(texts.tensors(None, prefix=""))
    tensors |= {"pooler.dense.weight": np.ones((8, 8), np.float32)}
    tensors |= {"embeddings.position_ids": np.arange(14)[None]}
    found = from_hugging_face(tensors, texts.config(None))
    assert_params(found.params)
    assert set(found.aside) == {"pooler.dense.weight", "embeddings.position_ids"}


def test_class_names_come_from_the_config(tmp_path):
    names = ("no", "maybe", "yes")
    folder = save(tmp_path / "m", texts.tensors(), texts.config(3, names))
    assert load_roberta(folder).classes == names
    head, classes = load_head(open_checkpoint(folder))
    assert_params(head, texts.head())
    assert classes == names


def test_a_classifier_of_tokens_is_an_encoder_without_a_head():
    tensors = texts.tensors(None) | {"classifier.weight": np.ones((5, 8), np.float32)}
    found = from_hugging_face(tensors, texts.config(None))
    assert (found.head, found.aside) == (None, ("classifier.weight",))


def test_without_a_config_a_head_has_64_features(tmp_path):
    sizes = RobertaConfig(vocabulary=7, positions=6, width=384, depth=1, heads=6, mlp_width=16)
    tree = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), param_shapes(sizes))
    path = write_safetensors(tmp_path / "x.safetensors", to_hugging_face(tree))
    loaded = load_roberta(path)
    assert loaded.config == sizes
    assert loaded.notes[0].startswith("no config beside the weights: taking 64 features")
    with pytest.raises(BadInput, match="heads cannot be told from width 8; put config.json"):
        from_hugging_face(texts.tensors())


def test_defaults_of_a_config_are_those_of_transformers():
    config = texts.config()
    for key in ("layer_norm_eps", "pad_token_id", "hidden_act"):
        del config[key]
    found = from_hugging_face(texts.tensors(), config)
    assert (found.config.layer_norm_eps, found.config.pad_token) == (1e-12, 1)


# --- what is refused ----------------------------------------------------------------------------

LEAF = "roberta.encoder.layer.1.output.dense.weight"


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"hidden_act": "gelu_new"}, "hidden_act is 'gelu_new', expected 'gelu'"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu', expected 'gelu'"),
        ({"position_embedding_type": "relative_key"}, "expected 'absolute'"),
        ({"is_decoder": True}, "is_decoder is True, expected False"),
        ({"model_type": "longformer"}, "model_type is 'longformer', expected one of roberta"),
        ({"vocab_size": 24}, "vocab_size is 24, but the tensors have 23"),
        ({"hidden_size": 16}, "hidden_size is 16, but the tensors have 8"),
        ({"intermediate_size": 32}, "intermediate_size is 32, but the tensors have 12"),
        ({"max_position_embeddings": 12}, "max_position_embeddings is 12, but .* have 14"),
        ({"type_vocab_size": 2}, "type_vocab_size is 2, but the tensors have 1"),
        ({"num_hidden_layers": "2"}, "num_hidden_layers is '2', but the tensors have 2"),
        ({"num_attention_heads": 3}, "width 8 is no multiple of heads 3"),
        ({"num_attention_heads": "2"}, "num_attention_heads is '2', expected a whole number"),
        ({"layer_norm_eps": "1e-5"}, "layer_norm_eps is '1e-5', expected a number"),
        ({"pad_token_id": -1}, "pad_token_id is -1, expected a whole number"),
        ({"id2label": {"0": "a", "1": "b"}}, r"config states 2 labels \(id2label\), .* 3 outputs"),
        ({"id2label": {"1": "a", "2": "b", "3": "c"}}, "expected names for 0, 1, …"),
        ({"id2label": ["a"]}, "expected names for 0, 1, …"),
        ({"id2label": None, "num_labels": 4}, "config states 4 labels"),
    ],
    ids=str,
)
def test_a_config_that_the_tensors_contradict(tmp_path, config, words):
    folder = save(tmp_path / "m", texts.tensors(), texts.config() | config)
    with pytest.raises(BadInput, match=words) as caught:
        load_roberta(folder)
    assert str(caught.value).startswith(f"{folder}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({LEAF: None}, f"tensor {LEAF} is missing"),
        ({"roberta.encoder.layer.2.x": np.ones(2)}, r"layer.2.x \(2,\) belongs to no known part"),
        ({"qa_outputs.weight": np.ones((2, 8))}, r"qa_outputs.weight \(2, 8\) belongs to no known"),
        ({LEAF: np.ones((12, 8))}, rf"{LEAF} has shape \(12, 8\), expected \(8, 12\)"),
        ({LEAF: np.ones(8)}, rf"{LEAF} has shape \(8,\), expected 2 axes"),
        (
            {"roberta.embeddings.LayerNorm.gamma": np.ones(8)},
            "LayerNorm.weight and roberta.embeddings.LayerNorm.gamma are the same tensor",
        ),
        ({"classifier.dense.bias": None}, "tensor classifier.dense.bias of the head is missing"),
        (
            {"classifier.dense.weight": np.ones((6, 6))},
            r"dense.weight of the head has shape \(6, 6\), expected \(8, 8\) for features of width",
        ),
        (
            {"classifier.out_proj.weight": np.ones((3, 6))},
            r"out_proj.weight of the head has shape \(3, 6\), expected \(3, 8\)",
        ),
        (
            {"other.roberta.embeddings.word_embeddings.weight": np.ones((2, 2))},
            "several RoBERTa encoders: roberta., other.roberta.",
        ),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_tensors_that_do_not_fit(change, words):
    tensors = texts.tensors() | change
    tensors = {name: value for name, value in tensors.items() if value is not None}
    with pytest.raises(BadInput, match=words) as caught:
        from_hugging_face(tensors, texts.config(), source="my/model")
    assert str(caught.value).startswith("my/model: ")


def test_a_layer_that_the_config_has_and_the_tensors_lack():
    name = "roberta.encoder.layer.2.attention.self.query.weight"
    with pytest.raises(BadInput, match=f"checkpoint: tensor {name} is missing"):
        from_hugging_face(texts.tensors(), texts.config() | {"num_hidden_layers": 3})


def test_bert_and_clip_are_no_roberta(tmp_path):
    bert = texts.tensors(None, prefix="bert.")
    name = "bert.embeddings.token_type_embeddings.weight"
    bert[name] = np.ones((2, 8), np.float32)
    bare = {name.removeprefix("bert."): value for name, value in bert.items()}
    for tensors in (bert, bare, hugging_face()):
        path = write_safetensors(tmp_path / "x.safetensors", tensors)
        assert names_of(open_checkpoint(path)).layout != "roberta"
        with pytest.raises(BadInput, match="x.safetensors: no RoBERTa in it; expected"):
            load_roberta(path)
        with pytest.raises(BadInput, match="checkpoint: no RoBERTa in it; expected"):
            from_hugging_face(tensors)
    stated = save(tmp_path / "m", texts.tensors(None, prefix=""), {"model_type": "bert"})
    assert names_of(open_checkpoint(stated)).layout == "plain"


def test_a_roberta_is_no_clip(tmp_path):
    folder = save(tmp_path / "m", texts.tensors(), texts.config())
    with pytest.raises(BadInput, match="no CLIP image tower in it; .* found roberta.embeddings"):
        load_clip(folder)


# --- writing ------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["roberta.", ""])
def test_what_was_read_is_written_back(prefix):
    tensors = texts.tensors(prefix=prefix)
    found = from_hugging_face(tensors, texts.config())
    again = to_hugging_face(found.params, head=found.head, prefix=found.prefix)
    assert list(again) == list(tensors)
    assert_same(again, tensors)


def test_the_tensors_of_roberta_base_are_called_as_in_transformers():
    tree = jax.tree.map(
        lambda x: np.zeros((0,) * len(x.shape)), param_shapes(PRESETS["roberta-base"])
    )
    names = list(to_hugging_face(tree))
    assert len(names) == 197
    assert names[:6] == [
        "roberta.embeddings.word_embeddings.weight",
        "roberta.embeddings.position_embeddings.weight",
        "roberta.embeddings.token_type_embeddings.weight",
        "roberta.embeddings.LayerNorm.weight",
        "roberta.embeddings.LayerNorm.bias",
        "roberta.encoder.layer.0.attention.self.query.weight",
    ]
    assert names[-1] == "roberta.encoder.layer.11.output.LayerNorm.bias"
    assert [name for name, _ in source_names(tree)] == names


@pytest.mark.parametrize("outputs", [None, 1, 3])
def test_a_folder_is_read_as_it_was_saved(tmp_path, outputs):
    own = None if outputs is None else texts.head(outputs)
    names = ["a", "b", "c"] if outputs == 3 else None
    folder = save_roberta(
        tmp_path / "new" / "m", texts.params(), texts.SIZES, head=own, classes=names
    )
    loaded = load_roberta(folder)
    assert_params(loaded.params)
    assert loaded.config == texts.SIZES
    assert loaded.classes == (None if names is None else tuple(names))
    config = json.loads((folder / "config.json").read_text())
    if outputs is None:
        assert loaded.head is None
        assert config["architectures"] == ["RobertaModel"]
        assert "id2label" not in config
        return
    assert_params(loaded.head, own)
    assert config["architectures"] == ["RobertaForSequenceClassification"]
    assert len(config["id2label"]) == len(config["label2id"]) == outputs
    kinds = {1: "regression", 3: "single_label_classification"}
    assert config["problem_type"] == kinds[outputs]


def test_a_saved_model_keeps_config_and_tokenizer_of_its_source(tmp_path):
    source = save(tmp_path / "base", texts.language_model(), texts.config(None, mine="kept"))
    for name in ("vocab.json", "merges.txt", "tokenizer.json"):
        (source / name).write_text(f"the {name}")
    loaded = load_roberta(source)
    for _ in range(2):  # the second time over the first
        folder = save_roberta(
            tmp_path / "m", loaded.params, loaded.config, head=texts.head(2), like=loaded.source
        )
    assert json.loads((folder / "config.json").read_text())["mine"] == "kept"
    assert (folder / "merges.txt").read_text() == "the merges.txt"
    assert (folder / "tokenizer.json").read_text() == "the tokenizer.json"
    assert {path.name for path in folder.iterdir()} == {
        "model.safetensors", "config.json", "vocab.json", "merges.txt", "tokenizer.json",
    }  # fmt: skip


def test_what_cannot_be_saved_is_refused(tmp_path):
    with pytest.raises(BadInput, match="2 class names for a head with 3 outputs"):
        save_roberta(
            tmp_path / "m", texts.params(), texts.SIZES, head=texts.head(), classes=["a", "b"]
        )
    broken = texts.params()
    broken["ln_embedding"]["bias"] = np.full(8, np.nan, np.float32)
    with pytest.raises(BadInput, match="m/model.safetensors: .*LayerNorm.bias holds NaN"):
        save_roberta(tmp_path / "m", broken, texts.SIZES)
    del broken["ln_embedding"]
    with pytest.raises(BadInput, match="leaf ln_embedding/bias of the tree and the layout"):
        save_roberta(tmp_path / "m", broken, texts.SIZES)
    assert not list(tmp_path.glob("m/*"))


def test_a_model_is_written_like_the_checkpoint_it_comes_from(tmp_path):
    source = save(tmp_path / "base", texts.language_model(), texts.config(None))
    heads = {"a": texts.head(2), "b": texts.head(1)}
    out = write_model(
        tmp_path / "out",
        texts.params(seed=1),
        like=open_checkpoint(source),
        heads=heads,
        classes={"a": ["no", "yes"]},
    )
    assert_same(read_all(out / "model.safetensors"), texts.tensors(None, seed=1))
    found = read_text_heads(out)
    assert_params(found["a"].head, heads["a"])
    assert (found["a"].classes, found["b"].classes) == (("no", "yes"), None)
    assert json.loads((out / "config.json").read_text())["architectures"] == ["RobertaModel"]
    alone = write_model(tmp_path / "alone", texts.params(seed=1), like=texts.SIZES)
    assert_params(load_roberta(alone).params, texts.params(seed=1))


# --- facts about leaves -------------------------------------------------------------------------


def test_names_and_paths_tell_the_same_of_every_leaf():
    tree = texts.params()
    by_path = flatten_dict(tower_leaves(tree), sep="/")
    shapes = {name: value.shape for name, value in texts.tensors(None).items()}
    by_name = named_leaves(shapes, "roberta")
    for name, path in source_names(tree):
        here, there = by_path[path], by_name[name]
        assert (here.depth, here.part) == (there.depth, there.part), name
        assert (here.matrix is None) == (there.matrix is None), name
        assert (here.group is None) == (there.group is None), name
    query = by_name["roberta.encoder.layer.1.attention.self.query.weight"]
    assert query == Leaf("out_in", 1, "encoder/blocks_1/attention", 0)
    assert by_path["blocks_1/attention/value/kernel"] == Leaf("in_out", 1, "blocks_1/attention", 2)
    assert by_name["roberta.embeddings.token_type_embeddings.weight"] == Leaf()
    assert by_name["roberta.embeddings.word_embeddings.weight"] == Leaf("out_in")
    assert by_path["ln_embedding/scale"] == Leaf()


def test_common_names_are_the_same_whatever_saved_them(tmp_path):
    forms = [
        texts.tensors(),
        texts.tensors(None, prefix=""),
        texts.old_names(texts.tensors(None, prefix="")),
        texts.language_model(),
        texts.tensors(None, prefix="model.roberta."),
    ]
    found = []
    for i, tensors in enumerate(forms):
        path = write_safetensors(tmp_path / f"{i}.safetensors", tensors)
        found.append(set(names_of(open_checkpoint(path)).source))
    for one, other in itertools.pairwise(found):
        assert one == other
