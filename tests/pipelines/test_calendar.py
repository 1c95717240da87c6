"""Which days a log has: told from the names of its files, here and on S3."""

from __future__ import annotations

from datetime import date
from typing import Any

import pytest

from pipelines.calendar import days_of
from pipelines.places import file_system
from recsys_moe.errors import UserError


def of(tiny: Any, **source: str) -> list[date]:
    return days_of(tiny(source={"interactions": source}, features={"categorical": ["user", "tab"]}, segments=None))


def test_days_of_daily_files(tiny: Any) -> None:
    tiny.write("log/2026-13-01.csv", "no month of that number")
    tiny.write("log/2026-02-01.csv.bak", "another ending")
    assert of(tiny, path="../data/log/{ds}.csv") == [tiny.day(n) for n in range(6)]
    assert of(tiny, path="../data/log/{ds}.c?v") == [tiny.day(n) for n in range(6)]


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("by/day=2026-03-01/a.csv", "by/day={ds}/*.csv"),
        ("by/20260301/x/y/a.csv", "by/{ds_nodash}/**/*.csv"),
        ("by/2026-03-01/20260301.csv", "by/{ds}/{ds_nodash}.csv"),
        ("by/x/2026-03-01-0.csv", "by/*/{ds}-?.csv"),
    ],
)
def test_days_of_patterns(tiny: Any, name: str, path: str) -> None:
    tiny.write(name, "u\n")
    tiny.write("by/2026-03-01/20260302.csv", "two days that do not agree")
    assert of(tiny, path=f"../data/{path}") == [date(2026, 3, 1)]


def test_days_on_s3(tiny: Any, s3: str) -> None:
    for day in ("2026-03-02", "2026-03-01"):
        system, path = file_system(f"{s3}/log/{day}/a.csv")
        with system.open_output_stream(path) as stream:
            stream.write(b"u\n")
    assert of(tiny, path=f"{s3}/log/{{ds}}/*.csv") == [date(2026, 3, 1), date(2026, 3, 2)]


def test_a_place_without_a_day_is_named(tiny: Any) -> None:
    with pytest.raises(UserError, match=r"nowhere/\{ds\}\.csv: holds no day"):
        of(tiny, path="../data/nowhere/{ds}.csv")


def test_a_query_by_day_cannot_say_its_days(tiny: Any) -> None:
    with pytest.raises(UserError, match=r"sql at \$DB: a query by day does not say which days there are"):
        of(tiny, sql="SELECT * FROM log WHERE day = :ds", connection="DB")
