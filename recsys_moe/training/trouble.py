"""What stops a training: losses that are not finite or explode, and a batch that does not fit into a GPU."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from statistics import median

import torch

from recsys_moe.config import Task
from recsys_moe.errors import UserError

FIRST_STEPS = 20
"""Steps whose losses tell what is usual."""
ABSURD = 1000.0
"""A log-loss so many times the usual one explodes."""
SMALLEST_USUAL = 0.05
"""Nats. Rare tasks have a usual loss near 0, and a few positives in one batch are no explosion."""
NAMED_ROWS = 5


class LossGuard:
    """Knows the usual loss of each task, and says what is wrong with a step's.

    A binary task's loss explodes above `ABSURD` times the median of its first `FIRST_STEPS` losses (of those so far,
    before there are so many), taken as `SMALLEST_USUAL` nats at least: so never under 50 nats a row, where the model
    gives the truth a chance of 2e-22 in the mean, which no run comes back from. A squared error has no such scale (one
    extreme label may be right), so that of a regression must be finite, no more.
    """

    def __init__(self, tasks: Sequence[Task]) -> None:
        self._tasks = tuple(tasks)
        self.first: list[list[float]] = []
        """[steps, T] the first losses; part of a checkpoint."""

    def problem(self, losses: Sequence[float]) -> str | None:
        """What is wrong with the mean losses [T] of a step, and of which task; None if nothing is."""
        for position, (task, loss) in enumerate(zip(self._tasks, losses, strict=True)):
            if not math.isfinite(loss):
                return f"the loss of task {task.name} is not finite"
            if task.kind == "binary" and self.first:
                usual = max(median(step[position] for step in self.first), SMALLEST_USUAL)
                if loss > ABSURD * usual:
                    return f"the loss of task {task.name} explodes: {loss:.3g}, where {usual:.3g} is usual"
        if len(self.first) < FIRST_STEPS:
            self.first.append(list(losses))
        return None


def named_rows(rows: Sequence[int], culprits: Iterator[int]) -> str:
    """The rows of a batch for a person: from where to where, and the first of those that are bad by themselves."""
    named = ", ".join(str(row) for row in islice(culprits, NAMED_ROWS))
    among = f", not finite by themselves: {named}" if named else ""
    return f"rows {min(rows)} to {max(rows)} of the training set{among}"


@contextmanager
def memory_errors_explained(batch_size: int, device: torch.device) -> Iterator[None]:
    """Turn a GPU's "out of memory" into what to do about it. (Not run: no CUDA device was at hand.)

    Raises:
        UserError: memory ran out.
    """
    fixed = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        total = torch.cuda.get_device_properties(device).total_memory
        fits = rows_that_fit(total, fixed, torch.cuda.max_memory_allocated(device), batch_size)
        raise UserError(
            f"training.batch_size: a step of {batch_size} rows does not fit into the GPU's {total / 2**30:.1f} GiB; "
            f"about {fits} would (weights and optimizers take {fixed / 2**30:.1f} GiB)"
        ) from error


def rows_that_fit(total: int, fixed: int, peak: int, rows: int) -> int:
    """How many rows a step can have, told from one of `rows` that ran out of memory.

    What it had taken, `peak` less `fixed`, is the least that its rows need; a tenth is left for fragments. Half of the
    rows is the most that is said, since the step did not come to its end.

    Args:
        total, fixed, peak: bytes of the device, of weights and optimizers, and the most that was taken.
    """
    per_row = max(peak - fixed, 1) / rows
    fits = int(max(0.9 * total - fixed, 0.0) / per_row)
    return max(1, min(fits, rows // 2))
