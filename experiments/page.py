"""One HTML page of all records: claims, tables with the paper's numbers, pictures, environments.

The page is a single file without network access: style, script and pictures are inside, and its
Content-Security-Policy names exactly these. Every string goes through `markup`, which escapes it.
"""

from collections.abc import Mapping, Sequence
from importlib.resources import files
from itertools import groupby

from experiments import records
from experiments.claims import HELD, NOT_HELD, OPEN, SAME, SETTINGS, Verdict
from experiments.markup import Html, element, joined, json_block, source_hash
from experiments.page_record import boxed, fact_list, record_part
from experiments.paper_numbers import ANALYSES, analysis
from experiments.record_files import Found
from experiments.records import Record
from experiments.tables import command

TITLE = "What reproduces of SyMerge's vision analyses"
_KINDS = {HELD: "held", NOT_HELD: "failed", OPEN: "open"}  # verdict → class of the style sheet
_MARKS = {HELD: "✓", NOT_HELD: "✗", OPEN: "–"}


def page(found: Sequence[Found], verdicts: Sequence[Verdict], data: object) -> str:
    """Returns the whole page.

    Args:
        found: the records.
        verdicts: of every claim in every setting.
        data: what the page's button saves as claims.json, strict JSON.
    """
    style, script = _resource("page.css"), _resource("page.js")
    policy = (
        f"default-src 'none'; img-src data:; style-src {source_hash(style)}; "
        f"script-src {source_hash(script)}; base-uri 'none'; form-action 'none'"
    )
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("link", rel="icon", href="data:,"),
        element("title", TITLE),
        element("style", Html(style)),
    )
    body = element(
        "body",
        element("a", "Skip to the results", class_="skip", href="#overview"),
        _header(),
        _contents(found),
        element("main", *_sections(found, verdicts)),
        element("footer", _footer()),
        json_block(data, name="claims-data"),
        element("script", Html(script)),
    )
    return f"<!doctype html>\n{element('html', head, body, lang='en')}\n"


def _resource(name: str) -> str:
    return files("experiments").joinpath(name).read_text(encoding="utf-8")


def _header() -> Html:
    button = element(
        "button", "Dark", class_="control needs-script", id="theme", type="button", hidden=True
    )
    return element("header", element("h1", TITLE), button)


def _contents(found: Sequence[Found]) -> Html:
    links = [
        ("overview", "Overview"),
        ("not-reproduced", "What did not reproduce"),
        ("claims", "All claims"),
        *((_id(name), analysis(name).title) for name, _ in by_experiment(found)),
        ("runs", "What was run"),
    ]
    items = [element("li", element("a", text, href=f"#{name}")) for name, text in links]
    return element("nav", element("ul", *items), aria_label="Contents")


def _sections(found: Sequence[Found], verdicts: Sequence[Verdict]) -> list[Html]:
    return [
        element("section", *_overview(found, verdicts), id="overview"),
        element("section", *_not_reproduced(verdicts), id="not-reproduced"),
        element("section", *_claims(verdicts), id="claims"),
        element("section", *_experiments(found, verdicts), id="experiments"),
        element("section", *_runs(found), id="runs"),
    ]


def by_experiment(found: Sequence[Found]) -> list[tuple[str, list[Found]]]:
    """Returns the records of each experiment, in the order of `ANALYSES` and of `SETTINGS`."""

    def key(one: Found) -> tuple[int, str, int]:
        name, setting = one.record["experiment"], one.record["setting"]
        return _place(name, ANALYSES), name, _place(SAME.get(setting, setting), SETTINGS)

    rows = sorted(found, key=key)
    return [(k, list(group)) for k, group in groupby(rows, lambda one: one.record["experiment"])]


def _place(name: str, among: Mapping[str, object]) -> int:
    known = list(among)
    return known.index(name) if name in among else len(known)


