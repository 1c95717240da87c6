"""Encoded rows as batches: read piece by piece, shuffled in buffers, from any step on, and ahead of the consumer.

The order of an epoch depends on the seed, the epoch, the number of rows and of rows in a buffer alone: the pieces of
the file in a drawn order, gathered into buffers, and the rows of each buffer shuffled. What fits into one buffer is
shuffled as a whole. So where a step begins is known by arithmetic, and nothing that lies before it has to be read.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from recsys_moe.batch import Batch
from recsys_moe.encoding.columns import RawTable, block_of
from recsys_moe.encoding.encoder import ROW, Encoder
from recsys_moe.encoding.prefetching import prefetched
from recsys_moe.encoding.spool import Spool
from recsys_moe.errors import UserError

PIECE_ROWS = 8192
"""Rows that are read at once: about a megabyte, so that a piece read from anywhere costs no more than in order."""

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class EncodedRows:
    """Encoded rows in an Arrow IPC file, in record batches of `PIECE_ROWS` rows, the last one of what is left.

    It is read as a plain file: what was read of a memory-mapped one would count as memory of the process.
    """

    path: Path
    num_rows: int

    @classmethod
    def write(cls, path: Path, encoder: Encoder, tables: Iterable[RawTable]) -> Self:
        """Encode tables of raw rows, one after the other, into a file, which appears when it is whole.

        Raises:
            UserError: a raw column is missing or cannot be read as its kind.
        """
        part = path.with_name(f"{path.name}.part")
        blocks = (block for table in tables for block in encoder.encoded_blocks(table))
        rows = 0
        with pa.OSFile(str(part), "wb") as file, pa.ipc.new_file(file, encoder.schema) as writer:
            for piece in _pieces(blocks):
                writer.write_batch(piece)
                rows += piece.num_rows
        os.replace(part, path)
        return cls(path, rows)

    @classmethod
    def write_fitted(
        cls, path: Path, fit: Callable[[Iterable[pa.RecordBatch]], Encoder], blocks: Iterable[pa.RecordBatch]
    ) -> tuple[Encoder, Self]:
        """Fit an encoder to blocks of raw rows, then encode these: each is asked for once.

        In between they are in a file beside `path`, of about twice its size.

        Raises:
            UserError: what `fit` raises.
        """
        with Spool(path.with_name(f"{path.name}.raw")) as spool:
            encoder = fit(spool.kept(blocks))
            return encoder, cls.write(path, encoder, spool.again())

    @classmethod
    def open(cls, path: Path) -> Self:
        """What `write` has written.

        Raises:
            OSError, pa.ArrowInvalid: there is no file, or it is no Arrow IPC file.
        """
        with pa.OSFile(str(path)) as file:
            reader = pa.ipc.open_file(file)
            whole, last = reader.num_record_batches - 1, 0
            if whole >= 0:
                last = reader.get_batch(whole).num_rows
            return cls(path, max(whole, 0) * PIECE_ROWS + last)

    def pieces(self, numbers: Iterable[int]) -> Iterator[pa.RecordBatch]:
        """The pieces of these numbers, read when they are asked for."""
        with pa.OSFile(str(self.path)) as file:
            reader = pa.ipc.open_file(file)
            for number in numbers:
                yield reader.get_batch(number)


@dataclass(frozen=True)
class _TableRows:
    """Encoded rows in memory, cut as those of a file."""

    table: pa.Table

    @property
    def num_rows(self) -> int:
        return int(self.table.num_rows)

    def pieces(self, numbers: Iterable[int]) -> Iterator[pa.RecordBatch]:
        return (block_of(self.table, number * PIECE_ROWS, PIECE_ROWS) for number in numbers)


class Loader:
    """Batches of encoded rows from any step on: this process's share of each global batch."""

    def __init__(
        self,
        encoder: Encoder,
        rows: EncodedRows | pa.Table,
        batch_size: int,
        *,
        shuffle: int | None = None,
        rank: int = 0,
        world: int = 1,
        buffer_rows: int = 262_144,
    ) -> None:
        """`shuffle` is the seed, None leaves rows in order; of each batch this process takes every `world`-th row.

        `buffer_rows` are shuffled together, in whole pieces of `PIECE_ROWS` and at least one. While the next ones are
        read, four times as many are in memory at most.

        Raises:
            UserError: a batch has not a row for each process.
        """
        if batch_size < world:
            raise UserError(f"training.batch_size: {batch_size} rows are too few to share among {world} processes")
        self.encoder, self.batch_size, self.shuffle = encoder, batch_size, shuffle
        self.rank, self.world = rank, world
        self._rows = _TableRows(rows) if isinstance(rows, pa.Table) else rows
        self._buffer_pieces = max(1, buffer_rows // PIECE_ROWS)

    @property
    def num_rows(self) -> int:
        """Rows of an epoch, of all processes together."""
        return self._rows.num_rows

    @property
    def steps(self) -> int:
        """Global batches of an epoch. A last one of fewer rows than processes is left out."""
        whole, rest = divmod(self.num_rows, self.batch_size)
        return whole + (rest >= self.world)

    def batches(self, epoch: int = 0, first_step: int = 0) -> Generator[Batch]:
        """The batches of an epoch from `first_step` on, the same ones whatever step is the first.

        They are made ahead, in a thread that ends with the iterator.
        """
        return prefetched(self._batches(epoch, first_step))

    def _batches(self, epoch: int, first_step: int) -> Iterator[Batch]:
        buffers = self._buffers(epoch, first_step * self.batch_size)
        held = next(buffers, None)
        for step in range(first_step, self.steps):
            rows = min(self.batch_size, self.num_rows - step * self.batch_size)
            wanted, parts = len(range(self.rank, rows, self.world)), []
            while wanted:
                assert held is not None
                parts.append(held.slice(0, wanted))
                wanted -= parts[-1].num_rows
                held = held.slice(parts[-1].num_rows) if held.num_rows > parts[-1].num_rows else next(buffers, None)
            yield self.encoder.to_batch(pa.concat_batches(parts))

    def _buffers(self, epoch: int, first_row: int) -> Iterator[pa.RecordBatch]:
        """This process's rows of each buffer, in the epoch's order, from the one on that is `first_row` in it."""
        order, start = self._shuffled(np.arange(-(-self.num_rows // PIECE_ROWS)), epoch), 0
        for number in range(0, len(order), self._buffer_pieces):
            pieces = order[number : number + self._buffer_pieces]
            rows = self._rows_of(pieces)
            at = np.arange(start, start + len(rows))
            is_mine = (at >= first_row) & (at % self.batch_size % self.world == self.rank)
            start += len(rows)
            if is_mine.any():
                places = self._shuffled(np.arange(len(rows)), epoch, 1 + number)
                yield self._gathered(pieces, rows, places[is_mine])

    def _gathered(self, pieces: Rows, rows: Rows, places: Rows) -> pa.RecordBatch:
        """The rows at some places of a buffer. A function of its own, so that the buffer does not outlive it."""
        buffer = pa.concat_batches(list(self._rows.pieces(pieces)))
        return buffer.append_column(ROW, pa.array(rows)).take(pa.array(places))

    def _shuffled(self, rows: Rows, *key: int) -> Rows:
        """In the order that the key draws. A 0 at its end would change nothing, so no two keys may differ by that."""
        return rows if self.shuffle is None else np.random.default_rng((self.shuffle, *key)).permutation(rows)

    def _rows_of(self, pieces: Rows) -> Rows:
        starts = pieces * PIECE_ROWS
        ends = np.minimum(starts + PIECE_ROWS, self.num_rows)
        return np.concatenate([np.arange(start, end) for start, end in zip(starts, ends, strict=True)])


def _pieces(blocks: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The same rows in record batches of `PIECE_ROWS`, the last one of what is left."""
    rest: list[pa.RecordBatch] = []
    for block in blocks:
        rows = pa.concat_batches([*rest, block])
        whole = rows.num_rows - rows.num_rows % PIECE_ROWS
        yield from (rows.slice(start, PIECE_ROWS) for start in range(0, whole, PIECE_ROWS))
        rest = [rows.slice(whole)]
    yield from (part for part in rest if part.num_rows)
