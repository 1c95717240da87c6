"""The most shown items of the last days: of everyone, or of each segment."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines import sql
from pipelines.config import Popular
from pipelines.scoring.candidates import small
from pipelines.scoring.candidates.lists import Lists, Positions
from pipelines.scoring.candidates.making import Making
from pipelines.scoring.staging import Staging
from recsys_moe.encoding import UNKNOWN
from recsys_moe.errors import UserError

NAME = "popular"


def make(making: Making, wanted: Popular) -> None:
    """Write everyone's list, and after it those of the segments.

    Raises:
        UserError: segments are asked for and no day is prepared.
    """
    everyone = _everyone(making, wanted)
    lists: dict[str | None, Positions] = {None: everyone}
    if wanted.by == "segment" and making.ranker is not None and making.ranker.config.segments is not None:
        for segment, items in _by_segment(making, wanted):
            # What the segment has too few of, everyone's list has.
            lists[segment] = np.concatenate([items, everyone[~np.isin(everyone, items)]])[: wanted.limit]
    owner = np.repeat(np.arange(len(lists)), [len(items) for items in lists.values()])
    column = Lists.of((owner, np.concatenate([*lists.values()])), len(lists)).as_column()
    small.write(making.staging, NAME, pa.table({"segment": pa.array(list(lists), pa.string()), "items": column}))


def read(staging: Staging, segments: pa.Array) -> tuple[Lists, Positions]:
    """All lists, and which of them is for a user of each segment [U]."""
    found = small.read(staging, NAME)
    names = found.column("segment").combine_chunks()
    group = pc.fill_null(pc.index_in(segments, value_set=names.slice(1)), -1).to_numpy() + 1
    return Lists.of_column(found.column("items").combine_chunks()), group.astype(np.int64)


def _days(making: Making, wanted: Popular) -> tuple[date, date]:
    """The day before the first that counts, and the last."""
    return making.ds - timedelta(days=wanted.days), making.ds


def _everyone(making: Making, wanted: Popular) -> Positions:
    before, last = _days(making, wanted)
    days = (pc.field("ds") > before) & (pc.field("ds") <= last)
    sql.view(making.connection, "shown", making.tables.dataset("interactions"), days)
    item = sql.name(making.config.columns.item)
    most = making.fetch(
        # Of the log, only this column: it may have one that is called `position` or `allowed`, too.
        f"SELECT position FROM (SELECT {item} AS item_id FROM shown) JOIN known_items USING (item_id) WHERE allowed "
        f"GROUP BY position ORDER BY count(*) DESC, position LIMIT {wanted.limit}"
    )
    found: Positions = most.column("position").to_numpy().astype(np.int64)
    return found


def _by_segment(making: Making, wanted: Popular) -> Iterator[tuple[str, Positions]]:
    """The list of each segment but the unknown one, which is as mixed as everyone."""
    making.connection.execute("CREATE TEMP TABLE shown_in (segment VARCHAR, position INTEGER, rows BIGINT)")
    for counted in _counted(making, wanted):
        making.connection.register("counted", counted)
        making.connection.execute("INSERT INTO shown_in SELECT segment, position, rows FROM counted")
    most = making.fetch(
        "SELECT segment, position FROM shown_in JOIN known_items USING (position) WHERE allowed "
        f"AND segment <> {sql.text(UNKNOWN)} GROUP BY segment, position "
        "QUALIFY row_number() OVER (PARTITION BY segment ORDER BY sum(rows) DESC, position) "
        f"<= {wanted.limit} ORDER BY segment, sum(rows) DESC, position"
    )
    segment, position = most.column("segment").combine_chunks(), most.column("position").to_numpy().astype(np.int64)
    for name in segment.unique().to_pylist():
        yield name, position[pc.equal(segment, name).to_numpy(zero_copy_only=False)]


def _counted(making: Making, wanted: Popular) -> Iterator[pa.Table]:
    """Segment, position and rows: how often an item was shown in a segment, block of rows by block.

    The segment of a row is made of what is known of the user on its day, so it is the prepared rows that tell it.
    """
    assert making.ranker is not None
    encoder, item, ids = (
        making.ranker.encoder,
        making.config.columns.item,
        making.items.column(making.config.columns.item),
    )
    assert encoder.config.segments is not None
    labels = [f"label_{task.name}" for task in making.config.tasks] if making.config.sampling.make_negatives else []
    columns = list(dict.fromkeys([item, *encoder.config.segments.columns, *labels]))
    before, last = _days(making, wanted)
    days = [day for day in making.tables.days("examples") if before < day <= last]
    if not days:
        first = before + timedelta(days=1)
        raise UserError(
            f"scoring.candidates.popular by segment: no day from {first} to {last} is prepared; run prepare"
        )
    for day in days:
        for block in making.tables.read_blocks("examples", day, columns):
            rows = _shown(block, labels)
            names, _ = encoder.segment_of(rows)
            found = pa.table({"segment": names, "position": pc.index_in(rows.column(item), value_set=ids)})
            counts = found.drop_null().group_by(["segment", "position"]).aggregate([([], "count_all")])
            yield counts.rename_columns(["segment", "position", "rows"])


def _shown(block: pa.RecordBatch, labels: list[str]) -> pa.RecordBatch:
    """The rows that are of the log; negatives that were made, which have no label above 0, are not."""
    if not labels:
        return block
    masks = [
        pc.fill_null(pc.greater(block.column(label), 0.0), False).to_numpy(zero_copy_only=False) for label in labels
    ]
    return block.filter(pa.array(np.any(masks, axis=0)))
