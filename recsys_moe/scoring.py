"""Top-N of users × items. Every side is encoded and embedded once; a pair costs an addition and the network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recsys_moe.checkpoint import Ranker
from recsys_moe.config import Side
from recsys_moe.encoding import RawTable
from recsys_moe.errors import UserError

Positions = NDArray[np.int64]
Candidates = Positions | Callable[[int, int], Positions]
"""Item positions [U, C] of all users, -1 for none; or a function that gives those of users start to stop."""

PAIRS_AT_ONCE = 4096
USER_SIDES: tuple[Side, ...] = ("user", "context")


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
    candidates: Candidates,
    weights: Sequence[float],
    top_n: int,
    *,
    users_at_once: int = 256,
) -> Iterator[TopN]:
    """Score each user's candidates and yield the best, block of users by block.

    The scores are those of `Ranker.predict` on the joined rows. Ties go to the item that stands first in `items`; an
    item that is listed twice for a user counts once. Memory is bounded by the items' inputs [I, D] and one block's
    `users_at_once` × C candidates.

    Args:
        users: a row per user and moment: the user-side and context columns.
        items: a row per item: the item-side columns.
        weights: [T], of each task's probability in the score.

    Raises:
        UserError: the segment is made of an item's column; a raw column is missing.
    """
    _check_segment_side(ranker)
    task_weights = torch.tensor(list(weights), dtype=torch.float32)
    item_x, _ = _inputs(ranker, items, ("item",))
    for start in range(0, users.num_rows, users_at_once):
        block = users.slice(start, users_at_once)
        stop = start + block.num_rows
        listed = candidates(start, stop) if callable(candidates) else candidates[start:stop]
        user_x, segment = _inputs(ranker, block, USER_SIDES)
        item, valid = _unique_in_order(listed)
        probabilities = _pair_probabilities(ranker, user_x, segment, item_x, item, valid)
        yield _best(item, valid, probabilities, task_weights, top_n, start)


def _check_segment_side(ranker: Ranker) -> None:
    columns = ranker.config.segments.columns if ranker.config.segments else ()
    of_items = [f.name for f in ranker.config.features if f.name in columns and f.side == "item"]
    if of_items:
        raise UserError(f"segments.by: {of_items} belongs to the item; a segment is the user's or the moment's")


@torch.no_grad()
def _inputs(ranker: Ranker, table: RawTable, sides: Sequence[Side]) -> tuple[Tensor, Tensor]:
    """x [rows, D] of some sides' columns, zeros in the others' places, and segment [rows]."""
    xs, segments = [torch.zeros(0, ranker.model.input_dim)], [torch.zeros(0, dtype=torch.int64)]
    for start in range(0, table.num_rows, PAIRS_AT_ONCE):
        batch = ranker.encoder.to_batch(ranker.encoder.encode(table.slice(start, PAIRS_AT_ONCE), sides))
        xs.append(ranker.model.inputs(batch))
        segments.append(batch.segment)
    return torch.cat(xs), torch.cat(segments)


def _unique_in_order(listed: Positions) -> tuple[Tensor, Tensor]:
    """Candidates [U, C] in the order of items, and which of them count: neither -1 nor a repetition."""
    item = torch.from_numpy(np.sort(np.asarray(listed, np.int64), axis=1))
    valid = item >= 0
    valid[:, 1:] &= item[:, 1:] != item[:, :-1]
    return item, valid


@torch.no_grad()
def _pair_probabilities(
    ranker: Ranker, user_x: Tensor, segment: Tensor, item_x: Tensor, item: Tensor, valid: Tensor
) -> Tensor:
    """Probabilities [U, C, T] of the valid pairs, zero elsewhere."""
    user, column = valid.nonzero(as_tuple=True)
    out = torch.zeros(*item.shape, len(ranker.config.tasks))
    for start in range(0, len(user), PAIRS_AT_ONCE):
        u, c = user[start : start + PAIRS_AT_ONCE], column[start : start + PAIRS_AT_ONCE]
        logits, _ = ranker.model.forward_inputs(user_x[u] + item_x[item[u, c]], segment[u])
        out[u, c] = ranker.model.probabilities(logits)
    return out


def _best(item: Tensor, valid: Tensor, probabilities: Tensor, weights: Tensor, top_n: int, first_user: int) -> TopN:
    score = (probabilities @ weights).masked_fill(~valid, -torch.inf)
    best = torch.sort(score, dim=1, descending=True, stable=True).indices[:, :top_n]
    kept = valid.gather(1, best)
    user, place = kept.nonzero(as_tuple=True)
    column = best[user, place]
    return TopN(
        user=(user + first_user).numpy(),
        item=item[user, column].numpy(),
        rank=(place + 1).numpy(),
        score=score[user, column].numpy(),
        task_scores=probabilities[user, column].numpy(),
    )
