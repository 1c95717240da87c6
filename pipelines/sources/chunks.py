"""What every kind of source gives: chunks of rows, and the errors that name the file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipelines.errors import TryAgainError
from recsys_moe.errors import UserError

ROW_NUMBER = "source_row"
"""Position of a row in its file: of a CSV with its header as 1, else from 1. A blank line is none, and a row with line
breaks in its quotes is one."""

_UNREACHABLE = "NETWORK_CONNECTION"
# What S3 answers, as Arrow words it, and what it means.
_S3_MEANINGS = {
    "ACCESS_DENIED": "access is denied (403); check the credentials and the bucket's policy",
    "INVALID_ACCESS_KEY_ID": "access is denied (403); the access key is not known",
    "SIGNATURE_DOES_NOT_MATCH": "access is denied (403); the secret key is not that of the access key",
    "NO_SUCH_BUCKET": "there is no such bucket (404)",
    "NO_SUCH_KEY": "there is no such file (404)",
    _UNREACHABLE: "the server cannot be reached or does not answer; check AWS_ENDPOINT_URL and the network",
}


@dataclass(frozen=True)
class Malformed:
    """A line that could not be cut into columns."""

    row: int
    reason: str
    text: str


@dataclass(frozen=True)
class Chunk:
    """A piece of a source: `rows` has the wanted columns as they stood, by name, and then `source_row` (int64).

    `malformed` are the lines before and among these rows that are none. `file` is what messages and tables call the
    file.
    """

    file: str
    rows: pa.RecordBatch
    malformed: tuple[Malformed, ...] = ()


def numbered(rows: pa.RecordBatch, numbers: np.ndarray | Sequence[int]) -> pa.RecordBatch:
    """The columns by name, and the rows' numbers as the last."""
    return rows.select(sorted(rows.schema.names)).append_column(ROW_NUMBER, pa.array(numbers, pa.int64()))


def gathered(chunks: Iterable[Chunk], rows: int = 1 << 17) -> Iterator[Chunk]:
    """The same rows in fewer chunks, of about so many rows: what is done once for each chunk is then worth it."""
    waiting: list[Chunk] = []
    for chunk in chunks:
        first = waiting[0] if waiting else chunk
        if chunk.file != first.file or chunk.rows.schema != first.rows.schema:
            yield _joined(waiting)
            waiting = []
        waiting.append(chunk)
        if sum(len(one.rows) + len(one.malformed) for one in waiting) >= rows:
            yield _joined(waiting)
            waiting = []
    if waiting:
        yield _joined(waiting)


def _joined(chunks: list[Chunk]) -> Chunk:
    if len(chunks) == 1:
        return chunks[0]
    rows = pa.concat_batches([chunk.rows for chunk in chunks])
    return Chunk(chunks[0].file, rows, tuple(line for chunk in chunks for line in chunk.malformed))


def no_rows(columns: Sequence[str]) -> pa.RecordBatch:
    """What a source without rows has: the columns, as text."""
    return numbered(pa.record_batch({column: pa.array([], pa.string()) for column in columns}), [])


def check_header(title: str, header: Sequence[str], wanted: Sequence[str] = ()) -> None:
    """Raise `UserError` where a column has two places, or a wanted one none."""
    doubled = sorted({name for name in header if header.count(name) > 1})
    if doubled:
        raise UserError(f"{title}: the header has {doubled} twice; a column's name must be its own")
    lacking = [name for name in wanted if name not in header]
    if lacking:
        raise UserError(f"{title}: has no column {lacking[0]!r}; it has {', '.join(map(repr, header)) or 'none'}")


@contextmanager
def naming(title: str) -> Iterator[None]:
    """Turn complaints about a file, from Arrow or the system, into one line that names it."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        text = str(error)
        for code, meaning in _S3_MEANINGS.items():
            if f"AWS Error {code}" in text:
                raise (TryAgainError if code == _UNREACHABLE else UserError)(f"{title}: {meaning}") from None
        first_line = text.splitlines()[0] if text else type(error).__name__
        raise UserError(f"{title}: cannot be read: {first_line}") from None
