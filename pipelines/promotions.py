"""The record of who serves: the Delta table `promotions`, a row for every decision. MLflow's aliases only follow it.

Each decision names the champion that it was made about, and is added only while that one still serves: of two
promotions at once one wins, and the other is told.
"""

from __future__ import annotations

import getpass
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, date, datetime
from typing import Any, Literal

import pyarrow as pa

from pipelines.errors import TryAgainError
from pipelines.tables import Tables, ledger

CHAMPION, CHALLENGER, PREVIOUS = "champion", "challenger", "previous"
ALIASES = (CHAMPION, CHALLENGER, PREVIOUS)

Outcome = Literal["promoted", "kept out", "rolled back"]

SCHEMA = pa.schema(
    [
        ("number", pa.int64()),
        ("version", pa.int64()),
        ("run_id", pa.string()),
        ("as_of", pa.date32()),
        ("through", pa.date32()),
        ("decision", pa.string()),
        ("champion", pa.int64()),
        ("mode", pa.string()),
        ("reasons", pa.list_(pa.string())),
        ("metric", pa.string()),
        ("champion_value", pa.float64()),
        ("challenger_value", pa.float64()),
        ("difference", pa.float64()),
        ("low", pa.float64()),
        ("high", pa.float64()),
        ("at", pa.timestamp("us", tz="UTC")),
        ("by", pa.string()),
    ]
)


@dataclass(frozen=True)
class Measured:
    """The primary metric of both, and their difference with its 95 % interval."""

    metric: str
    champion_value: float
    challenger_value: float
    difference: float
    low: float
    high: float


@dataclass(frozen=True)
class Entry:
    """One decision.

    Attributes:
        version: whom it is about: trained for `as_of`, on days through `through`, by the run `run_id`.
        decision: whether it serves from now on: `promoted` by the gate, put there by a person (`rolled back`), or
            `kept out`.
        champion: who served until then; None where nobody did.
        mode: the gate's; None where it was not asked.
        measured: None where nothing was.
        number: 1, 2, …; given when the entry is added, as are `at` and `by`.
    """

    version: int
    run_id: str
    as_of: date
    through: date
    decision: Outcome
    champion: int | None
    reasons: tuple[str, ...]
    mode: str | None = None
    measured: Measured | None = None
    number: int = 0
    at: datetime | None = None
    by: str = ""

    @property
    def moves(self) -> bool:
        """Whether its version serves from then on."""
        return self.decision != "kept out"


@dataclass(frozen=True)
class State:
    """What the record says, oldest entry first."""

    entries: tuple[Entry, ...] = ()

    @property
    def serving(self) -> Entry | None:
        """The entry of the champion; None before the first."""
        return next((entry for entry in reversed(self.entries) if entry.moves), None)

    @property
    def champion(self) -> int | None:
        """The version that serves."""
        return self.serving.version if self.serving else None

    @property
    def aliases(self) -> dict[str, int]:
        """What versions are called: the champion, who served before, and who was last kept out since."""
        if self.serving is None:
            return {}
        found = {CHAMPION: self.serving.version}
        if self.serving.champion is not None:
            found[PREVIOUS] = self.serving.champion
        if not self.entries[-1].moves:
            found[CHALLENGER] = self.entries[-1].version
        return found

    def taken_back(self, version: int) -> Entry | None:
        """The entry by which a person took a champion back, if none has put it there again since."""
        for entry in reversed(self.entries):
            if entry.moves and entry.version == version:
                return None
            if entry.decision == "rolled back" and entry.champion == version:
                return entry
        return None


class Promotions:
    """The record of one recommender."""

    def __init__(self, tables: Tables) -> None:
        self._place = tables.place("promotions")

    def __str__(self) -> str:
        return str(self._place)

    def state(self) -> State:
        """The record as it is now.

        Raises:
            TryAgainError: the storage cannot be reached.
        """
        rows = ledger.rows_of(self._place)
        return _state(rows) if rows is not None else State()

    def add(self, entry: Entry, seen: State) -> Entry:
        """Add a decision that was made on the record as it was `seen`. Returns it as it was added.

        A version that was kept out and is again, such as by a step that is repeated, is not added twice.

        Raises:
            TryAgainError: another version became the champion since.
        """
        entry = replace(entry, at=datetime.now(UTC), by=_who())

        def decide(rows: pa.Table) -> pa.Table | None:
            now = _state(rows)
            if now.champion != seen.champion:
                raise TryAgainError(
                    f"version {now.champion} became the champion while version {entry.version} was judged beside "
                    f"{seen.champion}; run this step again"
                )
            assert entry.decision != "promoted" or now.serving is None or entry.through >= now.serving.through
            if _is_repeated(entry, now):
                return None
            return _row(replace(entry, number=len(now.entries) + 1))

        ledger.append(self._place, entry.as_of, SCHEMA, decide)
        return entry


def _is_repeated(entry: Entry, now: State) -> bool:
    if entry.moves:  # the same move again, after another one, moves again
        return False
    last = next((known for known in reversed(now.entries) if known.version == entry.version), None)
    return last is not None and (last.decision, last.champion, last.reasons) == (
        entry.decision,
        entry.champion,
        entry.reasons,
    )


def _row(entry: Entry) -> pa.Table:
    values = asdict(entry)
    values |= values.pop("measured") or {}
    return pa.Table.from_pylist([values], schema=SCHEMA)


def _state(rows: pa.Table) -> State:
    return State(tuple(sorted(_entries(rows.to_pylist()), key=lambda entry: entry.number)))


def _entries(rows: Sequence[dict[str, Any]]) -> Iterable[Entry]:
    measured = Measured.__dataclass_fields__
    for row in rows:
        values = {name: row[name] for name in measured}
        known = {name: value for name, value in row.items() if name not in {*measured, "ds", "reasons"}}
        found = Measured(**values) if values["metric"] is not None else None
        yield Entry(**known, reasons=tuple(row["reasons"]), measured=found)


def _who() -> str:
    """The user of this process, as the system calls them."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return f"uid {os.getuid()}"
