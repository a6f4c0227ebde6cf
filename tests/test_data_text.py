"""Text tasks: GLUE's layouts and a person's own are read, and their tokens kept."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from text_tasks import write, write_task

from symerge_jax.data import text_cache
from symerge_jax.data.roberta_tokenizer import RobertaTokenizer, read_tokenizer, train_tokenizer
from symerge_jax.data.text import list_text_tasks, read_text_task, read_texts
from symerge_jax.data.text_columns import GLUE, TextColumns
from symerge_jax.text_metrics import METRICS

PACKS = Path(os.environ.get("SYMERGE_DATA", Path(__file__).parents[2] / "shared" / "data"))


@pytest.fixture(scope="module")
def tokenizer():
    """One token per byte, so tokens can be read back."""
    return train_tokenizer(["x"], 261)


def texts(tokenizer, tokens):
    """The first texts of rows of tokens."""
    symbols = {i: symbol for symbol, i in tokenizer.vocabulary.items()}
    rows = []
    for row in tokens:
        row = row[1 : 1 + np.argmax(row[1:] == 2)]
        rows.append("".join(symbols[i] for i in row.tolist()).replace("Ġ", " "))
    return rows


# --- GLUE ---------------------------------------------------------------------------------------

# name → folder in the pack, rows of train, rows of dev.
PACK = {
    "cola": ("CoLA", 2000, 743),
    "sst2": ("SST-2", 2000, 872),
    "mrpc": ("MRPC", 2000, 872),
    "stsb": ("STS-B", 2000, 1000),
    "qqp": ("QQP", 2000, 1000),
    "mnli": ("MNLI", 700, 700),
    "qnli": ("QNLI", 2000, 1000),
    "rte": ("RTE", 2000, 277),
}
PAIRS = {"mrpc", "stsb", "qqp", "mnli", "qnli", "rte"}
needs_pack = pytest.mark.skipif(not (PACKS / "glue").is_dir(), reason="no GLUE pack")


@needs_pack
def test_the_pack_holds_the_eight_tasks():
    assert list_text_tasks(PACKS / "glue") == tuple(sorted(row[0] for row in PACK.values()))
    assert set(PACK) == set(GLUE)
    assert {rules.metric for rules in GLUE.values()} <= set(METRICS)


@needs_pack
@pytest.mark.parametrize("name", PACK)
def test_every_task_of_the_pack_is_read_under_both_names(name, tokenizer):
    folder, train_rows, dev_rows = PACK[name]
    task = read_text_task(PACKS / "glue", name, tokenizer, max_length=64)
    assert len(task.train.tokens) == train_rows * 9 // 10
    assert len(task.validation.tokens) == train_rows // 10
    assert len(task.dev.tokens) == dev_rows
    assert task.metric == GLUE[name].metric
    for split in (task.train, task.validation, task.dev):
        assert split.tokens.dtype == np.int32
        assert split.tokens.shape[1] == 64
        assert len(split.labels) == len(split.tokens)
        assert split.classes == task.classes
        if name == "stsb":
            assert split.labels.dtype == np.float32
            assert 0 <= split.labels.min() < 0.5
            assert 4.5 < split.labels.max() <= 5
        else:
            assert split.labels.dtype == np.int32
            assert set(split.labels.tolist()) == set(range(len(task.classes)))
        pairs = (np.diff(split.tokens == 2).sum(1) > 0) & ((split.tokens == 2).sum(1) == 3)
        assert pairs.all() == (name in PAIRS)
    other = read_text_task(PACKS / "glue", folder, tokenizer, max_length=64, need_train=False)
    assert other.train is None
    assert task.name == other.name == folder
    np.testing.assert_array_equal(other.dev.tokens, task.dev.tokens)


@needs_pack
@pytest.mark.parametrize(
    ("name", "text", "label"),
    [
        ("cola", "Nobody saw Pat.", "acceptable"),
        ("sst2", "it 's a charming and often affecting journey . ", "positive"),
        (
            "rte",
            "Dana Reeve, the widow of the actor Christopher Reeve, has died of lung ",
            1,
        ),
        ("mnli", "With a little practice almost anyone can flip off to an inte", "neutral"),
    ],
)
def test_the_first_row_of_dev_is_that_of_the_file(name, text, label, tokenizer):
    dev = read_text_task(PACKS / "glue", name, tokenizer, max_length=400, need_train=False).dev
    assert texts(tokenizer, dev.tokens[:1])[0].startswith(text)
    assert dev.labels[0] == (label if isinstance(label, int) else dev.classes.index(label))


@needs_pack
@pytest.mark.skipif(not (PACKS / "bpe_gpt2").is_dir(), reason="no GPT-2 vocabulary")
def test_a_real_task_with_robertas_vocabulary(tmp_path):
    roberta = read_tokenizer(PACKS / "bpe_gpt2", rows=50265)
    task = read_text_task(PACKS / "glue", "rte", roberta, need_train=False, cache=tmp_path)
    assert task.dev.tokens.shape == (277, 128)
    assert task.dev.tokens.max() < 50265


def test_columns_of_the_hub_are_read_from_parquet(tmp_path, tokenizer):
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "mnli").mkdir()
    for split, n in (("train", 10), ("validation_matched", 3)):
        rows = {
            "premise": [f"p{i}" for i in range(n)],
            "hypothesis": ["h"] * n,
            "label": [i % 3 for i in range(n)],
            "idx": list(range(n)),
        }
        pq.write_table(pa.table(rows), tmp_path / "mnli" / f"{split}-00000-of-00001.parquet")
    task = read_text_task(tmp_path, "MNLI", tokenizer)
    assert task.columns == TextColumns(("premise", "hypothesis"), "label")
    assert task.classes == ("entailment", "neutral", "contradiction")
    np.testing.assert_array_equal(task.dev.labels, [0, 1, 2])
    assert texts(tokenizer, task.dev.tokens) == ["p0", "p1", "p2"]


def test_labels_that_the_hub_hides_are_none(tmp_path, tokenizer):
    path = write(tmp_path / "rte" / "test.tsv", "sentence1\tsentence2\tlabel", "a\tb\t-1")
    found = read_texts(path, tokenizer)
    assert found.labels is None
    assert found.classes == ("entailment", "not_entailment")


def test_names_and_numbers_of_classes_mean_the_same(tmp_path, tokenizer):
    header = "index\tquestion\tsentence\tlabel"
    rows = ("0\ta\tb\tnot_entailment", "1\ta\tb\t0", "2\ta\tb\t1", "3\ta\tb\tentailment")
    write_task(tmp_path / "QNLI", header, rows, rows)
    task = read_text_task(tmp_path, "qnli", tokenizer)
    np.testing.assert_array_equal(task.dev.labels, [1, 0, 1, 0])


def test_cola_has_no_header_unless_it_has_one(tmp_path, tokenizer):
    write_task(
        tmp_path / "CoLA", "gj04\t1\t\tfirst", ("gj04\t0\t*\tsecond",), ("gj04\t1\t\tthird",)
    )
    task = read_text_task(tmp_path, "cola", tokenizer)
    assert texts(tokenizer, task.dev.tokens) == ["first", "third"]
    np.testing.assert_array_equal(task.dev.labels, [1, 1])
    write_task(tmp_path / "CoLA", "index\tsentence", ("0\tx", "1\ty"), ("0\tz",))
    task = read_text_task(tmp_path, "cola", tokenizer)
    assert texts(tokenizer, task.dev.tokens) == ["z"]
    assert task.dev.labels is None


# --- a person's own -----------------------------------------------------------------------------


def test_validation_is_what_the_seed_0_permutation_puts_last(tmp_path, tokenizer):
    rows = [f"{i}\t{i % 2}" for i in range(25)]
    write_task(tmp_path / "own", train=rows)
    task = read_text_task(tmp_path, "own", tokenizer)
    last = np.random.RandomState(0).permutation(25)[22:]
    assert texts(tokenizer, task.validation.tokens) == [str(i) for i in sorted(last)]
    rest = [i for i in range(25) if i not in last]
    assert texts(tokenizer, task.train.tokens) == [str(i) for i in rest]
    np.testing.assert_array_equal(task.train.labels, np.array(rest) % 2)
    np.testing.assert_array_equal(task.validation.labels, np.sort(last) % 2)


@pytest.mark.parametrize(
    ("labels", "classes", "numbers"),
    [
        (("0", "2", "1", "2"), ("0", "1", "2"), [1, 2]),
        (("yes", "no", "maybe", "no"), ("maybe", "no", "yes"), [0, 1]),
        (("0", "yes", "0", "yes"), ("0", "yes"), [0, 1]),
        (("1.5", "2", "0.25", "3"), None, [0.25, 3]),
        (("9000", "2", "9000", "2"), ("2", "9000"), [1, 0]),
    ],
)
def test_labels_tell_what_they_are(tmp_path, tokenizer, labels, classes, numbers):
    rows = [f"{i}\t{label}" for i, label in enumerate(labels)]
    write_task(tmp_path / "own", train=rows[:2], dev=rows[2:])
    task = read_text_task(tmp_path, "own", tokenizer)
    assert task.classes == task.dev.classes == classes
    assert task.metric == ("pearson_spearman" if classes is None else "accuracy")
    assert task.dev.labels.dtype == (np.float32 if classes is None else np.int32)
    np.testing.assert_array_equal(task.dev.labels, numbers)


def test_scores_are_numbers_to_predict_even_if_they_are_whole(tmp_path, tokenizer):
    write_task(tmp_path / "own", header="text\tscore")
    task = read_text_task(tmp_path, "own", tokenizer)
    assert task.classes is None
    np.testing.assert_array_equal(task.dev.labels, np.array([1, 0], np.float32))


def test_meta_sets_the_label_order(tmp_path, tokenizer):
    write_task(tmp_path / "own", train=("a\tno", "b\tyes"), dev=("c\tno", "d\tyes"))
    (tmp_path / "own" / "meta.json").write_text('{"classes": ["yes", "no"]}')
    task = read_text_task(tmp_path, "own", tokenizer)
    assert task.classes == ("yes", "no")
    np.testing.assert_array_equal(task.dev.labels, [1, 0])
    found = read_texts(tmp_path / "own" / "dev.tsv", tokenizer)
    assert found.classes == ("yes", "no")


def test_an_unlabelled_task(tmp_path, tokenizer):
    write(tmp_path / "own" / "dev.txt", "one input", "another")
    task = read_text_task(tmp_path, "own", tokenizer, need_train=False)
    assert (task.train, task.validation, task.dev.labels, task.classes, task.metric) == (None,) * 5
    assert texts(tokenizer, task.dev.tokens) == ["one input", "another"]


def test_columns_json_names_the_columns(tmp_path, tokenizer):
    write_task(tmp_path / "own", header="1\tfirst", train=("0\tsecond",), dev=("1\tthird",))
    names = {"other": "no header; columns: x", "own": ["label", "sentence"], "SST-2": "a remark"}
    (tmp_path / "columns.json").write_text(json.dumps(names))
    task = read_text_task(tmp_path, "own", tokenizer)
    assert texts(tokenizer, task.dev.tokens) == ["first", "third"]
    np.testing.assert_array_equal(task.dev.labels, [1, 1])
    names["own"] = "no header; columns: label (0/1), sentence"
    (tmp_path / "columns.json").write_text(json.dumps(names))
    assert texts(tokenizer, read_texts(tmp_path / "own" / "dev.tsv", tokenizer).tokens) == [
        "first",
        "third",
    ]


def test_one_file_of_inputs(tmp_path, tokenizer):
    path = write(tmp_path / "x.jsonl", '{"premise": "a", "hypothesis": "b"}')
    found = read_texts(path, tokenizer)
    a, b = tokenizer.vocabulary["a"], tokenizer.vocabulary["b"]
    np.testing.assert_array_equal(found.tokens, [[0, a, 2, 2, b, 2]])
    assert found.labels is None
    path = write(tmp_path / "x.csv", "sentence,label", "a,bad", "b,good")
    found = read_texts(path, tokenizer, classes=("good", "bad"))
    np.testing.assert_array_equal(found.labels, [1, 0])
    path = write(tmp_path / "x.tsv", "gj04\t1\t\tab")
    assert texts(tokenizer, read_texts(path, tokenizer, name="cola").tokens) == ["ab"]


def test_finding_tasks_passes_over_other_folders(tmp_path):
    write_task(tmp_path / "b")
    write(tmp_path / "a" / "validation-00000-of-00001.jsonl", "{}")
    write(tmp_path / "images" / "test" / "x.tsv", "x")
    write(tmp_path / "other" / "dev.xlsx", "x")
    write_task(tmp_path / ".hidden")
    write(tmp_path / "dev.tsv", "x")
    assert list_text_tasks(tmp_path) == ("a", "b")


# --- the cache ----------------------------------------------------------------------------------


def forbidden(*args, **options):
    raise AssertionError("the texts were encoded again")


def test_a_second_time_tokens_are_found(tmp_path, tokenizer, monkeypatch):
    write_task(tmp_path / "own")
    cache = tmp_path / "cache"
    first = read_text_task(tmp_path, "own", tokenizer, cache=cache)
    plain = read_text_task(tmp_path, "own", tokenizer)
    monkeypatch.setattr(RobertaTokenizer, "__call__", forbidden)
    again = read_text_task(tmp_path, "own", tokenizer, cache=cache)
    assert isinstance(again.dev.tokens, np.memmap)
    assert not again.dev.tokens.flags.writeable
    for name in ("train", "validation", "dev"):
        for other in (first, again):
            expected, found = getattr(plain, name), getattr(other, name)
            np.testing.assert_array_equal(found.tokens, expected.tokens)
            np.testing.assert_array_equal(found.labels, expected.labels)
    assert len(list((cache / "tokens").iterdir())) == 2


def test_another_file_vocabulary_or_length_is_another_entry(tmp_path, tokenizer):
    path, cache = write(tmp_path / "x" / "a.tsv", "sentence\tlabel", "some text\t1"), tmp_path / "c"
    other = train_tokenizer(["some text"] * 3, 262)
    read_texts(path, tokenizer, cache=cache)
    read_texts(path, other, cache=cache)
    read_texts(path, tokenizer, max_length=64, cache=cache)
    write(path, "sentence\tlabel", "same text\t1")
    found = read_texts(path, tokenizer, cache=cache)
    assert texts(tokenizer, found.tokens) == ["same text"]
    names = tmp_path / "columns.json"
    for order in (["sentence", "label"], ["label", "sentence"]):
        names.write_text(json.dumps({"x": order}))
        write(path, "7\t9")
        found = read_texts(path, tokenizer, cache=cache)
        assert texts(tokenizer, found.tokens) == ["7" if order[0] == "sentence" else "9"]
    assert len(list((cache / "tokens").iterdir())) == 6


@pytest.mark.parametrize("damage", ["cut", "text", "shape"])
def test_a_damaged_entry_is_made_again(tmp_path, tokenizer, damage, caplog):
    path = write(tmp_path / "a.txt", "some text", "more")
    expected = read_texts(path, tokenizer)
    read_texts(path, tokenizer, cache=tmp_path)
    (entry,) = (tmp_path / "tokens").iterdir()
    if damage == "cut":
        entry.write_bytes(entry.read_bytes()[:-1])
    elif damage == "text":
        entry.write_text("no array")
    else:
        np.save(entry, np.zeros((1, 4), np.int32))
    found = read_texts(path, tokenizer, cache=tmp_path)
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    assert [record.name for record in caplog.records] == [text_cache.__name__]
    assert "damaged cache file" in caplog.text
