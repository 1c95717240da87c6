"""Outcomes in logs of their own: every log of a day, in the columns of the table `outcomes`."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from itertools import chain
from pathlib import Path

import duckdb
import pyarrow as pa

from pipelines import contract, sources
from pipelines.calendar import days_of
from pipelines.config import OutcomeSource, Recommender
from pipelines.contract import Rule
from pipelines.ingest.judging import Counts, Judge, Judged, Terms
from pipelines.ingest.limits import check_rejected
from pipelines.sources import ROW_NUMBER, Chunk, export


class OutcomeLogs:
    """The outcome logs of a day.

    Args:
        connection: computes.
        config: the recommender.
        ds: the day.
        scratch: a folder for what does not fit in memory.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection, config: Recommender, ds: date, scratch: Path) -> None:
        self._connection, self._config, self._ds, self._scratch = connection, config, ds, scratch
        self.schema = _schema(config)
        self.counts: dict[str, Counts] = {}

    def read(self) -> Iterator[Judged]:
        """The rows of all logs, a chunk at a time, in the `schema` of the table `outcomes`.

        Raises:
            UserError: a file cannot be read, or too many of its rows do not hold.
        """
        for outcome in self._config.source.outcomes:
            terms = _terms(self._config, outcome, self._ds)
            judge = Judge(self._connection, self._config, self._ds, terms, self._scratch)
            self.counts[terms.source] = judge.counts
            for judged in judge.judge(self._chunks(outcome)):
                yield Judged(_as_outcomes(self.schema, self._config, outcome, judged.accepted), judged.rejected)
            check_rejected(self._config, self._ds, outcome.title, judge.counts)

    def _chunks(self, outcome: OutcomeSource) -> Iterator[Chunk]:
        """The rows that came with the day. Of an export, those since the day before that the log has: a day on which
        nothing was shown may have outcomes, too."""
        wanted = tuple(columns_of(self._config, outcome))
        if outcome.is_daily:
            return sources.read(outcome, self._ds, wanted)
        whole = export.of_outcome(self._config, outcome, wanted)
        log = self._config.source.interactions
        known = [] if log.sql and log.is_daily else days_of(self._config)
        before = max((day for day in known if day < self._ds), default=date.min if known else None)
        days = {day for day in whole.days() if before is not None and before < day < self._ds}
        return chain.from_iterable(whole.read(day) for day in sorted(days | {self._ds}))


def columns_of(config: Recommender, outcome: OutcomeSource) -> list[str]:
    """The columns that are read of an outcome log."""
    by = [outcome.request] if outcome.request else []
    values = [task.value for task in config.tasks if task.outcome == outcome.name and task.value]
    return list(dict.fromkeys([*by, *_who_and_what(config, outcome), outcome.timestamp.name, *values]))


def value_columns(config: Recommender) -> tuple[str, ...]:
    """The columns of outcome logs that tasks sum, each once."""
    return tuple(dict.fromkeys(task.value for task in config.tasks if task.value))


def _who_and_what(config: Recommender, outcome: OutcomeSource) -> list[str]:
    """The columns of user and item; with a request only those that are named, since a request says both."""
    if outcome.request:
        return [column for column in (outcome.user, outcome.item) if column]
    return [outcome.user or config.columns.user, outcome.item or config.columns.item]


def _terms(config: Recommender, outcome: OutcomeSource, ds: date) -> Terms:
    """Any age is right for an outcome: it is the impression's window that decides."""
    needed = [outcome.request] if outcome.request else _who_and_what(config, outcome)
    columns = columns_of(config, outcome)
    values = tuple(column for column in value_columns(config) if column in columns)
    rules: list[Rule] = [contract.is_null(column) for column in (*needed, outcome.timestamp.name)]
    any_age = config.columns.model_copy(update={"late": "accept"})
    rules += contract.time_rules(outcome.timestamp, any_age, ds)
    rules += [(contract.not_a_number(column), contract.complaint(column, "is no number")) for column in values]
    rules += contract.value_rules(config, columns)
    looked_at = tuple(contract.numeric_columns(config, columns))
    return Terms(f"outcomes.{outcome.name}", tuple(rules), tuple(columns), outcome.timestamp, values, looked_at)


def _schema(config: Recommender) -> pa.Schema:
    """Of the table `outcomes`, less `ds`: the columns of all logs, those that a log lacks null."""
    texts = [(name, pa.string()) for name in ("outcome", "user", "item", "request")]
    times = [("event_time", pa.timestamp("us", "UTC")), ("event_day", pa.date32())]
    values = [(name, pa.float64()) for name in value_columns(config)]
    return pa.schema([*texts, *times, *values, (ROW_NUMBER, pa.int64()), ("source_file", pa.string())])


def _as_outcomes(
    schema: pa.Schema, config: Recommender, outcome: OutcomeSource, rows: pa.RecordBatch
) -> pa.RecordBatch:
    names = {column: column for column in rows.schema.names}
    user, item = (outcome.user, outcome.item) if outcome.request else _who_and_what(config, outcome)
    names |= {"user": user, "item": item, "request": outcome.request}
    arrays = []
    for field in schema:
        column = names.get(field.name)
        arrays.append(rows.column(column) if column in rows.schema.names else pa.nulls(len(rows), field.type))
    arrays[0] = pa.repeat(outcome.name, len(rows))
    return pa.RecordBatch.from_arrays(arrays, schema=schema)
