"""Several files a day: which ones a pattern stands for, and that each is read and named."""

from __future__ import annotations

import gzip
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from pipelines import sources
from pipelines.config import Source
from pipelines.sources import files
from recsys_moe.errors import UserError

DAY = date(2026, 1, 1)


def lay(folder: Path, **contents: str) -> None:
    """Write files; a double underscore in a name stands for a folder, a single one for a dot."""
    for name, content in contents.items():
        path = folder / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")


def found(folder: Path, pattern: str) -> list[str]:
    source = Source(path=f"{folder}/{pattern}")
    return [place.removeprefix(f"{folder}/") for place in sources.locate_files(source, DAY)]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.csv", ["a.csv", "b.csv"]),
        ("?.csv", ["a.csv", "b.csv"]),
        ("b*", ["b.csv"]),
        ("*/*.csv", ["x/c.csv"]),
        ("**/*.csv", ["a.csv", "b.csv", "x/c.csv", "x/y/d.csv"]),
        ("x/**", ["x/c.csv", "x/y/d.csv"]),
        ("x/**/d.csv", ["x/y/d.csv"]),
        ("*.tsv", ["e.tsv"]),
    ],
)
def test_what_a_pattern_stands_for(tmp_path: Path, pattern: str, expected: list[str]) -> None:
    lay(tmp_path, b_csv="u\n", a_csv="u\n", e_tsv="u\n", x__c_csv="u\n", x__y__d_csv="u\n", x___hidden_csv="u\n")
    assert found(tmp_path, pattern) == expected


def test_all_but_wildcards_stands_for_itself(tmp_path: Path) -> None:
    lay(tmp_path / "[a]+(b)", x_csv="u\n")
    assert found(tmp_path, "[a]+(b)/*.csv") == ["[a]+(b)/x.csv"]
    assert files.fixed_part("*.csv") == (".", "*.csv")
    assert files.fixed_part("/*.csv") == ("/", "*.csv")
    assert files.fixed_part("s3://bucket/a*/b") == ("s3://bucket", "a*/b")


def test_files_are_read_in_order_each_with_its_own_rows(tmp_path: Path) -> None:
    (tmp_path / "2026-01-01" / "deep").mkdir(parents=True)
    (tmp_path / "2026-01-01" / "b.csv").write_text("i,u\nx,1\n", encoding="utf-8")
    (tmp_path / "2026-01-01" / "a.csv").write_text("u,i\n2,y\n3\n", encoding="utf-8")
    (tmp_path / "2026-01-01" / "deep" / "c.csv").write_text("u,more,i\n4,z,w\n", encoding="utf-8")
    (tmp_path / "2026-01-02").mkdir()
    (tmp_path / "2026-01-02" / "d.csv").write_text("u,i\n9,9\n", encoding="utf-8")
    source = Source(path=f"{tmp_path}/{{ds}}/**/*.csv")
    chunks = list(sources.read(source, DAY, ["i", "u"]))
    rows = [(chunk.file, chunk.rows.to_pylist()) for chunk in chunks if len(chunk.rows)]
    assert rows == [
        ("a.csv", [{"i": "y", "u": "2", "source_row": 2}]),
        ("b.csv", [{"i": "x", "u": "1", "source_row": 2}]),
        ("deep/c.csv", [{"i": "w", "u": "4", "source_row": 2}]),
    ]
    assert [(chunk.file, line.row) for chunk in chunks for line in chunk.malformed] == [("a.csv", 3)]
    assert sources.size_of(source, DAY) == sum(path.stat().st_size for path in (tmp_path / "2026-01-01").rglob("*.csv"))


def test_parquet_files_may_differ_in_the_order_of_columns(tmp_path: Path, read_all: Any) -> None:
    pyarrow.parquet.write_table(pa.table({"u": [1], "i": ["a"]}), tmp_path / "1.parquet")
    pyarrow.parquet.write_table(pa.table({"i": ["b"], "x": [0], "u": [2]}), tmp_path / "2.parquet")
    assert read_all(Source(path=f"{tmp_path}/*.parquet"))[0] == {"u": [1, 2], "i": ["a", "b"], "source_row": [1, 1]}


def test_keys_of_json_are_gathered_over_files(tmp_path: Path, read_all: Any) -> None:
    lay(tmp_path, a_jsonl='{"u": 1}\n', b_jsonl='{"i": 2}\n')
    assert read_all(Source(path=f"{tmp_path}/*.jsonl"))[0]["i"] == [None, "2"]


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ("u\n1\n", r"b\.csv: has no column 'i'; it has 'u'"),
        ("u,i,i\n1,2,3\n", r"b\.csv: the header has \['i'\] twice"),
        ("", r"b\.csv: is empty"),
        ('u,i\n1,"2\n', r"b\.csv: line 2 opens a quote"),
    ],
)
def test_the_bad_one_of_several_is_named(tmp_path: Path, second: str, message: str) -> None:
    lay(tmp_path, a_csv="u,i\n1,2\n", b_csv=second, c_csv="u,i\n1,2\n")
    with pytest.raises(UserError, match=message):
        list(sources.read(Source(path=f"{tmp_path}/*.csv"), DAY, ["u", "i"]))


def test_a_pattern_without_a_file_is_named(tmp_path: Path) -> None:
    for pattern in (f"{tmp_path}/*.csv", f"{tmp_path}/nowhere/{{ds}}/*.csv"):
        with pytest.raises(UserError, match="no file matches"):
            sources.locate_files(Source(path=pattern), DAY)


def test_packed_files_of_a_pattern(tmp_path: Path, read_all: Any) -> None:
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b"u\n1\n"))
    (tmp_path / "b.csv.gz").write_bytes(gzip.compress(b"u\n2\n"))
    assert read_all(Source(path=f"{tmp_path}/*.csv.gz"))[0]["u"] == ["1", "2"]
