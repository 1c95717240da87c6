"""Rows of users and items, cut into a file for each shard of users."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby, pairwise
from operator import itemgetter

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines import sql
from pipelines.scoring.candidates.lists import Lists, Positions
from pipelines.scoring.candidates.making import Making
from pipelines.scoring.staging import Staging


def write(making: Making, name: str, query: str) -> None:
    """Write the rows of a query: user_id, item (a position), and if order matters place (a number), all int32 but the
    first. A shard without rows has no file, which a list of those that have one tells from a file that is gone. Users
    before the first shard are nobody's.

    Sorted by shard before they are written, on disk if need be: so one file is open at a time, however many there are.
    """
    # Of each user the shard is looked for once: that is a comparison of texts.
    rows = sql.stream(
        making.connection,
        f"WITH q AS MATERIALIZED ({query}), u AS (SELECT user_id, shard FROM (SELECT DISTINCT user_id FROM q) "
        "ASOF JOIN shards ON user_id >= shards.first) SELECT q.*, u.shard FROM q JOIN u USING (user_id) ORDER BY shard",
    )
    schema = rows.schema.remove(rows.schema.get_field_index("shard"))
    with_rows = []
    for shard, pieces in groupby(_cut(rows), key=itemgetter(0)):
        making.staging.write_rows(_file(name, shard), schema, (piece for _, piece in pieces))
        with_rows.append(shard)
    making.staging.write_json(_list(name), with_rows)


def _cut(batches: pa.RecordBatchReader) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Pieces of batches that are sorted by shard, each of one shard."""
    for batch in batches:
        shard = batch.column("shard").to_numpy()
        bounds = [0, *(np.flatnonzero(np.diff(shard)) + 1).tolist(), len(shard)]
        rows = batch.drop_columns(["shard"])
        for start, stop in pairwise(bounds):
            yield int(shard[start]), rows.slice(start, stop - start)


def read(staging: Staging, name: str, shard: int, users: pa.Array | pa.ChunkedArray) -> Lists:
    """The list of each of the shard's users (ids [U]), by place, or where the rows have none, by item."""
    if shard not in staging.read_json(_list(name)):
        return Lists.none(len(users))
    pieces = []
    with staging.parquet(_file(name, shard)) as file:
        for batch in file.iter_batches():
            owner = pc.index_in(batch.column("user_id"), value_set=users)
            known = batch.set_column(0, "user_id", owner).filter(owner.is_valid())
            place = known.column("place" if "place" in known.schema.names else "item")
            pieces.append(np.stack([one.to_numpy() for one in (known.column(0), known.column("item"), place)]))
    owner, item, place = np.concatenate(pieces, axis=1)
    return _sorted(owner, item, place, len(users))


def _sorted(owner: Positions, item: Positions, place: Positions, count: int) -> Lists:
    order = np.argsort(owner.astype(np.int64) << 32 | place)
    return Lists.of((owner[order], item[order]), count)


def _list(name: str) -> str:
    return f"candidates-{name}.json"


def _file(name: str, shard: int) -> str:
    return f"candidates-{name}-{shard:05}.parquet"
