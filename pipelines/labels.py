"""What each task's label is: a column of the log, or what came of an impression; null until it is ripe.

An outcome is credited to one impression at most. The two must agree in the request's id, or else in user and item; the
outcome must follow within the task's hours; and they must have been delivered at most `label_delay_days` days apart.
Of several such impressions it is the last one that was there on the day the outcome was delivered, or, where none was
yet, the last one of the first day that brings any.

So a day's labels are a function of what was delivered up to `label_delay_days` after it, whatever comes later, and no
outcome counts twice. Both would fail were it simply the last of all impressions: one that comes in late would take the
credit from one whose day is settled.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from datetime import date, timedelta

import duckdb
import pyarrow.compute as pc

from pipelines import sql
from pipelines.config import Recommender, TaskSource
from pipelines.config.sources import OutcomeSource
from pipelines.tables import TableName, Tables
from recsys_moe.errors import UserError

_MICROSECONDS_PER_HOUR = 3_600_000_000


def delay_days(config: Recommender, task: TaskSource) -> int:
    """Days until a day's labels of a task are known: as long as the task waits, or the one that it is given."""
    parents = [delay_days(config, other) for other in config.tasks if other.name == task.given]
    return max(task.label_delay_days, *parents, 0)


def is_ripe(config: Recommender, task: TaskSource, day: date, newest: date) -> bool:
    """Whether the labels that day `day` has for a task are known once day `newest` is ingested."""
    return day + timedelta(days=delay_days(config, task)) <= newest


def ripe_tasks(config: Recommender, tables: Tables, day: date) -> list[TaskSource]:
    """The tasks whose labels of an ingested day are ripe by what is ingested now."""
    newest = max(tables.days("interactions"))
    return [task for task in config.tasks if is_ripe(config, task, day, newest)]


def all_ripe(config: Recommender, day: date, newest: date) -> bool:
    """Whether that is so for all tasks."""
    return all(is_ripe(config, task, day, newest) for task in config.tasks)


def days_to_prepare(config: Recommender, tables: Tables, ds: date) -> list[date]:
    """The ingested days whose labels may change by what day `ds` brings, oldest first: itself, and those it makes ripe.

    Where `ds` came in after later days, or again, these are also the ripe days that look at it.
    """
    days = tables.days("interactions")
    return [day for day in days if day == ds or any(_touches(task, ds, day, days) for task in config.tasks)]


def _touches(task: TaskSource, ds: date, day: date, days: list[date]) -> bool:
    """Whether day `ds` makes a task's labels of `day` ripe, or is looked at for them, by the ingested `days`."""
    delay = timedelta(days=task.label_delay_days)
    ripe_on = next(iter(days[bisect_left(days, day + delay) :]), None)
    if not delay or ripe_on is None:
        return False
    return ripe_on == ds or (task.outcome is not None and day - 2 * delay <= ds <= day + delay)


def with_labels(connection: duckdb.DuckDBPyConnection, config: Recommender, tables: Tables, ds: date, log: str) -> str:
    """A query: the relation `log`, day `ds` of interactions, with `label_<task>` in place of columns that hold labels.

    A label is null where it is not ripe, where its column is, and where the task that it is given is not 1. The query
    reads temporary tables that this leaves.

    Raises:
        UserError: a table was ingested without a column that the YAML names.
    """
    _check_columns(tables, "interactions", config.label_columns)
    ripe = ripe_tasks(config, tables, ds)
    credits: dict[_Credit, str] = {}
    for credit in (_Credit.of(config, task) for task in ripe if task.outcome is not None):
        if credit not in credits:
            credits[credit] = f"credit{len(credits)}"
            query = credit.totals(connection, tables, ds, log)
            connection.execute(f"CREATE OR REPLACE TEMP TABLE {credits[credit]} AS {query}")
    answers = {t.name: _of_outcomes(t, credits[_Credit.of(config, t)]) if t.outcome else _of_column(t) for t in ripe}
    labels = ", ".join(f"{_label(config, task, answers)} AS {sql.name(f'label_{task.name}')}" for task in config.tasks)
    columns = ", ".join(map(sql.name, config.label_columns))
    joins = "".join(f" LEFT JOIN {name} USING (source_file, source_row)" for name in credits.values())
    return f"SELECT {log}.*{f' EXCLUDE ({columns})' if columns else ''}, {labels} FROM {log}{joins}"


def _label(config: Recommender, task: TaskSource, answers: dict[str, str]) -> str:
    """An SQL expression: the task's label, of what answers each ripe task; null where the one it is given is not 1."""
    answer = answers.get(task.name, "CAST(NULL AS DOUBLE)")
    if task.given is None:
        return answer
    parent = next(other for other in config.tasks if other.name == task.given)
    return f"CASE WHEN {_label(config, parent, answers)} = 1 THEN {answer} END"


def _of_column(task: TaskSource) -> str:
    """An SQL expression: what the log's column answers."""
    assert task.label is not None
    return f"CAST({_rule(task, sql.name(task.label)) or sql.name(task.label)} AS DOUBLE)"


def _of_outcomes(task: TaskSource, credit: str) -> str:
    """An SQL expression: what the relation `credit` answers; numbers are the value's sum, or how many outcomes."""
    total = f"coalesce({credit}.{sql.name(_total(task.value))}, 0)"
    any_at_all = f"{credit}.outcomes IS NOT NULL"
    return f"CAST({_rule(task, total) or (any_at_all if task.kind == 'binary' else total)} AS DOUBLE)"


def _rule(task: TaskSource, value: str) -> str:
    """An SQL condition: the task's rule over a value; empty where it has none."""
    rules = [f"{value} >= {task.at_least}"] if task.at_least is not None else []
    rules += [f"{value} <= {task.at_most}"] if task.at_most is not None else []
    return " AND ".join(rules)


