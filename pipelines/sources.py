"""Raw files in: each becomes one Arrow table of the wanted columns, with the row's place in its file beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from pipelines import json_lines
from pipelines.config import Source
from pipelines.open_quotes import refuse_open_quote
from recsys_moe.errors import UserError

ROW_NUMBER = "source_row"
"""Position of a row in its file: of a CSV with its header as 1, else from 1. A blank line is none, and a row with line
breaks in its quotes is one."""


@dataclass(frozen=True)
class Malformed:
    """A line that could not be cut into columns."""

    row: int
    reason: str
    text: str


@dataclass(frozen=True)
class RawFile:
    """What one file held: `table` has the wanted columns as they were, and `source_row`."""

    path: Path
    table: pa.Table
    malformed: list[Malformed] = field(default_factory=list)


def columns_of(source: Source, ds: date) -> list[str]:
    """The names of the columns that a source has on day `ds`.

    Raises:
        UserError: the file is missing, empty, or not of its format.
    """
    path = _existing(Path(source.path_for(ds)))
    with _named(path):
        if source.file_format == "parquet":
            names = list(pyarrow.parquet.read_schema(path).names)
        elif source.file_format == "jsonl":
            names = json_lines.columns_of(path)
        else:
            with pyarrow.csv.open_csv(path, parse_options=_parse_options(source, [])) as reader:
                names = list(reader.schema.names)
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise UserError(f"{path}: the header has {doubled} twice; a column's name must be its own")
    return names


def read(source: Source, ds: date, wanted: Iterable[str]) -> RawFile:
    """Read the `wanted` columns of a source on day `ds`; text stays text.

    Raises:
        UserError: the file is missing, unreadable or not of its format, naming it.
    """
    path = _existing(Path(source.path_for(ds)))
    columns = sorted(set(wanted))
    malformed: list[Malformed] = []
    with _named(path):
        if source.file_format == "parquet":
            table = pyarrow.parquet.read_table(path, columns=columns, partitioning=None)
        elif source.file_format == "jsonl":
            table, bad = json_lines.read(path, columns)
            malformed = [Malformed(row, "is no JSON object", text) for row, text in bad]
        else:
            table = _read_csv(path, source, columns, malformed)
            refuse_open_quote(path, _delimiter(source))
    first = 2 if source.file_format in ("csv", "tsv") else 1
    numbers = _row_numbers(len(table), [line.row for line in malformed], first)
    return RawFile(path, table.append_column(ROW_NUMBER, numbers), malformed)


def _read_csv(path: Path, source: Source, columns: list[str], malformed: list[Malformed]) -> pa.Table:
    convert = pyarrow.csv.ConvertOptions(
        include_columns=columns,
        column_types=dict.fromkeys(columns, pa.string()),
        strings_can_be_null=False,
    )
    # One thread: only then does Arrow say which line it could not cut.
    options = pyarrow.csv.ReadOptions(use_threads=False)
    parse = _parse_options(source, malformed)
    return pyarrow.csv.read_csv(path, read_options=options, parse_options=parse, convert_options=convert)


def _parse_options(source: Source, malformed: list[Malformed]) -> pyarrow.csv.ParseOptions:
    def set_aside(row: pyarrow.csv.InvalidRow) -> str:
        reason = f"{row.actual_columns} columns where the header has {row.expected_columns}"
        malformed.append(Malformed(row.number or 0, reason, row.text))
        return "skip"

    handler: Callable[[pyarrow.csv.InvalidRow], str] = set_aside
    return pyarrow.csv.ParseOptions(delimiter=_delimiter(source), newlines_in_values=True, invalid_row_handler=handler)


def _delimiter(source: Source) -> str:
    return source.delimiter or ("\t" if source.file_format == "tsv" else ",")


def _row_numbers(count: int, skipped: list[int], first: int) -> pa.Array:
    """Numbers of the rows that were kept: those from `first` on that are not in `skipped`."""
    numbers = np.setdiff1d(np.arange(first, first + count + len(skipped)), skipped)
    return pa.array(numbers[:count], pa.int64())


def _existing(path: Path) -> Path:
    if path.is_dir():
        raise UserError(f"{path}: is a folder; a source's path names a file")
    if not path.exists():
        raise UserError(f"{path}: no such file; check the path in the YAML, and the day")
    if path.stat().st_size == 0:
        raise UserError(f"{path}: is empty; a day without rows has no file, or at least a header")
    return path


class _named:
    """Turn Arrow's complaints about a file into one line that names the file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if isinstance(error, pa.ArrowException | OSError | UnicodeDecodeError):
            first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(f"{self.path}: cannot be read: {first_line}") from None
