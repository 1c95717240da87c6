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
    side: Literal["user", "item"],
) -> pa.Table:
    """A row for each user (with the moment's context columns) or each item, sorted by id.

    They come from the snapshot of users or items as of the day, or, where the YAML names no such file, from the log so
    far.

    Raises:
        UserError: the model reads a context column that the YAML gives no value, or no users (items) are known yet.
    """
    sides = sides_of(config, tables)
    _check_context(config, sides, moment)
    key = config.columns.user if side == "user" else config.columns.item
    connection.register("known", _known(tables, moment.ds, "users" if side == "user" else "items", key))
    context = ", ".join(f"{sql.text(_spelled(value))} AS {sql.name(name)}" for name, value in moment.values.items())
    connection.execute(
        f"CREATE OR REPLACE TEMP TABLE entities AS SELECT known.*, DATE '{moment.day}' AS event_day"
        f"{', ' + context if context else ''} FROM known ORDER BY {sql.name(key)}"
    )
    history = config.features.history
    keys = [found for found in (history.keys if history else ()) if _readable_by(side, sides, found)]
    return with_features(connection, config, tables, "entities", through=moment.ds, keys=keys).read_all()


def _readable_by(side: Literal["user", "item"], sides: Sides, key: tuple[str, ...]) -> bool:
    """Whether a history feature of this key belongs to the side; what is the moment's alone goes with the user."""
    found = sides.of_key(key)
    return found == side or (side == "user" and found == "context")


def _known(tables: Tables, ds: date, name: TableName, key: str) -> pa.Table:
    if tables.exists(name):
        return snapshots.read(tables, name, ds)
    seen = tables.dataset("interactions").to_table(columns=[key], filter=pc.field("ds") <= ds)
    return seen.group_by(key).aggregate([])


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
