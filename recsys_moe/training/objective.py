"""From a batch to the number whose gradient is followed, checked before a gradient is taken."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch import distributed as dist

from recsys_moe.batch import Batch
from recsys_moe.config import TrainingConfig
from recsys_moe.errors import UserError
from recsys_moe.gates import Routing
from recsys_moe.loss_weights import TaskWeights, last_shared
from recsys_moe.losses import loss_sums, sampling_weights
from recsys_moe.model import RankingModel
from recsys_moe.training.records import Means
from recsys_moe.training.trouble import LossGuard, named_rows


@dataclass(frozen=True)
class Seen:
    """What a step saw, of all processes.

    Attributes:
        sums, counts: [T] each task's summed losses and weights.
        rows: rows of this process.
        chosen: [B, T, k] the gates' choices, of this process.
    """

    sums: list[float]
    counts: list[float]
    rows: int
    chosen: Tensor


class Objective(nn.Module):
    """The weighted sum of the tasks' mean losses over the global batch, and the gates' penalty."""

    def __init__(self, model: RankingModel, training: TrainingConfig, device: torch.device) -> None:
        super().__init__()
        self.config = config = model.config
        self.weights = TaskWeights.of(config.tasks, training.loss_weights, device)
        self.guard = LossGuard(config.tasks)
        self.step, self.last_good = 0, "there is no checkpoint yet"
        self._ancestry = model.ancestry.to(device)
        self._shared = (last_shared(model),)  # in a tuple, or it would be a parameter of this module too

    def forward(self, logits: Tensor, routing: Routing, batch: Batch) -> tuple[Tensor, Seen]:
        """The number to call `backward` on, and what it is made of.

        Gradients are averaged over processes, so each takes its part of the global mean times their number.

        Raises:
            UserError: a loss is not finite, or explodes. Before `backward`, which writes the tables: one bad gradient
                would poison every row that it meets.
        """
        sums, counts = self.loss_sums(logits, batch, self._row_weights(batch))
        everything = over_processes(torch.cat([sums.detach(), counts, counts.new_full((1,), len(batch))]))
        numbers, tasks = everything.tolist(), len(sums)
        seen = Seen(numbers[:tasks], numbers[tasks:-1], len(batch), routing.chosen)
        self._check(seen, logits, batch)
        world = dist.get_world_size()
        per_task = sums / everything[tasks:-1].clamp(min=1e-12) * world
        total = self.weights.total(per_task, self._shared[0])
        return total + routing.penalty * (len(batch) * world / numbers[-1]), seen

    def loss_sums(self, logits: Tensor, batch: Batch, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Two [T] of this process's rows: weighted losses, and weights."""
        return loss_sums(logits, batch.labels, batch.label_mask, weight, self.config.tasks, self._ancestry)

    def _row_weights(self, batch: Batch) -> Tensor:
        """How much the rows of a training batch, which may be a sample, count: [B], or [B, T]."""
        if self.config.sampled is None:
            return batch.weight
        labels, mask, tasks = batch.labels, batch.label_mask, self.config.tasks
        return sampling_weights(labels, mask, batch.weight, tasks, self._ancestry, self.config.sampled)

    def _check(self, seen: Seen, logits: Tensor, batch: Batch) -> None:
        problem = self.guard.problem(Means(self.config.tasks, seen.sums, seen.counts).by_task())
        if problem is not None:
            where = named_rows(batch.row.tolist(), self._culprits(logits.detach(), batch))
            raise UserError(
                f"training: {problem} at step {self.step} ({where}); look for extreme numbers and labels in these "
                f"rows, or lower training.learning_rate; {self.last_good}"
            )

    def _culprits(self, logits: Tensor, batch: Batch) -> Iterator[int]:
        """Rows whose own loss is not finite. One by one, as a training ends here."""
        weight = self._row_weights(batch)
        for at, row in enumerate(batch.row.tolist()):
            one = slice(at, at + 1)
            labels, mask = batch.labels[one], batch.label_mask[one]
            sums, _ = loss_sums(logits[one], labels, mask, weight[one], self.config.tasks, self._ancestry)
            if not sums.isfinite().all():
                yield row


class TrainedModel(nn.Module):
    """A model with its objective: batch in, loss and what was seen out, as torchrec's pipelines want it."""

    def __init__(self, model: RankingModel, objective: Objective) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, batch: Batch) -> tuple[Tensor, Seen]:
        """See `Objective.forward`."""
        logits, routing = self.model(batch)
        out: tuple[Tensor, Seen] = self.objective(logits, routing, batch)
        return out


def over_processes(values: Tensor) -> Tensor:
    """The sum of a tensor over processes, which takes its place."""
    if dist.get_world_size() > 1:
        dist.all_reduce(values)
    return values
