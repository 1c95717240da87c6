"""Trainings in processes of their own, measured in turns, so that what else the machine does hits all alike."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

log = logging.getLogger(__name__)

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    # What recsys_moe.memory does for our trainings, given to all: freed memory is kept.
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1),
}
LINES_OF_TROUBLE = 15


@dataclass
class Contestant:
    """A process that speaks as benchmarks.peers.worker says.

    Attributes:
        about: what it said of itself at the start.
    """

    command: Sequence[str]
    process: subprocess.Popen[str]
    errors: IO[str]
    about: dict[str, Any]

    def seconds(self, measure: str) -> float:
        """The processor's seconds of a pass."""
        self._stdin.write(f"{measure}\n")
        self._stdin.flush()
        return float(self.answer()["seconds"])

    def finish(self) -> dict[str, Any]:
        """End it; what it says last."""
        self._stdin.close()
        assert self.process.stdout is not None
        last = self.process.stdout.readline()
        if self.process.wait():
            raise self._trouble()
        return dict(json.loads(last or "{}"))

    def answer(self) -> dict[str, Any]:
        """Its next line.

        Raises:
            RuntimeError: there is none, since it ended.
        """
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise self._trouble()
        return dict(json.loads(line))

    @property
    def _stdin(self) -> IO[str]:
        assert self.process.stdin is not None
        return self.process.stdin

    def _trouble(self) -> RuntimeError:
        self.errors.seek(0)
        said = self.errors.read().splitlines()[-LINES_OF_TROUBLE:]
        return RuntimeError("\n".join([f"{' '.join(self.command)} ended with {self.process.wait()}:", *said]))


@contextmanager
def started(command: Sequence[str]) -> Iterator[Contestant]:
    """A contestant that is ready to be measured, and gone afterwards."""
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | ENVIRONMENT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        ) as process,
    ):
        contestant = Contestant(command, process, errors, {})
        try:
            contestant.about = contestant.answer()
            yield contestant
        finally:
            process.kill()


@dataclass(frozen=True)
class Outcome:
    """Of each contestant the least seconds of a pass by measure, and what it said first and last."""

    seconds: dict[str, dict[str, float]]
    said: dict[str, dict[str, Any]]


def in_turns(commands: Mapping[str, Sequence[str]], measures: Mapping[str, Sequence[str]], rounds: int) -> Outcome:
    """Start all, then measure one after the other, round by round; a first round, to warm up, does not count."""
    with ExitStack() as stack:
        contestants = {name: stack.enter_context(started(command)) for name, command in commands.items()}
        taken: dict[str, dict[str, list[float]]] = {name: {m: [] for m in measures[name]} for name in contestants}
        for turn in range(rounds + 1):
            for name, contestant in contestants.items():
                for measure in measures[name]:
                    taken[name][measure].append(contestant.seconds(measure))
            log.info("%s: round %d of %d", ", ".join(contestants), turn, rounds)
        said = {name: {**contestant.about, **contestant.finish()} for name, contestant in contestants.items()}
    return Outcome({name: {m: min(times[1:]) for m, times in each.items()} for name, each in taken.items()}, said)
