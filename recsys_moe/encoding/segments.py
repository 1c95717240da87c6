"""Which segment a row is in: by a column, by ranges of a number, by several columns, or by the user's behaviour."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recsys_moe.config import BehaviouralSegments, BucketSegments, ColumnSegments, CrossSegments, Segments
from recsys_moe.encoding.behaviour import Behaviour
from recsys_moe.encoding.columns import as_numbers, canonical, raw_column
from recsys_moe.errors import UserError

UNKNOWN = "unknown"
"""Name of segment 0, and source of a row that is in it. A raw value of this name means the same."""


def segment_keys(
    segments: Segments, block: pa.RecordBatch, behaviour: Behaviour | None = None
) -> tuple[pa.Array, pa.Array]:
    """A row's own segment name and that of its parent, null where there is none.

    Segments by behaviour need the fitted groups, `behaviour`; the others can be read off the row.
    """
    by, nothing = segments.by, pa.nulls(block.num_rows, pa.string())
    if isinstance(by, BehaviouralSegments):
        assert behaviour is not None
        return behaviour.keys(block), nothing
    if isinstance(by, ColumnSegments):
        return canonical(raw_column(block, by.column)), nothing
    if isinstance(by, BucketSegments):
        return _bucket_names(as_numbers(block, by.column), by.bins), nothing
    return _cross_names(block, by)


def _bucket_names(values: NDArray[np.float64], bins: tuple[float, ...]) -> pa.Array:
    edges = [f"{edge:g}" for edge in bins]
    inner = [f"{low}..{high}" for low, high in pairwise(edges)]
    names = pa.array([f"under {edges[0]}", *inner, f"from {edges[-1]}"], pa.string())
    bucket = np.searchsorted(np.asarray(bins), values, side="right")
    return names.take(pa.array(bucket, mask=np.isnan(values)))


def _cross_names(block: pa.RecordBatch, by: CrossSegments) -> tuple[pa.Array, pa.Array]:
    """`DE:young`, and `DE:*` for the parent."""
    if by.parent not in by.columns:
        raise UserError(f"segments.by.cross.parent: {by.parent!r} is none of the columns {list(by.columns)}")
    values = {column: canonical(raw_column(block, column)) for column in by.columns}
    star = pa.repeat(pa.scalar("*"), block.num_rows)
    own = pc.binary_join_element_wise(*values.values(), ":")
    parents = [values[column] if column == by.parent else star for column in by.columns]
    return own, pc.binary_join_element_wise(*parents, ":")
