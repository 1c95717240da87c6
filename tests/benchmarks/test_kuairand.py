"""The comparison on real days: models are what they are called and cost what is said. Needs none of the data."""

from __future__ import annotations

import pytest

from benchmarks import kuairand
from benchmarks.kuairand import Days
from pipelines.config import load
from recsys_moe.errors import UserError


def test_one_seed_makes_no_interval() -> None:
    with pytest.raises(UserError, match="at least 2"):
        kuairand.run(seeds=1)


def test_the_summary_has_intervals_and_paired_differences() -> None:
    ours = [
        {"metrics": {"click_auc": 0.70 + n / 100}, "parameters": 5, "multiplications": 7, "seconds": 2.0}
        for n in (0, 2)
    ]
    other = [{**result, "metrics": {"click_auc": result["metrics"]["click_auc"] - 0.01}} for result in ours]
    summary = kuairand._summary(other, ours)
    assert summary["click_auc"]["mean"] == pytest.approx(0.70)
    assert summary["click_auc"]["low"] < 0.70 < summary["click_auc"]["high"]
    assert summary["click_auc_above"] == pytest.approx({"mean": -0.01, "low": -0.01, "high": -0.01})
    text = kuairand.table({"models": {"mmoe": summary}})
    assert text.splitlines()[0] == "| | click AUC | multiplications a row |"
    assert text.splitlines()[2].startswith("| mmoe | 0.7000 ±")


@pytest.mark.skipif(not kuairand.CONFIG.exists(), reason="the repository's configs are not there")
def test_days_that_are_not_there_are_said(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUAIRAND", str(tmp_path))
    config = load(kuairand.CONFIG).model_copy(update={"storage": str(tmp_path / "storage")})
    with pytest.raises(UserError, match=r"20220425\.csv"):
        Days.of(config, kuairand.LAST_DAY)
