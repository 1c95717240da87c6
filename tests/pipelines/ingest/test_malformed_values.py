"""Values as they should not be, a row each: kept exactly as the case says, or set aside with its reason."""

from __future__ import annotations

import io
from collections.abc import Callable
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest

from pipelines.config import Recommender

AT = 1_767_225_600
HEADER = "user,item,at,tab,clicked\n"
COLUMNS = {"user": "user", "item": "item", "timestamp": {"name": "at"}}
NO_TIME = "at is not a time in s between 1980 and 2100: {}"
NO_ISO = "at is not an ISO time between 1980 and 2100: {}"

IDS = {
    "9007199254740993": "9007199254740993",
    "18446744073709551617": "18446744073709551617",
    "-9223372036854775809": "-9223372036854775809",
    "007": "007",
    "007.0": "007",
    "1e3": "1e3",
    "1.50": "1.50",
    "+5": "+5",
    "0x10": "0x10",
    "1_000": "1_000",
    "😀": "😀",
    "e\u0301": "e\u0301",
    "é": "é",
    "שלום": "שלום",
    "a\u202eb": "a\u202eb",
    "\u200bzero": "\u200bzero",
    "  two  words  ": "two  words",
    "\u00a0hard\u00a0": "hard",
    '"a, b"': "a, b",
    '"say ""hi"""': 'say "hi"',
    '"x\ny"': "x\ny",
    '"x\r\ny"': "x\r\ny",
    "it's": "it's",
    "' OR 1=1 --": "' OR 1=1 --",
    "=1+1": "=1+1",
    "\\": "\\",
    "a\0b": "a\0b",
    "\x1b[31m": "\x1b[31m",
    "\ufffd": "\ufffd",
    "None": "None",
    "N/A": "N/A",
    "true": "true",
    "2026-01-01": "2026-01-01",
}


def test_ids_are_kept_as_they_are_written(log_of: Any, taken: Any) -> None:
    lines = [f"{written},i{n},{AT},home,1\n" for n, written in enumerate(IDS)]
    came = taken(log_of(".csv", (HEADER + "".join(lines)).encode()))
    assert [row["user"] for row in came.accepted] == list(IDS.values())
    assert (came.rejected, came.duplicates) == ({}, 0)


@pytest.mark.parametrize("written", ["", '""', "  ", "NULL", "null", "NaN", "nan", "\\N", " NULL "])
def test_an_id_that_says_nothing(log_of: Any, taken: Any, written: str) -> None:
    came = taken(log_of(".csv", f"{HEADER}{written},i0,{AT},home,1\nu1,i0,{AT},home,1\n".encode()))
    assert came.rejected == {2: "user is null"}


LABELS: dict[str, float | str | None] = {
    "1": 1.0,
    " 1 ": 1.0,
    "1.0": 1.0,
    "+1": 1.0,
    "01": 1.0,
    "1e0": 1.0,
    "-0": 0.0,
    "1e-400": 0.0,
    "": None,
    "NaN": None,
    "nan": None,
    "NULL": None,
    "NAN": "is no number",
    "-nan": "is no number",
    "inf": "is no number",
    "-Infinity": "is no number",
    "1e400": "is no number",
    "true": "is no number",
    "T": "is no number",
    "yes": "is no number",
    "None": "is no number",
    "0x1": "is no number",
    "1d": "is no number",
    "1 0": "is no number",
    "1;": "is no number",
    "\u0661": "is no number",
    "\uff11": "is no number",
    "2": "is neither 0 nor 1",
    "-1": "is neither 0 nor 1",
    "0.5": "is neither 0 nor 1",
    "1.0000001": "is neither 0 nor 1",
    "9007199254740993": "is neither 0 nor 1",
}


