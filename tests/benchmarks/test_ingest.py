"""The benchmark of ingest: its numbers are there and hold together at a small size."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from benchmarks import ingest

ROWS = 3000


@pytest.fixture(params=["here", pytest.param("alone", marks=[pytest.mark.slow, pytest.mark.timeout(300)])])
def measured(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where work is measured: in this process, or as it should be, each in a process of its own."""
    if request.param == "here":
        monkeypatch.setattr(ingest, "_alone", ingest._measured)


@pytest.mark.usefixtures("measured")
def test_it_measures_all_it_promises(tmp_path: Path) -> None:
    result = ingest.run(rows=ROWS, many=2, rounds=1, folder=tmp_path)
    assert result["rows"] == ROWS
    assert all(value > 0 for value in result.values())
    assert {"ratio_csv", "ratio_parquet", "peak_mb_2m", "peak_mb_20m"} <= result.keys()
    assert result["peak_ratio"] == pytest.approx(result["peak_mb_20m"] / result["peak_mb_2m"], abs=0.01)
    assert not list(tmp_path.iterdir()), "its files are gone"
    assert "ratio_csv" in ingest.table(result)


def test_both_formats_have_the_same_rows_and_some_are_repeated_and_bad(tmp_path: Path) -> None:
    for kind in ("csv", "parquet"):
        ingest.write(tmp_path / f"log.{kind}", ROWS)
    assert ingest.ingest(tmp_path / "log.parquet") > 0
    rejected = pq.read_table(next((tmp_path / "storage" / "tables" / "rejected").glob("ds=*/*.parquet")))
    accepted = pq.read_table(next((tmp_path / "storage" / "tables" / "interactions").glob("ds=*/*.parquet")))
    assert 0 < len(rejected) < ROWS / 100
    assert ROWS * 0.97 < len(accepted) < ROWS - len(rejected)
    lines = (tmp_path / "log.csv").read_text(encoding="utf-8").splitlines()
    assert len(lines) == ROWS + 1 == len(pq.read_table(tmp_path / "log.parquet")) + 1
