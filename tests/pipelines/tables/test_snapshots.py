"""Snapshots of users and items: what was given for a day is what that day's snapshot stays, however days come."""

from __future__ import annotations

import multiprocessing
import random
import tempfile
from datetime import date, timedelta
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import sql
from pipelines.tables import Tables, snapshots
from recsys_moe.errors import UserError

Copy = dict[str, tuple[str | None, float | None]]
"""A full copy: city and age of each user."""
DAYS = [date(2026, 1, 1) + timedelta(days=number) for number in range(5)]


def rows(copy: Copy) -> pa.Table:
    """As a source gives it: the key is not the first column, and nothing is sorted."""
    users = sorted(copy, reverse=True)
    cities, ages = ([copy[user][place] for user in users] for place in (0, 1))
    kinds = pa.schema([("city", pa.string()), ("user", pa.string()), ("age", pa.float64())])
    return pa.table({"city": cities, "user": users, "age": ages}, schema=kinds)


def publish(tables: Tables, ds: date, copy: Copy) -> int:
    return snapshots.publish(tables, "users", ds, rows(copy), "user")


def read(tables: Tables, ds: date) -> Copy:
    table = snapshots.read(tables, "users", ds)
    assert table.column("user").to_pylist() == sorted(table.column("user").to_pylist())
    return {row["user"]: (row["city"], row["age"]) for row in table.to_pylist()}


def stored(tables: Tables) -> list[dict[str, Any]]:
    """Every row of the table, in one order."""
    found: list[dict[str, Any]] = tables.dataset("users").to_table().to_pylist()
    return sorted(found, key=lambda row: (row["ds"], row["user"] or ""))


COPIES = st.dictionaries(
    st.sampled_from("abcd"),
    st.tuples(st.sampled_from([None, "", "Rome", "Oslo"]), st.sampled_from([None, 1.0, 2.0])),
    max_size=4,
)


@pytest.mark.slow
@pytest.mark.timeout(240)
@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(DAYS), COPIES), min_size=1, max_size=8))
def test_a_snapshot_is_the_copy_last_given(events: list[tuple[date, Copy]]) -> None:
    """Days in any order, restated, and again; the table is the one of each day's last copy, in order and once."""
    with tempfile.TemporaryDirectory() as shuffled, tempfile.TemporaryDirectory() as straight:
        tables, ordered = Tables(shuffled), Tables(straight)
        given: dict[date, Copy] = {}
        for ds, copy in events:
            publish(tables, ds, copy)
            given[ds] = copy
            assert {day: read(tables, day) for day in given} == given
        for ds in sorted(given):
            publish(ordered, ds, given[ds])
        assert stored(tables) == stored(ordered)


def test_a_day_between_and_a_day_restated_leave_later_snapshots(tmp_path: Path) -> None:
    tables = Tables(tmp_path)
    given = {DAYS[number]: copy_of(number) for number in range(5)}
    for number in (4, 0, 2, 3, 1):
        publish(tables, DAYS[number], given[DAYS[number]])
    publish(tables, DAYS[2], {"z": (None, None)})
    assert {ds: read(tables, ds) for ds in DAYS} == given | {DAYS[2]: {"z": (None, None)}}
    publish(tables, DAYS[2], given[DAYS[2]])
    ordered = Tables(tmp_path / "ordered")
    for ds, copy in given.items():
        publish(ordered, ds, copy)
    assert stored(tables) == stored(ordered)


def test_only_what_changed_is_stored(tmp_path: Path) -> None:
    tables = Tables(tmp_path)
    monday: Copy = dict.fromkeys("abcd", ("Rome", 1.0))
    publish(tables, DAYS[0], monday)
    publish(tables, DAYS[1], monday | {"b": ("Bern", 1.0)})
    publish(tables, DAYS[2], monday | {"b": ("Bern", 1.0)})
    counts = [tables.read_day("users", ds, ["user", "removed"]).to_pylist() for ds in DAYS[:3]]
    marker = {"user": None, "removed": False}
    assert [len(day) for day in counts] == [5, 2, 1]
    assert counts[1:] == [[marker, {"user": "b", "removed": False}], [marker]]


def test_who_is_gone_may_come_back(tmp_path: Path) -> None:
    tables = Tables(tmp_path)
    copies: list[Copy] = [{"a": ("Rome", None)}, {}, {"a": ("Rome", None)}]
    for ds, copy in zip(DAYS, copies, strict=False):
        publish(tables, ds, copy)
    assert [read(tables, ds) for ds in DAYS[:3]] == copies


def test_days_between_have_the_snapshot_before_them(tmp_path: Path) -> None:
    tables = Tables(tmp_path)
    publish(tables, DAYS[1], {"a": ("Rome", 1.0)})
    publish(tables, DAYS[3], {"a": ("Oslo", 1.0)})
    assert read(tables, DAYS[2]) == {"a": ("Rome", 1.0)}
    assert [snapshots.exists(tables, "users", ds) for ds in DAYS[:3]] == [False, True, True]
    assert not snapshots.exists(tables, "items", DAYS[4])
    with pytest.raises(UserError, match=r"no users are known as of 2026-01-01; run `recsys-moe ingest`"):
        read(tables, DAYS[0])


