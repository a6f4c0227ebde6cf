"""One record's part of the page: what was run, the table beside the paper's, the pictures."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping

from experiments import paper_numbers, records
from experiments.claims import SAME, SETTINGS
from experiments.labels import REFERENCES, method_label
from experiments.markup import Html, element, joined, png_uri
from experiments.record_files import Found, Picture
from experiments.records import Record
from experiments.tables import (
    Column,
    best_method,
    columns,
    command,
    several_encoders,
    uncertainty,
    what_is_measured,
)

_DOTS = 1.5  # of a picture at 150 dots per inch, in one pixel of the page
_SHOWN_ELSEWHERE = frozenset({"tasks", "seeds", "out", "cache", "constants"})


def record_part(one: Found, name: str) -> Html:
    """Returns the part of one record.

    Args:
        one: the record with its pictures.
        name: unique on the page; the record's table has it as its id.
    """
    record = one.record
    title = heading(record)
    return joined(
        element("h4", title, id=f"{name}-part"),
        fact_list(_facts(record)),
        score_table(record, name, title) if record["results"] else joined(),
        element("div", *(_figure(picture, title) for picture in one.pictures), class_="pictures"),
        _details(record),
    )


def heading(record: Record) -> str:
    """Returns the setting, the model, the number of tasks: what tells records apart."""
    setting = SAME.get(record["setting"], record["setting"])
    name = SETTINGS[setting][0] if setting in SETTINGS else setting
    model = record["settings"].get("model")
    count = len(_tasks(record))
    parts = [name, *([str(model)] if model else []), *([f"{count} tasks"] if count else [])]
    parts += ["a rough run (--quick)"] if record["settings"].get("quick") else []
    return ", ".join(parts)


def fact_list(facts: Mapping[str, str]) -> Html:
    """Returns terms and what they are, one below the other."""
    pairs = [
        joined(element("dt", term), element("dd", description))
        for term, description in facts.items()
    ]
    return element("dl", *pairs)


def boxed(table: Html, label: str) -> Html:
    """Returns a table in a box of its own in which it scrolls, by keyboard too."""
    return element("div", table, class_="box", role="region", aria_label=label, tabindex=0)


def score_table(record: Record, name: str, title: str) -> Html:
    """Returns methods × summary and tasks, the paper's means and the differences among them.

    Args:
        record: with results.
        name: the table's id.
        title: what the box around the table is called.
    """
    paper = paper_numbers.beside(record)
    mean, *rest = columns(record, paper.means if paper else None)
    found = [mean, *uncertainty(record), *rest]
    head = element(
        "tr",
        element("th", "method", scope="col"),
        *(element("th", column.heading, scope="col", class_="number") for column in found),
    )
    best, cells = best_method(record), [column.cells for column in found]
    rows = [
        _row(method, [(column, cells[j][i], i) for j, column in enumerate(found)], method == best)
        for i, method in enumerate(records.methods(record))
    ]
    caption = what_is_measured(record)
    if paper:
        caption += f" Paper: {paper.source}."
    if paper and record["setting"] != "checkpoints":
        caption += " Its models and data are others than these; norm. % is the fairer comparison."
    if several_encoders(record):
        caption += " Shaded: the best of one encoder for all tasks."
    if record.get("intervals"):
        caption += " Intervals: bootstrap over test inputs; p: paired test over them, two-sided."
    table = element(
        "table",
        element("caption", element("span", caption)),
        element("thead", head),
        element("tbody", *rows),
        class_="scores sortable",
        id=name,
    )
    return boxed(table, f"Scores: {title}")


def _row(method: str, cells: list[tuple[Column, str, int]], best: bool) -> Html:
    kind = "best" if best else "reference" if method in REFERENCES else None
    return element(
        "tr",
        element("th", method_label(method), scope="row"),
        *(
            element("td", text, class_="number", data_value=column.values[i])
            for column, text, i in cells
        ),
        class_=kind,
    )


def _tasks(record: Record) -> list[str]:
    of_results = list(dict.fromkeys(r["task"] for r in record["results"]))
    return of_results or list(record["settings"].get("tasks") or [])


def _facts(record: Record) -> dict[str, str]:
    environment = record["environment"]
    seeds = sorted({r["seed"] for r in record["results"]}) or record["settings"].get("seeds", [])
    versions = [f"{name} {environment[name]}" for name in ("symerge_jax", "jax", "python")
                if name in environment]  # fmt: skip
    device = environment.get("device_kind", "–")
    return {
        "tasks": ", ".join(_tasks(record)),
        "seeds": ", ".join(map(str, seeds)),
        "command": command(record),
        "ran on": ", ".join([*versions, f"device {device}"]),
    }


def _figure(picture: Picture, title: str) -> Html:
    width, height = _shown_size(picture.png)
    what = picture.name or "figure"
    alt = f"Figure, {what}: {title}. The numbers are in the table and claims of this experiment."
    caption = f"{what[0].upper()}{what[1:]}: {title}"
    return element(
        "figure",
        element(
            "div",
            element("img", src=png_uri(picture.png), alt=alt, width=width, height=height,
                    loading="lazy"),
        ),
        element("figcaption", caption),
    )  # fmt: skip


def _shown_size(png: bytes) -> tuple[int, int]:
    """Returns width and height on the page, so that 10 points in a picture look like 14 pixels."""
    width, height = struct.unpack(">II", png[16:24])  # the header chunk comes first
    return round(width / _DOTS), round(height / _DOTS)


def _details(record: Record) -> Html:
    settings = {k: v for k, v in record["settings"].items() if k not in _SHOWN_ELSEWHERE}
    constants = record["settings"].get("constants") or {}
    lists = [
        ("Settings", {k: _text(v) for k, v in {**settings, **constants}.items() if v is not None}),
        ("Environment", {k: _text(v) for k, v in record["environment"].items()}),
        ("Time, seconds", {k: f"{v:.1f}" for k, v in record["phases_s"].items()}),
    ]
    parts = [joined(element("h5", name), fact_list(facts)) for name, facts in lists if facts]
    notes = [element("li", note) for note in record["notes"]]
    if notes:
        parts.append(joined(element("h5", "Notes"), element("ul", *notes)))
    return element("details", element("summary", "Settings, environment and notes"), *parts)


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
