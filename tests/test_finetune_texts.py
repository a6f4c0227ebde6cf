"""`python -m experiments.finetune` on texts: what it leaves behind, and what it refuses."""

import json
import shutil
import warnings
from dataclasses import replace

import jax
import numpy as np
import pytest
import safetensors.numpy
from text_tasks import write

from experiments import finetune, finetune_texts, records, roberta_folders
from experiments.finetune_run import Settings
from experiments.finetune_texts import chosen_recipe
from experiments.tasks import texts
from symerge_jax.checkpoints.roberta import load_roberta
from symerge_jax.checkpoints.roberta_export import save_roberta
from symerge_jax.checkpoints.roberta_heads import read_text_head
from symerge_jax.cli.errors import run
from symerge_jax.cli.progress import Bars
from symerge_jax.data.roberta_tokenizer import read_tokenizer, train_tokenizer
from symerge_jax.models.roberta import initial_params
from symerge_jax.models.roberta_config import PRESETS
from symerge_jax.verify import verify

MODEL = "tiny-roberta-64x3"
SENTENCES = [
    f"the {colour} {thing} is {kind}"
    for colour in ("red", "blue", "old")
    for thing in ("dog", "house", "play")
    for kind in ("good", "bad")
]


@pytest.fixture(scope="module", autouse=True)
def separate():
    """What is set for the whole process is not set for other tests; one block compiles soonest."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finetune_texts, "keep_programs", lambda folder: None)
        patch.setitem(PRESETS, MODEL, replace(PRESETS[MODEL], depth=1))
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two of GLUE's tasks: the last word is the class; equal words score 4, others 0."""
    folder = tmp_path_factory.mktemp("data")
    for split, n in (("train", 90), ("dev", 30)):
        chosen = [SENTENCES[7 * i % 18] for i in range(n)]
        rows = [f"{text}\t{int(text.endswith('good'))}" for text in chosen]
        write(folder / "SST-2" / f"{split}.tsv", "sentence\tlabel", *rows)
        words = [text.split()[1] for text in chosen]  # short, for one bucket of lengths
        rows = [
            f"{word}\t{word if i % 2 else words[i - 1]}\t{4.0 * (i % 2)}"
            for i, word in enumerate(words)
        ]
        write(folder / "STS-B" / f"{split}.tsv", "sentence1\tsentence2\tscore", *rows)
    return folder


@pytest.fixture(scope="module")
def start(tmp_path_factory, separate):
    """An encoder with random weights, and its vocabulary."""
    folder = tmp_path_factory.mktemp("start")
    tokenizer = train_tokenizer(SENTENCES, 300)
    config = replace(PRESETS[MODEL], vocabulary=tokenizer.rows, positions=34)
    save_roberta(folder, initial_params(config, jax.random.key(0)), config)
    tokenizer.save(folder)
    return folder


def command(data, out, *words, task="sst2", model=MODEL):
    words = ("--model", model, "--task", task, "--data", data, "--out", out, *words)
    return run(finetune.main, Settings, [str(word) for word in words], prog="finetune")


def refused(capsys, *args, **options):
    """The one line that says why."""
    assert command(*args, **options) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("symerge: error: ")
    return line


def experts(out):
    return out / "experts" / MODEL


@pytest.fixture(scope="module")
def made(tmp_path_factory, data, start):
    """The folder of two runs: a task of classes, and a regression with the vocabulary elsewhere."""
    out = tmp_path_factory.mktemp("out")
    words = ("--pretrained", start, "--steps", 40, "--batch-size", 16)
    assert command(data, out, *words) == 0
    bare = shutil.copytree(start, out / "bare", ignore=lambda *_: ["vocab.json", "merges.txt"])
    words = ("--pretrained", bare, "--vocabulary", start, "--epochs", 1, "--limit", 40)
    assert command(data, out, *words, task="STS-B") == 0
    return out


def record_of(out, task):
    found = [records.read(path) for path in out.glob("finetune/*/record.json")]
    (record,) = [one for one in found if one["settings"]["task"] == task]
    return record


