"""`symerge adapt`, `evaluate` and `moments` on RoBERTa's texts, as a person runs them."""

import json
import shutil

import numpy as np
import pytest
import tiny_texts
from clip_checkpoints import read_all
from commands import contents, symerge
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
from text_tasks import write
from tiny_texts import CLASSES, COUNT, OUTPUTS, TASKS, write_tasks

from symerge_jax.adapt_settings import settings_of
from symerge_jax.checkpoints.open import open_checkpoint
from symerge_jax.checkpoints.roberta import load_head, load_roberta
from symerge_jax.checkpoints.roberta_heads import read_text_head, read_text_heads
from symerge_jax.data.roberta_tokenizer import read_tokenizer
from symerge_jax.data.tasks_file import read_tasks_file
from symerge_jax.data.text import read_texts
from symerge_jax.models.roberta import hidden_states
from symerge_jax.second_moments import gram_matrices, load_moments

pytestmark = pytest.mark.usefixtures("separate")


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    return tiny_texts.made(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def adapted(tmp_path_factory, texts, separate):
    """The folder that an ordinary run wrote."""
    folder = tmp_path_factory.mktemp("adapted")
    file = write_tasks(folder / "tasks.toml", texts)
    assert symerge("adapt", file, "--output", folder / "out") == 0
    return folder / "out"


def card(folder):
    return json.loads((folder / "merge_card.json").read_text())


def weights(folder):
    return read_all(folder / "model.safetensors")


def tokens_and_labels(texts, task):
    tokenizer = read_tokenizer(texts.base)
    classes = CLASSES if task == "topic" else None
    found = read_texts(texts.inputs(task), tokenizer, classes=classes, max_length=16)
    return found.tokens, found.labels


def logits_of(folder, head, tokens):
    loaded = load_roberta(folder)
    return tiny_texts.outputs_of(loaded.config, loaded.params, head, tokens)


# --- adapt: what is written ---------------------------------------------------------------------


def test_the_folder_is_a_whole_model_that_holds_its_checks(capsys, texts, adapted):
    assert {path.name for path in adapted.iterdir()} == {
        "model.safetensors", "config.json", "vocab.json", "merges.txt", "tokenizer_config.json",
        "heads", "coefficients.npz", "reference.npz", "merge_card.json",
    }  # fmt: skip
    config = json.loads((adapted / "config.json").read_text())
    assert config["architectures"] == ["RobertaModel"]
    assert (adapted / "vocab.json").read_bytes() == (texts.base / "vocab.json").read_bytes()
    assert load_roberta(adapted).config == texts.config
    heads = read_text_heads(adapted)
    assert {name: head.outputs for name, head in heads.items()} == OUTPUTS
    assert heads["topic"].classes == CLASSES
    assert symerge("verify", adapted) == 0
    capsys.readouterr()
    assert symerge("inspect", texts.base, adapted) == 0
    assert "RoBERTa encoder: width 16, 1 blocks" in " ".join(capsys.readouterr().out.split())


def test_coefficients_are_those_of_the_model_and_everything_learned(texts, adapted):
    """θ₀ + Σ clip(λ) τ with row j of λ for tensor j is what was written."""
    with np.load(adapted / "coefficients.npz", allow_pickle=False) as file:
        stored = dict(file)
    found, base = weights(adapted), weights(texts.base)
    assert list(stored["tasks"]) == list(TASKS)
    assert sorted(stored["tensors"]) == sorted(found)
    assert list(stored["tensors"][:2]) == [
        "roberta.embeddings.word_embeddings.weight",
        "roberta.embeddings.position_embeddings.weight",
    ]
    experts = [weights(texts.experts[task]) for task in TASKS]
    for name, row in zip(stored["tensors"], stored["coefficients"], strict=True):
        moved = sum(
            lam * (one[name] - base[name]) for lam, one in zip(row.clip(0, 1), experts, strict=True)
        )
        np.testing.assert_allclose(found[name], base[name] + moved, atol=1e-5, err_msg=name)
    assert np.abs(stored["coefficients"] - 0.3).max() > 1e-3
    for task, head in read_text_heads(adapted).items():
        before, _ = load_head(open_checkpoint(texts.experts[task]))
        assert not np.array_equal(head.head["out_proj"]["kernel"], before["out_proj"]["kernel"])


def test_the_card_scores_each_task_by_its_own_metric(texts, adapted):
    found = card(adapted)["scores"]
    assert {task: one["metric"] for task, one in found.items()} == {
        "cola": "matthews", "close": "pearson_spearman", "topic": "accuracy",
    }  # fmt: skip
    for task, one in found.items():
        tokens, labels = tokens_and_labels(texts, task)
        expert = logits_of(
            texts.experts[task], load_head(open_checkpoint(texts.experts[task]))[0], tokens
        )
        merged = logits_of(adapted, read_text_heads(adapted)[task].head, tokens)
        assert one["expert_score"] == pytest.approx(by_hand(task, expert, labels), abs=0.01)
        assert one["score"] == pytest.approx(by_hand(task, merged, labels), abs=0.01)
        said = expert[:, 0] if task == "close" else expert.argmax(axis=1)
        kind = "close" if task == "close" else "topic"  # correlation, or equal classes
        assert one["agreement"] == pytest.approx(by_hand(kind, merged, said), abs=0.01)
    assert all(one["expert_score"] > 30 for one in found.values())


def by_hand(task, outputs, labels):
    """The task's metric in percent, by scikit-learn and SciPy."""
    if task == "close":
        both = pearsonr(outputs[:, 0], labels), spearmanr(outputs[:, 0], labels)
        return 50 * sum(one.statistic for one in both)
    measure = matthews_corrcoef if task == "cola" else accuracy_score
    return 100 * measure(labels, outputs.argmax(axis=1))


def test_defaults_for_texts_are_the_papers(tmp_path, texts):
    file = read_tasks_file(write_tasks(tmp_path / "tasks.toml", texts, adapt=""))
    found = settings_of(file, texts=True)
    assert (found.learning_rate, found.iterations, found.batch_size) == (5e-4, 1000, 32)
    assert found.initial_coefficient == 0.3
    given = file._replace(adapt={"learning_rate": 0.1, "iterations": 3})
    assert settings_of(given, texts=True)[2:5:2] == (3, 0.1)


def test_the_run_took_the_learning_rate_of_texts(adapted):
    assert card(adapted)["settings"]["learning_rate"] == 5e-4


# --- adapt: inputs, vocabulary, heads -----------------------------------------------------------


def test_labels_never_reach_adaptation(capsys, tmp_path, texts, adapted):
    kinds = {"cola": "txt", "close": "jsonl", "topic": "txt"}
    plain = {
        task: {"inputs": f"'{texts.folder / 'plain' / f'{task}.{kind}'}'"}
        for task, kind in kinds.items()
    }
    file = write_tasks(tmp_path / "tasks.toml", texts, **plain)
    assert symerge("adapt", file, "--output", tmp_path / "out") == 0
    found, expected = contents(tmp_path / "out"), contents(adapted)
    for files in (found, expected):
        files.pop("merge_card.json")
    assert found == expected
    for task, one in card(tmp_path / "out")["scores"].items():
        assert one["score"] is one["expert_score"] is None
        assert one["agreement"] == card(adapted)["scores"][task]["agreement"]
    assert "–" in capsys.readouterr().err


def test_a_vocabulary_elsewhere_goes_with_the_model(tmp_path, texts, adapted):
    """And so do a task's folder as inputs, and heads in files of their own."""
    base = shutil.copytree(texts.base, tmp_path / "base")
    (base / "vocab.json").unlink()
    (base / "merges.txt").unlink()
    head = shutil.copy(adapted / "heads" / "topic.safetensors", tmp_path)
    change = {
        "model": {"pretrained": f"'{base}'", "vocabulary": f"'{texts.base}'"},
        "cola": {"inputs": f"'{texts.inputs('cola').parent}'"},
        "topic": {"head": f"'{head}'"},
    }
    file = write_tasks(tmp_path / "tasks.toml", texts, **change)
    words = ("--method", "task_arithmetic", "--output", tmp_path / "out")
    assert symerge("adapt", file, *words) == 0
    assert read_tokenizer(tmp_path / "out").digest == read_tokenizer(texts.base).digest
    assert symerge("verify", tmp_path / "out") == 0
    check_choice(card(tmp_path / "out"))
    stored = read_text_heads(tmp_path / "out")["topic"].head["out_proj"]["kernel"]
    np.testing.assert_array_equal(stored, read_text_head(head).head["out_proj"]["kernel"])


def check_choice(found):
    """Of a training-free method tasks with classes chose the scale; a regression has no part."""
    best = max(found["settings"]["agreement"].values())
    agreements = [found["scores"][task]["agreement"] for task in ("cola", "topic")]
    assert np.mean(agreements) == pytest.approx(best, abs=1e-3)


# --- evaluate -----------------------------------------------------------------------------------


def rows(capsys, *words):
    """Task → its cells, as printed."""
    capsys.readouterr()
    assert symerge("evaluate", *words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["task", "metric", "score", "%", "accuracy", "%", "F1", "%", "texts"]
    return {line.split()[0]: line.split()[1:] for line in lines[1:]}


def test_each_task_is_scored_by_its_own_metric(capsys, texts, adapted):
    found = rows(capsys, adapted, "--task", *(texts.inputs(task).parent for task in TASKS))
    stated = card(adapted)["scores"]
    for task in TASKS:
        assert found[task][:2] == [stated[task]["metric"], f"{stated[task]['score']:.2f}"]
        assert found[task][-1] == str(COUNT)
    tokens, labels = tokens_and_labels(texts, "cola")
    merged = logits_of(adapted, read_text_heads(adapted)["cola"].head, tokens).argmax(axis=1)
    expected = [accuracy_score(labels, merged), f1_score(labels, merged)]
    assert found["cola"][2:4] == [f"{100 * value:.2f}" for value in expected]
    assert found["close"][2:4] == ["–", "–"]
    assert found["topic"][3] == "–"


def test_an_expert_is_a_model_too_and_a_file_a_task(capsys, tmp_path, texts, adapted):
    words = ("--vocabulary", texts.base, "--limit", 17)
    expert = texts.experts["topic"]
    assert rows(capsys, expert, "--task", texts.inputs("topic"), *words)["topic"][-1] == "17"
    other = shutil.copytree(texts.inputs("topic").parent, tmp_path / "news")
    by_name = rows(capsys, adapted, "--task", other, "--head", "topic")["news"]
    assert by_name == rows(capsys, adapted, "--task", texts.inputs("topic").parent)["topic"]


# --- moments ------------------------------------------------------------------------------------


def test_gram_matrices_count_what_is_no_padding(tmp_path, texts):
    """Two texts of which one is padded give what they give apart, each as long as it is."""
    expert, file = texts.experts["cola"], tmp_path / "cola.safetensors"
    path = write(tmp_path / "two.txt", "the cat sees the old dog", "red")
    words = ("--inputs", path, "--vocabulary", texts.base)
    assert symerge("moments", expert, *words, "--output", file) == 0
    tokens = read_texts(path, read_tokenizer(texts.base)).tokens
    lengths = (tokens != 1).sum(axis=1)
    assert lengths[1] < lengths[0] == tokens.shape[1]
    params = load_roberta(expert).params
    found = load_moments(file, params)
    apart = [
        gram_matrices(hidden_states(texts.config), params, [row[None, :length]])
        for row, length in zip(tokens, lengths, strict=True)
    ]
    for path in ("attention/query/kernel", "mlp/proj/kernel", "ln_2/scale"):
        one, *two = (leaf(tree["blocks_0"], path) for tree in (found, *apart))
        assert one.rows == lengths.sum()
        sums = [each.mean * float(each.rows) for each in two]
        expected = np.sum(sums, axis=0) / lengths.sum()
        np.testing.assert_allclose(one.mean, expected, rtol=1e-4, atol=1e-5)


def leaf(tree, path):
    for name in path.split("/"):
        tree = tree[name]
    return tree


def test_a_merge_takes_the_statistics(tmp_path, texts):
    models = [texts.experts[task] for task in ("cola", "topic")]
    inputs = texts.folder / "plain" / "topic.txt"
    files = [tmp_path / f"{expert.name}.safetensors" for expert in models]
    for expert, file in zip(models, files, strict=True):
        words = ("--inputs", inputs, "--pretrained", texts.base, "--limit", 4)
        assert symerge("moments", expert, *words, "--output", file) == 0
    words = ("--pretrained", texts.base, "--experts", *models, "--moments", *files)
    assert symerge("merge", "regmean", *words, "--output", tmp_path / "out") == 0
    found = weights(tmp_path / "out")
    name = "roberta.encoder.layer.0.output.dense.weight"
    mean = sum(weights(one)[name] for one in models) / 2
    assert not np.allclose(found[name], mean, atol=1e-3)
    assert all(np.isfinite(value).all() for value in found.values())


def test_fisher_diagonals_take_the_classifier_in_the_weights(tmp_path, texts):
    expert, file = texts.experts["topic"], tmp_path / "fisher.safetensors"
    words = ("--inputs", texts.inputs("topic"), "--pretrained", texts.base, "--kind", "fisher")
    assert symerge("moments", expert, *words, "--output", file, "--limit", 1) == 0
    loaded = load_roberta(expert)
    found = load_moments(file, loaded.params)
    # Words that the one text lacks have no part in what the expert says of it.
    tokens, _ = tokens_and_labels(texts, "topic")
    drawn = set(tokens[np.random.default_rng(0).permutation(COUNT)[0]].tolist()) - {1}
    seen = found["token_embedding"]["embedding"].any(axis=1)
    assert set(np.flatnonzero(seen).tolist()) == drawn
