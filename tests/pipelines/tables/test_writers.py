"""Writers of days: streams in bounded memory, many at once, killed in the middle; on a local disk and on S3."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from datetime import date, timedelta
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from deltalake.exceptions import CommitFailedError
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import places
from pipelines.tables import Tables, files
from pipelines.tables.files import DayFiles
from pipelines.tables.publishing import Place, commit, schema_of
from recsys_moe.errors import UserError

MONDAY = date(2026, 1, 5)
DAYS = [MONDAY + timedelta(days=number) for number in range(8)]


def rows(*values: int | None, **more: list[str]) -> pa.Table:
    return pa.table({"x": pa.array(values, pa.int64()), **more})


def wide(count: int, of: int = 65_536) -> pa.RecordBatchReader:
    """`count` rows of eight numbers, made as they are asked for."""
    schema = pa.schema([(f"c{number}", pa.float64()) for number in range(8)])

    def batches() -> Iterator[pa.RecordBatch]:
        for start in range(0, count, of):
            columns = [pc.random(min(of, count - start), initializer=number) for number in range(8)]
            yield pa.RecordBatch.from_arrays(columns, schema=schema)

    return pa.RecordBatchReader.from_batches(schema, batches())


def parquet_files(storage: str) -> list[str]:
    system, path = places.file_system(storage)
    return [info.path for info in system.get_file_info(_all(path)) if info.path.endswith(".parquet")]


def _all(path: str) -> pa.fs.FileSelector:
    return pa.fs.FileSelector(path, allow_not_found=True, recursive=True)


def test_text_is_a_dictionary_in_the_file_however_it_comes(tmp_path: Path) -> None:
    text = pa.array(["a", "b", "a", None])
    table = pa.table({"x": [1, 2, 3, 4], "plain": text, "coded": text.dictionary_encode()})
    Tables(tmp_path).replace_day("examples", MONDAY, table)
    (path,) = tmp_path.rglob("*.parquet")
    group = pq.ParquetFile(path).metadata.row_group(0)
    kinds = {column.path_in_schema: column.has_dictionary_page for column in map(group.column, range(3))}
    assert kinds == {"x": False, "plain": True, "coded": True}


def test_a_day_on_either_storage(storage: str) -> None:
    tables = Tables(storage)
    version = tables.replace_day("interactions", MONDAY, rows(1, 2))
    assert tables.replace_day("interactions", MONDAY, rows(1, 2)) == version
    tables.replace_day("interactions", DAYS[1], rows(3, kind=["new"]))
    tables.replace_day("interactions", MONDAY, rows(4))
    everything = tables.dataset("interactions").to_table(columns=["x", "kind"]).to_pylist()
    assert sorted(everything, key=lambda row: int(row["x"])) == [{"x": 3, "kind": "new"}, {"x": 4, "kind": None}]
    assert tables.dataset("interactions", version).to_table().column("x").to_pylist() == [1, 2]
    assert len(parquet_files(storage)) == 3


def peak_bytes(tables: Tables, count: int) -> int:
    """The most that Arrow held at once while a day of `count` rows was published."""
    watched, usual = pa.proxy_memory_pool(pa.default_memory_pool()), pa.default_memory_pool()
    pa.set_memory_pool(watched)
    try:
        tables.replace_day("interactions", MONDAY, wide(count))
    finally:
        pa.set_memory_pool(usual)
    return watched.max_memory()


def test_a_stream_needs_memory_for_a_few_row_groups(tmp_path: Path) -> None:
    assert peak_bytes(Tables(tmp_path), 1_000_000) < 0.7 * 1_000_000 * 8 * 8
    assert Tables(tmp_path).dataset("interactions").count_rows() == 1_000_000


@pytest.mark.slow
def test_days_are_compared_in_streams(tmp_path: Path) -> None:
    tables, count = Tables(tmp_path), 4_000_000
    version = tables.replace_day("interactions", MONDAY, wide(count))
    assert peak_bytes(tables, count) < 0.6 * count * 8 * 8
    assert tables.version("interactions") == version


def test_a_large_day_is_several_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_FILE_BYTES", 1)
    tables = Tables(tmp_path)
    large = pa.table({"x": range(300_000)})
    version = tables.replace_day("interactions", MONDAY, large)
    assert len(parquet_files(str(tmp_path))) == 3
    monkeypatch.undo()
    assert tables.replace_day("interactions", MONDAY, large) == version
    assert tables.replace_day("interactions", MONDAY, large.slice(1)) > version


def test_text_may_come_as_dictionaries(tmp_path: Path) -> None:
    tables = Tables(tmp_path)
    batches = [pa.RecordBatch.from_pydict({"k": pa.array(texts).dictionary_encode()}) for texts in (["a", "b"], ["c"])]
    reader = pa.RecordBatchReader.from_batches(batches[0].schema, batches)
    version = tables.replace_day("interactions", MONDAY, reader)
    day = tables.read_day("interactions", MONDAY)
    assert day.schema.field("k").type == pa.string()
    assert day.column("k").to_pylist() == ["a", "b", "c"]
    assert tables.replace_day("interactions", MONDAY, pa.table({"k": ["a", "b", "c"]})) == version


@pytest.mark.parametrize(
    ("column", "stored"),
    [
        (pa.array([1], pa.uint32()), pa.int64()),
        (pa.array(["a"], pa.large_string()), pa.string()),
        (pa.array([1_000], pa.timestamp("ns", "UTC")), pa.timestamp("us", "UTC")),
        (pa.array([None], pa.null()), pa.string()),
        (pa.array([["a"]], pa.large_list(pa.large_string())), pa.list_(pa.string())),
        (pa.array([float("nan")]), pa.float64()),
        (pa.array([float("nan")], pa.float32()), pa.float32()),
    ],
    ids=lambda value: str(value) if isinstance(value, pa.DataType) else "",
)
def test_types_are_those_of_delta_and_the_same_again_is_the_same(
    tmp_path: Path, column: pa.Array, stored: pa.DataType
) -> None:
    tables = Tables(tmp_path)
    version = tables.replace_day("interactions", MONDAY, pa.table({"c": column}))
    read = tables.read_day("interactions", MONDAY).column("c")
    assert read.type.equals(stored) or str(read.type).replace("element", "item") == str(stored)
    assert str(read.to_pylist()) == str(column.cast(read.type).to_pylist())
    assert tables.replace_day("interactions", MONDAY, pa.table({"c": column})) == version


def test_a_value_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    tables = Tables(tmp_path)
    tables.replace_day("interactions", MONDAY, rows(1))
    with pytest.raises(UserError, match=r"interactions: column 'x' holds int64; .*2\.5"):
        tables.replace_day("interactions", DAYS[1], pa.table({"x": [2.5]}))
    assert len(parquet_files(str(tmp_path))) == 1


def test_an_error_before_the_end_leaves_nothing(storage: str) -> None:
    tables = Tables(storage)

    def failing() -> Iterator[pa.RecordBatch]:
        yield from pa.table({"x": range(300_000)}).to_batches()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        tables.replace_day("interactions", MONDAY, pa.RecordBatchReader.from_batches(rows(1).schema, failing()))
    assert not tables.exists("interactions")
    assert parquet_files(storage) == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "tables").write_text("a file")
    with pytest.raises(UserError, match="tables/interactions: "):
        Tables(tmp_path).replace_day("interactions", MONDAY, rows(1))


def test_a_bucket_that_is_not_there_is_named(s3: str) -> None:
    with pytest.raises(UserError, match="s3://no-such-bucket/place/tables/interactions: "):
        Tables("s3://no-such-bucket/place").replace_day("interactions", MONDAY, rows(1))


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(DAYS[:4]), st.lists(st.integers(0, 2), max_size=3)), min_size=1, max_size=8))
def test_days_in_any_order_and_again(
    tmp_path_factory: pytest.TempPathFactory, events: list[tuple[date, list[int]]]
) -> None:
    tables = Tables(tmp_path_factory.mktemp("any"))
    given: dict[date, list[int]] = {}
    for ds, values in events:
        version = tables.version("interactions")
        published = tables.replace_day("interactions", ds, rows(*values))
        assert (published == version) == (version is not None and given.get(ds, []) == values)
        given[ds] = values
        read = {day: tables.read_day("interactions", day).column("x").to_pylist() for day in given}
        assert read == given
    assert tables.days("interactions") == sorted(ds for ds in given if given[ds])


def race(place: Place, start: threading.Barrier, won: list[int], version: int) -> None:
    table = place.open(version)
    with DayFiles(place.folder, MONDAY, rows(1).schema, place.path) as written:
        written.write(rows(1).to_batches()[0])
        actions = written.close()
        start.wait()
        try:
            won.append(commit(place, table, {MONDAY: actions}, schema_of(table)))
            written.keep()
        except CommitFailedError:
            pass


def test_of_two_commits_on_one_version_one_wins(storage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten races; also where the environment would let delta-rs do without the condition on S3."""
    monkeypatch.setenv("AWS_S3_ALLOW_UNSAFE_RENAME", "true")
    place = Tables(storage).place("interactions")
    version = Tables(storage).replace_day("interactions", MONDAY, rows(0))
    for _ in range(10):
        start, won = threading.Barrier(2), list[int]()
        racers = [threading.Thread(target=race, args=(place, start, won, version)) for _ in range(2)]
        for racer in racers:
            racer.start()
        for racer in racers:
            racer.join()
        version += 1
        assert won == [version]


