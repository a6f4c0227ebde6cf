"""Tables of text as files: tsv, csv, jsonl, parquet, and plain text with one input a line.

A tsv is as GLUE's: fields between tabs, nothing quoted, so a field holds neither a tab nor a line
end. A csv may quote with ". Plain text is a table of one column, `text`, whose blank lines are
passed over. All are UTF-8, with or without a byte-order mark.
"""

import codecs
import csv
import io
import json
import logging
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

from symerge_jax.errors import BadInput

FORMATS = (".tsv", ".csv", ".jsonl", ".parquet", ".txt")

# Of the lines of a file known to have broken ones, at most this share is left out: GLUE's QQP has
# 3 in 363,849, which the hub's copy lacks as well.
_BROKEN_SHARE = 1e-4

_LOG = logging.getLogger(__name__)


class Table(NamedTuple):
    """The rows of a file, column by column."""

    path: Path
    columns: dict[str, list[Any]]  # name → one value a row; None where a row lacks it
    places: list[int]  # line (row, in parquet) of each row, from 1, to name it in errors
    unit: str = "line"

    def place(self, row: int) -> str:
        """Names a row in an error."""
        return f"{self.path}: {self.unit} {self.places[row]}"


def read_table(
    path: str | Path,
    *,
    names: tuple[str, ...] | None = None,
    header_has: Collection[str] = (),
    skip_broken: bool = False,
    report: Callable[[str], object] = _LOG.warning,
) -> Table:
    """Reads a file of a known type, with at least one row.

    Args:
        path: the file.
        names: of the columns, should a tsv or csv have no header. Its first line is a header
            nevertheless if it has a field out of `header_has`.
        header_has: see there.
        skip_broken: leave out lines of a tsv with too few fields, if they are fewer than 1 in
            10,000.
        report: receives one line if that happens.

    Raises:
        BadInput: the file is missing, empty, of an unknown type, not UTF-8, or not what its type
            asks for; the line is named.
    """
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise BadInput(
            f"{path}: expected a file of type {', '.join(FORMATS)}, found {path.suffix or 'none'}; "
            "save it as one of them"
        )
    if not path.is_file():
        what = "is a folder, expected a file" if path.is_dir() else "does not exist"
        raise BadInput(f"{path}: {what}; check the path")

    match path.suffix.lower():
        case ".tsv":
            fields, places = _split_tabs(path)
        case ".csv":
            fields, places = _split_commas(path)
        case ".jsonl":
            return _read_jsonl(path)
        case ".parquet":
            return _read_parquet(path)
        case _:
            return _read_lines(path)
    if not fields:
        raise _empty(path)
    header = names or ()
    if names is None or not set(header_has).isdisjoint(fields[0]):
        header, fields, places = tuple(fields[0]), fields[1:], places[1:]
    _check_header(path, header)
    fields, places = _check_widths(path, header, fields, places, skip_broken, report)
    columns = map(list, zip(*fields, strict=True))
    return Table(path, dict(zip(header, columns, strict=True)), places)


def texts_of(table: Table, column: str) -> list[str]:
    """The texts of a column.

    Raises:
        BadInput: a row has none there, or something else.
    """
    values = table.columns[column]
    for row, value in enumerate(values):
        if value is None:
            raise BadInput(f"{table.place(row)} has no {column}; add the text or remove the row")
        if not isinstance(value, str):
            raise BadInput(
                f"{table.place(row)}: expected a text as {column}, found {value!r}; write it in "
                "quotes"
            )
    try:
        "".join(values).encode()
    except UnicodeEncodeError as error:  # JSON can spell out halves of characters
        raise BadInput(f"{table.path}: {column} holds text that is no Unicode ({error})") from error
    return values


# --- the types ----------------------------------------------------------------------------------


def _split_tabs(path: Path) -> tuple[list[list[str]], list[int]]:
    fields = [line.split("\t") for line in _lines(path)]
    return fields, list(range(1, len(fields) + 1))


