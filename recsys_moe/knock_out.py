"""What each expert is worth: how much a task's loss rises where it is taken out and the others stand in."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from recsys_moe.batch import Batch
from recsys_moe.experts import with_one
from recsys_moe.losses import losses_of_rows
from recsys_moe.model import RankingModel
from recsys_moe.user_draws import UserDraws

DRAWS = 200
_NOTHING = 1e-6
"""Weight of the others, as a share of all, under which an expert is said to have all of it."""


@dataclass(frozen=True)
class KnockOut:
    """Losses with and without each expert, over the same rows.

    Attributes:
        task_names: T names.
        expert_names: E names.
        loss: [T] mean loss with all experts, in nats (a regression's in squared units).
        rise: [E, T] how much it rises without the expert; below 0 where the task does better without it. NaN where
            the expert has all the weight of some row, so that nothing could stand in. The `segment` expert's is that
            of taking out all segments' at once.
        low, high: [E, T] ends of the 95 % interval of the rise, by drawing users with all their rows.
        rows: how many rows were looked at.
    """

    task_names: tuple[str, ...]
    expert_names: tuple[str, ...]
    loss: Tensor
    rise: Tensor
    low: Tensor
    high: Tensor
    rows: int

    def summary(self) -> dict[str, float]:
        """`<task>/<expert>`: the rise, for a tracker; those that are not defined are left out."""
        names = [f"{task}/{expert}" for expert in self.expert_names for task in self.task_names]
        rises = zip(names, self.rise.flatten().tolist(), strict=True)
        return {name: rise for name, rise in rises if rise == rise}


@torch.no_grad()
def knock_out(model: RankingModel, batches: Iterable[Batch], users: NDArray[Any]) -> KnockOut:
    """Take out one expert after the other: its weight becomes 0, that of the others grows to the same sum.

    Routed experts that a gate chose stay chosen. Inputs, gates and all experts, densely, are computed once a batch:
    E·B·O numbers in double precision are held. Beyond that an expert costs a pass of the towers over the rows that
    use it.

    Args:
        batches: the rows. users: [rows] whose each is.
    """
    layout, names = model.experts.layout, tuple(task.name for task in model.config.tasks)
    draws = UserDraws.of(users, DRAWS)
    user, num_users = torch.from_numpy(draws.user), len(draws.counts)
    sums, counts = torch.zeros(2, num_users, len(names), dtype=torch.float64).unbind(0)
    rises, rows = torch.zeros(layout.total, num_users, len(names), dtype=torch.float64), 0
    for batch in batches:
        mixture, own = _Mixture.of(model, batch), user[rows : rows + len(batch)]
        losses, counted = mixture.losses(mixture.logits, torch.arange(len(batch)))
        sums.index_add_(0, own, losses)
        counts.index_add_(0, own, counted)
        for expert in range(layout.total):
            used, rise = mixture.rises_without(expert)
            rises[expert].index_add_(0, own[used], rise)
        rows += len(batch)
    drawn = _over_draws(rises, counts, torch.from_numpy(draws.counts).double())
    # A draw of a few users may have no row of a task; it is left out.
    low, high = drawn[..., 1:].nanquantile(torch.tensor([0.025, 0.975]).double(), dim=-1)
    return KnockOut(names, layout.names(names), sums.sum(0) / counts.sum(0), drawn[..., 0], low, high, rows)


def _over_draws(rises: Tensor, counts: Tensor, drawn: Tensor) -> Tensor:
    """[E, T, draws] mean rise of users drawn so often: rises [E, U, T], counts [U, T], drawn [U, draws]."""
    weight = counts.T @ drawn
    return torch.stack([of_expert.T @ drawn / weight for of_expert in rises])


@dataclass(frozen=True)
class _Mixture:
    """A batch as far as experts matter: what each says, with what weight, and what comes of it. In double precision.

    Attributes:
        outputs: [E, B, O]. weights: [B, T, E]. mixed: [B, T, O] their product. logits: [B, T] of that.
    """

    model: RankingModel
    batch: Batch
    outputs: Tensor
    weights: Tensor
    mixed: Tensor
    logits: Tensor

    @classmethod
    def of(cls, model: RankingModel, batch: Batch) -> _Mixture:
        x = model.inputs(batch)
        outputs = _all_outputs(model, x, batch.segment).double()
        weights = model.gates(x, batch.segment).over_experts(len(outputs)).double()
        mixed = torch.einsum("bte,ebo->bto", weights, outputs)
        return cls(model, batch, outputs, weights, mixed, _logits(model, mixed))

    def rises_without(self, expert: int) -> tuple[Tensor, Tensor]:
        """The rows that use an expert, and by how much the loss of each rises without it, [rows, T]."""
        rows = (self.weights[..., expert] > 0).any(1).nonzero().squeeze(1)
        own, total = self.weights[rows, :, expert], self.weights[rows].sum(-1)
        alone = total - own < _NOTHING * total
        growth = torch.where(alone, 0.0, total / (total - own))
        others = self.mixed[rows] - own.unsqueeze(-1) * self.outputs[expert, rows].unsqueeze(1)
        without, _ = self.losses(_logits(self.model, others * growth.unsqueeze(-1)), rows)
        with_all, _ = self.losses(self.logits[rows], rows)
        # A task's loss is that of its product with what it is given: undefined where a factor is.
        undefined = self.model.ancestry.double() @ alone.any(0).double() > 0
        return rows, (without - with_all).masked_fill(undefined, torch.nan)

    def losses(self, logits: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Losses and weights [rows, T] of the logits of some rows."""
        batch, model = self.batch, self.model
        labels, mask, weight = batch.labels[rows].double(), batch.label_mask[rows], batch.weight[rows].double()
        return losses_of_rows(logits, labels, mask, weight, model.config.tasks, model.ancestry.double())


def _logits(model: RankingModel, mixed: Tensor) -> Tensor:
    return model.corrected(model.towers(mixed.float())).double()


def _all_outputs(model: RankingModel, x: Tensor, segment: Tensor) -> Tensor:
    """[E, B, O] what every expert says of every row."""
    bank, x = model.experts, with_one(x)
    parts = [bank.always(x)] if bank.layout.num_always else []
    if bank.layout.routed:
        parts.append(bank.routed(x))
    if bank.segments is not None:
        parts.append(bank.segments(x, segment, bank.always).unsqueeze(0))
    return torch.cat(parts)[..., : bank.output_dim]
