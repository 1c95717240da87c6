"""One day in: read, check, set bad rows aside with a reason, publish."""

from __future__ import annotations

import json
import logging
from datetime import date
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from pipelines import catalog, contract, sources, sql
from pipelines.config import Recommender, Source
from pipelines.sources import ROW_NUMBER, RawFile
from pipelines.tables import TableName, Tables
from recsys_moe.config import BucketSegments
from recsys_moe.errors import UserError

log = logging.getLogger(__name__)

_REJECTED = pa.schema(
    [
        ("source", pa.string()),
        ("source_file", pa.string()),
        (ROW_NUMBER, pa.int64()),
        ("reason", pa.string()),
        ("row", pa.string()),
    ]
)


def ingest(config: Recommender, ds: date) -> dict[str, Any]:
    """Publish day `ds` of the log, and the users and items as they are known that day.

    Returns:
        `read` = `accepted` + `rejected` + `duplicates` of the log's rows, and the tables' new versions.

    Raises:
        UserError: a file is missing or not what the YAML says, or the day has no rows.
    """
    files = catalog.locate(config, ds)
    tables = Tables(config.storage)
    raw = sources.read(config.source.interactions, ds, files.interactions)
    with sql.connect(config.columns.timezone) as connection:
        contract.check_log(connection, config, ds, raw.table, _numeric(config, files.interactions))
        accepted, rejected = _accepted(connection, config, raw.path), _rejected(connection, raw)
        duplicates = _count(connection, "checked WHERE reason IS NULL AND copy > 1")
    counts = {"read": len(accepted) + len(rejected) + duplicates, "accepted": len(accepted)}
    counts |= {"rejected": len(rejected), "duplicates": duplicates}
    if counts["read"] == 0:
        raise UserError(f"{raw.path}: has no rows for {ds}; a day must have at least one")

    versions = {}
    kinds: tuple[tuple[TableName, tuple[Source, ...], tuple[tuple[str, ...], ...]], ...] = (
        ("users", config.source.users, files.users),
        ("items", config.source.items, files.items),
    )
    for name, source_files, columns in kinds:
        if source_files:
            entities, refused = _entities(config, ds, source_files, columns)
            rejected = pa.concat_tables([rejected, refused])
            versions[name] = tables.replace_day(name, ds, entities)
    versions["rejected"] = tables.replace_day("rejected", ds, rejected)
    versions["interactions"] = tables.replace_day("interactions", ds, accepted)
    log.info("ingested %s: %s", ds, ", ".join(f"{count} {what}" for what, count in counts.items()))
    return {"step": "ingest", "ds": ds.isoformat(), **counts, "versions": versions}


def _numeric(config: Recommender, columns: tuple[str, ...]) -> list[str]:
    """Those of `columns` that the model reads as numbers."""
    wanted = {f.name for f in config.features.numeric if not f.days_since}
    by = config.segments.by if config.segments else None
    if isinstance(by, BucketSegments):
        wanted.add(by.column)
    return [column for column in columns if column in wanted]


def _accepted(connection: duckdb.DuckDBPyConnection, config: Recommender, path: Path) -> pa.Table:
    """The rows that hold, each event once. Labels are numbers; everything else stays text, as the model wants it."""
    labels = list(dict.fromkeys(task.label for task in config.tasks))
    numbers = ", ".join(f"{contract.number(label)} AS {sql.name(label)}" for label in labels)
    leave = ", ".join(sql.name(column) for column in (*labels, "reason", "copy"))
    query = (
        f"SELECT * EXCLUDE ({leave}), {numbers}, {sql.text(path.name)} AS source_file "
        f"FROM checked WHERE reason IS NULL AND copy = 1 ORDER BY {ROW_NUMBER}"
    )
    table = sql.fetch(connection, query)
    place = table.schema.get_field_index("event_time")
    return table.set_column(place, "event_time", table.column("event_time").cast(pa.timestamp("us", "UTC")))