def test_a_commit_that_meets_itself_has_won(storage: str) -> None:
    """The second request stands for one that S3's client repeats because the answer to the first was lost."""
    place = Tables(storage).place("interactions")
    table = place.open(Tables(storage).replace_day("interactions", MONDAY, rows(0)))
    with DayFiles(place.folder, MONDAY, rows(1).schema, place.path) as written:
        written.write(rows(1).to_batches()[0])
        actions = written.close()
        written.keep()
        assert [commit(place, table, {MONDAY: actions}, schema_of(table)) for _ in range(2)] == [2, 2]
        with pytest.raises(CommitFailedError):
            commit(place, table, {MONDAY: []}, schema_of(table))
    assert Tables(storage).read_day("interactions", MONDAY).column("x").to_pylist() == [1]


def publish_one(storage: str, number: int, start: Barrier) -> None:
    """A writer in a process of its own; every second one brings a column."""
    start.wait()
    more = {f"c{number}": ["new"]} if number % 2 else {}
    Tables(storage).replace_day("interactions", DAYS[number], rows(number, **more))


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_eight_processes_with_a_day_each_all_land(storage: str) -> None:
    processes = multiprocessing.get_context("spawn")
    start = processes.Barrier(len(DAYS))
    writers = [processes.Process(target=publish_one, args=(storage, number, start)) for number in range(len(DAYS))]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    tables = Tables(storage)
    assert [tables.read_day("interactions", ds).column("x").to_pylist() for ds in DAYS] == [[n] for n in range(8)]
    assert [tables.read_day("interactions", DAYS[n]).column(f"c{n}").to_pylist() for n in (1, 3)] == [["new"]] * 2
    assert len(parquet_files(storage)) == len(DAYS)


