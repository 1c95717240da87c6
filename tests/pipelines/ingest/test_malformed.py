"""Logs as they should not be, end to end: refused in one line with nothing published, or every row accounted for."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pytest

from pipelines import sources
from pipelines.config import Recommender
from pipelines.sources import Chunk

AT = 1_767_225_600
HEADER = b"user,item,at,tab,clicked\n"


def row(user: str | bytes, item: str | bytes = b"i0", end: bytes = b"\n") -> bytes:
    """A line of a CSV that holds."""
    who, what = (value.encode() if isinstance(value, str) else value for value in (user, item))
    return b"%b,%b,%d,home,1%b" % (who, what, AT, end)


def record(**values: Any) -> bytes:
    """A line of JSON that holds, with values changed."""
    whole = {"user": "u0", "item": "i0", "at": AT, "tab": "home", "clicked": 1} | values
    return json.dumps(whole).encode() + b"\n"


def zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return bytes(sink.getvalue())


CSV = HEADER + row("u0") + row("u1")
LONG = HEADER + b"".join(row(f"u{n * 7919 % 100_003}") for n in range(5000))
ONE_COLUMN = "has no column 'user'; it has {!r}; is its delimiter right?"

REFUSED: dict[str, tuple[str, bytes, str]] = {
    "empty": (".csv", b"", "is empty"),
    "header alone": (".csv", HEADER, "has no rows for 2026-01-01"),
    "header alone in gzip": (".csv.gz", gzip.compress(HEADER), "has no rows for 2026-01-01"),
    "nothing in gzip": (".csv.gz", gzip.compress(b""), "Empty CSV file"),
    "nothing in zstd": (".csv.zst", zstd(b""), "Empty CSV file"),
    "blank lines alone": (".csv", b"\n\r\n\n", "Empty CSV file"),
    "no header": (".csv", row("u0") + row("u1"), "has no column 'user'; it has 'u0', 'i0', '1767225600', 'home', '1'"),
    "another delimiter": (".csv", CSV.replace(b",", b";"), ONE_COLUMN.format("user;item;at;tab;clicked")),
    "tabs in a CSV": (".csv", CSV.replace(b",", b"\t"), ONE_COLUMN.format("user\titem\tat\ttab\tclicked")),
    "commas in a TSV": (".tsv", CSV, ONE_COLUMN.format("user,item,at,tab,clicked")),
    "a header with another delimiter": (".csv", b"user;item;at\n" + row("u0"), ONE_COLUMN.format("user;item;at")),
    "a line above the header": (".csv", b"# exported today\n" + CSV, ONE_COLUMN.format("# exported today")),
    "spreadsheet's hint": (".csv", b"sep=,\n" + CSV, "has no column 'user'; it has 'sep=', ''"),
    "spaces in the header": (".csv", b" user , item,at,tab,clicked\n" + row("u0"), "it has ' user ', ' item', 'at'"),
    "header in capitals": (".csv", HEADER.upper() + row("u0"), "has no column 'user'; it has 'USER', 'ITEM'"),
    "line break in the header": (
        ".csv",
        b'user,"it\nem",at,tab,clicked\n' + row("u0"),
        r"it has 'user', 'it\nem', 'at'",
    ),
    "mark twice": (".csv", b"\xef\xbb\xbf" * 2 + CSV, r"has no column 'user'; it has '\ufeffuser'"),
    "doubled header": (".csv", b"user,item,at,user,clicked\n" + row("u0"), "the header has ['user'] twice"),
    "two columns without a name": (".csv", b"user,item,,,clicked\n" + row("u0"), "the header has [''] twice"),
    "label left out": (".csv", b"user,item,at,tab\nu0,i0,1,home\n", "has no column 'clicked'; it has 'user'"),
    "feature left out": (".csv", b"user,item,at,clicked\nu0,i0,1,1\n", "features: ['tab'] are columns of no source"),
    "open quote": (".csv", CSV + b'"u2,i0\n' + row("u3"), "line 4 opens a quote that is never closed"),
    "Latin-1": (".csv", CSV + row(b"\xe9"), "byte 74 (line 4) is no UTF-8: 0xe9"),
    "half a pair in UTF-8": (".csv", CSV + row(b"\xed\xa0\x80"), "(line 4) is no UTF-8: 0xed"),
    "overlong UTF-8": (".csv", CSV + row(b"\xc0\xaf"), "(line 4) is no UTF-8: 0xc0"),
    "UTF-16": (".csv", CSV.decode().encode("utf-16"), "is text in UTF-16; text must be UTF-8"),
    "truncated gzip": (".csv.gz", gzip.compress(LONG)[:-500], "Truncated compressed stream"),
    "truncated zstd": (".csv.zst", zstd(LONG)[:-500], "Truncated compressed stream"),
    "gzip called CSV": (".csv", gzip.compress(CSV), "is compressed with gzip"),
    "CSV called gzip": (".csv.gz", CSV, "cannot be read: "),
    "CSV called Parquet": (".parquet", CSV, "Parquet magic bytes not found"),
    "truncated Parquet": (".parquet", b"PAR1" + bytes(900), "Parquet magic bytes not found"),
    "CSV called JSON": (".jsonl", CSV, "none of its lines is a JSON object"),
    "one array of JSON": (".jsonl", b"[" + record() + b"," + record() + b"]", "none of its lines is a JSON object"),
    "one array in one line": (".jsonl", b"[{}, {}]\n", "none of its lines is a JSON object"),
    "JSON over several lines": (".jsonl", b'{\n"user": 1\n}\n', "none of its lines is a JSON object"),
    "lines of null": (".jsonl", b"null\nnull\n", "none of its lines is a JSON object"),
    "keys in capitals in JSON": (".jsonl", record().replace(b"user", b"User"), "has no column 'user'; it has 'User'"),
    "a line beyond measure": (".csv", CSV + row("u" * (33 << 20)), "has over 16 MB"),
}


@pytest.mark.parametrize(("ending", "content", "message"), REFUSED.values(), ids=REFUSED)
def test_a_log_that_cannot_be_read_is_named_and_nothing_is_published(
    tiny: Any, log_of: Any, refused: Callable[[Recommender], str], ending: str, content: bytes, message: str
) -> None:
    said = refused(log_of(ending, content))
    assert message in said
    assert f"{tiny.folder}/data/day/2026-01-01{ending}: " in said


@pytest.mark.parametrize("content", [HEADER, gzip.compress(HEADER)], ids=["plain", "gzip"])
def test_an_export_without_rows_is_named(tiny: Any, log_of: Any, refused: Any, content: bytes) -> None:
    ending = ".csv" if content == HEADER else ".csv.gz"
    log_of(ending, content)
    place = f"../data/day/2026-01-01{ending}"
    assert "2026-01-01" + ending + ": has no rows for" in refused(log_of(ending, content, source=logs(place)))


def logs(place: str) -> dict[str, Any]:
    return {"interactions": {"path": place}}


class Taken(NamedTuple):
    """A file, the users of the rows that hold, the reasons by row of those that do not, and how many repeat."""

    ending: str
    content: bytes
    users: list[str]
    rejected: dict[int, str]
    duplicates: int = 0


FIELD = "x" * 10_000_000
NO_JSON = "is no JSON object"

TAKEN: dict[str, Taken] = {
    "ragged rows": Taken(
        ".csv",
        CSV + b"u2,i0\n" + row("u3", end=b",9\n") + row("u4"),
        ["u0", "u1", "u4"],
        {4: "2 columns where the header has 5", 5: "6 columns where the header has 5"},
    ),
    "all rows ragged": Taken(".csv", HEADER + b"u0;i0\n", [], {2: "1 columns where the header has 5"}),
    "a line that breaks off": Taken(".csv", CSV + b"u2,i", ["u0", "u1"], {4: "2 columns where the header has 5"}),
    "no last line end": Taken(".csv", CSV + row("u2", end=b""), ["u0", "u1", "u2"], {}),
    "line ends of three kinds": Taken(
        ".csv", HEADER + row("u0", end=b"\r\n") + row("u1", end=b"\r") + row("u2"), ["u0", "u1", "u2"], {}
    ),
    "blank lines": Taken(".csv", HEADER + b"\n\n" + row("u0") + b"\r\n" + row("u1") + b"\n", ["u0", "u1"], {}),
    "a line of spaces": Taken(".csv", CSV + b"   \n", ["u0", "u1"], {4: "1 columns where the header has 5"}),
    "a line of commas": Taken(".csv", CSV + b",,,,\n", ["u0", "u1"], {4: "user is null"}),
    "a line of NUL bytes": Taken(".csv", CSV + b"\0\0\n", ["u0", "u1"], {4: "1 columns where the header has 5"}),
    "the header once more": Taken(
        ".csv", CSV + HEADER + row("u2"), ["u0", "u1", "u2"], {4: "at is not a time in s between 1980 and 2100: at"}
    ),
    "the same row thrice": Taken(".csv", HEADER + row("u0") * 3, ["u0"], {}, 2),
    "a bad row thrice": Taken(".csv", CSV + b",,,,\n" * 3, ["u0", "u1"], dict.fromkeys((4, 5, 6), "user is null")),
    "mark and quoted header": Taken(".csv", b'\xef\xbb\xbf"user","item",at,tab,clicked\n' + row("u0"), ["u0"], {}),
    "another order of columns": Taken(".csv", b"clicked,at,tab,item,user\n1,%d,home,i0,u0\n" % AT, ["u0"], {}),
    "a new column": Taken(".csv", b"new,user,item,at,tab,clicked\nx," + row("u0"), ["u0"], {}),
    "a column without a name": Taken(".csv", b"user,item,at,tab,clicked,\n" + row("u0", end=b",x\n"), ["u0"], {}),
    "10 MB in a value": Taken(".csv", CSV + row(FIELD), ["u0", "u1", FIELD], {}),
    "10 MB in a bad row": Taken(
        ".csv",
        CSV + b"u2,%b,never,home,1\n" % FIELD.encode(),
        ["u0", "u1"],
        {4: "at is not a time in s between 1980 and 2100: never"},
    ),
    "10 MB in the value that is wrong": Taken(
        ".csv", CSV + row("u2")[:-2] + FIELD.encode() + b"\n", ["u0", "u1"], {4: f"clicked is no number: {'x' * 40}"}
    ),
    "text after a quote": Taken(".csv", CSV + row('"u2"x'), ["u0", "u1", "u2x"], {}),
    "lines of JSON that are no objects": Taken(
        ".jsonl",
        record()
        + b'[1, 2]\nnull\n"text"\n3\ntrue\n{"user": 1\n{\'user\': 1}\n'
        + record()[:-1]
        + b",\n"
        + record(user="u1"),
        ["u0", "u1"],
        dict.fromkeys(range(2, 10), NO_JSON),
    ),
    "an empty object": Taken(".jsonl", record() + b"{}\n", ["u0"], {2: "user is null"}),
    "a mark inside JSON": Taken(".jsonl", record() + b"\xef\xbb\xbf" + record(user="u1"), ["u0"], {2: NO_JSON}),
    "a key twice in an object": Taken(".jsonl", b'{"user": "a", ' + record(user="b")[1:], ["b"], {}),
    "keys left out": Taken(".jsonl", record() + b'{"user": "u1", "item": 1, "at": %d}\n' % AT, ["u0", "u1"], {}),
    "half a pair in JSON": Taken(
        ".jsonl",
        record() + record(user="\ud800"),
        ["u0"],
        {2: "has half of a pair of \\u escapes, which is no character"},
    ),
    "a pair of escapes in JSON": Taken(".jsonl", record(user="😀"), ["😀"], {}),
    "huge integers in JSON": Taken(".jsonl", record(user=10**29 + 1), [str(10**29 + 1)], {}),
    "integers past 2^53 in JSON": Taken(".jsonl", record(user=2**53 + 1), ["9007199254740993"], {}),
    "a number past all floats in JSON": Taken(
        ".jsonl",
        record() + record(at=0).replace(b'"at": 0', b'"at": 1e999'),
        ["u0"],
        {2: "at is not a time in s between 1980 and 2100: 1e999"},
    ),
    "NaN in JSON": Taken(".jsonl", record() + record(user=float("nan")), ["u0"], {2: "user is null"}),
    "an object as an id in JSON": Taken(".jsonl", record(user={"id": {"n": [1]}}), ['{"id": {"n": ["1"]}}'], {}),
    "an object as a time in JSON": Taken(
        ".jsonl",
        record() + record(at={"$date": 1}),
        ["u0"],
        {2: 'at is not a time in s between 1980 and 2100: {"$date": "1"}'},
    ),
    "truth in JSON": Taken(".jsonl", record(clicked=True) + record(user="u1", clicked=False), ["u0", "u1"], {}),
}


@pytest.mark.parametrize("case", TAKEN.values(), ids=TAKEN)
def test_every_row_of_a_log_is_accounted_for(log_of: Any, taken: Any, case: Taken) -> None:
    came = taken(log_of(case.ending, case.content))
    assert [row["user"] for row in came.accepted] == case.users
    assert came.rejected == case.rejected
    assert came.duplicates == case.duplicates


def test_a_log_that_is_cut_while_it_is_read(
    tiny: Any, log_of: Any, refused: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was read would look whole."""
    config = log_of(".csv", LONG)
    path = tiny.folder / "data" / "day" / "2026-01-01.csv"
    read = sources.delimited.read

    def cut_between_chunks(*args: Any) -> Iterator[Chunk]:
        for chunk in read(*args):
            yield chunk
            os.truncate(path, len(CSV))

    monkeypatch.setattr(sources.delimited, "read", cut_between_chunks)
    assert refused(config) == f"{path}: was replaced while it was read; run again when it is complete"


@pytest.mark.parametrize("ending", [".csv", ".csv.gz", ".jsonl", ".parquet"])
def test_a_folder_in_place_of_the_log(tiny: Any, log_of: Any, refused: Any, ending: str) -> None:
    config = log_of(ending, b"")
    path: Path = tiny.folder / "data" / "day" / f"2026-01-01{ending}"
    path.unlink()
    path.mkdir()
    assert refused(config).startswith(f"{path}: is a folder; ")


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_a_log_that_the_system_will_not_open(tiny: Any, log_of: Any, refused: Any, ending: str) -> None:
    """A link that leads to itself: unlike a file without rights, root cannot read it either."""
    config = log_of(ending, b"")
    path: Path = tiny.folder / "data" / "day" / f"2026-01-01{ending}"
    path.unlink()
    path.symlink_to(path)
    assert refused(config).startswith(f"{path}: ")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_log_that_may_not_be_read(tiny: Any, log_of: Any, refused: Any) -> None:
    config = log_of(".csv", CSV)
    (tiny.folder / "data" / "day" / "2026-01-01.csv").chmod(0)
    assert "cannot be read: " in refused(config)
