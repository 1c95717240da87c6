"""Negatives for a log that has positives only: items that are popular, but that the user had nothing to do with."""

from __future__ import annotations

from datetime import date, timedelta

import duckdb
import pyarrow.compute as pc

from pipelines import labels, sql
from pipelines.config import MadeNegatives, Recommender
from pipelines.tables import Tables

ROUNDS = 5
"""How often a negative is drawn before it is given up, because the user has a row with each of the items drawn."""

_GOLDEN = (5**0.5 - 1) / 2
"""Steps of this size around a circle spread evenly: a row's first draws are one hash and such steps from it."""
_FINEST = 2**30
"""Weight of the most popular item. Weights are whole numbers: their sums are the same in any order."""


def made_negatives(
    connection: duckdb.DuckDBPyConnection, config: Recommender, tables: Tables, ds: date, relation: str
) -> str:
    """A query: the rows of `relation`, and the negatives that `sampling.make_negatives` makes of each.

    `relation` is the log of day `ds` with its labels (`label_<task>`) in place of the label columns, before anything
    of the item is joined: that must be of the item that is drawn. A negative is its row again (user, time, context,
    weight and all other columns of the log) with another item, labels of 0 (null for a task that is given another, or
    is not ripe yet) and no `source_row`. History is to be counted on the log itself, without them.

    What is drawn depends on the seed, the row's user, item and time, and the day's items: not on the order of rows, on
    threads or on the machine. A row may get the same item twice, as draws are with replacement; it gets fewer than
    `per_positive` where the user has a row with what was drawn `ROUNDS` times.

    The rows that count are those of `interactions` on the last `days` days, `ds` included; none that came later.
    """
    made = config.sampling.make_negatives
    assert made is not None
    user, item = sql.name(config.columns.user), sql.name(config.columns.item)
    _gather(connection, config, tables, ds, made)
    connection.execute(
        "CREATE OR REPLACE TEMP TABLE negatives_asked AS "
        f"SELECT __user, __item, event_time, number, (spot + number * {_GOLDEN}::DOUBLE) % 1 AS spot "
        f"FROM (SELECT *, {_spot(made.seed)} AS spot FROM "
        f"(SELECT DISTINCT {user} AS __user, {item} AS __item, event_time FROM {relation})), "
        f"range({made.per_positive}) AS numbers(number)"
    )
    connection.execute(
        "CREATE OR REPLACE TEMP TABLE negatives_made AS "
        "SELECT __user, __item, event_time, __item AS __drawn FROM negatives_asked LIMIT 0"
    )
    for attempt in range(ROUNDS):
        _draw(connection)
        connection.execute(
            "CREATE OR REPLACE TEMP TABLE negatives_asked AS SELECT __user, __item, event_time, number, "
            f"{_spot(made.seed, 'number', str(attempt))} AS spot FROM negatives_drawn WHERE is_seen"
        )
    ripe = labels.ripe_tasks(config, tables, ds)
    zeros = ", ".join(
        f"{'NULL' if task.given or task not in ripe else '0.0'} AS {sql.name(f'label_{task.name}')}"
        for task in config.tasks
    )
    return (
        f"SELECT * FROM {relation} UNION ALL BY NAME "
        f"SELECT r.* REPLACE (m.__drawn AS {item}, NULL AS source_row, {zeros}) FROM {relation} AS r "
        f"JOIN negatives_made AS m ON m.__user = r.{user} AND m.__item = r.{item} AND m.event_time = r.event_time"
    )


def _gather(
    connection: duckdb.DuckDBPyConnection, config: Recommender, tables: Tables, ds: date, made: MadeNegatives
) -> None:
    """Tables of who has a row with what, and of where each item's share of the weights begins and ends.

    The weights are cut into as many cells as there are items, and an item stands once for each cell that it reaches
    into: about two are in a cell, so that a point is found by a join on its cell, in a stream and without sorting.
    """
    user, item = config.columns.user, config.columns.item
    window = (pc.field("ds") > ds - timedelta(days=made.days)) & (pc.field("ds") <= ds)
    reader = tables.dataset("interactions").scanner(columns=[user, item], filter=window).to_reader()
    connection.register("negatives_window", reader)
    connection.execute(
        "CREATE OR REPLACE TEMP TABLE negatives_pairs AS "
        f"SELECT {sql.name(user)} AS __user, {sql.name(item)} AS __item, count(*) AS rows "
        "FROM negatives_window GROUP BY ALL"
    )
    connection.unregister("negatives_window")
    connection.execute(
        "CREATE OR REPLACE TEMP TABLE negatives_items AS "
        "WITH counted AS (SELECT __item, sum(rows) AS rows FROM negatives_pairs GROUP BY ALL), weighed AS ("
        f"SELECT __item, CAST(round({_FINEST} * pow(rows / (SELECT max(rows) FROM counted), {made.popularity})) "
        "AS BIGINT) AS weight FROM counted), placed AS ("
        "SELECT __item AS __drawn, weight, CAST(sum(weight) OVER (ORDER BY __item) AS BIGINT) AS ends, "
        "CAST(sum(weight) OVER () AS BIGINT) AS total, total // count(*) OVER () + 1 AS width "
        "FROM weighed WHERE weight > 0) "
        "SELECT __drawn, ends - weight AS begins, ends, total, width, "
        "unnest(range(begins // width, (ends - 1) // width + 1)) AS cell FROM placed"
    )


def _draw(connection: duckdb.DuckDBPyConnection) -> None:
    """Find the item at the spot of each negative that is asked for, and keep those that the user has no row with."""
    connection.execute(
        "CREATE OR REPLACE TEMP TABLE negatives_drawn AS WITH pointed AS ("
        "SELECT a.*, CAST(floor(spot * total) AS BIGINT) AS point, point // width AS cell "
        "FROM negatives_asked AS a, (SELECT total, width FROM negatives_items LIMIT 1)) "
        "SELECT a.__user, a.__item, a.event_time, a.number, i.__drawn, p.__user IS NOT NULL AS is_seen "
        "FROM pointed AS a JOIN negatives_items AS i ON a.cell = i.cell AND a.point >= i.begins AND a.point < i.ends "
        "LEFT JOIN negatives_pairs AS p ON p.__user = a.__user AND p.__item = i.__drawn"
    )
    connection.execute(
        "INSERT INTO negatives_made SELECT __user, __item, event_time, __drawn FROM negatives_drawn WHERE NOT is_seen"
    )


def _spot(seed: int, *more: str) -> str:
    """An SQL expression: a number from 0 to below 1, of 53 bits, by the seed, a row's content and what else is named.

    MD5, since DuckDB's own hash may change with its version.
    """
    parts = ", ".join([str(seed), "__user", "epoch_us(event_time)", "__item", *more])
    return f"(md5_number_lower(concat_ws('|', {parts})) >> 11)::DOUBLE / {2**53}::DOUBLE"
