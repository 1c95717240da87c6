"""Cleaned a chunk at a time, by distinct values and by bytes, is what the contract says for each value."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import sql
from pipelines.config import Recommender
from pipelines.ingest.cleaning import Cleaner

MARKERS = ("NULL", "nan", "-124", "7")


def config(missing: tuple[str, ...]) -> Recommender:
    """What the cleaner reads of a recommender."""
    return cast(
        Recommender,
        SimpleNamespace(columns=SimpleNamespace(missing=missing), features=SimpleNamespace(separator="|")),
    )


Clean = Callable[..., list[str | None]]


@pytest.fixture(scope="module")
def cleaned() -> Iterator[Clean]:
    """Cleans one column."""
    with sql.connect() as connection:

        def clean(values: pa.Array, missing: tuple[str, ...] = MARKERS) -> list[str | None]:
            rows = pa.RecordBatch.from_arrays([values], ["v"])
            found: list[str | None] = Cleaner(connection, config(missing)).clean(rows).column("v").to_pylist()
            return found

        yield clean


def by_hand(value: str | None, missing: tuple[str, ...]) -> str | None:
    """The rule in Python: trimmed, whole numbers without `.0`, null where it says nothing."""
    if value is None:
        return None
    text = re.sub(r"^(-?[0-9]+)\.0+$", r"\1", value.strip(" "))
    return None if text in ("", *missing) else text


WRITTEN = st.one_of(
    st.none(),
    st.text(alphabet="0123456789", max_size=20),
    st.text(alphabet="-0.17 aN\té", max_size=6),
    st.sampled_from(["", " ", "NULL", " NULL ", "-124", "7", "7.0", "-124.000", "007", "9007199254740993"]),
)


@settings(max_examples=100, deadline=None)
@given(
    values=st.lists(WRITTEN, max_size=30), missing=st.sampled_from([(), MARKERS, ("NULL",)]), skipped=st.integers(0, 3)
)
def test_text(cleaned: Clean, values: list[str | None], missing: tuple[str, ...], skipped: int) -> None:
    whole = pa.array(values, pa.string())
    expected = [by_hand(value, missing) for value in values]
    assert cleaned(whole.slice(skipped), missing) == expected[skipped:]


@settings(max_examples=100, deadline=None)
@given(
    values=st.lists(st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1), st.sampled_from([7, -124, 0])), max_size=20)
)
def test_whole_numbers_past_those_of_floats(cleaned: Clean, values: list[int | None]) -> None:
    expected = [None if value in (None, 7, -124) else str(value) for value in values]
    assert cleaned(pa.array(values, pa.int64())) == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (pa.array([7, 200, None], pa.uint8()), [None, "200", None]),
        (pa.array([1.0, 1.5, float("nan"), -124.0, 1e300, float("inf")]), ["1", "1.5", None, None, "1e+300", "inf"]),
        (pa.array([True, False, None]), ["1", "0", None]),
        (pa.array([["a", "b"], [], None]), ["a|b", None, None]),
        (pa.array(["x", "NULL", "x"]).dictionary_encode(), ["x", None, "x"]),
        (pa.array([None, None]), [None, None]),
    ],
    ids=["bytes", "floats", "booleans", "lists", "a dictionary", "nothing"],
)
def test_other_types(cleaned: Clean, values: pa.Array, expected: list[Any]) -> None:
    assert cleaned(values) == expected


def test_no_rows(cleaned: Clean) -> None:
    assert cleaned(pa.array([], pa.string())) == []