def _total(value: str | None) -> str:
    """The column with an impression's number of outcomes, or with the sum of one of their values."""
    return "outcomes" if value is None else f"sum_{value}"


@dataclass(frozen=True)
class _Credit:
    """How outcomes are credited to impressions: tasks for which it is the same share the work.

    Attributes:
        user, item: the log's columns.
        window: microseconds from the impression to the outcome, at most.
        delay: days between their deliveries, at most.
        values: the outcome's columns that are summed.
    """

    source: OutcomeSource
    user: str
    item: str
    window: int
    delay: timedelta
    values: tuple[str, ...]

    @classmethod
    def of(cls, config: Recommender, task: TaskSource) -> _Credit:
        """How a task has it, with the values of all tasks that the same outcomes answer."""
        source = next(outcome for outcome in config.source.outcomes if outcome.name == task.outcome)
        values = {other.value for other in config.tasks if other.outcome == source.name and other.value is not None}
        window = round(task.within_hours * _MICROSECONDS_PER_HOUR)
        delay = timedelta(days=task.label_delay_days)
        return cls(source, config.columns.user, config.columns.item, window, delay, tuple(sorted(values)))

    def totals(self, connection: duckdb.DuckDBPyConnection, tables: Tables, ds: date, log: str) -> str:
        """A query: the rows of `log` that have outcomes, with how many, and the sum of each value.

        Leaves the table `claims`: the outcomes that may be credited to a row of `log`.
        """
        connection.execute(f"CREATE OR REPLACE TEMP TABLE claims AS {self._claims(connection, tables, ds, log)}")
        impressions = self._impressions(connection, tables, ds)
        # The least of these has the credit. A minimum holds nothing for a pair, as a sort would: a robot's clicks on
        # what it was shown ten thousand times are many pairs.
        best = "min({known: greatest(i.ds, o.ds), ago: o.moment - i.moment, back: o.ds - i.ds, "
        best += "file: i.source_file, above: -i.source_row})"
        # Summed in an order of their own, or the last digit would depend on threads.
        sums = "".join(f", sum(value{n} ORDER BY value{n}) AS {sql.name(_total(v))}" for n, v in enumerate(self.values))
        return (
            f"WITH credited AS (SELECT claim, {best} AS best FROM ({impressions}) AS i JOIN claims AS o "
            f"ON {self._agree} AND o.moment - i.moment BETWEEN 0 AND {self.window} "
            f"AND abs(o.ds - i.ds) <= {self.delay.days} GROUP BY claim) "
            f"SELECT best.file AS source_file, -best.above AS source_row, count(*) AS outcomes{sums} "
            f"FROM credited JOIN claims USING (claim) WHERE best.back = ds - DATE '{ds}' GROUP BY ALL"
        )

    def _claims(self, connection: duckdb.DuckDBPyConnection, tables: Tables, ds: date, log: str) -> str:
        """A query: the outcomes that agree with some row of `log`, numbered."""
        values = "".join(f", {sql.name(value)} AS value{n}" for n, value in enumerate(self.values))
        _view(connection, tables, "outcomes", self.values, ds - self.delay, ds + self.delay)
        return (
            f"SELECT row_number() OVER () AS claim, o.* FROM (SELECT ds, epoch_us(event_time) AS moment, "
            f'"user" AS who, item AS what, request{values} FROM all_outcomes WHERE outcome = '
            f"{sql.text(self.source.name)}) AS o "
            f"SEMI JOIN (SELECT {self._parties} FROM {log}) AS i ON {self._agree}"
        )

    def _impressions(self, connection: duckdb.DuckDBPyConnection, tables: Tables, ds: date) -> str:
        """A query: the impressions that may compete for the outcomes in `claims`.

        A late one of `ds` may do so with one from before the outcome, which may itself have been there before it.
        """
        columns = (self.source.request,) if self.source.request else ()
        _view(connection, tables, "interactions", columns, ds - 2 * self.delay, ds + self.delay)
        earliest = sql.value(connection, "SELECT coalesce(min(moment), 0) FROM claims") - self.window
        return (
            f"SELECT ds, epoch_us(event_time) AS moment, source_file, source_row, {self._parties} "
            f"FROM all_interactions WHERE event_time >= make_timestamptz({earliest})"
        )

    @property
    def _parties(self) -> str:
        """SQL expressions: what an impression must agree in with an outcome."""
        request = f", {sql.name(self.source.request)} AS request" if self.source.request else ""
        return f"{sql.name(self.user)} AS who, {sql.name(self.item)} AS what{request}"

    @property
    def _agree(self) -> str:
        """An SQL condition: outcome `o` may be of impression `i`. One with a request may leave out the other two."""
        if self.source.request is None:
            return "i.who = o.who AND i.what = o.what"
        return "i.request = o.request AND coalesce(i.who = o.who, true) AND coalesce(i.what = o.what, true)"


def _view(
    connection: duckdb.DuckDBPyConnection,
    tables: Tables,
    name: TableName,
    columns: tuple[str, ...],
    first: date,
    last: date,
) -> None:
    """Make the days of a table from `first` through `last` the view `all_<name>`, once it is seen to have columns."""
    _check_columns(tables, name, columns)
    sql.view(connection, f"all_{name}", tables.dataset(name), (pc.field("ds") >= first) & (pc.field("ds") <= last))


def _check_columns(tables: Tables, name: TableName, columns: tuple[str, ...]) -> None:
    lacking = sorted(set(columns) - set(tables.dataset(name).schema.names))
    if lacking:
        raise UserError(f"{tables.path(name)}: has no column {', '.join(lacking)}, which the YAML names; ingest again")
