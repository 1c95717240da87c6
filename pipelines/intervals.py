"""95 % intervals of metrics and of differences between two models, by drawing users (`recsys_moe.user_draws`).

The cost grows with draws × rows. Where there are more rows than `MOST_ROWS`, users are a sample by hash: what is drawn
from it says how far a metric spreads, around the value that was measured on all rows. Fewer users spread wider, so such
an interval is too wide rather than too narrow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pipelines.held_out import HeldOut, users_within
from pipelines.predictions import Groups, Kind, Scores
from recsys_moe.user_draws import FEWEST_USERS, UserDraws, over_draws

MOST_ROWS = 200_000
DRAWS = 1000
LARGEST = 20
"""Segments that get intervals: those of most rows."""
OVERALL = "overall"

_METRICS: Mapping[Kind, Sequence[str]] = {"binary": ("auc", "gauc"), "regression": ("rmse",)}

Drawn = dict[str, NDArray[np.float64]]
"""By metric, [draws + 1] as `UserDraws` gives them."""


@dataclass(frozen=True)
class Intervals:
    """Users, drawn again and again, and the rows and groups of rows that they have.

    Attributes:
        draws: of the users of `rows`.
        rows: [sample] places of the rows that are drawn from.
        parts: by name, `overall` and those of groups: places among `rows`.
        users: how many there are to draw from.
    """

    held_out: HeldOut
    draws: UserDraws
    rows: NDArray[np.int64]
    parts: Mapping[str, NDArray[Any]]
    users: int

    @classmethod
    def of(cls, held_out: HeldOut, groups: Groups) -> Self:
        """Draw from the users of held-out rows, overall and for the largest `groups`."""
        users = held_out.users
        number = users_within(users, MOST_ROWS)
        kept = users < number
        rows = np.flatnonzero(kept)
        parts: dict[str, NDArray[Any]] = {**dict(groups.largest(LARGEST).among(kept)), OVERALL: np.arange(len(rows))}
        return cls(held_out, UserDraws.of(users[rows], DRAWS), rows, parts, number)

    def about(self) -> dict[str, int]:
        """How they were made."""
        return {"draws": DRAWS, "rows": len(self.rows), "users": self.users}

    def drawn(self, task: str, scores: Scores, by_group: bool = True) -> dict[str, Drawn]:
        """A model's metrics of a task in every draw: overall and, if asked for, by group."""
        kind, labels, said = self.held_out.kind(task), self.held_out.labels[task][self.rows], scores[task][self.rows]
        parts = self.parts if by_group else {OVERALL: self.parts[OVERALL]}
        return {name: self._of_part(kind, labels, said, places) for name, places in parts.items()}

    def _of_part(self, kind: Kind, labels: NDArray[Any], said: NDArray[Any], places: NDArray[Any]) -> Drawn:
        places = places[np.isfinite(labels[places]) & np.isfinite(said[places])]
        labels, said, draws = labels[places], said[places], self._within(places)
        if len(draws.counts) < FEWEST_USERS:
            return {metric: np.full(DRAWS + 1, np.nan) for metric in _METRICS[kind]}
        return {metric: getattr(draws, metric)(labels, said) for metric in _METRICS[kind]}

    def _within(self, places: NDArray[Any]) -> UserDraws:
        """The same draws, of the users of some rows."""
        distinct, user = np.unique(self.draws.user[places], return_inverse=True)
        return UserDraws(user, self.draws.counts[distinct])


def bounds(drawn: NDArray[np.float64], value: float) -> dict[str, float]:
    """`low` and `high` around what was measured on all rows."""
    found = over_draws(drawn)
    return {end: value + found[end] - found["mean"] for end in ("low", "high")}
