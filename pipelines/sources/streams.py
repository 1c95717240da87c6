"""The bytes of a text file, unpacked and looked at as they pass: is it text, and are its quotes closed."""

from __future__ import annotations

import codecs
from threading import Lock
from typing import Self

import pyarrow as pa

from pipelines.sources.files import File
from recsys_moe.errors import UserError

BLOCK = 16 << 20
"""Bytes that are parsed at once. No row may be longer."""

_HEAD = 1 << 20
_COMPRESSION = {".gz": "gzip", ".zst": "zstd"}
_OTHER_FORMATS = {
    b"\x1f\x8b": "is compressed with gzip (once more?); its name should end in .gz, and it be compressed once",
    b"\x28\xb5\x2f\xfd": "is compressed with zstd (once more?); its name should end in .zst, and it be compressed once",
    b"PK\x03\x04": "is a zip archive; unpack it, or compress it with gzip or zstd",
    b"PAR1\x15": "is a Parquet file; say format: parquet",
    codecs.BOM_UTF16_LE: "is text in UTF-16; text must be UTF-8",
    codecs.BOM_UTF16_BE: "is text in UTF-16; text must be UTF-8",
}


def unpacked(file: File) -> pa.NativeFile:
    """The file's bytes, as its ending says: `.gz`, `.zst`, or plain."""
    system, path = file.place
    compression = next((kind for end, kind in _COMPRESSION.items() if path.lower().endswith(end)), None)
    return system.open_input_stream(path, compression=compression)


class TextStream:
    """A file's text as UTF-8 bytes: a file object for Arrow's readers, closed where its `with` ends.

    `position` counts the bytes that were read, `quotes` the double quotes among them; `head` is the first megabyte.
    Reading raises `UserError` at the first byte that is no UTF-8, and where the file is plainly of another format.
    """

    def __init__(self, file: File) -> None:
        self.file = file
        self.position = self.quotes = 0
        self._reading = Lock()
        self._source = unpacked(file)
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self.head = self._source.read(_HEAD)
        for magic, meaning in _OTHER_FORMATS.items():
            if self.head.startswith(magic):
                raise UserError(f"{file.uri}: {meaning}")
        self._ahead = self._checked(self.head)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def closed(self) -> bool:
        """Whether it is closed."""
        return bool(self._source.closed)

    def close(self) -> None:
        """Close the file below, when nobody reads it any more.

        Arrow reads ahead in a thread of its own. A file that is closed under its hands leaves it with a descriptor
        that the next file gets: it would take bytes from there.
        """
        with self._reading:
            self._source.close()

    def read(self, size: int) -> bytes:
        """The next bytes, checked; fewer than `size` only at the file's end."""
        with self._reading:
            block, self._ahead = self._ahead[:size], self._ahead[size:]
            return block + self._checked(self._source.read(size - len(block))) if len(block) < size else block

    def _checked(self, block: bytes) -> bytes:
        self._check(block)
        self.position += len(block)
        if b'"' in block:  # Most files have none, and to find none is ten times as fast as to count.
            self.quotes += block.count(b'"')
        return block

    def _check(self, block: bytes) -> None:
        pending = self._decoder.getstate()[0]
        if block.isascii() and not pending:
            return
        try:
            self._decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            at = self.position - len(pending) + error.start
            byte = (pending + block)[error.start]
            where = f"byte {at + 1} (line {_line_at(self.file, at)})"
            raise UserError(f"{self.file.uri}: {where} is no UTF-8: 0x{byte:02x}; save the file as UTF-8") from None


def _line_at(file: File, position: int) -> int:
    """The line, from 1, of a byte: found by reading the file once more, which only a bad one needs."""
    lines = 1
    with unpacked(file) as stream:
        while position > 0 and (block := stream.read(min(position, BLOCK))):
            lines += block.count(b"\n")
            position -= len(block)
    return lines
