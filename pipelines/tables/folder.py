"""A table's folder as files: its data, and the entries of its Delta log as they are written.

Only the care of tables looks at a table like this; steps read and write through `pipelines.tables.Tables`.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.fs

from pipelines.tables.files import is_s3
from pipelines.tables.publishing import Place
from recsys_moe.errors import UserError

Action = dict[str, Any]
"""One line of a log entry: `{"add": {…}}`, `{"remove": {…}}`, `{"metaData": {…}}`, …"""

LOG = "_delta_log"
_ENTRY = re.compile(r"(\d{20})\.json")
_SUMMARY = re.compile(r"_last_checkpoint|\d{20}\.checkpoint\..*|\d{20}\.\d{20}\.compacted\.json")
_READERS = 8


class Folder:
    """The files of one table, on a local disk or on S3."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self._files = place.folder

    def data(self) -> dict[str, pyarrow.fs.FileInfo]:
        """The Parquet files by their path in the folder, whether or not the log knows them."""
        found = {info.path: info for info in self._listed("", recursive=True)}
        return {path: info for path, info in found.items() if path.endswith(".parquet") and not path.startswith("_")}

    def entries(self) -> list[str]:
        """The paths of the log's entries, oldest first.

        Raises:
            UserError: some are missing, so that not every version can be told.
        """
        names = sorted(name for name in self._log_names() if _ENTRY.fullmatch(name))
        if [int(name[:20]) for name in names] != list(range(len(names))):
            raise UserError(f"{self.place}: the log's first entries are gone, so its versions cannot be cared for")
        return [posixpath.join(LOG, name) for name in names]

    def history(self) -> Iterator[tuple[str, list[Action]]]:
        """Each of the log's entries with its actions, oldest first."""
        entries = self.entries()
        # On S3 each is a request of its own, which is mostly waiting.
        with ThreadPoolExecutor(_READERS) as readers:
            for entry, content in zip(entries, readers.map(self.read, entries), strict=True):
                yield entry, [json.loads(line) for line in content.splitlines() if line.strip()]

    def summaries(self) -> list[str]:
        """The paths of checkpoints and the like, which can be made again from the entries; the pointer first."""
        names = sorted(name for name in self._log_names() if _SUMMARY.fullmatch(name))
        return [posixpath.join(LOG, name) for name in sorted(names, key=lambda name: name != "_last_checkpoint")]

    def commits_since_checkpoint(self) -> int:
        """How many log entries a reader must read beside the newest checkpoint."""
        made = [int(posixpath.basename(path)[:20]) for path in self.summaries() if ".checkpoint." in path]
        return len(self.entries()) - max(made, default=-1) - 1

    def holds(self, path: str) -> bool:
        """Whether there is such a file."""
        return bool(self._files.get_file_info(path).type == pyarrow.fs.FileType.File)

    def read(self, path: str) -> bytes:
        """A small file's content."""
        with self._files.open_input_stream(path) as stream:
            return bytes(stream.read())

    def source(self, path: str) -> pa.NativeFile:
        """A file opened for reading at any place in it."""
        return self._files.open_input_file(path)

    def sink(self, path: str) -> pa.NativeFile:
        """A new file opened for writing."""
        return self._files.open_output_stream(path)

    def size(self, path: str) -> int:
        """A file's size in bytes."""
        return int(self._files.get_file_info(path).size)

    def replace(self, path: str, content: bytes) -> None:
        """Write a small file at once: a reader sees all of the old or all of the new."""
        # S3 shows an object only when it is whole.
        beside = path if is_s3(self._files) else f"{path}.new"
        with self.sink(beside) as stream:
            stream.write(content)
        if beside != path:
            self._files.move(beside, path)

    def replace_entry(self, path: str, actions: list[Action]) -> None:
        """Write an entry of the log anew."""
        self.replace(path, "".join(json.dumps(action) + "\n" for action in actions).encode())

    def delete(self, path: str) -> None:
        """Remove a file; nothing happens where it is gone already."""
        if self.holds(path):
            self._files.delete_file(path)

    def _log_names(self) -> list[str]:
        return [info.base_name for info in self._listed(LOG, recursive=False)]

    def _listed(self, below: str, recursive: bool) -> list[pyarrow.fs.FileInfo]:
        selector = pyarrow.fs.FileSelector(below, recursive=recursive, allow_not_found=True)
        return [info for info in self._files.get_file_info(selector) if info.type == pyarrow.fs.FileType.File]


def path_of(action: Action) -> str:
    """The file that the inner part of an `add` or a `remove` names; the log writes it percent-encoded."""
    return unquote(str(action["path"]))


def age_hours(info: pyarrow.fs.FileInfo) -> float:
    """Hours since a file was written."""
    return float((datetime.now(UTC) - info.mtime).total_seconds()) / 3600
