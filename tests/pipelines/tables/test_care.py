"""Small files are joined, checkpoints made, and other writers left their way."""

from __future__ import annotations

import json
import os
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import write_deltalake

from pipelines.tables import Tables, care
from pipelines.tables.care import MANY_COMMITS, MANY_FILES, Cared, Wanted
from pipelines.tables.erasing import JOURNAL
from pipelines.tables.folder import Folder

MONDAY, TUESDAY = date(2026, 1, 5), date(2026, 1, 6)
EVERYTHING = Wanted(days=None, version_days=7, versions=frozenset(), compact=True)


def in_pieces(tables: Tables, ds: date, count: int) -> None:
    """A day in many files, as a writer makes that appends."""
    for number in range(count):
        rows = pa.table({"x": [number], "ds": [ds]})
        write_deltalake(tables.path("scores"), rows, mode="append", partition_by=["ds"])


def files(tables: Tables, ds: date) -> int:
    return len(tables.place("scores").open().file_uris(file_pruning_predicate=[("ds", "=", ds.isoformat())]))


def test_days_in_many_small_files_are_compacted(tmp_path: Path) -> None:
    tables = Tables(tmp_path)
    in_pieces(tables, MONDAY, MANY_FILES + 1)
    in_pieces(tables, TUESDAY, MANY_FILES)
    before, version = tables.dataset("scores").to_table().sort_by([("ds", "ascending"), ("x", "ascending")]), 3
    assert care.care(tables.place("scores"), EVERYTHING).days_compacted == 1
    assert (files(tables, MONDAY), files(tables, TUESDAY)) == (1, MANY_FILES)
    after = tables.dataset("scores").to_table().sort_by([("ds", "ascending"), ("x", "ascending")])
    assert after.equals(before)
    assert tables.dataset("scores", version).count_rows() == version + 1
    assert care.care(tables.place("scores"), EVERYTHING).days_compacted == 0


def test_days_stay_in_pieces_where_their_files_stand_for_their_rows(tmp_path: Path) -> None:
    tables = Tables(tmp_path)
    in_pieces(tables, MONDAY, MANY_FILES + 1)
    known = tables.fingerprint("scores", [MONDAY])
    as_they_are = Wanted(days=None, version_days=7, versions=frozenset(), compact=False)
    assert care.care(tables.place("scores"), as_they_are).days_compacted == 0
    assert tables.fingerprint("scores", [MONDAY]) == known


@pytest.mark.parametrize(
    ("wanted", "what"), [(Wanted(1, 7, frozenset(), False), "retention"), (EVERYTHING, "compaction")]
)
def test_what_another_writer_prevents_waits_for_the_next_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: Wanted, what: str
) -> None:
    """Its commit comes between our look at the table and ours."""
    tables = Tables(tmp_path)
    in_pieces(tables, MONDAY, MANY_FILES + 1)
    in_pieces(tables, TUESDAY, 1)
    name = {"retention": "_remove_days", "compaction": "_compact"}[what]
    change = getattr(care, name)

    class Late:
        """A place whose table is found as it was just before somebody replaced Monday."""

        def open(self) -> Any:
            stale = tables.place("scores").open()
            tables.replace_day("scores", MONDAY, pa.table({"x": [77]}))
            return stale

    monkeypatch.setattr(care, name, lambda place, days: change(Late(), days))
    done = care.care(tables.place("scores"), wanted)
    assert done.beaten == (what,)
    assert tables.read_day("scores", MONDAY).column("x").to_pylist() == [77]


def test_a_checkpoint_is_made_where_readers_would_read_many_entries(tmp_path: Path) -> None:
    tables = Tables(tmp_path)
    in_pieces(tables, MONDAY, MANY_COMMITS)
    folder = Folder(tables.place("scores"))
    assert folder.commits_since_checkpoint() == MANY_COMMITS
    plain = Wanted(days=None, version_days=7, versions=frozenset(), compact=False)
    assert not care.care(tables.place("scores"), plain).checkpoint
    in_pieces(tables, MONDAY, 1)
    assert care.care(tables.place("scores"), plain, dry_run=True).checkpoint
    assert not folder.summaries()
    assert care.care(tables.place("scores"), plain) == Cared(versions_kept=MANY_COMMITS + 1, checkpoint=True)
    assert (folder.commits_since_checkpoint(), len(folder.entries())) == (0, MANY_COMMITS + 1)


def test_an_interrupted_erasure_is_finished_first(tmp_path: Path) -> None:
    """Or the files that it was about to name would be taken for left over."""
    tables = Tables(tmp_path)
    in_pieces(tables, MONDAY, 1)
    folder = Folder(tables.place("scores"))
    (path,) = folder.data()
    twin = {"path": f"{path}.twin.parquet", "size": folder.size(path), "modificationTime": 0, "stats": "{}"}
    os.link(Path(tables.path("scores")) / path, Path(tables.path("scores")) / twin["path"])
    folder.replace(JOURNAL, json.dumps({"twins": {path: twin}, "checkpoint": False}).encode())
    care.care(tables.place("scores"), EVERYTHING)
    assert [*folder.data()] == [twin["path"]]
    assert tables.dataset("scores").count_rows() == 1
