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

LANES = 64


def routing(gates: Gates, logits: Tensor) -> Routing:
    """As `steps.routing`."""
    if gates.top_k >= gates.layout.routed:
        return gates.route(logits)
    score = gates.selection(logits)
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


def best(score: Tensor, count: int) -> Tensor:
    """As `steps.best`."""
    place = torch.empty(len(score), min(count, score.shape[1]), dtype=torch.int64)
    if place.numel():
        _best(score.numpy(), place.numpy())
    return place


def _compiled(function: Any) -> Any:
    try:
        return numba.njit(function, cache=True, nogil=True, error_model="numpy")
    except RuntimeError:  # no folder that can be written to
        return numba.njit(function, nogil=True, error_model="numpy")


@_compiled
def _choose(score: Any, chosen: Any) -> None:
    """The best of each row, in order, of equals the first; LANES rows are compared at once."""
    rows, gates, experts = score.shape
    lanes, best = np.empty((experts, LANES), score.dtype), np.empty(LANES, score.dtype)
    found = np.empty(LANES, np.int32)
    for start in range(0, rows, LANES):
        count = min(LANES, rows - start)
        for gate in range(gates):
            for lane in range(count):
                for expert in range(experts):
                    lanes[expert, lane] = score[start + lane, gate, expert]
            for place in range(chosen.shape[2]):
                best[:], found[:] = lanes[0], 0
                for expert in range(1, experts):
                    for lane in range(LANES):
                        is_better = lanes[expert, lane] > best[lane]
                        best[lane] = lanes[expert, lane] if is_better else best[lane]
                        found[lane] = expert if is_better else found[lane]
                for lane in range(count):
                    chosen[start + lane, gate, place] = found[lane]
                    lanes[found[lane], lane] = -np.inf


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


@_compiled
def _is_above(value: Any, other: Any) -> Any:
    """As torch sorts: what is no number is above all, and is seen so."""
    return value > other or (value != value and other == other)


@_compiled
def _best(score: Any, place: Any) -> None:
    """Of each row a sorted list of the best so far; most columns are below its end and cost one comparison."""
    most = place.shape[1]
    for row in range(score.shape[0]):
        of_row, found, count = score[row], place[row], 0
        for column in range(score.shape[1]):
            value = of_row[column]
            if count == most and not _is_above(value, of_row[found[most - 1]]):
                continue
            count = min(count + 1, most)
            at = count - 1
            while at > 0 and _is_above(value, of_row[found[at - 1]]):
                found[at] = found[at - 1]
                at -= 1
            found[at] = column
