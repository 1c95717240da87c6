"""From examples to a registered version: choose on validation days, then fit again on those too."""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from pipelines import figures, labels, leaks, run_page, settings, warm_start
from pipelines.catalog import model_config
from pipelines.config import Recommender
from pipelines.environment import environment
from pipelines.errors import NotDueError, TryAgainError
from pipelines.fitting import Encoded, Job, curve, lead
from pipelines.prepare import catch_up, sides_of
from pipelines.registry import Registry, Version
from pipelines.runs import Run
from pipelines.scratch import made_once, scratch_of
from pipelines.split import Part, Split, days_needed, trained_columns
from pipelines.tables import TableName, Tables
from pipelines.team import Team
from pipelines.warm_start import Start
from recsys_moe import checkpoint
from recsys_moe.config import ModelConfig
from recsys_moe.encoding import Encoder
from recsys_moe.training import Fitted
from recsys_moe.training.sharding import device_of
from recsys_moe.training.state import NOT_DECISIVE

log = logging.getLogger(__name__)

_RECIPE = 4
"""Raised when the same config and data would give another model: finished runs of before are then not taken."""
_BOTH: tuple[Part, ...] = ("train", "validation")
READ: tuple[TableName, ...] = ("examples", "users", "items")
"""The tables that a training reads; of the last two, the columns."""
CONFIG, DECISIVE, ENVIRONMENT = "config.yaml", "decisive.json", "environment.json"
"""Files of a training's run, see `describe`."""


def check_due(config: Recommender, as_of: date) -> None:
    """Raise `NotDueError` where a scheduled training for `as_of` would be too early or too late."""
    tables = Tables(config.storage)
    every_day = config.schedule is not None and config.schedule.every_day
    newest = max(tables.days("interactions"), default=as_of)
    if newest > as_of and not every_day:
        raise NotDueError(f"{as_of}: {newest} is ingested already, and its training sees this day too")
    known = [day for day in tables.days("examples") if labels.all_ripe(config, day, as_of)]
    if len(known) < days_needed(config):
        needed = days_needed(config)
        raise NotDueError(f"{as_of}: {len(known)} days are prepared and have labels, training starts at {needed}")


@dataclass(frozen=True)
class Plan:
    """What is trained: a model's shape, on which examples, and from where on."""

    config: Recommender
    shape: ModelConfig
    tables: Tables
    split: Split
    start: Start

    @cached_property
    def examples(self) -> str:
        """A digest of the examples, as they are when it is first asked for."""
        return self.tables.fingerprint("examples", self.split.days)

    @cached_property
    def decisive(self) -> dict[str, str]:
        """All that decides the result, by name: the model, its training, which examples of the days, and these."""
        config, split, start = self.config, self.split, self.start.version
        return {
            "recipe": str(_RECIPE),
            "model": self.shape.model_dump_json(),
            "training": config.training.model_dump_json(exclude=NOT_DECISIVE),
            "evaluation.split": config.evaluation.split.model_dump_json(),
            "sampling.keep_negatives": str(config.sampling.keep_negatives),
            "evaluation.refit": str(config.evaluation.refit),
            "as_of": str(split.as_of),
            "days": str(split.days),
            "columns.weight": f"weights: {config.columns.weight}",
            "examples": self.examples,
            "start": f"from {start.run_id}" if start else "from nothing",
        }

    @cached_property
    def fingerprint(self) -> str:
        """A digest of all that decides the result."""
        return hashlib.sha256("\n".join(self.decisive.values()).encode()).hexdigest()[:16]


