"""Top-N of users × items, block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recsys_moe.checkpoint import Ranker
from recsys_moe.encoding import RawTable
from recsys_moe.errors import UserError
from recsys_moe.scoring import steps
from recsys_moe.scoring.blend import Blend
from recsys_moe.scoring.block import Block, Precision
from recsys_moe.scoring.candidates import ForAll, Listed, Positions, Tile
from recsys_moe.scoring.diversity import Diversity

PAIRS_AT_ONCE = 2**20


@dataclass(frozen=True)
class TopN:
    """The best items of a block of users, M rows, by user, then rank.

    Attributes:
        user, item: [M] positions in the tables of users and items.
        rank: [M], from 1: the order of the list, by score or, with diversity, by what the items before leave of it.
        score: [M] what the blend makes of the tasks' probabilities.
        task_scores: [M, T] the probabilities.
    """

    user: Positions
    item: Positions
    rank: Positions
    score: NDArray[np.float32]
    task_scores: NDArray[np.float32]


def score_top_n(
    ranker: Ranker,
    users: RawTable,
    items: RawTable,
    candidates: Positions | Callable[[int, int], Positions] | ForAll,
    blend: Blend,
    top_n: int,
    *,
    users_at_once: int = 1024,
    precision: Precision = "fp32",
    diversity: Diversity | None = None,
) -> Iterator[TopN]:
    """Score each user's candidates and yield the best, block of users by block.

    The scores are those of `Ranker.predict` on the joined rows. Ties go to the item that stands first in `items`; an
    item that is listed twice for a user counts once. It runs where the model is. Memory is bounded by `users_at_once`,
    `PAIRS_AT_ONCE` and `block.TABLE_BYTES`, whatever the number of users, items and candidates; only the lists that
    are given are held as they come.

    Args:
        users: a row per user and moment: the user-side and context columns.
        items: a row per item: the item-side columns.
        candidates: item positions [U, C] of all users, -1 for none; a function that gives those of users start to
            stop; or the same for everyone.
        blend: what makes one score of the tasks' probabilities.
        precision: with `bf16` experts and towers are rounded, gates are not. The error is in docs/scoring.md.
        diversity: re-ranks each list; the groups are those of `items`.

    Raises:
        UserError: the segment is made of an item's column; a raw column, or a task of the blend, is missing.
    """
    _check_segment_side(ranker)
    wanted = candidates if isinstance(candidates, ForAll) else Listed(candidates)
    tasks = [task.name for task in ranker.config.tasks]
    kept = max(top_n, diversity.pool) if diversity else top_n
    block = Block(ranker, items, min(users_at_once, max(users.num_rows, 1)), precision)
    for start in range(0, users.num_rows, users_at_once):
        some = users.slice(start, users_at_once)
        block.set_users(some)
        best = _Best.none(some.num_rows, len(tasks))
        for tile in wanted.tiles(start, start + some.num_rows, PAIRS_AT_ONCE):
            probabilities = block.probabilities(tile)
            by_task = {task: probabilities[..., number].numpy() for number, task in enumerate(tasks)}
            best = best.or_better(tile, probabilities, torch.from_numpy(blend.scores(by_task)), kept)
        yield (best.diverse(diversity, top_n) if diversity else best).rows(start)


def _check_segment_side(ranker: Ranker) -> None:
    columns = ranker.config.segments.columns if ranker.config.segments else ()
    of_items = [f.name for f in ranker.config.features if f.name in columns and f.side == "item"]
    if of_items:
        raise UserError(f"segments.by: {of_items} belongs to the item; a segment is the user's or the moment's")


@dataclass(frozen=True)
class _Best:
    """The best so far: item [U, N], -1 where there are fewer, score [U, N] and probabilities [U, N, T]."""

    item: Tensor
    score: Tensor
    probabilities: Tensor

    @classmethod
    def none(cls, users: int, tasks: int) -> Self:
        return cls(torch.empty(users, 0, dtype=torch.int64), torch.empty(users, 0), torch.empty(users, 0, tasks))

    def or_better(self, tile: Tile, probabilities: Tensor, score: Tensor, count: int) -> Self:
        """The best of these and of a tile's, whose items come after these: so ties keep the items' order."""
        score = torch.cat([self.score, score.masked_fill_(~tile.valid, -torch.inf)], 1)
        item = torch.cat([self.item, tile.item.masked_fill(~tile.valid, -1)], 1)
        known = torch.cat([self.probabilities, probabilities], 1) if self.item.shape[1] else probabilities
        return type(self)(item, score, known)._at(steps.on(score.device).best(score, count))

    def diverse(self, diversity: Diversity, count: int) -> Self:
        """The first `count` of these by marginal relevance."""
        return self._at(diversity.order(self.item, self.score, count))

    def _at(self, place: Tensor) -> Self:
        each = place.unsqueeze(2).expand(-1, -1, self.probabilities.shape[2])
        return type(self)(self.item.gather(1, place), self.score.gather(1, place), self.probabilities.gather(1, each))

    def rows(self, first_user: int) -> TopN:
        """A row for each that is there."""
        user, place = (self.item >= 0).nonzero(as_tuple=True)
        return TopN(
            user=(user + first_user).numpy(),
            item=self.item[user, place].numpy(),
            rank=(place + 1).numpy(),
            score=self.score[user, place].float().numpy(),
            task_scores=self.probabilities[user, place].numpy(),
        )