def metrics(record):
    return {result["metric"]: (result["value"], result["n"]) for result in record["results"]}


def test_the_expert_has_learned_and_its_record_says_so(made):
    record = record_of(made, "sst2")
    assert list(metrics(record)) == ["accuracy", "f1", "validation_accuracy", "validation_f1"]
    assert metrics(record)["accuracy"][0] > 90
    assert [n for _, n in metrics(record).values()] == [30, 30, 9, 9]
    assert record["summary"]["individual"]["mean"] == metrics(record)["accuracy"][0]
    assert record["settings"]["recipe"] == "small"
    assert record["settings"]["constants"]["steps"] == 40
    lines = {len(path.read_text().splitlines()) for path in made.glob("finetune/*/losses.csv")}
    assert lines == {41, 3}  # one of names, and one per step of this run and of the other
    assert not list(made.glob("cache/training/*"))


def test_a_regression_is_scored_by_correlation(made):
    record = record_of(made, "stsb")
    assert list(metrics(record)) == ["pearson_spearman", "validation_pearson_spearman"]
    assert [n for _, n in metrics(record).values()] == [30, 9]
    assert record["settings"]["constants"]["steps"] == 2  # 40 texts in batches of 32


def test_an_expert_is_a_classifier_of_hugging_face_with_all_of_it_trained(made, start):
    before, after = load_roberta(start), load_roberta(experts(made) / "sst2")
    assert after.config == before.config
    assert after.classes == ("negative", "positive")
    changed = jax.tree.map(lambda a, b: not np.array_equal(a, b), after.params, before.params)
    assert all(jax.tree.leaves(changed))
    stored = read_text_head(experts(made) / "sst2" / "heads" / "sst2.safetensors")
    assert after.head is not None
    jax.tree.map(np.testing.assert_array_equal, stored.head, after.head)
    assert load_roberta(experts(made) / "stsb").classes is None
    config = json.loads((experts(made) / "stsb" / "config.json").read_text())
    assert config["problem_type"] == "regression"
    card = json.loads((experts(made) / "sst2" / "merge_card.json").read_text())
    assert card["recipe"]["name"] == "small"
    assert card["scores"]["accuracy"]["individual"] > 90


def test_experts_are_whole_and_lie_where_merging_finds_them(made, data, start):
    for name in ("pretrained", "sst2", "stsb"):
        folder = experts(made) / name
        assert read_tokenizer(folder).digest == read_tokenizer(start).digest
        assert all(finding.holds for finding in verify(folder))
    tokenizer = read_tokenizer(start)
    tasks = texts.from_folders(data, ["sst2", "stsb"], tokenizer, length=32)
    found = roberta_folders.find(experts(made), ["sst2", "stsb"])
    read = roberta_folders.read(found, tasks, tokenizer, "float32")
    for k in range(2):
        assert np.abs(read.experts.task_vectors["position_embedding"][k]).max() > 0
    assert read.experts.classes.tolist() == [[True, True], [True, False]]


@pytest.mark.torch
def test_transformers_reads_an_expert_and_gives_its_logits(made):
    torch = pytest.importorskip("torch")
    from transformers import AutoTokenizer, RobertaForSequenceClassification

    folder = experts(made) / "sst2"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = RobertaForSequenceClassification.from_pretrained(folder).eval()
        tokens = AutoTokenizer.from_pretrained(folder)(SENTENCES[:2])["input_ids"]
    assert tokens == [row.tolist() for row in read_tokenizer(folder)(SENTENCES[:2])]
    with np.load(folder / "reference.npz") as reference:
        ids = torch.from_numpy(reference["inputs"].astype(np.int64))
        expected = reference["logits"]
    with torch.no_grad():
        logits = model(ids, attention_mask=(ids != 1).long()).logits.numpy()
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


