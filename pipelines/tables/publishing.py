"""How rows get into a table: files first, then one commit that replaces whole days, on the version that was looked at.

A commit succeeds only if nobody else has made one since (compare and swap on the table's version). Whoever comes
second looks again: another day's rows do not matter and the commit is tried anew; the same day's rows do.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from datetime import date
from types import TracebackType
from typing import Self

import pyarrow as pa
import pyarrow.dataset
import pyarrow.fs
from deltalake import CommitProperties, DeltaTable
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError
from deltalake.transaction import AddAction

from pipelines import places
from pipelines.errors import RaceLostError, TryAgainError
from pipelines.tables.files import DayFiles, same_rows
from pipelines.tables.schemas import merged, written
from recsys_moe.errors import UserError

# Without this, ordinary writes drop log entries older than 30 days, and with them versions that a model names.
_CONFIGURATION: dict[str, str | None] = {"delta.enableExpiredLogCleanup": "false"}
_ATTEMPTS, _PAUSE_SECONDS = 100, 0.2
_BATCH_ROWS = 131_072
_PATIENCE = {"connect_timeout": "5s", "timeout": "30s", "max_retries": "3", "retry_timeout": "60s"}
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class Place:
    """Where one table lies: its path, and the ways to its log and to its files."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __str__(self) -> str:
        return self.path

    @property
    def folder(self) -> pyarrow.fs.SubTreeFileSystem:
        """The table's folder. Arrow's own file system, not delta-rs's: with the latter some interpreters abort at
        exit (decision 0003)."""
        system, path = places.file_system(self.path)
        return pyarrow.fs.SubTreeFileSystem(path, system)

    def exists(self) -> bool:
        """Whether there is a table."""
        with reaching(self.path):
            return DeltaTable.is_deltatable(self.path, log_options(self.path))

    def open(self, version: int | None = None) -> DeltaTable:
        """The table, at its newest version or another.

        Raises:
            TableNotFoundError: there is none.
            UserError: the storage cannot be reached.
        """
        with reaching(self.path):
            return DeltaTable(self.path, version=version, storage_options=log_options(self.path))

    def find(self) -> DeltaTable | None:
        """The table at its newest version, or None where there is none."""
        try:
            return self.open()
        except TableNotFoundError:
            return None

    def dataset(self, table: DeltaTable, coded: Collection[str] = ()) -> pyarrow.dataset.FileSystemDataset:
        """The rows of an opened table, to be filtered and read in streams; `coded` text columns as dictionaries."""
        options = pyarrow.dataset.ParquetReadOptions(dictionary_columns=set(coded))
        return table.to_pyarrow_dataset(filesystem=self.folder, parquet_read_options=options)

    def find_or_create(self, schema: pa.Schema) -> DeltaTable:
        """The table; made, empty, if there is none. Of two processes that make it, both get the same one."""
        if found := self.find():
            return found
        options = log_options(self.path)
        try:
            with reaching(self.path):
                DeltaTable.create(
                    self.path, schema, "ignore", ["ds"], configuration=_CONFIGURATION, storage_options=options
                )
        except (CommitFailedError, UserError):
            if not self.exists():
                raise
        return self.open()


def log_options(path: str) -> dict[str, str] | None:
    """What delta-rs needs to keep a log on S3: each commit is a PUT that fails if the version is there already."""
    if not path.startswith(places.S3):
        return None
    options = {"aws_conditional_put": "etag", "aws_s3_allow_unsafe_rename": "false", **_PATIENCE}
    if endpoint := places.s3_endpoint():
        options |= {"aws_endpoint_url": endpoint, "aws_allow_http": str(endpoint.startswith("http://")).lower()}
    return options


@contextmanager
def reaching(path: str) -> Iterator[None]:
    """Say in one line that a storage cannot be reached.

    Raises:
        UserError: it cannot.
    """
    try:
        yield
    except (CommitFailedError, TableNotFoundError):
        raise
    except (DeltaError, OSError) as error:
        reason = " ".join(_COLOUR.sub("", str(error)).split())
        raise TryAgainError(f"{path}: the table cannot be reached: {reason}") from error


def schema_of(table: DeltaTable) -> pa.Schema:
    """A table's columns, `ds` among them."""
    return pa.schema(table.schema().to_arrow())


def files_of(table: DeltaTable, ds: date) -> frozenset[str]:
    """The files of a day, as paths in the table's folder."""
    uris = table.file_uris(file_pruning_predicate=[("ds", "=", ds.isoformat())])
    return frozenset("/".join(uri.split("/")[-2:]) for uri in uris)


