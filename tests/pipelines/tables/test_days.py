"""Delta tables by day: replaced whole, safe to write at once, and with a fingerprint for what a model was made of."""

from __future__ import annotations

import multiprocessing
from datetime import date
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipelines.tables import TableName, Tables
from recsys_moe.errors import UserError

MONDAY, TUESDAY = date(2026, 1, 5), date(2026, 1, 6)


def rows(*values: int, **more: list[str]) -> pa.Table:
    return pa.table({"x": list(values), **more})


def values(tables: Tables, ds: date, column: str = "x", name: TableName = "interactions") -> list[Any]:
    return tables.read_day(name, ds).column(column).to_pylist()


def test_a_day_is_replaced_whole_and_others_stand(tmp_path: Path) -> None:
    tables = Tables(tmp_path)
    tables.replace_day("interactions", MONDAY, rows(1, 2, 3))
    tables.replace_day("interactions", TUESDAY, rows(4))
    tables.replace_day("interactions", MONDAY, rows(5))
    assert (values(tables, MONDAY), values(tables, TUESDAY)) == ([5], [4])
    assert tables.days("interactions") == [MONDAY, TUESDAY]


def test_the_same_rows_again_change_nothing(tmp_path: Path) -> None:
    tables = Tables(tmp_path)
    version = tables.replace_day("interactions", MONDAY, rows(1, 2, kind=["a", "b"]))
    fingerprint = tables.fingerprint("interactions", [MONDAY])
    assert tables.replace_day("interactions", MONDAY, rows(1, 2, kind=["a", "b"])) == version
    assert tables.fingerprint("interactions", [MONDAY]) == fingerprint
    assert tables.replace_day("interactions", MONDAY, rows(1, 2, kind=["a", "c"])) > version
    assert values(tables, MONDAY, "kind") == ["a", "c"]


def test_a_column_that_is_gone_is_a_change(tmp_path: Path) -> None:
    tables = Tables(tmp_path)
    tables.replace_day("interactions", MONDAY, rows(1, kind=["a"]))
    tables.replace_day("interactions", MONDAY, rows(1))
    assert values(tables, MONDAY, "kind") == [None]


def test_an_empty_day_replaces_rows(tmp_path: Path) -> None:
    tables = Tables(tmp_path)
    tables.replace_day("interactions", MONDAY, rows(1, 2))
    tables.replace_day("interactions", MONDAY, rows(1).slice(0, 0))
    assert values(tables, MONDAY) == []
    assert tables.days("interactions") == []


def test_a_first_day_may_be_empty(tmp_path: Path) -> None:
    tables = Tables(tmp_path)
    tables.replace_day("interactions", MONDAY, rows(1).slice(0, 0))
    assert tables.exists("interactions")
    tables.replace_day("interactions", MONDAY, rows(1))
    assert values(tables, MONDAY) == [1]


def test_columns_may_be_added(tmp_path: Path) -> None:
    tables = Tables(tmp_path)
    tables.replace_day("interactions", MONDAY, rows(1))
    tables.replace_day("interactions", TUESDAY, rows(2, kind=["new"]))
    assert values(tables, MONDAY, "kind") == [None]
    assert values(tables, TUESDAY, "kind") == ["new"]


@pytest.mark.parametrize(
    ("new", "message"),
    [
        ({"x": ["007"]}, "column 'x' holds numbers and would now get text; where the YAML has changed"),
        ({"x": [[1]]}, "column 'x' holds numbers and would now get lists"),
        ({"X": [1]}, "column 'X' was called 'x' before"),
    ],
)
def test_a_column_keeps_its_kind_and_its_spelling(tmp_path: Path, new: dict[str, list[Any]], message: str) -> None:
    tables = Tables(tmp_path)
    tables.replace_day("interactions", MONDAY, rows(1))
    with pytest.raises(UserError, match=message):
        tables.replace_day("interactions", TUESDAY, pa.table(new))
    assert tables.days("interactions") == [MONDAY]


def test_how_a_column_is_stored_does_not_matter(tmp_path: Path) -> None:
    tables = Tables(tmp_path)
    tables.replace_day("interactions", MONDAY, rows(1, kind=["a"]))
    kind = pa.array(["b"]).dictionary_encode()
    tables.replace_day("interactions", TUESDAY, pa.table({"x": pa.array([2.0]), "kind": kind}))
    assert (values(tables, TUESDAY), values(tables, TUESDAY, "kind")) == ([2], ["b"])


def test_the_fingerprint_changes_for_its_days_only(tmp_path: Path) -> None:
    tables = Tables(tmp_path)
    assert tables.fingerprint("interactions", [MONDAY]) == tables.fingerprint("interactions", [])
    tables.replace_day("interactions", MONDAY, rows(1))
    monday = tables.fingerprint("interactions", [MONDAY])
    tables.replace_day("interactions", TUESDAY, rows(2))
    both = tables.fingerprint("interactions", [MONDAY, TUESDAY])
    assert tables.fingerprint("interactions", [TUESDAY, MONDAY]) == both != monday
    assert tables.fingerprint("interactions", [MONDAY]) == monday
    tables.replace_day("interactions", MONDAY, rows(3))
    assert tables.fingerprint("interactions", [MONDAY]) != monday