def _rejected(connection: duckdb.DuckDBPyConnection, raw: RawFile) -> pa.Table:
    """The rows that do not hold, as they stood in the file, and the lines that could not be cut into columns."""
    query = (
        f"SELECT 'interactions' AS source, {sql.text(raw.path.name)} AS source_file, checked.{ROW_NUMBER}, reason, "
        f'CAST(to_json(raw) AS VARCHAR) AS "row" FROM checked JOIN raw USING ({ROW_NUMBER}) '
        f"WHERE reason IS NOT NULL ORDER BY {ROW_NUMBER}"
    )
    table = sql.fetch(connection, query).cast(_REJECTED)
    lines = [
        {"source": "interactions", "source_file": raw.path.name, ROW_NUMBER: line.row, "reason": line.reason}
        | {"row": json.dumps(line.text, ensure_ascii=False)}
        for line in raw.malformed
    ]
    return pa.concat_tables([table, pa.Table.from_pylist(lines, schema=_REJECTED)])


def _entities(
    config: Recommender, ds: date, files: tuple[Source, ...], columns: tuple[tuple[str, ...], ...]
) -> tuple[pa.Table, pa.Table]:
    """The users, or the items, of a day: one row a key over all files; and the rows that were set aside."""
    raws = [sources.read(source, ds, wanted) for source, wanted in zip(files, columns, strict=True)]
    key = columns[0][0]
    with sql.connect(config.columns.timezone) as connection:
        parts, refused = [], []
        for position, (raw, wanted) in enumerate(zip(raws, columns, strict=True)):
            refused.append(_check_entities(connection, config, raw, wanted, f"part{position}"))
            parts.append(f"part{position}")
        joined = " FULL JOIN ".join(
            part if position == 0 else f"{part} USING ({sql.name(key)})" for position, part in enumerate(parts)
        )
        entities = sql.fetch(connection, f"SELECT * FROM {joined} ORDER BY {sql.name(key)}")
    return entities, pa.concat_tables(refused)


def _check_entities(
    connection: duckdb.DuckDBPyConnection, config: Recommender, raw: RawFile, columns: tuple[str, ...], name: str
) -> pa.Table:
    """Leave one row a key in the table `name`; return what was set aside: no key, no number, a key seen before."""
    key, quoted = columns[0], sql.name(columns[0])
    connection.register("raw", raw.table)
    cleaned = ", ".join(
        f"{contract.clean(c, raw.table.schema.field(c).type, config.columns.missing)} AS {sql.name(c)}" for c in columns
    )
    rules = [(f"{quoted} IS NULL", sql.text(f"{key} is null"))]
    rules += [(contract.not_a_number(c), contract.complaint(c, "is no number")) for c in _numeric(config, columns)]
    rules.append((f"row_number() OVER (PARTITION BY {quoted} ORDER BY {ROW_NUMBER}) > 1", sql.text(f"{key} again")))
    reason = "CASE " + " ".join(f"WHEN {condition} THEN {why}" for condition, why in rules) + " END"
    connection.execute(
        f"CREATE OR REPLACE TEMP TABLE entities AS WITH cleaned AS (SELECT {ROW_NUMBER}, {cleaned} FROM raw) "
        f"SELECT *, {reason} AS reason FROM cleaned"
    )
    kept = f"SELECT * EXCLUDE ({ROW_NUMBER}, reason) FROM entities WHERE reason IS NULL"
    connection.execute(f"CREATE TEMP TABLE {name} AS {kept}")
    refused = (
        f"SELECT {sql.text(key)} AS source, {sql.text(raw.path.name)} AS source_file, entities.{ROW_NUMBER}, reason, "
        f'CAST(to_json(raw) AS VARCHAR) AS "row" FROM entities JOIN raw USING ({ROW_NUMBER}) '
        f"WHERE reason IS NOT NULL ORDER BY {ROW_NUMBER}"
    )
    return sql.fetch(connection, refused).cast(_REJECTED)


def _count(connection: duckdb.DuckDBPyConnection, what: str) -> int:
    found = connection.execute(f"SELECT count(*) FROM {what}").fetchone()
    assert found is not None
    return int(found[0])