def test_labels_are_numbers_or_set_aside(log_of: Any, taken: Any) -> None:
    lines = [f"u{n},i0,{AT},home,{written}\n" for n, written in enumerate(LABELS)]
    came = taken(log_of(".csv", (HEADER + "".join(lines)).encode()))
    kept = [value for value in LABELS.values() if not isinstance(value, str)]
    assert [None if pd.isna(row["clicked"]) else row["clicked"] for row in came.accepted] == kept
    reasons = {
        n: f"clicked {why}: {written}" for n, (written, why) in enumerate(LABELS.items(), 2) if isinstance(why, str)
    }
    assert came.rejected == reasons


def at(hour: int, minute: int = 0, second: int = 0, micro: int = 0, day: int = 1) -> datetime:
    return datetime(2026, 1, day, hour, minute, second, micro, tzinfo=UTC)


TIMES: dict[str, datetime | str] = {
    f"{AT}": at(0),
    f" {AT} ": at(0),
    f"{AT}.0": at(0),
    f"+{AT}": at(0),
    "1.7672256e9": at(0),
    f"{AT}.5": at(0, 0, 0, 500_000),
    f"{AT + 86_399}": at(23, 59, 59),
    "": "at is null",
    "nan": "at is null",
    "-1": NO_TIME,
    "0": NO_TIME,
    "99999999999": NO_TIME,
    f"{AT}000": NO_TIME,
    "9007199254740993": NO_TIME,
    "18446744073709551616": NO_TIME,
    "1e400": NO_TIME,
    "-inf": NO_TIME,
    "0x6955b900": NO_TIME,
    f"{AT}s": NO_TIME,
    "2026-01-01T00:00:00Z": NO_TIME,
    f"{AT + 86_400}": "event day 2026-01-02 is after the day it came in, 2026-01-01",
}

ISO: dict[str, datetime | str] = {
    "2026-01-01T12:00:00Z": at(12),
    "2026-01-01 12:00": at(12),
    "2026-01-01": at(0),
    "2026/01/01 12:00:00": at(12),
    "2026-01-01T12:00:00+05:45": at(6, 15),
    "2026-01-01T12:00:00+0545": at(6, 15),
    "2026-01-01T12:00:00-00:30": at(12, 30),
    "2026-01-01T12:00:00 Europe/Berlin": at(11),
    "2026-01-01T12:00:00.123456789Z": at(12, 0, 0, 123_456),
    "2026-01-01T24:00:00Z": "event day 2026-01-02 is after the day it came in, 2026-01-01",
    "2026-01-01T23:59:60Z": NO_ISO,
    "2026-01-01T12:60:00Z": NO_ISO,
    "2026-01-01T12:00:00 Mars/Base": NO_ISO,
    "2026-01-01T12:00:00+1": NO_ISO,
    "2026-13-01": NO_ISO,
    "2026-02-30": NO_ISO,
    "2026-W01-4": NO_ISO,
    "2026-001": NO_ISO,
    "01/01/2026": NO_ISO,
    "1.1.2026": NO_ISO,
    "2026-01-01 12:00 PM": NO_ISO,
    "12026-01-01": NO_ISO,
    "0044-03-15 (BC)": NO_ISO,
    "now": NO_ISO,
    "today": NO_ISO,
    "epoch": NO_ISO,
    "infinity": NO_ISO,
    f"{AT}": NO_ISO,
}


@pytest.mark.parametrize(("unit", "times"), [("s", TIMES), ("iso", ISO)])
def test_times_are_read_exactly_or_set_aside(
    log_of: Any, taken: Any, unit: str, times: dict[str, datetime | str]
) -> None:
    lines = [f"u{n},i0,{written},home,1\n" for n, written in enumerate(times)]
    columns = COLUMNS | {"timestamp": {"name": "at", "unit": unit}}
    came = taken(log_of(".csv", (HEADER + "".join(lines)).encode(), columns=columns))
    assert [row["event_time"] for row in came.accepted] == [t for t in times.values() if isinstance(t, datetime)]
    reasons = {n: why.format(w) for n, (w, why) in enumerate(times.items(), 2) if isinstance(why, str)}
    assert came.rejected == reasons


