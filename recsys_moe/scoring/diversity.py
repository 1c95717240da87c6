"""Lists that do not show one kind of item only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Diversity:
    """Maximal marginal relevance (Carbonell and Goldstein 1998), where items of one group are alike and others are not.

    Attributes:
        groups: [I] the group of each item; below zero for one that is like no other.
        weight: what an item loses whose group is in the list already; scores lie between 0 and 1 in a user's pool.
        pool: how many of a user's best items are chosen from.
    """

    groups: NDArray[np.int64]
    weight: float
    pool: int

    def order(self, item: Tensor, score: Tensor, top_n: int) -> Tensor:
        """Choose from users' pools, place by place.

        Args:
            item: [U, P] positions, -1 where a user has fewer; the others are in front.
            score: [U, P] of these.
            top_n: the length of a list.

        Returns:
            [U, N] columns of the pool, in the order of the list; ties go to the item that stands first. Where a pool is
            used up come columns without an item.
        """
        # An item of a lower position is further to the left, which is where argmax finds the first of equals.
        column = item.argsort(1)
        if not item.shape[1]:
            return column
        group = torch.from_numpy(self.groups)[item.gather(1, column)]
        value = _scaled(score.gather(1, column), item.gather(1, column) >= 0)
        chosen, in_list = [], torch.zeros_like(group, dtype=torch.bool)
        for _ in range(min(top_n, item.shape[1])):
            marginal = torch.where(in_list, value - self.weight, value)
            best = marginal.argmax(1, keepdim=True)
            chosen.append(column.gather(1, best))
            in_list |= (group == group.gather(1, best)) & (group >= 0)
            value.scatter_(1, best, -torch.inf)
        return torch.cat(chosen, 1)


def _scaled(score: Tensor, is_item: Tensor) -> Tensor:
    """[U, P] in double precision: 1 for a user's best, 0 for the last; minus infinity where there is no item."""
    score = score.double()
    low = score.masked_fill(~is_item, torch.inf).amin(1, keepdim=True)
    span = score.masked_fill(~is_item, -torch.inf).amax(1, keepdim=True) - low
    scaled = torch.where(span > 0, (score - low) / span, torch.ones_like(score))
    return scaled.masked_fill(~is_item, -torch.inf)
