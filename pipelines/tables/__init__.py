"""Delta tables under a recommender's storage folder: the only place that reads or writes them, or builds their paths.

Every table is partitioned by `ds`, the day that brought its rows, and a day is replaced as a whole:
a reader sees all of the old or all of the new.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from datetime import date
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset
import pyarrow.fs
from deltalake import DeltaTable, write_deltalake
from deltalake.exceptions import CommitFailedError, TableNotFoundError

from recsys_moe.errors import UserError

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

# Without this, ordinary writes drop log entries older than 30 days, and with them versions that a model names.
_CONFIGURATION: dict[str, str | None] = {"delta.enableExpiredLogCleanup": "false"}
_ATTEMPTS = 5


class Tables:
    """The tables of one recommender.

    Args:
        storage: the folder that holds them; made when something is first written.
    """

    def __init__(self, storage: str | Path) -> None:
        self.storage = Path(storage)

    def path(self, name: TableName) -> Path:
        """The folder of a table."""
        return self.storage / "tables" / name

    def exists(self, name: TableName) -> bool:
        """Whether anything was ever written to the table."""
        return DeltaTable.is_deltatable(str(self.path(name)))

    def replace_day(self, name: TableName, ds: date, rows: pa.Table) -> int:
        """Publish `rows` as the whole of day `ds`, at once. Returns the table's version that has them.

        A day that has these very rows already is left as it is, so that a step run again changes nothing that was
        derived from it. A write that lost to one of another day (both made the table, or added columns) is repeated.

        Raises:
            UserError: another process published the same day meanwhile; its rows stand. Or a column is of another
                kind than in the table, which Delta would cast where it can: `007` would become 7.
        """
        # In one piece: the writer makes a file of each chunk, and files come back in any order.
        rows = rows.append_column("ds", pa.repeat(pa.scalar(ds, pa.date32()), len(rows))).combine_chunks()
        if (version := self.version(name)) is not None:
            self._check_columns(name, rows.schema)
            if _same(self.read_day(name, ds), rows):
                return version
        before = self.fingerprint(name, [ds])
        for _ in range(_ATTEMPTS):
            try:
                return self._overwrite_day(name, ds, rows)
            except CommitFailedError:
                if self.fingerprint(name, [ds]) != before:
                    break
        raise UserError(
            f"{self.path(name)}: another run published {ds} of {name} at the same time and won; run this step again"
        )

    def _overwrite_day(self, name: TableName, ds: date, rows: pa.Table) -> int:
        """One try. The table is made first and empty: without it there is no condition to overwrite by, and a table
        that another process makes in the meantime would be overwritten whole."""
        path = str(self.path(name))
        if not self.exists(name):
            DeltaTable.create(path, rows.schema, mode="ignore", partition_by=["ds"], configuration=_CONFIGURATION)
        table = DeltaTable(path)
        write_deltalake(table, rows, mode="overwrite", predicate=f"ds = '{ds.isoformat()}'", schema_mode="merge")
        return table.version()

    def _check_columns(self, name: TableName, new: pa.Schema) -> None:
        old = {field.name.lower(): field for field in self.dataset(name).schema}
        for field in new:
            known = old.get(field.name.lower(), field)
            was, now = _kind(known.type), _kind(field.type)
            if known.name != field.name:
                problem = f"was called {known.name!r} before"
            elif was != now and not pa.types.is_null(field.type):
                problem = f"holds {was} and would now get {now}"
            else:
                continue
            raise UserError(
                f"{self.path(name)}: column {field.name!r} {problem}; where the YAML has changed, give it "
                "a new storage folder, or remove this one"
            )

    def version(self, name: TableName) -> int | None:
        """The table's newest version, or None where there is no table."""
        return self._open(name, None).version() if self.exists(name) else None

    def days(self, name: TableName) -> list[date]:
        """The days that have rows, oldest first."""
        if not self.exists(name):
            return []
        return sorted({date.fromisoformat(part["ds"]) for part in self._open(name, None).partitions()})

    def dataset(self, name: TableName, version: int | None = None) -> pyarrow.dataset.Dataset:
        """The table as an Arrow dataset, to be filtered and read in streams.

        Raises:
            UserError: there is no such table yet.
        """
        table = self._open(name, version)
        # Arrow's own file system, not delta-rs's: with the latter some interpreters abort at exit (decision 0003).
        folder = pyarrow.fs.SubTreeFileSystem(str(self.path(name)), pyarrow.fs.LocalFileSystem())
        return table.to_pyarrow_dataset(filesystem=folder)

    def read_day(self, name: TableName, ds: date, columns: list[str] | None = None) -> pa.Table:
        """One day's rows; empty where the day has none."""
        return self.dataset(name).to_table(filter=pc.field("ds") == ds, columns=columns)

    def fingerprint(self, name: TableName, days: Iterable[date]) -> str:
        """A digest that changes when a row of these days may have, and only then.

        Files of a table are never changed, only added and removed, so their names stand for their content.
        """
        wanted = {f"ds={day.isoformat()}" for day in days}
        paths = self._open(name, None).file_uris() if self.exists(name) else []
        names = sorted("/".join(Path(path).parts[-2:]) for path in paths)
        chosen = [path for path in names if path.split("/")[0] in wanted]
        return hashlib.sha256("\n".join(chosen).encode()).hexdigest()[:16]

    def _open(self, name: TableName, version: int | None) -> DeltaTable:
        try:
            return DeltaTable(str(self.path(name)), version=version)
        except TableNotFoundError:
            step = {"interactions": "ingest", "users": "ingest", "items": "ingest", "scores": "score"}
            raise UserError(
                f"{self.path(name)}: there is no table {name} yet; run `recsys-moe {step.get(name, 'prepare')}` first"
            ) from None


def _same(old: pa.Table, new: pa.Table) -> bool:
    """Whether a day's rows are the new ones, in the same order; columns that other days brought are null."""
    others = [column for column in old.column_names if column not in new.column_names]
    if len(old) != len(new) or any(old.column(column).null_count < len(old) for column in others):
        return False
    kinds = [old.schema.field(column) for column in new.column_names if column in old.column_names]
    if len(kinds) < new.num_columns:
        return False
    try:
        return bool(old.select(new.column_names).equals(new.cast(pa.schema(kinds))))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return False


def _kind(column: pa.DataType) -> str:
    """What a column holds, in a word; how it is stored does not matter."""
    if pa.types.is_dictionary(column):
        return _kind(column.value_type)
    if pa.types.is_string(column) or pa.types.is_large_string(column) or pa.types.is_string_view(column):
        return "text"
    if pa.types.is_integer(column) or pa.types.is_floating(column):
        return "numbers"
    if pa.types.is_timestamp(column):
        return "times"
    return "lists" if pa.types.is_nested(column) else str(column)
