"""Files with a JSON object a line. Every value is kept as it is written: Arrow's own reader would guess that text is a
time and lose its offset, and give up on a column that has numbers in one line and text in another."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa

from pipelines.sources.chunks import Chunk, Malformed, numbered
from pipelines.sources.files import File
from pipelines.sources.streams import BLOCK, TextStream
from recsys_moe.errors import UserError

_ROWS = 50_000
_DECODER = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=str)


def columns_of(files: Sequence[File], most_bytes: int = 4 * BLOCK) -> list[str]:
    """The keys of all objects, in order of appearance, as far as the first 64 MB of text go.

    A key may be left out of an object, so that no single line, and no single file, tells.

    Raises:
        UserError: there is no object with a key.
    """
    names: dict[str, None] = {}
    for file in files:
        with TextStream(file) as stream:
            for line in _lines(stream):
                record = _record(line)
                names |= dict.fromkeys(record) if isinstance(record, dict) else {}
                if stream.position > most_bytes:
                    return list(names)
            most_bytes -= stream.position
    if not names:
        raise UserError(f"{files[0].uri}: none of its lines is a JSON object; there must be a whole one in each line")
    return list(names)


def read(file: File, wanted: Sequence[str]) -> Iterator[Chunk]:
    """The values of some keys as text, null where an object lacks one. Lines that hold no object are set aside.

    A column in which any value of the chunk is a list has lists of text. Booleans are 1 and 0.

    Raises:
        UserError: the text is no UTF-8, or a line is beyond measure.
    """
    with TextStream(file) as stream:
        lines = enumerate(_lines(stream), start=1)
        for piece in _pieces(lines):
            yield _chunk(file, piece, wanted)


def _pieces(lines: Iterable[tuple[int, bytes]]) -> Iterator[list[tuple[int, bytes]]]:
    """Lines in pieces of so many, or so many bytes."""
    piece: list[tuple[int, bytes]] = []
    size = 0
    for number, line in lines:
        piece.append((number, line))
        size += len(line)
        if len(piece) == _ROWS or size >= BLOCK:
            yield piece
            piece, size = [], 0
    if piece:
        yield piece


def _chunk(file: File, lines: list[tuple[int, bytes]], wanted: Sequence[str]) -> Chunk:
    records, numbers, malformed = [], [], []
    for number, line in lines:
        record = _record(line)
        if isinstance(record, dict):
            records.append(record)
            numbers.append(number)
        else:
            malformed.append(Malformed(number, record, line.decode().rstrip("\r\n")))
    columns = {column: _column([record.get(column) for record in records]) for column in wanted}
    return Chunk(file.name, numbered(pa.record_batch(columns), numbers), tuple(malformed))


def _lines(stream: TextStream) -> Iterator[bytes]:
    """Each line that is not blank."""
    rest = stream.read(BLOCK).removeprefix(codecs.BOM_UTF8)
    while rest:
        block = stream.read(BLOCK)
        *lines, rest = (rest + block).split(b"\n")
        yield from (line for line in lines if line.strip())
        if len(rest) > BLOCK:
            raise UserError(f"{stream.file.uri}: a line has over {BLOCK >> 20} MB; there must be one object a line")
        if not block:
            if rest.strip():
                yield rest
            return


def _record(line: bytes) -> dict[str, Any] | str:
    """The object of a line, or why it is none."""
    try:
        record = _DECODER.decode(line.decode())
        if b"\\u" in line:
            json.dumps(record, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return "has half of a pair of \\u escapes, which is no character"
    except (json.JSONDecodeError, RecursionError):
        return "is no JSON object"
    return record if isinstance(record, dict) else "is no JSON object"


def _column(values: list[Any]) -> pa.Array:
    if not any(isinstance(value, list) for value in values):
        return pa.array([_text(value) for value in values], pa.string())
    lists = [value if isinstance(value, list) or value is None else [value] for value in values]
    return pa.array([one and [_text(part) for part in one] for one in lists], pa.list_(pa.string()))


def _text(value: Any) -> str | None:
    if isinstance(value, bool):
        return str(int(value))
    return value if isinstance(value, str | None) else json.dumps(value, ensure_ascii=False)
