"""Which experts do the work: load and weight by task and segment."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from recsys_moe.batch import Batch
from recsys_moe.model import RankingModel

DEAD_SHARE = 0.1
"""An expert is dead when its load is below this share of a fair one."""


@dataclass(frozen=True)
class RoutingReport:
    """Load of the R routed experts and weight of all E experts over some rows.

    Attributes:
        expert_names: E names, the order of `weight`.
        load: [T, R] share of a task's choices that went to each routed expert; rows sum to 1.
        load_by_segment: [S, T, R] the same within each segment; NaN for a segment without rows.
        union_load: [R] share of the (row, expert) pairs that each routed expert ran, whichever task chose it.
        weight: [T, E] mean gate weight of every expert; rows sum to 1.
        weight_by_segment: [S, T, E]; NaN for a segment without rows.
        rows: [S] rows of each segment.
    """

    expert_names: tuple[str, ...]
    load: Tensor
    load_by_segment: Tensor
    union_load: Tensor
    weight: Tensor
    weight_by_segment: Tensor
    rows: Tensor

    @property
    def entropy(self) -> float:
        """Entropy of the union load over an even one: 1 is even, 0 is a single expert; NaN if none is routed."""
        experts = len(self.union_load)
        if experts < 2:
            return float("nan")
        return float(-torch.xlogy(self.union_load, self.union_load).sum() / torch.tensor(float(experts)).log())

    @property
    def dead(self) -> tuple[str, ...]:
        """Names of routed experts whose union load is under a tenth of a fair share."""
        experts = len(self.union_load)
        names = [name for name in self.expert_names if name.startswith("routed ")]
        loads = zip(names, self.union_load.tolist(), strict=True)
        return tuple(name for name, load in loads if load < DEAD_SHARE / experts)


@torch.no_grad()
def routing_report(model: RankingModel, batches: Iterable[Batch]) -> RoutingReport:
    """Run the model over batches and add up what its gates decide."""
    layout, tasks = model.experts.layout, tuple(task.name for task in model.config.tasks)
    segments = model.gates.segment_embedding.shape[0]
    rows = torch.zeros(segments, dtype=torch.float64)
    chosen = torch.zeros(segments, len(tasks), layout.routed, dtype=torch.float64)
    weight = torch.zeros(segments, len(tasks), layout.total, dtype=torch.float64)
    union = torch.zeros(layout.routed, dtype=torch.float64)
    for batch in batches:
        _, routing = model(batch)
        rows += torch.bincount(batch.segment, minlength=segments)
        chosen.index_add_(0, batch.segment, routing.chosen.double())
        weight.index_add_(0, batch.segment, routing.weights.double())
        union += routing.chosen.any(1).sum(0)
    return RoutingReport(
        expert_names=layout.names(tasks),
        load=_shares(chosen.sum(0)),
        load_by_segment=_shares(chosen),
        union_load=_shares(union),
        weight=_shares(weight.sum(0)),
        weight_by_segment=_shares(weight),
        rows=rows.long(),
    )


def _shares(counts: Tensor) -> Tensor:
    return counts / counts.sum(-1, keepdim=True)