def test_an_interrupted_run_goes_on_with_the_same_bits(monkeypatch, capsys, made, data, start):
    out, words = made / "cut", ("--pretrained", start, "--steps", 40, "--batch-size", 16)

    def stop(losses):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Bars, "follow", lambda *args: stop)
        assert command(data, out, *words) == 130
    assert "interrupted" in capsys.readouterr().err
    assert not (experts(out) / "sst2").exists()
    assert not list(out.glob("finetune/*"))
    assert command(data, out, *words, "--learning-rate", 0.1, "--resume") == 2
    assert "holds the state of a run with another recipe" in capsys.readouterr().err

    seen = []
    monkeypatch.setattr(Bars, "follow", lambda *args: lambda losses: seen.append(len(losses)))
    assert command(data, out, *words, "--resume") == 0
    assert seen == [20, 20]  # what was saved, and the rest
    ours, theirs = (
        safetensors.numpy.load_file(experts(root) / "sst2" / "model.safetensors")
        for root in (out, made)
    )
    for name in theirs:
        np.testing.assert_array_equal(ours[name], theirs[name])


def test_what_is_there_already_is_kept(capsys, tmp_path, made, data, start):
    line = refused(capsys, data, made, "--pretrained", start)
    assert "is there already; choose another name or add --overwrite" in line
    loaded = load_roberta(start)
    save_roberta(tmp_path, initial_params(loaded.config, jax.random.key(1)), loaded.config)
    words = ("--pretrained", tmp_path, "--vocabulary", start, "--overwrite")
    line = refused(capsys, data, made, *words)
    assert "pretrained: is another pre-trained model than" in line


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--recipe", "glu"), "unknown recipe 'glu' (did you mean glue?)"),
        (("--head", "x"), "--head goes with images"),
        (("--batch-size", 0), "--batch-size must be at least 1, got 0"),
    ],
)
def test_options_that_cannot_be_are_refused_in_one_line(capsys, tmp_path, data, words, says):
    assert says in refused(capsys, data, tmp_path / "out", *words)
    assert not (tmp_path / "out").exists()


def test_models_and_tasks_that_are_not_there_are_refused(capsys, tmp_path, data, start):
    assert "needs --pretrained" in refused(capsys, data, tmp_path)
    words = ("--pretrained", start)
    line = refused(capsys, data, tmp_path, *words, task="sst3")
    assert "has no task 'sst3'" in line
    assert "rename the task's folder" in refused(capsys, data, tmp_path, task="pretrained")
    line = refused(capsys, data, tmp_path, *words, model="roberta-base")
    assert "its width is 64, but that of roberta-base is 768" in line
    line = refused(capsys, data, tmp_path, *words, "--vocabulary", tmp_path)
    assert "expected a RoBERTa vocabulary" in line


def test_a_vocabulary_is_for_texts_only(capsys, tmp_path, data, start):
    line = refused(capsys, data, tmp_path, "--vocabulary", start, model="tiny-64x3")
    assert "--vocabulary goes with texts, but tiny-64x3 is a model of images" in line


def recipe(**options):
    given = {"task": "cola", "data": "data", "model": "roberta-base"} | options
    return chosen_recipe(Settings(**given), 7696)


def test_the_recipe_is_that_of_the_public_experts():
    base = recipe()
    assert (base.steps, base.batch_size, base.learning_rate) == (10 * 481, 16, 1e-5)
    assert (base.weight_decay, base.warmup, base.decay, base.clip) == (0.01, 0.06, "linear", 1.0)
    assert recipe(task="mrpc").head_rate == 5e-5
    assert recipe(epochs=2, accumulate=2, batch_size=8).steps == 962
    assert recipe(steps=7).steps == 7
    assert recipe(learning_rate=3e-5).head_rate == 3e-5
    small = recipe(model=MODEL)
    assert (small.steps, small.batch_size) == (500, 32)
    assert recipe(model=MODEL, epochs=1).steps == 241
    half = recipe(model=MODEL, learning_rate=small.learning_rate / 2)
    assert half.head_rate == pytest.approx(small.head_rate / 2)
