"""`recsys-moe tune` on a tiny recommender: its runs in MLflow, its report, and what it answers to mistakes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow.tracking import MlflowClient

from pipelines import tuning_figures, tuning_report
from pipelines.config import Recommender, Setting
from pipelines.errors import TryAgainError
from pipelines.maintain import named_versions
from pipelines.registry import Registry
from pipelines.scratch import scratch_of
from pipelines.split import Split
from pipelines.study import Trial
from pipelines.tables import Tables
from pipelines.tune import _fingerprint, tune
from recsys_moe.errors import UserError
from tests.end_to_end.loop import call
from tests.pipelines.conftest import CONFIG, Tiny

SEARCH = {
    "training.learning_rate": {"low": 0.001, "high": 0.1, "log": True},
    "model.experts.hidden": {"choices": [[8], [8, 4]]},
}


def _trials() -> list[Trial]:
    rates, values = (0.001, 0.01, 0.02, 0.05, 0.1), (0.7, 0.6, 0.61, 0.65, 9.0)
    return [
        Trial(number, {"training.learning_rate": rate, "model.experts.hidden": (8, 4)}, value, pruned=number == 3)
        for number, (rate, value) in enumerate(zip(rates, values, strict=True))
    ]


@pytest.fixture
def registry(tiny: Callable[..., Recommender], store: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Registry:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    return Registry(tiny(name=f"study_{tmp_path.name}"))


def test_a_search_goes_on_in_its_run_and_what_was_killed_is_said(registry: Registry) -> None:
    with registry.study("tune", "abc", {"as_of": "2026-01-06"}) as first:
        for number in (0, 1):
            with registry.trial(f"trial {number}", number) as run:
                run.metrics({"objective": 0.5})
    with registry.study("tune", "abc", {"as_of": "2026-01-06"}) as again:
        (lost,) = registry.trials(again, but=[0])
        registry.end_as_killed(lost)
        assert len(registry.trials(again)) == 1
    assert again.run_id == first.run_id
    assert registry.client.get_run(lost).info.status == "KILLED"
    assert registry.client.get_run(lost).data.tags["mlflow.parentRunId"] == first.run_id
    with registry.study("tune", "another", {}) as other:
        assert other.run_id != first.run_id
        assert registry.trials(other) == []


def test_the_table_has_the_most_important_setting_first(tiny: Callable[..., Recommender]) -> None:
    best_first = sorted(_trials(), key=lambda trial: trial.value)
    lines = tuning_report.table(best_first, {"training.learning_rate": 0.9, "model.experts.hidden": 0.1}, "log_loss", 2)
    assert [line.split() for line in lines.splitlines()] == [
        ["trial", "log_loss", "learning_rate", "hidden"],
        ["1", "0.60000", "0.01", "8-4"],
        ["2", "0.61000", "0.02", "8-4"],
        ["importance", "90%", "10%"],
    ]


def test_the_snippet_can_stand_in_place_of_the_blocks(tiny: Callable[..., Recommender]) -> None:
    config, best = tiny(), _trials()[1]
    blocks = yaml.safe_load(tuning_report.snippet(config, best, "found"))
    assert set(blocks) == {"model", "training"}
    pasted = tiny(**blocks)
    assert (pasted.model, pasted.training) == (config.tuned(best.values).model, config.tuned(best.values).training)


def test_one_trial_that_went_very_wrong_does_not_hide_the_others() -> None:
    search = {"training.learning_rate": Setting(low=0.001, high=0.1, log=True)}
    search["model.experts.hidden"] = Setting(choices=((8,), (8, 4)))
    trials = _trials()
    drawn = [tuning_figures.by_setting(search, trials, trials[1], "log_loss")]
    drawn.append(tuning_figures.history(trials, "log_loss", higher_is_better=False))
    for figure in drawn:
        bottom, top = figure.axes[0].get_ylim()
        assert bottom < 0.6 < 0.7 < top < 2


def test_without_a_search_in_the_yaml_there_is_nothing_to_tune(tiny: Tiny) -> None:
    tiny()
    code, stdout, stderr = call("tune", "--config", tiny.folder / "configs" / "tiny.yaml", "--as-of", tiny.day(5))
    assert (code, stdout, stderr.count("\n")) == (2, "", 1)
    assert stderr.startswith("error: tuning: there is no such block in the YAML")


def test_another_yaml_is_another_search(tiny: Tiny) -> None:
    def search_of(trials: int = 20, seed: int = 0, changes: dict[str, Any] | None = None) -> str:
        config = tiny(tuning={"search": SEARCH, "trials": trials, "seed": seed}, **(changes or {}))
        assert config.tuning is not None
        split = Split(config, tiny.day(5), tuple(tiny.day(number) for number in range(6)))
        return _fingerprint(config, config.tuning, Tables(config.storage), split)

    longer, weighted = {"training": {"epochs": 2}}, {"columns": {**CONFIG["columns"], "weight": "worth"}}
    assert search_of() == search_of(trials=30)
    assert len({search_of(), search_of(seed=1), search_of(changes=longer), search_of(changes=weighted)}) == 4


def test_unprepared_days_are_told_before_anything_runs(tiny: Tiny) -> None:
    with pytest.raises(UserError, match="has no examples"):
        tune(tiny(tuning={"search": SEARCH}), tiny.day(5))


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("metric", ["log_loss", "auc", "gauc"])
def test_trials_are_runs_below_one(
    tiny: Tiny, store: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], metric: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    config = tiny(name=f"tuned_{metric}", tuning={"search": SEARCH, "metric": metric}, training={"epochs": 2})
    _prepare(config, tiny)
    result = tune(config, tiny.day(5), 7)
    assert result["trials"] == 7
    assert set(result["best"]["values"]) == set(SEARCH)
    assert "best.yaml" in {file.path for file in MlflowClient().list_artifacts(result["run_id"])}
    assert "learning_rate" in capsys.readouterr().out
    registry = Registry(config)
    runs = [registry.client.get_run(run_id) for run_id in registry.trials(registry.open_run(result["run_id"]))]
    assert len(runs) == 7
    assert {run.data.tags["outcome"] for run in runs} <= {"complete", "pruned"}
    assert all(set(run.data.params) == set(SEARCH) for run in runs)
    complete = [run.data.metrics["objective"] for run in runs if run.data.tags["outcome"] == "complete"]
    assert result["best"]["value"] == pytest.approx((min if metric == "log_loss" else max)(complete))
    assert tune(config, tiny.day(5), 7) == result
    assert not list((config.workspace / "scratch").iterdir())
    assert named_versions(registry) == {"examples": {Tables(config.storage).version("examples")}}
    (journal,) = (config.workspace / "tuning").glob("*.journal")
    said = pytest.raises(TryAgainError, match=r"scratch/tune-\w+: another process is at this very search")
    with scratch_of(config, "tune", journal.stem, resume=True), said:
        tune(config, tiny.day(5), 7)


def _prepare(config: Recommender, tiny: Tiny) -> None:
    from pipelines.ingest import ingest
    from pipelines.prepare import prepare

    for number in range(tiny.DAYS):
        ingest(config, tiny.day(number))
        prepare(config, tiny.day(number))
