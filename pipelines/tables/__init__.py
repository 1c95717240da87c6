"""Delta tables under a recommender's storage folder: the only place that reads or writes them, or builds their paths.

Every table is partitioned by `ds`, the day that brought its rows, and a day is replaced as a whole:
a reader sees all of the old or all of the new.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator
from datetime import date
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset
from deltalake import DeltaTable
from deltalake.exceptions import TableNotFoundError

from pipelines import places
from pipelines.tables.files import is_s3
from pipelines.tables.publishing import DayWriter, Place, days_of
from recsys_moe.errors import UserError

BLOCK_ROWS = 131_072
"""Rows that are read at once where a day is read in blocks."""
TableName = Literal[
    "interactions",
    "outcomes",
    "rejected",
    "ingested",
    "users",
    "items",
    "daily_counts",
    "daily_recent",
    "examples",
    "scores",
]


class Tables:
    """The tables of one recommender.

    Args:
        storage: the folder that holds them, local or `s3://bucket/folder`; made when something is first written.
    """

    def __init__(self, storage: str | Path) -> None:
        self.storage = str(storage)

    def path(self, name: TableName) -> str:
        """The folder of a table."""
        return places.join(self.storage, "tables", name)

    def exists(self, name: TableName) -> bool:
        """Whether anything was ever written to the table."""
        return self.place(name).exists()

    def place(self, name: TableName) -> Place:
        """The ways to a table's log and files."""
        return Place(self.path(name))

    def replace_day(self, name: TableName, ds: date, rows: pa.Table | pa.RecordBatchReader) -> int:
        """Publish `rows` as the whole of day `ds`, at once. Returns the table's version that has them.

        Streams: files are written as the rows come, and seen by nobody before the end. A day that has these very rows
        already is left as it is, so that a step run again changes nothing that was derived from it. A write that lost
        to one of another day (both made the table, or added columns) is repeated.

        Raises:
            UserError: another process published the same day meanwhile; its rows stand. Or a column is of another
                kind than in the table.
        """
        with self.day_writer(name, ds, rows.schema) as writer:
            for piece in [rows] if isinstance(rows, pa.Table) else rows:
                writer.write(piece)
            return writer.publish()

    def day_writer(self, name: TableName, ds: date, schema: pa.Schema) -> DayWriter:
        """The same in pieces, for rows that a step makes for several tables at once:
        `with tables.day_writer(…) as writer: writer.write(batch); version = writer.publish()`."""
        return DayWriter(self.place(name), ds, schema)

    def version(self, name: TableName) -> int | None:
        """The table's newest version, or None where there is no table."""
        found = self.place(name).find()
        return found.version() if found else None

    def days(self, name: TableName) -> list[date]:
        """The days that have rows, oldest first."""
        found = self.place(name).find()
        return days_of(found) if found else []

    def dataset(self, name: TableName, version: int | None = None) -> pyarrow.dataset.FileSystemDataset:
        """The table as an Arrow dataset, to be filtered and read in streams.

        Raises:
            UserError: there is no such table yet.
        """
        return self.place(name).dataset(self.delta(name, version))

    def read_day(self, name: TableName, ds: date, columns: list[str] | None = None) -> pa.Table:
        """One day's rows; empty where the day has none."""
        return self.dataset(name).to_table(filter=pc.field("ds") == ds, columns=columns)

    def count(self, name: TableName, days: Iterable[date]) -> int:
        """How many rows some days have together; Parquet's footers tell it."""
        dataset = self.dataset(name)
        return int(dataset.count_rows(filter=pc.field("ds").isin(pa.array(days, pa.date32()))))

    def read_blocks(
        self, name: TableName, ds: date, columns: list[str] | None = None, coded: Collection[str] = ()
    ) -> Iterator[pa.RecordBatch]:
        """One day's rows, `BLOCK_ROWS` or fewer at a time: memory does not grow with the day.

        Text of the columns `coded` comes as dictionaries, as Parquet holds it, for readers that look at each distinct
        value once.

        Raises:
            UserError: no day has one of the columns.
        """
        place = self.place(name)
        dataset = place.dataset(self.delta(name), coded)
        if lacking := sorted(set(columns or ()) - set(dataset.schema.names)):
            raise UserError(f"{self.path(name)}: no day has a column {lacking[0]!r}; run `recsys-moe prepare` again")
        # As little ahead as keeps a reader busy: each row group that waits is in memory. Of a local file Arrow would
        # read all that is asked for before it begins.
        ahead = pyarrow.dataset.ParquetFragmentScanOptions(pre_buffer=is_s3(place.folder))
        scanner = dataset.scanner(
            columns=columns,
            filter=pc.field("ds") == ds,
            batch_size=BLOCK_ROWS,
            batch_readahead=1,
            fragment_readahead=1,
            fragment_scan_options=ahead,
        )
        yield from scanner.to_batches()

    def fingerprint(self, name: TableName, days: Iterable[date]) -> str:
        """A digest that changes when a row of these days may have, and only then.

        Files of a table are never changed, only added and removed, so their names stand for their content.
        """
        wanted = {f"ds={day.isoformat()}" for day in days}
        found = self.place(name).find()
        paths = found.file_uris() if found else []
        names = sorted("/".join(Path(path).parts[-2:]) for path in paths)
        chosen = [path for path in names if path.split("/")[0] in wanted]
        return hashlib.sha256("\n".join(chosen).encode()).hexdigest()[:16]

    def delta(self, name: TableName, version: int | None = None) -> DeltaTable:
        """The table in Delta's terms, at its newest version or another.

        Raises:
            UserError: there is no such table yet.
        """
        try:
            return self.place(name).open(version)
        except TableNotFoundError:
            step = dict.fromkeys(("interactions", "outcomes", "rejected", "ingested", "users", "items"), "ingest")
            step["scores"] = "score"
            raise UserError(
                f"{self.path(name)}: there is no table {name} yet; run `recsys-moe {step.get(name, 'prepare')}` first"
            ) from None
