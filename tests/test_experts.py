"""What experts say, worked out once."""

import jax.numpy as jnp
import linear_world
import numpy as np
import pytest
from linear_world import encode, logits_of

from symerge_jax.adapt import experts as module
from symerge_jax.adapt.experts import expert_predictions, labels_of
from symerge_jax.errors import BadInput

MODELS = [({"bias": jnp.zeros(3), "kernel": jnp.eye(4, 3) * s}, {"bias": jnp.zeros(2),
           "weight": jnp.ones((3, 2))}) for s in (1.0, 2.0)]  # fmt: skip
INPUTS = [np.eye(4, dtype=np.float32), np.ones((5, 4), np.float32)]


@pytest.fixture
def calls(monkeypatch):
    """Which experts were asked, by their number of inputs."""
    asked = []

    def counting(apply, expert, inputs, **options):
        asked.append(len(inputs))
        return predict(apply, expert, inputs, **options)

    predict = module.predict
    monkeypatch.setattr(module, "predict", counting)
    return asked


def ask(cache, models=MODELS, inputs=INPUTS, program="linear"):
    return expert_predictions(logits_of, models, inputs, cache=cache, program=program)


def test_labels_by_hand():
    labels = labels_of(np.log(np.array([[0.2, 0.7, 0.1], [0.5, 0.25, 0.25]], np.float32)))
    np.testing.assert_array_equal(labels.label, [1, 0])
    assert labels.label.dtype == np.int32
    np.testing.assert_allclose(labels.confidence, [0.7, 0.5], rtol=1e-6)
    assert labels.confidence.dtype == np.float32


def test_large_logits_do_not_overflow():
    labels = labels_of(np.array([[5000.0, 0.0], [-5000.0, -5001.0]], np.float32))
    np.testing.assert_allclose(labels.confidence, [1, 1 / (1 + np.exp(-1))], rtol=1e-6)


def test_labels_are_the_argmax_of_the_experts_own_logits():
    for expert, own, said in zip(MODELS, INPUTS, ask(None), strict=True):
        logits = np.asarray(logits_of(expert, own))
        np.testing.assert_array_equal(said.label, logits.argmax(axis=1))
        assert said.confidence.shape == (len(own),)


def test_the_batch_size_does_not_matter():
    world = linear_world.make()
    models = [({"bias": world.pretrained["bias"], "kernel": world.pretrained["kernel"]},
               {k: v[t] for k, v in world.heads.items()}) for t in range(3)]  # fmt: skip
    whole = expert_predictions(logits_of, models, world.inputs)
    parts = expert_predictions(logits_of, models, world.inputs, batch_size=2)
    for ours, theirs in zip(whole, parts, strict=True):
        np.testing.assert_array_equal(ours.label, theirs.label)
        np.testing.assert_allclose(ours.confidence, theirs.confidence, rtol=1e-6)


def test_a_hit_in_the_cache_asks_no_expert(tmp_path, calls):
    first = ask(tmp_path)
    assert calls == [4, 5]
    again = ask(tmp_path)
    assert calls == [4, 5]
    for ours, theirs in zip(first, again, strict=True):
        np.testing.assert_array_equal(ours.label, theirs.label)
        np.testing.assert_array_equal(ours.confidence, theirs.confidence)
        assert (ours.label.dtype, ours.confidence.dtype) == (np.int32, np.float32)


def test_a_changed_expert_is_asked_again_and_the_others_are_not(tmp_path, calls):
    ask(tmp_path)
    theta, head = MODELS[1]
    ask(tmp_path, models=[MODELS[0], ({**theta, "bias": theta["bias"] + 1}, head)])
    assert calls == [4, 5, 5]


def test_changed_inputs_and_another_program_are_asked_again(tmp_path, calls):
    ask(tmp_path)
    ask(tmp_path, inputs=[INPUTS[0] * 2, INPUTS[1]])
    assert calls == [4, 5, 4]
    ask(tmp_path, program="another")
    assert calls == [4, 5, 4, 4, 5]


def test_a_cache_without_the_programs_name_is_refused(tmp_path):
    with pytest.raises(BadInput, match="a cache needs `program`"):
        ask(tmp_path, program="")


def test_unequal_numbers_of_experts_and_inputs_are_refused():
    with pytest.raises(BadInput, match="got 2 experts, but inputs of 1 tasks"):
        ask(None, inputs=INPUTS[:1])


def test_logits_that_are_not_finite_are_refused_with_the_expert():
    theta, head = MODELS[1]
    with pytest.raises(BadInput, match="expert 1 gives logits that are not finite"):
        ask(None, models=[MODELS[0], ({**theta, "bias": theta["bias"] * np.nan}, head)])


def test_the_encoder_of_the_small_world_is_bounded():
    features = encode(MODELS[0][0], jnp.asarray(INPUTS[0]))
    assert (abs(features) <= 1).all()