def train(config: Recommender, as_of: date, resume: bool = True, team: Team | None = None) -> dict[str, Any]:
    """Train for the days up to `as_of` and register the result; a run that finished before is not repeated.

    Days that look back at what came in late are prepared again first. A training that was killed, or failed, is gone on
    with where it left off, unless `resume` is false. The other processes of the `team` must be at `fitting.follow`.

    Raises:
        UserError: too few days are prepared, or the data do not fit the YAML.
        TryAgainError: another process is at the same training, or the examples changed under it.
    """
    tables, registry = Tables(config.storage), Registry(config)
    caught_up = catch_up(config)
    split = Split.of(config, tables.days("examples"), as_of)
    shape = model_config(config, sides_of(config, tables))
    warnings = leaks.check(config, tables, split)
    plan = Plan(config, shape, tables, split, warm_start.start_of(config, registry, split))
    with scratch_of(config, "train", plan.fingerprint, resume) as scratch:
        version = registry.finished(plan.fingerprint)
        repeated = version is not None
        if version is None:
            version = _train(plan, registry, scratch, resume, team or Team())
    registry.describe(version, {"leaks": " | ".join(warnings)[:4000]} if warnings else {})
    run_page.refresh(registry, version)
    return {
        "step": "train",
        "as_of": as_of.isoformat(),
        "version": version.number,
        "run_id": version.run_id,
        "trained_through": version.through.isoformat(),
        "repeated": repeated,
        "prepared_again": [day.isoformat() for day in caught_up],
        "warnings": warnings,
        "versions": {"examples": tables.version("examples")},
    }


def _train(plan: Plan, registry: Registry, scratch: Path, resume: bool, team: Team) -> Version:
    start, champion = warm_start.checked(plan.start, registry, plan.shape)
    with registry.training(_title(plan, start), _tags(plan, start), resume) as run:
        describe(run, plan, team)
        folder = fit_to_folder(Work(plan, start, champion, registry, scratch, run, team))
        example = next(plan.split.rows(plan.tables, "train", columns=plan.shape.columns)).slice(0, 5)
        return registry.register(run, folder, example, [task.name for task in plan.shape.tasks])


def fit_to_folder(work: Work) -> Path:
    """Fit what was planned. Returns the checkpoint's folder, in the scratch folder.

    Raises:
        TryAgainError: the examples changed under it.
    """
    plan = work.plan
    encoder, fitted = _choose_and_fit(work)
    if plan.tables.fingerprint("examples", plan.split.days) != plan.examples:
        raise TryAgainError("the examples were prepared again while this training read them; train again")
    folder = work.scratch / "checkpoint"
    checkpoint.save(folder, encoder, fitted.model, fitted.table_sums)
    return folder


def _choose_and_fit(work: Work) -> tuple[Encoder, Fitted]:
    """Fit on the training days to find the best epoch, then on those and the validation days for as many epochs.

    A warm start that knows all training days has nothing to choose by; it makes as many epochs as its start did.
    """
    config = work.plan.config
    if not work.new_days.days_of("train"):
        return work.fit("refit", work.encoded("both", _BOTH), work.epochs_of_start())
    train_days = work.encoded("train", ("train",), ("validation",))
    encoder, chosen = work.fit("train", train_days, config.training.epochs)
    best, held_out = chosen.best_epoch, train_days.held_out.num_rows
    points = curve(work.run, "train", [f"loss/{task.name}" for task in config.tasks])
    work.run.picture(figures.training_curve(points, chosen.history), "pictures/training.png")
    work.run.metrics({"best_epoch": best, "validation/rows": held_out})
    if config.evaluation.refit and held_out:
        return work.fit("refit", work.encoded("both", _BOTH), best)
    return (encoder, chosen) if best == config.training.epochs else work.fit("refit", train_days, best)


