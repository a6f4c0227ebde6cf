"""Heads: the recorded zero-shot head, cases by hand, and stacking."""

import json
import os
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from symerge_jax.checkpoints.clip import from_open_clip
from symerge_jax.errors import BadInput
from symerge_jax.models.clip import encode_text
from symerge_jax.models.heads import (
    normalised_head,
    stack_heads,
    unstack_heads,
    zero_shot_head,
)

GOLDEN = Path(os.environ.get("SYMERGE_GOLDEN", Path(__file__).parents[2] / "shared" / "golden"))


@pytest.mark.skipif(not (GOLDEN / "models.npz").is_file(), reason=f"no golden arrays at {GOLDEN}")
def test_zero_shot_head_and_its_logits_agree():
    with np.load(GOLDEN / "models.npz") as file:
        arrays = dict(file)
    start = "open_clip_quickgelu/state_dict/"
    tensors = {k.removeprefix(start): v for k, v in arrays.items() if k.startswith(start)}
    config = json.loads((GOLDEN / "models.json").read_text())["models"]["open_clip_quickgelu"]
    model = from_open_clip(tensors, config["config"])
    ids = arrays["zeroshot_head/input/token_ids"]  # [class, template, position]
    classes, templates, _ = ids.shape

    def tokenise(texts):
        return np.stack([ids[tuple(int(part) for part in text.split())] for text in texts])

    head = zero_shot_head(
        partial(jax.jit(encode_text(model.text)), model.params["text"]),
        tokenise,
        [str(c) for c in range(classes)],
        [f"{{}} {t}" for t in range(templates)],
        scale=np.exp(tensors["logit_scale"]),
    )
    expected = {k.split("/")[-1]: v for k, v in arrays.items() if k.startswith("zeroshot_head/out")}
    logits = normalised_head(head, jnp.asarray(arrays["zeroshot_head/input/features"]))
    for ours, theirs in ((head["weight"], expected["weight"]), (logits, expected["logits"])):
        assert np.abs(ours - theirs).max() <= 1e-5 * np.abs(theirs).max()
    assert not head["bias"].any()


def test_normalised_head_by_hand():
    head = {"weight": jnp.array([[10.0, 0.0], [0.0, 5.0]]), "bias": jnp.array([0.0, 1.0])}
    # (3, 4) / 5 = (0.6, 0.8)
    logits = normalised_head(head, jnp.array([[3.0, 4.0], [300.0, 400.0]]))
    np.testing.assert_allclose(logits, [[6.0, 5.0], [6.0, 5.0]], rtol=1e-6)


VECTORS = {"a cat": (3.0, 0.0), "a tom": (0.0, 2.0), "a dog": (0.0, 7.0), "cat!": (0.0, 1.0)}


def written(class_names, templates, scale=2.0):
    """The head made by a text encoder that looks two-dimensional features up."""
    texts = list(VECTORS)
    return zero_shot_head(
        lambda tokens: jnp.array(list(VECTORS.values()))[tokens[:, 0]],
        lambda prompts: np.array([[texts.index(prompt)] for prompt in prompts]),
        class_names,
        templates,
        scale=scale,
    )["weight"]


def test_templates_are_averaged_after_normalising():
    half = np.sqrt(0.5)
    weight = written(["cat"], ["a {}", lambda name: f"{name}!"])
    np.testing.assert_allclose(weight, [[2 * half, 2 * half]], rtol=1e-6)


def test_synonyms_are_averaged_like_templates():
    half = np.sqrt(0.5)
    weight = written([["cat", "tom"], "dog"], ["a {}"], scale=1.0)
    np.testing.assert_allclose(weight, [[half, half], [0.0, 1.0]], rtol=1e-6)


@pytest.mark.parametrize(
    ("names", "templates", "message"),
    [
        ([], ["a {}"], "got 0 and 1"),
        (["cat"], [], "got 1 and 0"),
        ([[]], ["a {}"], "empty list"),
        (["cat"], ["a cat"], "expected {} where"),
    ],
)
def test_heads_without_words_are_refused(names, templates, message):
    with pytest.raises(BadInput, match=message):
        written(names, templates)


def random_head(classes, seed=0):
    w, b = jax.random.split(jax.random.key(seed))
    return {
        "weight": jax.random.normal(w, (classes, 4)),
        "bias": jax.random.normal(b, (classes,)),
    }


def test_unstacking_undoes_stacking():
    heads = [random_head(classes, seed=classes) for classes in (2, 5, 3)]
    stacked, mask = stack_heads(heads)
    assert stacked["weight"].shape == (3, 5, 4)
    np.testing.assert_array_equal(mask.sum(axis=1), [2, 5, 3])
    np.testing.assert_array_equal(mask[0], [True, True, False, False, False])
    for leaf in stacked.values():
        assert not leaf[~mask].any()
    for ours, given in zip(unstack_heads(stacked, mask), heads, strict=True):
        jax.tree.map(np.testing.assert_array_equal, ours, given)


def test_padding_does_not_change_the_logits_of_real_classes():
    heads = [random_head(2), random_head(5)]
    stacked, mask = stack_heads(heads)
    features = jax.random.normal(jax.random.key(3), (7, 4))
    logits = normalised_head({k: v[0] for k, v in stacked.items()}, features)
    np.testing.assert_allclose(logits[:, mask[0]], normalised_head(heads[0], features), rtol=1e-6)


def test_heads_that_do_not_fit_are_refused():
    with pytest.raises(BadInput, match="at least one head"):
        stack_heads([])
    odd = random_head(3) | {"weight": jnp.ones((3, 6))}
    with pytest.raises(BadInput, match=r"head 1: expected weight \[classes, 4\]"):
        stack_heads([random_head(2), odd])
    with pytest.raises(BadInput, match="head 0"):
        stack_heads([random_head(3) | {"bias": jnp.ones(2)}])


def test_heads_need_no_implicit_promotion():
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        head = written([["cat", "tom"], "dog"], ["a {}"])
        stacked, _ = stack_heads([{"weight": head, "bias": jnp.zeros(2)}])
        normalised_head({k: v[0] for k, v in stacked.items()}, jnp.ones((3, 2)))