def test_the_same_rows_again_change_nothing(tmp_path: Path) -> None:
    tables = Tables(tmp_path)
    publish(tables, DAYS[0], {"a": ("Rome", float("nan"))})
    version = publish(tables, DAYS[1], {"a": ("Oslo", float("nan"))})
    print_before = tables.fingerprint("users", DAYS)
    assert publish(tables, DAYS[0], {"a": ("Rome", float("nan"))}) == version
    assert tables.fingerprint("users", DAYS) == print_before


def test_a_column_may_come_and_go(tmp_path: Path) -> None:
    tables = Tables(tmp_path)
    publish(tables, DAYS[0], {"a": ("Rome", 1.0)})
    plan = pa.array(["free"]).dictionary_encode()
    wider = pa.RecordBatch.from_pydict({"user": ["a"], "city": ["Rome"], "plan": plan, "tags": [["x", "y"]]})
    reader = pa.RecordBatchReader.from_batches(wider.schema, [wider])
    snapshots.publish(tables, "users", DAYS[1], reader, "user")
    publish(tables, DAYS[2], {"a": ("Rome", 1.0)})
    known = [snapshots.read(tables, "users", ds).to_pylist()[0] for ds in DAYS[:3]]
    whole = {"user": "a", "city": "Rome", "age": 1.0, "plan": None, "tags": None}
    assert known == [whole, whole | {"age": None, "plan": "free", "tags": ["x", "y"]}, whole]
    assert snapshots.columns(tables, "users") == ["user", "city", "age", "plan", "tags"]


def test_a_view_reads_the_same(tmp_path: Path) -> None:
    tables = Tables(tmp_path)
    publish(tables, DAYS[0], {"a": ("Rome", 1.0), "b": ("Oslo", 2.0)})
    publish(tables, DAYS[1], {"b": ("Oslo", 3.0)})
    with sql.connect() as connection:
        for name, ds in (("past", DAYS[0]), ("present", DAYS[1])):
            snapshots.view(connection, tables, "users", ds, name)
        joined = "SELECT user, n.age - o.age AS more FROM present AS n JOIN past AS o USING (user)"
        assert sql.fetch(connection, joined).to_pylist() == [{"user": "b", "more": 1.0}]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"user": ["a", "a"], "city": ["x", "x"]}, "1 rows of 2026-01-01 have no 'user', or that of another row"),
        ({"user": ["a", None], "city": ["x", "x"]}, "1 rows of 2026-01-01 have no 'user'"),
        ({"user": ["a"], "Removed": [True]}, "column called 'Removed' is the table's own"),
        ({"user": ["a"], "ds": ["x"]}, "column called 'ds' is the table's own"),
        ({"user": ["a"], "city": [7]}, "column 'city' holds text and would now get numbers"),
        ({"name": ["a"], "user": ["a"]}, "the key was 'user' and would now be 'name'"),
    ],
)
def test_what_is_no_snapshot_is_refused(tmp_path: Path, columns: dict[str, list[Any]], message: str) -> None:
    tables = Tables(tmp_path)
    publish(tables, DAYS[1], {"b": ("Oslo", 2.0)})
    key = "name" if "name" in columns else "user"
    with pytest.raises(UserError, match=message):
        snapshots.publish(tables, "users", DAYS[0], pa.table(columns), key)
    assert tables.days("users") == [DAYS[1]]
    assert len(list(tmp_path.rglob("*.parquet"))) == 1


def test_full_copies_of_old_are_refused(tmp_path: Path) -> None:
    tables = Tables(tmp_path)
    tables.replace_day("users", DAYS[0], rows({"a": ("Rome", 1.0)}))
    with pytest.raises(UserError, match=r"users: holds full copies, .*; remove this folder and ingest again"):
        read(tables, DAYS[0])
    with pytest.raises(UserError, match="holds full copies"):
        publish(tables, DAYS[1], {"a": ("Rome", 1.0)})


def copy_of(number: int) -> Copy:
    """Of the day with this number: some stay, some change, one goes and one comes."""
    return {f"u{user}": (f"c{user * number % 3}", 1.0) for user in range(number, number + 6)}


def publish_all(storage: str, seed: int, start: Barrier) -> None:
    """All days twice, in an order of its own, in a process of its own."""
    numbers = [*range(len(DAYS)), *range(len(DAYS))]
    random.Random(seed).shuffle(numbers)
    start.wait()
    for number in numbers:
        publish(Tables(storage), DAYS[number], copy_of(number))


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_two_processes_at_once_give_the_table_of_one_in_order(storage: str, tmp_path: Path) -> None:
    processes = multiprocessing.get_context("spawn")
    start = processes.Barrier(2)
    writers = [processes.Process(target=publish_all, args=(storage, seed, start)) for seed in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    ordered = Tables(tmp_path / "ordered")
    for number, ds in enumerate(DAYS):
        publish(ordered, ds, copy_of(number))
    assert stored(Tables(storage)) == stored(ordered)
    assert read(Tables(storage), DAYS[3]) == copy_of(3)


def test_a_snapshot_on_s3(s3: str) -> None:
    tables = Tables(s3)
    for number in (2, 0, 1):
        publish(tables, DAYS[number], copy_of(number))
    assert [read(tables, DAYS[number]) for number in range(3)] == [copy_of(number) for number in range(3)]
    assert pc.sum(tables.dataset("users").to_table().column("removed")).as_py() == 2
