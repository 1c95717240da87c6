"""The monitor over a night that was played: every group is looked at, and trainings stay among themselves."""

from __future__ import annotations

from pipelines.registry import Registry
from tests.end_to_end.loop import SECOND_NIGHT, Played, call_step

GROUPS = {"freshness", "volume", "drift", "score_drift", "calibration", "served", "experts"}


def test_a_night_is_looked_at_in_every_way(played: Played) -> None:
    registry = Registry(played.config)
    trainings = registry.client.search_runs([registry.experiment_id])
    result = call_step("monitor", "--config", played.path, "--as-of", SECOND_NIGHT.isoformat())
    assert result["model_version"] == 1  # whose scores of the night before served the day
    assert result["checks"]["ok"] > 30
    assert result["retrain"] == bool(result["reasons"] and not result["held_back"])

    run = registry.open_run(result["run_id"])
    found = run.read("monitor.json")
    assert found is not None
    assert {check["group"] for check in found["checks"]} == GROUPS
    assert {check["segment"] for check in found["checks"] if check["group"] == "served"} > {None}
    assert run.facts().metrics["monitor/calibration/click"] == next(
        check["value"] for check in found["checks"] if (check["group"], check["name"]) == ("calibration", "click")
    )
    page = run.read_text("report.html")
    assert page is not None
    assert "What drifted most" in page
    assert "Version 1 served this day" in page
    after = registry.client.search_runs([registry.experiment_id])
    assert [run.info.run_id for run in after] == [run.info.run_id for run in trainings]
