"""The one data object that crosses the layers.

Legend of shapes, here and in every other file: B rows, F sparse features (categorical and multivalued, in the order
of the config), N indices in all, D a width, T tasks, S segments, E experts.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor

from recsys_moe.config import ModelConfig
from recsys_moe.mixing import draws


@dataclass(frozen=True)
class Batch:
    """Encoded rows as tensors.

    Attributes:
        values: [N] int64, indices of all sparse features, feature after feature, row after row.
        lengths: [F * B] int32, how many of `values` belong to each feature of each row, in the same order.
        dense: [B, D] float32, scaled numeric features.
        segment: [B] int64, 0 where unknown.
        labels: [B, T] float32, 0 where undefined.
        label_mask: [B, T] bool, where a label is defined.
        weight: [B] float32, how much a row counts.
        row: [B] int64, the row's place in what is trained on, whatever order it is read in.
    """

    values: Tensor
    lengths: Tensor
    dense: Tensor
    segment: Tensor
    labels: Tensor
    label_mask: Tensor
    weight: Tensor
    row: Tensor

    def __len__(self) -> int:
        return len(self.segment)

    @property
    def num_features(self) -> int:
        """F, the number of sparse features."""
        return len(self.lengths) // max(len(self), 1)

    def to(self, device: torch.device) -> Self:
        """The same batch on another device."""
        moved = {f.name: getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)}
        return replace(self, **moved)


@dataclass(frozen=True)
class Hiding:
    """Hides ids and segments from a share of rows, so that index 0 learns to stand for what was never seen.

    Hiding a segment hides all that would give it away: its source columns, and every feature that is made of them or
    of what they are made of (`from_keys`). A segment by behaviour is made of the user: it takes the user's id and all
    history of the user with it, so that the row looks as a new user's would. A hidden index becomes 0, a hidden number
    becomes its mean, 0 after scaling.
    """

    ids: float
    segments: float
    sparse_tells: tuple[bool, ...]
    dense_tells: tuple[bool, ...]

    @classmethod
    def of(cls, config: ModelConfig, ids: float, segments: float) -> Self:
        """What to hide for `config`, of shares `ids` (of indices) and `segments` (of rows)."""
        columns = set(config.segments.columns) if config.segments else set()
        columns |= {key for f in config.features if f.name in columns for key in f.from_keys}
        tells = {f.name: bool(columns & {f.name, *f.from_keys}) for f in config.features}
        return cls(
            ids=ids,
            segments=segments if config.segments else 0.0,
            sparse_tells=tuple(tells[f.name] for f in config.features if f.kind != "numeric"),
            dense_tells=tuple(tells[f.name] for f in config.features if f.kind == "numeric"),
        )

    def __call__(self, batch: Batch, seed: int, epoch: int) -> Batch:
        """Hide what (seed, epoch, row) draws: the same of a row whatever batch it is in."""
        if not (self.ids or self.segments):
            return batch
        device, width = batch.values.device, len(self.sparse_tells)
        drawn = draws(seed, epoch, batch.row.cpu().numpy(), 1 + width)
        rows = torch.from_numpy(drawn[width] < round(self.segments * 2**32)).to(device)
        cells = torch.from_numpy(drawn[:width] < round(self.ids * 2**32)).to(device)
        cells |= torch.tensor(self.sparse_tells, dtype=torch.bool, device=device)[:, None] & rows
        hidden = cells.flatten().repeat_interleave(batch.lengths)
        dense_hidden = rows[:, None] & torch.tensor(self.dense_tells, dtype=torch.bool, device=device)
        return replace(
            batch,
            values=batch.values.masked_fill(hidden, 0),
            segment=batch.segment.masked_fill(rows, 0),
            dense=batch.dense.masked_fill(dense_hidden, 0.0),
        )
