"""A quote that is never closed swallows the rest of a CSV: such a file is refused rather than cut short."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pyarrow as pa

from recsys_moe.errors import UserError


def refuse_open_quote(path: Path, delimiter: str) -> None:
    """Raise `UserError` if the file ends inside a quoted value, naming the line where that begins."""
    if _count_quotes(path) % 2 == 0:
        return
    with pa.input_stream(str(path), compression="detect") as stream:
        text = io.TextIOWrapper(stream, encoding="utf-8", errors="replace", newline="")
        reader = csv.reader(text, delimiter=delimiter, strict=True)
        while True:
            line = reader.line_num + 1
            try:
                if next(reader, None) is None:
                    return
            except csv.Error as error:
                # Other complaints, such as text after a closing quote, are about one row and not about the rest.
                if "unexpected end" in str(error) or "field larger" in str(error):
                    raise UserError(f"{path}: line {line} opens a quote that is never closed") from None


def _count_quotes(path: Path) -> int:
    count = 0
    with pa.input_stream(str(path), compression="detect") as stream:
        while block := stream.read(1 << 20):
            count += block.count(b'"')
    return count
