"""The pre-trained base: what is committed is whole, and every caption can be read."""

import json
import shutil

import numpy as np
import pytest

from experiments.tiny import base as tiny
from experiments.tiny import broad, world
from symerge_jax.errors import BadInput
from symerge_jax.models.clip import PRESETS, param_shapes

FILES = ("base.json", "base.safetensors")


@pytest.fixture
def copy(tmp_path):
    for name in FILES:
        shutil.copy(tiny.HOME / name, tmp_path / name)
    return tmp_path


def shapes(tree):
    return {k: shapes(v) if isinstance(v, dict) else tuple(v.shape) for k, v in tree.items()}


def test_the_committed_base_is_whole():
    base = tiny.load()
    assert shapes(base.params["vision"]) == shapes(param_shapes(base.config.vision))
    assert shapes(base.params["text"]) == shapes(param_shapes(base.config.text))
    assert 1 < base.scale() <= tiny.MAX_SCALE
    assert "unfinished" not in base.card


def test_what_is_saved_is_loaded(tmp_path):
    base = tiny.load()
    tiny.save(base.config, base.params, base.tokenizer, {"note": "a copy"}, tmp_path)
    again = tiny.load(tmp_path)
    assert again.config == base.config
    assert again.tokenizer.words == base.tokenizer.words
    assert again.card["note"] == "a copy"
    assert again.card["sha256"] == base.card["sha256"]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(FILES)


def flipped(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize("damage", [flipped, lambda content: content[:-9], lambda content: b""])
def test_damaged_weights_are_refused(copy, damage):
    path = copy / "base.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(BadInput, match=r"base\.safetensors: .* restore .* --retrain"):
        tiny.load(copy)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_refused(copy, name):
    (copy / name).unlink()
    with pytest.raises(BadInput, match=rf"cannot read the pre-trained base .*{name}"):
        tiny.load(copy)


@pytest.mark.parametrize("card", ["", "[]", "{}", "null"])
def test_a_damaged_card_is_refused(copy, card):
    (copy / "base.json").write_text(card)
    with pytest.raises(BadInput, match="restore"):
        tiny.load(copy)


@pytest.mark.parametrize("key", ["vision", "text", "words"])
def test_a_card_that_lacks_something_is_refused(copy, key):
    card = json.loads((copy / "base.json").read_text())
    del card[key]
    (copy / "base.json").write_text(json.dumps(card))
    with pytest.raises(BadInput, match=rf"base\.json: is not the card of a base .*{key}"):
        tiny.load(copy)


@pytest.fixture(scope="module")
def captions():
    return tiny.captions(PRESETS[tiny.Settings.model].text.length)


def test_the_vocabulary_covers_every_class_name(captions):
    names = [name for family in world.FAMILIES.values() for name in family.classes]
    names += [name for family in broad.BROAD.values() for name in family.classes]
    for tokenizer in (captions.tokenizer, tiny.load().tokenizer):
        for template in world.TEMPLATES:
            tokens = tokenizer([template.format(name) for name in names])  # raises if it does not
            assert (tokens > 0).any(axis=1).all()


def test_captions_are_the_names_that_pre_training_shows(captions):
    assert len(set(captions.names)) == len(captions.names)
    shown = [name for task in world.PRETRAINING for name in world.FAMILIES[task].classes]
    shown += [name for family in broad.BROAD.values() for name in family.classes]
    assert set(captions.names) == set(shown)
    assert not set(world.FAMILIES["runes"].classes) & set(captions.names)
    assert captions.tokens.shape[:2] == (len(world.TEMPLATES), len(captions.names))


def test_a_job_names_the_class_of_each_picture():
    for kind, name in (("easy", "signs"), ("hard", "signs"), ("broad", "beasts")):
        images, classes = tiny._make((kind, name, 5, 0))
        assert images.shape == (5, 32, 32, 3)
        family = broad.BROAD[name] if kind == "broad" else world.FAMILIES[name]
        assert set(classes) <= set(family.classes)


def test_the_contrastive_loss_prefers_the_right_captions():
    rng = np.random.default_rng(0)
    text = rng.normal(size=(4, 8)).astype(np.float32)
    labels = np.array([2, 0, 2])
    right = tiny.contrastive(text[labels], text, labels, np.float32(10))
    wrong = tiny.contrastive(text[[1, 3, 1]], text, labels, np.float32(10))
    assert right < wrong


def test_the_rate_rises_then_falls():
    rates = tiny.rates(tiny.Settings(learning_rate=2.0), np.linspace(0, 1, 101))
    assert rates[0] == 0
    assert rates.max() == pytest.approx(2.0, rel=0.02)
    assert rates.argmax() == 2
    assert rates[-1] == pytest.approx(0.02)
