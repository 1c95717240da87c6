"""Raw Arrow columns: found by name, and read as ids, numbers or lists whatever type they came in."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recsys_moe.config import Feature
from recsys_moe.errors import UserError

RawTable: TypeAlias = pa.Table | pa.RecordBatch
"""Raw columns by name; more columns than the model reads do no harm."""

BLOCK_ROWS = 1 << 17


def canonical(values: pa.Array) -> pa.Array:
    """One spelling for each value, whatever type it came in: 1, 1.0, "1" and "1.0" are "1"; NaN and "" are missing.

    pandas turns whole numbers into floats where one is missing; a served row must still find its vocabulary entry.
    """
    spelled = canonical_dictionary(values)
    return spelled.dictionary.take(spelled.indices)


def canonical_dictionary(values: pa.Array) -> pa.DictionaryArray:
    """`canonical`, without writing out every row: the dictionary may hold a spelling twice, and null."""
    if not pa.types.is_dictionary(values.type):
        values = values.dictionary_encode()
    distinct = values.dictionary
    if pa.types.is_floating(distinct.type):
        distinct = pc.if_else(pc.is_nan(distinct), None, distinct)
        # Scientific notation (1e+06) would hide that a number is whole.
        whole = pc.and_(pc.equal(pc.floor(distinct), distinct), pc.less(pc.abs(distinct), 2.0**53))
        integers = pc.cast(pc.if_else(whole, distinct, 0.0), pa.int64())
        distinct = pc.if_else(whole, pc.cast(integers, pa.string()), pc.cast(distinct, pa.string()))
    else:
        distinct = pc.cast(distinct, pa.string())
        if _may_hold(distinct, b".0"):  # rare, and the expression costs far more
            distinct = pc.replace_substring_regex(distinct, r"^(-?\d+)\.0+$", r"\1")
        distinct = pc.if_else(pc.equal(distinct, ""), None, distinct)
    return pa.DictionaryArray.from_arrays(values.indices, distinct)


def utf8_of(texts: pa.Array) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The bytes of all texts, one after the other, and where each begins and the last ends: [rows + 1]. What is missing
    is as long as ""."""
    texts = pc.cast(pc.fill_null(texts, ""), pa.large_string())
    _, offsets, data = texts.buffers()
    bounds = np.frombuffer(offsets, np.int64)[texts.offset : texts.offset + len(texts) + 1]
    # An array of empty texts only may have no buffer of bytes at all.
    return np.frombuffer(data or b"", np.uint8)[bounds[0] : bounds[-1]], bounds - bounds[0]


def _may_hold(texts: pa.Array, pair: bytes) -> bool:
    """Whether a text holds two bytes that follow each other; also true where one ends and the next begins with them."""
    content, _ = utf8_of(texts)
    return bool(np.any((content[:-1] == pair[0]) & (content[1:] == pair[1])))


def block_of(table: RawTable, start: int, rows: int = BLOCK_ROWS) -> pa.RecordBatch:
    part = table.slice(start, rows)
    if isinstance(part, pa.RecordBatch):
        return part
    arrays = [whole_array(part, position) for position in range(part.num_columns)]
    return pa.RecordBatch.from_arrays(arrays, names=part.column_names)


def whole_array(table: RawTable, column: str | int) -> pa.Array:
    found = table.column(column)
    return found.combine_chunks() if isinstance(found, pa.ChunkedArray) else found


def raw_column(block: pa.RecordBatch, name: str) -> pa.Array:
    if name not in block.schema.names:
        raise UserError(f"the rows have no column {name!r}, which the model reads; there is {block.schema.names}")
    return block.column(name)


def optional_numbers(block: pa.RecordBatch, name: str, default: float | None) -> pa.Array:
    if name not in block.schema.names:
        return pa.repeat(pa.scalar(default, pa.float32()), block.num_rows)
    column = pa.array(as_numbers(block, name).astype(np.float32), from_pandas=True)
    return column if default is None else column.fill_null(default)


def as_numbers(block: pa.RecordBatch, name: str) -> NDArray[np.float64]:
    """A column as float64; what is missing or not finite is NaN."""
    try:
        column = pc.cast(raw_column(block, name), pa.float64())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise UserError(f"column {name!r} should hold numbers: {error}") from None
    numbers = column.to_numpy(zero_copy_only=False)
    return np.where(np.isfinite(numbers), numbers, np.nan)


def transformed(block: pa.RecordBatch, feature: Feature) -> NDArray[np.float64]:
    numbers = as_numbers(block, feature.name)
    return np.log1p(np.maximum(numbers, 0.0)) if feature.transform == "log1p" else numbers


def flat_list(block: pa.RecordBatch, name: str) -> tuple[pa.Array, NDArray[np.int64]]:
    """All values of a list column, and how many each row has (0 where it is null)."""
    column = raw_column(block, name)
    if pa.types.is_null(column.type):
        column = column.cast(pa.list_(pa.string()))
    if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
        raise UserError(f"column {name!r} should hold lists, not {column.type}; split it before encoding")
    lengths = pc.fill_null(pc.list_value_length(column), 0)
    return column.flatten(), lengths.to_numpy(zero_copy_only=False).astype(np.int64)
