"""What happened before: counts and smoothed rates per key, over windows of days strictly before the event.

Each day leaves its sums per key in the table `daily_counts`; a feature is a sum over days. A row counts for an event
when both the day it happened and the day it came in lie before the event's day: late rows leak nothing. Where a task's
labels are known only days later, its windows end as many days earlier:

    days before the event           6   5   4   3   2   1   event
    rows, a window of 3 days                    [-------]
    a task whose labels take 2          [-------]
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines import labels, sql
from pipelines.config import Recommender, history_feature, last_seen_feature
from pipelines.key_groups import NULL, Groups, Key
from pipelines.window_sums import AGE, Measure, Sums, WindowSums

ALL: Key = ()
"""The key of all rows together: what a rate is smoothed towards."""
HASH = "value_hash"
"""The column of `daily_counts` that values are found by."""
_NOBODY = -2
"""A hash that nobody asks for."""


def key_name(key: Key) -> str:
    """What `daily_counts` calls a key."""
    return "_x_".join(key)


def daily_counts(
    connection: duckdb.DuckDBPyConnection, config: Recommender, rows: str, groups: Mapping[Key, Groups]
) -> pa.RecordBatchReader:
    """The sums per key and event day of the relation `rows`, which has labels, in order of key and hash.

    Columns: event_day, key, value, rows, for each task `<task>_rows` (where it is defined; null where it is on all, as
    most are) and `<task>_sum`, and the value's hash. `groups` are those of `rows`.
    """
    schema = _schema_of_counts(config)
    found = {task.name: _Label.of(connection, rows, task.name, task.kind == "binary") for task in config.tasks}
    return pa.RecordBatchReader.from_batches(schema, _batches_of_counts(groups, found, schema))


def _schema_of_counts(config: Recommender) -> pa.Schema:
    fields = [("event_day", pa.date32()), ("key", pa.string()), ("value", pa.string()), ("rows", pa.int32())]
    for task in config.tasks:
        fields += [(f"{task.name}_rows", pa.int32()), (f"{task.name}_sum", pa.float64())]
    return pa.schema([*fields, (HASH, pa.int64())])


def _batches_of_counts(
    groups: Mapping[Key, Groups], found: Mapping[str, _Label], schema: pa.Schema
) -> Iterator[pa.RecordBatch]:
    for key, by in sorted(groups.items()):
        name = key_name(key)
        columns: dict[str, Any] = {"event_day": by.days, HASH: by.hashes, "rows": by.sizes()}
        for task, label in found.items():
            columns |= {f"{task}_sum": label.sums(by)} | label.counts(task, by)
        order = np.lexsort((by.days, by.hashes))
        order = order[by.hashes[order] != NULL]
        columns = {column: values[order] for column, values in columns.items()}
        columns |= {"key": pa.repeat(name, len(order)), "value": by.values.take(pa.array(order))}
        if key != ALL and len(by):
            yield _nothing(name, int(by.days[0]), schema)
        arrays = [_as(columns.get(one.name, pa.nulls(len(order))), one.type) for one in schema]
        yield pa.RecordBatch.from_arrays(arrays, schema=schema)


def _nothing(name: str, day: int, schema: pa.Schema) -> pa.RecordBatch:
    """Tells that the day was counted by this key, where nothing has a value: of a hash that nobody asks for."""
    told: dict[str, Any] = {"event_day": day, "key": name, HASH: _NOBODY, "rows": 0}
    told |= {one.name: 0 for one in schema if pa.types.is_float64(one.type)}
    return pa.RecordBatch.from_pylist([{one.name: told.get(one.name) for one in schema}], schema)


def _as(values: Any, kind: pa.DataType) -> pa.Array:
    array = values if isinstance(values, pa.Array) else pa.array(values)
    return array.view(kind) if pa.types.is_date32(kind) else array.cast(kind)


@dataclass(frozen=True)
class _Label:
    """A task's label of each row: 0 where it is not defined, `defined` None where it is on all rows."""

    values: NDArray[np.float64]
    defined: NDArray[np.float64] | None
    exact: bool

    @classmethod
    def of(cls, connection: duckdb.DuckDBPyConnection, rows: str, task: str, exact: bool) -> _Label:
        found = sql.fetch(connection, f"SELECT CAST({sql.name(f'label_{task}')} AS DOUBLE) AS label FROM {rows}")
        label = found.column("label")
        defined = label.is_valid().to_numpy().astype(np.float64) if label.null_count else None
        return cls(label.fill_null(0.0).to_numpy(), defined, exact)

    def counts(self, task: str, by: Groups) -> dict[str, NDArray[np.int64]]:
        """[N] rows of each group that have it, as a column; no column where all have."""
        return {} if self.defined is None else {f"{task}_rows": by.sums(self.defined).astype(np.int64)}

    def sums(self, by: Groups) -> NDArray[np.float64]:
        """[N] Whole numbers add up to the same in any order; others need one."""
        return by.sums(self.values) if self.exact else by.sums(self.values, np.argsort(self.values, kind="stable"))


