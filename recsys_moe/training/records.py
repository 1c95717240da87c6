"""Running means of the tasks' losses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

from recsys_moe.config import Task


class Means:
    """Sums of losses and of weights, as plain numbers: they go into a checkpoint and come back the same."""

    def __init__(self, tasks: Sequence[Task], sums: Sequence[float] = (), counts: Sequence[float] = ()) -> None:
        self._tasks = tuple(tasks)
        self.sums = list(sums) or [0.0] * len(tasks)
        self.counts = list(counts) or [0.0] * len(tasks)

    def add(self, sums: Sequence[float], counts: Sequence[float]) -> Self:
        """Count some rows: of each task the sum of losses and of weights."""
        self.sums = [old + new for old, new in zip(self.sums, sums, strict=True)]
        self.counts = [old + new for old, new in zip(self.counts, counts, strict=True)]
        return self

    def by_task(self) -> list[float]:
        """[T] mean losses; 0 for a task without rows."""
        return [total / max(count, 1e-12) for total, count in zip(self.sums, self.counts, strict=True)]

    def record(self) -> dict[str, float]:
        """`loss`, the sum with the tasks' own weights, and `loss/<task>`."""
        means = self.by_task()
        total = sum(task.weight * mean for task, mean in zip(self._tasks, means, strict=True))
        return {"loss": total} | {f"loss/{task.name}": mean for task, mean in zip(self._tasks, means, strict=True)}
