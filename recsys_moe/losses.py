"""Losses, as sums and counts, so that processes can add them up."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from recsys_moe.config import SampledNegatives, Task
from recsys_moe.model import log_probabilities

LOG_HALF = -0.6931471805599453
SMALLEST = 1e-7


def log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(x)) for x < 0, exact at both ends (Mächler 2012); x is kept at least 1e-7 below 0."""
    x = x.clamp(max=-SMALLEST)
    near = x > LOG_HALF
    # Each branch gets harmless values where the other is taken, else its infinite gradient would become NaN.
    close = torch.log(-torch.expm1(torch.where(near, x, LOG_HALF)))
    far = torch.log1p(-torch.exp(torch.where(near, LOG_HALF, x)))
    return torch.where(near, close, far)


def entire_space(labels: Tensor, mask: Tensor, tasks: Sequence[Task]) -> tuple[Tensor, Tensor]:
    """Labels and mask [B, T] of tasks over all rows: a `given` task is 0 wherever its parent is 0, defined or not."""
    names = [task.name for task in tasks]
    columns, masks = list(labels.unbind(1)), list(mask.unbind(1))
    for position, task in enumerate(tasks):
        if task.given is not None:
            parent = names.index(task.given)
            happened = columns[parent] > 0.5
            columns[position] = torch.where(happened, columns[position], torch.zeros_like(columns[position]))
            masks[position] = masks[parent] & (masks[position] | ~happened)
    return torch.stack(columns, 1), torch.stack(masks, 1)


def sampling_weights(
    labels: Tensor, mask: Tensor, weight: Tensor, tasks: Sequence[Task], ancestry: Tensor, sampled: SampledNegatives
) -> Tensor:
    """[B, T] how much the rows of a sample count for each task.

    For tasks that are not given the sampled one, a row whose label of that is 0 stands for 1 / share rows. Those that
    are learn the sample as it is, and are corrected when they are served (`RankingModel.corrected`).

    Args:
        labels, mask: [B, T]. weight: [B]. ancestry: [T, T], see `model.ancestry`.
    """
    position = [task.name for task in tasks].index(sampled.task)
    drawn = mask[:, position] & (labels[:, position] == 0.0)
    others = ancestry[:, position] == 0.0
    stands_for = torch.where(drawn.unsqueeze(1) & others, 1.0 / sampled.share, 1.0)
    return weight.unsqueeze(1) * stands_for


def loss_sums(
    logits: Tensor, labels: Tensor, mask: Tensor, weight: Tensor, tasks: Sequence[Task], ancestry: Tensor
) -> tuple[Tensor, Tensor]:
    """Weighted loss and weight of the rows where each task is defined.

    Binary tasks have log-loss (in log space; a `given` task's is that of the product with its parents, over the
    entire space), regressions squared error.

    Args:
        logits, labels, mask: [B, T]. weight: [B], or [B, T] where it differs by task. ancestry: [T, T], see
            `model.ancestry`.

    Returns: two [T] sums; their ratio is the mean loss.
    """
    labels, mask = entire_space(labels, mask, tasks)
    products = log_probabilities(logits, ancestry)
    has_parent = ancestry.sum(1) > 1
    complements = torch.where(has_parent, log1mexp(products), functional.logsigmoid(-logits))
    log_loss = -(labels * products + (1.0 - labels) * complements)
    is_regression = torch.tensor([task.kind == "regression" for task in tasks], device=logits.device)
    per_row = torch.where(is_regression, (logits - labels).square(), log_loss)
    counted = mask * (weight if weight.dim() == 2 else weight.unsqueeze(1))
    return (per_row * counted).sum(0), counted.sum(0)
