"""What the warm start's benchmark says of two curves, and that it runs at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import warm_start
from benchmarks.warm_start import mean_curve, run, steps_share, table
from recsys_moe.errors import UserError


def curve(*losses: float) -> list[dict[str, float]]:
    return [{"step": 10.0 * (number + 1), "loss": loss} for number, loss in enumerate(losses)]


def test_the_share_is_of_the_cold_runs_steps() -> None:
    cold = curve(0.9, 0.7, 0.6, 0.5)
    assert steps_share(cold, curve(0.6, 0.5)) == 0.5
    assert steps_share(cold, curve(0.4, 0.6)) == 0.25
    assert steps_share(cold, curve(0.6, 0.51)) is None


def test_curves_of_seeds_are_taken_together() -> None:
    found = mean_curve([curve(0.75, 0.5), curve(0.25, 0.25)])
    assert found == curve(0.5, 0.375)


def test_too_little_says_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--days must be at least 1"):
        run(days=0, rows=25_000, seeds=2, folder=tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warm_start, "VALIDATIONS", 2)
    result = run(days=1, rows=1500, seeds=2, folder=tmp_path)
    assert [len(points) for points in result["curves"].values()] == [2, 2]
    assert table(result).startswith("steps_share")
    assert not list(tmp_path.iterdir())
