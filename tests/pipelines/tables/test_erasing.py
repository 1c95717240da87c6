"""A person goes from every version of a table, everyone else stays, whatever interrupts it."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake

from pipelines.tables import Tables
from pipelines.tables.erasing import JOURNAL, Erased, Traces, erase, finish
from pipelines.tables.folder import Folder

MONDAY = date(2026, 1, 5)
TUESDAY, WEDNESDAY = MONDAY + timedelta(days=1), MONDAY + timedelta(days=2)
ANN = Traces(("user",), lambda batch: batch.filter(pc.fill_null(pc.not_equal(batch["user"], "ann"), True)))


def rows(*users: str | None) -> pa.Table:
    """One row a user, numbered."""
    return pa.table({"user": pa.array(users, pa.string()), "x": list(range(len(users)))})


def filled(storage: Any) -> Tables:
    """Versions 1 to 4, with a checkpoint at 3: Ann is in all of them, in files of the newest and in others."""
    tables = Tables(storage)
    tables.replace_day("interactions", MONDAY, rows("ann", "bob", None))
    tables.replace_day("interactions", TUESDAY, rows("bob", "cid"))
    tables.replace_day("interactions", MONDAY, rows("ann", "cid", "ann"))
    tables.place("interactions").open().create_checkpoint()
    tables.replace_day("interactions", WEDNESDAY, rows("ann"))
    return tables


def overwrite(path: str, monday: pa.Table) -> None:
    """Replace Monday as delta-rs's own writer does."""
    DeltaTable.create(path, monday.schema, "ignore", ["ds"], configuration={"delta.enableExpiredLogCleanup": "false"})
    write_deltalake(path, monday, mode="overwrite", predicate=f"ds = '{MONDAY}'")


def versions(tables: Tables, without: str = "") -> list[list[tuple[Any, ...]]]:
    """The rows of each version, sorted; those of `without` left out."""
    newest = tables.version("interactions")
    assert newest is not None
    found = [tables.dataset("interactions", version).to_table().to_pylist() for version in range(newest + 1)]
    kept = [[tuple(map(str, row.values())) for row in version if row["user"] != without] for version in found]
    return [sorted(version) for version in kept]


def names_ann(tables: Tables) -> list[str]:
    """The files below the table's folder that have the id in them, as it is in Parquet, JSON or checkpoints."""
    folder = Path(tables.path("interactions"))
    return [path.name for path in folder.rglob("*") if path.is_file() and b"ann" in path.read_bytes()]


def test_all_versions_lose_the_person_and_nothing_else(tmp_path: Path) -> None:
    tables = filled(tmp_path)
    expected = versions(tables, without="ann")
    assert names_ann(tables)
    assert erase(tables.place("interactions"), ANN) == Erased(rows=3, files=3, left=0)
    # The newest version is put right by a commit of its own, so that writers at work see that it has changed.
    assert versions(tables) == [*expected, expected[-1]]
    assert not names_ann(tables)


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_on_s3_too(s3: str) -> None:
    tables = filled(s3)
    expected = versions(tables, without="ann")
    assert erase(tables.place("interactions"), ANN) == Erased(rows=3, files=3, left=0)
    assert versions(tables) == [*expected, expected[-1]]
    tables.replace_day("interactions", TUESDAY, rows("dan"))
    assert tables.read_day("interactions", TUESDAY).column("user").to_pylist() == ["dan"]


def test_life_goes_on_afterwards(tmp_path: Path) -> None:
    """Counts from metadata, other readers, new days, replaced days, vacuum and time travel."""
    tables = filled(tmp_path)
    erase(tables.place("interactions"), ANN)
    table = tables.place("interactions").open()
    actions = pa.table(table.get_add_actions(flatten=True))
    assert pc.sum(actions["num_records"]).as_py() == table.to_pyarrow_dataset().count_rows() == 3
    files = table.file_uris()
    assert duckdb.read_parquet(files).aggregate("count(*), max(x)").fetchall() == [(3, 1)]
    assert {path for path, *_ in folder_files(tables)} >= {uri.rpartition("interactions/")[2] for uri in files}
    tables.replace_day("interactions", MONDAY, rows("eve"))
    table = tables.place("interactions").open()
    table.vacuum(0, dry_run=False, enforce_retention_duration=False, full=True, keep_versions=[3])
    assert tables.dataset("interactions").count_rows() == 3
    assert tables.dataset("interactions", 3).to_table().column("user").to_pylist().count("cid") == 2


def folder_files(tables: Tables) -> list[tuple[str, Any]]:
    return list(Folder(tables.place("interactions")).data().items())


def test_a_table_by_another_writer_is_no_different(tmp_path: Path) -> None:
    """delta-rs's own writer tells least and greatest values, which are ids, and percent-encodes names."""
    tables = Tables(tmp_path)
    place = tables.place("interactions")
    for users in (("ann", "bob"), ("ann", "cid")):
        table = rows(*users).append_column("ds", pa.array([MONDAY] * 2))
        overwrite(place.path, table)
    assert names_ann(tables)
    expected = versions(tables, without="ann")
    assert erase(place, ANN) == Erased(rows=1, files=2)
    assert versions(tables) == [*expected, expected[-1]]
    assert not names_ann(tables)