def write_until_killed(storage: str, told: Connection) -> None:
    """Says so when some row groups are in the file, and then writes on."""
    schema = wide(1).schema
    with Tables(storage).day_writer("interactions", MONDAY, schema) as writer:
        for number, batch in enumerate(wide(100_000_000)):
            writer.write(batch)
            if number == 20:
                told.send("writing")


def test_a_killed_writer_leaves_nothing_to_see(storage: str) -> None:
    tables = Tables(storage)
    tables.replace_day("interactions", MONDAY, wide(10))
    before, version = tables.read_day("interactions", MONDAY), tables.version("interactions")
    processes = multiprocessing.get_context("spawn")
    heard, told = processes.Pipe(duplex=False)
    writer = processes.Process(target=write_until_killed, args=(storage, told))
    writer.start()
    assert heard.recv() == "writing"
    assert writer.pid is not None
    os.kill(writer.pid, signal.SIGKILL)
    writer.join()
    assert (tables.version("interactions"), tables.days("interactions")) == (version, [MONDAY])
    assert tables.read_day("interactions", MONDAY).equals(before)
    tables.replace_day("interactions", MONDAY, wide(20))
    assert len(tables.read_day("interactions", MONDAY)) == 20


def test_a_server_that_does_not_answer_is_named(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"s3://.*/interactions: the table cannot be reached: .*Connection refused"):
        Tables(s3).version("interactions")
