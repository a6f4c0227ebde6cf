"""Text tasks for experiments: the embedded ones, GLUE's packs, and what experts are made of."""

import os
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments.tasks import glue
from experiments.tasks.task import Task
from experiments.tasks.texts import find_text_tasks, from_folders, generated
from experiments.text_experts import fresh_head, make_text_experts, stack_text_heads, text_model
from experiments.tiny import language_world as world
from symerge_jax.cli.progress import Bars
from symerge_jax.data.text_columns import GLUE
from symerge_jax.errors import BadInput
from symerge_jax.models.roberta import classify, encode_tokens, initial_params
from symerge_jax.models.roberta_config import RobertaConfig
from symerge_jax.recipes import Recipe

CONFIG = RobertaConfig(
    vocabulary=world.VOCABULARY,
    positions=world.LENGTH + 2,
    width=16,
    depth=1,
    heads=2,
    mlp_width=32,
)
ROOT = Path(os.environ.get("SYMERGE_DATA", Path(__file__).parents[2] / "shared" / "data"))
packs = pytest.mark.skipif(
    not (ROOT / "glue").is_dir() or not (ROOT / "bpe_gpt2").is_dir(), reason="no data packs here"
)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    names = ("grammar", "similarity", "inference")
    return generated(names, limit=50, cache=cache), generated(names, limit=50, cache=cache)


def sizes(task):
    return [len(part.labels) for part in (task.train, task.validation, task.test)]


def test_embedded_tasks_have_three_splits_and_come_back_from_the_cache(tasks):
    first, second = tasks
    for one, again in zip(first, second, strict=True):
        jax.tree.map(np.testing.assert_array_equal, one.train, again.train)
    grammar, similarity, inference = first
    assert sizes(grammar) == [900, 100, 50]
    assert sizes(inference) == [3600, 400, 50]
    assert inference.train.inputs.dtype == np.int32
    assert inference.train.inputs.shape == (3600, world.LENGTH)
    assert [task.metric for task in first] == ["matthews", "pearson_spearman", "accuracy"]
    assert [task.regression for task in first] == [False, True, False]
    assert similarity.train.labels.dtype == np.float32


def test_an_unknown_task_is_refused_with_the_nearest():
    with pytest.raises(BadInput, match="sentiment"):
        generated(["sentimant"])


def test_a_fresh_head_fits_the_task(tasks):
    grammar, similarity, inference = tasks[0]
    for task, outputs in ((grammar, 2), (similarity, 1), (inference, 3)):
        head = fresh_head(CONFIG, task, seed=0)
        assert classify(head, np.zeros((5, 16), np.float32)).shape == (5, outputs)
    bias = fresh_head(CONFIG, similarity, seed=0)["out_proj"]["bias"]
    np.testing.assert_allclose(bias, similarity.train.labels.mean(), rtol=1e-6)
    again, other = fresh_head(CONFIG, grammar, seed=0), fresh_head(CONFIG, grammar, seed=1)
    kernel = fresh_head(CONFIG, grammar, seed=0)["dense"]["kernel"]
    np.testing.assert_array_equal(kernel, again["dense"]["kernel"])
    assert np.std(kernel) == pytest.approx(0.25, rel=0.2)
    assert not np.array_equal(kernel, other["dense"]["kernel"])


def test_stacked_heads_give_the_same_outputs_where_they_exist(tasks):
    heads = [fresh_head(CONFIG, task, seed=0) for task in tasks[0]]
    stacked, exists = stack_text_heads(heads)
    np.testing.assert_array_equal(exists, [[1, 1, 0], [1, 0, 0], [1, 1, 1]])
    features = np.random.default_rng(0).normal(size=(4, 16)).astype(np.float32)
    for k, head in enumerate(heads):
        whole = classify(jax.tree.map(lambda x, k=k: x[k], stacked), features)
        np.testing.assert_allclose(whole[:, exists[k]], classify(head, features), rtol=1e-5)
        assert not np.any(whole[:, ~exists[k]])


def test_experts_learn_and_have_task_vectors(tasks, tmp_path):
    chosen = tasks[0][1:]
    params = jax.tree.map(np.asarray, initial_params(CONFIG, jax.random.key(0)))
    model = text_model(encode_tokens(CONFIG), params, "test")
    recipe = Recipe(steps=4, batch_size=8, learning_rate=1e-3, head_rate=1e-3)
    with Bars() as bars:
        made = make_text_experts(
            model, CONFIG, chosen, recipe, [0, 1], devices=jax.local_devices()[:1], cache=tmp_path,
            bars=bars,
        )  # fmt: skip
    first = made[0]
    assert len(first.params) == len(first.heads) == 2
    for leaf, start in zip(
        jax.tree.leaves(first.task_vectors), jax.tree.leaves(params), strict=True
    ):
        assert leaf.shape == (2, *start.shape)
    one = first.task_vectors["token_embedding"]["embedding"][1]
    expert = first.params[1]["token_embedding"]["embedding"]
    np.testing.assert_allclose(one, expert - params["token_embedding"]["embedding"], atol=1e-7)
    assert not np.array_equal(
        made[1].params[0]["ln_embedding"]["scale"], first.params[0]["ln_embedding"]["scale"]
    )
    assert first.classes.shape == (2, 3)


def test_glue_is_in_the_papers_order_and_its_means_are_those_printed():
    assert glue.ORDER == ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte")
    assert set(glue.ORDER) == set(GLUE)
    for values, name in ((glue.INDIVIDUAL, "individual"), (glue.SYMERGE, "symerge")):
        mean = np.mean(list(values.values()))
        assert mean == pytest.approx(glue.MEANS[name], abs=0.051)


def test_the_recipe_of_glue_counts_whole_passes():
    recipe = glue.recipe(100)
    assert (recipe.steps, recipe.batch_size, recipe.decay) == (70, 16, "linear")


@packs
def test_packs_of_glue_are_read_with_their_classes():
    from symerge_jax.data.roberta_tokenizer import read_tokenizer

    tokenizer = read_tokenizer(ROOT / "bpe_gpt2")
    assert find_text_tasks(ROOT / "glue")[:3] == ["CoLA", "SST-2", "MRPC"]
    rte, stsb = from_folders(ROOT / "glue", ["rte", "STS-B"], tokenizer, length=64, limit=100)
    assert isinstance(rte, Task)
    assert (rte.name, rte.classes) == ("rte", ("entailment", "not_entailment"))
    assert sizes(rte) == [1800, 200, 100]
    assert rte.test.inputs.shape[1] == stsb.train.inputs.shape[1] == 64
    assert stsb.name == "stsb"
    assert stsb.regression
    assert stsb.metric == "pearson_spearman"
    assert stsb.test.labels.dtype == np.float32


def test_texts_without_labels_are_refused(tmp_path):
    from symerge_jax.data.roberta_tokenizer import train_tokenizer

    folder = tmp_path / "data" / "mine"
    folder.mkdir(parents=True)
    for part in ("train", "dev"):
        (folder / f"{part}.tsv").write_text("sentence\nthe dog\na cat\n", encoding="utf-8")
    tokenizer = train_tokenizer(["the dog", "a cat"], vocab_size=300)
    with pytest.raises(BadInput, match="have no labels"):
        from_folders(tmp_path / "data", ["mine"], tokenizer)
