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
        undated = contract.check_log(connection, config, ds, raw.table, _numeric(config, files.interactions))
        lines = _malformed(raw, "interactions").slice(0, None if undated else 0)
        accepted = _accepted(connection, config, raw.path)
        rejected = pa.concat_tables([_rejected(connection, raw, "checked", "interactions"), lines])
        duplicates = sql.value(connection, "SELECT count(*) FROM checked WHERE __reason IS NULL AND __copy > 1")
        counts = {"read": sql.value(connection, "SELECT count(*) FROM checked") + len(lines), "accepted": len(accepted)}
    counts |= {"rejected": len(rejected), "duplicates": duplicates}
    assert counts["read"] == counts["accepted"] + counts["rejected"] + counts["duplicates"]
    if counts["read"] == 0:
        raise UserError(f"{raw.path}: has no rows for {ds}; a day must have at least one")

    versions = {}
    kinds: tuple[tuple[TableName, tuple[Source, ...], tuple[tuple[str, ...], ...]], ...] = (
        ("users", config.source.users, files.users),
        ("items", config.source.items, files.items),
    )
    for name, source_files, columns in kinds:
        if source_files:
            entities, refused = _entities(config, ds, name, source_files, columns)
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
    labels = config.label_columns
    numbers = ", ".join(f"{contract.number(label)} AS {sql.name(label)}" for label in labels)
    stamp = config.columns.timestamp.name
    written = [stamp] if stamp.lower() == "event_time" else []
    leave = ", ".join(map(sql.name, (*labels, *written, "__time", "__day", "__reason", "__copy")))
    query = (
        f"SELECT * EXCLUDE ({leave}), __time AS event_time, __day AS event_day, {numbers}, "
        f"{sql.text(path.name)} AS source_file FROM checked WHERE __reason IS NULL AND __copy = 1 ORDER BY {ROW_NUMBER}"
    )
    table = sql.fetch(connection, query)
    place = table.schema.get_field_index("event_time")
    return table.set_column(place, "event_time", table.column("event_time").cast(pa.timestamp("us", "UTC")))


def _rejected(connection: duckdb.DuckDBPyConnection, raw: RawFile, checked: str, source: str) -> pa.Table:
    """The rows of the relation `checked` that do not hold, as they stood in the file."""
    columns = [column for column in raw.table.column_names if column != ROW_NUMBER]
    row = ", ".join(f"{sql.text(column)}, raw.{sql.name(column)}" for column in columns)
    query = (
        f"SELECT {sql.text(source)} AS source, {sql.text(raw.path.name)} AS source_file, checked.{ROW_NUMBER}, "
        f'checked.__reason AS reason, CAST(json_object({row}) AS VARCHAR) AS "row" '
        f"FROM {checked} AS checked JOIN raw USING ({ROW_NUMBER}) WHERE checked.__reason IS NOT NULL "
        f"ORDER BY {ROW_NUMBER}"
    )
    return sql.fetch(connection, query).cast(_REJECTED)


def _malformed(raw: RawFile, source: str) -> pa.Table:
    """The lines that could not be cut into columns."""
    lines = [
        {"source": source, "source_file": raw.path.name, ROW_NUMBER: line.row, "reason": line.reason}
        | {"row": json.dumps(line.text, ensure_ascii=False)}
        for line in raw.malformed
    ]
    return pa.Table.from_pylist(lines, schema=_REJECTED)


def _entities(
    config: Recommender, ds: date, name: TableName, files: tuple[Source, ...], columns: tuple[tuple[str, ...], ...]
) -> tuple[pa.Table, pa.Table]:
    """The users, or the items, of a day: one row a key over all files; and the rows that were set aside."""
    raws = [sources.read(source, ds, wanted) for source, wanted in zip(files, columns, strict=True)]
    key = sql.name(columns[0][0])
    joined, refused = "", []
    with sql.connect(config.columns.timezone) as connection:
        for position, (raw, wanted) in enumerate(zip(raws, columns, strict=True)):
            _check_entities(connection, config, raw, wanted, f"part{position}")
            refused += [_rejected(connection, raw, f"part{position}", name), _malformed(raw, name)]
            kept = f"(SELECT * EXCLUDE ({ROW_NUMBER}, __reason) FROM part{position} WHERE __reason IS NULL)"
            joined += f" FULL JOIN {kept} USING ({key})" if position else kept
        entities = sql.fetch(connection, f"SELECT * FROM {joined} ORDER BY {key}")
    return entities, pa.concat_tables(refused)


def _check_entities(
    connection: duckdb.DuckDBPyConnection, config: Recommender, raw: RawFile, columns: tuple[str, ...], name: str
) -> None:
    """Leave the cleaned rows in the table `name`, with `__reason`: no key, no number, a key of an earlier good row."""
    key, quoted = columns[0], sql.name(columns[0])
    kinds = {column: raw.table.schema.field(column).type for column in columns}
    missing, separator = config.columns.missing, config.features.separator
    cleaned = ", ".join(f"{contract.clean(c, kinds[c], missing, separator)} AS {sql.name(c)}" for c in columns)
    rules = [(f"{quoted} IS NULL", sql.text(f"{key} is null"))]
    rules += [(contract.not_a_number(c), contract.complaint(c, "is no number")) for c in _numeric(config, columns)]
    reason = "CASE " + " ".join(f"WHEN {condition} THEN {why}" for condition, why in rules) + " END"
    first = f"row_number() OVER (PARTITION BY __broken IS NULL, {quoted} ORDER BY {ROW_NUMBER}) = 1"
    connection.register("raw", raw.table)
    connection.execute(
        f"CREATE TEMP TABLE {name} AS WITH cleaned AS (SELECT {ROW_NUMBER}, {cleaned} FROM raw), "
        f"judged AS (SELECT *, {reason} AS __broken FROM cleaned) SELECT * EXCLUDE (__broken), "
        f"CASE WHEN __broken IS NULL AND NOT ({first}) THEN {sql.text(f'{key} again')} ELSE __broken END AS __reason "
        f"FROM judged"
    )
