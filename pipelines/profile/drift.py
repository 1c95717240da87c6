"""How the values of each column are spread over the days, and how far that is from the days before."""

from __future__ import annotations

import math
from dataclasses import dataclass

import duckdb

from pipelines import sql
from pipelines.profile.relations import Home, Profiled, Relations

TOP, PARTS = 20, 10
"""Values of a category that are told apart from the rest, and parts of equally many rows that numbers are cut in."""
MODERATE, LARGE = 0.1, 0.25
"""From where on a change is called moderate, and large: how the index is usually read (Siddiqi 2006)."""


REST, MISSING = "(the rest)", "(missing)"


@dataclass(frozen=True)
class Bin:
    """A value, or a range of values, with its rows in the days and in those before."""

    name: str
    now: int
    before: int


@dataclass(frozen=True)
class Spread:
    """How a column's values are spread. `bins` have all rows, those without a value too; a list counts each value."""

    column: Profiled
    bins: tuple[Bin, ...]
    missing_now: float | None
    missing_before: float | None

    @property
    def now(self) -> int:
        """Values in the days."""
        return sum(one.now for one in self.bins)

    @property
    def before(self) -> int:
        """Values in the days before."""
        return sum(one.before for one in self.bins)

    @property
    def psi(self) -> float:
        """Population stability index: sum of (p - q) ln(p / q) over the bins, each with half a row more.

        The half row keeps it finite where a bin is empty on one side. 0 where there is nothing to compare with.
        """
        if not self.now or not self.before:
            return 0.0
        pairs = [
            (
                (one.now + 0.5) / (self.now + 0.5 * len(self.bins)),
                (one.before + 0.5) / (self.before + 0.5 * len(self.bins)),
            )
            for one in self.bins
        ]
        return sum((p - q) * math.log(p / q) for p, q in pairs)

    @property
    def by_chance(self) -> float:
        """About how large the index is on average where nothing has changed: what so few rows give by themselves."""
        if not self.now or not self.before:
            return 0.0
        return (len(self.bins) - 1) * (1 / self.now + 1 / self.before)

    @property
    def reading(self) -> str:
        """The index in a word."""
        if self.psi < max(MODERATE, 2 * self.by_chance):
            return "steady"
        return "moderate" if self.psi < LARGE else "large"


def spreads(relations: Relations) -> list[Spread]:
    """The spread of every column's values, largest drift first."""
    connection = relations.connection
    connection.execute("CREATE TEMP TABLE counts (name VARCHAR, value VARCHAR, now HUGEINT, before HUGEINT)")
    homes: tuple[Home, ...] = ("log", "users", "items")
    for home in homes:
        if columns := [column for column in relations.columns if column.home == home]:
            connection.execute(f"INSERT INTO counts {_counts(relations, home, columns)}")
    missing = _missing(connection)
    _split_lists(relations)
    bins: dict[str, list[Bin]] = {}
    for name, value, now, before in [*_of_categories(relations), *_of_numbers(relations)]:
        bins.setdefault(name, []).append(Bin(value, now, before))
    found = [Spread(c, tuple(bins.get(c.name, ())), *missing.get(c.name, (None, None))) for c in relations.columns]
    return sorted(found, key=lambda one: -one.psi)


def _counts(relations: Relations, home: Home, columns: list[Profiled]) -> str:
    """A query: name, value, rows now, rows before. What users and items have is joined to counts, not to rows."""
    if home == "log":
        rows = "SELECT *, 1 AS __rows FROM log"
    else:
        key = sql.name(relations.key(home))
        keys = f"SELECT ds, __now, {key}, count(*) AS __rows FROM log GROUP BY ALL"
        rows = f"SELECT * FROM ({keys}) AS keys LEFT JOIN {home} USING (ds, {key})"
    values = ", ".join(f"{column.value} AS {sql.name(column.name)}" for column in columns)
    names = ", ".join(sql.name(column.name) for column in columns)
    return (
        f"SELECT name, value, coalesce(sum(__rows) FILTER (__now), 0), coalesce(sum(__rows) FILTER (NOT __now), 0) "
        f"FROM (SELECT __rows, __now, {values} FROM ({rows})) "
        f"UNPIVOT INCLUDE NULLS (value FOR name IN ({names})) GROUP BY name, value"
    )


