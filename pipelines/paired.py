"""Two versions on the same rows: those that neither has learned from."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Self

import numpy as np
from numpy.typing import NDArray

from pipelines.config import Recommender, TimeSplit
from pipelines.evaluate import held_out_rows, scores_of
from pipelines.gate import PairedRows, TaskRows
from pipelines.held_out import HeldOut, users_within
from pipelines.predictions import Scores
from pipelines.registry import Registry, Version
from recsys_moe import checkpoint
from recsys_moe.checkpoint import Ranker
from recsys_moe.encoding import Loader
from recsys_moe.errors import OldFormatError, UserError
from recsys_moe.routing import routing_report

log = logging.getLogger(__name__)

_HEALTH_ROWS, _BATCH_ROWS = 50_000, 8192


class NotComparableError(UserError):
    """Two versions have nothing that both can be judged by; the message says why."""


@dataclass(frozen=True)
class Contender:
    """A version and its model."""

    version: Version
    ranker: Ranker

    @classmethod
    def of(cls, registry: Registry, version: Version) -> Self:
        """Read the version's checkpoint.

        Raises:
            OldFormatError: another version of this project wrote it.
            UserError: it is damaged, or not the one that was registered.
        """
        return cls(version, checkpoint.load(registry.checkpoint(version)))


@dataclass(frozen=True)
class Pair:
    """Two versions, and the rows of test days that come after the last day of both.

    Attributes:
        kept: [rows of `held_out`] whether a row is one of them.
    """

    held_out: HeldOut
    champion: Contender
    challenger: Contender
    kept: NDArray[np.bool_]

    @classmethod
    def of(cls, config: Recommender, as_of: date, champion: Contender, challenger: Contender) -> Self:
        """Find the rows among the test rows of the training for `as_of`.

        Raises:
            NotComparableError: there are none, or one of the two does not know a task that the gate names.
        """
        held_out = held_out_rows(config, as_of)
        for one in (champion, challenger):
            if lacking := sorted(set(_tasks(config)) - {task.name for task in one.ranker.config.tasks}):
                number = one.version.number
                raise NotComparableError(
                    f"version {number} has no task {lacking[0]!r}, which evaluation.gate judges by"
                )
        later = _later(held_out, champion.version, challenger.version)
        if not later.any():
            last = max(champion.version, challenger.version, key=lambda version: version.through)
            days = ", ".join(map(str, held_out.split.days_of("test")))
            raise NotComparableError(
                f"there are no rows to judge by: version {last.number} learned through {last.through}, "
                f"and the test days of {as_of} ({days}) are not after that"
            )
        within = users_within(held_out.users[later], config.evaluation.gate.max_rows)
        return cls(held_out, champion, challenger, later & (held_out.users < max(within, 1)))

    def rows(self) -> PairedRows:
        """What both say of them.

        Raises:
            UserError: one of the two reads columns that the examples do not have.
        """
        said = [self._said_by(one) for one in (self.champion, self.challenger)]
        segments, labels = self.held_out.segments(self.challenger.ranker), self.held_out.labels
        wanted = self.held_out.config.evaluation.gate.segments
        if unknown := [name for name in wanted if name not in segments.names] if wanted != "all" else []:
            log.warning(
                "evaluation.gate.segments: %s is no segment of version %d, so it is not guarded; there is %s",
                *(", ".join(map(repr, unknown)), self.challenger.version.number, ", ".join(map(repr, segments.names))),
            )
        tasks = {
            name: TaskRows(
                self.held_out.kind(name), labels[name][self.kept], said[0][name][self.kept], said[1][name][self.kept]
            )
            for name in _tasks(self.held_out.config)
        }
        return PairedRows(self.held_out.users[self.kept], segments.codes[self.kept], segments.names, tasks)

    def dead_experts(self) -> tuple[str, ...]:
        """The routed experts of the challenger that hardly a row runs."""
        ranker = self.challenger.ranker
        rows, _ = self.held_out.sample(ranker.config, _HEALTH_ROWS)
        encoder = ranker.encoder
        return routing_report(ranker.model, Loader(encoder, encoder.encode(rows), _BATCH_ROWS).batches()).dead

    def _said_by(self, one: Contender) -> Scores:
        try:
            return scores_of(one.ranker, self.held_out)
        except OldFormatError:
            raise
        except UserError as error:
            as_of, number = self.held_out.split.as_of, one.version.number
            raise UserError(f"version {number} cannot be tried on the examples of {as_of}: {error}") from None


def _tasks(config: Recommender) -> Sequence[str]:
    """The tasks that the gate looks at, the primary one first."""
    return list(dict.fromkeys([config.primary_task, *(guard.task for guard in config.evaluation.gate.guards)]))


def _later(held_out: HeldOut, *versions: Version) -> NDArray[np.bool_]:
    """[rows] whether each is of a day after the last one that any of the versions learned from.

    Where rows are not held out by time, every test row is: no version learned from one, unless the split was changed.
    """
    if not isinstance(held_out.config.evaluation.split, TimeSplit):
        return np.ones(len(held_out.users), np.bool_)
    last = np.datetime64(max(version.through for version in versions), "D")
    days = [block.column("ds").to_numpy().astype("datetime64[D]") for block in held_out.blocks(["ds"])]
    later: NDArray[np.bool_] = np.concatenate(days) > last
    return later
