"""Losses, as sums and counts, so that processes can add them up."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from recsys_moe.config import SampledNegatives, Task
from recsys_moe.model import log_probabilities


def log_complements(logits: Tensor, products: Tensor, tasks: Sequence[Task]) -> Tensor:
    """[B, T] log of 1 - p, where p is the probability of a task and all that it is given.

    A task does not happen if its parent does not, or if the parent does and it does not itself:
    1 - p = (1 - p_parent) + p_parent · (1 - sigmoid(logit)). A sum of logs of such terms is exact for all logits, and
    so is its gradient; log(1 - exp(log p)) has none left where p rounds to 1, from logits of 17 on.

    Args:
        logits: [B, T]. products: [B, T] log p, see `model.log_probabilities`.
    """
    names = [task.name for task in tasks]
    columns = list(functional.logsigmoid(-logits).unbind(1))
    for position, task in enumerate(tasks):
        if task.given is not None:
            parent = names.index(task.given)
            columns[position] = torch.logaddexp(columns[parent], products[:, parent] + columns[position])
    return torch.stack(columns, 1)


def entire_space(labels: Tensor, mask: Tensor, tasks: Sequence[Task]) -> tuple[Tensor, Tensor]:
    """Labels and mask [B, T] of tasks over all rows: a `given` task is 0 wherever its parent is 0, defined or not.

    A label between 0 and 1 is a probability: that of a task and its parent is the product of the two.
    """
    names = [task.name for task in tasks]
    columns, masks = list(labels.unbind(1)), list(mask.unbind(1))
    for position, task in enumerate(tasks):
        if task.given is not None:
            parent = names.index(task.given)
            masks[position] = masks[parent] & (masks[position] | (columns[parent] == 0.0))
            columns[position] = columns[parent] * columns[position]
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
    """The sums of `losses_of_rows` over rows, with the same arguments.

    Returns: two [T] sums; their ratio is the mean loss.
    """
    losses, counted = losses_of_rows(logits, labels, mask, weight, tasks, ancestry)
    return losses.sum(0), counted.sum(0)


def losses_of_rows(
    logits: Tensor, labels: Tensor, mask: Tensor, weight: Tensor, tasks: Sequence[Task], ancestry: Tensor
) -> tuple[Tensor, Tensor]:
    """Weighted loss and weight of each row, both 0 where a task is not defined.

    Binary tasks have log-loss (in log space; a `given` task's is that of the product with its parents, over the
    entire space), regressions squared error. Computed in float32 at least, also under autocast.

    Args:
        logits, labels, mask: [B, T]. weight: [B], or [B, T] where it differs by task. ancestry: [T, T], see
            `model.ancestry`.

    Returns: two of [B, T].
    """
    labels, mask = entire_space(labels, mask, tasks)
    counted = mask * (weight if weight.dim() == 2 else weight.unsqueeze(1))
    with torch.autocast(logits.device.type, enabled=False):
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        products = log_probabilities(logits, ancestry)
        log_loss = -(labels * products + (1.0 - labels) * log_complements(logits, products, tasks))
        is_regression = torch.tensor([task.kind == "regression" for task in tasks], device=logits.device)
        per_row = torch.where(is_regression, (logits - labels).square(), log_loss)
        return per_row * counted, counted
