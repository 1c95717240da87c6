"""What users and items give to the first layers of experts and gates, each computed once."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from recsys_moe.model import RankingModel, not_of_items
from recsys_moe.scoring.network import Network


class Tables:
    """Rows of users, then of items, in one table: a pair's sum before the activation is that of two of its rows.

    The first layers are linear in x, and x is the user's and the moment's part plus the item's. Offsets, biases and
    what a segment adds to gates go with the user. Parts of a segment's expert are made for one segment at a time.

    Attributes:
        experts: [E, U + I, H] parts of the experts' first layer, in what scoring computes with.
        gates: [U + I, gates · E] parts of the gates' logits, as precise as the model; with `input: user` no items'.
    """

    def __init__(self, model: RankingModel, network: Network, users: int, items: int, dtype: torch.dtype) -> None:
        self.model, self.network, self.users = model, network, users
        self.has_segments = model.experts.segments is not None
        self.by_user_alone = model.config.gates.input == "user"
        like = model.gates.weight
        count, _, hidden = network.first.shape
        self.experts = like.new_empty(count, users + items, hidden, dtype=dtype)
        self.gates = like.new_empty(users + (0 if self.by_user_alone else items), like.shape[1])
        plain = network.first[: count - self.has_segments]
        self._sides = {is_user: _side(model, plain, is_user) for is_user in (True, False)}
        kept = users + items if self.has_segments else 0
        self._inputs = like.new_empty(kept, model.input_dim)

    def set_users(self, start: int, x: Tensor, segment: Tensor) -> None:
        """Fill users' rows from `start` on: inputs [n, D] of segments [n]."""
        self.gates[start : start + len(x)] = self.model.gates.logits(x, segment).flatten(1)
        self._set_experts(start, x, of_users=True)

    def set_items(self, start: int, x: Tensor) -> None:
        """Fill items' rows from `start` on: inputs [n, D]."""
        first = self.users + start
        if not self.by_user_alone:
            self.gates[first : first + len(x)] = x.to(self.gates.dtype) @ self.model.gates.weight
        self._set_experts(first, x, of_users=False)

    def set_segment(self, segment: int, of_user: Tensor, items: Tensor) -> None:
        """Let the last expert be that of `segment`: for its users of all [U], and for these items' numbers [n]."""
        self.network.become_segment(self.model.experts, segment)
        weight, table = self.network.first[-1], self.experts[-1]
        needed = torch.zeros(len(self._inputs) - self.users, dtype=torch.bool, device=table.device)
        needed[items] = True
        users, items = (of_user == segment).nonzero().squeeze(1), self.users + needed.nonzero().squeeze(1)
        for rows, is_user in ((users, True), (items, False)):
            table[rows] = _product(self._inputs[rows], weight, is_user).to(table.dtype)

    def _set_experts(self, first: int, x: Tensor, of_users: bool) -> None:
        if self.has_segments:
            self._inputs[first : first + len(x)] = x
        inputs, weights, biases = self._sides[of_users]
        x = x[:, inputs].to(weights.dtype)
        for weight, bias, table in zip(weights, biases, self.experts, strict=False):
            rows = table[first : first + len(x)]
            if rows.dtype == x.dtype:
                torch.addmm(bias, x, weight, out=rows)
            else:
                rows.copy_(torch.addmm(bias, x, weight))


def _side(model: RankingModel, first: Tensor, of_users: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Which inputs are a side's, the weights [E, D', H] of first layers [E, D, H] that read them, and biases [E, H]."""
    inputs = (not_of_items(model.config) == of_users).nonzero().squeeze(1).to(first.device)
    bias = first[:, model.input_dim]
    return inputs, first[:, inputs], bias if of_users else torch.zeros_like(bias)


def _product(x: Tensor, weight: Tensor, with_bias: bool) -> Tensor:
    """[n, D] inputs through [D', H], whose row after the inputs' has the biases."""
    inputs = x.shape[1]
    return functional.linear(x, weight[:inputs].t(), weight[inputs] if with_bias else None)
