"""A folder below the storage, here or on S3, where a scoring keeps what is not published yet."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.dataset
import pyarrow.fs
import pyarrow.parquet as pq

from pipelines import places, sql
from pipelines.errors import TryAgainError
from recsys_moe.errors import UserError

FOLDER = "scoring"
"""Below the storage: a folder for each plan."""
_LEFT_BEHIND = timedelta(days=2)
"""A folder in which nothing was written for longer is of a scoring that nobody has gone on with."""


class Staging:
    """Files that are there as a whole or not at all.

    Args:
        path: the folder, local or `s3://bucket/…`; made when something is written.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._system, self._folder = places.file_system(path)

    def place(self, name: str) -> str:
        """The path of a file."""
        return places.join(self.path, name)

    def exists(self, name: str) -> bool:
        """Whether a file was written."""
        return bool(self._system.get_file_info(self._of(name)).type == pyarrow.fs.FileType.File)

    @contextmanager
    def writing(self, name: str) -> Iterator[pa.NativeFile]:
        """A file to write to, which is there once the block has ended well.

        Raises:
            UserError: it cannot be written; the disk may be full.
            TryAgainError: S3 fails, or another process has cleared the folder meanwhile.
        """
        # On S3, too: there, a block that fails closes its file, and with that a part of it would be there.
        beside = self._of(f".{name}-{uuid.uuid4().hex}")
        try:
            if not self._is_s3:
                self._system.create_dir(self._folder, recursive=True)
            with self._system.open_output_stream(beside) as file:
                yield file
            self._system.move(beside, self._of(name))
        except FileNotFoundError as error:
            raise TryAgainError(
                f"{self.place(name)}: was removed while it was written; is another process at the same? Run this again"
            ) from error
        except OSError as error:
            kind = TryAgainError if self._is_s3 else UserError
            raise kind(f"{self.place(name)}: cannot be written: {' '.join(str(error).split())}") from error
        finally:
            with suppress(OSError):  # it has its name already, or is seen by nobody
                self._system.delete_file(beside)

    def write_json(self, name: str, value: Any) -> None:
        """Write what JSON can hold."""
        with self.writing(name) as file:
            file.write(json.dumps(value, indent=2).encode())

    def read_json(self, name: str) -> Any:
        """What was written so."""
        with self._system.open_input_stream(self._of(name)) as file:
            return json.loads(file.read())

    def write_rows(self, name: str, schema: pa.Schema, groups: Iterable[pa.Table | pa.RecordBatch]) -> None:
        """Write Parquet, each of `groups` as a row group."""
        with self.writing(name) as file, pq.ParquetWriter(file, schema) as writer:
            for rows in groups:
                if len(rows):
                    writer.write_table(_as_table(rows), row_group_size=len(rows))

    @contextmanager
    def parquet(self, name: str) -> Iterator[pq.ParquetFile]:
        """A Parquet file, open."""
        with self._system.open_input_file(self._of(name)) as file, pq.ParquetFile(file) as found:
            yield found

    def dataset(
        self, names: list[str], format: pyarrow.dataset.ParquetFileFormat | None = None
    ) -> pyarrow.dataset.FileSystemDataset:
        """The rows of some Parquet files, in that order."""
        folder = pyarrow.fs.SubTreeFileSystem(self._folder, self._system)
        found = pyarrow.dataset.dataset(names, format=format or "parquet", filesystem=folder)
        assert isinstance(found, pyarrow.dataset.FileSystemDataset)
        return found

    def view(self, connection: duckdb.DuckDBPyConnection, alias: str, names: list[str]) -> None:
        """Make the rows of some Parquet files a view of the connection; local ones it reads by itself, which is
        quicker."""
        if self._is_s3:
            connection.register(alias, self.dataset(names))
            return
        files = ", ".join(sql.text(self._of(name)) for name in names)
        connection.execute(
            f"CREATE OR REPLACE TEMP VIEW {alias} AS FROM read_parquet([{files}], hive_partitioning = false)"
        )

    def clear(self, first: str, keep: str | None = None) -> None:
        """Remove all files but `keep`, if there are any, and `first` of all the one that says that the others are
        there."""
        found = self._system.get_file_info(pyarrow.fs.FileSelector(self._folder, allow_not_found=True))
        paths = {one.path.rpartition("/")[2]: one.path for one in found}
        for name in sorted(paths, key=lambda name: name != first):
            if name != keep:
                with suppress(FileNotFoundError):  # another process does the same
                    self._system.delete_file(paths[name])

    def remove_left_behind(self, first: str) -> None:
        """Remove the folders of this one's parent that were not written to for days; `first` of all, in each, the file
        that says that the others are there."""
        parent = self._folder.rpartition("/")[0]
        below = pyarrow.fs.FileSelector(parent, recursive=True, allow_not_found=True)
        newest: dict[str, datetime] = {}
        with suppress(FileNotFoundError):  # another process does the same, and what is left is for the next one
            for one in self._system.get_file_info(below):
                name = one.path[len(parent) + 1 :].partition("/")[0]
                if one.type == pyarrow.fs.FileType.File and one.mtime is not None:
                    newest[name] = max(newest.get(name, one.mtime), one.mtime)
        for name, written in newest.items():
            if written < datetime.now(UTC) - _LEFT_BEHIND:
                for remove, path in ((self._system.delete_file, f"{name}/{first}"), (self._system.delete_dir, name)):
                    with suppress(FileNotFoundError):
                        remove(f"{parent}/{path}")

    def remove(self) -> int:
        """Remove the folder with all that is in it. Returns how many bytes that was."""
        below = pyarrow.fs.FileSelector(self._folder, recursive=True, allow_not_found=True)
        found = self._system.get_file_info(below)
        if found:
            self._system.delete_dir(self._folder)
        return sum(one.size or 0 for one in found)

    @property
    def _is_s3(self) -> bool:
        return self.path.startswith(places.S3)

    def _of(self, name: str) -> str:
        return f"{self._folder}/{name}"


def _as_table(rows: pa.Table | pa.RecordBatch) -> pa.Table:
    return rows if isinstance(rows, pa.Table) else pa.Table.from_batches([rows])
