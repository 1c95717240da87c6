"""The items that each user met last: what `co_visited` and `similar` start from."""

from __future__ import annotations

from datetime import timedelta

import pyarrow.compute as pc
import pyarrow.dataset

from pipelines import sql
from pipelines.config import CoVisited, Similar
from pipelines.scoring.candidates import sharded
from pipelines.scoring.candidates.making import Making

MOST = 200
"""So many items of a user are looked at, the last ones, unless the YAML wants more seeds."""
HALF_LIVES = 8


def name_of_seeds(wanted: CoVisited | Similar) -> str:
    """What the users' seeds are called: those of two sources are the same if the same is asked for."""
    return f"seeds-{wanted.days}-{wanted.seeds}{_of_task(wanted)}"


def make_seeds(making: Making, wanted: CoVisited | Similar) -> str:
    """Cut the users' last items by shard. Returns the name of the table that they, and the ones before, are in.

    It holds user_id, item (a position), place: 0 for the last item, 1 for the one before, and fresh: 1 for the last row
    of all, half as much for each 1 / HALF_LIVES of the days that it came before. Rows of items that are not known any
    more do not count. With `task`, rows of prepared days with a label of 1 are what a user met.
    """
    met = f"met-{wanted.days}{_of_task(wanted)}"
    kept = max([MOST, *(s.seeds for s in making.config.scoring.candidates if isinstance(s, CoVisited | Similar))])
    sql.view(making.connection, "met_log", *_rows(making, wanted))
    user, item = sql.name(making.config.columns.user), sql.name(making.config.columns.item)
    where = f"WHERE {sql.name(f'label_{wanted.task}')} = 1" if wanted.task else ""
    making.connection.execute(
        f"CREATE TEMP TABLE IF NOT EXISTS {sql.name(met)} AS SELECT user_id, position AS item, "
        "CAST(row_number() OVER (PARTITION BY user_id ORDER BY last DESC, position) - 1 AS INTEGER) AS place, "
        f"CAST(pow(0.5, epoch(max(last) OVER () - last) * {HALF_LIVES / wanted.days / 86400}) AS FLOAT) AS fresh FROM ("
        f"SELECT {user} AS user_id, {item} AS item_id, max(event_time) AS last FROM met_log {where} GROUP BY ALL"
        f") JOIN known_items USING (item_id) QUALIFY place < {kept}"
    )
    sharded.write(
        making, name_of_seeds(wanted), f"SELECT user_id, item, place FROM {sql.name(met)} WHERE place < {wanted.seeds}"
    )
    return met


def _of_task(wanted: CoVisited | Similar) -> str:
    return f"-{wanted.task}" if wanted.task else ""


def _rows(making: Making, wanted: CoVisited | Similar) -> tuple[pyarrow.dataset.FileSystemDataset, pc.Expression]:
    days = (pc.field("ds") <= making.ds) & (pc.field("ds") > making.ds - timedelta(days=wanted.days))
    return making.tables.dataset("examples" if wanted.task else "interactions"), days
