"""Users and items as the model reads them at a moment of scoring: one row each, history included."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Literal

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from pipelines import sql
from pipelines.catalog import Sides, model_features
from pipelines.config import Recommender, segment_columns
from pipelines.featured import with_features
from pipelines.prepare import sides_of
from pipelines.tables import TableName, Tables, snapshots
from recsys_moe.errors import UserError

Side = Literal["user", "item"]


@dataclass(frozen=True)
class Moment:
    """A named context: what was known at the end of `ds`, asked on `day`, with the context columns' `values`."""

    name: str
    ds: date
    day: date
    values: Mapping[str, str | int | float]


def moments(config: Recommender, ds: date) -> dict[str, Moment]:
    """The moments that are scored for, by name: the YAML's contexts on the day after `ds`."""
    contexts = config.scoring.named_contexts
    return {name: Moment(name, ds, ds + timedelta(days=1), values) for name, values in contexts.items()}


def entity_rows(
    connection: duckdb.DuckDBPyConnection,
    config: Recommender,
    tables: Tables,
    moment: Moment,
    side: Side,
    asked: pa.Table | None = None,
) -> pa.Table:
    """A row for each user (with the moment's context columns) or each item, sorted by id.

    They come from the snapshot of users or items as of the day, or, where the YAML names no such file, from the log so
    far. With `asked`, a table of ids, there is a row for each of these, known or not; what it has of other columns
    stands for those who are not known.

    Raises:
        UserError: the model reads a context column that the YAML gives no value, or no users (items) are known yet.
    """
    sides = sides_of(config, tables)
    _check_context(config, sides, moment)
    key = config.columns.user if side == "user" else config.columns.item
    view_known(connection, config, tables, moment.ds, side)
    wanted = "known" if asked is None else _view_asked(connection, asked, key)
    context = ", ".join(f"{sql.text(_spelled(value))} AS {sql.name(name)}" for name, value in moment.values.items())
    connection.execute(
        f"CREATE OR REPLACE TEMP TABLE entities AS SELECT {wanted}.*, DATE '{moment.day}' AS event_day"
        f"{', ' + context if context else ''} FROM {wanted} ORDER BY {sql.name(key)}"
    )
    history = config.features.history
    keys = [found for found in (history.keys if history else ()) if _readable_by(side, sides, found)]
    return with_features(connection, config, tables, "entities", through=moment.ds, keys=keys).read_all()


def view_known(
    connection: duckdb.DuckDBPyConnection, config: Recommender, tables: Tables, ds: date, side: Side
) -> None:
    """Leave the view `known` of the users or items as of the end of `ds`: a row for each, in no order."""
    name: TableName = "users" if side == "user" else "items"
    if tables.exists(name):
        snapshots.view(connection, tables, name, ds, "known")
        return
    key = config.columns.user if side == "user" else config.columns.item
    sql.view(connection, "known_log", tables.dataset("interactions"), pc.field("ds") <= ds)
    connection.execute(
        f"CREATE OR REPLACE TEMP VIEW known AS SELECT DISTINCT {sql.name(key)} FROM known_log "
        f"WHERE {sql.name(key)} IS NOT NULL"
    )


def _view_asked(connection: duckdb.DuckDBPyConnection, asked: pa.Table, key: str) -> str:
    """Leave the view `found`, and return its name: what is known of each that is asked for, and is said of others."""
    connection.register("asked", asked)
    id_, chosen = sql.name(key), [f"a.{sql.name(key)}"]
    for column, *_ in connection.execute("DESCRIBE known").fetchall():
        name = sql.name(column)
        if column != key and column in asked.column_names:
            chosen.append(f"CASE WHEN k.{id_} IS NULL THEN a.{name} ELSE k.{name} END AS {name}")
        elif column != key:
            chosen.append(f"k.{name}")
    connection.execute(
        f"CREATE OR REPLACE TEMP VIEW found AS SELECT {', '.join(chosen)} "
        f"FROM asked AS a LEFT JOIN known AS k ON a.{id_} = k.{id_}"
    )
    return "found"


def _readable_by(side: Side, sides: Sides, key: tuple[str, ...]) -> bool:
    """Whether a history feature of this key belongs to the side; what is the moment's alone goes with the user."""
    found = sides.of_key(key)
    return found == side or (side == "user" and found == "context")


def _spelled(value: str | int | float) -> str:
    """As ingest cleans values: 1.0 is 1."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _check_context(config: Recommender, sides: Sides, moment: Moment) -> None:
    # What only lists are made of belongs to events of before, not to the moment.
    read = {column for feature in model_features(config, sides) for column in feature.from_keys}
    read |= set(segment_columns(config))
    missing = sorted(set(sides.columns("context")) & read - set(moment.values))
    if missing:
        raise UserError(
            f"scoring.context: the model reads {missing}, which belong to the moment; give them values "
            f"(context {moment.name!r} has {sorted(moment.values)})"
        )
