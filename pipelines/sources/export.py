"""An export of the whole history: read once, and laid out on this machine by the day of the event.

    workspace/staged/interactions/<digest>/day=2026-01-01/00000001.parquet

The digest is of all that decides the content: the files with their sizes and times of change, the columns, and how the
timestamp is read. What a query gives may change at any time, so that its digest is this process's own: it is run once
in each process.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from functools import cache
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

from pipelines import catalog, contract, sources, sql
from pipelines.config import Columns, OutcomeSource, Recommender, Source, Timestamp
from pipelines.sources import files
from pipelines.sources.chunks import Chunk, no_rows
from pipelines.sources.staging import UNDATED, Parts, read_parts
from recsys_moe.errors import UserError

_LAYOUT = 1


def staged(config: Recommender, ds: date) -> Iterator[Chunk]:
    """The rows of the log whose event lies on `ds`, from an export. Rows without a readable time, and lines that are
    none, come with the first day.

    The first call reads the whole export, later ones only their day. Other processes wait for the first.

    Raises:
        UserError: as `sources.read`, or the export was replaced while it was read.
    """
    return of_log(config).read(ds)


def of_log(config: Recommender) -> Export:
    """The export that the log is."""
    wanted = catalog.columns_of_log(config, date.min)
    source, columns = config.source.interactions, config.columns
    return Export("interactions", source, columns.timestamp, wanted, columns, config.workspace)


def of_outcome(config: Recommender, outcome: OutcomeSource, wanted: tuple[str, ...]) -> Export:
    """The export that a log of outcomes is. `wanted` must have its timestamp."""
    return Export(f"outcome_{outcome.name}", outcome, outcome.timestamp, wanted, config.columns, config.workspace)


@dataclass(frozen=True)
class Export:
    """A source without days of its own; `columns` says the time zone and what stands for nothing."""

    name: str
    source: Source
    timestamp: Timestamp
    wanted: tuple[str, ...]
    columns: Columns
    workspace: Path

    def days(self) -> list[date]:
        """The event days that it has, sorted.

        Raises:
            UserError: as `read`.
        """
        with self._staging() as folder:
            return sorted(date.fromisoformat(day.name.removeprefix("day=")) for day in folder.glob("day=*"))

    def read(self, ds: date) -> Iterator[Chunk]:
        """The rows of an event day, in the order of the files.

        Raises:
            UserError: as `sources.read`, or the export was replaced while it was read.
        """
        chunk = None
        with self._staging() as folder:
            # There is a folder of undated rows only where there is no day that they could have come with.
            part = folder / UNDATED if (folder / UNDATED).exists() else folder / f"day={ds}"
            for chunk in read_parts(part, self.wanted):
                yield chunk
        if chunk is None:
            yield Chunk(self.source.title.rpartition("/")[2], no_rows(self.wanted))

    @contextmanager
    def _staging(self) -> Iterator[Path]:
        """The folder of the export as it is now. Nobody removes it meanwhile: whoever builds waits for who reads."""
        root = self.workspace / "staged" / self.name
        root.mkdir(parents=True, exist_ok=True)
        folder = root / self._digest()
        # Tells `maintain` that it is in use.
        (root / "lock").touch()
        with (root / "lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH)
            while not folder.exists():
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not folder.exists():
                    self._build(folder)
                # Between the two locks another process may have replaced it.
                fcntl.flock(lock, fcntl.LOCK_SH)
            yield folder

    def _digest(self) -> str:
        content: list[object] = [_LAYOUT, sorted(self.wanted), self.timestamp.model_dump(), self.columns.timezone]
        content += [self.columns.missing, self.source.file_format, self.source.delimiter]
        if self.source.sql:
            content += [self.source.sql, self.source.connection, _this_process()]
        else:
            content += [(file.uri, file.size, file.changed) for file in files.locate(self.source, date.min)]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]

    def _build(self, folder: Path) -> None:
        """Read the export, and put it in place at once. What a killed process left, and older ones, are removed."""
        for old in [path for path in folder.parent.iterdir() if path.is_dir()]:
            shutil.rmtree(old)
        beside = folder.with_name("building")
        beside.mkdir()  # An export without rows has no parts that would make it.
        parts = Parts(beside)
        with sql.connect(self.columns.timezone) as connection:
            for chunk in sources.read(self.source, date.min, self.wanted):
                parts.add(chunk, self._days_of(connection, chunk.rows))
        parts.finish()
        if self._digest() != folder.name:
            raise UserError(f"{self.source.title}: was replaced while it was read; run again when it is complete")
        beside.rename(folder)

    def _days_of(self, connection: duckdb.DuckDBPyConnection, rows: pa.RecordBatch) -> np.ndarray:
        """Each row's event day, as days since 1970, or `NO_DAY`."""
        stamp = self.timestamp.name
        kind = rows.schema.field(stamp).type
        connection.register("raw", pa.table({stamp: rows.column(stamp)}))
        cleaned = f"{contract.clean(stamp, kind, self.columns.missing)} AS {sql.name(stamp)}"
        day = f"CAST({contract.event_time(self.timestamp, kind)} AS DATE)"
        days = sql.fetch(connection, f"SELECT {day} AS day FROM (SELECT {cleaned} FROM raw)").column("day")
        return np.asarray(days.cast(pa.int32()).fill_null(Parts.NO_DAY))


@cache
def _this_process() -> str:
    return uuid.uuid4().hex
