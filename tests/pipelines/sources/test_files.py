"""Files in: every format gives the same rows, a bad line is set aside by number, a bad file is named in one line."""

from __future__ import annotations

import gzip
import io
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from pipelines import sources
from pipelines.config import Source

DAY = date(2026, 1, 1)
CSV = "u,i,note\n1,a,x\n2,b,y\n"


def write(folder: Path, name: str, content: str | bytes) -> Source:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return Source(path=str(path))


def zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return bytes(sink.getvalue())


def parquet(**columns: Any) -> bytes:
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "first"),
    [
        ("log.csv", CSV, 2),
        ("log.csv.gz", gzip.compress(CSV.encode()), 2),
        ("log.tsv", CSV.replace(",", "\t"), 2),
        ("bom.csv", b"\xef\xbb\xbf" + CSV.encode(), 2),
        ("windows.csv", CSV.replace("\n", "\r\n"), 2),
        ("no_last_newline.csv", CSV.rstrip(), 2),
        ("quoted.csv", '"u","i","note"\n"1","a","x"\n2,b,y\n', 2),
        ("log.jsonl", '{"u": 1, "i": "a", "note": "x"}\n{"u": 2, "i": "b", "note": "y"}\n', 1),
        ("log.ndjson.gz", gzip.compress(b'{"u": "1", "i": "a", "note": "x"}\n{"u": 2, "i": "b", "note": "y"}'), 1),
        ("bom.jsonl", b'\xef\xbb\xbf{"u": 1, "i": "a", "note": "x"}\n{"u": 2, "i": "b", "note": "y"}\n', 1),
        ("log.csv.zst", zstd(CSV.encode()), 2),
        ("log.jsonl.zst", zstd(b'{"u": 1, "i": "a", "note": "x"}\n{"u": 2, "i": "b", "note": "y"}\n'), 1),
        ("two.csv.gz", gzip.compress(CSV[:20].encode()) + gzip.compress(CSV[20:].encode()), 2),
        ("blank_lines.csv", "\n\n" + CSV + "\n\n", 2),
        ("other_order.csv", "note,u,i\nx,1,a\ny,2,b\n", 2),
        ("log.parquet", parquet(u=["1", "2"], i=["a", "b"], note=["x", "y"]), 1),
    ],
)
def test_every_format_gives_the_same_rows(
    tmp_path: Path, name: str, content: str | bytes, first: int, read_all: Any
) -> None:
    source = write(tmp_path, name, content)
    assert sorted(sources.columns_of(source, DAY)) == ["i", "note", "u"]
    rows, malformed = read_all(source)
    assert rows == {"u": ["1", "2"], "i": ["a", "b"], "note": ["x", "y"], "source_row": [first, first + 1]}
    assert not malformed


def test_only_the_wanted_columns_are_read(tmp_path: Path, read_all: Any) -> None:
    assert set(read_all(write(tmp_path, "log.csv", CSV), "i")[0]) == {"i", "source_row"}


def test_text_of_a_csv_stays_as_it_is(tmp_path: Path, read_all: Any) -> None:
    rows, _ = read_all(write(tmp_path, "log.csv", 'a,b,c\n007,NULL," 1e3 "\n'))
    assert (rows["a"], rows["b"], rows["c"]) == (["007"], ["NULL"], [" 1e3 "])


def test_numbers_of_rows_know_ragged_lines_blank_lines_and_line_breaks(tmp_path: Path, read_all: Any) -> None:
    """The header is row 1. A blank line is no row, and a row with line breaks inside quotes is one."""
    text = 'a,b\n1,1\n\n2\n3,"x\ny"\n4,4,4\n\n5,5\n'
    rows, malformed = read_all(write(tmp_path, "log.csv", text))
    assert dict(zip(rows["a"], rows["source_row"], strict=True)) == {"1": 2, "3": 4, "5": 6}
    assert rows["b"] == ["1", "x\ny", "5"]
    assert malformed == [(3, "2"), (5, "4,4,4")]


def test_numbers_of_rows_hold_beyond_arrows_block(tmp_path: Path, read_all: Any) -> None:
    bad = (50_000, 200_001, 300_000)
    lines = ["only one" if n in bad else f"{n},x" for n in range(2, 300_003)]
    rows, malformed = read_all(write(tmp_path, "log.csv", "a,b\n" + "\n".join(lines)))
    assert [row for row, _ in malformed] == list(bad)
    assert [int(value) for value in rows["a"]] == rows["source_row"]


def test_json_keeps_values_as_they_are_written(tmp_path: Path, read_all: Any) -> None:
    """A time keeps its offset, a number its digits, and a column may have numbers, text and nothing."""
    lines = [
        '{"at": "2026-01-01T10:00:00+02:00", "n": 12345678901234567890, "flag": true, "mixed": 1.50}',
        '{"at": "2026-01-01", "n": 1e3, "flag": false, "mixed": "one", "more": {"k": "ü"}}',
        '{"at": null, "n": NaN}',
    ]
    rows, _ = read_all(write(tmp_path, "log.jsonl", "\n".join(lines)))
    assert rows["at"] == ["2026-01-01T10:00:00+02:00", "2026-01-01", None]
    assert rows["n"] == ["12345678901234567890", "1e3", "NaN"]
    assert rows["flag"] == ["1", "0", None]
    assert rows["mixed"] == ["1.50", "one", None]
    assert rows["more"] == [None, '{"k": "ü"}', None]


def test_json_lists_stay_lists(tmp_path: Path, read_all: Any) -> None:
    rows, _ = read_all(write(tmp_path, "log.jsonl", '{"t": ["a", 1]}\n{"t": "b"}\n{"t": []}\n{"t": null}\n'))
    assert rows["t"] == [["a", "1"], ["b"], [], None]


def test_lines_that_are_no_json_object_are_set_aside_by_number(tmp_path: Path, read_all: Any) -> None:
    rows, malformed = read_all(write(tmp_path, "log.jsonl", '{"a": 1}\n\n{"a": \n[1]\n{"a": 2}\n'))
    assert (rows["a"], rows["source_row"]) == (["1", "2"], [1, 4])
    assert malformed == [(2, '{"a": '), (3, "[1]")]


def test_stray_quotes_inside_a_value_are_no_open_quote(tmp_path: Path, read_all: Any) -> None:
    rows, _ = read_all(write(tmp_path, "log.csv", 'a,b\n1,a 5" pipe\n2,"he said ""no"""\n'))
    assert rows["b"] == ['a 5" pipe', 'he said "no"']
