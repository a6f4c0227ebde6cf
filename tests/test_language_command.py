"""`python -m experiments.language`: a small run in each setting, and what it refuses."""

import json
import shutil
from dataclasses import replace

import jax
import numpy as np
import pytest
import roberta_checkpoints as small
from safetensors.numpy import save_file
from text_tasks import write, write_task

from experiments import language, language_start, records, roberta_folders, scene
from experiments.tasks.task import Split, Task
from experiments.tiny import language_base
from symerge_jax.cli.errors import run
from symerge_jax.data.roberta_tokenizer import read_tokenizer, train_tokenizer
from symerge_jax.errors import BadInput
from symerge_jax.models.roberta import encode_tokens, initial_params

WORDS = [f"the {colour} {noun}" for colour in ("red", "blue") for noun in ("dog", "cat", "house")]


@pytest.fixture(autouse=True)
def separate(monkeypatch):
    """What is set for the whole process is not set for the other tests."""
    jax.devices()  # tests share the process's devices
    monkeypatch.setattr(scene, "keep_programs", lambda folder: None)


@pytest.fixture
def unread(monkeypatch):
    """A model of one block as it begins, nothing pre-trained; texts of any length cost the same."""

    def made(config, write, key, schedule, **more):
        config = replace(config, width=16, depth=1, heads=2)
        return language_base.Base(config, initial_params(config, jax.random.key(0)), "unread")

    monkeypatch.setattr(language_base, "made", made)
    monkeypatch.setattr(language_base, "encoder", encode_tokens)


def command(*words):
    """Runs the command in this process; returns its exit code."""
    words = [*map(str, words), "--devices", "1"]
    return run(language.main, language.Settings, words, prog="language")


def record_of(capsys):
    return records.read(capsys.readouterr().out.splitlines()[-1])


def refused(capsys, *words):
    """The one line with which a command gives up."""
    assert command(*words) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("symerge: error: ")
    assert not any("Traceback" in line for line in lines)
    return lines[-1]


def main_metrics(record, method):
    found = {}
    for result in record["results"]:
        if result["method"] == method:
            found.setdefault(result["task"], result["metric"])
    return found


def vocabulary(folder):
    folder.mkdir(parents=True)
    train_tokenizer([*WORDS, "good", "bad", "a b c d"], 300).save(folder)
    return folder


@pytest.fixture
def data(tmp_path):
    """Three tasks in GLUE's files: two classes, a regression of pairs, three classes of pairs."""
    folder = tmp_path / "data"
    rng = np.random.default_rng(0)

    def words():
        return WORDS[rng.integers(len(WORDS))]

    for split, n in (("train", 40), ("dev", 12)):
        rows = [f"{words()}\t{i % 2}" for i in range(n)]
        write(folder / "SST-2" / f"{split}.tsv", "sentence\tlabel", *rows)
        rows = [f"{words()}\t{words()}\t{i % 5}.0" for i in range(n)]
        write(folder / "STS-B" / f"{split}.tsv", "sentence1\tsentence2\tscore", *rows)
        names = ("entailment", "neutral", "contradiction")
        rows = [f"{words()}\t{words()}\t{names[i % 3]}" for i in range(n)]
        write(folder / "MNLI" / f"{split}.tsv", "sentence1\tsentence2\tgold_label", *rows)
    return folder


@pytest.mark.slow
def test_generated_tasks_are_merged_and_scored_by_their_own_metrics(tmp_path, capsys, unread):
    code = command(
        "--tasks", "grammar", "similarity", "inference", "--quick", "--limit", 30,
        "--iterations", 2, "--out", tmp_path, "--methods", "task-arithmetic", "symerge",
        "surgery-on-task-arithmetic",
    )  # fmt: skip
    assert code == 0
    record = record_of(capsys)
    assert list(record["summary"]) == [
        "individual", "task_arithmetic", "symerge", "surgery_on_task_arithmetic",
    ]  # fmt: skip
    assert main_metrics(record, "symerge") == {
        "grammar": "matthews", "similarity": "pearson_spearman", "inference": "accuracy",
    }  # fmt: skip
    assert record["stored_encoders"]["symerge"] == 1
    assert any("task_arithmetic: scale" in note for note in record["notes"])


@pytest.mark.slow
def test_a_folder_of_tasks_runs_with_the_vocabulary_beside_it(tmp_path, capsys, unread, data):
    vocabulary(tmp_path / "words")
    code = command(
        "--data", data, "--quick", "--iterations", 2, "--out", tmp_path / "runs",
        "--methods", "weight_average", "symerge_head",
    )  # fmt: skip
    assert code == 0
    record = record_of(capsys)
    assert record["setting"] == "texts"
    assert main_metrics(record, "symerge_head") == {
        "sst2": "accuracy", "stsb": "pearson_spearman", "mnli": "accuracy",
    }  # fmt: skip
    binary = {r["metric"] for r in record["results"] if r["task"] == "sst2"}
    assert binary == {"accuracy", "f1"}


