"""The benchmark of scoring everybody: a small one, from the marketplace to the lists."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import scoring_end_to_end
from recsys_moe.errors import UserError


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_small_one(tmp_path: Path) -> None:
    found = scoring_end_to_end.run(users=400, rows=4000, processes=1, folder=tmp_path)
    assert (found["users"], found["few_users"]) == (400, 40)
    assert found["rows"] == 400 * scoring_end_to_end.TOP_N
    assert found["pairs_per_second"] == pytest.approx(found["users_per_second"] * scoring_end_to_end.CANDIDATES)
    assert found["memory_growth"] == pytest.approx(found["peak_mb"] / found["few_peak_mb"])
    assert "400 users" in scoring_end_to_end.table(found)
    again = scoring_end_to_end.run(users=400, rows=4000, processes=1, folder=tmp_path)  # of the same marketplaces
    assert again["rows"] == found["rows"]


def test_what_cannot_be_measured_is_a_users_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--users"):
        scoring_end_to_end.run(users=5)
    with pytest.raises(UserError, match="--folder"):
        scoring_end_to_end.run(users=50, folder=tmp_path / "missing")
