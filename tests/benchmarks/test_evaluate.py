"""The benchmark of evaluate: what it prints."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import evaluate
from recsys_moe.errors import UserError


def test_made_rows_are_measured(tmp_path: Path) -> None:
    rate, peak = evaluate.measured(5_000, tmp_path)
    assert rate > 0
    assert peak > 0


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_every_number_of_rows_has_a_process_of_its_own(tmp_path: Path) -> None:
    result = evaluate.run(rows=evaluate.FEW_ROWS + 1, folder=tmp_path)
    assert result["rows"] == result["few_rows"] + 1
    assert min(result.values()) > 0
    assert len(evaluate.table(result).splitlines()) == 2
    assert not list(tmp_path.iterdir())


def test_no_rows_are_a_users_error() -> None:
    with pytest.raises(UserError, match="--rows 0"):
        evaluate.run(rows=0)
