"""Which experts do the work: load and weight by task and segment, and how the gates of tasks differ."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor
from torch import distributed as dist

from recsys_moe.batch import Batch
from recsys_moe.gates import Routing
from recsys_moe.model import RankingModel

DEAD_SHARE = 0.1
"""An expert is dead when its load is below this share of a fair one."""


@dataclass(frozen=True)
class RoutingReport:
    """Load of the R routed experts and weight of all E experts over some rows.

    Attributes:
        task_names: T names.
        expert_names: E names, the order of `weight`.
        routed_names: R names, the order of loads.
        load: [T, R] share of a task's choices that went to each routed expert; rows sum to 1.
        load_by_segment: [S, T, R] the same within each segment; NaN for a segment without rows.
        union_load: [R] share of the (row, expert) pairs that each routed expert ran, whichever task chose it.
        weight: [T, E] mean gate weight of every expert; rows sum to 1 where gates renormalise.
        weight_by_segment: [S, T, E]; NaN for a segment without rows.
        rows: [S] rows of each segment.
        gate_distance: [T, T] mean over rows of the total variation between two tasks' weights: 0 where both use the
            same experts alike, 1 where no expert serves both.
    """

    task_names: tuple[str, ...]
    expert_names: tuple[str, ...]
    routed_names: tuple[str, ...]
    load: Tensor
    load_by_segment: Tensor
    union_load: Tensor
    weight: Tensor
    weight_by_segment: Tensor
    rows: Tensor
    gate_distance: Tensor

    @property
    def entropy(self) -> float:
        """Entropy of the union load over an even one: 1 is even, 0 is a single expert; NaN if fewer than two."""
        experts = len(self.union_load)
        if experts < 2:
            return float("nan")
        return float(_entropy(self.union_load) / torch.tensor(float(experts)).log())

    @property
    def busiest(self) -> tuple[str, float] | None:
        """The routed expert with the largest union load, and its share of it; None if none is routed."""
        return self._routed_at(self.union_load.argmax()) if self.routed_names else None

    @property
    def idlest(self) -> tuple[str, float] | None:
        """The routed expert with the smallest union load, and its share of it; None if none is routed."""
        return self._routed_at(self.union_load.argmin()) if self.routed_names else None

    def _routed_at(self, position: Tensor) -> tuple[str, float]:
        return self.routed_names[int(position)], float(self.union_load[position])

    @property
    def dead(self) -> tuple[str, ...]:
        """Names of routed experts whose union load is under a tenth of a fair share."""
        loads = zip(self.routed_names, self.union_load.tolist(), strict=True)
        return tuple(name for name, load in loads if load < DEAD_SHARE / len(self.routed_names))

    @property
    def segment_entropy(self) -> float:
        """H(segment), nats, over the rows: the most that an expert can tell of it."""
        return float(_entropy(self.rows / self.rows.sum()))

    @property
    def mutual_information(self) -> Tensor:
        """[T] nats that an expert of a row tells of the row's segment: 0 where all segments use the same experts.

        The expert is drawn from those that the task's gate chose; where none is routed, from all, by their weights.
        N rows of no pattern at all show about (S - 1)(R - 1) / 2N nats.
        """
        use = self.load_by_segment if self.routed_names else self.weight_by_segment
        rows = self.rows / self.rows.sum()
        joint = use.nan_to_num() * rows[:, None, None]
        of_expert = _entropy(joint.sum(0))
        within_segment = (_entropy(use.nan_to_num()) * rows[:, None]).sum(0)
        return (of_expert - within_segment).clamp(min=0.0)

    @property
    def segment_information(self) -> Tensor:
        """[T] mutual information over H(segment): 1 where the expert gives the segment away; NaN with one segment."""
        return self.mutual_information / (self.segment_entropy or float("nan"))

    def summary(self) -> dict[str, float]:
        """The report in a few numbers for a tracker; those that are not defined are left out."""
        numbers = {"load_entropy": self.entropy}
        if self.busiest and self.idlest:
            numbers |= {"dead": len(self.dead), "busiest_share": self.busiest[1], "idlest_share": self.idlest[1]}
        of_segment = zip(self.task_names, self.segment_information.tolist(), strict=True)
        numbers |= {f"segment_information/{task}": share for task, share in of_segment}
        for (one, first), (other, second) in combinations(enumerate(self.task_names), 2):
            numbers[f"gate_distance/{first}-{second}"] = float(self.gate_distance[one, other])
        return {name: value for name, value in numbers.items() if value == value}


class RoutingTally:
    """Adds up, batch by batch, what the gates decide; its sums lie where the model does."""

    def __init__(self, model: RankingModel) -> None:
        self._layout, self._tasks = model.experts.layout, tuple(task.name for task in model.config.tasks)
        segments, tasks, device = len(model.gates.segment_embedding), len(self._tasks), model.gates.offset.device
        routed, experts = self._layout.routed, self._layout.total
        shapes = [(segments,), (segments, tasks, routed), (segments, tasks, experts), (routed,), (tasks, tasks)]
        self._sums = [torch.zeros(shape, dtype=torch.float64, device=device) for shape in shapes]

    @torch.no_grad()
    def add(self, routing: Routing, segment: Tensor) -> None:
        """Count the rows of a batch: its routing, and its segments [B]."""
        rows, chosen, weight, union, distance = self._sums
        picked = weight.new_zeros(*routing.chosen.shape[:2], self._layout.routed).scatter_(-1, routing.chosen, 1.0)
        over_experts = routing.over_experts(self._layout.total).double()
        rows.index_add_(0, segment, torch.ones_like(segment, dtype=torch.float64))
        chosen.index_add_(0, segment, picked)
        weight.index_add_(0, segment, over_experts)
        union += picked.amax(1).sum(0)
        mixture = _shares(over_experts)  # weights of gates that do not renormalise sum to less than 1
        distance += torch.cdist(mixture, mixture, p=1.0).sum(0) / 2

    def add_up_processes(self) -> None:
        """Make every process's tally that of all of them; each must call this."""
        for tensor in self._sums:
            dist.all_reduce(tensor)

    def report(self) -> RoutingReport:
        """The report over all rows that were added."""
        rows, chosen, weight, union, distance = (tensor.cpu() for tensor in self._sums)
        names = self._layout.names(self._tasks)
        return RoutingReport(
            task_names=self._tasks,
            expert_names=names,
            routed_names=names[self._layout.routed_slice],
            load=_shares(chosen.sum(0)),
            load_by_segment=_shares(chosen),
            union_load=_shares(union),
            weight=_shares(weight.sum(0)),
            weight_by_segment=_shares(weight),
            rows=rows.long(),
            gate_distance=distance / rows.sum(),
        )


@torch.no_grad()
def routing_report(model: RankingModel, batches: Iterable[Batch]) -> RoutingReport:
    """Let the model's gates decide over batches, and report. Experts are not run."""
    tally = RoutingTally(model)
    for batch in batches:
        tally.add(model.gates(model.inputs(batch), batch.segment), batch.segment)
    return tally.report()


def _shares(counts: Tensor) -> Tensor:
    return counts / counts.sum(-1, keepdim=True)


def _entropy(shares: Tensor) -> Tensor:
    """Entropy in nats over the last dimension."""
    return -torch.xlogy(shares, shares).sum(-1)
