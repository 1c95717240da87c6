"""What a raw row must be to be believed: typed columns out, or the reason why not. All of it in SQL."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date, datetime, time
from zoneinfo import ZoneInfo

import pyarrow as pa

from pipelines import sql
from pipelines.config import ColumnRule, Columns, Recommender, Timestamp
from recsys_moe.config import BucketSegments

Rule = tuple[str, str]
"""An SQL condition that a bad row meets, and the SQL expression of its reason."""

_UNITS = {"s": 1_000_000, "ms": 1_000, "us": 1}
_FIRST_DAY, _LAST_DAY = "1980-01-01", "2100-01-01"
_FIRST, _LAST = 315_532_800_000_000, 4_102_444_800_000_000
"""The same in microseconds since 1970."""


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
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        text = f"array_to_string(CAST({quoted} AS VARCHAR[]), {sql.text(separator)})"
    else:
        if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
            # Some writers of Parquet do not say that their text is text.
            quoted = f"coalesce(TRY(decode({quoted})), CAST({quoted} AS VARCHAR))"
        # pandas writes whole numbers as 7.0 where one of the column is missing; ids must still meet.
        text = f"regexp_replace(trim(CAST({quoted} AS VARCHAR)), '^(-?[0-9]+)\\.0+$', '\\1')"
    markers = ", ".join(sql.text(value) for value in dict.fromkeys(("", *missing)))
    return f"CASE WHEN {text} IN ({markers}) THEN NULL ELSE {text} END"


def number(column: str) -> str:
    """An SQL expression: a cleaned text column as a finite number, null where it is none."""
    value = f"TRY_CAST({sql.name(column)} AS DOUBLE)"
    return f"CASE WHEN isfinite({value}) THEN {value} END"


def as_number(column: str) -> str:
    """What rules call a column's `number`, as the relation that they judge has it."""
    return sql.name(f"__number {column}")


def not_a_number(column: str) -> str:
    """An SQL condition: the cleaned text column says something that is no number."""
    return f"{sql.name(column)} IS NOT NULL AND {as_number(column)} IS NULL"


def complaint(column: str, what: str) -> str:
    """An SQL expression: a reason that quotes the offending value, shortened."""
    return f"concat({sql.text(f'{column} {what}: ')}, left(CAST({sql.name(column)} AS VARCHAR), 40))"


def event_time(stamp: Timestamp, kind: pa.DataType) -> str:
    """An SQL expression: the cleaned timestamp column as a time, null where it is none or out of all reason.

    A column whose type (`kind`) is a time needs no unit. Text, or a time, without an offset is local time in
    `columns.timezone`, which is the connection's.
    """
    if stamp.unit == "iso" or pa.types.is_temporal(kind):
        value = f"TRY_CAST({sql.name(stamp.name)} AS TIMESTAMPTZ)"
        inside = f"({value}) BETWEEN TIMESTAMPTZ '{_FIRST_DAY} 00:00:00+00' AND TIMESTAMPTZ '{_LAST_DAY} 00:00:00+00'"
        return f"CASE WHEN {inside} THEN {value} END"
    value, micros = f"TRY_CAST({sql.name(stamp.name)} AS DOUBLE)", _UNITS[stamp.unit]
    moment = f"make_timestamptz(CAST(round({value} * {micros}) AS BIGINT))"
    return f"CASE WHEN {value} BETWEEN {_FIRST // micros} AND {_LAST // micros} THEN {moment} END"


def event_day(timezone: str, ds: date) -> str:
    """An SQL expression: the local day of `__time`.

    The calendar is slow, and not asked where it cannot matter: from two in the morning to ten at night of `ds`, which
    is when most rows of that day happened.
    """
    edges = [datetime.combine(ds, time(hour), ZoneInfo(timezone)).timestamp() for hour in (2, 22)]
    if any(datetime.fromtimestamp(edge, ZoneInfo(timezone)).date() != ds for edge in edges):
        return "CAST(__time AS DATE)"
    first, last = (int(edge * 1_000_000) for edge in edges)
    return f"CASE WHEN epoch_us(__time) BETWEEN {first} AND {last} THEN DATE '{ds}' ELSE CAST(__time AS DATE) END"


def numeric_columns(config: Recommender, columns: Iterable[str]) -> list[str]:
    """Those of `columns` that are to be numbers: as the model reads them so, or the contract says so."""
    wanted = {f.name for f in config.features.numeric if not f.days_since}
    wanted |= {name for name, rule in config.contract.columns.items() if rule.type in ("number", "integer")}
    by = config.segments.by if config.segments else None
    if isinstance(by, BucketSegments):
        wanted.add(by.column)
    return [column for column in columns if column in wanted]


