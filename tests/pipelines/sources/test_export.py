"""An export of the whole history: read once, and given back by the day of the event, whole."""

from __future__ import annotations

import multiprocessing
import shutil
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

from pipelines import sources
from pipelines.calendar import days_of
from pipelines.config import Recommender
from pipelines.places import file_system
from pipelines.sources import export, staging
from pipelines.sources.chunks import Chunk
from recsys_moe.errors import UserError

HEADER = "user,item,at,tab,clicked,liked"


def exported(tiny: Any, lines: list[str], name: str = "log.csv", **changes: Any) -> Recommender:
    tiny.write(name, "\n".join([HEADER, *lines]) + "\n")
    source = {"interactions": {"path": f"../data/{changes.pop('path', name)}"}}
    return tiny(source=source, features={"categorical": ["user", "tab"]}, segments=None, **changes)


def rows_of(chunks: Iterator[Chunk]) -> tuple[list[tuple[str, int, str]], list[tuple[str, int]]]:
    """File, number and user of each row, and file and number of each malformed line."""
    given = list(chunks)
    rows = [(chunk.file, row["source_row"], row["user"]) for chunk in given for row in chunk.rows.to_pylist()]
    return rows, [(chunk.file, line.row) for chunk in given for line in chunk.malformed]


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts how often the export is read."""
    counter: Counter[str] = Counter()
    read = sources.read

    def counting(*arguments: Any) -> Iterator[Chunk]:
        counter["read"] += 1
        return read(*arguments)

    monkeypatch.setattr(sources, "read", counting)
    return counter


def test_an_export_is_read_once_and_split_by_event_day(tiny: Any, reads: Counter[str]) -> None:
    """Days may stand in any order; undated rows and malformed lines come with the first day."""
    lines = [line for number in (2, 0, 1) for line in tiny.rows(number, 4)]
    lines[5:5] = ["u9,i9,never,home,1,0", "u9"]
    config = exported(tiny, lines)
    assert days_of(config) == [tiny.day(0), tiny.day(1), tiny.day(2)]
    rows = {number: rows_of(export.staged(config, tiny.day(number))) for number in range(4)}
    assert [row for _, row, _ in rows[2][0]] == [2, 3, 4, 5]
    assert sorted(row for _, row, _ in rows[0][0]) == [6, 7, 9, 10, 11]
    assert [row for _, row, _ in rows[1][0]] == [12, 13, 14, 15]
    assert rows[0][1] == [("log.csv", 8)]
    assert rows[3] == ([], [])
    assert reads["read"] == 1


def test_rows_stand_as_they_stood(tiny: Any) -> None:
    config = exported(tiny, [f' u1 ,"i,1",{tiny.at(0)},,1,0'])
    (chunk,) = export.staged(config, tiny.day(0))
    row = {"at": str(tiny.at(0)), "clicked": "1", "item": "i,1", "liked": "0", "tab": "", "user": " u1 "}
    assert chunk.rows.to_pylist() == [row | {"source_row": 2}]
    assert chunk.rows.schema.names == [*sorted(row), "source_row"]
    assert export.staged(config, tiny.day(5)).__next__().rows.schema.names == chunk.rows.schema.names


def test_an_export_without_a_single_time_gives_all_to_any_day(tiny: Any) -> None:
    config = exported(tiny, ["u1,i1,never,home,1,0", "u2"])
    assert rows_of(export.staged(config, tiny.day(3))) == ([("log.csv", 2, "u1")], [("log.csv", 3)])
    with pytest.raises(UserError, match="holds no day"):
        days_of(config)


def test_files_of_an_export_keep_their_names_and_order(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "_BYTES", 1000)
    for name in ("all/b.csv", "all/a.csv"):
        config = exported(tiny, [*tiny.rows(0, 20), *tiny.rows(1, 20)], name=name, path="all/*.csv")
    rows, _ = rows_of(export.staged(config, tiny.day(1)))
    assert [(file, row) for file, row, _ in rows] == [
        (file, row) for file in ("a.csv", "b.csv") for row in range(22, 42)
    ]


def test_chunks_of_other_types_lie_side_by_side(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.sources.json_lines._ROWS", 2)
    line = '{{"user": "u1", "item": "i1", "at": {at}, "clicked": 1, "liked": 0, "tab": {tab}}}'
    tabs = ['"a"', '"b"', '["c", "d"]', '"e"', '"f"']
    tiny.write("log.jsonl", "\n".join(line.format(at=tiny.at(0), tab=tab) for tab in tabs))
    config = exported(tiny, [], path="log.jsonl")
    given = [value for chunk in export.staged(config, tiny.day(0)) for value in chunk.rows["tab"].to_pylist()]
    assert given == ["a", "b", ["c", "d"], ["e"], "f"]


def test_thousands_of_days_need_one_open_file(tiny: Any) -> None:
    days = [tiny.day(0) - timedelta(days=n) for n in range(1000)]
    config = exported(tiny, [f"u{day.day},i1,{day},home,1,0" for day in days], columns=ISO)
    assert days_of(config) == sorted(days)
    assert rows_of(export.staged(config, days[999]))[0] == [("log.csv", 1001, f"u{days[999].day}")]


ISO = {"user": "user", "item": "item", "timestamp": {"name": "at", "unit": "iso"}, "timezone": "Asia/Shanghai"}


def test_days_are_of_the_time_zone(tiny: Any) -> None:
    config = exported(tiny, ["u1,i1,2026-01-01T20:00:00Z,home,1,0"], columns=ISO)
    assert days_of(config) == [date(2026, 1, 2)]


def test_a_new_export_replaces_the_old_one(tiny: Any, reads: Counter[str]) -> None:
    config = exported(tiny, tiny.rows(0, 3))
    assert days_of(config) == [tiny.day(0)]
    config = exported(tiny, tiny.rows(1, 5))
    assert days_of(config) == [tiny.day(1)]
    assert reads["read"] == 2
    folders = [path for path in (config.workspace / "staged" / "interactions").iterdir() if path.is_dir()]
    assert len(folders) == 1


def test_what_a_killed_process_left_is_no_staging(tiny: Any) -> None:
    config = exported(tiny, tiny.rows(0, 3))
    left = config.workspace / "staged" / "interactions" / "building" / "day=2020-01-01"
    left.mkdir(parents=True)
    (left / "00000000-rows.parquet").write_bytes(b"half a fi")
    assert days_of(config) == [tiny.day(0)]
    assert not left.exists()


def test_an_export_that_cannot_be_read_leaves_nothing(tiny: Any) -> None:
    config = exported(tiny, [*tiny.rows(0, 3), 'u1,"'])
    for _ in range(2):
        with pytest.raises(UserError, match="line 5 opens a quote"):
            list(export.staged(config, tiny.day(0)))
    exported(tiny, tiny.rows(0, 3))
    assert len(rows_of(export.staged(config, tiny.day(0)))[0]) == 3


def test_an_export_that_changes_while_it_is_read_is_refused(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    config = exported(tiny, tiny.rows(0, 3))
    read = sources.read

    def meanwhile(*arguments: Any) -> Iterator[Chunk]:
        yield from read(*arguments)
        exported(tiny, tiny.rows(0, 5))

    monkeypatch.setattr(sources, "read", meanwhile)
    with pytest.raises(UserError, match="was replaced while it was read"):
        list(export.staged(config, tiny.day(0)))


def test_a_query_without_a_day_is_run_once_in_a_process(
    tiny: Any, reads: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(sqlite3.connect(tiny.folder / "log.db")) as database:
        database.execute(f"CREATE TABLE log ({HEADER})")
        rows = [line.split(",") for number in range(3) for line in tiny.rows(number, 4)]
        database.executemany("INSERT INTO log VALUES (?, ?, ?, ?, ?, ?)", rows)
        database.commit()
    monkeypatch.setenv("LITE", f"sqlite:///{tiny.folder / 'log.db'}")
    source = {"interactions": {"sql": "SELECT * FROM log", "connection": "LITE"}}
    config = tiny(source=source, features={"categorical": ["user", "tab"]}, segments=None)
    assert days_of(config) == [tiny.day(n) for n in range(3)]
    assert [len(rows_of(export.staged(config, tiny.day(n)))[0]) for n in range(3)] == [4, 4, 4]
    assert reads["read"] == 1
    export._this_process.cache_clear()
    assert days_of(config) == [tiny.day(n) for n in range(3)]
    assert reads["read"] == 2


def test_an_export_on_s3_is_read_once(tiny: Any, s3: str, reads: Counter[str]) -> None:
    place = f"{s3}/log.csv"
    system, path = file_system(place)
    for count in (3, 5):
        with system.open_output_stream(path) as stream:
            stream.write("\n".join([HEADER, *tiny.rows(0, count), ""]).encode())
        config = tiny(source={"interactions": {"path": place}}, **_NO_ENTITIES)
        for _ in range(2):
            assert len(rows_of(export.staged(config, tiny.day(0)))[0]) == count
    assert reads["read"] == 2


def test_outcomes_may_be_an_export_too(tiny: Any) -> None:
    tiny.write("bought.csv", "user,item,when,price\nu1,i1,2026-01-01,5\nu2,i2,2026-01-02,7\n")
    outcome = {"name": "bought", "path": "../data/bought.csv", "timestamp": {"name": "when", "unit": "iso"}}
    config = tiny(source={"interactions": {"path": "../data/log/{ds}.csv"}, "outcomes": [outcome]}, **_NO_ENTITIES)
    bought = export.of_outcome(config, config.source.outcomes[0], ("user", "item", "when", "price"))
    assert bought.days() == [date(2026, 1, 1), date(2026, 1, 2)]
    assert rows_of(bought.read(date(2026, 1, 2)))[0] == [("bought.csv", 3, "u2")]


_NO_ENTITIES: dict[str, Any] = {"features": {"categorical": ["user", "tab"]}, "segments": None}


def _days(path: str, done: Any) -> None:
    from pipelines.config import load

    done.put([day.isoformat() for day in days_of(load(Path(path)))])


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_two_processes_at_once_both_get_it(tiny: Any) -> None:
    exported(tiny, [line for number in range(6) for line in tiny.rows(number, 2000)])
    spawn = multiprocessing.get_context("spawn")
    done: Any = spawn.Queue()
    path = str(tiny.folder / "configs" / "tiny.yaml")
    processes = [spawn.Process(target=_days, args=(path, done)) for _ in range(2)]
    for process in processes:
        process.start()
    answers = [done.get(timeout=100) for _ in processes]
    for process in processes:
        process.join()
    assert answers == [[tiny.day(n).isoformat() for n in range(6)]] * 2


def test_the_staging_may_be_thrown_away(tiny: Any) -> None:
    config = exported(tiny, tiny.rows(0, 3))
    before = rows_of(export.staged(config, tiny.day(0)))
    shutil.rmtree(config.workspace / "staged")
    assert rows_of(export.staged(config, tiny.day(0))) == before
    parts = list(config.workspace.glob("staged/*/*/day=*/*.parquet"))
    assert sum(pyarrow.parquet.read_metadata(part).num_rows for part in parts) == 3
