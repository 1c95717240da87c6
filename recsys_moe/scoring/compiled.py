"""The functions of `steps` for the CPU, compiled by Numba when they are first called and kept on disk
where there is a place.

Each makes one pass where torch's operations make several. The compiled code needs nothing of the user: Numba brings
its compiler along.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from recsys_moe.gates import Gates, Routing
from recsys_moe.scoring import steps


def routing(gates: Gates, logits: Tensor) -> Routing:
    """As `steps.routing`."""
    if gates.top_k >= gates.layout.routed:
        return gates.route(logits)
    score = gates.selection(logits).contiguous()
    chosen = torch.empty(*score.shape[:2], gates.top_k, dtype=torch.int64)
    _choose(score.numpy(), chosen.numpy())
    return gates.route(logits, chosen)


def plan(experts: Tensor, pairs: Tensor, total: int, out: Tensor) -> tuple[list[int], Tensor]:
    """As `steps.plan`."""
    place, counts = torch.empty(experts.shape, dtype=torch.int64), np.zeros(total, np.int64)
    _plan(experts.numpy(), pairs.numpy(), counts, out.numpy(), place.numpy())
    return counts.tolist(), place


def first_layer(table: Tensor, pairs: Tensor) -> Tensor:
    """As `steps.first_layer`."""
    if table.dtype == torch.bfloat16:
        return steps.first_layer(table, pairs)
    out = table.new_empty(len(pairs), table.shape[1])
    _first_layer(table.numpy(), pairs.numpy(), out.numpy())
    return out


def finish(outputs: Tensor, bias: Tensor) -> Tensor:
    """As `steps.finish`."""
    if outputs.dtype == torch.bfloat16:
        return steps.finish(outputs, bias)
    _finish(outputs.numpy(), bias.numpy())
    return outputs


def mix(outputs: Tensor, place: Tensor, weights: Tensor) -> Tensor:
    """As `steps.mix`."""
    if outputs.dtype == torch.bfloat16:
        return steps.mix(outputs, place, weights)
    out = outputs.new_empty(*place.shape[:2], outputs.shape[1])
    _mix(outputs.numpy(), place.numpy(), weights.contiguous().numpy(), out.numpy())
    return out


def _compiled(function: Any) -> Any:
    try:
        return numba.njit(function, cache=True, nogil=True, error_model="numpy")
    except RuntimeError:  # no folder that can be written to
        return numba.njit(function, nogil=True, error_model="numpy")


@_compiled
def _choose(score: Any, chosen: Any) -> None:
    """The best of each row, in order, of equals the first; those that were found become minus infinity."""
    rows, gates, experts = score.shape
    for row in range(rows):
        for gate in range(gates):
            of_gate = score[row, gate]
            for place in range(chosen.shape[2]):
                best, found = of_gate[0], 0
                for expert in range(1, experts):
                    is_better = of_gate[expert] > best
                    best = of_gate[expert] if is_better else best  # both at once: no branch to guess
                    found = expert if is_better else found
                chosen[row, gate, place] = found
                of_gate[found] = -np.inf


@_compiled
def _plan(experts: Any, pairs: Any, counts: Any, ordered: Any, place: Any) -> None:
    """A counting sort."""
    rows, tasks, slots = experts.shape
    seen = np.full(len(counts), -1)
    for row in range(rows):
        for task in range(tasks):
            for slot in range(slots):
                expert = experts[row, task, slot]
                if seen[expert] != row:
                    seen[expert] = row
                    counts[expert] += 1
    seen[:] = -1
    ends = np.cumsum(counts) - counts
    for row in range(rows):
        for task in range(tasks):
            for slot in range(slots):
                expert = experts[row, task, slot]
                if seen[expert] != row:
                    seen[expert] = row
                    ordered[ends[expert], 0], ordered[ends[expert], 1] = pairs[row, 0], pairs[row, 1]
                    ends[expert] += 1
                place[row, task, slot] = ends[expert] - 1


@_compiled
def _first_layer(table: Any, pairs: Any, out: Any) -> None:
    zero = out.dtype.type(0)
    for row in range(out.shape[0]):
        one, other, result = table[pairs[row, 0]], table[pairs[row, 1]], out[row]
        for column in range(out.shape[1]):
            result[column] = max(one[column] + other[column], zero)


@_compiled
def _finish(outputs: Any, bias: Any) -> None:
    zero = outputs.dtype.type(0)
    for row in range(outputs.shape[0]):
        result = outputs[row]
        for column in range(outputs.shape[1]):
            result[column] = max(result[column] + bias[column], zero)


@_compiled
def _mix(outputs: Any, place: Any, weights: Any, out: Any) -> None:
    rows, tasks, slots = place.shape
    for row in range(rows):
        for task in range(tasks):
            result, first, share = out[row, task], outputs[place[row, task, 0]], weights[row, task, 0]
            for column in range(out.shape[2]):
                result[column] = share * first[column]
            for slot in range(1, slots):
                more, share = outputs[place[row, task, slot]], weights[row, task, slot]
                for column in range(out.shape[2]):
                    result[column] += share * more[column]
