"""Whether scores lie elsewhere than on the last published day.

Compared are contexts that both days have, at ranks that both have, and only where the score is made of the tasks' in
the same way. That is not written down with the rows, it is seen in them: what the present weights make of the tasks'
scores of then has to be the score of then. With other weights other items come up, and every column moves without
anything being wrong. A new model version is no such reason: it is what the check is for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

import duckdb

from pipelines import sql
from pipelines.profile.drift import PARTS, Bin, Spread
from pipelines.profile.relations import Profiled
from pipelines.profile.text import number
from recsys_moe.errors import UserError
from recsys_moe.scoring import Blend

_CLEAR_OF_CHANCE = 2
"""Times what chance gives, from where on a shift is believed; the profile's reading and the monitor have the same."""
_SAME = 1e-3
"""Weights that differ by less, as a share, move no list to speak of; arithmetic is far more precise."""
_TRIED = 1000


@dataclass(frozen=True)
class Shift:
    """How far a score's values lie elsewhere.

    Attributes:
        psi: the population stability index, over tenths of the values of then.
        by_chance: about what it would be if nothing had changed.
        median, median_before: of the values, approximate; None where no value is finite.
    """

    column: str
    psi: float
    by_chance: float
    median: float | None
    median_before: float | None

    @property
    def is_sure(self) -> bool:
        """Whether so few lists could not have made it so by chance."""
        return self.psi >= _CLEAR_OF_CHANCE * self.by_chance


@dataclass(frozen=True)
class Compared:
    """Scores beside those of the last published day.

    Attributes:
        ds: that day.
        shifts: by column; none where there is nothing to compare.
        why_not: why there is nothing to compare; None where there is.
        version, version_before: the models.
    """

    ds: date
    shifts: tuple[Shift, ...]
    why_not: str | None
    version: int | None
    version_before: int | None

    def check(self, most: float) -> None:
        """See that no score has shifted by more.

        Raises:
            UserError: one has.
        """
        far = [shift for shift in self.shifts if shift.psi > most and shift.is_sure]
        if not far:
            return
        worst = max(far, key=lambda shift: shift.psi)
        by = f"version {self.version}" + ("" if self.version == self.version_before else f", not {self.version_before}")
        medians = f"median {number(worst.median)}, was {number(worst.median_before)}"
        raise UserError(
            f"{worst.column} lies elsewhere than on {self.ds}: population stability index {worst.psi:.2f}, more than "
            f"scoring.checks.max_shift {most:g} ({medians}; {by}), so nothing is published; where that is right, as "
            "after a change of candidates, context or users, raise max_shift or take it out for one day"
        )

    def result(self) -> dict[str, Any]:
        """For JSON."""
        psi = {shift.column: shift.psi for shift in self.shifts}
        return {"ds": self.ds.isoformat(), "psi": psi, "why_not": self.why_not, "model_version": self.version_before}


def compare(connection: duckdb.DuckDBPyConnection, blend: Blend, ds: date, rows: int) -> Compared:
    """Compare the views `made` and `before` of a connection, by about so many rows of each.

    Args:
        connection: a database that may spill.
        blend: how the score of `made` is made of the tasks'.
        ds: the day of `before`.
        rows: of drawn users' lists.
    """
    versions = [_version(connection, relation) for relation in ("made", "before")]
    why_not = _other_score(connection, blend)
    if why_not is None and not _draw(connection, rows):
        why_not = "no context of then is scored now, or the other way round"
    if why_not is not None:
        return Compared(ds, (), why_not, *versions)
    before = _there_before(connection)
    columns = [column for column in columns_of_scores(connection, "made") if column in before]
    return Compared(ds, tuple(_shifts(connection, columns)), None, *versions)


def columns_of_scores(connection: duckdb.DuckDBPyConnection, relation: str) -> list[str]:
    """`score` and `score_<task>`, as a view has them."""
    names = [row[0] for row in connection.execute(f"DESCRIBE {relation}").fetchall()]
    return [name for name in names if name == "score" or name.startswith("score_")]


def drawn_users(connection: duckdb.DuckDBPyConnection, relation: str, rows: int) -> str:
    """An SQL condition that holds for the rows of some users, about so many."""
    parts = max(1, round(sql.value(connection, f"SELECT count(*) FROM {relation}") / rows))
    return f"hash(user_id) % {parts} = 0"


def _version(connection: duckdb.DuckDBPyConnection, relation: str) -> int | None:
    row = connection.execute(f"SELECT model_version FROM {relation} LIMIT 1").fetchone()
    return row[0] if row else None


def _there_before(connection: duckdb.DuckDBPyConnection) -> list[str]:
    """The scores that `before` has: of a task that is newer, or gone, the table's column is empty on that day."""
    columns = columns_of_scores(connection, "before")
    (filled,) = connection.execute(
        f"SELECT {', '.join(f'count({sql.name(c)})' for c in columns)} FROM before"
    ).fetchall()
    return [column for column, values in zip(columns, filled, strict=True) if values]


