"""Raw rows that are gone through twice and read from where they come from once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Self

import pyarrow as pa


class Spool:
    """A file of raw rows, which goes when the `with` block ends.

    It is not compressed: writing and reading it takes an eighth of the time of decoding Parquet again (of the rows of
    `benchmarks/loader.py`); with LZ4 it is more than half, for 9 % less space.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._path.unlink(missing_ok=True)

    def kept(self, blocks: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """The same blocks, all of one schema, each written before it is handed on."""
        blocks = iter(blocks)
        block = next(blocks, None)
        if block is None:
            return
        with pa.OSFile(str(self._path), "wb") as file, pa.ipc.new_stream(file, block.schema) as writer:
            while block is not None:
                writer.write_batch(block)
                yield block
                block = next(blocks, None)

    def again(self) -> Iterator[pa.RecordBatch]:
        """The blocks of `kept`, which has come to its end."""
        if self._path.exists():
            with pa.OSFile(str(self._path)) as file:
                yield from pa.ipc.open_stream(file)
