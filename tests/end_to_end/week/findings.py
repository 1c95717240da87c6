"""What must hold at the end of a week, and while it lasts: whole days of scores, equal tables, justified champions."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.config import Recommender
from pipelines.promotions import Entry
from pipelines.registry import Registry
from pipelines.tables import TableName, Tables

COMPARED: tuple[TableName, ...] = (
    "interactions",
    "rejected",
    "ingested",
    "users",
    "items",
    "daily_counts",
    "daily_recent",
    "examples",
)
"""The tables that the data alone decides; scores and promotions also depend on when trainings came."""
_SECONDS_BETWEEN_LOOKS = 1.0


def days_of(config: Recommender, name: TableName) -> dict[date, pa.Table]:
    """A table's rows by day, in an order that does not depend on how they came."""
    tables, found = Tables(config.storage), {}
    if not tables.exists(name):
        return {}
    for day in tables.days(name):
        rows = tables.read_day(name, day)
        plain = [field.name for field in rows.schema if not pa.types.is_nested(field.type)]
        found[day] = rows.sort_by([(column, "ascending") for column in plain])
    return found


def differences(config: Recommender, calm: Recommender) -> list[str]:
    """The days of tables that are not the same in two recommenders."""
    found = []
    for name in COMPARED:
        ours, theirs = days_of(config, name), days_of(calm, name)
        for day in sorted({*ours, *theirs}):
            if day not in ours or day not in theirs:
                found.append(f"{name} {day}: only in the {'calm' if day in theirs else 'bad'} week")
            elif not ours[day].equals(theirs[day]):
                found.append(f"{name} {day}: {_differing(ours[day], theirs[day])}")
    return found


def _differing(ours: pa.Table, theirs: pa.Table) -> str:
    if len(ours) != len(theirs) or ours.schema != theirs.schema:
        return f"{len(ours)} rows of {ours.schema.names}, in the calm week {len(theirs)} of {theirs.schema.names}"
    return f"other values in {[name for name in ours.schema.names if not ours[name].equals(theirs[name])]}"


def problems_of_scores(rows: pa.Table, users: int, top_n: int) -> list[str]:
    """What is not whole in a version of the table `scores`: each of its days must be one list for every user."""
    found = []
    for day in rows["ds"].unique().to_pylist():
        of_day = rows.filter(pc.equal(rows["ds"], day))
        for column in ("model_version", "run_id", "scored_at"):
            if (kinds := len(of_day[column].unique())) != 1:
                found.append(f"{day}: {kinds} values of {column}")
        lists = of_day.group_by("user_id").aggregate([("rank", "min"), ("rank", "max"), ("rank", "count_distinct")])
        if len(lists) != users or len(of_day) != users * top_n:
            found.append(f"{day}: {len(of_day)} rows of {len(lists)} users, not {top_n} of each of {users}")
        elif set(lists["rank_min"].to_pylist()) != {1} or set(lists["rank_max"].to_pylist()) != {top_n}:
            found.append(f"{day}: ranks are not 1 to {top_n}")
    return found


@dataclass
class Reader:
    """Somebody who reads `scores` all the time."""

    config: Recommender
    users: int
    looks: int = 0
    problems: list[str] = field(default_factory=list)

    @contextmanager
    def reading(self) -> Iterator[Reader]:
        """Read in a thread of its own for the length of a `with` block."""
        over = threading.Event()
        thread = threading.Thread(target=self._read, args=(over,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            over.set()
            thread.join()

    def _read(self, over: threading.Event) -> None:
        while not over.wait(_SECONDS_BETWEEN_LOOKS):
            try:
                self.look()
            except Exception as error:  # a reader must never see one
                self.problems.append(f"{type(error).__name__}: {error}")

    def look(self) -> None:
        """Read all that is there now."""
        tables = Tables(self.config.storage)
        if tables.exists("scores"):
            rows = tables.dataset("scores").to_table()
            self.problems += problems_of_scores(rows, self.users, self.config.scoring.top_n)
            self.looks += 1


def every_version_of_scores(config: Recommender) -> Iterator[tuple[int, pa.Table]]:
    """All that a reader could ever have seen."""
    tables = Tables(config.storage)
    for version in range((tables.version("scores") or 0) + 1):
        yield version, tables.dataset("scores", version).to_table()


def who_served(entries: tuple[Entry, ...], at: datetime) -> int | None:
    """The champion at a moment, by the record."""
    moved = [entry for entry in entries if entry.moves and entry.at is not None and entry.at <= at]
    return moved[-1].version if moved else None


def unjustified(config: Recommender) -> list[str]:
    """The decisions that do not follow from the numbers that were recorded with them, or from each other."""
    registry, found = Registry(config), []
    serving: Entry | None = None
    for number, entry in enumerate(registry.promotions.state().entries, start=1):
        before = serving.version if serving else None
        if (entry.number, entry.champion) != (number, before):
            found.append(f"decision {entry.number} was made about champion {entry.champion}, {before} served")
        told = registry.open_run(entry.run_id).read("decision.json") or {}
        holds = serving is None or (
            entry.through >= serving.through and _gate_holds(told.get("table", []), entry, config)
        )
        if holds != entry.moves and not any(reason.startswith("hardly a row") for reason in entry.reasons):
            found.append(f"decision {entry.number}: {entry.decision} version {entry.version}: {entry.reasons}")
        serving = entry if entry.moves else serving
    if registry.aliases.known().get("champion") != (serving.version if serving else None):
        found.append(f"MLflow's aliases are {registry.aliases.known()}, by the record {serving} serves")
    return found


def _gate_holds(table: list[dict[str, Any]], entry: Entry, config: Recommender) -> bool:
    """The rules of docs/promotion.md, from the recorded table: the primary metric's interval, and the guards."""
    if not table or table[0]["role"] != "primary":
        return False
    primary, guards, delta = table[0], table[1:], config.evaluation.gate.delta
    enough = primary["low"] > (0 if entry.mode == "challenge" else -delta)
    return enough and not any(
        line["p"] is not None and line["p"] < 0.05 and line["difference"] < -delta for line in guards
    )
