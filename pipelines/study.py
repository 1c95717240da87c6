"""A search for settings that survives being killed: the only place that knows Optuna.

A study is a journal, a file to which each event adds a line. Finished trials are in it, and the one that runs now: if
its process dies, the next marks it as failed and runs its values again. What a trial draws depends on the seed and on
the trials finished before it alone, so a study that was killed and resumed tries the values of one that never was.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend
from optuna.trial import FrozenTrial, TrialState

from pipelines.config import Recommender, Setting, Value

Pruned = optuna.TrialPruned
"""Raised by `Attempt.report` where a trial is not worth going on with."""

_FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
_AGAIN = "run_again_of"
_ENOUGH = 5
"""Complete trials from which on they can say which setting matters."""
_DIGITS = 4
"""Digits of a number that a trial runs with."""


@dataclass(frozen=True)
class Trial:
    """A finished trial. A pruned one's `value` is the last that it reported."""

    number: int
    values: Mapping[str, Value]
    value: float
    pruned: bool


class Attempt:
    """A trial that is running: its `number`, its `values`, and where to report how it does."""

    def __init__(self, trial: optuna.Trial, values: Mapping[str, Value]) -> None:
        self.number, self.values = trial.number, values
        self._trial, self._reports = trial, 0

    def report(self, value: float) -> None:
        """Tell an intermediate value.

        Raises:
            Pruned: it is worse than the median of earlier trials after as many reports.
        """
        self._reports += 1
        self._trial.report(value, self._reports)
        if self._trial.should_prune():
            raise Pruned(f"worse than the median of earlier trials at validation {self._reports}")


Objective = Callable[[Attempt], float]


class Study:
    """The trials of one search, in a file of their own."""

    def __init__(self, path: Path, config: Recommender) -> None:
        """Open the study in the file `path`, or begin it there with the values that the YAML has now.

        No other process may use the file meanwhile.
        """
        assert config.tuning is not None
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        tuning = self._tuning = config.tuning
        self._space = {path: _distribution(config, path, one) for path, one in tuning.search.items()}
        self._study = optuna.create_study(
            storage=JournalStorage(_Journal(path)),
            study_name=path.stem,
            pruner=optuna.pruners.MedianPruner(),
            direction="maximize" if tuning.higher_is_better else "minimize",
            load_if_exists=True,
        )
        if not self._study.trials:
            self._begin_with({path: _stored(config.setting(path)) for path in self._space})

    def run(self, trials: int, objective: Objective, on_finished: Callable[[Trial], None]) -> None:
        """Go on until `trials` are complete or pruned; those that a killed process left behind come first.

        What else `objective` raises ends the run, and its trial is run again by the next.
        """
        self._queue_interrupted()
        while (done := len(self.finished())) < trials:
            self._study.sampler = self._sampler(done)
            trial = self._study.ask(self._space)
            attempt = Attempt(trial, self._values(trial.params))
            try:
                self._study.tell(trial, objective(attempt))
            except Pruned:
                self._study.tell(trial, state=TrialState.PRUNED)
            on_finished(self.finished()[-1])

    def finished(self) -> list[Trial]:
        """The trials that are complete or pruned, oldest first."""
        return [self._as_trial(one) for one in self._study.get_trials(deepcopy=False, states=_FINISHED)]

    def best_first(self) -> list[Trial]:
        """The complete trials, the best one first."""
        sign = -1 if self._tuning.higher_is_better else 1
        return sorted((one for one in self.finished() if not one.pruned), key=lambda one: sign * one.value)

    def importances(self) -> dict[str, float]:
        """How much of the differences between complete trials each setting explains; the most important one first.

        Shares that sum to 1, by functional ANOVA on a random forest (Hutter, Hoos & Leyton-Brown 2014). Nothing where
        there are too few trials, or all came out alike.
        """
        values = [one.value for one in self.finished() if not one.pruned]
        if len(values) < _ENOUGH or len(set(values)) < 2:
            return {}
        found = get_param_importances(self._study, evaluator=FanovaImportanceEvaluator(seed=0))
        return {path: float(share) for path, share in found.items()}

    def _values(self, params: Mapping[str, Any]) -> dict[str, Value]:
        """What a trial runs with. Numbers of a range have few digits, as a person would write them into the YAML."""
        return {path: _rounded(self._tuning.search[path], _value(params[path])) for path in self._space}

    def _as_trial(self, trial: FrozenTrial) -> Trial:
        value = trial.value if trial.value is not None else math.nan
        return Trial(trial.number, self._values(trial.params), value, trial.state == TrialState.PRUNED)

    def _sampler(self, finished: int) -> optuna.samplers.BaseSampler:
        (seed,) = np.random.SeedSequence([self._tuning.seed, finished]).generate_state(1)
        return optuna.samplers.TPESampler(seed=int(seed))

    def _begin_with(self, values: Mapping[str, Any]) -> None:
        if all(_contains(space, values[path]) for path, space in self._space.items()):
            self._study.enqueue_trial(dict(values))

    def _queue_interrupted(self) -> None:
        """Run again what was running when its process died, first put into the queue, then ended: none gets lost."""
        trials = self._study.get_trials(deepcopy=False)
        queued = {trial.user_attrs.get(_AGAIN) for trial in trials}
        for trial in [trial for trial in trials if trial.state == TrialState.RUNNING]:
            if trial.number not in queued:
                known = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
                self._study.enqueue_trial(known, user_attrs={_AGAIN: trial.number})
            self._study.tell(trial.number, state=TrialState.FAIL)


