"""One thing that is watched: a number, how far off it is, and what follows from that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pipelines.config import Limits

Verdict = Literal["ok", "warn", "retrain"]
Group = Literal["freshness", "volume", "drift", "score_drift", "calibration", "served", "experts"]
VERDICTS: tuple[Verdict, ...] = ("ok", "warn", "retrain")
_DATA: set[tuple[Group, str]] = {
    ("freshness", "data"),
    ("freshness", "prepared"),
    ("volume", "rows"),
    ("volume", "users"),
    ("volume", "items"),
}


@dataclass(frozen=True)
class Check:
    """One number beside its limits.

    Attributes:
        name: which of its group, such as `rows`, a column, or a task.
        text: what was seen, a sentence without its full stop.
        value: the number; None where it is not defined.
        limits: what `off` is compared with.
        off: how far off the value is, for certain; None where that is the value itself.
        apparent: how far off it looks, chance included; None where that is `off`.
        segment: whose rows it is of; None where all.
        rows: how many it is of; None where it is not of rows.
        is_sure: whether so few rows, or chance alone, could not have made it so.
    """

    group: Group
    name: str
    text: str
    value: float | None
    limits: Limits
    off: float | None = None
    apparent: float | None = None
    segment: str | None = None
    rows: int | None = None
    is_sure: bool = True

    @property
    def verdict(self) -> Verdict:
        """What follows."""
        return self._at(self.value if self.off is None else self.off) if self.is_sure else "ok"

    @property
    def may_be_chance(self) -> bool:
        """Whether it looks worse than it is known to be."""
        seen = next((value for value in (self.apparent, self.off) if value is not None), self.value)
        return self._at(seen) != self.verdict

    def _at(self, off: float | None) -> Verdict:
        if off is None:
            return "ok"
        if self.limits.retrain is not None and off >= self.limits.retrain:
            return "retrain"
        return "warn" if self.limits.warn is not None and off >= self.limits.warn else "ok"

    def as_json(self) -> dict[str, Any]:
        """All of it, for a file."""
        return {
            "group": self.group,
            "name": self.name,
            "segment": self.segment,
            "value": self.value,
            "rows": self.rows,
            "warn": self.limits.warn,
            "retrain": self.limits.retrain,
            "verdict": self.verdict,
            "text": self.text,
        }


@dataclass(frozen=True)
class Judged:
    """What follows from all checks together.

    Where the day's data itself is off, in time or volume, no training is due: it would learn from what has to be
    mended first. `reasons` are those for a training, also where it waits for that.
    """

    checks: tuple[Check, ...]

    @property
    def found(self) -> list[Check]:
        """The checks that are not ok, worst first; of a segment only what is worse there than over all rows."""
        of_all = {(one.group, one.name): VERDICTS.index(one.verdict) for one in self.checks if one.segment is None}
        worse = [
            check
            for check in self.checks
            if VERDICTS.index(check.verdict) > (of_all.get((check.group, check.name), 0) if check.segment else 0)
        ]
        return sorted(worse, key=lambda check: (-VERDICTS.index(check.verdict), check.segment is not None))

    @property
    def reasons(self) -> list[str]:
        """Why a training is due."""
        return [check.text for check in self.found if check.verdict == "retrain"]

    @property
    def held_back(self) -> list[str]:
        """What has to be mended before."""
        return [check.text for check in self.found if (check.group, check.name) in _DATA]

    @property
    def retrain(self) -> bool:
        """Whether a training is due now."""
        return bool(self.reasons) and not self.held_back

    @property
    def verdict(self) -> Verdict:
        """The worst of all; `warn` for a training that has to wait."""
        if self.retrain:
            return "retrain"
        return "warn" if self.found else "ok"


def factor(value: float | None) -> float | None:
    """How many times too much or too little: 2 for 2 and for a half. None for 0, which is not a multiple of any."""
    return max(value, 1 / value) if value else None


def counted(checks: Sequence[Check]) -> dict[str, int]:
    """How many checks there are of each verdict."""
    return {verdict: sum(check.verdict == verdict for check in checks) for verdict in VERDICTS}
