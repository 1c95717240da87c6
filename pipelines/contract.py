"""What a raw row must be to be believed: typed columns out, or the reason why not. All of it in SQL."""

from __future__ import annotations

from datetime import date

import duckdb
import pyarrow as pa

from pipelines import sql
from pipelines.config import Recommender
from pipelines.sources import ROW_NUMBER

_UNITS = {"s": 1_000_000, "ms": 1_000, "us": 1}
_FIRST_DAY, _LAST_DAY = "1980-01-01", "2100-01-01"


def clean(column: str, kind: pa.DataType, missing: tuple[str, ...], separator: str = ",") -> str:
    """An SQL expression: the column as trimmed text, whole numbers without `.0`, null where it says nothing.

    Lists, as Parquet and JSON have them, become one text with `separator` between their values.
    """
    quoted = sql.name(column)
    if pa.types.is_floating(kind):
        whole = f"isfinite({quoted}) AND {quoted} = floor({quoted}) AND abs({quoted}) < 9007199254740992"
        text = f"CASE WHEN {whole} THEN CAST(CAST({quoted} AS BIGINT) AS VARCHAR) "
        text += f"WHEN NOT isnan({quoted}) THEN CAST({quoted} AS VARCHAR) END"
    elif pa.types.is_boolean(kind):
        text = f"CAST(CAST({quoted} AS INTEGER) AS VARCHAR)"
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
        text = f"array_to_string(CAST({quoted} AS VARCHAR[]), {sql.text(separator)})"
    else:
        # pandas writes whole numbers as 7.0 where one of the column is missing; ids must still meet.
        text = f"regexp_replace(trim(CAST({quoted} AS VARCHAR)), '^(-?[0-9]+)\\.0+$', '\\1')"
    markers = ", ".join(sql.text(value) for value in dict.fromkeys(("", *missing)))
    return f"CASE WHEN {text} IN ({markers}) THEN NULL ELSE {text} END"


def number(column: str) -> str:
    """An SQL expression: a cleaned text column as a finite number, null where it is none."""
    value = f"TRY_CAST({sql.name(column)} AS DOUBLE)"
    return f"CASE WHEN isfinite({value}) THEN {value} END"


def not_a_number(column: str) -> str:
    """An SQL condition: the cleaned text column says something that is no number."""
    return f"{sql.name(column)} IS NOT NULL AND ({number(column)}) IS NULL"


def complaint(column: str, what: str) -> str:
    """An SQL expression: a reason that quotes the offending value, shortened."""
    return f"concat({sql.text(f'{column} {what}: ')}, left({sql.name(column)}, 40))"


def event_time(config: Recommender, kind: pa.DataType) -> str:
    """An SQL expression: the cleaned timestamp column as a time, null where it is none or out of all reason.

    A column whose type (`kind`) is a time needs no unit. Text, or a time, without an offset is local time in
    `columns.timezone`, which is the connection's.
    """
    stamp = config.columns.timestamp
    if stamp.unit == "iso" or pa.types.is_temporal(kind):
        value = f"TRY_CAST({sql.name(stamp.name)} AS TIMESTAMPTZ)"
    else:
        micros = f"({number(stamp.name)}) * {_UNITS[stamp.unit]}"
        value = f"CASE WHEN abs({micros}) < 9e15 THEN make_timestamptz(CAST(round({micros}) AS BIGINT)) END"
    inside = f"({value}) BETWEEN TIMESTAMPTZ '{_FIRST_DAY}' AND TIMESTAMPTZ '{_LAST_DAY}'"
    return f"CASE WHEN {inside} THEN {value} END"


def check_log(
    connection: duckdb.DuckDBPyConnection, config: Recommender, ds: date, raw: pa.Table, numeric: list[str]
) -> bool:
    """Leave the day's rows in the table `checked`: cleaned text columns, `__time`, `__day`, `__reason`, `__copy`.

    `__reason` is null for a row that holds; of those, `__copy` numbers the ones that share the key from 1. An export
    of the whole history is cut to the rows whose event day is `ds`.

    Returns: whether rows without a readable day belong to `ds`; those of a whole history go with its first day.
    """
    columns = [column for column in raw.column_names if column != ROW_NUMBER]
    kinds = {column: raw.schema.field(column).type for column in columns}
    missing, separator = config.columns.missing, config.features.separator
    cleaned = ", ".join(f"{clean(c, kinds[c], missing, separator)} AS {sql.name(c)}" for c in columns)
    time = event_time(config, kinds[config.columns.timestamp.name])
    connection.register("raw", raw)
    connection.execute(
        f"CREATE TEMP TABLE timed AS WITH cleaned AS (SELECT {ROW_NUMBER}, {cleaned} FROM raw) "
        f"SELECT *, {time} AS __time, CAST(__time AS DATE) AS __day FROM cleaned"
    )
    first = sql.value(connection, "SELECT min(__day) FROM timed")
    undated = config.source.interactions.is_daily or first in (ds, None)
    mine = "true" if config.source.interactions.is_daily else f"coalesce(__day = DATE '{ds}', {undated})"
    key = ", ".join(sql.name(column) for column in config.columns.key)
    copy = f"row_number() OVER (PARTITION BY __reason IS NULL, {key} ORDER BY {ROW_NUMBER})"
    connection.execute(
        f"CREATE TEMP TABLE checked AS WITH judged AS (SELECT *, {_reason(config, ds, numeric)} AS __reason "
        f"FROM timed WHERE {mine}) SELECT *, {copy} AS __copy FROM judged"
    )
    return undated


def _reason(config: Recommender, ds: date, numeric: list[str]) -> str:
    """The first rule that a row breaks, in words; null where none is broken."""
    columns = config.columns
    stamp = columns.timestamp.name
    rules = [(f"{sql.name(c)} IS NULL", sql.text(f"{c} is null")) for c in (columns.user, columns.item, stamp)]
    expected = "an ISO time" if columns.timestamp.unit == "iso" else f"a time in {columns.timestamp.unit}"
    rules.append(("__time IS NULL", complaint(stamp, f"is not {expected} between 1980 and 2100")))
    after = f"concat('event day ', CAST(__day AS VARCHAR), ' is after the day it came in, {ds}')"
    rules.append((f"__day > DATE '{ds}'", after))
    if columns.late == "reject":
        rules.append((f"__day < DATE '{ds}'", "concat('late: event day ', CAST(__day AS VARCHAR))"))
    for task in config.tasks:
        if task.label is None:
            continue
        rules.append((not_a_number(task.label), complaint(task.label, "is no number")))
        if task.kind == "binary" and not task.has_rule:
            rules.append((f"({number(task.label)}) NOT IN (0, 1)", complaint(task.label, "is neither 0 nor 1")))
    rules += [(not_a_number(column), complaint(column, "is no number")) for column in numeric]
    return "CASE " + " ".join(f"WHEN {condition} THEN {reason}" for condition, reason in rules) + " END"