def log_rules(config: Recommender, ds: date, columns: Iterable[str]) -> list[Rule]:
    """What a row of the log must keep, over a relation as `judging` makes it: cleaned `columns`, the event's time as
    `__time`, its day as `__day`, and the numbers of `log_numbers` by `as_number`."""
    named = config.columns
    stamp, columns = named.timestamp, list(columns)
    rules = [is_null(column) for column in (named.user, named.item, stamp.name)]
    rules += time_rules(stamp, named, ds)
    for task in config.tasks:
        if task.label is None:
            continue
        rules.append((not_a_number(task.label), complaint(task.label, "is no number")))
        if task.kind == "binary" and not task.has_rule:
            rules.append((f"{as_number(task.label)} NOT IN (0, 1)", complaint(task.label, "is neither 0 nor 1")))
    if named.weight is not None:
        bad = f"{not_a_number(named.weight)} OR {as_number(named.weight)} < 0"
        rules.append((bad, complaint(named.weight, "is no weight of 0 or more")))
    return rules + value_rules(config, columns)


def log_numbers(config: Recommender, columns: Iterable[str]) -> tuple[str, ...]:
    """The columns of the log whose numbers its rules look at."""
    weight = config.columns.weight
    return (*config.label_columns, *([weight] if weight else []), *numeric_columns(config, columns))


def value_rules(config: Recommender, columns: Iterable[str]) -> list[Rule]:
    """What the values of these columns must be: numbers where the model reads numbers, and the contract's rules."""
    columns = list(columns)
    rules = [(not_a_number(column), complaint(column, "is no number")) for column in numeric_columns(config, columns)]
    for column in columns:
        if column in config.contract.columns:
            rules += _column_rules(column, config.contract.columns[column])
    return rules


def time_rules(stamp: Timestamp, columns: Columns, ds: date) -> list[Rule]:
    """An event's time (`__time`) is a time, and lies in the day `ds` or, where late ones are accepted, before it."""
    expected = "an ISO time" if stamp.unit == "iso" else f"a time in {stamp.unit}"
    rules = [("__time IS NULL", complaint(stamp.name, f"is not {expected} between 1980 and 2100"))]
    day = "CAST(__day AS VARCHAR)"
    earlier, later = "__day", "__day"
    if seconds := round(columns.tolerance_minutes * 60):
        earlier = f"CAST(__time - INTERVAL {seconds} SECONDS AS DATE)"
        later = f"CAST(__time + INTERVAL {seconds} SECONDS AS DATE)"
    after = f"concat('event day ', {day}, ' is after the day it came in, {ds}')"
    # By the local day, and not by the moment of midnight: in some zones there are two of those on one day of autumn.
    rules.append((f"{earlier} > DATE '{ds}'", after))
    if columns.late == "reject":
        rules.append((f"{later} < DATE '{ds}'", f"concat('late: event day ', {day})"))
    return rules


def reason(rules: Iterable[Rule]) -> str:
    """An SQL expression: the reason of the first rule that a row breaks; null where none is broken."""
    cases = " ".join(f"WHEN {condition} THEN {why}" for condition, why in rules)
    return f"CASE {cases} END" if cases else "CAST(NULL AS VARCHAR)"


def is_null(column: str) -> Rule:
    """The rule that a cleaned column must say something."""
    return f"{sql.name(column)} IS NULL", sql.text(f"{column} is null")


def _column_rules(column: str, rule: ColumnRule) -> list[Rule]:
    """The contract's rules for one column."""
    quoted, value = sql.name(column), as_number(column)
    rules = [] if rule.nullable else [is_null(column)]
    if rule.type == "boolean":
        rules.append((f"lower({quoted}) NOT IN ('0', '1', 'true', 'false')", complaint(column, "is no boolean")))
    if rule.type == "integer":
        rules.append((f"NOT regexp_full_match({quoted}, '[+-]?[0-9]+')", complaint(column, "is no whole number")))
    if rule.min is not None:
        rules.append((f"{value} < {rule.min!r}", complaint(column, f"is below {rule.min:g}")))
    if rule.max is not None:
        rules.append((f"{value} > {rule.max!r}", complaint(column, f"is above {rule.max:g}")))
    if rule.allowed is not None:
        allowed = ", ".join(map(sql.text, rule.allowed))
        rules.append((f"{quoted} NOT IN ({allowed})", complaint(column, "is none of the allowed values")))
    return rules
