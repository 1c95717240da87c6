"""The tables as DuckDB relations, a row of which knows whether it belongs to the days or to those before."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from typing import Literal

import duckdb
import pyarrow.compute as pc

from pipelines import labels, sql
from pipelines.config import DERIVED_COLUMNS, RESERVED_COLUMNS, Recommender, feature_columns
from pipelines.profile.span import Span
from pipelines.tables import TableName, Tables, snapshots

Home = Literal["log", "users", "items"]
Kind = Literal["categorical", "multivalued", "numeric"]
_ENTITIES: tuple[Literal["users", "items"], ...] = ("users", "items")


@dataclass(frozen=True)
class Profiled:
    """A column of the page: a feature, or what a history key or a segment is made of.

    `home` is the relation that has it, `source` its name there: for the days since a date, the date's.
    """

    name: str
    kind: Kind
    home: Home
    source: str

    @property
    def value(self) -> str:
        """An SQL expression: the value as text; of a date, the days from it to the `ds` of the row."""
        if self.source == self.name:
            return f"CAST({sql.name(self.source)} AS VARCHAR)"
        # The cast to text first: a source may hold real dates, or text.
        return f"CAST(ds - TRY_CAST(CAST({sql.name(self.source)} AS VARCHAR) AS DATE) AS VARCHAR)"


_DERIVED = {"hour": "CAST(hour(event_time) AS VARCHAR)", "weekday": "CAST(isodow(event_time) AS VARCHAR)"}
assert set(_DERIVED) == set(DERIVED_COLUMNS)


@dataclass(frozen=True)
class Relations:
    """A connection with the relations `log`, `users` and `items`, and the columns that they have.

    Every row has `ds`; those of `log` also `__now`: whether it is of the days, not of the days before.
    """

    connection: duckdb.DuckDBPyConnection
    config: Recommender
    tables: Tables
    span: Span
    columns: tuple[Profiled, ...]

    def key(self, home: Home) -> str:
        """The column that joins `users` or `items` to the log."""
        return self.config.columns.user if home == "users" else self.config.columns.item

    def labelled(self, day: date, names: Iterable[str]) -> str:
        """A FROM clause: the log of a day with `label_<task>`, and the users and items that columns of `names` take."""
        self.connection.execute(f"CREATE OR REPLACE TEMP VIEW day_log AS SELECT * FROM log WHERE ds = DATE '{day}'")
        query = labels.with_labels(self.connection, self.config, self.tables, day, "day_log")
        names = set(names)
        homes = {column.home for column in self.columns if column.name in names}
        joins = [
            f"LEFT JOIN (SELECT * EXCLUDE (ds) FROM {home} WHERE ds = DATE '{day}') AS {home} "
            f"USING ({sql.name(self.key(home))})"
            for home in _ENTITIES
            if home in homes
        ]
        return " ".join([f"({query}) AS labelled", *joins])

    def value_of(self, name: str) -> str:
        """An SQL expression: a column's value as text, in what `labelled` makes; null where there is no such column."""
        found = next((column for column in self.columns if column.name == name), None)
        return found.value if found else _DERIVED.get(name, "CAST(NULL AS VARCHAR)")


@contextmanager
def relations(config: Recommender, tables: Tables, span: Span) -> Iterator[Relations]:
    """The days of a span and those before it, as relations that are read in streams."""
    interactions = tables.dataset("interactions")
    with sql.connect(config.columns.timezone, spill=config.workspace / "scratch") as connection:
        sql.view(connection, "interactions", interactions, pc.field("ds").isin(span.every))
        first = f"DATE '{span.days[0]}'"
        connection.execute(f"CREATE TEMP VIEW log AS SELECT *, ds >= {first} AS __now FROM interactions")
        columns = [column for column in interactions.schema.names if column not in RESERVED_COLUMNS]
        homes: dict[Home, list[str]] = {"log": columns}
        for name in _ENTITIES:
            homes[name] = _entities(connection, tables, name, span)
        yield Relations(connection, config, tables, span, tuple(_profiled(config, homes)))


def _entities(connection: duckdb.DuckDBPyConnection, tables: Tables, name: TableName, span: Span) -> list[str]:
    """Make the relation of users or items as they were known on each day; returns its columns, none without it."""
    days = [day for day in span.every if snapshots.exists(tables, name, day)]
    if not days:
        return []
    for number, day in enumerate(days):
        snapshots.view(connection, tables, name, day, f"{name}_{number}")
    parts = [f"SELECT *, DATE '{day}' AS ds FROM {name}_{number}" for number, day in enumerate(days)]
    connection.execute(f"CREATE TEMP VIEW {name} AS {' UNION ALL BY NAME '.join(parts)}")
    return snapshots.columns(tables, name)


def _profiled(config: Recommender, homes: dict[Home, list[str]]) -> Iterator[Profiled]:
    """The columns that some relation has: features first, in the YAML's order. The log goes before the others."""
    features = config.features
    wanted: dict[str, tuple[Kind, str]] = {f.name: ("categorical", f.name) for f in features.categorical}
    wanted |= {name: ("multivalued", name) for name in features.multivalued}
    wanted |= {f.name: ("numeric", f.days_since or f.name) for f in features.numeric}
    known = {source for _, source in wanted.values()}
    wanted |= {name: ("categorical", name) for name in feature_columns(config) if name not in known}
    for name, (kind, source) in wanted.items():
        home = next((home for home, columns in homes.items() if source in columns), None)
        if home is not None:
            yield Profiled(name, kind, home, source)
