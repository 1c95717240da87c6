"""Users' own candidates, from a table that somebody else makes."""

from __future__ import annotations

import logging

import numpy as np
import pyarrow as pa

from pipelines import sources, sql
from pipelines.config import Listed
from pipelines.ingest.cleaning import Cleaner
from pipelines.scoring.candidates import sharded
from pipelines.scoring.candidates.making import Making

NAME = "table"
log = logging.getLogger(__name__)


def make(making: Making, wanted: Listed) -> None:
    """Cut the rows by shard; of a pair that is there twice the first counts. Ids are cleaned as ingest cleans them.

    Raises:
        UserError: there is no such file, or it lacks a column.
    """
    _load(making, wanted)
    unknown = sql.value(making.connection, "SELECT count(*) FROM listed ANTI JOIN known_items USING (item_id)")
    if unknown:
        log.warning("%s: %d rows name items that are not known; they are left out", wanted.rows.title, unknown)
    sharded.write(
        making,
        NAME,
        "SELECT user_id, position AS item, "
        "CAST(row_number() OVER (PARTITION BY user_id ORDER BY min(row)) AS INTEGER) AS place "
        "FROM listed JOIN known_items USING (item_id) WHERE allowed GROUP BY user_id, position",
    )
    making.connection.execute("DROP TABLE listed")


def _load(making: Making, wanted: Listed) -> None:
    """Leave the table `listed`: user_id, item_id, row."""
    connection, columns = making.connection, [making.config.columns.user, making.config.columns.item]
    connection.execute("CREATE TEMP TABLE listed (user_id VARCHAR, item_id VARCHAR, row BIGINT)")
    cleaner, row, malformed = Cleaner(connection, making.config), 0, 0
    for chunk in sources.gathered(sources.read(wanted.rows, making.ds, columns)):
        ids = cleaner.clean(chunk.rows.select(columns)).rename_columns(["user_id", "item_id"])
        numbers = pa.array(np.arange(row, row + len(ids)))
        connection.register("chunk", pa.Table.from_batches([ids.append_column("row", numbers)]))
        connection.execute("INSERT INTO listed FROM chunk WHERE user_id IS NOT NULL")
        row += len(ids)
        malformed += len(chunk.malformed)
    if malformed:
        log.warning("%s: %d lines are not of its columns; they are left out", wanted.rows.title, malformed)
