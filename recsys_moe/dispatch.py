"""Sparse dispatch: every (row, expert) pair that some task chose is computed once, expert by expert.

Rows are copied into the order of their experts, so that each layer is one grouped matrix product: N rows, of which
group e runs through weight e. The work per row follows the number of chosen experts, not of all.

What bounds it on a CPU is the matrix products; the rest was made small one by one (docs/decisions/0006): pairs come
from one sort whatever the number of experts, weighted sums run as embedding bags, in one pass without a copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

MULTIPLE = 8
"""Grouped products need strides of whole 16 bytes: 8 numbers in bf16. Weights are stored padded to this."""


@dataclass(frozen=True)
class Plan:
    """Which rows each expert runs: N pairs, by expert and then by row.

    Attributes:
        row: [N] the batch's row of each pair.
        expert: [N] its expert, ascending.
        ends: [E] int32, where each expert's pairs end.
        position: [B, T, K] the pair behind each choice.
    """

    row: Tensor
    expert: Tensor
    ends: Tensor
    position: Tensor

    @classmethod
    def of(cls, chosen: Tensor, num_experts: int) -> Plan:
        """The union of all tasks' choices [B, T, K], each an expert's number."""
        tasks = chosen.shape[1]
        if chosen.stride(1) == 0:
            chosen = chosen[:, :1]  # of one choice for all tasks there is nothing to unite
        rows = max(len(chosen), 1)
        row = torch.arange(len(chosen), device=chosen.device)[:, None, None]
        pairs, position = torch.unique(chosen * rows + row, return_inverse=True)
        expert = pairs.div(rows, rounding_mode="floor")
        bounds = torch.arange(1, num_experts + 1, device=chosen.device) * rows
        ends = torch.searchsorted(pairs, bounds).to(torch.int32)
        return cls(pairs - expert * rows, expert, ends, position.expand(-1, tasks, -1))

    def first_of_pair(self) -> Tensor:
        """[B, T · K] which choices are the first of their row to name their pair."""
        position = self.position.flatten(1)
        first = torch.ones_like(position, dtype=torch.bool)
        for later in range(1, position.shape[1]):
            first[:, later] = (position[:, :later] != position[:, later : later + 1]).all(1)
        return first


def grouped_product(rows: Tensor, weights: Tensor, ends: Tensor) -> Tensor:
    """[N, D] rows in groups that end at `ends` [E], each times its own of `weights` [E, D, H]: [N, H]."""
    if _has_native(rows, weights):
        return functional.grouped_mm(rows, weights, offs=ends)
    counts = _counts(ends)
    products = [part @ weight for part, weight in zip(torch.split(rows, counts), weights.unbind(), strict=True)]
    return torch.cat([rows.new_zeros(0, weights.shape[-1]), *products])


def grouped_outer(rows: Tensor, grads: Tensor, ends: Tensor) -> Tensor:
    """[N, D] and [N, H] in groups that end at `ends` [E]: the products over each group's rows, [E, D, H]."""
    if _has_native(rows, grads):
        return functional.grouped_mm(rows.t(), grads, offs=ends)
    counts = _counts(ends)
    return torch.stack([a.t() @ b for a, b in zip(torch.split(rows, counts), torch.split(grads, counts), strict=True)])


def _has_native(left: Tensor, right: Tensor) -> bool:
    """Whether torch has a grouped product for these: all widths padded, and a number type that it knows."""
    known = (torch.bfloat16,) if left.is_cuda else (torch.bfloat16, torch.float16, torch.float32)
    return left.dtype in known and left.shape[-1] % MULTIPLE == 0 and right.shape[-1] % MULTIPLE == 0


def _counts(ends: Tensor) -> list[int]:
    return torch.diff(ends, prepend=ends.new_zeros(1)).tolist()


