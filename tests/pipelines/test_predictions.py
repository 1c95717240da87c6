"""Columns on disk, codes of ids, groups of rows: what streams past gives the same metrics as what is in memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.predictions import Groups, Ids, OnDisk, hashed, measure, measure_groups
from recsys_moe import metrics

Rows = dict[str, np.ndarray]
SEGMENTS = ("unknown", "DE", "FR", "nobody's")


@st.composite
def rows(draw: st.DrawFn) -> Rows:
    """Labels, some unknown; scores that tie, some missing; users and segments."""
    count = draw(st.integers(0, 300))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scores = np.array([0.0, -0.0, 1e-300, 5e-324, 0.25, 0.5, 1.0])[random.integers(0, 7, count)]
    return {
        "labels": np.where(random.random(count) < 0.1, np.nan, random.integers(0, 2, count)).astype(np.float32),
        "said": np.where(random.random(count) < 0.1, np.nan, scores),
        "users": random.integers(0, 20, count),
        "segments": random.integers(0, 3, count).astype(np.int32),
    }


def blocks_of(found: Rows, size: int) -> Iterator[Rows]:
    for start in range(0, len(found["users"]), size):
        yield {name: values[start : start + size] for name, values in found.items()}


@settings(deadline=None)
@given(rows(), st.integers(1, 400))
def test_streamed_rows_are_measured_as_those_in_memory(
    tmp_path_factory: pytest.TempPathFactory, found: Rows, size: int
) -> None:
    folder = tmp_path_factory.getbasetemp() / "streamed"
    texts = [pa.chunked_array([pa.array([f"user {n}" for n in of["users"]])]) for of in blocks_of(found, size)]
    ids = Ids.of(hashed(of) for of in texts)
    users = OnDisk.write(folder, {"user": "i4"}, ({"user": of} for of in ids.codes(hashed(of) for of in texts)))
    kinds = {"labels": "f4", "said": "f8", "segments": "i4"}
    columns = OnDisk.write(folder, kinds, blocks_of(found, size))
    streamed = columns["labels"], columns["said"], users["user"]
    known = np.isfinite(found["labels"]) & np.isfinite(found["said"])
    assert measure("binary", *streamed) == same(metrics.binary(*(found[n][known] for n in ("labels", "said", "users"))))
    by_group = measure_groups("binary", *streamed, Groups.of(SEGMENTS, columns["segments"]))
    assert by_group.keys() == {SEGMENTS[code] for code in found["segments"]}
    for name, of in by_group.items():
        inside = known & (found["segments"] == SEGMENTS.index(name))
        assert of == same(metrics.binary(*(found[n][inside] for n in ("labels", "said", "users"))))


def same(expected: dict[str, float]) -> object:
    return pytest.approx(expected, abs=1e-9, rel=1e-9, nan_ok=True)


def test_files_go_with_what_they_were_for(tmp_path: Path) -> None:
    columns = OnDisk.write(tmp_path / "scratch", {"a": "f4", "b": "i4"}, [{"a": np.ones(3), "b": np.arange(3)}] * 2)
    assert columns.keys() == {"a", "b"}
    assert "c" not in columns
    assert columns["b"].tolist() == [0, 1, 2, 0, 1, 2]
    assert columns["a"].dtype == np.float32
    assert len(list((tmp_path / "scratch").iterdir())) == 1
    del columns
    assert not list((tmp_path / "scratch").iterdir())


def test_a_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        OnDisk.write(tmp_path, {"a": "f4"}, [{"b": np.ones(3)}])
    assert not list(tmp_path.iterdir())


def test_columns_of_no_rows_have_their_types(tmp_path: Path) -> None:
    assert OnDisk.write(tmp_path, {"a": "i4"}, [])["a"].dtype == np.int32


def test_codes_are_ranks_of_hashes_and_the_same_in_whatever_way_ids_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.predictions._HASHES_AT_ONCE", 3)
    plain = pa.chunked_array([["b", "a", "c"], ["a", "d"]])
    ids = Ids.of([hashed(plain), hashed(plain.dictionary_encode())])
    assert len(ids.hashes) == 4
    assert (np.diff(ids.hashes.astype(object)) > 0).all()
    one, other = ids.codes([hashed(plain), hashed(pa.chunked_array([["x", "d"]]))])
    assert one[1] == one[3]
    assert (ids.hashes[one] == hashed(plain)).all()
    assert other.tolist() == [-1, one[4]]


def test_numbers_are_ids_too_and_none_are_none() -> None:
    assert (hashed(pa.chunked_array([[7, 8]])) == hashed(pa.chunked_array([["7", "8"]]))).all()
    assert not len(hashed(pa.chunked_array([], pa.string())))


def test_groups_that_overlap_or_are_cut_keep_their_rows() -> None:
    groups = Groups.of_masks(
        {"even": np.array([1, 0, 1, 0, 1], bool), "none": np.zeros(5, bool), "all": np.ones(5, bool)}
    )
    assert {name: of.tolist() for name, of in groups} == {"even": [0, 2, 4], "all": [0, 1, 2, 3, 4]}
    assert [name for name, _ in groups.largest(1)] == ["all"]
    kept = groups.among(np.array([0, 1, 1, 0, 1], bool))
    assert {name: of.tolist() for name, of in kept} == {"even": [1, 2], "all": [0, 1, 2]}


def test_a_regression_is_measured_by_its_error() -> None:
    found = measure("regression", np.array([1.0, np.nan, 3.0]), np.array([2.0, 1.0, 5.0]), np.array([4, 4, 4]))
    assert found == {"rmse": pytest.approx(2.5**0.5), "rows": 2.0, "users": 1.0}