def _missing(connection: duckdb.DuckDBPyConnection) -> dict[str, tuple[float | None, float | None]]:
    """By column, the share of rows without a value, in the days and before; None where there are no rows."""
    query = (
        "SELECT name, coalesce(sum(now) FILTER (value IS NULL), 0) / nullif(sum(now), 0), "
        "coalesce(sum(before) FILTER (value IS NULL), 0) / nullif(sum(before), 0) FROM counts GROUP BY name"
    )
    return {name: (now, before) for name, now, before in connection.execute(query).fetchall()}


def _names(relations: Relations, kind: str) -> str:
    """An SQL condition: the column is of a kind."""
    names = [sql.text(column.name) for column in relations.columns if column.kind == kind]
    return f"name IN ({', '.join(names)})" if names else "false"


def _split_lists(relations: Relations) -> None:
    """Count each value of a list by itself."""
    separator, lists = sql.text(relations.config.features.separator), _names(relations, "multivalued")
    relations.connection.execute(
        f"CREATE TEMP TABLE parts AS SELECT name, trim(part) AS value, sum(now) AS now, sum(before) AS before FROM "
        f"(SELECT name, now, before, unnest(coalesce(string_split(value, {separator}), [NULL])) AS part "
        f"FROM counts WHERE {lists}) GROUP BY ALL"
    )
    relations.connection.execute(f"DELETE FROM counts WHERE {lists}")
    relations.connection.execute("INSERT INTO counts SELECT * FROM parts")


def _of_categories(relations: Relations) -> list[tuple[str, str, int, int]]:
    """(column, value, now, before) of the values that have most of either side's rows; the others are one."""
    share = "now / greatest(sum(now) OVER c, 1) + before / greatest(sum(before) OVER c, 1)"
    query = (
        f"WITH shares AS (SELECT *, {share} AS share FROM counts WHERE NOT ({_names(relations, 'numeric')}) "
        "WINDOW c AS (PARTITION BY name)), "
        "ranked AS (SELECT *, row_number() OVER (PARTITION BY name ORDER BY share DESC, value) AS place FROM shares), "
        f"named AS (SELECT *, CASE WHEN place > {TOP} THEN {sql.text(REST)} "
        f"ELSE coalesce(value, {sql.text(MISSING)}) END AS bin, "
        f"least(place, {TOP + 1}) AS first FROM ranked) "
        "SELECT name, bin, CAST(sum(now) AS BIGINT), CAST(sum(before) AS BIGINT) FROM named "
        "GROUP BY name, first, bin ORDER BY name, first"
    )
    return relations.connection.execute(query).fetchall()


def _of_numbers(relations: Relations) -> list[tuple[str, str, int, int]]:
    """(column, range, now, before) of ranges that had equally many rows before, or have now where there were none."""
    weight = "(CASE WHEN sum(before) OVER (PARTITION BY name) > 0 THEN before ELSE now END)"
    query = (
        "WITH numbers AS (SELECT name, TRY_CAST(value AS DOUBLE) AS x, sum(now) AS now, sum(before) AS before "
        f"FROM counts WHERE {_names(relations, 'numeric')} GROUP BY ALL), "
        f"weighed AS (SELECT *, {weight} AS w FROM numbers WHERE x IS NOT NULL), "
        "placed AS (SELECT *, (sum(w) OVER (PARTITION BY name ORDER BY x) - w / 2) "
        "/ sum(w) OVER (PARTITION BY name) AS place FROM weighed), "
        f"cut AS (SELECT *, least(floor(place * {PARTS}), {PARTS - 1}) AS part FROM placed "
        "UNION ALL SELECT *, 0, NULL, NULL FROM numbers WHERE x IS NULL) "
        "SELECT name, min(x), max(x), CAST(sum(now) AS BIGINT), CAST(sum(before) AS BIGINT) "
        "FROM cut GROUP BY name, part ORDER BY name, part"
    )
    found = relations.connection.execute(query).fetchall()
    return [(name, _range(low, high), now, before) for name, low, high, now, before in found]


def _range(low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return MISSING
    return f"{low:,.5g}" if low == high else f"{low:,.5g} to {high:,.5g}"
