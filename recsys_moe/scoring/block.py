"""A block of users against tiles of items: what is encoded, held, and made again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from recsys_moe.checkpoint import Ranker
from recsys_moe.config import Side
from recsys_moe.encoding import RawTable
from recsys_moe.scoring.candidates import Tile
from recsys_moe.scoring.network import Network
from recsys_moe.scoring.pairs import PADDING, PairScorer
from recsys_moe.scoring.tables import Tables

USER_SIDES: tuple[Side, ...] = ("user", "context")
ENCODED_AT_ONCE = 4096
COLUMNS = 32
"""Candidates that are gone through for one user after the other."""
TABLE_BYTES = 2**29
"""Where the parts of all items take more, those that a tile needs are made for each tile, so many at a time."""
Precision = Literal["fp32", "bf16"]


class Block:
    """Probabilities of users × items; the users change block by block, the items stay if they fit."""

    def __init__(self, ranker: Ranker, items: RawTable, users_at_once: int, precision: Precision) -> None:
        self.ranker, self.model, self.items = ranker, ranker.model, items
        self.device, exact = self.model.gates.weight.device, self.model.gates.weight.dtype
        dtype = torch.bfloat16 if precision == "bf16" else exact
        network = Network.of(self.model, dtype)
        row_bytes = len(network.first) * network.first.shape[2] * dtype.itemsize
        self.items_at_once = max(1, min(items.num_rows, TABLE_BYTES // row_bytes))
        self.tables = Tables(self.model, network, users_at_once, self.items_at_once, dtype)
        self.pairs = PairScorer(self.tables)
        self.segment = torch.zeros(0, dtype=torch.int64, device=self.device)
        self.holds_all = self.items_at_once >= items.num_rows
        if self.holds_all:
            self._set_items(items)

    @torch.inference_mode()
    def set_users(self, users: RawTable) -> None:
        """Whom the next tiles are for."""
        segments = [self.segment[:0]]
        for start, x, segment in self._inputs(users, USER_SIDES):
            self.tables.set_users(start, x, segment)
            segments.append(segment)
        self.segment = torch.cat(segments)

    @torch.inference_mode()
    def probabilities(self, tile: Tile) -> Tensor:
        """[U, W, T] of the tile's valid pairs, zero elsewhere, on the CPU."""
        user, column = _in_groups(tile.valid)
        item = tile.item[user, column]
        assert not len(item) or (item.min() >= 0 and item.max() < self.items.num_rows), "a candidate is no item"
        out = torch.zeros(*tile.item.shape, len(self.ranker.config.tasks))
        place = user * tile.item.shape[1] + column
        for some, pairs in self._held(torch.stack([user, item], 1)):
            logits = self.logits(pairs.to(self.device))
            chances = self.model.probabilities(functional.pad(logits, (0, 0, 0, -len(logits) % PADDING)))
            out.view(-1, out.shape[2]).index_copy_(0, place[some], chances[: len(logits)].to("cpu", out.dtype))
        return out

    def _held(self, pairs: Tensor) -> Iterator[tuple[Tensor | slice, Tensor]]:
        """Which of the pairs [P, 2] have their items in the table now, and their rows there, until all had."""
        item = pairs[:, 1]
        if not len(item):
            return
        if self.holds_all:
            yield slice(None), pairs
            return
        for needed in torch.split(torch.unique(item), self.items_at_once):
            self._set_items(self.items.take(needed.numpy()))
            some = ((item >= needed[0]) & (item <= needed[-1])).nonzero().squeeze(1)
            yield some, torch.stack([pairs[some, 0], torch.searchsorted(needed, item[some])], 1)

    def logits(self, pairs: Tensor) -> Tensor:
        """[P, T] of pairs [P, 2], numbers of users and items; where segments have experts, segment by segment."""
        first_item = self.tables.users
        rows = pairs + torch.tensor([0, first_item], device=self.device)
        if not self.tables.has_segments:
            return self.pairs.logits(rows)
        segment = self.segment[pairs[:, 0]]
        out = self.tables.gates.new_empty(len(pairs), len(self.ranker.config.tasks))
        order = segment.argsort(stable=True)
        for some in torch.split(order, segment.bincount().tolist()):
            if len(some):
                self.tables.set_segment(int(segment[some[0]]), self.segment, pairs[some, 1])
                out[some] = self.pairs.logits(rows[some])
        return out

    def _set_items(self, items: RawTable) -> None:
        for start, x, _ in self._inputs(items, ("item",)):
            self.tables.set_items(start, x)

    @torch.no_grad()
    def _inputs(self, table: RawTable, sides: Sequence[Side]) -> Iterator[tuple[int, Tensor, Tensor]]:
        """First row, x [n, D] of some sides' columns with zeros in the others' places, and segment [n]."""
        for start in range(0, table.num_rows, ENCODED_AT_ONCE):
            encoded = self.ranker.encoder.encode(table.slice(start, ENCODED_AT_ONCE), sides)
            batch = self.ranker.encoder.to_batch(encoded).to(self.device)
            yield start, self.model.inputs(batch), batch.segment


def _in_groups(valid: Tensor) -> tuple[Tensor, Tensor]:
    """Users and columns of the valid pairs, user by user within some columns: so a user's parts are read once for all
    of these, while the items, which are the same or near from user to user, stay in the cache."""
    parts = [(at, valid[:, at : at + COLUMNS].nonzero()) for at in range(0, max(valid.shape[1], 1), COLUMNS)]
    user, column = torch.cat([part + torch.tensor([0, at]) for at, part in parts]).unbind(1)
    return user, column
