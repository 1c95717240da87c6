"""One shard of a plan: its users' lists, in a file that is there as a whole or not at all."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from itertools import chain

import numpy as np
import pyarrow as pa

from pipelines import sql
from pipelines.config import Recommender
from pipelines.entities import Moment, entity_rows, moments
from pipelines.registry import Registry
from pipelines.scoring import asked
from pipelines.scoring.candidates import Shared, UserCandidates
from pipelines.scoring.diversity import diversity_of
from pipelines.scoring.plan import Plan
from recsys_moe import checkpoint
from recsys_moe.scoring import TopN, score_top_n

ASKED = b"asked"
"""Key in a file's metadata: by context and segment, for how many users lists were asked (JSON)."""
_USERS_AT_ONCE, _GROUP_ROWS = 1024, 131_072
_TEXT = pa.dictionary(pa.int32(), pa.string())


class Scorer:
    """What a process holds while it scores shards of a plan: the model, and what all users share."""

    def __init__(self, config: Recommender, plan: Plan) -> None:
        self.config, self.plan, self.staging = config, plan, plan.staging(config)
        registry = Registry(config)
        self.ranker = checkpoint.load(registry.checkpoint(registry.version(plan.version)))
        self.tables = plan.pinned(config)
        self.moments = moments(config, plan.ds)
        self._items: dict[str, pa.Table] = {}

    @cached_property
    def shared(self) -> Shared:
        """The candidates."""
        return Shared.open(self.config, self.staging.path, self.items(next(iter(self.moments.values()))))

    def items(self, moment: Moment) -> pa.Table:
        """Rows of all items as they are read at a moment, sorted by id."""
        if moment.name not in self._items:
            with sql.connect(self.config.columns.timezone) as connection:
                self._items[moment.name] = entity_rows(connection, self.config, self.tables, moment, "item")
        return self._items[moment.name]

    def score(self, number: int, advance: Callable[[int], None] = lambda users: None) -> int:
        """Write the lists of a shard; what stands is left as it is. Returns how many rows there are.

        Args:
            advance: is told of so many more users that are done, in any context.

        Raises:
            UserError: the model reads what the day does not have, or the file cannot be written.
        """
        name = self.plan.shard_file(number)
        if not self.staging.exists(name):
            users = asked.read(self.staging, number)
            schema = _schema([task.name for task in self.ranker.config.tasks])
            lists = [_Lists.of(self, number, users, moment) for moment in self.moments.values()]
            told = {one.moment.name: one.asked for one in lists}
            schema = schema.with_metadata({ASKED: json.dumps(told).encode()})
            rows = chain.from_iterable(one.blocks(schema, advance) for one in lists)
            self.staging.write_rows(name, schema, _gathered(rows))
        with self.staging.parquet(name) as file:
            return int(file.metadata.num_rows)


@dataclass(frozen=True)
class _Lists:
    """The lists of a shard's users in one context."""

    scorer: Scorer
    moment: Moment
    users: pa.Table
    segments: pa.Array
    segment_sources: pa.Array
    candidates: UserCandidates

    @classmethod
    def of(cls, scorer: Scorer, number: int, users: pa.Table, moment: Moment) -> _Lists:
        config = scorer.config
        with sql.connect(config.columns.timezone) as connection:
            rows = entity_rows(connection, config, scorer.tables, moment, "user", asked=users)
        names, sources = scorer.ranker.encoder.segment_of(rows)
        return cls(scorer, moment, rows, names, sources, scorer.shared.of_shard(number, rows, names))

    @property
    def asked(self) -> dict[str, int]:
        """How many users there are, by segment."""
        return dict(Counter(self.segments.to_pylist()))

    def blocks(self, schema: pa.Schema, advance: Callable[[int], None]) -> Iterator[pa.RecordBatch]:
        """Rows, block of users by block."""
        config, count = self.scorer.config, len(self.users)
        blocks = score_top_n(
            self.scorer.ranker,
            self.users,
            self.scorer.items(self.moment),
            self.candidates.given(),
            config.blend,
            config.scoring.top_n,
            users_at_once=_USERS_AT_ONCE,
            precision=config.scoring.precision,
            diversity=diversity_of(config, self.scorer.items(self.moment)),
        )
        for start, best in zip(range(0, count, _USERS_AT_ONCE), blocks, strict=True):
            yield self._rows(best, schema)
            advance(min(_USERS_AT_ONCE, count - start))

    def _rows(self, best: TopN, schema: pa.Schema) -> pa.RecordBatch:
        config, plan, user = self.scorer.config, self.scorer.plan, pa.array(best.user)
        items = self.scorer.items(self.moment).column(config.columns.item)
        columns = {
            "context": pa.repeat(self.moment.name, len(user)),
            "user_id": self.users.column(config.columns.user).take(user),
            "item_id": items.take(pa.array(best.item)),
            "rank": pa.array(best.rank.astype(np.int32)),
            "score": pa.array(best.score),
            **{f"score_{t.name}": best.task_scores[:, n] for n, t in enumerate(self.scorer.ranker.config.tasks)},
            "segment": self.segments.take(user),
            "segment_source": self.segment_sources.take(user),
            "candidate_source": self.candidates.sources(best.user, best.item),
            "model_version": pa.repeat(plan.version, len(user)),
            "run_id": pa.repeat(plan.run_id, len(user)),
            "scored_at": pa.repeat(datetime.fromisoformat(plan.scored_at), len(user)),
        }
        return pa.RecordBatch.from_arrays([_as(columns[one.name], one.type) for one in schema], schema=schema)


def _schema(tasks: Iterable[str]) -> pa.Schema:
    """Columns of `scores`, without `ds`."""
    return pa.schema(
        [
            ("context", _TEXT),
            ("user_id", _TEXT),
            ("item_id", _TEXT),
            ("rank", pa.int32()),
            ("score", pa.float32()),
            *((f"score_{task}", pa.float32()) for task in tasks),
            ("segment", _TEXT),
            ("segment_source", _TEXT),
            ("candidate_source", _TEXT),
            ("model_version", pa.int64()),
            ("run_id", _TEXT),
            ("scored_at", pa.timestamp("us", "UTC")),
        ]
    )


def _as(values: object, kind: pa.DataType) -> pa.Array:
    array = values if isinstance(values, pa.Array | pa.ChunkedArray) else pa.array(np.ascontiguousarray(values))
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
    if pa.types.is_dictionary(kind) and not pa.types.is_dictionary(array.type):
        array = array.dictionary_encode()
    return array.cast(kind)


def _gathered(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """The same rows in larger pieces, each with one dictionary a column."""
    waiting: list[pa.RecordBatch] = []
    for batch in batches:
        waiting.append(batch)
        if sum(map(len, waiting)) >= _GROUP_ROWS:
            yield pa.Table.from_batches(waiting).unify_dictionaries()
            waiting = []
    if waiting:
        yield pa.Table.from_batches(waiting).unify_dictionaries()