def test_an_old_version_can_be_read_again(tmp_path: Path) -> None:
    tables = Tables(tmp_path)
    version = tables.replace_day("interactions", MONDAY, rows(1))
    tables.replace_day("interactions", MONDAY, rows(2))
    assert tables.dataset("interactions", version).to_table().column("x").to_pylist() == [1]


def test_a_table_that_is_not_there_names_the_step(tmp_path: Path) -> None:
    tables = Tables(tmp_path)
    assert not tables.exists("users")
    assert tables.days("users") == []
    assert tables.version("users") is None
    with pytest.raises(UserError, match="no table users yet; run `recsys-moe ingest`"):
        tables.dataset("users")


Plan = tuple[tuple[TableName, tuple[date, date]], ...]
MEETINGS: Plan = (
    ("interactions", (MONDAY, MONDAY)),
    ("items", (MONDAY, MONDAY)),
    ("users", (MONDAY, TUESDAY)),
    ("examples", (MONDAY, TUESDAY)),
)
"""In which table two writers meet, one after the other, and the day of each."""
THERE_ALREADY: tuple[TableName, ...] = ("items", "examples")


def publish(folder: Path, number: int, start: Barrier) -> None:
    """A writer in a process of its own; it leaves a file for each table that says how it went."""
    column = {f"c{number}": ["new"]} if number else {}
    for name, days in MEETINGS:
        start.wait()
        try:
            Tables(folder).replace_day(name, days[number], rows(number, **column))
            outcome = "published"
        except UserError as error:
            outcome = str(error)
        (folder / f"{name}{number}.txt").write_text(outcome)


@pytest.fixture(scope="module")
def met(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of tables in which two processes have written at once."""
    folder = tmp_path_factory.mktemp("met")
    for name in THERE_ALREADY:
        Tables(folder).replace_day(name, date(2026, 1, 7), rows(9))
    processes = multiprocessing.get_context("spawn")
    start = processes.Barrier(2)
    writers = [processes.Process(target=publish, args=(folder, number, start)) for number in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    return folder


def told(folder: Path, name: TableName) -> list[str]:
    return [(folder / f"{name}{number}.txt").read_text() for number in range(2)]


@pytest.mark.parametrize("name", ["interactions", "items"], ids=["first write of all", "table is there"])
def test_two_writers_of_one_day_never_mix(met: Path, name: TableName) -> None:
    """Whether they meet, or come one after the other, only one writer's rows stand."""
    lost = [outcome for outcome in told(met, name) if outcome != "published"]
    assert len(lost) <= 1
    assert all(f"2026-01-05 of {name} at the same time and won; run this step again" in text for text in lost)
    assert len(values(Tables(met), MONDAY, name=name)) == 1


@pytest.mark.parametrize("name", ["users", "examples"], ids=["first write of all", "table is there"])
def test_two_writers_of_different_days_both_land(met: Path, name: TableName) -> None:
    """Also where one of them adds a column, or both make the table."""
    assert told(met, name) == ["published", "published"]
    assert (values(Tables(met), MONDAY, name=name), values(Tables(met), TUESDAY, name=name)) == ([0], [1])


def test_who_loses_a_day_is_told_and_leaves_no_files(tmp_path: Path) -> None:
    tables, rival = Tables(tmp_path), Tables(tmp_path)
    tables.replace_day("interactions", MONDAY, rows(1))
    with tables.day_writer("interactions", MONDAY, rows(2).schema) as writer:
        writer.write(rows(2))
        rival.replace_day("interactions", MONDAY, rows(7))
        with pytest.raises(UserError, match="another run published 2026-01-05 of interactions at the same time and"):
            writer.publish()
    assert values(tables, MONDAY) == [7]
    assert len(list(tmp_path.rglob("*.parquet"))) == 2


def test_who_loses_a_day_to_the_same_rows_has_lost_nothing(tmp_path: Path) -> None:
    tables, rival = Tables(tmp_path), Tables(tmp_path)
    with tables.day_writer("interactions", MONDAY, rows(2).schema) as writer:
        writer.write(rows(2))
        version = rival.replace_day("interactions", MONDAY, rows(2))
        assert writer.publish() == version


def test_blocks_of_a_day_are_the_day(storage: str) -> None:
    tables = Tables(storage)
    rows = pa.table({"user": ["ann", None, "bob", "ann"] * 50_000, "x": np.arange(200_000.0), "y": [1] * 200_000})
    tables.replace_day("examples", MONDAY, rows)
    blocks = list(tables.read_blocks("examples", MONDAY, ["x", "user"], coded=["user"]))
    assert [len(block) for block in blocks] == [131_072, 200_000 - 131_072]
    assert pa.types.is_dictionary(blocks[0].schema.field("user").type)
    read = pa.Table.from_batches(blocks)
    assert read.column("x").equals(rows.column("x"))
    assert read.column("user").cast(pa.string()).equals(rows.column("user"))
    with pytest.raises(UserError, match="no day has a column 'z'"):
        next(tables.read_blocks("examples", MONDAY, ["z"]))
