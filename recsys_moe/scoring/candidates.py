"""Which items are scored for which users, in tiles of a bounded size."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Positions = NDArray[np.int64]


@dataclass(frozen=True)
class Tile:
    """Some of the candidates of a block of users.

    Attributes:
        item: [U, W] positions of items, ascending from left to right, in later tiles after those of earlier ones.
        valid: [U, W] which of them count.
    """

    item: Tensor
    valid: Tensor


@dataclass(frozen=True)
class Listed:
    """A list of each user's own; an item that is there twice counts once.

    Attributes:
        lists: item positions [U, C] of all users, -1 for none; or a function that gives those of users start to stop.
    """

    lists: Positions | Callable[[int, int], Positions]

    def tiles(self, start: int, stop: int, pairs: int) -> Iterator[Tile]:
        """The candidates of users start to stop, at most `pairs` places (or one column) at a time."""
        listed = self.lists(start, stop) if callable(self.lists) else self.lists[start:stop]
        item = torch.from_numpy(np.sort(np.asarray(listed, np.int64), axis=1))
        valid = item >= 0
        valid[:, 1:] &= item[:, 1:] != item[:, :-1]
        for column in _columns(item.shape[1], stop - start, pairs):
            yield Tile(item[:, column], valid[:, column])


@dataclass(frozen=True)
class ForAll:
    """The same items for every user, less some pairs: never more than a tile of them in memory.

    Attributes:
        items: [C] distinct positions, ascending.
        left_out: of users start to stop the pairs that are left out: users [P], counted from `start`, and columns of
            `items` [P].
    """

    items: Positions
    left_out: Callable[[int, int], tuple[Positions, Positions]] | None = None

    def tiles(self, start: int, stop: int, pairs: int) -> Iterator[Tile]:
        """The candidates of users start to stop, at most `pairs` places (or one column) at a time."""
        user, column = self.left_out(start, stop) if self.left_out else (np.empty(0, np.int64), np.empty(0, np.int64))
        for columns in _columns(len(self.items), stop - start, pairs):
            item = torch.from_numpy(self.items[columns]).expand(stop - start, -1)
            valid = torch.ones(item.shape, dtype=torch.bool)
            inside = (column >= columns.start) & (column < columns.stop)
            valid[torch.from_numpy(user[inside]), torch.from_numpy(column[inside] - columns.start)] = False
            yield Tile(item, valid)


def _columns(count: int, users: int, pairs: int) -> Iterator[slice]:
    width = max(1, pairs // max(users, 1))
    return (slice(at, min(at + width, count)) for at in range(0, count, width))