def tally(verdicts: Sequence[Verdict], setting: str) -> dict[str, int]:
    """Returns how many claims there are of each verdict in one setting."""
    own = [one.verdict for one in verdicts if one.setting == setting]
    return {verdict: own.count(verdict) for verdict in (HELD, NOT_HELD, OPEN)}


def _overview(found: Sequence[Found], verdicts: Sequence[Verdict]) -> list[Html]:
    experiments = len({one.record["experiment"] for one in found})
    claims = len({one.claim.key for one in verdicts})
    intro = (
        f"{claims} claims of the paper, each a fixed comparison of numbers, put to the "
        f"{len(found)} records of {experiments} experiment{'s' if experiments != 1 else ''} in "
        "three settings. A difference below the claim's own margin counts as none; a claim without "
        "a record that holds its numbers is listed as not testable."
    )
    cards = [_card(setting, tally(verdicts, setting)) for setting in SETTINGS]
    return [
        element("h2", "Overview"),
        element("p", intro),
        element("ul", *cards, class_="tallies"),
    ]


def _card(setting: str, counts: Mapping[str, int]) -> Html:
    total = max(1, sum(counts.values()))
    start, bars = 0.0, []
    for verdict, count in counts.items():
        width = 100 * count / total
        bars.append(
            element(
                "rect",
                x=f"{start:.2f}",
                y=0,
                width=f"{width:.2f}",
                height=10,
                class_=f"bar-{_KINDS[verdict]}",
            )  # fmt: skip
        )
        start += width
    said = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    bar = element(
        "svg", *bars, viewBox="0 0 100 10", preserveAspectRatio="none", role="img", aria_label=said
    )
    badges = [
        joined(_badge(verdict, f"{count} {verdict}"), " ") for verdict, count in counts.items()
    ]
    name, about = SETTINGS[setting]
    return element(
        "li", element("strong", name), element("span", about, class_="muted small"), bar, *badges
    )


def _badge(verdict: str, text: str | None = None) -> Html:
    words = text or verdict
    return element("span", f"{_MARKS[verdict]} {words}", class_=f"badge {_KINDS[verdict]}")


def _not_reproduced(verdicts: Sequence[Verdict]) -> list[Html]:
    missed = [one for one in verdicts if one.verdict == NOT_HELD]
    heading = element("h2", "What did not reproduce and why")
    if not missed:
        return [heading, element("p", "Every claim that a record can test held.")]
    return [heading, element("ul", *map(_miss, missed), class_="misses")]


def _miss(one: Verdict) -> Html:
    return element(
        "li",
        element("strong", one.claim.text),
        " ",
        element("span", SETTINGS[one.setting][0], class_="badge failed"),
        fact_list(
            {
                f"paper ({one.claim.source})": one.claim.paper,
                "ours": one.ours,
                "why": one.why or "not looked into yet",
            }
        ),
    )


def _claims(verdicts: Sequence[Verdict]) -> list[Html]:
    by_claim: dict[str, list[Verdict]] = {}
    for one in verdicts:
        by_claim.setdefault(one.claim.key, []).append(one)
    headings = ["claim", "paper", *(name for name, _ in SETTINGS.values())]
    rows = [
        element(
            "tr",
            element("th", rows[0].claim.text, element("br"), _rule(rows[0]), scope="row",
                    id=f"claim-{key}"),
            element("td", element("span", rows[0].claim.source, class_="muted small"),
                    element("br"), rows[0].claim.paper),
            *(_verdict_cell(row) for row in rows),
        )
        for key, rows in by_claim.items()
    ]  # fmt: skip
    table = element(
        "table",
        element("caption", element("span", "Each claim in each setting, with the numbers.")),
        _head(headings),
        element("tbody", *rows),
        class_="claims sortable",
        id="claims-table",
    )
    save = element(
        "button", "Save as claims.json", class_="control needs-script", id="save", type="button",
        hidden=True,
    )  # fmt: skip
    return [element("h2", "All claims"), boxed(table, "All claims"), save]


