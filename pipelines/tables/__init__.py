"""Delta tables under a recommender's storage folder: the only place that reads or writes them, or builds their paths.

Every table is partitioned by `ds`, the day that brought its rows, and a day is replaced as a whole:
a reader sees all of the old or all of the new.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from datetime import date
from itertools import groupby
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset
import pyarrow.fs
from deltalake import DeltaTable
from deltalake.exceptions import TableNotFoundError

from pipelines import places
from pipelines.tables.files import is_s3
from pipelines.tables.publishing import DayWriter, Place, days_of, files_of
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
    "prepared",
    "scores",
    "promotions",
]


class Tables:
    """The tables of one recommender.

    Args:
        storage: the folder that holds them, local or `s3://bucket/folder`; made when something is first written.
        versions: of tables that are read as they were then; of others the newest is.
    """

    def __init__(self, storage: str | Path, versions: Mapping[TableName, int] | None = None) -> None:
        self.storage, self._versions = str(storage), dict(versions or {})

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
        """The version of the table that is read, or None where there is no table."""
        found = self._find(name)
        return found.version() if found else None

    def days(self, name: TableName) -> list[date]:
        """The days that have rows, oldest first."""
        found = self._find(name)
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
        # Row group by row group, and nothing ahead: for a reader who is slower, a scan of the whole day would hold all
        # that it has read meanwhile. Of a local file Arrow would read all that is asked for before it begins.
        options = pyarrow.dataset.ParquetFragmentScanOptions(pre_buffer=is_s3(place.folder))
        for file in dataset.get_fragments(filter=pc.field("ds") == ds):
            for group in file.split_by_row_group():
                yield from group.to_batches(
                    schema=dataset.schema,
                    columns=columns,
                    batch_size=BLOCK_ROWS,
                    batch_readahead=0,
                    fragment_scan_options=options,
                )

    def fingerprint(self, name: TableName, days: Iterable[date]) -> str:
        """A digest that changes when a row of these days may have, and only then.

        Files of a table are never changed, only added and removed, so their names stand for their content.
        """
        found = self.files(name)
        chosen = [file for day in sorted(set(days)) for file in found.get(day, ())]
        return hashlib.sha256("\n".join(chosen).encode()).hexdigest()[:16]

    def files(self, name: TableName) -> dict[date, tuple[str, ...]]:
        """The files of each day, as `ds=…/name`, in order; a day without rows has none."""
        found = self._find(name)
        parts = sorted(tuple(path.split("/")[-2:]) for path in (found.file_uris() if found else []))
        days = groupby(parts, key=lambda part: part[0])
        return {date.fromisoformat(ds.removeprefix("ds=")): tuple(map("/".join, files)) for ds, files in days}

    def delta(self, name: TableName, version: int | None = None) -> DeltaTable:
        """The table in Delta's terms, at the version that is read or another.

        Raises:
            UserError: there is no such table yet.
        """
        try:
            return self.place(name).open(self._versions.get(name) if version is None else version)
        except TableNotFoundError:
            step = dict.fromkeys(("interactions", "outcomes", "rejected", "ingested", "users", "items"), "ingest")
            step |= {"scores": "score", "promotions": "promote"}
            raise UserError(
                f"{self.path(name)}: there is no table {name} yet; run `recsys-moe {step.get(name, 'prepare')}` first"
            ) from None

    def check_whole(self, name: TableName, through: date) -> None:
        """See that all files of the days up to one, at the version that is read, are there still.

        Raises:
            UserError: the table never had this version, or files of it are deleted.
        """
        newest, wanted = self.place(name).find(), self._versions.get(name)
        if newest is None or (wanted is not None and wanted > newest.version()):
            raise UserError(f"{self.path(name)}: has no version {wanted}; is it another table than then?")
        table, days = self.delta(name), [day for day in self.days(name) if day <= through]
        paths = sorted(path for day in days for path in files_of(table, day))
        gone = [
            info for info in self.place(name).folder.get_file_info(paths) if info.type == pyarrow.fs.FileType.NotFound
        ]
        if gone:
            raise UserError(
                f"{self.path(name)}: {len(gone)} of the {len(paths)} files that version {wanted} had on these days are "
                "deleted, by `recsys-moe maintain` or another vacuum"
            )

    def _find(self, name: TableName) -> DeltaTable | None:
        return self.delta(name) if name in self._versions else self.place(name).find()