def grouped_perceptrons(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], plan: Plan) -> Tensor:
    """Each expert's perceptron, a ReLU after each layer, on the rows that chose it.

    Args:
        x: [B, D]. weights: of each layer [E, D, H]. biases: [E, 1, H] of each layer but the first, which has none.

    Returns: [N, O].
    """
    given = x.dtype
    if torch.is_autocast_enabled(x.device.type):  # which knows no grouped product
        kind = torch.get_autocast_dtype(x.device.type)
        x, weights, biases = x.to(kind), [w.to(kind) for w in weights], [b.to(kind) for b in biases]
    out: Tensor = _GroupedPerceptrons.apply(plan, x, *weights, *biases)  # type: ignore[no-untyped-call]
    return out.to(given)  # what is mixed has the weights' type


class _GroupedPerceptrons(torch.autograd.Function):
    """By hand, for fewer passes over all pairs: sums are not kept, gradients are masked in place."""

    @staticmethod
    def forward(ctx: Any, plan: Plan, x: Tensor, *parameters: Tensor) -> Tensor:
        layers = (len(parameters) + 1) // 2
        hidden = [x.index_select(0, plan.row)]
        for layer, weight in enumerate(parameters[:layers]):
            sums = grouped_product(hidden[-1], weight, plan.ends)
            if layer:
                sums += parameters[layers + layer - 1].squeeze(1).index_select(0, plan.expert)
            hidden.append(sums.relu_())
        ctx.save_for_backward(*parameters[:layers], *hidden)
        ctx.plan = plan
        return hidden[-1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        plan: Plan = ctx.plan
        layers = (len(ctx.saved_tensors) - 1) // 2
        weights, hidden = ctx.saved_tensors[:layers], ctx.saved_tensors[layers:]
        grad = torch.ops.aten.threshold_backward(grads[0], hidden[-1], 0)
        of_weights: list[Tensor] = []
        of_biases: list[Tensor] = []
        for layer in reversed(range(layers)):
            of_weights.insert(0, grouped_outer(hidden[layer], grad, plan.ends))
            if layer:
                bias = grad.new_zeros(len(weights[layer]), grad.shape[1]).index_add_(0, plan.expert, grad)
                of_biases.insert(0, bias.unsqueeze(1))
            grad = grouped_product(grad, weights[layer].transpose(1, 2), plan.ends)
            if layer:
                torch.ops.aten.threshold_backward(grad, hidden[layer], 0, grad_input=grad)
        of_x = _bags(grad, plan.position.flatten(1), plan.first_of_pair().to(grad.dtype))
        return None, of_x, *of_weights, *of_biases


def mix(outputs: Tensor, weights: Tensor, plan: Plan) -> Tensor:
    """Weighted sums of the pairs' outputs [N, O] by `weights` [B, T, K] of each task's choices: [B, T, O]."""
    out: Tensor = _Mix.apply(outputs, weights, plan)  # type: ignore[no-untyped-call]
    return out


class _Mix(torch.autograd.Function):
    """Both directions as embedding bags with a weight per sample: one pass, and no [B, T, K, O] in memory."""

    @staticmethod
    def forward(ctx: Any, outputs: Tensor, weights: Tensor, plan: Plan) -> Tensor:
        ctx.save_for_backward(outputs, weights)
        ctx.plan = plan
        sums = _bags(outputs, plan.position.flatten(0, 1), weights.flatten(0, 1))
        return sums.view(*weights.shape[:2], outputs.shape[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        outputs, weights = ctx.saved_tensors
        plan: Plan = ctx.plan
        tasks = weights.shape[1]
        grad = grads[0].flatten(0, 1)
        task = torch.arange(tasks, device=grad.device)
        by_pair = weights.new_zeros(len(outputs), tasks)
        by_pair[plan.position, task[:, None]] = weights
        grad_outputs = _bags(grad, plan.row[:, None] * tasks + task, by_pair)
        picked = outputs.index_select(0, plan.position.flatten()).view(*weights.flatten(0, 1).shape, grad.shape[1])
        grad_weights = torch.bmm(picked, grad.unsqueeze(-1)).view(weights.shape)
        return grad_outputs, grad_weights, None


def _bags(table: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
    """Row i of the result is the sum over j of weights[i, j] · table[indices[i, j]]."""
    if not len(table):
        return table.new_zeros(len(indices), table.shape[1])
    return functional.embedding_bag(indices, table, per_sample_weights=weights, mode="sum")
