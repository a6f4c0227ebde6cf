"""Which columns of a text file hold the texts and the label: GLUE's, the hub's, a person's own.

Wang et al., "GLUE: A Multi-Task Benchmark and Analysis Platform for Natural Language
Understanding", 2018 (https://arxiv.org/abs/1804.07461). Class order and the second set of names are
those of the data set `glue` on the Hugging Face hub, whose order fine-tuned heads have.
"""

import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from symerge_jax.errors import BadInput


class TextColumns(NamedTuple):
    """The columns of one file."""

    texts: tuple[str, ...]  # one, or the two of a pair
    label: str | None  # None where the file has none


class TextRules(NamedTuple):
    """Where a kind of task has what, and how it is scored."""

    texts: tuple[tuple[str, ...], ...]  # columns of the texts: the first set that is there counts
    labels: tuple[str, ...]  # of the label, likewise
    classes: tuple[str, ...] | None = None  # in label order; None for numbers, and if not known
    metric: str | None = None  # a name in text_metrics.METRICS; None: what the labels ask for
    columns: tuple[str, ...] | None = None  # of a file without a header
    broken_lines: bool = False  # whether the released file is known to have some


_ENTAILMENT = ("entailment", "not_entailment")

# GLUE's tasks by the hub's names; `rules_of` finds the spelling of GLUE's own folders too.
GLUE: dict[str, TextRules] = {
    "cola": TextRules(
        (("sentence",),), ("label",), ("unacceptable", "acceptable"), "matthews",
        columns=("source", "label", "original mark", "sentence"),
    ),
    "sst2": TextRules((("sentence",),), ("label",), ("negative", "positive"), "accuracy"),
    "mrpc": TextRules(
        (("#1 String", "#2 String"), ("sentence1", "sentence2")), ("Quality", "label"),
        ("not_equivalent", "equivalent"), "accuracy",
    ),
    "stsb": TextRules(
        (("sentence1", "sentence2"),), ("score", "label"), None, "pearson_spearman"
    ),
    "qqp": TextRules(
        (("question1", "question2"),), ("is_duplicate", "label"),
        ("not_duplicate", "duplicate"), "accuracy", broken_lines=True,
    ),
    "mnli": TextRules(
        (("sentence1", "sentence2"), ("premise", "hypothesis")), ("gold_label", "label"),
        ("entailment", "neutral", "contradiction"), "accuracy",
    ),
    "qnli": TextRules((("question", "sentence"),), ("label",), _ENTAILMENT, "accuracy"),
    "rte": TextRules((("sentence1", "sentence2"),), ("label",), _ENTAILMENT, "accuracy"),
}  # fmt: skip

# Any other task: pairs first, since a file with a pair may have a column `sentence` as well.
OWN = TextRules(
    (
        ("sentence1", "sentence2"),
        ("premise", "hypothesis"),
        ("question1", "question2"),
        ("question", "sentence"),
        ("sentence",),
        ("text",),
    ),
    ("label", "score"),
)


def glue_name(name: str) -> str | None:
    """The key in `GLUE` of "STS-B", "stsb", "sts_b" and the like; None for other names."""
    key = re.sub(r"[-_ ]", "", name.lower())
    return key if key in GLUE else None


def rules_of(name: str) -> TextRules:
    """The rules of a task, by its name: GLUE's, or `OWN`."""
    key = glue_name(name)
    return OWN if key is None else GLUE[key]


def text_names(rules: TextRules) -> frozenset[str]:
    """All column names that the texts may have; a first line with one of them is a header."""
    return frozenset(name for names in rules.texts for name in names)


def find_columns(rules: TextRules, present: Collection[str], path: Path) -> TextColumns:
    """Picks the columns of one file.

    Args:
        rules: of the task.
        present: names of the file's columns.
        path: the file, for errors.

    Raises:
        BadInput: no set of text columns is complete.
    """
    texts = next((names for names in rules.texts if set(names) <= set(present)), None)
    label = next((name for name in rules.labels if name in present), None)
    if texts is not None:
        return TextColumns(texts, label)
    wanted = ", or ".join(" and ".join(names) for names in rules.texts)
    half = next((name for names in rules.texts for name in names if name in present), None)
    names = [" ".join(name.split()) for name in present]
    found = ", ".join(name if len(name) <= 40 else f"{name[:37]}..." for name in names)
    if half is not None:
        pair = next(names for names in rules.texts if half in names)
        missing = next(name for name in pair if name not in present)
        raise BadInput(
            f"{path}: has the column {half} without {missing}, the other text of its pairs; found "
            f"{found}; add the column"
        )
    raise BadInput(
        f"{path}: expected the columns {wanted}, found {found}; name them in the file's header, or "
        f"give the names of all columns in {path.parent.parent / 'columns.json'}"
    )


def names_without_header(folder: Path, rules: TextRules) -> tuple[str, ...] | None:
    """Names of the columns of the files in `folder`, should they have no header.

    They are read from columns.json beside the folder: a JSON object with the folder's name (in
    GLUE's or the hub's spelling) and the list of names, or a text "no header; columns: NAME, NAME
    (remark), …". Any other text is a remark about a file with a header.

    Returns:
        The names, those known of GLUE's task if the file says nothing, or None.

    Raises:
        BadInput: columns.json is unreadable, or the entry is neither of the two.
    """
    path = folder.parent / "columns.json"
    if not path.is_file():
        return rules.columns
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BadInput(f"{path}: cannot be read as JSON ({error}); correct or remove it") from error
    if not isinstance(content, dict):
        raise BadInput(f"{path}: expected a JSON object, found a {type(content).__name__}")
    wanted = {folder.name, glue_name(folder.name)} - {None}
    key = next((k for k in content if k in wanted or glue_name(k) in wanted), None)
    match None if key is None else content[key]:
        case None:
            return rules.columns
        case str(remark):
            return _names_in(remark) or rules.columns
        case [str(), *_] as names if all(isinstance(name, str) for name in names):
            return tuple(names)
    raise BadInput(f"{path}: expected a list of column names as {key!r}, found {content[key]!r}")


def _names_in(remark: str) -> tuple[str, ...] | None:
    head, _, names = re.sub(r"\([^)]*\)", "", remark).partition("columns:")
    if "no header" not in head or not names.strip():
        return None
    return tuple(name.strip() for name in names.split(","))
