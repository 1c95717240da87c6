"""What staged scores look like, before they are published: how many users have lists, how the scores are spread, which
sources and items the lists have. And what of it keeps them from being published.

All of it is counted by DuckDB over two views: `made`, the staged rows, and `before`, those of the last published day.
Memory grows with users' and items' ids at most, which DuckDB spills to disk.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

import duckdb
import pyarrow as pa

from pipelines import sql
from pipelines.config import Checks
from pipelines.profile.text import count, percent
from pipelines.scoring.shifts import Compared, columns_of_scores, compare, drawn_users
from recsys_moe.errors import UserError
from recsys_moe.scoring import Blend

SEGMENTS, TOP_ITEMS = 20, 5
"""The largest segments, which are told one by one, and the items of most lists in each."""
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
DRAWN = 2_000_000
"""About so many rows tell the quantiles, and what is compared with the day before; all that belong to a drawn user."""
_LACKING = 3

Asked = Mapping[str, Mapping[str, int]]
"""By context and segment: for how many users lists were asked."""


@dataclass(frozen=True)
class Scores:
    """How the values of a score are spread. Those that are no finite numbers are counted apart.

    Attributes:
        lowest, highest, mean: of all rows; None where there are none.
        quantiles: at `QUANTILES`, approximate (t-digest, of about `DRAWN` rows); None where there are no rows.
        not_finite: how many are NaN or infinite.
    """

    lowest: float | None
    highest: float | None
    mean: float | None
    quantiles: tuple[float, ...] | None
    not_finite: int

    def result(self) -> dict[str, Any]:
        """For JSON."""
        quantiles = dict(zip((f"p{100 * at:g}" for at in QUANTILES), self.quantiles or (), strict=False))
        found = {"lowest": self.lowest, **quantiles, "highest": self.highest, "mean": self.mean}
        return {**found, "not_finite": self.not_finite}


@dataclass(frozen=True)
class Part:
    """All lists, or those of a segment.

    Attributes:
        asked, lists: how many lists were asked for, one a user and context, and how many there are.
        rows: of all lists.
        scores: by column, `score` and each task's.
        sources: rows by the source that proposed the item, most first.
        top_items: the items that most lists have, with how many have them.
        items: how many different items the lists have.
    """

    asked: int
    lists: int
    rows: int
    scores: Mapping[str, Scores]
    sources: Mapping[str, int]
    top_items: Mapping[str, int]
    items: int

    @property
    def coverage(self) -> float:
        """The share of the lists asked for that there are."""
        return self.lists / max(self.asked, 1)

    def result(self) -> dict[str, Any]:
        """For JSON."""
        shares = {name: rows / self.rows for name, rows in self.sources.items()}
        top = [{"item_id": name, "lists": n, "share": n / self.lists} for name, n in self.top_items.items()]
        return {
            "asked": self.asked,
            "lists": self.lists,
            "coverage": self.coverage,
            "rows": self.rows,
            "scores": {column: found.result() for column, found in self.scores.items()},
            "sources": shares,
            "items": self.items,
            "top_items": top,
        }


@dataclass(frozen=True)
class Summary:
    """Staged scores summed up.

    Attributes:
        overall: all of them.
        segments: those of the largest segments, by how many lists were asked for; none where there is one segment only.
        num_segments: how many segments there are.
        users: how many have a list in at least one context.
        asked, lists: by context and segment, all of them.
        compared: with the last published day; None where there was none.
    """

    overall: Part
    segments: Mapping[str, Part]
    num_segments: int
    users: int
    asked: Asked
    lists: Asked
    compared: Compared | None

    def of_context(self, name: str) -> tuple[int, int]:
        """How many lists were asked for, and how many there are."""
        return sum(self.asked[name].values()), sum(self.lists[name].values())

    def result(self) -> dict[str, Any]:
        """For JSON: numbers as they are."""
        contexts = {name: self.of_context(name) for name in self.asked}
        return {
            "users": self.users,
            "rows": self.overall.rows,
            "summary": {
                **self.overall.result(),
                "by_context": {
                    name: {"asked": asked, "lists": lists, "coverage": lists / max(asked, 1)}
                    for name, (asked, lists) in contexts.items()
                },
                "by_segment": {name: part.result() for name, part in self.segments.items()},
                "num_segments": self.num_segments,
                "compared": self.compared.result() if self.compared else None,
            },
        }


def summarise(connection: duckdb.DuckDBPyConnection, asked: Asked, blend: Blend, before: date | None = None) -> Summary:
    """Sum up the view `made` of a connection: the columns of `scores`, without `ds`.

    Args:
        connection: a database that may spill.
        asked: for how many users lists were asked, by context and segment.
        blend: how the score was made of the tasks'.
        before: the last published day, whose rows are the view `before`; None where there is none.
    """
    lists: dict[str, Counter[str]] = {context: Counter() for context in asked}
    query = "SELECT context, segment, count(*) FROM made WHERE rank = 1 GROUP BY ALL"
    for context, segment, found in connection.execute(query).fetchall():
        assert found <= asked[context][segment], f"{context}, {segment}: more lists than users; is a shard there twice?"
        lists[context][segment] = found
    parts, num_segments = _parts(connection, _by_segment(asked), _by_segment(lists))
    return Summary(
        overall=parts.pop(None),
        segments={name: part for name, part in parts.items() if name is not None},
        num_segments=num_segments,
        users=sql.value(connection, "SELECT count(*) FROM (SELECT DISTINCT user_id FROM made WHERE rank = 1)"),
        asked=asked,
        lists=lists,
        compared=compare(connection, blend, before, DRAWN) if before else None,
    )


def check(connection: duckdb.DuckDBPyConnection, summary: Summary, checks: Checks) -> None:
    """See that staged scores are fit to be served.

    Raises:
        UserError: there is no row; in one of the contexts too few of the users have a list; a score is no finite
            number; or scores lie elsewhere than on the last published day.
    """
    if not summary.overall.rows:
        raise UserError(
            "no user got a single item, so nothing is published; do scoring.candidates find any, and do exclude_seen, "
            "available and rules leave some?"
        )
    for context in summary.asked:
        _check_coverage(summary, context, checks.min_coverage)
    for column, scores in summary.overall.scores.items():
        if scores.not_finite:
            raise UserError(_broken(connection, column, scores.not_finite))
    if summary.compared is not None and checks.max_shift is not None:
        summary.compared.check(checks.max_shift)


def _check_coverage(summary: Summary, context: str, least: float) -> None:
    asked, lists = summary.of_context(context)
    if lists >= least * asked:
        return
    without = {name: n - summary.lists[context].get(name, 0) for name, n in summary.asked[context].items()}
    worst = sorted((name for name in without if without[name]), key=lambda name: (-without[name], name))[:_LACKING]
    named = ", ".join(f"{name!r} ({count(without[name])} of {count(summary.asked[context][name])})" for name in worst)
    where = f" in context {context!r}" if len(summary.asked) > 1 else ""
    raise UserError(
        f"only {count(lists)} of {count(asked)} users have a list{where} ({percent(lists / asked)}), less than "
        f"scoring.checks.min_coverage asks for ({percent(least)}), so nothing is published; users without one are most "
        f"in segment{'s' if len(worst) > 1 else ''} {named}: widen scoring.candidates or ease exclude_seen, available "
        "and rules, or lower min_coverage"
    )


def _broken(connection: duckdb.DuckDBPyConnection, column: str, how_many: int) -> str:
    query = f"SELECT user_id, item_id, model_version FROM made WHERE NOT isfinite({sql.name(column)}) LIMIT 1"
    ((user, item, version),) = connection.execute(query).fetchall()
    return (
        f"{column} is no finite number in {count(how_many)} row{'' if how_many == 1 else 's'}, such as that of user "
        f"{user!r} and item {item!r}, so nothing is published; version {version} is broken, or what it reads: score by "
        "another (--model-version), or look for NaN and huge values in the features of that user and item"
    )


def _by_segment(of: Asked) -> Counter[str]:
    return sum((Counter(by_segment) for by_segment in of.values()), Counter())


def _parts(
    connection: duckdb.DuckDBPyConnection, asked: Counter[str], lists: Counter[str]
) -> tuple[dict[str | None, Part], int]:
    """All rows (None) and the largest segments, which are left in the table `largest`; and how many segments exist."""
    known = sorted(set(asked) | set(lists), key=lambda name: (-asked[name], name))
    largest = known[:SEGMENTS] if len(known) > 1 else []
    connection.register("largest_rows", pa.table({"segment": pa.array(largest, pa.string())}))
    connection.execute("CREATE OR REPLACE TEMP TABLE largest AS SELECT * FROM largest_rows")
    rows = _each(connection, "made", "count(*)")
    scores, sources, tops = _scores(connection), _sources(connection), _top_items(connection)
    nothing = {column: Scores(None, None, None, None, 0) for column in scores[None]}
    parts = {
        name: Part(
            asked=asked.total() if name is None else asked[name],
            lists=lists.total() if name is None else lists[name],
            rows=rows[name][0] if name in rows else 0,
            scores=scores.get(name, nothing),
            sources=sources.get(name, {}),
            top_items=tops[name][0] if name in tops else {},
            items=tops[name][1] if name in tops else 0,
        )
        for name in [None, *largest]
    }
    return parts, len(known)


def _each(connection: duckdb.DuckDBPyConnection, relation: str, columns: str) -> dict[str | None, tuple[Any, ...]]:
    """The columns, aggregates, of all rows (None), and of the rows of each of the largest segments that has any."""
    overall = connection.execute(f"SELECT NULL, {columns} FROM {relation}").fetchall()
    by_segment = f"SELECT segment, {columns} FROM {relation} SEMI JOIN largest USING (segment) GROUP BY segment"
    return {row[0]: row[1:] for row in [*overall, *connection.execute(by_segment).fetchall()]}


def _scores(connection: duckdb.DuckDBPyConnection) -> dict[str | None, dict[str, Scores]]:
    columns = columns_of_scores(connection, "made")
    # Quantiles cost several times what the rest does.
    drawn = f"(SELECT * FROM made WHERE {drawn_users(connection, 'made', DRAWN)})"
    exact = _each(connection, "made", ", ".join(_measures(columns)))
    quantiles = _each(connection, drawn, ", ".join(_quantiles(columns)))
    return {
        name: {column: _of_column(place, measured, quantiles.get(name)) for place, column in enumerate(columns)}
        for name, measured in exact.items()
    }


def _of_column(place: int, exact: tuple[Any, ...], quantiles: tuple[Any, ...] | None) -> Scores:
    lowest, highest, mean, not_finite = exact[4 * place : 4 * place + 4]
    found = quantiles[place] if quantiles else None
    return Scores(lowest, highest, mean, tuple(found) if found else None, not_finite)


def _measures(columns: Sequence[str]) -> Iterator[str]:
    for column in map(sql.name, columns):
        yield from (f"{what}({column}) FILTER (isfinite({column}))" for what in ("min", "max", "avg"))
        yield f"count(*) FILTER (NOT isfinite({column}))"


def _quantiles(columns: Sequence[str]) -> Iterator[str]:
    for column in map(sql.name, columns):
        yield f"approx_quantile({column}, {list(QUANTILES)}) FILTER (isfinite({column}))"


def _sources(connection: duckdb.DuckDBPyConnection) -> dict[str | None, dict[str, int]]:
    """Rows by source, most first."""
    found = _each(connection, "made", "histogram(candidate_source)")
    return {
        name: dict(sorted((rows or {}).items(), key=lambda one: (-one[1], one[0]))) for name, (rows,) in found.items()
    }


def _top_items(connection: duckdb.DuckDBPyConnection) -> dict[str | None, tuple[dict[str, int], int]]:
    """The items of most lists, and how many items there are at all. Equal ones come in the order of their ids."""
    best = f"min({{'less': -lists, 'item_id': item_id}}, {TOP_ITEMS}), count(*)"
    overall = f"SELECT NULL, {best} FROM (SELECT item_id, count(*) AS lists FROM made GROUP BY item_id)"
    in_each = "SELECT segment, item_id, count(*) AS lists FROM made SEMI JOIN largest USING (segment) GROUP BY ALL"
    found = [*connection.execute(overall).fetchall()]
    found += connection.execute(f"SELECT segment, {best} FROM ({in_each}) GROUP BY segment").fetchall()
    return {name: ({one["item_id"]: -one["less"] for one in top or ()}, items) for name, top, items in found}
