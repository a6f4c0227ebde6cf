"""RoBERTa gives what transformers' gives with PyTorch, and what is written loads there."""

import logging
import warnings

import jax
import numpy as np
import pytest
import roberta_checkpoints as texts

from symerge_jax.checkpoints.roberta import load_roberta
from symerge_jax.checkpoints.roberta_export import save_roberta
from symerge_jax.models.roberta import classify, encode_tokens, hidden_states

pytestmark = pytest.mark.torch


def made(**options):
    """A RobertaForSequenceClassification with every parameter away from zero and one."""
    torch = pytest.importorskip("torch")
    from transformers import RobertaConfig, RobertaForSequenceClassification

    torch.manual_seed(0)
    rest = {"max_position_embeddings": 40, "type_vocab_size": 1, "layer_norm_eps": 1e-5}
    model = RobertaForSequenceClassification(RobertaConfig(**rest | options)).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("bias") or "LayerNorm" in name:
                weight.add_(0.1 * torch.randn_like(weight))
    return model


SMALL = {
    "vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 4,
    "intermediate_size": 24, "initializer_range": 0.3,
}  # fmt: skip


def drawn(vocabulary, rows=4, length=20):
    ids = np.random.default_rng(0).integers(4, vocabulary, (rows, length))
    ids[:, 0] = 0
    for row in range(rows):
        end = length - 5 * row
        ids[row, end - 1] = 2
        ids[row, end:] = 1
    return ids


def logits_of(model, ids):
    torch = pytest.importorskip("torch")

    with torch.no_grad():
        given = torch.from_numpy(ids)
        return model(given, attention_mask=(given != 1).long()).logits.numpy()


def relative(ours, theirs):
    return np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max()


def read(folder):
    from transformers import RobertaForSequenceClassification

    return RobertaForSequenceClassification.from_pretrained(folder).eval()


def check_there_and_back(tmp_path, model, ids, tolerance):
    """Saved by transformers, read, computed, written, and loaded by transformers again."""
    model.save_pretrained(tmp_path / "theirs")
    loaded = load_roberta(tmp_path / "theirs")
    features = jax.jit(encode_tokens(loaded.config))(loaded.params, ids.astype(np.int32))
    expected = logits_of(model, ids)
    assert relative(classify(loaded.head, features), expected) <= tolerance
    assert relative(expected[:1], expected[1:2]) > 0.05  # rows differ
    save_roberta(tmp_path / "ours", loaded.params, loaded.config, head=loaded.head)
    again = read(tmp_path / "ours")
    before, after = model.state_dict(), again.state_dict()
    assert list(before) == list(after)
    for name, value in before.items():
        np.testing.assert_array_equal(after[name].numpy(), value.numpy(), err_msg=name)
    np.testing.assert_array_equal(logits_of(again, ids), expected)
    return again


@pytest.mark.parametrize("outputs", [1, 2, 3])
def test_a_small_classifier_there_and_back(tmp_path, outputs):
    model = made(**SMALL, num_labels=outputs)
    again = check_there_and_back(tmp_path, model, drawn(50), 1e-5)
    assert again.config.num_labels == outputs
    assert again.config.layer_norm_eps == 1e-5
    kind = "regression" if outputs == 1 else "single_label_classification"
    assert again.config.problem_type == kind


def test_hidden_states_agree_where_there_is_no_padding(tmp_path):
    torch = pytest.importorskip("torch")

    model = made(**SMALL)
    ids = drawn(50)
    model.save_pretrained(tmp_path / "theirs")
    loaded = load_roberta(tmp_path / "theirs")
    with torch.no_grad():
        given = torch.from_numpy(ids)
        expected = model.roberta(given, attention_mask=(given != 1).long()).last_hidden_state
    found = np.asarray(hidden_states(loaded.config)(loaded.params, ids.astype(np.int32)))
    seen = (ids != 1)[:, :, None]
    assert relative(found * seen, expected.numpy() * seen) <= 1e-5


@pytest.mark.parametrize("zipped", [True, False])
def test_a_language_model_in_a_pytorch_file_is_read(tmp_path, zipped):
    torch = pytest.importorskip("torch")
    from transformers import RobertaConfig, RobertaForMaskedLM

    made()  # skips where PyTorch is absent
    config = RobertaConfig(**SMALL, max_position_embeddings=40, type_vocab_size=1)
    model = RobertaForMaskedLM(config)
    (tmp_path / "m").mkdir()
    config.save_pretrained(tmp_path / "m")
    state = dict(model.state_dict()) | {"roberta.embeddings.position_ids": torch.arange(40)[None]}
    path = tmp_path / "m" / "pytorch_model.bin"
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    loaded = load_roberta(tmp_path / "m")
    assert loaded.head is None
    words = model.state_dict()["roberta.embeddings.word_embeddings.weight"].numpy()
    np.testing.assert_array_equal(loaded.params["token_embedding"]["embedding"], words)


def test_an_encoder_alone_loads_as_each_class(tmp_path):
    pytest.importorskip("torch")
    from transformers import AutoModel, RobertaForSequenceClassification

    save_roberta(tmp_path / "m", texts.params(), texts.SIZES)
    logging.disable(logging.WARNING)  # that the classifier is new
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        models = [
            AutoModel.from_pretrained(tmp_path / "m"),
            RobertaForSequenceClassification.from_pretrained(tmp_path / "m").roberta,
        ]
    logging.disable(logging.NOTSET)
    expected = texts.params()["blocks_1"]["mlp"]["fc"]["kernel"]
    for model in models:
        found = model.encoder.layer[1].intermediate.dense.weight.detach().numpy()
        np.testing.assert_array_equal(found.T, expected)


@pytest.mark.slow
def test_a_whole_roberta_base_there_and_back(tmp_path):
    # At the usual scale the blocks hardly change the residual stream; here each one counts.
    model = made(max_position_embeddings=514, initializer_range=0.05)
    again = check_there_and_back(tmp_path, model, drawn(50000, length=32), 1e-4)
    assert len(again.roberta.state_dict()) == 197
    assert load_roberta(tmp_path / "ours").names.source.keys() == {
        f"roberta.{name}" for name in again.roberta.state_dict()
    }
