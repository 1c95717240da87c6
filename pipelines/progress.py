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
        self._begun = time.monotonic()
        self._next_line = self._begun + _SECONDS_BETWEEN_LINES
        self._bar: Bar | None = None

    def __enter__(self) -> Self:
        if console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(self.unit))
            rest = (TextColumn("{task.fields[pace]} {task.fields[note]}"), TimeElapsedColumn(), TimeRemainingColumn())
            self._bar = Bar(*columns, *rest, console=console)
            self._bar.start()
            self._task = self._bar.add_task(self.title, total=self.total, pace="", note="")
        return self

    def advance(self, count: int, note: str = "") -> None:
        """`count` more are done."""
        self.done += count
        if self._bar is not None:
            self._bar.update(self._task, advance=count, pace=self._pace(), note=note)
        elif time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + _SECONDS_BETWEEN_LINES
            words = (self.unit, self._pace(), self._left(), note)
            log.info("%s: %d of %d %s", self.title, self.done, self.total, " ".join(filter(None, words)))

    @property
    def _per_second(self) -> float:
        return self.done / max(time.monotonic() - self._begun, 1e-9)

    def _pace(self) -> str:
        """How many a second; nothing where that is less than one."""
        return f"({self._per_second:,.0f}/s)" if self._per_second >= 1 else ""

    def _left(self) -> str:
        """How long the rest takes if it goes on so."""
        if not 0 < self.done < self.total:
            return ""
        minutes, seconds = divmod(round((self.total - self.done) / self._per_second), 60)
        return f"{minutes}:{seconds:02} left"

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        if error is None:
            log.info("%s: done, %d %s", self.title, self.done, self.unit)
