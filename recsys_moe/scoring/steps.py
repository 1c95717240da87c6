"""What scoring does around its matrix products, in torch, on any device.

`recsys_moe.scoring.compiled` has the same functions, quicker, for the CPU.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

import torch
from torch import Tensor
from torch.nn import functional

from recsys_moe.gates import Gates, Routing


def on(device: torch.device) -> ModuleType:
    """The module whose functions are quickest there: these, or for a CPU the compiled ones where Numba is."""
    # Where a model is only served, there is none.
    is_there = device.type == "cpu" and find_spec("numba") is not None
    return import_module("recsys_moe.scoring." + ("compiled" if is_there else "steps"))


def routing(gates: Gates, logits: Tensor) -> Routing:
    """Choices and weights of logits [B, gates, E]."""
    return gates.route(logits)


def plan(experts: Tensor, pairs: Tensor, total: int, out: Tensor) -> tuple[list[int], Tensor]:
    """Order the choices [B, T, K] of pairs [B, 2] by expert, each (pair, expert) once.

    Into `out` go the pairs in this order. Returns how many each of `total` experts has, and the place of each choice
    [B, T, K].
    """
    rows = len(pairs)
    wanted = experts * rows + torch.arange(rows, device=pairs.device)[:, None, None]
    runs = torch.zeros(total, rows, dtype=torch.bool, device=pairs.device)
    runs.view(-1)[wanted.view(-1)] = True
    row = runs.nonzero()[:, 1]
    torch.index_select(pairs, 0, row, out=out[: len(row)])
    counts: list[int] = runs.sum(1).tolist()
    return counts, (runs.view(-1).cumsum(0, dtype=torch.int32) - 1).take(wanted).long()


def first_layer(table: Tensor, pairs: Tensor) -> Tensor:
    """[n, H] activations of pairs [n, 2] of rows of a table [R, H]."""
    return relu(sums(table, pairs.view(-1), 2))


def finish(outputs: Tensor, bias: Tensor) -> Tensor:
    """Add the bias [H] to [n, H], then the activation; in place."""
    return relu(outputs.add_(bias))


def mix(outputs: Tensor, place: Tensor, weights: Tensor) -> Tensor:
    """[B, T, O] sums of the outputs [N, O] at places [B, T, K], by weights [B, T, K]."""
    mixed = sums(outputs, place.flatten(), place.shape[-1], weights.to(outputs.dtype).flatten())
    return mixed.view(*place.shape[:2], -1)


def best(score: Tensor, count: int) -> Tensor:
    """[U, N] columns of the `count` best scores [U, W], the best first, of equals the left one."""
    return score.sort(dim=1, descending=True, stable=True).indices[:, :count]


def sums(table: Tensor, index: Tensor, size: int, weights: Tensor | None = None) -> Tensor:
    """Sums of `size` rows of a table each, in one pass that fetches ahead."""
    offsets = torch.arange(0, len(index) + 1, size, device=index.device)
    return functional.embedding_bag(
        index, table, offsets, mode="sum", per_sample_weights=weights, include_last_offset=True
    )


def relu(hidden: Tensor) -> Tensor:
    """In place. For bf16 on a CPU by the bits, read as whole numbers, which is several times quicker."""
    if hidden.dtype == torch.bfloat16 and not hidden.is_cuda:
        # Up to -128 are the negative numbers, to minus infinity. What follows, to -1, is no number, and must be seen.
        torch.threshold_(hidden.view(torch.int16), -128, 0)
        return hidden
    return hidden.relu_()
