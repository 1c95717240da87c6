"""Raw rows in, in streams: from files here or on S3, or from a query. The same chunks whatever the format."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, date, datetime

from pipelines.config import Source
from pipelines.sources import delimited, files, json_lines, parquet_files, query
from pipelines.sources.chunks import ROW_NUMBER, Chunk, Malformed, check_header, gathered, naming, no_rows
from recsys_moe.errors import UserError

__all__ = [
    "ROW_NUMBER",
    "Chunk",
    "Malformed",
    "changed_on",
    "columns_of",
    "gathered",
    "locate_files",
    "read",
    "size_of",
    "state_of",
]


def locate_files(source: Source, ds: date) -> list[str]:
    """The addresses of the files of a day, sorted; none for a query.

    Raises:
        UserError: there is no file, one is empty, or the place cannot be reached.
    """
    return [file.uri for file in files.locate(source, ds)] if source.path else []


def size_of(source: Source, ds: date) -> int:
    """The bytes of the files of a day; 0 for a query.

    Raises:
        UserError: as `locate_files`.
    """
    return sum(file.size for file in files.locate(source, ds)) if source.path else 0


def changed_on(source: Source, ds: date) -> date:
    """The day (UTC) on which the newest file of a day was changed; for a query today, since it is asked now.

    Raises:
        UserError: as `locate_files`.
    """
    if not source.path:
        return datetime.now(UTC).date()
    newest = max(file.changed for file in files.locate(source, ds))
    return datetime.fromtimestamp(newest / 1e9, UTC).date()


def state_of(source: Source, ds: date) -> list[tuple[str, int, int]]:
    """The address, the bytes and the time of change of each file of a day; none for a query, whose answer nobody knows
    before it is asked.

    Raises:
        UserError: as `locate_files`.
    """
    return [(file.uri, file.size, file.changed) for file in files.locate(source, ds)] if source.path else []


def columns_of(source: Source, ds: date) -> list[str]:
    """The names of the columns that a source has on day `ds`: of several files, those of the first.

    Raises:
        UserError: the file is missing, empty, or not of its format; or the query fails.
    """
    if source.sql:
        names = query.columns_of(source, ds)
        check_header(source.title, names)
        return names
    found = files.locate(source, ds)
    with naming(found[0].uri):
        if source.file_format == "jsonl":
            return json_lines.columns_of(found)
        is_parquet = source.file_format == "parquet"
        names = parquet_files.columns_of(found[0]) if is_parquet else delimited.columns_of(source, found[0])
        check_header(found[0].uri, names)
    return names


def read(source: Source, ds: date, wanted: Iterable[str]) -> Iterator[Chunk]:
    """Read the `wanted` columns of a source on day `ds`, file by file and piece by piece; text stays text.

    A chunk's columns are `wanted` by name, then `source_row`. Chunks may differ in their columns' types. A source
    without rows gives one chunk without rows.

    Raises:
        UserError: a file is missing, unreadable, not of its format or lacks a column, naming it; the files were changed
            meanwhile; or the query fails.
    """
    columns = sorted(set(wanted))
    chunk = None
    for chunk in query.read(source, ds, columns) if source.sql else _read_files(source, ds, columns):
        yield chunk
    if chunk is None:
        name = query.FILE if source.sql else files.locate(source, ds)[0].name
        yield Chunk(name, no_rows(columns))


def _read_files(source: Source, ds: date, columns: list[str]) -> Iterator[Chunk]:
    found = files.locate(source, ds)
    for file in found:
        with naming(file.uri):
            if source.file_format == "parquet":
                yield from parquet_files.read(file, columns)
            elif source.file_format == "jsonl":
                yield from json_lines.read(file, columns)
            else:
                yield from delimited.read(source, file, columns)
    # A log that is still being written would come in cut short, and look whole.
    if files.locate(source, ds) != found:
        raise UserError(f"{source.path_for(ds)}: was replaced while it was read; run again when it is complete")
