"""Files as they should not be: each is named in one line, or its rows and its malformed lines are all that it had."""

from __future__ import annotations

import gzip
import io
import json
import os
import zipfile
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from pipelines import sources
from pipelines.config import Source
from pipelines.sources import streams
from recsys_moe.errors import UserError

DAY = date(2026, 1, 1)
CSV = b"u,i\n1,a\n2,b\n"
LONG_CSV = b"u,i\n" + b"".join(b"%d,%d\n" % (n, n * 7919 % 100_003) for n in range(20_000))
JSONL = b'{"u": 1, "i": "a"}\n{"u": 2, "i": "b"}\n'


def zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return bytes(sink.getvalue())


def zipped(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("log.csv", content)
    return buffer.getvalue()


def parquet(names: tuple[str, ...] = ("u", "i"), **options: Any) -> bytes:
    buffer = io.BytesIO()
    columns = [pa.array([str(n * 7919 % 100_003) for n in range(20_000)]) for _ in names]
    pyarrow.parquet.write_table(pa.Table.from_arrays(columns, names=list(names)), buffer, **options)
    return buffer.getvalue()


PARQUET = parquet()
FOOTER = int.from_bytes(PARQUET[-8:-4], "little") + 8

REFUSED: dict[str, tuple[str, bytes, str]] = {
    "empty CSV": ("log.csv", b"", "is empty"),
    "empty JSONL": ("log.jsonl", b"", "is empty"),
    "empty Parquet": ("log.parquet", b"", "is empty"),
    "empty gzip file": ("log.csv.gz", b"", "is empty"),
    "nothing in gzip": ("log.csv.gz", gzip.compress(b""), "Empty CSV file"),
    "blank lines alone": ("log.csv", b"\n\n\r\n\n", "Empty CSV file"),
    "mark and no more": ("log.csv", b"\xef\xbb\xbf", "Empty CSV file"),
    "header without an end": ("log.csv", b"u,i", "Empty CSV file"),
    "doubled header": ("log.csv", b"u,i,u\n1,2,3\n", r"the header has \['u'\] twice"),
    "doubled header in Parquet": ("log.parquet", parquet(("u", "u")), r"the header has \['u'\] twice"),
    "open quote": ("log.csv", b'u,i\n1,a\n2,"b\n3,c\n4,d\n', "line 3 opens a quote that is never closed"),
    "open quote in the header": ("log.csv", b'u,"i\n1,a\n', "line 1 opens a quote that is never closed"),
    "open quote over blocks": ("log.csv", b'u,i\n1,a\n2,"b\n' + b"3,c\n" * 5_000_000, "line 3 opens a quote"),
    "Latin-1 in CSV": ("log.csv", b"u,i\n1,\xe9\n", r"byte 7 \(line 2\) is no UTF-8: 0xe9"),
    "Latin-1 far into CSV": ("log.csv", LONG_CSV * 10 + b"1,\xe9\n", r"byte \d{7} \(line 200011\) is no UTF-8: 0xe9"),
    "Latin-1 in a ragged line": ("log.csv", b"u,i\n1,a\n\xe9\n", r"byte 9 \(line 3\) is no UTF-8"),
    "Latin-1 in the header": ("log.csv", b"\xe9,i\n1,a\n", r"byte 1 \(line 1\) is no UTF-8"),
    "Latin-1 in JSONL": ("log.jsonl", b'{"u": 1}\n{"u": "\xe9"}\n', r"byte 17 \(line 2\) is no UTF-8"),
    "half a character at the end": ("log.csv", b"u,i\n1,a\xc3", r"byte 8 \(line 2\) is no UTF-8: 0xc3"),
    "Latin-1 in gzip": ("log.csv.gz", gzip.compress(b"u,i\n1,\xe9\n"), r"byte 7 \(line 2\) is no UTF-8"),
    "UTF-16": ("log.csv", CSV.decode().encode("utf-16"), "is text in UTF-16"),
    "UTF-16 the other way": ("log.csv", b"\xfe\xff" + CSV.decode().encode("utf-16-be"), "is text in UTF-16"),
    "UTF-16 in JSONL": ("log.jsonl", JSONL.decode().encode("utf-16"), "is text in UTF-16"),
    "truncated gzip": ("log.csv.gz", gzip.compress(LONG_CSV)[:-2000], "Truncated compressed stream"),
    "gzip without its last byte": ("log.csv.gz", gzip.compress(LONG_CSV)[:-1], "Truncated compressed stream"),
    "truncated gzip of JSONL": ("log.jsonl.gz", gzip.compress(JSONL * 999)[:-9], "Truncated compressed stream"),
    "truncated zstd": ("log.csv.zst", zstd(LONG_CSV)[:-2000], "Truncated compressed stream"),
    "zstd without its last byte": ("log.jsonl.zst", zstd(JSONL)[:-1], "Truncated compressed stream"),
    "damaged gzip": ("log.csv.gz", gzip.compress(LONG_CSV).replace(b"\x00", b"\x01"), "cannot be read: "),
    "damage after gzip": ("log.csv.gz", gzip.compress(CSV) + b"more of it", "cannot be read: .*zlib"),
    "gz that is none": ("log.csv.gz", CSV, "cannot be read: .*zlib"),
    "zst that is none": ("log.csv.zst", CSV, "cannot be read: .*ZSTD"),
    "gzip called zst": ("log.csv.zst", gzip.compress(CSV), "cannot be read: .*ZSTD"),
    "gzip called CSV": ("log.csv", gzip.compress(CSV), "is compressed with gzip"),
    "zstd called CSV": ("log.csv", zstd(CSV), "is compressed with zstd"),
    "compressed twice": ("log.csv.gz", gzip.compress(gzip.compress(CSV)), r"is compressed with gzip \(once more\?\)"),
    "zip archive": ("log.csv", zipped(CSV), "is a zip archive"),
    "Parquet called CSV": ("log.csv", PARQUET, "is a Parquet file"),
    "Parquet called JSONL": ("log.jsonl", PARQUET, "is a Parquet file"),
    "CSV called Parquet": ("log.parquet", CSV * 10, "Parquet magic bytes not found"),
    "truncated Parquet": ("log.parquet", PARQUET[:-100], "Parquet magic bytes not found"),
    "Parquet of four bytes": ("log.parquet", b"PAR1", "cannot be read: "),
    "Parquet with another magic": ("log.parquet", PARQUET[:-4] + b"PAR2", "Parquet magic bytes not found"),
    "Parquet with a hole": ("log.parquet", PARQUET[:200] + bytes(5000) + PARQUET[5200:], "cannot be read: "),
    "Parquet with a broken footer": (
        "log.parquet",
        PARQUET[:-FOOTER] + bytes(40) + PARQUET[40 - FOOTER :],
        "cannot be read: ",
    ),
    "row beyond measure": (
        "log.csv",
        b"u,i\n1," + b"x" * (33 << 20) + b"\n2,b\n",
        "row 2 or a later one has over 16 MB",
    ),
    "line of JSON beyond measure": ("log.jsonl", b"[" + b"1," * (17 << 19), "a line has over 16 MB"),
}


def write(folder: Path, name: str, content: bytes) -> Source:
    path = folder / name
    path.write_bytes(content)
    return Source(path=str(path))


@pytest.mark.parametrize(("name", "content", "message"), REFUSED.values(), ids=REFUSED)
def test_a_bad_file_is_named_in_one_line(
    tmp_path: Path, name: str, content: bytes, message: str, read_all: Any
) -> None:
    source = write(tmp_path, name, content)
    with pytest.raises(UserError, match=message) as caught:
        read_all(source)
    assert str(caught.value).startswith(f"{tmp_path / name}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "content"), [("log.csv", CSV), ("log.parquet", PARQUET)])
def test_a_column_that_is_not_there_is_named_with_what_is(tmp_path: Path, name: str, content: bytes) -> None:
    with pytest.raises(UserError, match=rf"{name}: has no column 'liked'; it has 'u', 'i'"):
        list(sources.read(write(tmp_path, name, content), DAY, ["u", "liked"]))


FIELD = "x" * 10_000_000

TAKEN: dict[str, tuple[str, bytes, dict[str, list[Any]], list[tuple[int, str]]]] = {
    "header alone": ("log.csv", b"u,i\n", {"u": [], "i": [], "source_row": []}, []),
    "ragged lines alone": ("log.csv", b"u,i\n1\n1,2,3\n", {"u": [], "source_row": []}, [(2, "1"), (3, "1,2,3")]),
    "ragged lines at the end": ("log.csv", CSV + b"3\n4\n", {"u": ["1", "2"]}, [(4, "3"), (5, "4")]),
    "a delimiter too many": ("log.csv", b"u,i\n1,a,\n2,b\n", {"u": ["2"], "source_row": [3]}, [(2, "1,a,")]),
    "line that breaks off": ("log.csv", CSV + b"3", {"u": ["1", "2"]}, [(4, "3")]),
    "line with NUL bytes": ("log.csv", CSV + b"\0\0\0\n", {"u": ["1", "2"]}, [(4, "\0\0\0")]),
    "value with a NUL byte": ("log.csv", b"u,i\n1\x002,a\n", {"u": ["1\x002"], "i": ["a"]}, []),
    "old line ends": ("log.csv", b"u,i\r1,a\r2,b\r", {"u": ["1", "2"], "i": ["a", "b"]}, []),
    "line ends of two kinds": ("log.csv", b"u,i\r\n1,a\n2,b\r\n", {"i": ["a", "b"]}, []),
    "blank lines at the end": ("log.csv", CSV + b"\r\n\n\n", {"u": ["1", "2"], "source_row": [2, 3]}, []),
    "mark, then quotes": ("log.csv", b'\xef\xbb\xbf"u","i"\n"1","a"\n', {"u": ["1"], "i": ["a"]}, []),
    "quotes in quotes": ("log.csv", b'u,i\n1,"a ""b"", c"\n', {"i": ['a "b", c']}, []),
    "stray quote": ("log.csv", b'u,i\n1,5" pipe\n2,b\n', {"i": ['5" pipe', "b"]}, []),
    "10 MB in a value": ("log.csv", f"u,i\n1,{FIELD}\n2,b\n".encode(), {"u": ["1", "2"], "i": [FIELD, "b"]}, []),
    "10 MB in JSON": ("log.jsonl", json.dumps({"u": FIELD}).encode(), {"u": [FIELD]}, []),
    "another order": ("log.csv", b"i,u\na,1\nb,2\n", {"u": ["1", "2"], "i": ["a", "b"]}, []),
    "a new column": ("log.csv", b"u,new,i\n1,x,a\n", {"u": ["1"], "new": ["x"], "i": ["a"]}, []),
    "column without a name": ("log.csv", b"u,\n1,a\n", {"u": ["1"], "": ["a"]}, []),
    "formula": ("log.csv", b"u,i\n=1+1,a\n", {"u": ["=1+1"]}, []),
    "integers past 2^53": ("log.csv", b"u,i\n9007199254740993,18446744073709551617\n", {"u": ["9007199254740993"]}, []),
    "integers past 2^64 in JSON": ("log.jsonl", b'{"u": 18446744073709551617}', {"u": ["18446744073709551617"]}, []),
    "number of 5000 digits in JSON": ("log.jsonl", b'{"u": ' + b"9" * 5000 + b"}", {"u": ["9" * 5000]}, []),
    "NaN in JSON": ("log.jsonl", b'{"u": NaN}\n{"u": -Infinity}', {"u": ["NaN", "-Infinity"]}, []),
    "arrays of JSON": ("log.jsonl", b'[{"u": 1}, {"u": 2}]\n{"u": 3}\n', {"u": ["3"]}, [(1, '[{"u": 1}, {"u": 2}]')]),
    "objects in JSON": ("log.jsonl", b'{"u": {"a": [1, null]}}', {"u": ['{"a": ["1", null]}']}, []),
    "arrays in arrays": ("log.jsonl", b'{"u": [[1], {"a": 2}]}', {"u": [['["1"]', '{"a": "2"}']]}, []),
    "a value that is a list once": ("log.jsonl", b'{"u": 1}\n{"u": ["2"]}', {"u": [["1"], ["2"]]}, []),
    "a key twice in JSON": ("log.jsonl", b'{"u": 1, "u": 2}', {"u": ["2"]}, []),
    "a key left out": ("log.jsonl", b'{"u": 1}\n{"i": "b"}', {"u": ["1", None], "i": [None, "b"]}, []),
    "half an object": ("log.jsonl", JSONL + b'{"u": 3, "i"', {"u": ["1", "2"]}, [(3, '{"u": 3, "i"')]),
    "two objects in a line": ("log.jsonl", b'{"u": 1}{"u": 2}\n{"u": 3}', {"u": ["3"]}, [(1, '{"u": 1}{"u": 2}')]),
    "NUL bytes in JSON": ("log.jsonl", JSONL + b"\0\0\0", {"u": ["1", "2"]}, [(3, "\0\0\0")]),
    "depth in JSON": ("log.jsonl", b"[" * 100_000 + b"\n" + JSONL, {"u": ["1", "2"]}, [(1, "[" * 100_000)]),
    "half a pair in JSON": (
        "log.jsonl",
        b'{"u": "\\ud800"}\n{"u": "\\u00fc"}',
        {"u": ["ü"]},
        [(1, '{"u": "\\ud800"}')],
    ),
    "line ends in JSON": ("log.jsonl", b'\r\n{"u": 1}\r\n\r\n{"u": \r\n', {"u": ["1"]}, [(2, '{"u": ')]),
}


@pytest.mark.parametrize(("name", "content", "rows", "malformed"), TAKEN.values(), ids=TAKEN)
def test_nothing_is_lost(
    tmp_path: Path,
    name: str,
    content: bytes,
    rows: dict[str, list[Any]],
    malformed: list[tuple[int, str]],
    read_all: Any,
) -> None:
    given, lines = read_all(write(tmp_path, name, content))
    assert {column: given[column] for column in rows} == rows
    assert lines == malformed
    assert len({*given["source_row"], *(number for number, _ in lines)}) == len(given["source_row"]) + len(lines)


def test_integers_of_parquet_past_2_53_are_exact(tmp_path: Path, read_all: Any) -> None:
    path = tmp_path / "log.parquet"
    pyarrow.parquet.write_table(pa.table({"u": [2**53 + 1, -(2**63)], "a.u": [0, 0]}), path)
    assert read_all(Source(path=str(path)), "u")[0] == {"u": [2**53 + 1, -(2**63)], "source_row": [1, 2]}


def test_parquet_without_rows_has_its_columns(tmp_path: Path, read_all: Any) -> None:
    path = tmp_path / "log.parquet"
    pyarrow.parquet.write_table(pa.table({"u": pa.array([], pa.int64())}), path)
    assert read_all(Source(path=str(path))) == ({"u": [], "source_row": []}, [])


def test_numbers_go_on_over_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read_all: Any) -> None:
    """Blocks of bad lines alone, too: none is lost, and each chunk has those of its own."""
    monkeypatch.setattr("pipelines.sources.delimited._USUAL_BLOCK", 100)
    bad = {*range(50, 400), *range(1000, 1002), *range(2990, 3002)}
    lines = ["only one" if n in bad else f'{n},"x\ny"' for n in range(2, 3002)]
    source = write(tmp_path, "log.csv", ("a,b\n" + "\n".join(lines)).encode())
    rows, malformed = read_all(source)
    assert [row for row, _ in malformed] == sorted(bad)
    assert [int(value) for value in rows["a"]] == rows["source_row"]
    assert len(rows["a"]) + len(malformed) == 3000
    chunks = list(sources.read(source, DAY, ["a"]))
    assert max(len(chunk.malformed) for chunk in chunks) < 60
    for chunk in [chunk for chunk in chunks if chunk.malformed and len(chunk.rows)]:
        assert max(line.row for line in chunk.malformed) < max(chunk.rows["source_row"].to_pylist())


def test_a_row_longer_than_the_usual_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read_all: Any) -> None:
    """The file is read once more in larger blocks, and what was given is not given again."""
    monkeypatch.setattr("pipelines.sources.delimited._USUAL_BLOCK", 100)
    lines = ["x" * 1000 + ",y" if n in (500, 700) else "bad" if n % 10 == 0 else f"{n},y" for n in range(2, 1002)]
    rows, malformed = read_all(write(tmp_path, "log.csv", ("a,b\n" + "\n".join(lines)).encode()))
    assert [row for row, _ in malformed] == [n for n in range(10, 1002, 10) if n not in (500, 700)]
    assert rows["source_row"] == [n for n in range(2, 1002) if n % 10 or n in (500, 700)]
    assert [a for a in rows["a"] if len(a) < 9] == [str(n) for n in rows["source_row"] if n not in (500, 700)]


