"""Embeddings → experts, mixed by a gate per task → a tower per task."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from recsys_moe.batch import Batch
from recsys_moe.config import ModelConfig, SampledNegatives, Task
from recsys_moe.embedding_sets import read_own_sets
from recsys_moe.errors import UserError
from recsys_moe.experts import ExpertBank
from recsys_moe.gates import Gates, Routing


class RankingModel(nn.Module):
    """The multi-gate mixture of experts of DESIGN section 7.

    The input x is the plain concatenation of pooled embeddings and scaled numbers, so that the first layers of
    experts and gates are linear in the sides: x of a pair is x of the user's and context's columns plus x of the
    item's.

    Raises:
        UserError: expert sizes or tasks do not go together.
    """

    def __init__(
        self, config: ModelConfig, vocab_sizes: Sequence[int], num_dense: int, num_segments: int, embeddings: nn.Module
    ) -> None:
        super().__init__()
        self.config, self.embeddings = config, embeddings
        sizes = config.experts
        self.input_dim = input_dim = len(vocab_sizes) * config.embedding_dim + num_dense
        self.experts = ExpertBank(config, input_dim, num_segments)
        if sizes.embedding_sets > 1:
            read_own_sets(self.experts, len(vocab_sizes), config.embedding_dim, sizes.embedding_sets)
        self.gates = Gates(self.experts.layout, input_dim, num_segments, sizes.top_k, config.gates)
        if config.gates.input == "user":
            self.gates.read_only(not_of_items(config))
        self.towers = Towers(len(config.tasks), (sizes.hidden[-1], *config.towers, 1))
        self.ancestry: Tensor
        self.register_buffer("ancestry", ancestry(config.tasks), persistent=False)
        self.sampling_shift: Tensor
        self.register_buffer("sampling_shift", sampling_shift(config.tasks, config.sampled), persistent=False)

    def inputs(self, batch: Batch) -> Tensor:
        """x [B, D]: pooled embeddings of all sparse features, then the dense ones."""
        return torch.cat([self.embeddings(batch), batch.dense], dim=1)

    def forward_inputs(self, x: Tensor, segment: Tensor) -> tuple[Tensor, Routing]:
        """Logits [B, T] and the routing behind them, for x [B, D] and segment [B]."""
        routing = self.gates(x, segment)
        return self.towers(self.experts(x, segment, routing.weights, routing.chosen)), routing

    def forward(self, batch: Batch) -> tuple[Tensor, Routing]:
        """Logits [B, T] (a task with `given` has its conditional one) and the routing behind them."""
        return self.forward_inputs(self.inputs(batch), batch.segment)

    def corrected(self, logits: Tensor) -> Tensor:
        """Logits [B, T] as they are where no row was left out, of those of a model that was trained on a sample.

        Where negatives were kept with chance w, odds are 1 / w times too high (King & Zeng 2001): the sampled task's
        logit gets log w. Those of tasks given it are conditional on its positives, which are all there.
        """
        return logits if self.config.sampled is None else logits + self.sampling_shift.to(logits.device)

    def probabilities(self, logits: Tensor) -> Tensor:
        """[B, T] what is served: probabilities (for a task with `given` that of it and its parents), or the value."""
        values = log_probabilities(self.corrected(logits), self.ancestry).exp()
        regression = [task.kind == "regression" for task in self.config.tasks]
        return torch.where(torch.tensor(regression, device=logits.device), logits, values)


class Towers(nn.Module):
    """A perceptron per task, stacked: [B, T, O] → [B, T]."""

    def __init__(self, num_tasks: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        bounds = [(d, h, (3.0 / d) ** 0.5) for d, h in pairwise(widths)]
        self.weights = nn.ParameterList(torch.empty(num_tasks, d, h).uniform_(-b, b) for d, h, b in bounds)
        self.biases = nn.ParameterList(torch.zeros(num_tasks, 1, h) for _, h, _ in bounds)

    def forward(self, mixed: Tensor) -> Tensor:
        """One logit per row and task."""
        hidden, last = mixed.transpose(0, 1), len(self.weights) - 1
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            hidden = torch.baddbmm(bias, hidden, weight)
            hidden = hidden if layer == last else hidden.relu()
        return hidden.squeeze(-1).transpose(0, 1)

    @torch.no_grad()
    def start_at(self, tasks: Sequence[Task], label_means: Mapping[str, float]) -> None:
        """Set the last biases so that an untrained model predicts each task's mean: rare tasks need not fall there."""
        for position, task in enumerate(tasks):
            mean = torch.tensor(label_means.get(task.name, 0.0 if task.kind == "regression" else 0.5))
            start = mean if task.kind == "regression" else mean.clamp(1e-4, 1 - 1e-4).logit()
            self.biases[-1][position] = start


def not_of_items(config: ModelConfig) -> Tensor:
    """[D] bool, which inputs are of the user's or the moment's features, in x's order: sparse ones, then numbers."""
    sparse = [f.side != "item" for f in config.features if f.kind != "numeric" for _ in range(config.embedding_dim)]
    return torch.tensor(sparse + [f.side != "item" for f in config.features if f.kind == "numeric"])


def ancestry(tasks: Sequence[Task]) -> Tensor:
    """[T, T]: row t has a 1 for t itself and for every task that it is given, directly or through another.

    Raises:
        UserError: `given` names no binary task listed before, or stands at a regression.
    """
    matrix = torch.eye(len(tasks))
    positions = {task.name: position for position, task in enumerate(tasks)}
    for position, task in enumerate(tasks):
        if task.given is None:
            continue
        parent = positions.get(task.given, position)
        if parent >= position or "regression" in (task.kind, tasks[parent].kind):
            raise UserError(
                f"tasks.{task.name}.given: {task.given!r} must be a binary task before it, of a binary task"
            )
        matrix[position] += matrix[parent]
    return matrix


def sampling_shift(tasks: Sequence[Task], sampled: SampledNegatives | None) -> Tensor:
    """[T] what a logit is corrected by: log of the share of negatives that were kept, 0 for all but their task.

    Raises:
        UserError: their task is not there, is a regression or is given another. The last could not be corrected by a
            shift: the losses are those of products, and the rows that a parent leaves out were not sampled.
    """
    shift = torch.zeros(len(tasks))
    if sampled is None:
        return shift
    found = [p for p, task in enumerate(tasks) if task.name == sampled.task]
    if not found or tasks[found[0]].kind != "binary" or tasks[found[0]].given is not None:
        raise UserError(
            f"sampling.keep_negatives.task: {sampled.task!r} must be a binary task that is given no other; "
            "name the one that comes first, such as the click"
        )
    shift[found[0]] = math.log(sampled.share)
    return shift


def log_probabilities(logits: Tensor, ancestry: Tensor) -> Tensor:
    """[B, T] log of the product of a task's and its ancestors' probabilities (ESMM, Ma et al. 2018)."""
    return nn.functional.logsigmoid(logits) @ ancestry.T
