"""Files with a JSON object a line. Every value is kept as it is written: Arrow's own reader would guess that text is a
time and lose its offset, and give up on a column that has numbers in one line and text in another."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa


def columns_of(path: Path) -> list[str]:
    """The keys of all objects, in order of appearance."""
    return list(dict.fromkeys(key for _, record in _records(path) if isinstance(record, dict) for key in record))


def read(path: Path, columns: list[str]) -> tuple[pa.Table, list[tuple[int, str]]]:
    """The values of some keys as text, and the lines that hold no object, by number.

    A column in which any value is a list has lists of text. Booleans are 1 and 0.
    """
    records, bad = [], []
    for number, record in _records(path):
        if isinstance(record, dict):
            records.append(record)
        else:
            bad.append((number, str(record)))
    return pa.table({column: _column([record.get(column) for record in records]) for column in columns}), bad


def _records(path: Path) -> Iterator[tuple[int, Any]]:
    """Each line that is not blank, counted from 1: its object, or its text where it is none."""
    number = 0
    with pa.input_stream(str(path), compression="detect") as stream:
        for line in io.TextIOWrapper(stream, encoding="utf-8-sig"):
            if not line.strip():
                continue
            number += 1
            try:
                record = json.loads(line, parse_int=str, parse_float=str, parse_constant=str)
            except (json.JSONDecodeError, RecursionError):
                record = None
            yield number, record if isinstance(record, dict) else line.rstrip("\n")


def _column(values: list[Any]) -> pa.Array:
    if not any(isinstance(value, list) for value in values):
        return pa.array([_text(value) for value in values], pa.string())
    lists = [value if isinstance(value, list) or value is None else [value] for value in values]
    return pa.array([one and [_text(part) for part in one] for one in lists], pa.list_(pa.string()))


def _text(value: Any) -> str | None:
    if isinstance(value, bool):
        return str(int(value))
    return value if isinstance(value, str | None) else json.dumps(value, ensure_ascii=False)
