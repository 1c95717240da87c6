"""Row-wise Adagrad inside the backward pass on the CPU, in half the time of fbgemm's own kernel there.

That one (fbgemm 1.8) takes about 0.6 µs for each distinct id of a batch, however narrow its table: 50 ms for a step of
82,000 ids, where its SGD takes 10 (docs/decisions/0014). This is the same step in passes over the whole batch. It is
put in the kernel's place, so that torchrec's sharding, its state and its names stay as they are.
"""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import torch
from torch import Tensor

OPERATOR = "split_embedding_backward_codegen_rowwise_adagrad_cpu"
_SUM = 0


@cache
def use_own_kernel() -> Any:
    """Let fbgemm call `step` from now on.

    Returns: torch's handle, which takes it back when it is destroyed.
    """
    import fbgemm_gpu  # noqa: F401  registers the operator

    library: Any = torch.library.Library("fbgemm", "IMPL")  # type: ignore[no-untyped-call]
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message=r"[\s\S]*Overriding a previously registered kernel", category=UserWarning
        )
        library.impl(OPERATOR, step, "CPU", allow_override=True)
    return library


def step(
    grad_output: Tensor,
    host_weights: Tensor,
    weights_placements: Tensor,
    weights_offsets: Tensor,
    D_offsets: Tensor,
    max_D: int,
    hash_size_cumsum: Tensor,
    total_hash_size_bits: int,
    indices: Tensor,
    offsets: Tensor,
    pooling_mode: int,
    indice_weights: Tensor | None,
    stochastic_rounding: bool,
    momentum1_host: Tensor,
    momentum1_placements: Tensor,
    momentum1_offsets: Tensor,
    learning_rate_tensor: Tensor,
    eps: float = 0.0,
    weight_decay: float = 0.0,
    weight_decay_mode: int = 0,
    max_norm: float = 0.0,
    output_dtype: int = 0,
) -> None:
    """Move the rows that a batch met, in place; fbgemm's operator, its names and order of arguments.

    With F features, tables of one width D and all rows one after the other: `grad_output` [B, F * D] of summed bags,
    `host_weights` [rows * D], `momentum1_host` [rows] the sums of mean squared gradients, `indices` [N], `offsets`
    [F * B + 1], `hash_size_cumsum` [F + 1] the first row of each table.
    """
    weighted = indice_weights is not None and indice_weights.numel() > 0
    plain = pooling_mode == _SUM and not (weighted or weight_decay or max_norm)
    assert plain
    assert host_weights.dtype == torch.float32
    features, rows = len(D_offsets) - 1, len(grad_output)
    assert grad_output.shape[1] == features * max_D
    by_feature = grad_output.view(rows, features, max_D).transpose(0, 1)
    bags = by_feature.clone(memory_format=torch.contiguous_format).view(features * rows, max_D)  # written below
    lengths = offsets.diff()
    gradients = bags if len(indices) == len(bags) and bool((lengths == 1).all()) else bags.repeat_interleave(lengths, 0)
    met = indices + hash_size_cumsum[:-1].repeat_interleave(offsets[::rows].diff())
    distinct = _sum_equal(gradients, met, momentum1_host.numel())
    met, gradients = met.index_select(0, distinct), gradients.index_select(0, distinct)
    sums = momentum1_host.index_select(0, met) + torch.linalg.vecdot(gradients, gradients) / max_D
    momentum1_host.scatter_(0, met, sums)
    gradients.mul_((-learning_rate_tensor.item() / sums.sqrt_().add_(eps)).unsqueeze(1))
    weights = host_weights.view(-1, max_D)
    weights.index_copy_(0, met, gradients.add_(weights.index_select(0, met)))  # quicker than adding in place


def _sum_equal(gradients: Tensor, met: Tensor, num_rows: int) -> Tensor:
    """Add up, in place and in their order, the gradients [N, D] of equal rows, of which one takes the sum.

    Which one that is depends on threads, what it holds does not.

    Returns: the positions of those, in their order; each row that was met has one.
    """
    positions = torch.arange(len(met), dtype=torch.int32)
    last = torch.empty(num_rows, dtype=torch.int32).scatter_(0, met, positions).index_select(0, met)
    is_one = last == positions
    again = last[~is_one].long()
    if len(again):
        has_others = torch.zeros(len(met), dtype=torch.bool)
        has_others[again] = True
        members = has_others.index_select(0, last).nonzero().squeeze(1)
        parts = gradients.index_select(0, members)
        gradients[again] = 0.0
        gradients.index_add_(0, last.index_select(0, members), parts)
    return is_one.nonzero().squeeze(1)