def _split_commas(path: Path) -> tuple[list[list[str]], list[int]]:
    fields, places, begin = [], [], 1
    reader = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
    try:
        for row in reader:
            if row:  # not a blank line
                fields.append(row)
                places.append(begin)
            begin = reader.line_num + 1
    except csv.Error as error:
        raise BadInput(
            f"{path}: line {begin} cannot be read as csv ({error}); correct its quotes"
        ) from error
    return fields, places


def _read_jsonl(path: Path) -> Table:
    rows, places = [], []
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise BadInput(f"{path}: line {number} cannot be read as JSON ({error})") from error
        if not isinstance(row, dict):
            raise BadInput(
                f"{path}: line {number}: expected a JSON object, found a {type(row).__name__}; "
                'write a row as {"sentence": "...", "label": 0}'
            )
        rows.append(row)
        places.append(number)
    if not rows:
        raise _empty(path)
    return Table(path, {name: [row.get(name) for row in rows] for name in rows[0]}, places)


def _read_parquet(path: Path) -> Table:
    try:
        import pyarrow.parquet as pq
    except ModuleNotFoundError as error:
        raise BadInput(
            f"{path}: reading parquet needs the package pyarrow; install it with pip install "
            "pyarrow, or save the file as jsonl"
        ) from error
    try:
        with pq.ParquetFile(path) as file:
            table = file.read()
        columns = {name: table.column(name).to_pylist() for name in table.column_names}
    except Exception as error:  # pyarrow raises OSError and several of its own
        reason = " ".join(str(error).split())[:200]
        raise BadInput(f"{path}: cannot be read as parquet ({reason}); copy it again") from error
    if not table.num_rows:
        raise _empty(path)
    return Table(path, columns, list(range(1, table.num_rows + 1)), "row")


def _read_lines(path: Path) -> Table:
    lines = [(number, line) for number, line in enumerate(_lines(path), 1) if line.strip()]
    if not lines:
        raise _empty(path)
    places, texts = map(list, zip(*lines, strict=True))
    return Table(path, {"text": texts}, places)


# --- checks -------------------------------------------------------------------------------------


def _empty(path: Path) -> BadInput:
    return BadInput(f"{path}: expected at least one row, found none; add some or remove the file")


def _check_header(path: Path, header: tuple[str, ...]) -> None:
    twice = next((name for name in header if header.count(name) > 1), None)
    if twice is not None:
        raise BadInput(f"{path}: has two columns {twice!r}; give each column its own name")


def _check_widths(
    path: Path,
    header: tuple[str, ...],
    fields: list[list[str]],
    places: list[int],
    skip_broken: bool,
    report: Callable[[str], object],
) -> tuple[list[list[str]], list[int]]:
    """The rows and their lines, all as wide as the header."""
    if not fields:
        raise _empty(path)
    width = len(header)
    wrong = [row for row, found in enumerate(fields) if len(found) != width]
    if not wrong:
        return fields, places
    short = all(len(fields[row]) < width for row in wrong)
    if not (skip_broken and short and len(wrong) <= _BROKEN_SHARE * len(fields)):
        raise BadInput(
            f"{path}: line {places[wrong[0]]} has {_counted(len(fields[wrong[0]]), 'field')}, "
            f"expected {width} ({', '.join(header)}); correct the line"
        )
    report(
        f"{path}: {_counted(len(wrong), 'line')} with too few fields left out, the first of them "
        f"line {places[wrong[0]]}"
    )
    kept = [row for row, found in enumerate(fields) if len(found) == width]
    return [fields[row] for row in kept], [places[row] for row in kept]


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _lines(path: Path) -> list[str]:
    # Not splitlines: texts hold characters, such as U+2028, that it takes for line ends.
    lines = [line.removesuffix("\r") for line in _text(path).split("\n")]
    return lines[:-1] if not lines[-1] else lines


def _text(path: Path) -> str:
    try:
        content = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    except OSError as error:
        raise BadInput(
            f"{path}: cannot be read ({error.strerror or error}); check its permissions"
        ) from error
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = 1 + content.count(b"\n", 0, error.start)
        raise BadInput(
            f"{path}: line {line} holds the byte 0x{content[error.start]:02x}, which is not UTF-8 "
            "there; save the file as UTF-8"
        ) from error
