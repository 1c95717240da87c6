"""Who does a plan's shards: this process, or several. Each shard is tried three times, and those that stand stay."""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from queue import Empty, SimpleQueue
from threading import Event, Thread
from typing import Any

from pipelines.config import Recommender
from pipelines.errors import TryAgainError
from pipelines.processes import die_with_parent
from pipelines.progress import Progress
from pipelines.scoring.plan import Plan
from pipelines.scoring.shard import Scorer
from recsys_moe.errors import UserError

log = logging.getLogger(__name__)

ATTEMPTS = 3
_SECONDS_BETWEEN_LOOKS = 0.5
Score = Callable[[int], int]
"""Scores a shard, by its number, and returns its rows."""


def run(config: Recommender, plan: Plan) -> None:
    """Score all shards of a plan that are not there yet, `scoring.processes` at once.

    Raises:
        TryAgainError: a shard failed three times.
        UserError: something that a person has to put right.
    """
    todo = plan.todo(config)
    if len(todo) < plan.shards:
        log.info("%s: %d of %d shards stand already", plan.id, plan.shards - len(todo), plan.shards)
    lists = plan.users * len(config.scoring.named_contexts)
    with Progress(f"score {plan.ds}", lists * len(todo) // plan.shards, "lists") as progress:
        if min(config.scoring.processes, len(todo)) > 1:
            _in_processes(config, plan, todo, progress)
        else:
            _here(config, plan, todo, progress)


def attempted(plan: Plan, number: int, score: Score, attempts: int = ATTEMPTS) -> int:
    """Score a shard, and try again if it fails. Returns its rows.

    Raises:
        TryAgainError: it failed each time.
        UserError: something that a person has to put right, so that trying again cannot help.
    """
    for attempt in range(1, attempts + 1):
        try:
            return score(number)
        except Exception as error:
            if isinstance(error, UserError) and not isinstance(error, TryAgainError):
                raise
            reason = _reason(error)
            log.warning("shard %d of %d failed (%d of %d): %s", number, plan.shards, attempt, attempts, reason)
            log.debug("shard %d", number, exc_info=True)
    raise given_up(plan, number, attempts, reason)


def given_up(plan: Plan, number: int, attempts: int, reason: str) -> TryAgainError:
    """What is said of a shard that failed each time."""
    times = f"{attempts} times" if attempts > 1 else "once"
    return TryAgainError(
        f"shard {number} of {plan.shards} failed {times}, and nothing was published: {reason}; run this step again, "
        "and the shards that stand will not be scored again"
    )


def _reason(error: Exception) -> str:
    if isinstance(error, BrokenProcessPool):
        return "its process was killed (out of memory?)"
    said = " ".join(str(error).split())
    return said if isinstance(error, UserError) else f"{type(error).__name__}: {said}"


def _here(config: Recommender, plan: Plan, todo: Sequence[int], progress: Progress) -> None:
    scorer: Scorer | None = None

    def score(number: int) -> int:
        nonlocal scorer
        scorer = scorer or Scorer(config, plan)
        return scorer.score(number, progress.advance)

    for number in todo:
        attempted(plan, number, score)


def _in_processes(config: Recommender, plan: Plan, todo: Sequence[int], progress: Progress) -> None:
    """Threads that take shards, each with a process of its own: one that is killed takes nobody along."""
    shards: SimpleQueue[int] = SimpleQueue()
    for number in todo:
        shards.put(number)
    done = multiprocessing.get_context("spawn").Value("q", 0)
    count = min(config.scoring.processes, len(todo))
    failed = Event()
    with _watching(done, progress), ThreadPoolExecutor(count, "shards") as threads:
        work = [threads.submit(_take, config, plan, shards, done, failed) for _ in range(count)]
    for one in work:
        one.result()


def _take(config: Recommender, plan: Plan, shards: SimpleQueue[int], done: Any, failed: Event) -> None:
    with _Process(config, plan, done) as process:
        while not failed.is_set():
            try:
                attempted(plan, shards.get_nowait(), process.score)
            except Empty:
                return
            except BaseException:
                failed.set()  # the others end with the shard that they are at
                raise


class _Process:
    """A process that scores shards, started again where it was killed."""

    def __init__(self, config: Recommender, plan: Plan, done: Any) -> None:
        self._start = partial(
            ProcessPoolExecutor, 1, multiprocessing.get_context("spawn"), _set_up, (config, plan, done)
        )
        self._pool: ProcessPoolExecutor = self._start()

    def __enter__(self) -> _Process:
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown()

    def score(self, number: int) -> int:
        """Score a shard there."""
        future: Future[int] = self._pool.submit(_score, number)
        try:
            return future.result()
        except BrokenProcessPool:
            self._pool.shutdown()
            self._pool = self._start()
            raise


_scorer: Callable[[int], int] | None = None
"""Of a process that `_Process` started."""


def _set_up(config: Recommender, plan: Plan, done: Any) -> None:
    global _scorer
    die_with_parent()
    import torch

    torch.set_num_threads(1)

    def advance(users: int) -> None:
        with done.get_lock():
            done.value += users

    scorer: Scorer | None = None

    def score(number: int) -> int:
        nonlocal scorer
        scorer = scorer or Scorer(config, plan)
        return scorer.score(number, advance)

    _scorer = score


def _score(number: int) -> int:
    assert _scorer is not None
    return _scorer(number)


@contextmanager
def _watching(done: Any, progress: Progress) -> Iterator[None]:
    """Show what other processes have counted in `done`."""
    ended = Event()

    def watch() -> None:
        while not ended.wait(_SECONDS_BETWEEN_LOOKS):
            progress.advance(done.value - progress.done)

    thread = Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        progress.advance(done.value - progress.done)
