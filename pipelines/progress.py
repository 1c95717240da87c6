"""How far a step has come: a bar where a person watches, a line now and then elsewhere. Always on stderr."""

from __future__ import annotations

import logging
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

log = logging.getLogger(__name__)

console = Console(stderr=True)
_SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """`with Progress("score", 1000, "users") as progress: progress.advance(10)`."""

    def __init__(self, title: str, total: int, unit: str) -> None:
        self.title, self.total, self.unit, self.done = title, total, unit, 0
        self._next_line = time.monotonic() + _SECONDS_BETWEEN_LINES
        self._bar: Bar | None = None

    def __enter__(self) -> Self:
        if console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(self.unit))
            rest = (TextColumn("{task.fields[note]}"), TimeElapsedColumn(), TimeRemainingColumn())
            self._bar = Bar(*columns, *rest, console=console)
            self._bar.start()
            self._task = self._bar.add_task(self.title, total=self.total, note="")
        return self

    def advance(self, count: int, note: str = "") -> None:
        """`count` more are done."""
        self.done += count
        if self._bar is not None:
            self._bar.update(self._task, advance=count, note=note)
        elif time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + _SECONDS_BETWEEN_LINES
            log.info("%s: %d of %d %s %s", self.title, self.done, self.total, self.unit, note)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        if error is None:
            log.info("%s: done, %d %s", self.title, self.done, self.unit)