def _head(headings: Sequence[str], numbers: Sequence[str] = ()) -> Html:
    cells = [
        element("th", text, scope="col", class_="number" if text in numbers else None)
        for text in headings
    ]
    return element("thead", element("tr", *cells))


def _rule(one: Verdict) -> Html:
    return element("span", f"Holds if {one.claim.rule}.", class_="muted small")


def _verdict_cell(one: Verdict) -> Html:
    rank = list(_KINDS).index(one.verdict)
    ours = element("span", one.ours, class_="muted small")
    return element("td", _badge(one.verdict), element("br"), ours, data_value=rank)


def _experiments(found: Sequence[Found], verdicts: Sequence[Verdict]) -> list[Html]:
    parts = [element("h2", "Experiments")]
    for name, group in by_experiment(found):
        about = analysis(name)
        own = [v for v in verdicts if v.claim.experiment == name and v.verdict != OPEN]
        parts.append(
            element(
                "section",
                element("h3", about.title),
                element("p", f"Paper: {about.source}. Script: ",
                        element("code", f"experiments/{name}.py"), class_="muted"),
                _short_claims(own),
                *(record_part(one, f"{_id(name)}-{i}") for i, one in enumerate(group, 1)),
                id=_id(name),
            )
        )  # fmt: skip
    return parts


def _id(experiment: str) -> str:
    """Returns an element's id; names come from records, and ids have no spaces."""
    return "experiment-" + "".join(c if c.isalnum() else "-" for c in experiment)


def _short_claims(verdicts: Sequence[Verdict]) -> Html:
    if not verdicts:
        return joined()
    items = [
        element("li", _badge(one.verdict), f" {SETTINGS[one.setting][0]}: {one.claim.text} ",
                element("span", f"Paper: {one.claim.paper}. Ours: {one.ours}.", class_="muted"))
        for one in verdicts
    ]  # fmt: skip
    count = "1 claim" if len(verdicts) == 1 else f"{len(verdicts)} claims"
    return element("details", element("summary", f"{count} tested here"), element("ul", *items))


def _runs(found: Sequence[Found]) -> list[Html]:
    headings = ["experiment", "setting", "tasks", "seeds", "minutes", "device", "commit", "started",
                "command"]  # fmt: skip
    rows = [_run(one.record) for _, group in by_experiment(found) for one in group]
    table = element(
        "table",
        element("caption", element("span", "Every record of this page; commands without places.")),
        _head(headings, numbers=("tasks", "minutes")),
        element("tbody", *rows),
        class_="sortable",
        id="runs-table",
    )
    return [element("h2", "What was run"), boxed(table, "What was run")]


def _run(record: Record) -> Html:
    environment = record["environment"]
    seconds = sum(record["phases_s"].values())
    seeds = sorted({r["seed"] for r in record["results"]}) or record["settings"].get("seeds", [])
    tasks = list(dict.fromkeys(r["task"] for r in record["results"]))
    return element(
        "tr",
        element("th", record["experiment"], scope="row"),
        element("td", record["setting"]),
        element("td", str(len(tasks) or len(record["settings"].get("tasks") or [])),
                class_="number"),
        element("td", ", ".join(map(str, seeds))),
        element("td", f"{seconds / 60:.1f}", class_="number", data_value=seconds),
        element("td", str(environment.get("device_kind", "–"))),
        element("td", element("code", commit(record))),
        element("td", str(environment.get("started", "–"))),
        element("td", element("code", command(record)), class_="command"),
    )  # fmt: skip


def commit(record: Record) -> str:
    """Returns the short commit a record was made at, with a plus where files had been changed."""
    git = record["environment"].get("git") or {}
    return str(git.get("commit", "–"))[:10] + ("+" if git.get("dirty") else "")


def _footer() -> Html:
    return element(
        "p", "Made by ", element("code", "python -m experiments.report --out DIR"),
        f" from records of format {records.FORMAT}; report.md and claims.json beside it say the "
        "same.",
    )  # fmt: skip
