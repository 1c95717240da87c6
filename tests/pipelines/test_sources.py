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
from recsys_moe.errors import UserError

DAY = date(2026, 1, 1)
CSV = "u,i,note\n1,a,x\n2,b,y\n"


def write(folder: Path, name: str, content: str | bytes) -> Source:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return Source(path=str(path))


def read(source: Source, *wanted: str) -> tuple[dict[str, list[Any]], list[tuple[int, str]]]:
    raw = sources.read(source, DAY, wanted or sources.columns_of(source, DAY))
    return raw.table.to_pydict(), [(line.row, line.text) for line in raw.malformed]


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
        ("log.parquet", parquet(u=["1", "2"], i=["a", "b"], note=["x", "y"]), 1),
    ],
)
def test_every_format_gives_the_same_rows(tmp_path: Path, name: str, content: str | bytes, first: int) -> None:
    source = write(tmp_path, name, content)
    assert sources.columns_of(source, DAY) == ["u", "i", "note"]
    rows, malformed = read(source)
    assert rows == {"u": ["1", "2"], "i": ["a", "b"], "note": ["x", "y"], "source_row": [first, first + 1]}
    assert not malformed


def test_only_the_wanted_columns_are_read(tmp_path: Path) -> None:
    assert set(read(write(tmp_path, "log.csv", CSV), "i")[0]) == {"i", "source_row"}


def test_text_of_a_csv_stays_as_it_is(tmp_path: Path) -> None:
    rows, _ = read(write(tmp_path, "log.csv", 'a,b,c\n007,NULL," 1e3 "\n'))
    assert (rows["a"], rows["b"], rows["c"]) == (["007"], ["NULL"], [" 1e3 "])


def test_numbers_of_rows_know_ragged_lines_blank_lines_and_line_breaks(tmp_path: Path) -> None:
    """The header is row 1. A blank line is no row, and a row with line breaks inside quotes is one."""
    text = 'a,b\n1,1\n\n2\n3,"x\ny"\n4,4,4\n\n5,5\n'
    rows, malformed = read(write(tmp_path, "log.csv", text))
    assert dict(zip(rows["a"], rows["source_row"], strict=True)) == {"1": 2, "3": 4, "5": 6}
    assert rows["b"] == ["1", "x\ny", "5"]
    assert malformed == [(3, "2"), (5, "4,4,4")]


def test_numbers_of_rows_hold_beyond_arrows_block(tmp_path: Path) -> None:
    bad = (50_000, 200_001, 300_000)
    lines = ["only one" if n in bad else f"{n},x" for n in range(2, 300_003)]
    rows, malformed = read(write(tmp_path, "log.csv", "a,b\n" + "\n".join(lines)))
    assert [row for row, _ in malformed] == list(bad)
    assert [int(value) for value in rows["a"]] == rows["source_row"]


def test_json_keeps_values_as_they_are_written(tmp_path: Path) -> None:
    """A time keeps its offset, a number its digits, and a column may have numbers, text and nothing."""
    lines = [
        '{"at": "2026-01-01T10:00:00+02:00", "n": 12345678901234567890, "flag": true, "mixed": 1.50}',
        '{"at": "2026-01-01", "n": 1e3, "flag": false, "mixed": "one", "more": {"k": "ü"}}',
        '{"at": null, "n": NaN}',
    ]
    rows, _ = read(write(tmp_path, "log.jsonl", "\n".join(lines)))
    assert rows["at"] == ["2026-01-01T10:00:00+02:00", "2026-01-01", None]
    assert rows["n"] == ["12345678901234567890", "1e3", "NaN"]
    assert rows["flag"] == ["1", "0", None]
    assert rows["mixed"] == ["1.50", "one", None]
    assert rows["more"] == [None, '{"k": "ü"}', None]


def test_json_lists_stay_lists(tmp_path: Path) -> None:
    rows, _ = read(write(tmp_path, "log.jsonl", '{"t": ["a", 1]}\n{"t": "b"}\n{"t": []}\n{"t": null}\n'))
    assert rows["t"] == [["a", "1"], ["b"], [], None]


def test_lines_that_are_no_json_object_are_set_aside_by_number(tmp_path: Path) -> None:
    rows, malformed = read(write(tmp_path, "log.jsonl", '{"a": 1}\n\n{"a": \n[1]\n{"a": 2}\n'))
    assert (rows["a"], rows["source_row"]) == (["1", "2"], [1, 4])
    assert malformed == [(2, '{"a": '), (3, "[1]")]


def test_stray_quotes_inside_a_value_are_no_open_quote(tmp_path: Path) -> None:
    rows, _ = read(write(tmp_path, "log.csv", 'a,b\n1,a 5" pipe\n2,"he said ""no"""\n'))
    assert rows["b"] == ['a 5" pipe', 'he said "no"']


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.csv", "", "is empty"),
        ("blank.csv", "\n\n", "cannot be read: CSV parse error: Empty CSV file"),
        ("doubled.csv", "u,i,u\n1,2,3\n", r"header has \['u'\] twice"),
        ("open_quote.csv", 'u,i\n1,a\n2,"b\n3,c\n4,d\n', "line 3 opens a quote that is never closed"),
        ("latin.csv", "u,i\n1,é\n".encode("latin-1"), "cannot be read: .*UTF8"),
        ("latin_header.csv", "é,i\n1,a\n".encode("latin-1"), "cannot be read: .*utf-8"),
        ("no.csv.gz", CSV, "cannot be read: "),
        ("no.parquet", CSV, "cannot be read: "),
        ("latin.jsonl", b'{"u": "\xe9"}\n', "cannot be read: .*utf-8"),
    ],
)
def test_a_bad_file_is_named_in_one_line(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    source = write(tmp_path, name, content)
    with pytest.raises(UserError, match=message) as caught:
        read(source)
    assert str(caught.value).startswith(f"{tmp_path / name}: ")
    assert "\n" not in str(caught.value)


def test_a_parquet_file_with_a_doubled_column_is_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["u", "u"]), buffer)
    with pytest.raises(UserError, match=r"header has \['u'\] twice"):
        sources.columns_of(write(tmp_path, "log.parquet", buffer.getvalue()), DAY)


@pytest.mark.parametrize(("name", "message"), [("nowhere.csv", "no such file"), ("", "is a folder")])
def test_a_path_to_no_file_is_named(tmp_path: Path, name: str, message: str) -> None:
    source = Source(path=str(tmp_path / name))
    for attempt in (lambda: sources.columns_of(source, DAY), lambda: sources.read(source, DAY, ["u"])):
        with pytest.raises(UserError, match=message):
            attempt()