DST = [
    (date(2026, 3, 29), "2026-03-29 01:59:59", datetime(2026, 3, 29, 0, 59, 59, tzinfo=UTC)),
    (date(2026, 3, 29), "2026-03-29 02:30", datetime(2026, 3, 29, 1, 30, tzinfo=UTC)),
    (date(2026, 3, 29), "2026-03-29 03:00", datetime(2026, 3, 29, 1, 0, tzinfo=UTC)),
    (date(2026, 10, 25), "2026-10-25 02:30", datetime(2026, 10, 25, 1, 30, tzinfo=UTC)),
    (date(2026, 10, 25), "2026-10-25 02:30+02:00", datetime(2026, 10, 25, 0, 30, tzinfo=UTC)),
    (date(2026, 10, 25), "2026-10-25T22:59:59Z", datetime(2026, 10, 25, 22, 59, 59, tzinfo=UTC)),
]


@pytest.mark.parametrize(("ds", "written", "moment"), DST, ids=[written for _, written, _ in DST])
def test_clocks_that_are_turned(
    tiny: Any, log_of: Any, taken: Any, monkeypatch: pytest.MonkeyPatch, ds: date, written: str, moment: datetime
) -> None:
    """Local times that never were go an hour on, and of two that were the later is meant; an offset decides."""
    monkeypatch.setattr(tiny, "day", lambda _: ds)
    columns = COLUMNS | {"timestamp": {"name": "at", "unit": "iso"}, "timezone": "Europe/Berlin"}
    came = taken(log_of(".csv", f"{HEADER}u0,i0,{written},home,1\n".encode(), columns=columns))
    assert [row["event_time"] for row in came.accepted] == [moment]


def parquet(**columns: Any) -> bytes:
    rows: dict[str, Any] = {"user": ["u0", "u1"], "item": ["i0", "i1"], "at": [AT, AT], "tab": ["home"] * 2}
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pa.table(rows | {"clicked": [1, 0]} | columns), buffer)
    return buffer.getvalue()


def decimals(*values: str) -> list[Decimal]:
    return [Decimal(value) for value in values]


MOMENT = datetime(2026, 1, 1, 1, tzinfo=UTC)
AS_ID: dict[str, tuple[pa.Array, list[str]]] = {
    "integers of 64 bits": (pa.array([2**53 + 1, -(2**63)]), ["9007199254740993", "-9223372036854775808"]),
    "unsigned": (pa.array([2**64 - 1, 0], pa.uint64()), ["18446744073709551615", "0"]),
    "floats": (pa.array([7.0, 1.5]), ["7", "1.5"]),
    "floats of 16 bits": (pa.array([7.0, 1.5], pa.float16()), ["7", "1.5"]),
    "decimals": (
        pa.array(decimals("7.00", "12345678901234567890.10"), pa.decimal128(38, 2)),
        ["7", "12345678901234567890.10"],
    ),
    "decimals of 256 bits": (pa.array(decimals("7.00", "1e40"), pa.decimal256(60, 2)), ["7", "1" + "0" * 40]),
    "text without its type": (pa.array(["é".encode(), b"007"], pa.binary()), ["é", "007"]),
    "bytes that are no text": (pa.array([b"\xff\x00", b"a\x00"], pa.binary(2)), ["\\xFF\\x00", "a\x00"]),
    "dictionary": (pa.array(["007", "u1"]).dictionary_encode(), ["007", "u1"]),
    "large text": (pa.array(["007", "😀"], pa.large_string()), ["007", "😀"]),
    "truth": (pa.array([True, False]), ["1", "0"]),
    "times": (pa.array([MOMENT] * 2, pa.timestamp("us", "UTC")), ["2026-01-01 01:00:00+00"] * 2),
    "days": (pa.array([date(2026, 1, 1)] * 2), ["2026-01-01"] * 2),
    "structs": (pa.array([{"a": 1, "b": "x"}] * 2), ["{'a': 1, 'b': x}"] * 2),
    "lists": (pa.array([[1, 2], [3]]), ["1,2", "3"]),
    "lists of one length": (pa.array([[1, 2], [3, 4]], pa.list_(pa.int32(), 2)), ["1,2", "3,4"]),
}


