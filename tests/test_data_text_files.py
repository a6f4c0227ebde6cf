"""Text files of every type, and what is wrong with one that cannot be read."""

import json

import pytest

from symerge_jax.data.text_files import read_table, texts_of
from symerge_jax.errors import BadInput


def written(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def parquet(path, **columns):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table(columns), path)
    return path


def refusal(path, **options):
    with pytest.raises(BadInput) as error:
        read_table(path, **options)
    message = str(error.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


# --- what is read -------------------------------------------------------------------------------


def test_all_types_hold_the_same_rows(tmp_path):
    rows = [("It's \"quoted\", isn't it?", 1), ("naïve 東京", 0), ("", 1)]
    tsv = "sentence\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in rows)
    quoted = [text.replace('"', '""') for text, _ in rows]
    csv = "sentence,label\r\n" + "".join(
        f'"{text}",{label}\r\n' for text, (_, label) in zip(quoted, rows, strict=True)
    )
    lines = [json.dumps({"sentence": text, "label": label}) for text, label in rows]
    paths = [
        written(tmp_path / "a.tsv", tsv),
        written(tmp_path / "a.csv", csv),
        written(tmp_path / "a.jsonl", "\n".join(lines)),
        parquet(tmp_path / "a.parquet", sentence=[r[0] for r in rows], label=[r[1] for r in rows]),
    ]
    for path in paths:
        table = read_table(path)
        assert list(table.columns) == ["sentence", "label"]
        assert texts_of(table, "sentence") == [text for text, _ in rows]
        assert [int(label) for label in table.columns["label"]] == [1, 0, 1]


def test_quotes_of_a_tsv_are_text(tmp_path):
    path = written(tmp_path / "a.tsv", 'sentence\tlabel\n"open\t1\nclosed"\t0\n')
    assert read_table(path).columns["sentence"] == ['"open', 'closed"']


def test_only_line_feeds_end_a_line(tmp_path):
    path = written(tmp_path / "a.tsv", "sentence\r\none\u2028line\u0085here\x0b\r\nlast")
    table = read_table(path)
    assert table.columns["sentence"] == ["one\u2028line\u0085here\x0b", "last"]
    assert table.places == [2, 3]


def test_a_byte_order_mark_is_passed_over(tmp_path):
    path = written(tmp_path / "a.tsv", b"\xef\xbb\xbfQuality\tx\n1\ta\n")
    assert list(read_table(path).columns) == ["Quality", "x"]


def test_a_csv_field_may_hold_a_line_end(tmp_path):
    path = written(tmp_path / "a.csv", 'text,label\n"two\nlines",1\n\nlast,0\n')
    table = read_table(path)
    assert table.columns == {"text": ["two\nlines", "last"], "label": ["1", "0"]}
    assert table.places == [2, 5]


def test_plain_text_is_one_input_a_line(tmp_path):
    table = read_table(written(tmp_path / "a.txt", "first\n\n a\tb \nlast"))
    assert table.columns == {"text": ["first", " a\tb ", "last"]}
    assert table.places == [1, 3, 4]


def test_names_stand_in_for_a_header_that_is_not_there(tmp_path):
    names, has = ("source", "label", "mark", "sentence"), {"sentence"}
    bare = written(tmp_path / "a.tsv", "gj04\t1\t\tA line.\nks08\t0\t*\tLine a.\n")
    table = read_table(bare, names=names, header_has=has)
    assert table.columns["sentence"] == ["A line.", "Line a."]
    assert table.places == [1, 2]
    headed = written(tmp_path / "b.tsv", "sentence\tlabel\nA line.\t1\n")
    assert read_table(headed, names=names, header_has=has).columns == {
        "sentence": ["A line."],
        "label": ["1"],
    }


def test_keys_that_a_line_of_json_lacks_are_none(tmp_path):
    path = written(tmp_path / "a.jsonl", '{"text": "a", "label": 1}\n\n{"text": "b"}\n')
    table = read_table(path)
    assert table.columns == {"text": ["a", "b"], "label": [1, None]}
    assert table.place(1).endswith("line 3")


def test_broken_lines_are_left_out_only_where_they_are_known_and_few(tmp_path):
    lines = ["a\tb", *["x\ty"] * 9999, "broken", "last\t1"]
    path = written(tmp_path / "a.tsv", "\n".join(lines))
    said = []
    table = read_table(path, skip_broken=True, report=said.append)
    assert len(table.places) == 10_000
    assert table.columns["a"][-1] == "last"
    assert table.places[-1] == 10_002
    assert said == [f"{path}: 1 line with too few fields left out, the first of them line 10001"]
    assert "line 10001 has 1 field, expected 2" in refusal(path)
    path = written(tmp_path / "b.tsv", "\n".join([*lines, "broken"]))
    assert "line 10001 has 1 field" in refusal(path, skip_broken=True)
    path = written(tmp_path / "c.tsv", "\n".join([*lines[:-2], "too\tmany\tfields", "x\ty"]))
    assert "line 10001 has 3 fields" in refusal(path, skip_broken=True)


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.tsv", "a.csv", "a.jsonl", "a.txt"])
@pytest.mark.parametrize("content", ["", "\n", "\ufeff"])
def test_an_empty_file(tmp_path, name, content):
    assert "at least one row, found none" in refusal(written(tmp_path / name, content))


def test_a_file_with_nothing_but_a_header(tmp_path):
    for name, content in (("a.tsv", "sentence\tlabel\n"), ("a.csv", "sentence,label\n")):
        assert "at least one row, found none" in refusal(written(tmp_path / name, content))
    assert "at least one row" in refusal(parquet(tmp_path / "a.parquet", sentence=[]))


@pytest.mark.parametrize("name", ["a.tsv", "a.csv", "a.jsonl", "a.txt"])
def test_another_encoding(tmp_path, name):
    path = written(tmp_path / name, b"sentence\nfine\ncaf\xe9 au lait\n")
    assert "line 3 holds the byte 0xe9, which is not UTF-8" in refusal(path)


def test_a_wrong_number_of_fields(tmp_path):
    path = written(tmp_path / "a.tsv", "sentence\tlabel\na\t1\nb\tc\t0\n")
    assert "line 3 has 3 fields, expected 2 (sentence, label)" in refusal(path)
    path = written(tmp_path / "a.csv", "sentence,label\na,1\nb, c,0\n")
    assert "line 3 has 3 fields, expected 2" in refusal(path)


def test_an_unknown_type(tmp_path):
    message = refusal(written(tmp_path / "a.xlsx", b"PK"))
    assert "expected a file of type .tsv, .csv, .jsonl, .parquet, .txt, found .xlsx" in message


def test_a_file_that_is_not_there(tmp_path):
    assert "does not exist" in refusal(tmp_path / "a.tsv")
    (tmp_path / "b.tsv").mkdir()
    assert "is a folder" in refusal(tmp_path / "b.tsv")


def test_two_columns_of_one_name(tmp_path):
    path = written(tmp_path / "a.tsv", "sentence\tsentence\na\tb\n")
    assert "two columns 'sentence'" in refusal(path)


def test_a_quote_that_is_never_closed(tmp_path):
    path = written(tmp_path / "a.csv", 'text\nfine\n"never\nclosed\n')
    assert "line 3 cannot be read as csv" in refusal(path)


def test_lines_that_are_no_json_objects(tmp_path):
    path = written(tmp_path / "a.jsonl", '{"text": "a"}\n{"text": \n')
    assert "line 2 cannot be read as JSON" in refusal(path)
    path = written(tmp_path / "a.jsonl", '["a"]\n')
    assert "line 1: expected a JSON object, found a list" in refusal(path)


def test_a_damaged_parquet(tmp_path):
    path = parquet(tmp_path / "a.parquet", sentence=["a", "b"])
    path.write_bytes(path.read_bytes()[:-5])
    assert "cannot be read as parquet" in refusal(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": null}', "line 2 has no text"),
        ("{}", "line 2 has no text"),
        ('{"text": 3}', "line 2: expected a text as text, found 3"),
        ('{"text": "\\ud800"}', "text holds text that is no Unicode"),
    ],
)
def test_texts_that_are_none(tmp_path, line, message):
    table = read_table(written(tmp_path / "a.jsonl", f'{{"text": "a"}}\n{line}\n'))
    with pytest.raises(BadInput, match=message):
        texts_of(table, "text")
