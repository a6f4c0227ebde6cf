"""Pre-training of the language base: what is hidden, and that reading helps."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.tiny import language_base
from experiments.tiny import language_world as world
from experiments.tiny.language_pretraining import (
    CHUNK,
    Schedule,
    hide,
    initial,
    make_loss,
    pretrain,
)
from symerge_jax.kept_run import Saver, kept_run
from symerge_jax.models.roberta_config import RobertaConfig

MASK = 29
TINY = RobertaConfig(vocabulary=MASK + 1, positions=14, width=16, depth=1, heads=2, mlp_width=32)


@pytest.fixture(scope="module")
def rows():
    """Texts in which each word is followed by the next number, int32 [400, 12]."""
    rng = np.random.default_rng(0)
    tokens = np.full((400, 12), 1, np.int32)
    for row in tokens:
        length = rng.integers(3, 11)
        row[0], row[1 + length] = 0, 2
        row[1 : 1 + length] = 4 + (rng.integers(25) + np.arange(length)) % 25
    return tokens


def test_a_share_of_the_words_is_hidden_and_no_mark(rows):
    hidden = hide(jnp.asarray(rows), jax.random.key(0), mask=MASK, share=0.25)
    assert hidden.places.shape == (400, 3)
    words = (rows >= 4).sum(axis=1)
    expected = np.clip(np.round(0.25 * words), 1, 3)
    np.testing.assert_array_equal(hidden.counts.sum(axis=1), expected)
    targets = np.take_along_axis(rows, np.asarray(hidden.places), axis=1)
    np.testing.assert_array_equal(hidden.targets, targets)
    assert targets[np.asarray(hidden.counts)].min() >= 4
    changed = np.asarray(hidden.inputs) != rows
    assert not changed[rows < 4].any()
    assert (changed.sum(axis=1) <= expected).all()


def test_eight_in_ten_are_masked_and_one_is_another_word():
    tokens = jnp.full((2000, 12), 4, jnp.int32)
    hidden = hide(tokens, jax.random.key(1), mask=MASK, share=0.25)
    shown = np.take_along_axis(np.asarray(hidden.inputs), np.asarray(hidden.places), axis=1)
    assert np.mean(shown == MASK) == pytest.approx(0.8, abs=0.03)
    # One of the 25 other words is the word itself.
    assert np.mean(shown == 4) == pytest.approx(0.1 + 0.1 / 25, abs=0.03)
    assert np.unique(shown).size == 26


@pytest.mark.parametrize("sampled", [0, pytest.param(64, marks=pytest.mark.slow)])
def test_reading_lowers_the_loss(rows, sampled):
    schedule = Schedule(steps=100, batch_size=32, learning_rate=1e-2, lengths=(), sampled=sampled)
    losses = pretrain(TINY, rows, schedule, seed=1, devices=jax.local_devices()[:1])["losses"]
    words, sense = losses.T
    assert words.shape == (100,)
    assert words[-20:].mean() < words[:20].mean() - 0.5
    assert not sense.any()  # nobody said which texts make sense


def test_words_are_guessed_in_half_of_the_texts_that_make_sense(rows):
    params, sample = initial(TINY, jax.random.key(0)), jnp.zeros(0, jnp.int32)
    gradient = jax.jit(jax.grad(make_loss(TINY, Schedule(lengths=())), has_aux=True))
    for value, guessed, told in ((0, False, True), (1, True, True), (-1, True, False)):
        sense = jnp.full(64, value, jnp.int32)
        found = gradient(params, jnp.asarray(rows[:64]), sense, sample, jax.random.key(0))[0]
        assert np.any(found["guess"]["words"]) == guessed
        assert np.any(found["guess"]["sense"]) == told


def test_easy_texts_are_read_alone_at_the_beginning_and_the_same_way_each_time(rows):
    def words_of(schedule, tokens):
        return pretrain(TINY, tokens, schedule, devices=jax.local_devices()[:1])["encoder"][
            "token_embedding"
        ]["embedding"]

    schedule = Schedule(steps=5, batch_size=8, lengths=(), easy_steps=5, easy_texts=50)
    other = rows.copy()
    other[50:] = 4
    np.testing.assert_array_equal(words_of(schedule, rows), words_of(schedule, other))


def test_the_base_is_made_once(rows, tmp_path, monkeypatch):
    schedule = Schedule(steps=2, batch_size=8, lengths=())
    options = {"cache": tmp_path, "devices": jax.local_devices()[:1]}
    made = language_base.made(TINY, lambda: (rows, None), {"of": "a test"}, schedule, **options)
    monkeypatch.setattr(language_base, "pretrain", None)  # a second making would fail
    found = language_base.made(TINY, lambda: (rows, None), {"of": "a test"}, schedule, **options)
    assert found.name == made.name
    features = language_base.encoder(TINY, ())(found.params, jnp.asarray([[0, 7, 2, 1]]))
    assert features.shape == (1, 16)
    assert np.isfinite(features).all()


def test_the_worlds_own_encoder_has_its_words_and_lengths():
    config = language_base.config()
    assert (config.width, config.depth) == (64, 3)
    assert config.vocabulary == world.VOCABULARY
    assert config.length == world.LENGTH


def test_reading_that_was_interrupted_goes_on_with_the_same_bits(rows, tmp_path):
    schedule = Schedule(steps=3 * CHUNK, batch_size=8, lengths=(), sampled=16)
    run = partial(pretrain, TINY, rows, schedule, devices=jax.local_devices()[:1])
    whole = run()

    class Stop(Exception):
        pass

    seen = []

    def stop(losses):
        seen.append(len(losses))
        if len(seen) == 3:  # the second chunk is done and kept by then
            raise Stop

    with pytest.raises(Stop), kept_run(tmp_path / "run", {}, resume=True) as keep:
        run(saver=Saver(keep, seconds=0.0), on_chunk=stop)
    seen.clear()
    with kept_run(tmp_path / "run", {}, resume=True) as keep:
        resumed = run(saver=Saver(keep), on_chunk=lambda losses: seen.append(len(losses)))
    assert seen == [2 * CHUNK, CHUNK]
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(one, other)
