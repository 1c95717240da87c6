"""The benchmark of prepare: what it prints, and that the log it makes is what it says."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import prepare
from recsys_moe.errors import UserError


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_small_log_is_measured(tmp_path: Path) -> None:
    result = prepare.run(rows=2001, days=2, folder=tmp_path)
    assert result["rows"] == 2000
    assert len(result["seconds"]) == 3
    for key in ("rows_per_second", "peak_mb", "increment_over_share"):
        assert result[key] > 0
    assert prepare.table(result)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("rows", "days"), [(0, 1), (5, 0), (5, 6)])
def test_a_day_without_rows_is_a_users_error(rows: int, days: int) -> None:
    with pytest.raises(UserError, match="--rows"):
        prepare.run(rows=rows, days=days)
