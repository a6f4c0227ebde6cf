"""The report of all records, written three times: as a page, in Markdown, and as JSON.

`index.html` is for reading, `report.md` for reading where pages are not shown, `claims.json` for
programs: a list of {"claim", "source", "paper", "ours", "setting", "verdict"}.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from experiments import claims
from experiments.claims import HELD, NOT_HELD, OPEN, SETTINGS, Verdict
from experiments.page import TITLE, by_experiment, commit, page, tally
from experiments.page_record import heading
from experiments.paper_numbers import analysis, beside
from experiments.record_files import Found
from experiments.tables import command, markdown_row, markdown_table, markdown_text
from symerge_jax.files import make_folder, write_atomically


def write(found: Sequence[Found], out: str | Path) -> Path:
    """Writes the three files into a folder.

    Args:
        found: the records.
        out: the folder, made if need be; files of these names in it are replaced.

    Returns:
        The absolute path of the page.

    Raises:
        BadInput: the folder cannot be written.
    """
    folder = make_folder(Path(out).absolute())
    verdicts = claims.judge([one.record for one in found])
    data = claims.as_json(verdicts)
    text = json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_atomically(folder / "claims.json", text)
    write_atomically(folder / "report.md", markdown(found, verdicts))
    return write_atomically(folder / "index.html", page(found, verdicts, data))


def markdown(found: Sequence[Found], verdicts: Sequence[Verdict]) -> str:
    """Returns the report in Markdown; the pictures are in the page alone."""
    parts = [
        f"# {TITLE}",
        "Pictures, and all that was recorded of each run, are in index.html beside this file.",
        _tallies(verdicts),
        "## What did not reproduce and why",
        _misses(verdicts),
        "## All claims",
        _claims(verdicts),
        "## Experiments",
        *_experiments(found),
        "## What was run",
        _runs(found),
    ]
    return "\n\n".join(parts) + "\n"


def _tallies(verdicts: Sequence[Verdict]) -> str:
    lines = [markdown_row(["setting", HELD, NOT_HELD, OPEN]), markdown_row([":--", *["--:"] * 3])]
    for setting, (name, about) in SETTINGS.items():
        counts = tally(verdicts, setting).values()
        lines.append(markdown_row([f"{name}: {about}", *map(str, counts)]))
    return "\n".join(lines)


def _misses(verdicts: Sequence[Verdict]) -> str:
    missed = [one for one in verdicts if one.verdict == NOT_HELD]
    lines = [
        markdown_text(
            f"- **{one.claim.text}** ({SETTINGS[one.setting][0]}) Paper, {one.claim.source}: "
            f"{one.claim.paper}. Ours: {one.ours}. Why: {one.why or 'not looked into yet.'}"
        )
        for one in missed
    ]
    return "\n".join(lines) or "Every claim that a record can test held."


def _claims(verdicts: Sequence[Verdict]) -> str:
    headings = ["claim", "source", "paper", "setting", "verdict", "ours"]
    lines = [markdown_row(headings), markdown_row([":--"] * len(headings))]
    lines += [
        markdown_row(
            [one.claim.text, one.claim.source, one.claim.paper, SETTINGS[one.setting][0],
             one.verdict, one.ours]
        )
        for one in verdicts
    ]  # fmt: skip
    return "\n".join(lines)


def _experiments(found: Sequence[Found]) -> list[str]:
    parts = []
    for name, group in by_experiment(found):
        about = analysis(name)
        parts.append(f"### {markdown_text(about.title)}\n\n{markdown_text(about.source)}")
        for one in group:
            paper = beside(one.record)
            parts.append(f"#### {markdown_text(heading(one.record))}")
            parts += [f"Paper: {paper.source}."] if paper else []
            if one.record["results"]:
                parts.append(markdown_table(one.record, paper.means if paper else None))
    return parts


def _runs(found: Sequence[Found]) -> str:
    headings = ["experiment", "setting", "seeds", "device", "commit", "started", "command"]
    lines = [markdown_row(headings), markdown_row([":--"] * len(headings))]
    for one in found:
        record, environment = one.record, one.record["environment"]
        seeds = sorted({r["seed"] for r in record["results"]})
        lines.append(
            markdown_row(
                [record["experiment"], heading(record), ", ".join(map(str, seeds)),
                 str(environment.get("device_kind", "–")), commit(record),
                 str(environment.get("started", "–")), f"`{command(record)}`"]
            )
        )  # fmt: skip
    return "\n".join(lines)