@dataclass(frozen=True)
class Work:
    """A training at work: what it is, where its files lie, and who is told."""

    plan: Plan
    start: Start
    champion: Path | None
    registry: Registry
    scratch: Path
    run: Run
    team: Team

    @property
    def new_days(self) -> Split:
        """The days that the start does not know."""
        return self.start.rows_of(self.plan.split)

    def encoded(self, name: str, learn: Sequence[Part], held_out: Sequence[Part] = ()) -> Encoded:
        """Rows of some parts. The encoder looks at the whole window, also where not all of it is learned from: what is
        frequent, and what is usual of a number, does not change from one day to the next."""
        tables, split = self.plan.tables, self.plan.split
        read = trained_columns(self.plan.config, self.plan.shape)

        def fit_encoder(blocks: Iterable[pa.RecordBatch]) -> Encoder:
            return Encoder.fit(self.plan.shape, blocks, Encoder.load(self.champion) if self.champion else None)

        replaying, window = self.start.replaying(split, tables, *learn), split.rows_to_learn(tables, *learn, **read)
        learned = None if replaying == split else replaying.rows_to_learn(tables, *learn, **read)
        judged = self.new_days.rows(tables, *held_out, **read) if held_out else ()
        return Encoded.once(self.scratch / name, fit_encoder, window, judged, learned)

    def fit(self, phase: str, encoded: Encoded, epochs: int) -> tuple[Encoder, Fitted]:
        """Fit, or go on with it, with all processes of the team."""
        training = self.plan.config.training.model_copy(update={"epochs": epochs})
        job = Job(rows=encoded.folder, state=self.scratch / f"{phase}-state", training=training, start=self._start())
        fitted = lead(job, phase, self.run, self.team)
        # After the losses: what a run is told first, the comparison of runs shows unasked.
        self.run.metrics({f"{phase}/rows": encoded.train.num_rows})
        return encoded.encoder, fitted

    def epochs_of_start(self) -> int:
        """How often the start was shown each row, as far as the YAML still allows it: so often are the new ones."""
        assert self.start.version is not None
        known = self.registry.open_run(self.start.version.run_id).history("best_epoch")
        epochs = min(int(known[0]), self.plan.config.training.epochs)
        self.run.metrics({"best_epoch": epochs})
        return epochs

    def _start(self) -> Path | None:
        """The champion's checkpoint, where all processes see it."""
        champion = self.champion
        if champion is None:
            return None

        def copy(folder: Path) -> None:
            shutil.copytree(champion, folder, dirs_exist_ok=True)

        return made_once(self.scratch / "start", copy)


def _title(plan: Plan, start: Start) -> str:
    """What tables and legends call the run: in an experiment of one recommender, what makes it differ from others.

    Without the year, which the tag `as_of` has: the UI's table cuts longer names off.
    """
    return f"{plan.split.as_of:%m-%d} {settings.preset(plan.config)}{' warm' if start.version else ''}"


def _tags(plan: Plan, start: Start) -> dict[str, str]:
    learned = warm_start.learned_days(plan.config, plan.split)
    tags = {
        "preset": settings.preset(plan.config),
        "as_of": plan.split.as_of.isoformat(),
        "trained_from": learned[0].isoformat(),
        "trained_through": learned[-1].isoformat(),
        "test_days": ",".join(day.isoformat() for day in plan.split.days_of("test")),
        "fingerprint": plan.fingerprint,
        "settings": settings.digest(plan.config),
        "warm_start": start.words,
        "mlflow.source.name": str(plan.config.origin.file),
    }
    return tags | ({"started_from": str(start.version.number)} if start.version else {})


def describe(run: Run, plan: Plan, team: Team) -> None:
    """What the run is of: settings, the YAML as it was written, the tables at their versions, and what it ran on.

    Of `${VAR}` in the YAML only the name is kept: it may be a secret. What decides the result stands in decisive.json.
    """
    run.params(settings.compared(plan.config))
    run.text(plan.config.origin.text, CONFIG)
    run.table(plan.decisive, DECISIVE)
    training = plan.config.training
    threads, device = training.threads or torch.get_num_threads(), device_of(training).type
    run.table(environment(threads, team.world, device), ENVIRONMENT)
    versions = {name: plan.tables.version(name) for name in READ}
    run.inputs({name: (plan.tables.path(name), at) for name, at in versions.items() if at is not None})
