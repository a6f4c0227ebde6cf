"""The table of a record, methods × summary and tasks: its cells, and its form in Markdown.

Shared by the terminal, the README and the page of all records.
"""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from experiments import records
from experiments.labels import REFERENCES, method_label, metric_label, number
from experiments.records import Record

# Metric → method → mean over tasks; and, where single tasks are compared, task → method → score.
Means = Mapping[str, Mapping[str, float]]


class Column(NamedTuple):
    """One column of a record's table.

    Attributes:
        heading: what stands above it.
        values: a number per method, None where there is none.
        spreads: the standard deviation of each, None where there is none.
        signed: whether the numbers are differences, written with their sign.
        texts: how the numbers are written where one number does not say it all.
    """

    heading: str
    values: list[float | None]
    spreads: list[float | None]
    signed: bool = False
    texts: Sequence[str] | None = None

    @property
    def cells(self) -> list[str]:
        """The column as text."""
        if self.texts is not None:
            return list(self.texts)
        if self.signed:
            return ["–" if value is None else signed(value) for value in self.values]
        return [number(*pair) for pair in zip(self.values, self.spreads, strict=True)]


def columns(record: Record, paper: Means | None = None) -> list[Column]:
    """Returns the table's columns: the summary leads, the tasks follow.

    Args:
        record: any.
        paper: the paper's numbers; adds them and the differences.
    """
    methods, summary = records.methods(record), records.summarise(record)
    mains = main_metrics(record)
    main = {} if paper is None else paper.get(next(iter(mains.values()), ""), {})
    mean = [summary[m]["mean"] for m in methods]
    normalised = [summary[m]["normalised"] for m in methods]
    averaged = any(value is not None for value in mean)
    found = []
    if averaged or not methods:
        found.append(Column("mean", mean, [summary[m]["std"] for m in methods]))
    found += _beside(mean, main, methods, "paper")
    found.append(_plain("norm. %", normalised))
    if main.get(records.EXPERT):
        theirs = {m: 100 * value / main[records.EXPERT] for m, value in main.items()}
        found += _beside(normalised, theirs, methods, "paper, norm. %")
    stored = record.get("stored_encoders", {})
    if several_encoders(record):
        found.append(_plain("encoders stored", [stored.get(m) for m in methods]))
    # Where tasks are all scored by one metric, the others are given as a mean over tasks; where
    # nothing can be averaged, each is given task by task.
    for metric in _side_metrics(record):
        values = [summary[m]["metrics"].get(metric, {}) for m in methods]
        mean = [v.get("mean") for v in values]
        found.append(Column(metric_label(metric), mean, [v.get("std") for v in values]))
        theirs = {} if paper is None else paper.get(metric, {})
        found += _beside(mean, theirs, methods, "paper")
    for pair in records.columns(record):
        if pair[1] == mains[pair[0]] or not averaged:
            both = [records.over_seeds(record, m, *pair) for m in methods]
            values = [mean for mean, _ in both]
            spreads = [None if averaged else std for _, std in both]
            found.append(Column(_heading(pair, record), values, spreads))
            theirs = {} if paper is None else paper.get(pair[0], {})
            if not averaged and paper is not None:
                theirs = paper.get(pair[1], {})
            if pair[1] == mains[pair[0]] or not averaged:
                found += _beside(values, theirs, methods, "paper")
    return found


def uncertainty(record: Record) -> list[Column]:
    """Returns the columns of intervals and p-values, where a record has them."""
    methods, found = records.methods(record), []
    intervals, p = record.get("intervals"), record.get("paired_p")
    if intervals:
        known = [intervals.get(m) for m in methods]
        texts = ["–" if i is None else f"{i[0]:.1f} to {i[1]:.1f}" for i in known]
        lows = [None if i is None else i[0] for i in known]
        found.append(Column("95 % interval", lows, [None] * len(methods), texts=texts))
    if p:
        values = [p.get(m) for m in methods]
        texts = ["–" if v is None else "< 0.001" if v < 0.001 else f"{v:.3f}" for v in values]
        found.append(Column("p against SyMerge", values, [None] * len(methods), texts=texts))
    return found


def signed(value: float) -> str:
    """`+1.2`, `−0.3`, or `±0.0` where nothing is left after rounding."""
    text = f"{value:+.1f}"
    return "±0.0" if text[1:] == "0.0" else text.replace("-", "−")


