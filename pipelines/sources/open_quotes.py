"""A quote that is never closed swallows the rest of a CSV: such a file is refused rather than cut short."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator

from pipelines.sources.files import File
from pipelines.sources.streams import BLOCK, unpacked
from recsys_moe.errors import UserError


def refuse_open_quote(file: File, delimiter: str) -> None:
    """Raise `UserError` if the file ends inside a quoted value, naming the line where that begins.

    Slow: for files with an odd number of quotes, of which stray ones inside a value are no harm.
    """
    with unpacked(file) as stream:
        text = io.TextIOWrapper(stream, encoding="utf-8", errors="replace", newline="")
        reader = csv.reader(_lines(file, text), delimiter=delimiter, strict=True)
        while True:
            line = reader.line_num + 1
            try:
                if next(reader, None) is None:
                    return
            except csv.Error as error:
                # Other complaints, such as text after a closing quote, are about one row and not about the rest.
                if "unexpected end" in str(error) or "field larger" in str(error):
                    raise UserError(f"{file.uri}: line {line} opens a quote that is never closed") from None


def _lines(file: File, text: io.TextIOWrapper) -> Iterator[str]:
    """The lines, of which none takes more memory than a row may: a packed file may hold one of gigabytes."""
    number = 1
    while line := text.readline(BLOCK):
        if len(line) == BLOCK:
            raise UserError(f"{file.uri}: line {number} has over {BLOCK >> 20} MB")
        yield line
        number += 1
