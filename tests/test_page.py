"""The report of all records: what the page holds, that nothing in it is live, what is read."""

import base64
import html
import json
import re
from html.parser import HTMLParser

import pytest
from page_records import record

from experiments import page, record_files, report
from experiments.markup import Html, element, joined, json_block, source_hash
from experiments.page_record import record_part
from experiments.paper_numbers import VISION, beside
from experiments.record_files import Found, Picture
from experiments.tables import columns, uncertainty
from symerge_jax.cli.errors import run
from symerge_jax.errors import BadInput

HOSTILE = "\"'><script>alert(1)</script><img src=http://x.invalid onerror=a&amp;b|"
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
EMPTY = {"img", "link", "meta", "br"}


class Read(HTMLParser):
    """A page as a list of elements with attributes and text, and whether all are closed."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.elements, self.open = [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        entry = {"tag": tag, "attributes": dict(attrs), "text": ""}
        self.elements.append(entry)
        if tag not in EMPTY:
            self.open.append(entry)

    def handle_endtag(self, tag):
        assert self.open.pop()["tag"] == tag

    def handle_data(self, data):
        for entry in self.open:
            entry["text"] += data

    def all(self, tag):
        return [entry for entry in self.elements if entry["tag"] == tag]

    def ids(self):
        return [e["attributes"]["id"] for e in self.elements if "id" in e["attributes"]]


def written(*found):
    """The page of some records, without touching a disk."""
    from experiments import claims

    rows = [Found(f"/{i}.json", one, [Picture("scores", PNG)]) for i, one in enumerate(found)]
    verdicts = claims.judge(found)
    return page.page(rows, verdicts, claims.as_json(verdicts))


@pytest.fixture(scope="module")
def text():
    vision = record("vision", VISION["ViT-B-32", 8], seeds=2)
    return written(vision, record("components", {"symerge": 90.0, "symerge_head": 88.0}))


@pytest.fixture(scope="module")
def read(text):
    return Read(text)


def test_text_is_escaped_in_content_and_in_attributes():
    assert element("p", "a < b & c", title='"') == '<p title="&quot;">a &lt; b &amp; c</p>'
    assert element("p", element("b", "x"), " & ") == "<p><b>x</b> &amp; </p>"
    assert joined(Html("<i>"), "<i>") == "<i>&lt;i&gt;"
    assert element("td", data_value=3, hidden=True, title=None) == '<td data-value="3" hidden></td>'


def test_markup_that_was_glued_to_text_is_text_again():
    assert element("p", element("b", "x") + "!") == "<p>&lt;b&gt;x&lt;/b&gt;!</p>"


def test_data_in_a_script_cannot_end_it():
    value = {"a": "</script><!--", "b": ["&", "<"]}
    block = json_block(value, name="x")
    assert block.lower().count("</script") == 1
    assert "<!--" not in block
    assert json.loads(re.fullmatch("<script[^>]*>(.*)</script>", block)[1]) == value


def test_nothing_that_a_record_says_becomes_part_of_the_page():
    hostile = record(HOSTILE, {HOSTILE: {HOSTILE: 50.0}}, tasks=1, setting=HOSTILE, model=HOSTILE)
    hostile["results"][0]["task"] = HOSTILE
    hostile["notes"] = [HOSTILE]
    hostile["settings"][HOSTILE] = HOSTILE
    hostile["phases_s"] = {HOSTILE: 1.0}
    hostile["environment"] = dict.fromkeys(hostile["environment"], HOSTILE)
    hostile["environment"]["git"] = {"commit": HOSTILE}
    vision = {**hostile, "experiment": "vision", "setting": "tiny"}
    found = Read(written(hostile, vision))
    assert len(found.all("script")) == 2
    assert not [e for e in found.elements if "onerror" in e["attributes"]]
    assert {image["attributes"]["src"][:22] for image in found.all("img")} == {
        "data:image/png;base64,"
    }
    assert HOSTILE in found.all("body")[0]["text"]


def test_the_page_needs_no_network(read):
    for entry in read.elements:
        for name in ("src", "href", "action", "srcset", "data"):
            value = entry["attributes"].get(name, "#")
            assert value.startswith(("data:", "#")), (entry["tag"], value)
    style, script = read.all("style")[0]["text"], read.all("script")[-1]["text"]
    assert "url(" not in style
    assert "@import" not in style
    assert not re.search(r"https?:|fetch\(|XMLHttpRequest|import\(", script)


def test_the_policy_allows_this_style_this_script_and_nothing_else(read):
    policy = read.all("meta")[1]["attributes"]["content"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["style-src"] == source_hash(read.all("style")[0]["text"])
    assert rules["script-src"] == source_hash(read.all("script")[-1]["text"])
    assert not [e for e in read.elements if "style" in e["attributes"]]


def test_every_part_is_there(read):
    ids = read.ids()
    assert len(set(ids)) == len(ids)
    assert {
        "overview", "not-reproduced", "claims", "claims-table", "experiments", "runs",
        "experiment-vision", "experiment-vision-1", "experiment-components",
    } <= set(ids)  # fmt: skip
    links = [a["attributes"]["href"] for a in read.all("a")]
    assert {link.removeprefix("#") for link in links} <= set(ids)


def test_headings_come_in_order_and_all_has_a_name(read):
    levels = [int(e["tag"][1]) for e in read.elements if re.fullmatch("h[1-6]", e["tag"])]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b <= a + 1 for a, b in zip(levels, levels[1:], strict=False))
    assert all(len(image["attributes"]["alt"]) > 20 for image in read.all("img"))
    assert len(read.all("caption")) == len(read.all("table"))
    assert all("scope" in th["attributes"] for th in read.all("th"))
    assert all(e["attributes"].get("aria-label") for e in read.elements
               if e["attributes"].get("role") in ("region", "img"))  # fmt: skip
    assert read.all("html")[0]["attributes"]["lang"] == "en"


def test_every_claim_is_shown_and_stored(read):
    from experiments.claims import CLAIMS, SETTINGS

    stored = json.loads(read.all("script")[0]["text"])
    assert len(stored) == len(CLAIMS) * len(SETTINGS)
    table = next(t for t in read.all("table") if t["attributes"]["id"] == "claims-table")
    assert all(claim.text in table["text"] and claim.paper in table["text"] for claim in CLAIMS)


def test_what_did_not_hold_is_listed_with_numbers():
    found = Read(written(record("vision", {**VISION["ViT-B-32", 8], "ties": 60.0})))
    section = next(e for e in found.elements if e["attributes"].get("id") == "not-reproduced")
    assert "TIES improves on Task Arithmetic" in section["text"]
    assert "Task Arithmetic 69.1, TIES 60.0 (−9.1)" in section["text"]
    assert "72.9 against 69.1" in section["text"]


def test_the_papers_numbers_and_the_differences_stand_beside_ours():
    vision = record("vision", {"individual": 80.0, "symerge": 76.0, "dare": 50.0})
    paper = beside(vision)
    assert paper.source.endswith("ViT-B/32, 8 tasks")
    by_heading = {}
    for column in columns(vision, paper.means):
        by_heading.setdefault(column.heading, []).append(column.cells)
    assert by_heading["paper"] == [["90.5", "90.1", "–"]]
    assert by_heading["ours − paper"] == [["−10.5", "−14.1", "–"], ["±0.0", "−4.6", "–"]]
    assert by_heading["paper, norm. %"] == [["100.0", "99.6", "–"]]


def test_intervals_and_p_values_are_shown_where_a_record_has_them():
    vision = record("vision", {"ties": 80.0, "symerge": 90.0, "dare": 70.0})
    assert uncertainty(vision) == []
    vision["intervals"] = {"ties": [79.04, 81.0], "symerge": [89.0, 91.0]}
    vision["paired_p"] = {"ties": 0.0004998, "dare": 0.25}
    intervals, p = uncertainty(vision)
    assert intervals.cells == ["79.0 to 81.0", "89.0 to 91.0", "–"]
    assert p.cells == ["< 0.001", "–", "0.250"]
    assert "79.0 to 81.0" in Read(written(vision)).all("body")[0]["text"]


@pytest.mark.parametrize(
    ("made", "metric", "method", "expected"),
    [
        (record("vision", {"symerge": 1}, tasks=20, model="ViT-L-14"), "accuracy", "symerge", 93.2),
        (record("vision", {"symerge": 1}, tasks=13), "accuracy", "symerge", 88.7),
        (record("components", {"symerge_head": 1}, tasks=20), "accuracy", "symerge_head", 75.0),
        (record("layers", {}, model="ViT-L-14"), "accuracy", "symerge_block_11", 90.5),
        (record("transfer", {}), "cross_accuracy", "adamerging_adapted_heads", 54.1),
        (record("corruption", {}, tasks=4), "corrupted_accuracy", "symerge", 73.7),
        (record("corruption", {}, tasks=4), "accuracy_jpeg", "wemoe", 83.9),
        (record("sparsity", {}, model="ViT-L-14"), "accuracy", "symerge_coefficients", 91.5),
        (record("curves", {}), "accuracy", "symerge", 90.1),
        (record("sequential", {}), "accuracy", "adamerging_sequential", 81.6),
        (record("supervisor", {}), "accuracy", "supervisor_0.8", 90.2),
        (record("losses", {}), "accuracy", "ce_joint", 90.1),
    ],
    ids=lambda value: value["experiment"] if isinstance(value, dict) else None,
)
def test_each_experiment_finds_its_numbers_in_the_paper(made, metric, method, expected):
    assert beside(made).means[metric][method] == expected


def test_an_analysis_without_means_in_the_paper_has_none_beside_it():
    assert beside(record("tsne", {"symerge": 1.0})) is None
    assert beside(record("my_own", {"symerge": 1.0})) is None


def luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_text_stands_out_from_what_it_is_on(read, scheme):
    pairs = re.findall(
        r"--([\w-]+): light-dark\((#\w{6}), (#\w{6})\)", read.all("style")[0]["text"]
    )
    colours = {name: luminance(both[scheme]) for name, *both in pairs}
    on = [(ink, ground) for ink in ("ink", "muted", "accent") for ground in ("ground", "surface")]
    on += [(kind, f"{kind}-ground") for kind in ("held", "failed", "open")]
    on += [("ink", "best")]
    for ink, ground in on:
        low, high = sorted((colours[ink], colours[ground]))
        assert (high + 0.05) / (low + 0.05) >= 4.5, (ink, ground)


@pytest.fixture
def folder(tmp_path):
    """Two committed records, one with pictures of its own."""
    made = tmp_path / "results" / "vision"
    made.mkdir(parents=True)
    for name, tasks in (("tiny", 8), ("tiny-14", 14)):
        text = json.dumps(record("vision", {"individual": 90.0, "symerge": 89.0}, tasks=tasks))
        (made / f"{name}.json").write_text(text)
    for name in ("tiny.png", "tiny_curves.png", "tiny-14-scores.png", "tinyish.png"):
        (made / name).write_bytes(PNG)
    return tmp_path / "results"


def test_pictures_belong_to_the_record_with_the_longest_name(folder):
    short, long = record_files.collect([folder])
    assert [picture.name for picture in short.pictures] == ["", "curves"]
    assert [picture.name for picture in long.pictures] == ["scores"]


def test_what_lies_in_a_run_beside_its_record_is_no_record(folder, tmp_path):
    run_folder = tmp_path / "runs" / "vision" / "20260101-000000-abcdef"
    (run_folder / "model").mkdir(parents=True)
    (run_folder / "model" / "config.json").write_text("{}")
    (folder / "vision" / "tiny.json").rename(run_folder / "record.json")
    (run_folder / "learning_curves.png").write_bytes(PNG)
    for place in (tmp_path / "runs", run_folder.parent, run_folder, run_folder / "record.json"):
        (found,) = record_files.collect([place])
        assert [picture.name for picture in found.pictures] == ["learning curves"]
    assert len(record_files.collect([run_folder, run_folder / "record.json"])) == 1


def test_a_picture_that_is_none_is_refused(folder):
    (folder / "vision" / "tiny.png").write_bytes(b"GIF89a")
    with pytest.raises(BadInput, match=r"tiny\.png: expected a PNG"):
        record_files.collect([folder])


def test_pictures_are_shown_at_two_thirds_of_their_dots():
    png = PNG[:16] + (1500).to_bytes(4, "big") + (600).to_bytes(4, "big") + PNG[24:]
    image = Read(record_part(Found("/x.json", record("vision", {}), [Picture("a", png)]), "x"))
    assert image.all("img")[0]["attributes"]["width"] == "1000"
    assert image.all("img")[0]["attributes"]["height"] == "400"


def test_a_record_without_pictures_is_drawn(folder):
    for png in (folder / "vision").glob("*.png"):
        png.unlink()
    found = record_files.collect([folder])
    assert [[picture.name for picture in one.pictures] for one in found] == [
        ["scores per task"]
    ] * 2
    assert found[0].pictures[0].png.startswith(b"\x89PNG")


def test_an_experiments_own_picture_is_drawn_from_its_record():
    rows = {"individual": 95.0, "symerge_coefficients": 84.0, "symerge_head": 88.0, "symerge": 90.0}
    drawn = record_files._drawn(record("components", rows, tasks=2))
    assert [picture.name for picture in drawn] == ["components"]


def test_a_record_whose_data_are_not_as_its_script_has_them_is_drawn_all_the_same():
    drawn = record_files._drawn(record("supervisor", {"supervisor_1": 90.0}, {"other": 1}, tasks=2))
    assert [picture.name for picture in drawn] == ["scores per task"]


def test_the_command_writes_three_files_that_say_the_same(folder, tmp_path, capsys):
    words = ["--out", str(tmp_path / "out"), "--records", str(folder)]
    assert run(report.main, report.Settings, words, prog="report") == 0
    out = tmp_path / "out"
    assert capsys.readouterr().out.splitlines()[-1] == str(out / "index.html")
    found = Read((out / "index.html").read_text())
    stored = json.loads((out / "claims.json").read_text())
    assert json.loads(found.all("script")[0]["text"]) == stored
    markdown = (out / "report.md").read_text()
    for entry in stored:
        assert entry["claim"] in markdown
        assert html.unescape(entry["ours"]) in found.all("body")[0]["text"]
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert run(report.main, report.Settings, words, prog="report") == 0
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_markdown_cells_hold_what_would_end_them():
    from experiments import claims, reports

    hostile = record("vision", {HOSTILE: 50.0}, tasks=2)
    verdicts = claims.judge([hostile])
    text = reports.markdown([Found("x", hostile, [])], verdicts)
    assert "<script" not in text
    assert "<img" not in text
    rows = [line for line in text.splitlines() if "alert(1)" in line and line.startswith("|")]
    assert rows
    assert all(re.search(r"(?<!\\)\|\s*b", line) is None for line in rows)


def test_a_record_of_another_format_is_refused_in_one_sentence(folder, tmp_path, capsys):
    path = folder / "vision" / "tiny.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 2}))
    words = ["--out", str(tmp_path / "out"), "--records", str(folder)]
    assert run(report.main, report.Settings, words, prog="report") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"{path}: expected a record of format 1, found 2" in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "expected a record.json, or --out DIR"),
        (["r.json", "--out", "x"], "record is of one"),
        (["--figure", "f.png", "--out", "x"], "--figure is of one"),
        (["r.json", "--records", "x"], "--records goes with --out"),
        (["r.json", "--marker", "x"], "--marker goes with --readme"),
        (["--out", "x", "--records", "nowhere"], "nowhere: expected a record.json"),
    ],
)
def test_options_without_effect_and_missing_places_are_refused(words, expected, capsys, tmp_path,
                                                               monkeypatch):  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert run(report.main, report.Settings, words, prog="report") == 2
    assert expected in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_folder_without_records_is_refused(tmp_path):
    with pytest.raises(BadInput, match="expected records below it"):
        record_files.collect([tmp_path])


def test_the_committed_records_make_a_report():
    found = record_files.collect([report.RESULTS])
    assert {one.record["setting"] for one in found} >= {"tiny", "images"}
    assert all(one.pictures for one in found)
