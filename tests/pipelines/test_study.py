"""Trials: drawn, pruned, killed and run again; with an objective that costs nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.config import Recommender
from pipelines.study import Attempt, Study, Trial
from tests.pipelines.conftest import Tiny

TRIALS = 14
SEARCH = {
    "training.learning_rate": {"low": 0.001, "high": 0.1, "log": True},
    "training.epochs": {"low": 1, "high": 9, "step": 3},
    "model.experts.hidden": {"choices": [[8], [8, 4]]},
}


class Killed(BaseException):
    """The end of a process, as far as a study can tell."""


def _valley(attempt: Attempt) -> float:
    """Best at a rate of 0.01; the layers matter a little, the epochs not at all. Pruned half-way if it looks bad."""
    rate = attempt.values["training.learning_rate"]
    assert isinstance(rate, float)
    value = (math.log10(rate) + 2) ** 2 + 0.1 * (attempt.values["model.experts.hidden"] == (8, 4))
    attempt.report(1 + value)
    attempt.report(value)
    return value


def _run(study: Study, trials: int = TRIALS, dies_at: int | None = None) -> list[int]:
    """Run until `trials` are finished, or until one dies. Returns the numbers of those that ended."""
    ended: list[int] = []

    def objective(attempt: Attempt) -> float:
        if attempt.number == dies_at:
            raise Killed
        return _valley(attempt)

    study.run(trials, objective, lambda trial: ended.append(trial.number))
    return ended


def _as_values(trials: list[Trial]) -> list[tuple[Any, ...]]:
    return [(*trial.values.values(), trial.value, trial.pruned) for trial in trials]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Recommender:
    return Tiny(tmp_path_factory.mktemp("study"))(tuning={"search": SEARCH, "seed": 0})


@pytest.fixture(scope="module")
def undisturbed(config: Recommender, tmp_path_factory: pytest.TempPathFactory) -> Study:
    study = Study(tmp_path_factory.mktemp("tuning") / "undisturbed.journal", config)
    assert _run(study) == list(range(TRIALS))
    return study


def test_trials_stay_inside_the_search_and_some_are_pruned(undisturbed: Study) -> None:
    trials = undisturbed.finished()
    assert {trial.values["training.epochs"] for trial in trials} == {1, 4, 7}
    assert {trial.values["model.experts.hidden"] for trial in trials} == {(8,), (8, 4)}
    assert all(0.001 <= trial.values["training.learning_rate"] <= 0.1 for trial in trials)  # type: ignore[operator]
    assert 0 < sum(trial.pruned for trial in trials) < TRIALS
    assert not any(trial.pruned for trial in trials[:5])
    best = undisturbed.best_first()
    assert [trial.value for trial in best] == sorted(trial.value for trial in trials if not trial.pruned)


def test_the_setting_that_matters_is_told(undisturbed: Study) -> None:
    shares = undisturbed.importances()
    assert next(iter(shares)) == "training.learning_rate"
    assert sum(shares.values()) == pytest.approx(1)


def test_killed_and_resumed_it_tries_what_it_would_have_tried(
    undisturbed: Study, config: Recommender, tmp_path: Path
) -> None:
    path = tmp_path / "tuning" / "killed.journal"
    for dies_at in (2, 3, 9):  # 3 is the trial that died as 2
        with pytest.raises(Killed):
            _run(Study(path, config), dies_at=dies_at)
    resumed = Study(path, config)
    _run(resumed)
    assert _as_values(resumed.finished()) == _as_values(undisturbed.finished())
    assert _run(resumed) == []
    assert len(_run(resumed, TRIALS + 1)) == 1


def test_a_line_that_a_killed_process_left_unfinished_had_not_happened(config: Recommender, tmp_path: Path) -> None:
    path = tmp_path / "torn.journal"
    _run(Study(path, config), 2)
    before = _as_values(Study(path, config).finished())
    with path.open("ab") as file:
        file.write(b'{"op_code": 6, "tri')
    torn = Study(path, config)
    assert _as_values(torn.finished()) == before
    assert _run(torn, 3) == [2]
    assert len(Study(path, config).finished()) == 3


def test_it_begins_with_what_the_yaml_has_where_that_is_in_the_search(
    tiny: Callable[..., Recommender], tmp_path: Path
) -> None:
    config = tiny(tuning={"search": {"training.learning_rate": {"low": 0.001, "high": 0.1}}, "metric": "auc"})
    study = Study(tmp_path / "within.journal", config)
    _run_one(study)
    (first,) = study.finished()
    assert first.values == {"training.learning_rate": config.training.learning_rate}


def _run_one(study: Study) -> None:
    study.run(1, lambda _: 0.5, lambda _: None)


def test_where_all_trials_are_alike_no_setting_matters(tiny: Callable[..., Recommender], tmp_path: Path) -> None:
    study = Study(tmp_path / "alike.journal", tiny(tuning={"search": SEARCH}))
    study.run(6, lambda _: 0.5, lambda _: None)
    assert study.importances() == {}
