"""Which days a profile is of, and which days before it they are compared with."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, timedelta

from pipelines.tables import Tables
from recsys_moe.errors import UserError

DAYS_BEFORE = 7


@dataclass(frozen=True)
class Span:
    """The days that a profile is of, and those of the week before that were ingested; both oldest first."""

    days: tuple[date, ...]
    before: tuple[date, ...]

    @classmethod
    def of(cls, tables: Tables, start: date | None, as_of: date | None) -> Span:
        """The ingested days from `start` (that day alone where None) through `as_of` (the newest where None).

        Raises:
            UserError: no day is ingested, or none of those asked for.
        """
        known = tables.days("interactions")
        if not known:
            raise UserError(f"{tables.path('interactions')}: holds no day yet; run `recsys-moe ingest` first")
        last = as_of or known[-1]
        first = start or last
        if first > last:
            raise UserError(f"--from {first} is after --as-of {last}; give the earlier day as --from")
        days = tuple(day for day in known if first <= day <= last)
        if not days:
            asked = f"{last}: has" if first == last else f"{first} to {last}: have"
            raise UserError(
                f"{asked} no rows; run `recsys-moe ingest --as-of {last}` first, and if it accepts none see "
                f"{tables.path('rejected')} (ingested are {known[0]} to {known[-1]})"
            )
        return cls(days, tuple(day for day in known if days[0] - timedelta(days=DAYS_BEFORE) <= day < days[0]))

    @property
    def every(self) -> tuple[date, ...]:
        """The days before, then the days."""
        return (*self.before, *self.days)

    @property
    def name(self) -> str:
        """`2026-01-31`, or `2026-01-01_2026-01-31` for a range."""
        first, last = self.days[0].isoformat(), self.days[-1].isoformat()
        return first if first == last else f"{first}_{last}"

    @property
    def title(self) -> str:
        """The same for a person."""
        return self.name.replace("_", " to ")

    @property
    def title_before(self) -> str:
        """The days before, for a person."""
        if len(self.before) == 1:
            return self.before[0].isoformat()
        return f"{self.before[0]} to {self.before[-1]}" if self.before else "no day"