def markdown_table(record: Record, paper: Means | None = None) -> str:
    """Returns the record's table in Markdown: a row per method, the best merged one in bold.

    Args:
        record: any.
        paper: as for `columns`.
    """
    found = columns(record, paper)
    best = best_method(record)
    lines = [
        markdown_row(["method", *(column.heading for column in found)]),
        markdown_row([":--", *["--:"] * len(found)]),
    ]
    cells = [column.cells for column in found]
    for i, method in enumerate(records.methods(record)):
        row = [method_label(method), *(column[i] for column in cells)]
        lines.append(markdown_row([f"**{cell}**" for cell in row] if method == best else row))
    return "\n".join([*lines, "", f"<sub>{_caption(record)}</sub>"])


def markdown_row(cells: Sequence[str]) -> str:
    """Returns a row of a Markdown table; what would end a cell or start a tag is escaped."""
    return f"| {' | '.join(markdown_text(cell) for cell in cells)} |"


def markdown_text(text: str) -> str:
    """Returns text as one line in which neither tables nor tags are seen."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def best_method(record: Record) -> str | None:
    """Returns the best of the methods that give one encoder for all tasks.

    By the highest mean, normalised where there is no mean.
    """
    summary, stored = records.summarise(record), record.get("stored_encoders", {})
    merged = {m: s for m, s in summary.items() if m not in REFERENCES and stored.get(m, 1.0) == 1.0}
    for key in ("mean", "normalised"):
        scores = {m: s[key] for m, s in merged.items() if s[key] is not None}
        if scores:
            return max(scores, key=scores.__getitem__)
    return None


def main_metrics(record: Record) -> dict[str, str]:
    """Returns task → the first metric recorded for it."""
    return {r["task"]: r["metric"] for r in reversed(record["results"])}


def several_encoders(record: Record) -> bool:
    """Whether some merging method stores more, or less, than one encoder."""
    stored = record.get("stored_encoders", {})
    return any(count != 1 for method, count in stored.items() if method not in REFERENCES)


def what_is_measured(record: Record) -> str:
    """Returns the metric and the numbers of test inputs and seeds, as in the table's caption."""
    seeds = sorted({r["seed"] for r in record["results"]})
    metrics = set(main_metrics(record).values())
    inverted = ", the inverse for errors" if any(map(records.lower_is_better, metrics)) else ""
    what = metric_label(metrics.pop()).capitalize() if len(metrics) == 1 else "Test scores"
    tests = sorted({r["n"] for r in record["results"]})
    sizes = str(tests[0]) if len(tests) == 1 else f"{tests[0]}–{tests[-1]}" if tests else "no"
    spread = ", mean ± std over seeds" if len(seeds) > 1 else ""
    return (
        f"{what} on {sizes} test inputs per task, seed{'s' if len(seeds) > 1 else ''} "
        f"{', '.join(map(str, seeds))}{spread}; norm. %: mean of score / expert's score{inverted}."
    )


def command(record: Record) -> str:
    """Returns the run's command without its places: where files went changes no number."""
    return re.sub(r" --(out|cache|keep)(=| )\S+", "", record["environment"]["command"])


def _caption(record: Record) -> str:
    """What the numbers are and where they come from, in one line."""
    bold = " Bold: the best of one encoder for all tasks." if several_encoders(record) else ""
    environment = record["environment"]
    return (
        f"{what_is_measured(record)}{bold} symerge_jax {environment['symerge_jax']}, "
        f"jax {environment['jax']}, {environment['device_kind']}; `{command(record)}`."
    )


def _plain(heading: str, values: Sequence[float | None]) -> Column:
    return Column(heading, list(values), [None] * len(values))


def _beside(
    ours: Sequence[float | None], paper: Mapping[str, float], methods: Sequence[str], heading: str
) -> list[Column]:
    """The paper's numbers and, after them, ours minus them; nothing where there are none."""
    theirs = [paper.get(method) for method in methods]
    if all(value is None for value in theirs):
        return []
    differences = [
        None if a is None or b is None else a - b for a, b in zip(ours, theirs, strict=True)
    ]
    gap = Column("ours − paper", differences, [None] * len(differences), signed=True)
    if max(value for value in theirs if value is not None) < 1:  # metres, ratios
        gap = gap._replace(texts=["–" if d is None else _signed_small(d) for d in differences])
    return [_plain(heading, theirs), gap]


def _signed_small(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")


def _side_metrics(record: Record) -> list[str]:
    """Metrics beside the main one, where all tasks have the same main one."""
    mains = set(main_metrics(record).values())
    if len(mains) != 1:
        return []
    return [m for m in dict.fromkeys(r["metric"] for r in record["results"]) if m not in mains]


def _heading(pair: tuple[str, str], record: Record) -> str:
    """The task; with its metric where the record has several."""
    task, metric = pair
    several = len(set(main_metrics(record).values())) > 1
    return f"{task}: {metric_label(metric)}" if several else task