def test_what_the_log_says_of_files_long_gone_goes_too(tmp_path: Path) -> None:
    tables = Tables(tmp_path)
    place = tables.place("interactions")
    for user in ("ann", "bob"):
        table = rows(user).append_column("ds", pa.array([MONDAY]))
        overwrite(place.path, table)
    place.open().vacuum(0, dry_run=False, enforce_retention_duration=False)
    assert names_ann(tables) == ["00000000000000000001.json"]
    assert erase(place, ANN) == Erased()
    assert not names_ann(tables)
    assert tables.dataset("interactions").to_table().column("user").to_pylist() == ["bob"]


def test_counting_changes_nothing(tmp_path: Path) -> None:
    tables = filled(tmp_path)
    before = [(path, info.mtime) for path, info in folder_files(tables)], tables.version("interactions")
    assert erase(tables.place("interactions"), ANN, dry_run=True) == Erased(rows=3, files=3)
    assert ([(path, info.mtime) for path, info in folder_files(tables)], tables.version("interactions")) == before


def test_a_file_that_no_version_names_goes_once_no_writer_can_be_at_work_on_it(tmp_path: Path) -> None:
    tables = filled(tmp_path)
    lost = Path(tables.path("interactions")) / f"ds={MONDAY}" / "part-lost.parquet"
    pq.write_table(rows("ann", "bob"), lost)
    assert erase(tables.place("interactions"), ANN) == Erased(rows=3, files=3, left=1)
    assert lost.exists()
    two_days_ago = time.time() - 2 * 86400
    os.utime(lost, (two_days_ago, two_days_ago))
    assert erase(tables.place("interactions"), ANN) == Erased(rows=0, files=1)
    assert not lost.exists()


class Killed(Exception):
    """What a kill is here: nothing below catches it."""


def interrupt(monkeypatch: pytest.MonkeyPatch, at: int, look: Callable[[], None]) -> list[str]:
    """End the process's work before its change number `at` to the folder, and look at the table before each one."""
    done: list[str] = []

    def before(name: str, change: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(folder: Folder, path: str, *rest: Any) -> Any:
            look()
            if len(done) == at:
                raise Killed
            done.append(f"{name} {path}")
            return change(folder, path, *rest)

        return wrapped

    for name in ("replace", "sink", "delete"):
        monkeypatch.setattr(Folder, name, before(name, getattr(Folder, name)))
    return done


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_killed_at_any_moment_readers_see_whole_versions_and_the_next_run_ends_it(tmp_path: Path) -> None:
    """Before each single change to the files: every version has everyone else's rows once and none of hers twice,
    the newest all of hers or none; and what is left behind is put right by running it again."""
    at, changes = 0, 1
    while at < changes:
        tables = filled(tmp_path / str(at))
        whole, expected = versions(tables), versions(tables, without="ann")

        def look(tables: Tables = tables, whole: Any = whole, expected: Any = expected) -> None:
            now = versions(tables)
            for number, found in enumerate(now[: len(whole)]):
                assert not Counter(expected[number]) - Counter(found)
                assert not Counter(found) - Counter(whole[number])
            assert now[-1] in (whole[-1], expected[-1])

        with pytest.MonkeyPatch.context() as patch:
            done = interrupt(patch, at, look)
            try:
                erase(tables.place("interactions"), ANN)
                changes = len(done)
            except Killed:
                changes = at + 2
        erase(tables.place("interactions"), ANN)
        assert versions(tables)[: len(expected)] == expected
        assert set(map(str, versions(tables)[len(expected) :])) == {str(expected[-1])}
        assert not names_ann(tables)
        at += 1
    assert at > 15


def test_a_writer_that_was_at_work_on_the_same_day_loses(tmp_path: Path) -> None:
    """It would bring back what it had looked at before."""
    tables = filled(tmp_path)
    stale = tables.place("interactions").open()
    erase(tables.place("interactions"), ANN)
    table = rows("ann").append_column("ds", pa.array([MONDAY]))
    with pytest.raises(Exception, match="concurrent transaction"):
        write_deltalake(stale, table, mode="overwrite", predicate=f"ds = '{MONDAY}'")


def test_a_day_published_meanwhile_is_looked_at_too(tmp_path: Path) -> None:
    tables = filled(tmp_path)
    calls = []

    def without(batch: pa.RecordBatch) -> pa.RecordBatch:
        if not calls:
            calls.append(tables.replace_day("interactions", TUESDAY, rows("ann", "dan")))
        return ANN.without(batch)

    assert erase(tables.place("interactions"), Traces(("user",), without)) == Erased(rows=4, files=4)
    assert not names_ann(tables)
    assert tables.read_day("interactions", TUESDAY).column("user").to_pylist() == ["dan"]


def test_the_journal_names_nobody(tmp_path: Path) -> None:
    tables = filled(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Folder, "summaries", lambda self: _stop() if self.holds(JOURNAL) else [])
        with pytest.raises(Killed):
            erase(tables.place("interactions"), ANN)
    journal = (Path(tables.path("interactions")) / JOURNAL).read_text()
    assert "ann" not in journal
    assert len(json.loads(journal)["twins"]) == 3
    assert finish(tables.place("interactions"))
    assert not finish(tables.place("interactions"))
    assert not names_ann(tables)


def _stop() -> list[str]:
    raise Killed
