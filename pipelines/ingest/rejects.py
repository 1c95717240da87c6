"""Rows that were set aside: as they stood, with the reason, the file and the place in it."""

from __future__ import annotations

import json
from collections import Counter

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from pipelines import sql
from pipelines.sources import ROW_NUMBER, Chunk

SCHEMA = pa.schema(
    [
        ("source", pa.string()),
        ("source_file", pa.string()),
        (ROW_NUMBER, pa.int64()),
        ("reason", pa.string()),
        ("row", pa.string()),
    ]
)


def rejected_rows(connection: duckdb.DuckDBPyConnection, source: str, chunk: Chunk, reasons: pa.Array) -> pa.Table:
    """The rows of a chunk that have a reason, and its malformed lines: `SCHEMA`.

    Args:
        connection: writes the rows as JSON.
        source: which source it is, such as `interactions`.
        chunk: the rows as they stood.
        reasons: [rows] null for a row that holds.
    """
    parts = [_malformed(source, chunk)]
    if reasons.null_count < len(reasons):
        broken = reasons.is_valid()
        rows = pa.Table.from_batches([chunk.rows.filter(broken)]).append_column("reason", reasons.filter(broken))
        parts.append(_as_json(connection, source, chunk.file, rows))
    return pa.concat_tables(parts)


def _as_json(connection: duckdb.DuckDBPyConnection, source: str, file: str, rows: pa.Table) -> pa.Table:
    columns = [column for column in rows.column_names[:-1] if column != ROW_NUMBER]
    stood = ", ".join(f"{sql.text(column)}, {sql.name(column)}" for column in columns)
    connection.register("broken", rows.rename_columns([*rows.column_names[:-1], "__reason"]))
    query = (
        f"SELECT {sql.text(source)} AS source, {sql.text(file)} AS source_file, {ROW_NUMBER}, __reason AS reason, "
        f'CAST(json_object({stood}) AS VARCHAR) AS "row" FROM broken'
    )
    return sql.fetch(connection, query).cast(SCHEMA)


def _malformed(source: str, chunk: Chunk) -> pa.Table:
    """The lines that could not be cut into columns."""
    lines = [
        {"source": source, "source_file": chunk.file, ROW_NUMBER: line.row, "reason": line.reason}
        | {"row": json.dumps(line.text, ensure_ascii=False)}
        for line in chunk.malformed
    ]
    return pa.Table.from_pylist(lines, schema=SCHEMA)


class Reasons:
    """Why rows were set aside, counted without the values that the reasons quote."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._first: dict[str, str] = {}

    def add(self, rejected: pa.Table) -> None:
        """Count the reasons of some rows."""
        kinds = pc.replace_substring_regex(rejected.column("reason"), r"(?s): .*", "")
        grouped = rejected.append_column("kind", kinds).group_by("kind", use_threads=False)
        counted = grouped.aggregate([("reason", "count"), ("source_file", "first"), (ROW_NUMBER, "first")])
        for row in counted.to_pylist():
            self._counts[row["kind"]] += row["reason_count"]
            self._first.setdefault(row["kind"], f"{row['source_file_first']}, row {row[f'{ROW_NUMBER}_first']}")

    def most_common(self) -> str:
        """The most frequent reason in words, with how often and where it was met first."""
        ((kind, count),) = self._counts.most_common(1)
        return f"{kind!r} ({count} rows, the first in {self._first[kind]})"