class _Journal(BaseJournalBackend):
    """What happened, a line each, in a file that only this process uses; so it needs no lock, which a kill would leave.

    A line that a killed process has not finished is cut off: what it says had not happened yet.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        whole, _, _ = path.read_bytes().rpartition(b"\n") if path.exists() else (b"", b"", b"")
        with path.open("ab") as file:
            file.truncate(len(whole) + bool(whole))
        self._path = path
        self._logs = [json.loads(line) for line in whole.splitlines()]

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """All from a number on."""
        return iter(self._logs[log_number_from:])

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Add some; they outlive the process, and the machine, when this returns."""
        with self._path.open("ab") as file:
            file.write(b"".join(json.dumps(log).encode() + b"\n" for log in logs))
            file.flush()
            os.fsync(file.fileno())
        self._logs += logs


def _distribution(config: Recommender, path: str, setting: Setting) -> BaseDistribution:
    if setting.choices is not None:
        return CategoricalDistribution([_stored(choice) for choice in setting.choices])
    assert setting.low is not None
    assert setting.high is not None
    step, low, high = setting.step, setting.low, setting.high
    if step is not None:  # the last value that is reached, or Optuna warns
        high = low + step * math.floor((high - low) / step + 1e-9)
    if config.takes_whole_numbers(path):
        return IntDistribution(int(low), int(high), log=setting.log, step=int(step or 1))
    return FloatDistribution(low, high, log=setting.log, step=step)


def _contains(space: BaseDistribution, value: Any) -> bool:
    if isinstance(space, CategoricalDistribution):
        return value in space.choices
    assert isinstance(space, IntDistribution | FloatDistribution)
    return isinstance(value, int | float) and space.low <= value <= space.high


def _stored(value: Any) -> Any:
    """What Optuna can keep: a list of layers as the JSON that it is."""
    return json.dumps(value) if isinstance(value, list | tuple) else value


def _value(stored: Any) -> Value:
    return tuple(json.loads(stored)) if isinstance(stored, str) and stored.startswith("[") else stored


def _rounded(setting: Setting, value: Value) -> Value:
    if not isinstance(value, float) or setting.low is None or setting.high is None:
        return value
    return min(max(float(f"{value:.{_DIGITS}g}"), setting.low), setting.high)
