"""RoBERTa's encoder: agreement with the recorded model, and laws of padding and length."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import roberta_checkpoints as texts
from flax.traverse_util import flatten_dict

from symerge_jax.checkpoints.roberta import from_hugging_face
from symerge_jax.errors import BadInput
from symerge_jax.models.roberta import (
    PRESETS,
    by_length,
    classify,
    encode_once,
    encode_tokens,
    hidden_states,
    initial_head,
    initial_params,
    param_shapes,
    position_ids,
)
from symerge_jax.models.roberta_config import RobertaConfig

# Compiling is what takes time here: no optimisations, few different programs.
pytestmark = pytest.mark.usefixtures("separate")

ENCODE = jax.jit(encode_tokens(texts.SIZES))
GOLDEN = Path(__file__).parent / "golden" / "roberta.npz"
both_precisions = pytest.mark.parametrize("bits", [32, 64])


@pytest.fixture(scope="module")
def recorded():
    """The arrays by kind, and the config."""
    kinds = {}
    with np.load(GOLDEN) as file:
        for name in file.files:
            kind, rest = name.split("/", 1)
            kinds.setdefault(kind, {})[rest] = file[name]
    return kinds, json.loads(GOLDEN.with_suffix(".json").read_text())["config"]


@pytest.fixture(scope="module")
def encoder():
    return texts.params()


def relative(ours, theirs):
    return np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max()


def cast(tree, bits):
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, f"float{bits}"), tree)


def close(ours, theirs, tolerance=1e-5):
    np.testing.assert_allclose(np.asarray(ours), np.asarray(theirs), rtol=0, atol=tolerance)


@both_precisions
def test_logits_and_hidden_states_agree_with_the_recorded_model(recorded, bits):
    kinds, config = recorded
    expected, tolerance = kinds[f"output_f{bits}"], {32: 1e-5, 64: 1e-9}[bits]
    with jax.enable_x64(bits == 64):
        model = from_hugging_face(kinds["state_dict"], config)
        params, head = cast(model.params, bits), cast(model.head, bits)
        tokens = jnp.asarray(kinds["input"]["input_ids"], jnp.int32)
        features = jax.jit(encode_tokens(model.config))(params, tokens)
        assert features.dtype == f"float{bits}"
        assert relative(classify(head, features), expected["logits"]) <= tolerance
        hidden = jax.jit(hidden_states(model.config))(params, tokens)
        seen = (tokens != 1)[:, :, None]
        assert relative(jnp.where(seen, hidden, 0), expected["hidden_2"]) <= tolerance
        cut = replace(model.config, depth=1)
        first = {name: leaf for name, leaf in params.items() if name != "blocks_1"}
        hidden = jax.jit(hidden_states(cut))(first, tokens)
        assert relative(jnp.where(seen, hidden, 0), expected["hidden_1"]) <= tolerance


def test_the_recorded_texts_have_padding(recorded):
    kinds, _ = recorded
    tokens, mask = (kinds["input"][name] for name in ("input_ids", "attention_mask"))
    np.testing.assert_array_equal(tokens != 1, mask == 1)
    assert mask.sum(axis=1).tolist() == [7, 4, 6]


def test_positions_count_from_behind_padding():
    tokens = jnp.array([[0, 5, 6, 2], [0, 7, 1, 1]], jnp.int32)
    found = position_ids(tokens, texts.SIZES)
    np.testing.assert_array_equal(found, [[2, 3, 4, 5], [2, 3, 1, 1]])
    assert found.dtype == jnp.int32


def test_features_are_the_first_positions_hidden_state(encoder):
    tokens = texts.tokens()
    features = ENCODE(encoder, tokens)
    hidden = jax.jit(hidden_states(texts.SIZES))(encoder, tokens)
    assert (features.shape, hidden.shape) == ((3, 8), (3, 10, 8))
    close(features, hidden[:, 0])
    # Rows differ, so that agreement means something.
    assert relative(features[:1], np.asarray(features[1:2])) > 0.01


def test_the_length_of_padding_changes_nothing(encoder):
    tokens = texts.tokens()[1:]
    longer = np.pad(tokens, ((0, 0), (0, 2)), constant_values=1)
    expected = ENCODE(encoder, tokens)
    close(ENCODE(encoder, longer), expected)
    close(ENCODE(encoder, tokens[:, :7]), expected)
    alone = ENCODE(encoder, tokens[1:, :4])
    close(alone, expected[1:])


def test_what_is_encoded_once_is_what_is_encoded(encoder):
    tokens = texts.tokens()
    close(encode_once(texts.SIZES, encoder, tokens), ENCODE(encoder, tokens))


def test_the_token_behind_which_padding_begins_matters(encoder):
    tokens = texts.tokens()[1:2]
    other = tokens.copy()
    other[0, 6] += 1
    assert relative(ENCODE(encoder, other), np.asarray(ENCODE(encoder, tokens))) > 1e-3


def test_bfloat16_gives_float32_features_nearby(encoder):
    tokens = texts.tokens()
    expected = ENCODE(encoder, tokens)
    found = jax.jit(encode_tokens(texts.SIZES, dtype=jnp.bfloat16))(encoder, tokens)
    assert found.dtype == jnp.float32
    assert 1e-6 < relative(found, np.asarray(expected)) < 0.05


def test_a_head_by_hand():
    head = {
        "dense": {"kernel": jnp.array([[1.0, 0.0], [2.0, -1.0]]), "bias": jnp.array([0.5, 0.0])},
        "out_proj": {"kernel": jnp.array([[3.0], [1.0]]), "bias": jnp.array([-1.0])},
    }
    # W₁ h + b₁ = (1 + 4 + 0.5, -2) of h = (1, 2)
    expected = 3 * np.tanh(5.5) + np.tanh(-2.0) - 1
    close(classify(head, jnp.array([[1.0, 2.0]])), [[expected]])


# --- by length ----------------------------------------------------------------------------------

LENGTHS = (3, 5, 8, 40)


def batches():
    """Batches whose longest rows reach every cut, from both sides."""
    for longest in (1, 2, 3, 4, 5, 6, 8, 9, 12):
        tokens = texts.tokens(rows=2, length=12)
        tokens[0, longest:] = 1
        tokens[1, max(longest - 1, 1) :] = 1
        yield longest, tokens


def test_by_length_gives_what_the_encoder_gives(encoder):
    quick = jax.jit(by_length(encode_tokens(texts.SIZES), LENGTHS))
    for _, tokens in batches():
        close(quick(encoder, tokens), ENCODE(encoder, tokens))


def test_by_length_cuts_to_the_shortest_that_holds_all(encoder):
    lengths_seen = []

    def encode(params, tokens):
        # Which branch ran: its own length, as a number.
        lengths_seen.append(tokens.shape[1])
        return jnp.full((tokens.shape[0], 1), float(tokens.shape[1]))

    quick = jax.jit(by_length(encode, LENGTHS))
    chosen = {longest: int(quick(None, tokens)[0, 0]) for longest, tokens in batches()}
    assert chosen == {1: 3, 2: 3, 3: 3, 4: 5, 5: 5, 6: 8, 8: 8, 9: 12, 12: 12}
    assert sorted(lengths_seen) == [3, 5, 8, 12]
    assert quick(None, jnp.ones((2, 12), jnp.int32))[0, 0] == 3  # nothing but padding


@pytest.fixture(scope="module")
def single():
    """An encoder of one block, which compiles quickly, and its parameters."""
    config = replace(texts.SIZES, depth=1)
    return encode_tokens(config), texts.params(config=config)


def test_by_length_has_the_gradient_of_the_encoder(single):
    encode, params = single

    def gradient(encode):
        def loss(params, tokens):
            return jnp.square(encode(params, tokens)[:, :3]).sum()

        return jax.jit(jax.grad(loss))

    whole, quick = gradient(encode), gradient(by_length(encode, (5,)))
    for _, tokens in list(batches())[3::2]:  # on both sides of the cut
        found, expected = quick(params, tokens), whole(params, tokens)
        scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected))
        assert scale > 0.1
        jax.tree.map(lambda a, b, scale=scale: close(a, b, 1e-5 * scale), found, expected)


def test_by_length_works_inside_a_loop(single):
    encode, params = single
    quick = by_length(encode, (5,))
    stacked = jnp.asarray(np.stack([tokens for _, tokens in batches()]))

    def gradient(tokens):
        return jax.grad(lambda p: quick(p, tokens).sum())(params)["ln_embedding"]["bias"]

    @jax.jit
    def total():
        def step(i, sums):
            return sums[0] + quick(params, stacked[i]).sum(), sums[1] + gradient(stacked[i])

        return jax.lax.fori_loop(0, len(stacked), step, (0.0, jnp.zeros(8)))

    value, slope = total()
    whole = jax.jit(encode)
    expected = sum(float(whole(params, tokens).sum()) for tokens in stacked)
    np.testing.assert_allclose(float(value), expected, rtol=1e-4, atol=1e-3)
    alone = jax.jit(gradient)
    np.testing.assert_allclose(slope, sum(alone(x) for x in stacked), rtol=1e-4, atol=1e-4)


def test_texts_shorter_than_every_length_are_taken_whole(encoder):
    tokens = texts.tokens()
    quick = jax.jit(by_length(encode_tokens(texts.SIZES)))
    close(quick(encoder, tokens), ENCODE(encoder, tokens))


def test_the_same_arguments_give_the_same_function():
    encode = encode_tokens(texts.SIZES)
    assert encode is encode_tokens(replace(texts.SIZES), dtype=None)
    assert encode is not encode_tokens(texts.SIZES, dtype="bfloat16")
    assert by_length(encode) is by_length(encode, (16, 32, 64, 128), pad=1)
    assert by_length(encode, (4, 8)) is by_length(encode, lengths=(4, 8))
    assert by_length(encode, (4, 8)) is not by_length(encode)


# --- sizes and fresh weights --------------------------------------------------------------------


def test_roberta_base_has_its_197_leaves():
    shapes = flatten_dict(param_shapes(PRESETS["roberta-base"]), sep="/")
    assert len(shapes) == 197
    # roberta-base: 124,645,632 parameters with its pooler's 590,592 and no other head
    assert sum(int(np.prod(leaf.shape)) for leaf in shapes.values()) == 124645632 - 590592
    assert PRESETS["roberta-base"].length == 512


def test_fresh_weights_are_normal_numbers_of_deviation_002():
    config = replace(PRESETS["tiny-roberta-64x3"], vocabulary=1000)
    found = initial_params(config, jax.random.key(0))
    assert jax.tree.structure(found) == jax.tree.structure(param_shapes(config))
    flat = flatten_dict(found, sep="/")
    for path, leaf in flat.items():
        assert leaf.dtype == jnp.float32
        if path.endswith("/scale"):
            assert (leaf == 1).all(), path
        elif path.endswith("/bias"):
            assert (leaf == 0).all(), path
        elif leaf.size > 1000:
            assert abs(float(leaf.std()) - 0.02) < 0.001, path
    again = initial_params(config, jax.random.key(1))
    assert (flat["token_embedding/embedding"] != again["token_embedding"]["embedding"]).any()


def test_a_fresh_head_fits_the_encoder():
    head = initial_head(texts.SIZES, 3, jax.random.key(0))
    features = ENCODE(texts.params(), texts.tokens())
    assert classify(head, features).shape == (3, 3)
    assert (head["out_proj"]["bias"] == 0).all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"heads": 3}, "width 8 is no multiple of heads 3"),
        ({"activation": "quick_gelu"}, "activation is 'quick_gelu', expected 'gelu'"),
        ({"positions": 2}, "2 positions leave none for a token"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(change, words):
    with pytest.raises(BadInput, match=words):
        replace(texts.SIZES, **change)


def test_a_text_longer_than_the_positions_is_refused(encoder):
    tokens = np.zeros((1, texts.SIZES.length + 1), np.int32)
    with pytest.raises(BadInput, match="texts of 13 tokens, but the model has positions for 12"):
        encode_tokens(texts.SIZES)(encoder, tokens)
    assert isinstance(texts.SIZES, RobertaConfig)
