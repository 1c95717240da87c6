"""How much each task's loss counts: fixed, learned from the tasks' noise, or by the size of their gradients.

Called once a step, between the check that the losses are finite and `backward`:

    weights = TaskWeights.of(config.tasks, training.loss_weights, device)
    optimizer = AdamW([{"params": dense}, {"params": list(weights.parameters()), "weight_decay": 0.0}], ...)
    shared = last_shared(model)
    ...
    per_task = sums / all_counts.clamp(min=1e-12) * world_size   # [T], this process's part of the global mean
    (weights.total(per_task, shared) + routing.penalty).backward()

`state_dict` holds all that a resumed training needs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch import distributed as dist

from recsys_moe.config import Task
from recsys_moe.errors import UserError
from recsys_moe.model import RankingModel

Method = Literal["static", "uncertainty", "gradnorm"]


class TaskWeights(nn.Module, ABC):
    """Weights of the tasks' losses. Make one with `of`."""

    def __init__(self, tasks: Sequence[Task], device: torch.device) -> None:
        super().__init__()
        self.names = tuple(task.name for task in tasks)
        self.given: Tensor
        self.register_buffer("given", torch.tensor([task.weight for task in tasks], device=device), persistent=False)

    @staticmethod
    def of(tasks: Sequence[Task], how: Method, device: torch.device) -> TaskWeights:
        """The weights that `training.loss_weights` asks for."""
        ways: dict[Method, type[TaskWeights]] = {
            "static": StaticWeights,
            "uncertainty": UncertaintyWeights,
            "gradnorm": GradNormWeights,
        }
        return ways[how](tasks, device)

    @abstractmethod
    def total(self, per_task: Tensor, shared: nn.Parameter | None) -> Tensor:
        """The scalar to call `backward` on, once. All processes call this at the same step.

        Args:
            per_task: [T] mean losses with their graph, finite; a task without rows in the global batch has 0, as
                `sums / counts.clamp(min=1e-12)` gives. In several processes the mean of `per_task` over them is the
                global loss, as their gradients are averaged.
            shared: what `last_shared` says of the model; only `gradnorm` looks at it.
        """

    @abstractmethod
    def now(self) -> Tensor:
        """[T] what each task's loss is multiplied by, without a graph."""

    def current(self) -> dict[str, float]:
        """What each task's loss is multiplied by now, by task."""
        return dict(zip(self.names, self.now().tolist(), strict=True))


class StaticWeights(TaskWeights):
    """The tasks' own weights, as the YAML has them."""

    def total(self, per_task: Tensor, shared: nn.Parameter | None) -> Tensor:
        """The weighted sum of the losses."""
        return per_task @ self.given

    def now(self) -> Tensor:
        """[T] the weights of the YAML."""
        return self.given


class UncertaintyWeights(TaskWeights):
    """Weights learned as the tasks' noise (Kendall, Gal & Cipolla 2018), in their log-variance form.

    With s = log σ² a binary task counts exp(-s) · log-loss + s/2 (their equation 10), a regression
    exp(-s)/2 · squared error + s/2 (equation 7), each times the task's weight of the YAML. Where s has settled both
    make the factor 1 / (2 · loss): a task of large losses counts less, whatever its unit.

    s starts at that best value for the first batch in which its task has rows: Adam moves it by the learning rate at
    most, which would take thousands of steps to a regression in milliseconds.
    """

    def __init__(self, tasks: Sequence[Task], device: torch.device) -> None:
        super().__init__(tasks, device)
        halves = [0.5 if task.kind == "regression" else 1.0 for task in tasks]
        self.factor: Tensor
        self.register_buffer("factor", torch.tensor(halves, device=device), persistent=False)
        self.seen: Tensor
        self.register_buffer("seen", torch.zeros(len(tasks), dtype=torch.bool, device=device))
        self.log_variance = nn.Parameter(torch.zeros(len(tasks), device=device))

    def total(self, per_task: Tensor, shared: nn.Parameter | None) -> Tensor:
        """The weighted sum, with a gradient for the log-variances that is the same in every process.

        That gradient is made of the global losses, so that it needs no reduction after `backward`, and a task without
        rows has none.
        """
        losses = _over_processes(per_task.detach())
        has_rows = losses > 0
        self._start(losses, has_rows)
        learned = self._factors() * losses + self.given * self.log_variance / 2
        # The first part has the losses' gradient and the value 0, the second the variances' gradient and the value.
        return self.now() @ (per_task - per_task.detach()) + torch.where(has_rows, learned, 0.0).sum()

    @torch.no_grad()
    def now(self) -> Tensor:
        """[T] weight of the YAML · factor · exp(-s)."""
        return self._factors()

    def _factors(self) -> Tensor:
        return self.given * self.factor * torch.exp(-self.log_variance)

    @torch.no_grad()
    def _start(self, losses: Tensor, has_rows: Tensor) -> None:
        first = has_rows & ~self.seen
        best = torch.log(2.0 * self.factor * losses.clamp(min=torch.finfo(losses.dtype).tiny))
        self.log_variance.copy_(torch.where(first, best, self.log_variance))
        self.seen |= has_rows


