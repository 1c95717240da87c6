"""From examples to better settings: trials on the training window, judged on the validation days, never on the test's.

A trial is a short training. One that does worse than the median of those before it at the same validation is pruned.
Killed and called again, it goes on where it was (`pipelines.study`), in the same runs.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass, field
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines import tuning_figures, tuning_report
from pipelines.catalog import model_config
from pipelines.config import Recommender, Tuning
from pipelines.fitting import Encoded
from pipelines.held_out import HeldOut
from pipelines.prepare import catch_up, sides_of
from pipelines.registry import Registry
from pipelines.runs import Run
from pipelines.scratch import scratch_of
from pipelines.split import Split, trained_columns
from pipelines.study import Attempt, Pruned, Study, Trial
from pipelines.tables import Tables
from recsys_moe.config import ModelConfig, TrainingConfig
from recsys_moe.encoding import Encoder, Loader
from recsys_moe.errors import UserError
from recsys_moe.model import RankingModel
from recsys_moe.training import fit
from recsys_moe.training.state import NOT_DECISIVE

log = logging.getLogger(__name__)

_RECIPE = 2
"""Raised when the same settings and data would be judged otherwise: studies of before are then not gone on with."""
_LOSS = "validation/loss"


def tune(config: Recommender, as_of: date, trials: int | None = None) -> dict[str, Any]:
    """Search for better settings with the days up to `as_of`; a search that was begun before is gone on with.

    Args:
        trials: how many there shall be in the end; what the YAML says if None.

    Raises:
        UserError: the YAML says nothing of a search, too few days are prepared, or no trial can be trained.
        TryAgainError: another process is at the same search.
    """
    if config.tuning is None:
        raise UserError("tuning: there is no such block in the YAML; name the settings to search for (docs/tuning.md)")
    tables = Tables(config.storage)
    catch_up(config)
    split = Split.of(config, tables.days("examples"), as_of)
    name = _fingerprint(config, config.tuning, tables, split)
    registry = Registry(config)
    with scratch_of(config, "tune", name, resume=True) as scratch:
        study = Study(config.workspace / "tuning" / f"{name}.journal", config)
        with registry.study(f"tune {as_of}", name, {"as_of": as_of.isoformat()}) as parent:
            for left in registry.trials(parent, but=[trial.number for trial in study.finished()]):
                registry.end_as_killed(left)
            _describe(parent, config.tuning, tables)
            search = _Search(config, config.tuning, tables, split, scratch, registry, study)
            study.run(trials or config.tuning.trials, search.judge, search.tell)
            return {"step": "tune", "as_of": as_of.isoformat(), **_conclude(config, study, registry, parent)}


@dataclass
class _Search:
    """What all trials share."""

    config: Recommender
    tuning: Tuning
    tables: Tables
    split: Split
    scratch: Path
    registry: Registry
    study: Study
    _held_out: HeldOut | None = field(default=None, init=False)

    def judge(self, attempt: Attempt) -> float:
        """Train with the values of a trial, in a run of its own, and measure it on the validation days."""
        with self.registry.trial(f"trial {attempt.number}", attempt.number) as run:
            run.params(attempt.values)
            try:
                value = self._train(attempt, run)
            except Pruned as reason:
                run.tags({"outcome": "pruned", "reason": str(reason)})
            else:
                run.metrics({"objective": value})
                run.tags({"outcome": "complete"})
                return value
        raise Pruned

    def tell(self, trial: Trial) -> None:
        """Say how a trial ended and which one leads."""
        best = next(iter(self.study.best_first()), None)
        leads = f"; best: trial {best.number} with {best.value:.5f}" if best else ""
        ended = "pruned" if trial.pruned else "complete"
        log.info("trial %d: %s, %s %.5f%s", trial.number, ended, judged_by(self.config), trial.value, leads)

    def _train(self, attempt: Attempt, run: Run) -> float:
        config = self.config.tuned(attempt.values)
        shape = model_config(config, sides_of(config, self.tables))
        encoded, training = self._encoded(shape), _compared_often(config.training, self.tuning.validations)
        encoder, size, buffer = encoded.encoder, training.batch_size, training.buffer_rows
        loader = Loader(encoder, encoded.train, size, shuffle=training.seed, buffer_rows=buffer)
        held_out = Loader(encoder, encoded.held_out, size)

        def on_validation(record: dict[str, float]) -> None:
            losses = {name: value for name, value in record.items() if name.startswith(_LOSS)}
            run.metrics(losses, int(record["step"]))
            attempt.report(-losses[self._loss] if self.tuning.higher_is_better else losses[self._loss])

        try:
            fitted = fit(shape, training, encoder, loader, validation=held_out, on_validation=on_validation)
        except UserError as error:
            if not self.study.best_first():  # perhaps none can be trained, whatever its values
                raise
            raise Pruned(str(error)) from error
        if self.tuning.higher_is_better:
            return self._measured(fitted.model, held_out)
        return min(record[self._loss] for record in fitted.history)

    @property
    def _loss(self) -> str:
        """What trials are compared by while they run, as the records of a validation call it."""
        task = self.tuning.task or (self.config.primary_task if self.tuning.higher_is_better else None)
        return f"{_LOSS}/{task}" if task else _LOSS

    def _encoded(self, shape: ModelConfig) -> Encoded:
        """What trials read, made once for all that agree in what it depends on: of the settings only `min_count`."""
        split, tables, read = self.split, self.tables, trained_columns(self.config, shape)

        folder = self.scratch / f"min_count-{shape.min_count}"
        learned, held_out = split.rows_to_learn(tables, "train", **read), split.rows(tables, "validation", **read)
        encoded = Encoded.once(folder, partial(Encoder.fit, shape), learned, held_out)
        if not encoded.held_out.num_rows:
            raise UserError("tuning: trials are judged on validation rows, and evaluation.split holds out none")
        return encoded

    def _measured(self, model: RankingModel, held_out: Loader) -> float:
        """The metric of a fitted model on the validation rows."""
        if self._held_out is None:
            self._held_out = HeldOut.of(self.config, self.tables, self.split, "validation")
        names, wanted = [task.name for task in self.config.tasks], self.tuning.task or self.config.primary_task
        said = _probabilities(model, held_out)[:, names.index(wanted)]
        value = self._held_out.measure({wanted: said})[wanted][self.tuning.metric]
        if not np.isfinite(value):
            raise UserError(
                f"tuning.metric: {wanted} has no {self.tuning.metric} on the validation days, one class only"
            )
        return value


@torch.no_grad()
def _probabilities(model: RankingModel, loader: Loader) -> NDArray[np.float64]:
    """[rows, T] of all rows, in order."""
    parts = [model.probabilities(model(batch)[0]).numpy() for batch in loader.batches()]
    return np.concatenate(parts).astype(np.float64)


def _compared_often(training: TrainingConfig, validations: int) -> TrainingConfig:
    """With as many validations as trials are compared at; but `early_stopping` counts those that the YAML asks for."""
    if training.early_stopping is not None:
        return training
    return training.model_copy(update={"validations": max(training.validations, validations)})


def judged_by(config: Recommender) -> str:
    """What makes one trial better than another, in words."""
    tuning = config.tuning
    assert tuning is not None
    task = tuning.task or (config.primary_task if tuning.higher_is_better else "all tasks")
    return f"{tuning.metric} of {task}"


def _conclude(config: Recommender, study: Study, registry: Registry, parent: Run) -> dict[str, Any]:
    """Show what was found: pictures, a description and YAML in the run, a table for a person, and the result."""
    best_first, trials, shares = study.best_first(), study.finished(), study.importances()
    if not best_first:
        raise UserError("tuning.search: no trial could be trained to its end; look at their runs, and search elsewhere")
    assert config.tuning is not None
    best, judged = best_first[0], judged_by(config)
    if shares:
        parent.picture(tuning_figures.importances(shares), "pictures/importances.png")
    search = {path: config.tuning.search[path] for path in (shares or config.tuning.search)}
    parent.picture(tuning_figures.by_setting(search, trials, best, judged), "pictures/by_setting.png")
    higher = config.tuning.higher_is_better
    parent.picture(tuning_figures.history(trials, judged, higher), "pictures/history.png")
    found = f"trial {best.number}: {judged} {best.value:.5f} on the validation days"
    yaml_text = tuning_report.snippet(config, best, found)
    parent.text(yaml_text, "best.yaml")
    text = tuning_report.table(best_first, shares, config.tuning.metric)
    parent.description(tuning_report.description(text, yaml_text, found, shares, registry.compare_address(parent)))
    parent.metrics({"objective": best.value, **{f"importance/{path}": share for path, share in shares.items()}})
    print(f"{text}\n\n{yaml_text}", flush=True)
    return {
        "run_id": parent.run_id,
        "metric": judged,
        "trials": len(trials),
        "pruned": sum(trial.pruned for trial in trials),
        "best": {"trial": best.number, "value": best.value, "values": tuning_report.as_json(best.values)},
        "importances": shares,
    }


def _describe(parent: Run, tuning: Tuning, tables: Tables) -> None:
    """What the run is of: the search space, by path, and the examples at their version."""
    spaces = {path: one.model_dump_json(exclude_defaults=True) for path, one in tuning.search.items()}
    known: dict[str, object] = {"tuning.metric": tuning.metric, "tuning.task": tuning.task, "tuning.seed": tuning.seed}
    parent.params(known | spaces)
    version = tables.version("examples")
    if version is not None:
        parent.inputs({"examples": (tables.path("examples"), version)})


def _fingerprint(config: Recommender, tuning: Tuning, tables: Tables, split: Split) -> str:
    """A digest of all that decides how trials come out, but not of how many there are."""
    parts = [
        str(_RECIPE),
        tuning.model_dump_json(exclude={"trials"}),
        model_config(config, sides_of(config, tables)).model_dump_json(),
        config.training.model_dump_json(exclude=NOT_DECISIVE),
        config.evaluation.split.model_dump_json(),
        str(config.sampling.keep_negatives),
        f"weights: {config.columns.weight}",
        judged_by(config),
        str(split.days),
        tables.fingerprint("examples", split.days_of("train", "validation")),
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
