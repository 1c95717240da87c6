"""What a training begins from: the champion's weights, or none, and why.

A warm start learns from the days after those that its start has learned from, and again from a sample of those: of new
days alone it would learn these by heart, and the whole window again would cost as much as a cold start. It is judged on
new days alone, so it never begins from a version that knows a day of its own validation: what is chosen there would be
chosen on rows that were learned.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

from pipelines.config import Recommender
from pipelines.registry import Registry, Version
from pipelines.split import Part, Replay, Split
from pipelines.tables import Tables
from recsys_moe import checkpoint
from recsys_moe.config import ModelConfig
from recsys_moe.encoding.growing import check_same_shape
from recsys_moe.errors import UserError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Start:
    """Where a training begins: `version` has the weights, None is a cold start; `reason` is why there is none."""

    version: Version | None = None
    reason: str = "training.warm_start is false"

    @property
    def words(self) -> str:
        """For a person."""
        return f"no ({self.reason})" if self.version is None else f"from version {self.version.number}"

    def rows_of(self, split: Split) -> Split:
        """The split of the days that it has not learned from."""
        if self.version is None:
            return split
        through = self.version.through
        return replace(split, days=tuple(day for day in split.days if day > through))

    def replaying(self, split: Split, tables: Tables, *parts: Part) -> Split:
        """The split with, of the days that it knows, `training.warm_start.replay` rows for every new one to learn."""
        settings = split.config.training.warm_start
        if self.version is None or settings is None:
            return split
        through, days = self.version.through, split.days_of(*parts)
        known = tables.count("examples", [day for day in days if day <= through])
        new = tables.count("examples", days) - known
        share = settings.replay * new / known if known else 0.0
        return replace(split, replay=Replay(through, share))


def start_of(config: Recommender, registry: Registry, split: Split) -> Start:
    """The champion, where it learned from days before the last that this training learns from.

    Where it learned later ones, or these (it may be what this training made), what it itself began from is taken, and
    so on: so a training that is repeated begins where it began.
    """
    if not config.training.warm_start:
        return Start()
    last = learned_days(config, split)[-1]
    version = registry.champion()
    if version is None:
        return Start(reason="there is no champion yet")
    while version is not None and version.through >= last:
        version = registry.started_from(version)
    return Start(version, f"no champion of before {last} is known")


def checked(start: Start, registry: Registry, shape: ModelConfig) -> tuple[Start, Path | None]:
    """The start and its checkpoint, or a cold one where a model of this shape cannot begin from it.

    A new feature in the YAML must not end a schedule of trainings; so it costs one cold start, which is told.
    """
    if start.version is None:
        return start, None
    folder = registry.checkpoint(start.version)
    try:
        _check_fits(checkpoint.load(folder).config, shape)
    except UserError as error:
        cold = Start(reason=f"version {start.version.number} does not fit: {error}")
        log.warning("warm start: %s", cold.words)
        return cold, None
    return start, folder


def learned_days(config: Recommender, split: Split) -> tuple[date, ...]:
    """The days that the final model learns from."""
    return split.days_of("train", "validation") if config.evaluation.refit else split.days_of("train")


def _check_fits(before: ModelConfig, now: ModelConfig) -> None:
    check_same_shape(before, now)
    tasks = [[(task.name, task.kind, task.given) for task in config.tasks] for config in (before, now)]
    if tasks[0] != tasks[1]:
        raise UserError(f"tasks: were {', '.join(name for name, *_ in tasks[0])}")
    if before.embedding_dim != now.embedding_dim:
        raise UserError(f"model.embedding_dim: was {before.embedding_dim}")
