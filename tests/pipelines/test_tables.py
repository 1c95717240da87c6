"""Delta tables by day: replaced whole, safe to write at once, and with a fingerprint for what a model was made of."""

from __future__ import annotations

import multiprocessing
from datetime import date
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pyarrow as pa
import pytest

from pipelines.tables import Tables
from recsys_moe.errors import UserError

MONDAY, TUESDAY = date(2026, 1, 5), date(2026, 1, 6)


def rows(*values: int, **more: list[str]) -> pa.Table:
    return pa.table({"x": list(values), **more})


def values(tables: Tables, ds: date, column: str = "x") -> list[object]:
    found: list[object] = tables.read_day("interactions", ds).column(column).to_pylist()
    return found


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


def publish(folder: Path, ds: date, number: int, start: Barrier) -> None:
    """A writer in a process of its own; it leaves a file that says how it went."""
    column = {f"c{number}": ["new"]} if number % 2 else {}
    start.wait()
    try:
        Tables(folder).replace_day("interactions", ds, rows(number, **column))
        outcome = "published"
    except UserError as error:
        outcome = str(error)
    (folder / f"{number}.txt").write_text(outcome)


def outcomes(folder: Path, days: list[date]) -> list[str]:
    """How writers of these days fared, all at once."""
    processes = multiprocessing.get_context("spawn")
    start = processes.Barrier(len(days))
    writers = [processes.Process(target=publish, args=(folder, ds, n, start)) for n, ds in enumerate(days)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    return [(folder / f"{number}.txt").read_text() for number in range(len(days))]


@pytest.mark.parametrize("is_new", [True, False], ids=["first write of all", "table is there"])
def test_two_writers_of_one_day_never_mix(tmp_path: Path, is_new: bool) -> None:
    """Whether they meet, or come one after the other, only one writer's rows stand."""
    tables = Tables(tmp_path)
    if not is_new:
        tables.replace_day("interactions", TUESDAY, rows(9))
    told = outcomes(tmp_path, [MONDAY, MONDAY])
    assert "published" in told
    lost = [outcome for outcome in told if outcome != "published"]
    assert all("2026-01-05 of interactions at the same time and won; run this step again" in text for text in lost)
    assert len(values(tables, MONDAY)) == 1


@pytest.mark.parametrize("is_new", [True, False], ids=["first write of all", "table is there"])
def test_two_writers_of_different_days_both_land(tmp_path: Path, is_new: bool) -> None:
    """Also where one of them adds a column, or both make the table."""
    tables = Tables(tmp_path)
    if not is_new:
        tables.replace_day("interactions", date(2026, 1, 7), rows(9))
    assert outcomes(tmp_path, [MONDAY, TUESDAY]) == ["published", "published"]
    assert (values(tables, MONDAY), values(tables, TUESDAY)) == ([0], [1])


def test_who_loses_a_day_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The race itself, made certain: another writer commits after this one has looked and before it writes."""
    tables, rival = Tables(tmp_path), Tables(tmp_path)
    tables.replace_day("interactions", MONDAY, rows(1))
    stale = tables._overwrite_day

    def late(name: str, ds: date, new: pa.Table) -> int:
        from deltalake import DeltaTable, write_deltalake

        opened = DeltaTable(str(tables.path("interactions")))
        rival._overwrite_day("interactions", MONDAY, rows(7).append_column("ds", pa.array([MONDAY])))
        write_deltalake(opened, new, mode="overwrite", predicate=f"ds = '{ds}'")
        return stale("interactions", ds, new)

    monkeypatch.setattr(tables, "_overwrite_day", late)
    with pytest.raises(UserError, match="another run published 2026-01-05 of interactions at the same time and won"):
        tables.replace_day("interactions", MONDAY, rows(2))
    assert values(tables, MONDAY) == [7]