class GradNormWeights(TaskWeights):
    """Weights under which every task pulls equally at what they share (GradNorm, Chen et al. 2018).

    With n the norm of a task's gradient at `shared`, its weight w moves until w · n is the tasks' mean of w · n, times
    r ** alpha, where r is the share of its first loss that is left, over the tasks' mean of that share: a task that
    learns slower gets more. A task's weight of the YAML multiplies what it is to have. Weights sum to T.

    Chen et al. descend the L1 distance to that target by gradient; here log w goes a share `rate` of the way at every
    step, and all of it where the task is first seen: gradients of a loss in milliseconds, once let in, would keep the
    tables' Adagrad from learning ever after. The fixed point is the same, the step does not depend on the scale of
    losses, and no weight turns negative.
    """

    def __init__(self, tasks: Sequence[Task], device: torch.device, alpha: float = 1.5, rate: float = 0.05) -> None:
        super().__init__(tasks, device)
        self.alpha, self.rate = alpha, rate
        self.first_loss: Tensor
        self.register_buffer("first_loss", torch.zeros(len(tasks), device=device))
        self.log_weight: Tensor
        self.register_buffer("log_weight", torch.zeros(len(tasks), device=device))

    def total(self, per_task: Tensor, shared: nn.Parameter | None) -> Tensor:
        """The sum with weights that this step's gradients have moved.

        The gradients are taken at `shared` alone. Embeddings lie below it, so their fused backward, which writes the
        tables, does not run until the caller's `backward`.

        Raises:
            UserError: the model has no weights that tasks share.
        """
        if shared is None:
            raise UserError(
                "training.loss_weights: gradnorm needs experts that tasks share; set experts.shared or experts.routed "
                "above 0, or choose static or uncertainty"
            )
        self._move(*_norms_over_processes(per_task, shared))
        return per_task @ self.now()

    @torch.no_grad()
    def now(self) -> Tensor:
        """[T] weights that sum to T (brought to it here: `_move` keeps the sum but for rounding)."""
        return self.log_weight.softmax(0) * len(self.log_weight)

    @torch.no_grad()
    def _move(self, losses: Tensor, norms: Tensor) -> None:
        counts = (losses > 0) & (norms > 0)  # a task without rows keeps its weight
        if not counts.any():
            return
        is_new = (self.first_loss == 0)[counts]
        self.first_loss.copy_(torch.where(counts & (self.first_loss == 0), losses, self.first_loss))
        weights, left = self.now()[counts], (losses / self.first_loss)[counts]
        pull = weights * norms[counts]
        usual = pull.mean() if is_new.all() else pull[~is_new].mean()
        wanted = usual * self.given[counts] * (left / left.mean()) ** self.alpha
        moved = self.log_weight[counts] + torch.where(is_new, 1.0, self.rate) * (wanted.log() - pull.log())
        self.log_weight[counts] = moved.log_softmax(0) + weights.sum().log()


def last_shared(model: RankingModel) -> nn.Parameter | None:
    """The last weights that all tasks read, what `TaskWeights.total` takes: the last layer of the shared experts.

    Where there are none, that of the routed ones; None where each task has its own experts only. Of the unwrapped
    model: DistributedModelParallel trains the same parameters. (Experts per task are stacked with the shared ones.
    Their gradients count too: they are part of how hard their task pulls.)
    """
    layout, experts = model.experts.layout, model.experts
    if not layout.shared + layout.routed:
        return None
    weights = (experts.always if layout.shared else experts.routed).weights
    return cast(nn.Parameter, weights[-1])


def _over_processes(values: Tensor) -> Tensor:
    """The mean of a tensor over processes, which takes its place."""
    if dist.is_initialized():
        dist.all_reduce(values)
        values /= dist.get_world_size()
    return values


def _norms_over_processes(per_task: Tensor, shared: nn.Parameter) -> tuple[Tensor, Tensor]:
    """Global losses [T], and norms [T] of their gradients at `shared`; equal in every process.

    Gradients are averaged before their norms are taken: norms of parts do not add up to the norm of the whole.
    """
    gradients = []
    for loss in per_task.unbind():
        (found,) = torch.autograd.grad(loss, shared, retain_graph=True, allow_unused=True)
        gradients.append(torch.zeros_like(shared) if found is None else found)
    flat = torch.stack(gradients).flatten(1)
    both = _over_processes(torch.cat([per_task.detach().unsqueeze(1), flat], 1))
    return both[:, 0], both[:, 1:].norm(dim=1)
