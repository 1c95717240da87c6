"""Processes that have imported all they need and wait to be told what to do: what is timed, or cut short, is the work.

They are spawned, never forked: the threads of delta-rs do not outlive a fork.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import date
from multiprocessing.connection import Connection

from pipelines.config import Recommender

Step = Callable[[Recommender, date], object]


class Worker:
    """One such process; it serves once."""

    def __init__(self) -> None:
        processes = multiprocessing.get_context("spawn")
        self._pipe, theirs = processes.Pipe()
        self._process = processes.Process(target=_serve, args=(theirs,))
        self._process.start()
        theirs.close()

    def start(self, step: Step, config: Recommender, days: Iterable[date]) -> None:
        """Run a step on days, in this order. Returns as it begins."""
        assert self._pipe.recv() == "ready"
        self._pipe.send((step, config, list(days)))

    def is_working(self) -> bool:
        """Whether it has neither come to its end nor been killed."""
        return self._process.is_alive()

    def kill(self) -> None:
        """End it at once, without a word."""
        self._process.kill()

    def join(self) -> int | None:
        """Wait for its end. Returns the exit code, below 0 if it was killed."""
        self._process.join()
        return self._process.exitcode

    def seconds(self) -> float:
        """Wait for its end. Returns how long the step took; it must not have failed."""
        assert self.join() == 0
        return float(self._pipe.recv())


def _serve(pipe: Connection) -> None:
    pipe.send("ready")
    step, config, days = pipe.recv()
    start = time.monotonic()
    for ds in days:
        step(config, ds)
    pipe.send(time.monotonic() - start)


class Workers:
    """As many as are asked for, each with one more on the way."""

    def __init__(self) -> None:
        self._all = [Worker()]

    def take(self) -> Worker:
        """The next one."""
        self._all.append(Worker())
        return self._all[-2]

    def close(self) -> None:
        """Kill those that are left."""
        for worker in self._all:
            worker.kill()
            worker.join()


@contextmanager
def hired() -> Iterator[Workers]:
    """Workers for the time of a `with`."""
    workers = Workers()
    try:
        yield workers
    finally:
        workers.close()