def days_of(table: DeltaTable) -> list[date]:
    """The days that have rows, oldest first."""
    return sorted({date.fromisoformat(part["ds"]) for part in table.partitions()})


def commit(place: Place, table: DeltaTable, days: Mapping[date, list[AddAction]], schema: pa.Schema) -> int:
    """Replace whole days by these files, at once, if the table is still at the version that was opened.

    Returns the new version. Columns that `schema` has more than the table are added.

    Raises:
        CommitFailedError: somebody else has committed since; nothing was done.
        UserError: the storage failed; nobody knows whether the commit is there, so the files must stay.
    """
    try:
        with reaching(place.path):
            table.create_write_transaction(
                [action for actions in days.values() for action in actions],
                mode="overwrite",
                schema=schema,
                partition_by=["ds"],
                partition_filters=[("ds", "in", [ds.isoformat() for ds in days])],
                # None: delta-rs's own retry would write a schema that another writer has since added to.
                commit_properties=CommitProperties(max_commit_retries=0),
            )
    except CommitFailedError:
        # On S3, a request that is repeated because its answer was lost meets itself.
        own = {action.path for actions in days.values() for action in actions}
        rival = place.open(table.version() + 1)
        if not own or not own <= frozenset[str]().union(*(files_of(rival, ds) for ds in days)):
            raise
    return table.version() + 1


def attempts(path: str) -> Iterator[None]:
    """Tries at a commit, with a pause of random length between them.

    Raises:
        UserError: all of them failed.
    """
    for number in range(_ATTEMPTS):
        yield
        time.sleep(random.uniform(0, _PAUSE_SECONDS * min(1, (number + 1) / 8)))
    raise TryAgainError(f"{path}: {_ATTEMPTS} commits in a row met those of other runs; run this step again later")


class DayWriter:
    """The rows of one day on their way into a table. What is not published by the end of the `with` is removed.

    Args:
        place: the table.
        ds: the day that they replace.
        schema: of the rows, without `ds`.

    Raises:
        UserError: a column is of another kind than in the table.
    """

    def __init__(self, place: Place, ds: date, schema: pa.Schema) -> None:
        self._place, self._ds, self._rows = place, ds, schema.remove_metadata()
        table = place.find()
        self._schema = merged(place.path, schema_of(table) if table else None, self._rows)
        self._written = written(self._rows, self._schema)
        self._before = files_of(table, ds) if table else frozenset()
        self._files = DayFiles(place.folder, ds, self._written, place.path)
        self._complete: list[AddAction] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._files.__exit__(kind, error, trace)

    def write(self, rows: pa.RecordBatch | pa.Table) -> None:
        """Take rows; they are encoded in another thread while the caller makes more."""
        for batch in rows.to_batches(_BATCH_ROWS) if isinstance(rows, pa.Table) else [rows]:
            self._files.write(batch)

    def complete(self) -> None:
        """Write out all rows, so that `publish` is but a commit: a disk that is full is told before the first one."""
        if self._complete is None:
            self._complete = self._files.close()

    def publish(self) -> int:
        """Make the rows the whole of the day, at once. Returns the table's version that has them.

        A day that has these very rows already is left as it is, so that a step run again changes nothing that was
        derived from it.

        Raises:
            UserError: another process published other rows for the day since this writer was made; they stand.
        """
        self.complete()
        files = self._complete
        assert files is not None
        compared: frozenset[str] | None = None
        for _ in attempts(self._place.path):
            table = self._place.find_or_create(self._schema)
            current = files_of(table, self._ds)
            if current != compared and self._has_rows_of(table, current, files):
                return table.version()
            compared = current
            schema = merged(self._place.path, schema_of(table), self._rows)
            if current != self._before or written(self._rows, schema) != self._written:
                break
            self._files.keep()
            try:
                return commit(self._place, table, {self._ds: files}, schema)
            except CommitFailedError:
                self._files.keep(False)
        raise RaceLostError(
            f"{self._place}: another run published {self._ds} of {self._place.path.rpartition('/')[2]} at the same "
            "time and won; run this step again"
        )

    def _has_rows_of(self, table: DeltaTable, current: frozenset[str], files: list[AddAction]) -> bool:
        columns = schema_of(table)
        if not set(self._rows.names) <= set(columns.names):
            return False
        stored = columns.remove(columns.get_field_index("ds"))
        return same_rows(self._place.folder, current, [file.path for file in files], stored)
