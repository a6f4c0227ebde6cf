"""What `symerge adapt`, `evaluate` and `moments` refuse of texts, each in one sentence."""

import shutil

import numpy as np
import pytest
import safetensors.numpy
import tiny_texts
from commands import refused
from text_tasks import write
from tiny_texts import write_tasks

from symerge_jax.data.roberta_tokenizer import train_tokenizer

pytestmark = pytest.mark.usefixtures("separate")


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    return tiny_texts.made(tmp_path_factory.getbasetemp())


@pytest.fixture
def refusal(capsys, tmp_path, texts):
    def of(*words, **change):
        file = write_tasks(tmp_path / "tasks.toml", texts, **change)
        words = ("adapt", file, "--output", tmp_path / "out", *words)
        return refused(capsys, *words, among=tmp_path)

    return of


@pytest.mark.parametrize(
    ("task", "name", "lines", "says"),
    [
        ("close", "dev.jsonl", ['{"sentence1": "a", "score": 1}'], "without sentence2, the other"),
        ("topic", "dev.csv", ["txt,label", "a,art"], "expected the columns sentence1 and"),
        ("topic", "dev.csv", [], "{path}: expected at least one row, found none"),
        ("topic", "dev.tsv", ["text\tlabel"], "{path}: expected at least one row, found none"),
        ("cola", "dev.tsv", ["gj04\t1\t\ta cat", "gj04\t0\ta"], "line 2 has 3 fields, expected 4"),
        ("close", "dev.tsv", ["sentence\tscore", "a\tfar"], "expected a number to predict, found"),
        ("close", "dev.tsv", ["sentence\tlabel", "a\t1.5", "a\tfar"], "found the label 'far'"),
        ("close", "dev.tsv", ["sentence\tlabel", "a\tnan", "a\t2.5"], "found the label 'nan'"),
        ("topic", "dev.tsv", ["text\tlabel", "a\t0.5"], "its labels are numbers to predict, but"),
        ("topic", "dev.tsv", ["text\tlabel", "a\t3"], "has labels up to 3, but {expert} has 3"),
        ("topic", "dev.tsv", ["text\tlabel", "a\tx", "b\ty"], "has 2 classes, but {expert} has 3"),
    ],
)  # fmt: skip
def test_a_file_that_does_not_serve(refusal, tmp_path, texts, task, name, lines, says):
    path = write(tmp_path / "own" / task / name, *lines)
    found = refusal(**{task: {"inputs": f"'{path}'"}})
    assert str(path) in found
    assert says.format(path=path, expert=texts.experts[task]) in found


def test_texts_in_another_encoding(refusal, tmp_path):
    path = tmp_path / "latin.tsv"
    path.write_bytes("sentence\tlabel\ncafé\t0\n".encode("latin-1"))
    says = refusal(topic={"inputs": f"'{path}'"})
    assert f"{path}: line 2 holds the byte 0xe9, which is not UTF-8 there" in says


def test_a_vocabulary_that_does_not_fit_the_embedding(refusal, tmp_path, texts):
    own = tmp_path / "words"
    own.mkdir()
    larger = train_tokenizer([" ".join(map(str, range(300)))], 380, min_frequency=1)
    assert larger.rows > texts.config.vocabulary
    larger.save(own)
    says = refusal(model={"vocabulary": f"'{own}'"})
    expected = f"{own / 'vocab.json'}: has ids up to {larger.rows - 1}, but {texts.base} embeds"
    assert expected in says


def test_no_vocabulary_at_all(refusal, capsys, tmp_path, texts):
    base = shutil.copytree(texts.base, tmp_path / "base")
    (base / "vocab.json").unlink()
    says = refusal(model={"pretrained": f"'{base}'"})
    assert f"{base}: no vocabulary of RoBERTa" in says
    assert "name its folder with vocabulary in [model]" in says
    words = ("evaluate", texts.experts["topic"], "--task", texts.inputs("topic"))
    assert "name its folder with --vocabulary FOLDER" in refused(capsys, *words, among=tmp_path)


def test_inputs_that_are_not_there(refusal, tmp_path):
    gone = tmp_path / "gone"
    assert f"{gone}: does not exist; expected a file of texts" in refusal(
        topic={"inputs": f"'{gone}'"}
    )
    gone.mkdir()
    assert f"{gone}: has no file dev" in refusal(topic={"inputs": f"'{gone}'"})


def test_a_head_that_is_none_of_this_model(refusal, tmp_path, texts):
    says = refusal(topic={"classes": "['a', 'b']", "templates": "['a {}']"})
    assert "[[task]] topic has classes and templates, from which no head for texts can be" in says
    says = refusal(topic={"expert": f"'{texts.base}'"})
    assert f"{texts.base}: no classifier in the weights and no heads/topic.safetensors" in says
    wide = {"dense": (20, 20), "out_proj": (3, 20)}
    tensors = {f"{n}.weight": np.ones(shape, np.float32) for n, shape in wide.items()}
    tensors |= {f"{n}.bias": np.ones(shape[0], np.float32) for n, shape in wide.items()}
    path = tmp_path / "wide.safetensors"
    safetensors.numpy.save_file(tensors, path)
    says = refusal(topic={"head": f"'{path}'"})
    assert f"{path}: the head takes features of width 20, but {texts.base} gives 16" in says


@pytest.mark.parametrize("method", ["adamerging", "adamerging_taskwise", "adamerging_sequential"])
def test_entropy_of_a_regression(refusal, method):
    says = refusal("--method", method)
    assert (
        f"[[task]] close has one output, as a regression has, and so no entropy for {method}"
        in says
    )


def test_what_evaluate_refuses(capsys, tmp_path, texts):
    def refusal(*words):
        words = ("evaluate", texts.experts["topic"], "--vocabulary", texts.base, *words)
        return refused(capsys, *words, among=tmp_path)

    plain = texts.folder / "plain" / "topic.txt"
    assert "the texts have no labels, so there is nothing to score" in refusal("--task", plain)
    task = texts.inputs("topic").parent
    assert "has no head 'topics', nor any other" in refusal("--task", task, "--head", "topics")
    empty = write(tmp_path / "topic" / "dev.tsv")
    assert f"{empty}: expected at least one row, found none" in refusal("--task", empty.parent)


def test_what_moments_refuses(capsys, tmp_path, texts):
    def refusal(task, *words):
        out = ("--pretrained", texts.base, "--output", tmp_path / "out.safetensors")
        words = ("moments", texts.experts[task], "--inputs", texts.inputs(task), *out, *words)
        return refused(capsys, *words, among=tmp_path)

    says = refusal("close", "--kind", "fisher")
    assert f"{texts.experts['close']}: has one output, as a regression has" in says
    assert "there is no diagonal of kind fisher" in says
