"""Reports: the table in the terminal, in Markdown and between a README's markers."""

import io

import pytest
from rich.console import Console

from experiments import records, report
from symerge_jax.cli.errors import run
from symerge_jax.errors import BadInput


@pytest.fixture
def record():
    record = records.new_record("vision", "tiny", {})
    values = {
        "pretrained": (40.0, 50.0),
        "individual": (80.0, 100.0),
        "ties": (40.0, 60.0),
        "symerge": (76.0, 90.0),
    }
    for method, scores in values.items():
        for task, value in zip(("digits", "signs"), scores, strict=True):
            records.add_result(
                record, method=method, seed=0, task=task, metric="accuracy", value=value, n=500
            )
    record["environment"] = {
        "symerge_jax": "0.1.0",
        "jax": "0.10.2",
        "device_kind": "cpu",
        "command": "python -m experiments.vision",
    }
    return record


TABLE = """\
| method | mean | norm. % | digits | signs |
| :-- | --: | --: | --: | --: |
| Pre-trained | 45.0 | 50.0 | 40.0 | 50.0 |
| Individual experts | 90.0 | 100.0 | 80.0 | 100.0 |
| TIES | 50.0 | 55.0 | 40.0 | 60.0 |
| **SyMerge** | **83.0** | **92.5** | **76.0** | **90.0** |

<sub>Accuracy (%) on 500 test inputs per task, seed 0; norm. %: mean of score / expert's score. \
symerge_jax 0.1.0, jax 0.10.2, cpu; `python -m experiments.vision`.</sub>"""


def test_markdown_table(record):
    assert report.markdown_table(record) == TABLE


def test_several_seeds_show_their_spread(record):
    record["results"] += [{**r, "seed": 1, "value": r["value"] - 2} for r in record["results"]]
    assert "| TIES | 49.0 ± 1.4 |" in report.markdown_table(record)
    assert "seeds 0, 1, mean ± std over seeds" in report.markdown_table(record)


@pytest.mark.parametrize("width", [30, 50, 200])
def test_every_cell_is_printed_whatever_the_width(record, width):
    text = io.StringIO()
    report.print_table(record, Console(file=text, width=width))
    printed = text.getvalue()
    for cell in ("digits", "signs", "Individual experts", "76.0", "92.5"):
        assert cell in printed
    assert all(len(line) <= max(width, 30) for line in printed.splitlines())


def test_experts_are_never_the_best_merge(record):
    assert report.best_method(record) == "symerge"
    record["results"] = [r for r in record["results"] if r["method"] == "individual"]
    assert report.best_method(record) is None


def test_the_table_replaces_what_is_between_the_markers(record, tmp_path):
    readme = tmp_path / "README.md"
    before, after = "# Title\n\n<!-- begin: a -->", "<!-- end: a -->\n\n<!-- begin: b -->"
    readme.write_text(f"{before}\nold\n{after}<!-- end: b -->")
    report.replace_in_readme(readme, "a", "new")
    assert readme.read_text() == f"{before}\nnew\n{after}<!-- end: b -->"
    report.replace_in_readme(readme, "a", "new")
    assert readme.read_text() == f"{before}\nnew\n{after}<!-- end: b -->"


@pytest.mark.parametrize(
    "content",
    [
        "",
        "<!-- begin: a -->",
        "<!-- end: a --><!-- begin: a -->",
        "<!-- begin: a --><!-- end: a -->" * 2,
    ],
)
def test_markers_must_be_there_once_and_in_order(content, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(content)
    with pytest.raises(BadInput, match="begin: a"):
        report.replace_in_readme(readme, "a", "new")
    assert readme.read_text() == content


def test_the_command(record, tmp_path, capsys):
    path = records.write(record, records.new_folder(record, tmp_path))
    readme = tmp_path / "README.md"
    readme.write_text("<!-- begin: vision-tiny --><!-- end: vision-tiny -->")
    figure = tmp_path / "docs" / "vision.png"
    words = [str(path), "--readme", str(readme), "--figure", str(figure)]
    assert run(report.main, report.Settings, words, prog="report") == 0
    assert "SyMerge" in capsys.readouterr().out
    assert TABLE in readme.read_text()
    assert figure.is_file()