def longest_look_back(config: Recommender) -> int:
    """How many days before an event the oldest row lies that its features may see."""
    history = config.features.history
    assert history is not None
    delays = {task.name: labels.delay_days(config, task) for task in config.tasks}
    recent = [one.days + (delays[one.task] if one.task else 0) for one in history.recent]
    return max(*recent, max(history.days) + max(delays.values()), 0)


def look_up(
    config: Recommender,
    keys: Sequence[Key],
    groups: Mapping[Key, Groups],
    counts: Iterable[tuple[date, pa.RecordBatch]],
) -> dict[Key, dict[str, pa.Array]]:
    """The history features of each key, a value for each of its groups, by the key and the feature's name.

    Without any earlier day a count is 0 and a rate null; a key that was never seen has the rate of all rows.

    Args:
        config: says which features there are.
        keys: of which history is looked up.
        groups: of the rows that ask, by each key and by `ALL`.
        counts: what `daily_counts` left, with the day that brought it, for all days that may be looked at.
    """
    history = config.features.history
    assert history is not None
    asked = {key_name(key): (groups[key].days, groups[key].hashes) for key in (ALL, *keys)}
    sums = WindowSums(history.days, measures(config), asked)
    for ds, batch in counts:
        sums.add(ds, batch)
    everyone = sums.result(key_name(ALL))
    found = {}
    for key in keys:
        place = np.searchsorted(groups[ALL].days, groups[key].days)
        same_days = {name: values[place] for name, values in everyone.items()}
        found[key] = _features(config, key, sums.result(key_name(key)), same_days)
    return found


def measures(config: Recommender) -> list[Measure]:
    """The columns of `daily_counts` that are summed, and the days until each is known."""
    found = [Measure("rows", 0)]
    for task in config.tasks:
        delay = labels.delay_days(config, task)
        found += [Measure(f"{task.name}_rows", delay, "rows"), Measure(f"{task.name}_sum", delay)]
    return found


def _features(config: Recommender, key: Key, own: Sums, everyone: Sums) -> dict[str, pa.Array]:
    """The features of one key, from its sums and those of all rows of the same days.

    All are single precision, as the model reads them: whole numbers could not be missing in its input.
    """
    history = config.features.history
    assert history is not None
    features = {}
    for days in history.days:
        features[history_feature(key, days, "rows")] = own[f"rows_{days}d"]
        for task in config.tasks:
            total, hits = f"{task.name}_rows_{days}d", f"{task.name}_sum_{days}d"
            with np.errstate(invalid="ignore"):
                expected = history.smoothing * everyone[hits] / everyone[total]
            name = history_feature(key, days, f"{task.name}_rate")
            features[name] = (own[hits] + expected) / (own[total] + history.smoothing)
    if history.days_since_last:
        features[last_seen_feature(key)] = own[AGE]
    return {name: pa.array(values.astype(np.float32), from_pandas=True) for name, values in features.items()}
