"""CSV and TSV, block by block; text stays text."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from pipelines.config import Source
from pipelines.sources.chunks import ROW_NUMBER, Chunk, Malformed, check_header, no_rows, numbered
from pipelines.sources.files import File
from pipelines.sources.open_quotes import refuse_open_quote
from pipelines.sources.streams import BLOCK, TextStream
from recsys_moe.errors import UserError

_USUAL_BLOCK = 2 << 20
"""Bytes that are parsed at once. Arrow reads up to 32 blocks ahead, which takes memory; a longer row gets more."""
_MOST_BEFORE_A_ROW = 200_000
_TOO_LONG = "straddling object"  # Arrow's words for a row that does not end in its block.


def columns_of(source: Source, file: File) -> list[str]:
    """The header.

    Raises:
        UserError: there is none.
    """
    with TextStream(file) as stream:
        return _header(stream, delimiter_of(source))


def delimiter_of(source: Source) -> str:
    """What stands between two values."""
    return source.delimiter or ("\t" if source.file_format == "tsv" else ",")


def read(source: Source, file: File, wanted: Sequence[str]) -> Iterator[Chunk]:
    """The wanted columns as text. Lines with another number of values than the header are set aside.

    Raises:
        UserError: the text is no UTF-8, a column is not there, a quote is never closed, or a row is beyond measure.
    """
    lines = _Lines(file)
    try:
        yield from _read(source, file, wanted, lines, _USUAL_BLOCK)
    except _RowTooLongError:
        for chunk in _read(source, file, wanted, _Lines(file), BLOCK):
            yield from _from_row(lines.following, chunk)


class _RowTooLongError(Exception):
    """A row does not end in its block."""


def _from_row(number: int, chunk: Chunk) -> Iterator[Chunk]:
    """What of a chunk lies at a row's number or after it."""
    rows = chunk.rows.filter(pc.greater_equal(chunk.rows.column(ROW_NUMBER), number))
    malformed = tuple(line for line in chunk.malformed if line.row >= number)
    if rows.num_rows or malformed:
        yield Chunk(chunk.file, rows, malformed)


def _read(source: Source, file: File, wanted: Sequence[str], lines: _Lines, block: int) -> Iterator[Chunk]:
    delimiter = delimiter_of(source)
    with TextStream(file) as stream:
        check_header(file.uri, _header(stream, delimiter), wanted)
        try:
            for batch in _open(stream, delimiter, list(wanted), lines, block):
                numbers, malformed = lines.place(batch.num_rows)
                if batch.num_rows or malformed:
                    yield Chunk(file.name, numbered(batch, numbers), malformed)
        except pa.ArrowInvalid as error:
            if _TOO_LONG in str(error) and block < BLOCK:
                raise _RowTooLongError from None
            raise _explained(error, stream, delimiter, lines) from None
        if lines.waiting:
            yield Chunk(file.name, no_rows(wanted), tuple(lines.waiting))
        if stream.quotes % 2:
            refuse_open_quote(file, delimiter)


def _explained(error: Exception, stream: TextStream, delimiter: str, lines: _Lines) -> Exception:
    """What is wrong with the file, where Arrow's own words do not say it."""
    file = stream.file
    if lines.too_many:
        most = f"its first {_MOST_BEFORE_A_ROW} lines have not the header's number of columns"
        return UserError(f"{file.uri}: {most}; is the delimiter right, and the header complete?")
    if _TOO_LONG not in str(error):
        return error
    if stream.quotes % 2:
        refuse_open_quote(file, delimiter)
    return UserError(f"{file.uri}: row {lines.following} or a later one has over {BLOCK >> 20} MB")


def _header(stream: TextStream, delimiter: str) -> list[str]:
    head = stream.head
    whole_lines = head[: head.rfind(b"\n") + 1] or head
    options = pyarrow.csv.ReadOptions(use_threads=False, block_size=len(whole_lines) + 1)
    parse = _parse_options(delimiter, lambda _: "skip")
    try:
        with pyarrow.csv.open_csv(io.BytesIO(whole_lines), read_options=options, parse_options=parse) as reader:
            return list(reader.schema.names)
    except pa.ArrowInvalid:
        if stream.quotes % 2:
            refuse_open_quote(stream.file, delimiter)
        raise


def _open(
    stream: TextStream, delimiter: str, columns: list[str], lines: _Lines, block: int
) -> pyarrow.csv.CSVStreamingReader:
    convert = pyarrow.csv.ConvertOptions(
        include_columns=columns,
        column_types=dict.fromkeys(columns, pa.string()),
        strings_can_be_null=False,
    )
    # One thread: only then does Arrow say which line it could not cut.
    options = pyarrow.csv.ReadOptions(use_threads=False, block_size=block)
    parse = _parse_options(delimiter, lines.set_aside)
    source = pa.PythonFile(stream, mode="r")
    return pyarrow.csv.open_csv(source, read_options=options, parse_options=parse, convert_options=convert)


def _parse_options(delimiter: str, handler: Any) -> pyarrow.csv.ParseOptions:
    return pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True, invalid_row_handler=handler)


class _Lines:
    """Counts a file's lines, those that are no rows among them.

    `waiting` are malformed lines after the rows that were given; `following` is the number of the next line.
    """

    def __init__(self, file: File) -> None:
        self.file = file
        self.waiting: list[Malformed] = []
        self.following = 2

    @property
    def too_many(self) -> bool:
        """Whether so many came before the first row, for which Arrow keeps reading, that memory is in danger."""
        return self.following == 2 and len(self.waiting) > _MOST_BEFORE_A_ROW

    def set_aside(self, row: pyarrow.csv.InvalidRow) -> str:
        """Keep a line that Arrow could not cut, and go on."""
        assert row.number is not None
        reason = f"{row.actual_columns} columns where the header has {row.expected_columns}"
        self.waiting.append(Malformed(row.number, reason, row.text))
        return "error" if self.too_many else "skip"

    def place(self, count: int) -> tuple[np.ndarray, tuple[Malformed, ...]]:
        """The numbers of the next `count` rows, and the malformed lines before and among them. Arrow reads ahead."""
        skipped = np.array([line.row for line in self.waiting], np.int64)
        rows_before = skipped - self.following - np.arange(len(skipped))
        passed = int(np.searchsorted(rows_before, max(count, 1)))
        length = count + passed
        numbers = np.delete(np.arange(self.following, self.following + length), skipped[:passed] - self.following)
        malformed, self.waiting = tuple(self.waiting[:passed]), self.waiting[passed:]
        self.following += length
        return numbers, malformed
