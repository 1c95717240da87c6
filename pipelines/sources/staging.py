"""Rows laid out by day, as Parquet files on this machine: written with bounded memory, and read back as chunks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import date
from itertools import groupby, pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet

from pipelines.sources.chunks import Chunk, Malformed, no_rows

UNDATED = "undated"
"""The folder of rows without a day, as long as there is no first day that they could come with."""

_FILE = "source_file"
_MALFORMED = "malformed"
_MALFORMED_LINES = pa.schema(
    [("row", pa.int64()), ("reason", pa.string()), ("text", pa.string()), (_FILE, pa.string())]
)
_BYTES = 128 << 20
_ROWS = 1 << 17
_EPOCH = date(1970, 1, 1).toordinal()


class Parts:
    """Takes chunks, and writes them by day: all that waits at once, one file after the other.

    So any number of days needs one open file, and memory for 128 MB of rows.
    """

    NO_DAY = np.iinfo(np.int32).min

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._rows: dict[int, list[pa.RecordBatch]] = {}
        self._malformed: list[pa.RecordBatch] = []
        self._bytes = self._written = 0

    def add(self, chunk: Chunk, days: np.ndarray) -> None:
        """Take a chunk. `days` ([rows], int32) are its rows' days since 1970, `NO_DAY` where there is none."""
        rows = chunk.rows.append_column(_FILE, pa.array([chunk.file]).take(pa.array(np.zeros(len(days), np.int8))))
        if np.any(days[1:] < days[:-1]):
            order = np.argsort(days, kind="stable")
            rows, days = rows.take(pa.array(order)), days[order]
        edges = [0, *(np.flatnonzero(np.diff(days)) + 1).tolist(), len(days)] if len(days) else []
        for start, end in pairwise(edges):
            self._rows.setdefault(int(days[start]), []).append(rows.slice(start, end - start))
        if chunk.malformed:
            lines = [{**vars(line), _FILE: chunk.file} for line in chunk.malformed]
            self._malformed.append(pa.RecordBatch.from_pylist(lines, schema=_MALFORMED_LINES))
        self._bytes += rows.nbytes + sum(len(line.text) for line in chunk.malformed)
        if self._bytes > _BYTES:
            self._write()

    def finish(self) -> None:
        """Write what is left; rows without a day, and malformed lines, go to the first day."""
        self._write()
        undated, first = self.folder / UNDATED, min(self.folder.glob("day=*"), default=None)
        if undated.exists() and first is not None:
            for part in list(undated.iterdir()):
                part.rename(first / part.name)
            undated.rmdir()

    def _write(self) -> None:
        for day, batches in sorted(self._rows.items()):
            name = UNDATED if day == self.NO_DAY else f"day={date.fromordinal(_EPOCH + day)}"
            # Chunks may differ in their types, a file may not.
            for _, alike in groupby(batches, key=lambda batch: batch.schema):
                self._write_part(name, list(alike), "rows")
        if self._malformed:
            self._write_part(UNDATED, self._malformed, _MALFORMED)
        self._rows, self._malformed, self._bytes = {}, [], 0

    def _write_part(self, name: str, batches: list[pa.RecordBatch], what: str) -> None:
        path = self.folder / name / f"{self._written:08}-{what}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pyarrow.parquet.write_table(pa.Table.from_batches(batches), path, compression="lz4")
        self._written += 1


def read_parts(folder: Path, wanted: Sequence[str]) -> Iterator[Chunk]:
    """The chunks of a day, in the order in which they were written."""
    for path in sorted(folder.glob("*.parquet")):
        with pyarrow.parquet.ParquetFile(path) as parquet:
            for batch in parquet.iter_batches(_ROWS):
                for file, rows in _by_file(batch):
                    yield _malformed(file, rows, wanted) if path.stem.endswith(_MALFORMED) else Chunk(file, rows)


def _by_file(batch: pa.RecordBatch) -> Iterator[tuple[str, pa.RecordBatch]]:
    """Runs of rows that are of one file."""
    runs = pyarrow.compute.run_end_encode(batch.column(_FILE))
    rows, start = batch.drop_columns([_FILE]), 0
    for file, end in zip(runs.values.to_pylist(), runs.run_ends.to_pylist(), strict=True):
        yield file, rows.slice(start, end - start)
        start = end


def _malformed(file: str, rows: pa.RecordBatch, wanted: Sequence[str]) -> Chunk:
    return Chunk(file, no_rows(wanted), tuple(Malformed(**line) for line in rows.to_pylist()))
