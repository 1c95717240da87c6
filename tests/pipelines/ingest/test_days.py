"""One day in: what is accepted, what is set aside and why, and that nothing is lost between the two."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest

from pipelines.config import Recommender
from pipelines.ingest import ingest
from pipelines.tables import Tables
from recsys_moe.errors import UserError

RowsOf = Callable[..., pd.DataFrame]
LOG = {"path": "../data/log/{ds}.csv"}
LOG_ONLY: dict[str, Any] = {
    "source": {"interactions": LOG},
    "features": {"categorical": ["user", "item", "tab"]},
    "tasks": [{"name": "click", "label": "clicked"}],
}


def count(result: dict[str, Any]) -> tuple[int, int, int, int]:
    """Read, accepted, rejected, duplicates; and they add up."""
    assert result["read"] == result["accepted"] + result["rejected"] + result["duplicates"]
    return result["read"], result["accepted"], result["rejected"], result["duplicates"]


def parquet(**columns: Any) -> bytes:
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


def test_a_clean_day_is_accepted_whole(tiny: Any, rows_of: RowsOf) -> None:
    config = tiny()
    assert count(ingest(config, tiny.day(0))) == (30, 30, 0, 0)
    log = rows_of(config, "interactions", tiny.day(0))
    assert list(log["source_row"]) == list(range(2, 32))
    assert set(log["source_file"]) == {"2026-01-01.csv"}
    assert set(log["event_day"]) == {tiny.day(0)}
    seconds = log["event_time"].astype("int64") // 10**6
    found = [
        f"{r.user},{r.item},{at},{r.tab},{r.clicked:g},{r.liked:g}"
        for r, at in zip(log.itertuples(), seconds, strict=True)
    ]
    assert found == tiny.rows(0)
    assert list(log["event_time"].astype("int64") // 10**6) == [tiny.at(0, second) for second in range(30)]
    assert list(rows_of(config, "users", tiny.day(0))["user"]) == [f"u{n}" for n in range(5)]
    assert list(rows_of(config, "items", tiny.day(0))["price"]) == [f"{n}.5" for n in range(5)]


def test_a_day_twice_is_the_same_day(tiny: Any) -> None:
    config = tiny()
    ingest(config, tiny.day(0))
    first = ingest(config, tiny.day(1))
    assert ingest(config, tiny.day(1)) == first
    assert Tables(config.storage).days("interactions") == [tiny.day(0), tiny.day(1)]


def test_a_day_delivered_anew_replaces_the_old(tiny: Any, rows_of: RowsOf) -> None:
    config = tiny()
    ingest(config, tiny.day(0))
    tiny.log(0, tiny.rows(0)[:3])
    assert count(ingest(config, tiny.day(0))) == (3, 3, 0, 0)
    assert len(rows_of(config, "interactions", tiny.day(0))) == 3


def test_every_bad_row_is_set_aside_with_its_reason(tiny: Any, rows_of: RowsOf) -> None:
    at = tiny.at(0)
    good = f"u0,i0,{at},home,1,0"
    bad = {
        f",i0,{at},home,1,0": "user is null",
        f"u0,NULL,{at},home,1,0": "item is null",
        "u0,i0,,home,1,0": "at is null",
        "u0,i0,soon,home,1,0": "at is not a time in s between 1980 and 2100: soon",
        f"u0,i0,{at}000,home,1,0": f"at is not a time in s between 1980 and 2100: {at}000",
        "u0,i0,inf,home,1,0": "at is not a time in s between 1980 and 2100: inf",
        f"u0,i0,{at},home,2,0": "clicked is neither 0 nor 1: 2",
        f"u0,i0,{at},home,0.5,0": "clicked is neither 0 nor 1: 0.5",
        f"u0,i0,{at},home,yes,0": "clicked is no number: yes",
        f"u0,i0,{at},home,1,-1": "liked is neither 0 nor 1: -1",
        f"u0,i0,{tiny.at(1)},home,1,0": "event day 2026-01-02 is after the day it came in, 2026-01-01",
        f"u0,i0,{at},home,1": "5 columns where the header has 6",
        f"u0,i0,{at},home,1,0,9": "7 columns where the header has 6",
    }
    tiny.log(0, [good, *bad, good])
    config = tiny()
    assert count(ingest(config, tiny.day(0))) == (len(bad) + 2, 1, len(bad), 1)
    rejected = rows_of(config, "rejected", tiny.day(0)).sort_values("source_row")
    assert list(rejected["reason"]) == list(bad.values())
    assert list(rejected["source_row"]) == list(range(3, 3 + len(bad)))
    assert set(rejected["source"]) == {"interactions"}
    as_it_stood = json.loads(rejected["row"].iloc[3])
    assert as_it_stood == {"user": "u0", "item": "i0", "at": "soon", "tab": "home", "clicked": "1", "liked": "0"}
    assert json.loads(rejected["row"].iloc[-2]) == f"u0,i0,{at},home,1"


def test_a_label_may_be_missing(tiny: Any, rows_of: RowsOf) -> None:
    tiny.log(0, [f"u0,i0,{tiny.at(0)},home,,"])
    config = tiny()
    assert count(ingest(config, tiny.day(0))) == (1, 1, 0, 0)
    assert rows_of(config, "interactions", tiny.day(0))[["clicked", "liked"]].isna().all(axis=None)


def test_duplicates_are_told_by_unique_and_the_first_good_one_stays(tiny: Any, rows_of: RowsOf) -> None:
    at = tiny.at(0)
    tiny.log(0, [f"u0,i0,{at},home,9,0", f"u0,i0,{at},home,1,0", f"u0,i0,{at},search,0,0", f"u0,i0,{at},,0,0"])
    config = tiny()
    assert count(ingest(config, tiny.day(0))) == (4, 1, 1, 2)
    assert list(rows_of(config, "interactions", tiny.day(0))["source_row"]) == [3]
    columns = {**config.columns.model_dump(), "unique": ["user", "item", "at", "tab"]}
    assert count(ingest(tiny(columns=columns), tiny.day(0))) == (4, 3, 1, 0)


@pytest.mark.parametrize(("late", "expected"), [("accept", (2, 2, 0, 0)), ("reject", (2, 1, 1, 0))])
def test_late_events_stay_with_the_day_that_brought_them(
    tiny: Any, rows_of: RowsOf, late: str, expected: tuple[int, ...]
) -> None:
    tiny.log(2, [f"u0,i0,{tiny.at(2)},home,1,0", f"u0,i0,{tiny.at(0)},home,1,0"])
    config = tiny(columns={"user": "user", "item": "item", "timestamp": {"name": "at"}, "late": late})
    assert count(ingest(config, tiny.day(2))) == expected
    days = [tiny.day(2), tiny.day(0)][: expected[1]]
    assert list(rows_of(config, "interactions", tiny.day(2))["event_day"]) == days
    reasons = list(rows_of(config, "rejected", tiny.day(2))["reason"])
    assert reasons == ["late: event day 2026-01-01"][: expected[2]]


TOKYO = timezone(timedelta(hours=9))
MOMENT = datetime(2026, 1, 1, 23, 30, 0, 250_000, TOKYO)


@pytest.mark.parametrize(
    ("unit", "written", "kept"),
    [
        ("s", f"{MOMENT.timestamp():.0f}", False),
        ("s", f"{MOMENT.timestamp():.2f}", True),
        ("ms", f"{MOMENT.timestamp() * 1000:.0f}", True),
        ("us", f"{MOMENT.timestamp() * 1_000_000:.0f}", True),
        ("iso", "2026-01-01T23:30:00.25", True),
        ("iso", "2026-01-01 23:30:00.250000", True),
        ("iso", "2026-01-01T14:30:00.25Z", True),
        ("iso", "2026-01-01T16:30:00.25+02:00", True),
    ],
)
@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_times_in_every_unit(tiny: Any, rows_of: RowsOf, unit: str, written: str, kept: bool, ending: str) -> None:
    """Half past eleven at night in Tokyo is that day there, though it is the afternoon in UTC."""
    line = {"user": "u", "item": "i", "at": written, "clicked": "1", "tab": "x"}
    tiny.write("one.csv", ",".join(line) + "\n" + ",".join(line.values()) + "\n")
    tiny.write("one.jsonl", json.dumps(line))
    columns = {"user": "user", "item": "item", "timestamp": {"name": "at", "unit": unit}, "timezone": "Asia/Tokyo"}
    config = tiny(**LOG_ONLY | {"columns": columns, "source": {"interactions": {"path": f"../data/one.{ending}"}}})
    assert count(ingest(config, date(2026, 1, 1))) == (1, 1, 0, 0)
    found = rows_of(config, "interactions", date(2026, 1, 1))
    assert found["event_day"][0] == date(2026, 1, 1)
    assert found["event_time"][0] == (MOMENT if kept else MOMENT.replace(microsecond=0)).astimezone(UTC)


@pytest.mark.parametrize(
    "time",
    [
        pa.array([MOMENT.replace(tzinfo=None)], pa.timestamp("ns")),
        pa.array([MOMENT], pa.timestamp("us", "UTC")),
        pa.array([MOMENT], pa.timestamp("ms", "America/New_York")),
    ],
    ids=["local time", "UTC", "another zone"],
)
def test_parquet_brings_types(tiny: Any, rows_of: RowsOf, time: pa.Array) -> None:
    """Times as times whatever the unit says, whole ids as floats, yes and no as booleans, lists as lists."""
    content = parquet(
        user=pa.array([7.0, None], pa.float64()),
        item=pa.array([12, 13], pa.int64()),
        at=pa.concat_arrays([time, time]),
        clicked=pa.array([True, False]),
        tags=pa.array([["sport", "art"], None], pa.list_(pa.string())),
        tab=pa.array([float("nan"), 1.5], pa.float32()),
    )
    tiny.write("one.parquet", content)
    columns = {"user": "user", "item": "item", "timestamp": {"name": "at", "unit": "ms"}, "timezone": "Asia/Tokyo"}
    columns |= {"missing": []}
    features = {"categorical": ["user", "item", "tab"], "multivalued": ["tags"], "separator": "|"}
    source = {"interactions": {"path": "../data/one.parquet"}}
    config = tiny(**LOG_ONLY | {"columns": columns, "source": source, "features": features})
    assert count(ingest(config, date(2026, 1, 1))) == (2, 1, 1, 0)
    row = rows_of(config, "interactions", date(2026, 1, 1)).iloc[0]
    assert (row["user"], row["item"], row["clicked"], row["tags"]) == ("7", "12", 1.0, "sport|art")
    assert pd.isna(row["tab"])
    assert row["event_time"] == MOMENT.astimezone(UTC)
    rejected = rows_of(config, "rejected", date(2026, 1, 1))
    assert list(rejected["reason"]) == ["user is null"]
    assert json.loads(rejected["row"][0])["item"] == 13


def test_ids_that_pandas_wrote_as_floats_still_meet(tiny: Any, rows_of: RowsOf) -> None:
    tiny.log(0, [f"7.0,i0,{tiny.at(0)},home,1,0", f" 7 ,i0,{tiny.at(0)},home,1,0"])
    config = tiny()
    assert count(ingest(config, tiny.day(0))) == (2, 1, 0, 1)
    assert list(rows_of(config, "interactions", tiny.day(0))["user"]) == ["7"]


def test_the_time_may_be_called_event_time(tiny: Any, rows_of: RowsOf) -> None:
    tiny.log(0, tiny.rows(0), header="user,item,event_time,tab,clicked,liked")
    config = tiny(columns={"user": "user", "item": "item", "timestamp": {"name": "event_time"}})
    assert count(ingest(config, tiny.day(0))) == (30, 30, 0, 0)
    assert rows_of(config, "interactions", tiny.day(0))["event_time"][0] == datetime(2026, 1, 1, tzinfo=UTC)


def whole_history(tiny: Any, lines: list[str], **changes: Any) -> Recommender:
    tiny.write("all.csv", "user,item,at,tab,clicked,liked\n" + "".join(f"{line}\n" for line in lines))
    config: Recommender = tiny(source={"interactions": {"path": "../data/all.csv"}}, **LOG_FEATURES, **changes)
    return config


LOG_FEATURES = {"features": {"categorical": ["user", "item", "tab"]}}


def test_a_whole_history_is_split_by_event_day_and_loses_nothing(tiny: Any, rows_of: RowsOf) -> None:
    """Rows without a readable time, and lines that are none, come with the first day and with no other."""
    lines = [*tiny.rows(1), "u0,i0,never,home,1,0", "cut", *tiny.rows(3)[:4], tiny.rows(1)[0], "u0,i0,,home,1,0"]
    config = whole_history(tiny, lines)
    first, second = ingest(config, tiny.day(1)), ingest(config, tiny.day(3))
    assert count(first) == (34, 30, 3, 1)
    assert count(second) == (4, 4, 0, 0)
    assert first["read"] + second["read"] == len(lines)
    assert sorted(rows_of(config, "rejected", tiny.day(1))["source_row"]) == [32, 33, 39]
    with pytest.raises(UserError, match=r"all\.csv: has no rows for 2026-01-03"):
        ingest(config, tiny.day(2))


def test_a_whole_history_without_any_readable_time_says_why(tiny: Any, rows_of: RowsOf) -> None:
    config = whole_history(tiny, ["u0,i0,never,home,1,0", "cut"])
    assert count(ingest(config, tiny.day(0))) == (2, 0, 2, 0)
    assert len(rows_of(config, "rejected", tiny.day(0))) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file; check the path in the YAML, and the day"),
        ("", "is empty"),
        ("user,item,at,tab,clicked,liked\n", "has no rows for 2026-01-01"),
        ("user;item;at;tab;clicked;liked\nu0;i0;1;home;1;0\n", "is its delimiter right"),
    ],
)
def test_a_day_that_cannot_be_read_is_named_and_publishes_nothing(tiny: Any, content: str | None, message: str) -> None:
    path = tiny.write("log/2026-01-01.csv", content or "")
    if content is None:
        path.unlink()
    config = tiny()
    with pytest.raises(UserError, match=message) as caught:
        ingest(config, tiny.day(0))
    assert str(caught.value).startswith(str(path))
    assert Tables(config.storage).version("interactions") is None


def test_a_log_is_enough(tiny: Any) -> None:
    config = tiny(**LOG_ONLY)
    assert set(ingest(config, tiny.day(0))["versions"]) == {"interactions", "rejected", "ingested"}
    assert not Tables(config.storage).exists("users")


def test_users_of_several_files_are_joined_and_each_key_counts_once(tiny: Any, rows_of: RowsOf) -> None:
    tiny.write("a.csv", "user,band\nu0,old\n,young\nu1,young\nu0,new\nu2\n")
    tiny.write("b.csv", "user,income\nu1,many\nu1,10\nu3,20.5\n")
    tiny.write("c.csv", "user,city\nu0,Rome\nu4,Oslo\n")
    source = {"interactions": LOG, "users": [{"path": f"../data/{name}.csv"} for name in "abc"]}
    features = {"categorical": ["band", "city"], "numeric": ["income"]}
    config = tiny(**LOG_ONLY | {"source": source, "features": features, "segments": None, "scoring": None})
    result = ingest(config, tiny.day(0))
    assert count(result) == (30, 30, 0, 0)
    users = rows_of(config, "users", tiny.day(0)).astype(object)
    assert users.where(users.notna(), None).to_numpy().tolist() == [
        ["u0", "old", None, "Rome"],
        ["u1", "young", "10", None],
        ["u3", None, "20.5", None],
        ["u4", None, None, "Oslo"],
    ]
    rejected = rows_of(config, "rejected", tiny.day(0))
    found = {(row.source_file, row.source_row): row.reason for row in rejected.itertuples()}
    assert set(rejected["source"]) == {"users"}
    assert found == {
        ("a.csv", 3): "user is null",
        ("a.csv", 5): "user again",
        ("a.csv", 6): "1 columns where the header has 2",
        ("b.csv", 2): "income is no number: many",
    }


def test_a_number_that_cannot_be_read_sets_its_row_aside(tiny: Any, rows_of: RowsOf) -> None:
    lines = [f"u0,i{n},{tiny.at(0)},home,1,0,{cost}" for n, cost in enumerate(["cheap", "", "1e2"])]
    tiny.log(0, lines, header="user,item,at,tab,clicked,liked,cost")
    config = tiny(**LOG_ONLY | {"features": {"categorical": ["tab"], "numeric": ["cost"]}})
    assert count(ingest(config, tiny.day(0))) == (3, 2, 1, 0)
    assert list(rows_of(config, "rejected", tiny.day(0))["reason"]) == ["cost is no number: cheap"]


ODD = ["reason", "copy", "raw", "key", "value", "rows", "moment", "key0", "checked", "timed", "cleaned", "log", "users"]
WEIRD = ["select", 'quo"te', "it's", "two words", "a.b", "1st", "ünï", "{x}", "%s", "a", "k0", "r", "c", "part0"]


@pytest.mark.parametrize("names", [ODD, WEIRD], ids=["names of our own", "names that SQL dislikes"])
def test_columns_may_have_any_name(tiny: Any, rows_of: RowsOf, names: list[str]) -> None:
    value = 'it\'s "so"; DROP TABLE log; --'
    frame = pd.DataFrame({"user": ["u0"], "item": ["i0"], "at": [tiny.at(0)], "clicked": [1]})
    odd = pd.DataFrame({name: [value] for name in names})
    bad = pd.concat([frame.assign(clicked="?"), odd], axis=1)
    tiny.write(f"log/{tiny.day(0)}.csv", pd.concat([pd.concat([frame, odd], axis=1), bad]).to_csv(index=False))
    config = tiny(**LOG_ONLY | {"features": {"categorical": names}, "segments": None, "scoring": None})
    assert count(ingest(config, tiny.day(0))) == (2, 1, 1, 0)
    row = rows_of(config, "interactions", tiny.day(0)).iloc[0]
    assert {name: row[name] for name in names} == dict.fromkeys(names, value)
    as_it_stood = json.loads(rows_of(config, "rejected", tiny.day(0))["row"][0])
    assert {name: as_it_stood[name] for name in names} == dict.fromkeys(names, value)


def test_users_may_have_columns_of_any_name(tiny: Any, rows_of: RowsOf) -> None:
    names = [*ODD, *WEIRD]
    pd.DataFrame({"user": ["u0"], **{name: [name] for name in names}}).to_csv(tiny.write("users.csv", ""), index=False)
    features = {"categorical": ["user", "tab", *names]}
    config = tiny(source={"interactions": LOG, "users": {"path": "../data/users.csv"}}, features=features)
    ingest(config, tiny.day(0))
    assert rows_of(config, "users", tiny.day(0)).drop(columns=["user"]).iloc[0].to_dict() == {n: n for n in names}
