"""Top-N of users × items, block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recsys_moe.checkpoint import Ranker
from recsys_moe.encoding import RawTable
from recsys_moe.errors import UserError
from recsys_moe.scoring.block import Block, Precision
from recsys_moe.scoring.candidates import ForAll, Listed, Positions, Tile

PAIRS_AT_ONCE = 2**20


@dataclass(frozen=True)
class TopN:
    """The best items of a block of users, M rows, by user, then rank.

    Attributes:
        user, item: [M] positions in the tables of users and items.
        rank: [M], from 1.
        score: [M] weighted sum of the tasks' probabilities.
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
    weights: Sequence[float],
    top_n: int,
    *,
    users_at_once: int = 1024,
    precision: Precision = "fp32",
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
        weights: [T], of each task's probability in the score.
        precision: with `bf16` experts and towers are rounded, gates are not. The error is in docs/scoring.md.

    Raises:
        UserError: the segment is made of an item's column; a raw column is missing.
    """
    _check_segment_side(ranker)
    wanted = candidates if isinstance(candidates, ForAll) else Listed(candidates)
    task_weights = torch.tensor(list(weights), dtype=torch.float32)
    block = Block(ranker, items, min(users_at_once, max(users.num_rows, 1)), precision)
    for start in range(0, users.num_rows, users_at_once):
        some = users.slice(start, users_at_once)
        block.set_users(some)
        best = _Best.none(some.num_rows, len(task_weights))
        for tile in wanted.tiles(start, start + some.num_rows, PAIRS_AT_ONCE):
            best = best.or_better(tile, block.probabilities(tile), task_weights, top_n)
        yield best.rows(start)


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

    def or_better(self, tile: Tile, probabilities: Tensor, weights: Tensor, top_n: int) -> Self:
        """The best of these and of a tile's, whose items come after these: so ties keep the items' order."""
        # Not by a matrix product, which may round its last rows in another way than items that are alike before them.
        total = (probabilities * weights).sum(-1)
        score = torch.cat([self.score, total.masked_fill_(~tile.valid, -torch.inf)], 1)
        item = torch.cat([self.item, tile.item.masked_fill(~tile.valid, -1)], 1)
        known = torch.cat([self.probabilities, probabilities], 1) if self.item.shape[1] else probabilities
        place = torch.sort(score, dim=1, descending=True, stable=True).indices[:, :top_n]
        each = place.unsqueeze(2).expand(-1, -1, known.shape[2])
        return type(self)(item.gather(1, place), score.gather(1, place), known.gather(1, each))

    def rows(self, first_user: int) -> TopN:
        """A row for each that is there."""
        user, place = (self.item >= 0).nonzero(as_tuple=True)
        return TopN(
            user=(user + first_user).numpy(),
            item=self.item[user, place].numpy(),
            rank=(place + 1).numpy(),
            score=self.score[user, place].numpy(),
            task_scores=self.probabilities[user, place].numpy(),
        )
