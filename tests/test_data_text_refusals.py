"""Text tasks that cannot be read: everything wrong is named."""

import pytest
from text_tasks import write, write_task

from symerge_jax.data.roberta_tokenizer import train_tokenizer
from symerge_jax.data.text import list_text_tasks, read_text_task, read_texts
from symerge_jax.errors import BadInput


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["x"], 261)


def refusal(read, *args, **options):
    with pytest.raises(BadInput) as error:
        read(*args, **options)
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("name", "header", "row", "message"),
    [
        ("rte", "sentence1\tlabel", "a\t0", "has the column sentence1 without sentence2"),
        ("own", "premise\tlabel", "a\t0", "has the column premise without hypothesis"),
        ("sst2", "words\tlabel", "a\t0", "expected the columns sentence, found words, label"),
        ("own", "words", "a", "expected the columns sentence1 and sentence2, or premise and"),
        ("sst2", "sentence\tlabel", "a\t2", "line 2: the label '2' is outside the 2 classes "),
        ("sst2", "sentence\tlabel", "a\tgood", "(negative, positive; or 0 to 1)"),
        ("own", "sentence\tlabel", "a\t-3", "the label '-3' is outside the 1 classes"),
        ("stsb", "sentence1\tsentence2\tscore", "a\tb\thigh", "expected a number to predict"),
        ("stsb", "sentence1\tsentence2\tscore", "a\tb\tnan", "found 'nan'"),
        ("own", "sentence\tscore", "a\tb", "line 2: expected a number to predict, found 'b'"),
        ("sst2", "sentence\tlabel", "a\t", "line 2 has no label"),
    ],
)
def test_a_file_with_something_wrong(tmp_path, tokenizer, name, header, row, message):
    path = write(tmp_path / name / "dev.tsv", header, row)
    for found in (
        refusal(read_text_task, tmp_path, name, tokenizer, need_train=False),
        refusal(read_texts, path, tokenizer),
    ):
        assert found.startswith(str(path))
        assert message in found


def test_a_pair_with_one_text_missing(tmp_path, tokenizer):
    path = write(tmp_path / "a.jsonl", '{"sentence1": "a", "sentence2": "b"}', '{"sentence1": "a"}')
    assert "line 2 has no sentence2" in refusal(read_texts, path, tokenizer)
    path = write(tmp_path / "a.txt", "only one")
    assert "expected pairs of texts, found plain text" in refusal(
        read_texts, path, tokenizer, name="rte"
    )


def test_labels_of_a_strange_kind(tmp_path, tokenizer):
    path = write(tmp_path / "a.jsonl", '{"text": "a", "label": [1]}')
    assert "expected a text or a number as label, found [1]" in refusal(read_texts, path, tokenizer)


@pytest.mark.parametrize("name", ["sst2", "own"])
def test_labels_in_only_one_of_the_splits(tmp_path, tokenizer, name):
    write_task(tmp_path / name)
    write(tmp_path / name / "dev.tsv", "sentence", "a")
    message = refusal(read_text_task, tmp_path, name, tokenizer)
    assert "dev.tsv: has no labels, but train.tsv has" in message


def test_pairs_in_only_one_of_the_splits(tmp_path, tokenizer):
    write_task(tmp_path / "own")
    write(tmp_path / "own" / "dev.tsv", "sentence1\tsentence2\tlabel", "a\tb\t1")
    message = refusal(read_text_task, tmp_path, "own", tokenizer)
    assert "train.tsv: has one text a row, but dev.tsv has two" in message


def test_a_train_of_one_row(tmp_path, tokenizer):
    write_task(tmp_path / "own", train=("a\t0",))
    assert "at least 2 rows" in refusal(read_text_task, tmp_path, "own", tokenizer)


def test_files_of_a_task_that_are_missing_double_or_of_another_type(tmp_path, tokenizer):
    write(tmp_path / "own" / "dev.tsv", "sentence", "a")
    assert "has no file train of type .tsv" in refusal(read_text_task, tmp_path, "own", tokenizer)
    write(tmp_path / "own" / "dev.jsonl", '{"sentence": "a"}')
    message = refusal(read_text_task, tmp_path, "own", tokenizer, need_train=False)
    assert "has both dev.jsonl and dev.tsv; keep one" in message
    write(tmp_path / "b" / "dev.docx", "x")
    message = refusal(read_text_task, tmp_path, "b", tokenizer, need_train=False)
    assert "only dev.docx, whose type is not known" in message


def test_an_unknown_task_is_answered_with_the_nearest(tmp_path, tokenizer):
    write_task(tmp_path / "reviews")
    message = refusal(read_text_task, tmp_path, "review", tokenizer)
    assert "has no task 'review', only reviews; did you mean reviews" in message
    message = refusal(read_text_task, tmp_path / "reviews", "reviews", tokenizer)
    assert "itself is a task, so give the folder above it" in message
    assert "cannot be read as a folder of tasks" in refusal(list_text_tasks, tmp_path / "absent")
    write_task(tmp_path / "STS-B")
    write_task(tmp_path / "stsb_2" / "x")
    (tmp_path / "sts-b").mkdir(exist_ok=True)
    assert "has both STS-B and sts-b for 'stsb'" in refusal(
        read_text_task, tmp_path, "stsb", tokenizer
    )


@pytest.mark.parametrize("content", ["[]", "{", '{"own": 3}', '{"own": [1]}'])
def test_a_columns_json_that_says_nothing_useful(tmp_path, tokenizer, content):
    write_task(tmp_path / "own")
    (tmp_path / "columns.json").write_text(content)
    assert "columns.json" in refusal(read_text_task, tmp_path, "own", tokenizer)