def _other_score(connection: duckdb.DuckDBPyConnection, blend: Blend) -> str | None:
    """Why the scores of then are of another kind; None where they are not."""
    weights = {f"score_{task}": weight for task, weight in blend.weights.items() if weight}
    if lacking := sorted(set(weights) - set(_there_before(connection))):
        return f"{lacking[0]}, which is part of the score, was not there then"
    terms = [_term(blend, column, weight) for column, weight in weights.items()]
    score, size = " + ".join(terms), " + ".join(f"abs({term})" for term in terms)
    if blend.kind == "product":
        score = size = " * ".join(terms)
    same = f"bool_and(abs(score - ({score})) <= {_SAME} * ({size}))"
    if not sql.value(connection, f"SELECT coalesce({same}, true) FROM (SELECT * FROM before LIMIT {_TRIED})"):
        return "the score was made of the tasks' by other weights then"
    return None


def _term(blend: Blend, column: str, weight: float) -> str:
    value = f"CAST({sql.name(column)} AS DOUBLE)"
    return f"{weight!r} * {value}" if blend.kind == "sum" else f"power({value}, {weight!r})"


def _draw(connection: duckdb.DuckDBPyConnection, rows: int) -> int:
    """Leave the tables `now` and `then`: scores of drawn users in contexts and at ranks that both days have, and from
    which list each is. Returns how many rows the shorter one has."""
    connection.execute(
        "CREATE OR REPLACE TEMP TABLE contexts AS "
        "SELECT DISTINCT context FROM made INTERSECT SELECT DISTINCT context FROM before"
    )
    ranks = sql.value(connection, "SELECT least((SELECT max(rank) FROM made), (SELECT max(rank) FROM before))")
    counts = []
    for alias, relation in (("now", "made"), ("then", "before")):
        columns = ", ".join(["rank", *map(sql.name, columns_of_scores(connection, relation))])
        where = f"rank <= {ranks or 0} AND {drawn_users(connection, relation, rows)}"
        chosen = f"SELECT {columns} FROM {relation} SEMI JOIN contexts USING (context) WHERE {where}"
        connection.execute(f'CREATE OR REPLACE TEMP TABLE "{alias}" AS {chosen}')
        counts.append(sql.value(connection, f'SELECT count(*) FROM "{alias}"'))
    return int(min(counts))


def _shifts(connection: duckdb.DuckDBPyConnection, columns: Sequence[str]) -> Iterator[Shift]:
    """Of each column, by the tables `now` and `then`."""
    parts = [part / PARTS for part in range(1, PARTS)]
    tenths, medians = _quantiles(connection, "then", columns, parts), _quantiles(connection, "now", columns, 0.5)
    # A user's rows hang together, so chance is reckoned as if each list were one row.
    size = sql.value(connection, 'SELECT count(*) / count(*) FILTER (rank = 1) FROM "then"')
    for column, edges, median in zip(columns, tenths, medians, strict=True):
        spread = _spread(connection, column, sorted(set(edges or ())))
        before = edges[PARTS // 2 - 1] if edges else None
        yield Shift(column, spread.psi, spread.by_chance * size, median, before)


def _quantiles(
    connection: duckdb.DuckDBPyConnection, table: str, columns: Sequence[str], at: float | list[float]
) -> tuple[Any, ...]:
    """By column, at some shares; None where no value is finite."""
    of_each = (f"approx_quantile({name}, {at}) FILTER (isfinite({name}))" for name in map(sql.name, columns))
    (found,) = connection.execute(f'SELECT {", ".join(of_each)} FROM "{table}"').fetchall()
    return tuple(found)


def _spread(connection: duckdb.DuckDBPyConnection, column: str, edges: Sequence[float]) -> Spread:
    """Rows of now and then below, on and above each edge: where many scores are the same, they are a part of their
    own."""
    name = sql.name(column)
    place = " + ".join(["0", *(f"({name} > {edge!r})::INT + ({name} >= {edge!r})::INT" for edge in edges)])
    counts = " UNION ALL ".join(
        f'SELECT {place} AS place, {is_now} AS is_now FROM "{table}" WHERE isfinite({name})'
        for table, is_now in (("now", "true"), ("then", "false"))
    )
    bins = connection.execute(
        "SELECT CAST(place AS VARCHAR), count(*) FILTER (is_now), count(*) FILTER (NOT is_now) "
        f"FROM ({counts}) GROUP BY place ORDER BY place"
    ).fetchall()
    return Spread(Profiled(column, "numeric", "log", column), tuple(Bin(*one) for one in bins), None, None)