def write_classifier(folder, outputs, seed, rows):
    config = small.config(outputs) | {"vocab_size": rows, "max_position_embeddings": 514}
    state = small.tensors(outputs, seed=seed)
    rng = np.random.default_rng(seed)
    width = small.SIZES.width
    state["roberta.embeddings.word_embeddings.weight"] = rng.normal(size=(rows, width)).astype("f")
    state["roberta.embeddings.position_embeddings.weight"] = rng.normal(size=(514, width)).astype(
        "f"
    )
    folder.mkdir(parents=True)
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))


@pytest.fixture
def public(tmp_path):
    """Experts laid out as the public ones are, with random weights."""
    folder = tmp_path / "hub"
    vocabulary(folder / "roberta-base")
    rows = read_tokenizer(folder / "roberta-base").rows
    shutil.move(folder / "roberta-base", tmp_path / "kept")
    write_classifier(folder / "roberta-base", 2, 0, rows)
    for path in (tmp_path / "kept").iterdir():
        shutil.copy(path, folder / "roberta-base")
    for seed, (name, outputs) in enumerate((("sst2", 2), ("stsb", 1), ("mnli", 3)), start=1):
        write_classifier(folder / name / "roberta-base_lr1e-05", outputs, seed, rows)
    return folder


@pytest.mark.slow
def test_the_benchmark_runs_on_public_checkpoints(tmp_path, capsys, data, public):
    code = command(
        "--model", "roberta-base", "--checkpoints", public, "--data", data, "--tasks", "sst2",
        "stsb", "mnli", "--iterations", 2, "--out", tmp_path / "runs",
        "--methods", "ties", "symerge",
    )  # fmt: skip
    assert code == 0
    record = record_of(capsys)
    assert record["setting"] == "checkpoints"
    assert set(record["summary"]) == {"individual", "ties", "symerge"}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--tasks", "grammar", "sentimnt"], "unknown task 'sentimnt' (did you mean sentiment?)"),
        (["--methods", "wemoe"], "--methods wemoe: not available for texts"),
        (["--methods", "symerge_block_7"], "blocks 1 to 3"),
        (["--model", "roberta"], "--model must be one of"),
        (["--model", "roberta-base"], "--model roberta-base needs --checkpoints DIR"),
        (["--vocabulary", "x"], "--vocabulary goes with --data"),
        (["--checkpoints", "x"], "--checkpoints needs --model"),
    ],
)
def test_bad_options_are_refused_at_once(tmp_path, capsys, words, says):
    assert says in refused(capsys, "--out", tmp_path / "runs", *words)
    assert not (tmp_path / "runs").exists()


def test_entropy_is_refused_where_a_task_has_no_classes():
    split = Split(np.zeros((1, 4), np.int32), np.zeros(1, np.float32))
    numbers = Task("similarity", ("score",), None, split, split, metric="pearson_spearman")
    classes = Task("inference", ("yes", "no"), None, split, split)
    for method in ("adamerging", "surgery_on_adamerging"):
        with pytest.raises(BadInput, match=f"--methods {method}: similarity is a regression"):
            language.refuse_entropy(["symerge", method], [classes, numbers])
        language.refuse_entropy([method], [classes])
    language.refuse_entropy(["symerge", "surgery_on_task_arithmetic"], [numbers])


def test_data_without_a_vocabulary_is_refused(tmp_path, capsys, data):
    assert "no vocabulary of RoBERTa" in refused(capsys, "--data", data, "--out", tmp_path / "runs")


def test_checkpoints_that_are_not_there_are_named(tmp_path, capsys, data, public):
    words = [
        "--model",
        "roberta-base",
        "--data",
        data,
        "--tasks",
        "sst2",
        "qnli",
        "--out",
        tmp_path,
    ]
    shutil.move(public / "roberta-base", tmp_path / "elsewhere")
    assert "expected the pre-trained model in roberta-base/" in refused(
        capsys, *words, "--checkpoints", public
    )
    shutil.move(tmp_path / "elsewhere", public / "roberta-base")
    assert "qnli: the expert is expected there" in refused(capsys, *words, "--checkpoints", public)


def test_an_expert_of_another_task_is_refused(tmp_path, capsys, data, public):
    shutil.move(public / "sst2", tmp_path / "two")
    shutil.copytree(public / "mnli", public / "sst2")
    says = refused(
        capsys, "--model", "roberta-base", "--checkpoints", public, "--data", data, "--tasks",
        "sst2", "stsb", "--out", tmp_path / "runs",
    )  # fmt: skip
    assert "its head has 3 outputs, but sst2 has 2" in says


def test_the_vocabulary_is_looked_for_in_the_data_folder_first(tmp_path):
    data = vocabulary(tmp_path / "data")
    write_task(data / "own")
    settings = language.Settings(data=data)
    assert language_start.read_vocabulary(settings).rows == read_tokenizer(data).rows
    assert language_start.holds_vocabulary(data)
    assert not language_start.holds_vocabulary(data / "own")


def test_two_experts_of_one_task_are_refused(tmp_path):
    for rate in ("1e-05", "5e-05"):
        (tmp_path / "sst2" / f"roberta-base_lr{rate}").mkdir(parents=True)
    (tmp_path / "roberta-base").mkdir()
    with pytest.raises(Exception, match="expected one expert, found roberta-base_lr1e-05"):
        roberta_folders.find(tmp_path, ["sst2"])