def test_lines_without_end_that_are_no_rows_are_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read_all: Any
) -> None:
    monkeypatch.setattr("pipelines.sources.delimited._MOST_BEFORE_A_ROW", 100)
    with pytest.raises(UserError, match=r"log\.csv: its first 100 lines have not the header's number of columns"):
        read_all(write(tmp_path, "log.csv", b"u,i\n" + b"1,2,\n" * 101))


def test_characters_may_lie_across_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read_all: Any) -> None:
    monkeypatch.setattr(streams, "_HEAD", 7)
    monkeypatch.setattr("pipelines.sources.delimited.BLOCK", 11)
    rows, _ = read_all(write(tmp_path, "log.csv", "u,i\n1,ü\n2,€\n3,😀\n4,a\n".encode()))
    assert rows["i"] == ["ü", "€", "😀", "a"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere.csv", "no such file"),
        ("", "is a folder"),
        ("dangling.csv", "no such file"),
        ("pipe.csv", "no plain file"),
    ],
)
def test_a_path_to_no_file_is_named(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "dangling.csv").symlink_to(tmp_path / "gone.csv")
    os.mkfifo(tmp_path / "pipe.csv")
    source = Source(path=str(tmp_path / name))
    for attempt in (lambda: sources.columns_of(source, DAY), lambda: list(sources.read(source, DAY, ["u"]))):
        with pytest.raises(UserError, match=message):
            attempt()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_is_named(tmp_path: Path, read_all: Any) -> None:
    source = write(tmp_path, "log.csv", CSV)
    (tmp_path / "log.csv").chmod(0)
    with pytest.raises(UserError, match=r"log\.csv: cannot be read: .*Permission denied"):
        read_all(source)
