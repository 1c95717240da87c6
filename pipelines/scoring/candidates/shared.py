"""What is made once for a scoring, before any shard, and read by each."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from typing import Self

import numpy as np
import pyarrow as pa
from scipy import sparse

from pipelines import sql
from pipelines.config import AllItems, Candidates, CoVisited, Listed, Newest, Popular, Recommender, Similar
from pipelines.scoring.candidates import co_visited, listed, met, newest, popular, seen, sharded, similar, small
from pipelines.scoring.candidates.lists import Lists, Positions
from pipelines.scoring.candidates.making import Making
from pipelines.scoring.candidates.neighbours import FromSeeds, Neighbours
from pipelines.scoring.candidates.seen import Seen
from pipelines.scoring.candidates.user_candidates import (
    Asked,
    Everything,
    Grouped,
    Ranked,
    Source,
    UserCandidates,
    combined,
)
from pipelines.scoring.staging import Staging
from pipelines.tables import Tables
from recsys_moe.checkpoint import Ranker

ALLOWED = "allowed"


@dataclass(frozen=True)
class Shared:
    """Lists that many users share, neighbours of items, and users' own rows cut by shard.

    Attributes:
        num_items: how many items are known.
        allowed: [C] positions of those that may be shown, ascending.
    """

    config: Recommender
    staging: Staging
    num_items: int
    allowed: Positions

    @staticmethod
    def make(
        config: Recommender,
        tables: Tables,
        ds: date,
        items: pa.Table,
        ranker: Ranker | None,
        bounds: pa.Array,
        folder: str,
        last: str | None = None,
    ) -> None:
        """Write it. Memory grows with the items, not with the log or the users.

        Args:
            config: the recommender.
            tables: are read as of the end of `ds`.
            ds: the last day that is looked at; candidates are for the day after.
            items: [I] rows of all known items as the model reads them, sorted by id.
            ranker: the model. Without one, there are no `similar` items and no segments.
            bounds: [K] the first user id of each shard, ascending.
            folder: local, or on S3.
            last: the last user id of all shards, if it is known: of users beyond it less is read.

        Raises:
            UserError: a column that the YAML names is not there, or holds something else.
        """
        staging = Staging(folder)
        with sql.connect(config.columns.timezone, spill=config.workspace / "scratch") as connection:
            making = Making(connection, config, tables, ds, items, ranker, bounds, last, staging)
            making.leave_tables()
            allowed = making.fetch("SELECT position FROM known_items WHERE allowed ORDER BY position")
            small.write(staging, ALLOWED, allowed)
            seen.make(making)
            for source in config.scoring.candidates:
                _make(making, source)

    @classmethod
    def open(cls, config: Recommender, folder: str, items: pa.Table) -> Self:
        """Read what `make` wrote for the same items; what is large is read as it is needed."""
        staging = Staging(folder)
        allowed = small.read(staging, ALLOWED).column("position").to_numpy().astype(np.int64)
        return cls(config, staging, len(items), allowed)

    def of_shard(self, shard: int, users: pa.Table, segments: pa.Array) -> UserCandidates:
        """The candidates of a shard's users.

        Args:
            shard: its number.
            users: [U] rows of its users, sorted by id.
            segments: [U] the name of each one's segment.
        """
        ids = users.column(self.config.columns.user)
        left_out = seen.read(self.config, self.staging, shard, ids, self.num_items)
        if isinstance(self.config.scoring.candidates[0], AllItems):
            return Everything(self.allowed, left_out)
        own = _Own(self, shard, ids, segments, left_out)
        sources: dict[str, Asked] = {
            wanted.source: Asked(own.source(wanted), wanted.if_fewer_than)
            for wanted in self.config.scoring.candidates
            if not isinstance(wanted, AllItems)
        }
        return combined(sources, left_out, len(ids))

    @cached_property
    def neighbours(self) -> dict[str, sparse.csr_array]:
        """[I, I] scores of each item's neighbours, by the source that asks for them."""
        wanted = [one.source for one in self.config.scoring.candidates if isinstance(one, CoVisited | Similar)]
        return {name: Neighbours.read(self.staging, name).as_matrix() for name in wanted}


def of_users(
    config: Recommender, tables: Tables, ds: date, users: pa.Table, items: pa.Table, ranker: Ranker | None = None
) -> UserCandidates:
    """The candidates of some users (rows sorted by id) alone, of which no file is left.

    Raises:
        UserError: as `Shared.make`.
    """
    ids = users.column(config.columns.user)
    scratch = config.workspace / "scratch"
    scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=scratch, prefix="candidates-") as folder:
        first, last = ids.slice(0, 1).combine_chunks(), ids[-1].as_py()
        Shared.make(config, tables, ds, items, ranker, first, folder, last)
        segments = ranker.encoder.segment_of(users)[0] if ranker else pa.nulls(len(ids), pa.string())
        return Shared.open(config, folder, items).of_shard(0, users, segments)


def _make(making: Making, wanted: Candidates) -> None:
    match wanted:
        case Popular():
            popular.make(making, wanted)
        case Newest():
            newest.make(making, wanted)
        case CoVisited():
            co_visited.make(making, wanted)
        case Similar():
            similar.make(making, wanted)
        case Listed():
            listed.make(making, wanted)


@dataclass(frozen=True)
class _Own:
    """What the sources propose for the users of a shard."""

    shared: Shared
    shard: int
    ids: pa.ChunkedArray
    segments: pa.Array
    seen: Seen

    def source(self, wanted: Candidates) -> Source:
        """What one of them does."""
        staging = self.shared.staging
        match wanted:
            case Popular():
                return Grouped(*popular.read(staging, self.segments))
            case Newest():
                return Grouped(newest.read(staging), np.zeros(len(self.ids), np.int64))
            case Listed():
                return Ranked(self.lists(listed.NAME), wanted.limit, self.seen.key)
            case CoVisited() | Similar():
                near = self.shared.neighbours[wanted.source]
                return FromSeeds(self.lists(met.name_of_seeds(wanted)), near, wanted.limit, self.seen.key)
            case _:
                raise AssertionError("`all` stands alone")

    def lists(self, name: str) -> Lists:
        """A list of each user's own."""
        return sharded.read(self.shared.staging, name, self.shard, self.ids)