@pytest.mark.parametrize(("column", "ids"), AS_ID.values(), ids=AS_ID)
def test_ids_of_any_type_of_parquet(log_of: Any, taken: Any, column: pa.Array, ids: list[str]) -> None:
    came = taken(log_of(".parquet", parquet(user=column)))
    assert [row["user"] for row in came.accepted] == ids


AFTER = "event day 2026-01-02 is after the day it came in, 2026-01-01"
AS_TIME: dict[str, tuple[pa.Array, list[datetime], dict[int, str]]] = {
    "nanoseconds": (pa.array([AT * 10**9 + 1_999, None], pa.timestamp("ns")), [at(0, 0, 0, 1)], {2: "at is null"}),
    "days": (pa.array([date(2026, 1, 1), date(2026, 1, 2)]), [at(0)], {2: AFTER}),
    "floats": (pa.array([AT + 0.5, float("nan")]), [at(0, 0, 0, 500_000)], {2: "at is null"}),
    "decimals": (pa.array(decimals(f"{AT}", f"{AT}.25")), [at(0), at(0, 0, 0, 250_000)], {}),
    "beyond measure": (pa.array([2**53 + 1, -5]), [], {1: NO_TIME.format(2**53 + 1), 2: NO_TIME.format(-5)}),
    "years 1 and 9999": (
        pa.array([datetime(1, 1, 1), datetime(9999, 1, 1)], pa.timestamp("us")),
        [],
        {1: NO_TIME.format("0001-01-01 00:00:00"), 2: NO_TIME.format("9999-01-01 00:00:00")},
    ),
    "times of no day": (pa.array([1, 2], pa.time32("s")), [], {n: NO_TIME.format(f"00:00:0{n}") for n in (1, 2)}),
    "truth": (pa.array([True, None]), [], {1: NO_TIME.format(1), 2: "at is null"}),
}


@pytest.mark.parametrize(("column", "times", "reasons"), AS_TIME.values(), ids=AS_TIME)
def test_times_of_any_type_of_parquet(
    log_of: Any, taken: Any, column: pa.Array, times: list[datetime], reasons: dict[int, str]
) -> None:
    came = taken(log_of(".parquet", parquet(at=column)))
    assert [row["event_time"] for row in came.accepted] == times
    assert came.rejected == reasons


def test_labels_of_parquet_that_are_no_numbers(log_of: Any, taken: Any) -> None:
    came = taken(log_of(".parquet", parquet(clicked=[float("nan"), float("inf")])))
    assert [row["user"] for row in came.accepted] == ["u0"]
    assert pd.isna(came.accepted[0]["clicked"])
    assert came.rejected == {2: "clicked is no number: inf"}


@pytest.mark.parametrize("column", [pa.nulls(2), pa.array([None, None], pa.binary()), pa.array([[], None])])
def test_a_column_of_nothing(log_of: Any, taken: Any, column: pa.Array) -> None:
    came = taken(log_of(".parquet", parquet(user=column)))
    assert came.rejected == dict.fromkeys((1, 2), "user is null")


def test_parquet_without_rows(log_of: Any, refused: Callable[[Recommender], str]) -> None:
    kinds = {"user": pa.string(), "item": pa.string(), "at": pa.int64(), "tab": pa.string(), "clicked": pa.int8()}
    content = parquet(**{name: pa.array([], kind) for name, kind in kinds.items()})
    assert "2026-01-01.parquet: has no rows for 2026-01-01" in refused(log_of(".parquet", content))


def test_parquet_without_columns(log_of: Any, refused: Callable[[Recommender], str]) -> None:
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pa.table({}), buffer)
    assert "has no column 'user'; it has none" in refused(log_of(".parquet", buffer.getvalue()))
