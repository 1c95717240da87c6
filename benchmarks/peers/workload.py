"""What all train on: sizes of a model, and made rows for it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class Workload:
    """A mixture of `experts` for `tasks` binary tasks, and the batches that it is trained on.

    `vocabularies` are the rows of each id's table, `dim` wide. A pass over the data is `steps` batches of `rows` rows.
    """

    experts: int
    rows: int = 4096
    vocabularies: tuple[int, ...] = (10_000,) * 10 + (100_000,) * 10
    dim: int = 16
    num_dense: int = 10
    tasks: int = 2
    hidden: tuple[int, ...] = (256, 128)
    towers: tuple[int, ...] = (64,)
    steps: int = 3

    @classmethod
    def from_json(cls, text: str) -> Self:
        """What `to_json` wrote."""
        written = json.loads(text)
        values: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in written.items()}
        return cls(**values)

    def to_json(self) -> str:
        """One line, for another process."""
        return json.dumps(asdict(self))

    @property
    def ids(self) -> tuple[str, ...]:
        """Names of the ids."""
        return tuple(f"id{n}" for n in range(len(self.vocabularies)))

    @property
    def numbers(self) -> tuple[str, ...]:
        """Names of the dense features."""
        return tuple(f"number{n}" for n in range(self.num_dense))

    @property
    def inputs(self) -> int:
        """Width of what experts read."""
        return len(self.vocabularies) * self.dim + self.num_dense


@dataclass(frozen=True)
class Rows:
    """Made rows: `ids` [B, F] int64, `numbers` [B, D] and `labels` [B, T] float32."""

    ids: Tensor
    numbers: Tensor
    labels: Tensor

    @classmethod
    def draw(cls, workload: Workload) -> Rows:
        """Every id of a vocabulary with the same chance, which is hard on caches; numbers normal, labels by a coin."""
        generator, count = torch.Generator().manual_seed(0), workload.steps * workload.rows
        uniform = torch.rand(count, len(workload.vocabularies), generator=generator, dtype=torch.float64)
        ids = (uniform * torch.tensor(workload.vocabularies)).long()
        numbers = torch.randn(count, workload.num_dense, generator=generator)
        labels = torch.randint(2, (count, workload.tasks), generator=generator).float()
        return cls(ids, numbers, labels)

    @classmethod
    def batches(cls, workload: Workload) -> list[Rows]:
        """A pass over the data, batch by batch."""
        drawn = cls.draw(workload)
        parts = (torch.split(part, workload.rows) for part in (drawn.ids, drawn.numbers, drawn.labels))
        return [cls(*batch) for batch in zip(*parts, strict=True)]
