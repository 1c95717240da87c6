"""The processes of one training. The first leads: it alone talks to MLflow, encodes and registers; all of them fit.

torchrun starts them, on one machine or on many, or `launch` does, on this machine. Through the store where they meet,
the leader tells the others what is to be fitted next; the files of that lie in a folder that all of them see.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

_MEET = "RECSYS_MOE_MEET"
"""Environment variable that `launch` sets: where its processes meet, as a URL of torch's. Under torchrun `env://`."""
_END = "end"
_LONGEST = timedelta(days=7)
"""How long a process waits for the leader's word; where the leader has died, it is ended by who started both."""
_SECONDS_TO_END = 15.0


class Team:
    """This process among those of its training, as a context manager; alone where nobody started others.

    Attributes:
        rank: number of this process; 0 leads.
        world: how many there are.
    """

    def __init__(self) -> None:
        self.rank, self.world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        self._store: Store | None = None
        self._words = 0

    def __enter__(self) -> Self:
        if self.world > 1:
            self._store, _, _ = next(rendezvous(os.environ.get(_MEET, "env://"), self.rank, self.world))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._store is None:
            return
        if error is None and self.rank == 0:
            self.say(_END)
        elif error is not None and not self._is_first_to_fail():
            time.sleep(_SECONDS_TO_END)  # the first error is the cause: it alone is told, and ends all processes
            raise SystemExit(1)

    def say(self, word: str) -> None:
        """Tell the others what comes next; only the leader does."""
        self._words += 1
        if self._store is not None:
            self._store.set(f"word/{self._words}", word)

    def words(self) -> Iterator[str]:
        """What the leader says, until it has finished."""
        assert self._store is not None
        while True:
            self._words += 1
            key = f"word/{self._words}"
            self._store.wait([key], _LONGEST)
            if (word := self._store.get(key).decode()) == _END:
                return
            yield word

    @contextmanager
    def group(self, device: torch.device) -> Iterator[None]:
        """A process group for what the leader's last word asked for; none where this process is alone."""
        if self._store is None:
            yield
            return
        if device.type == "cuda":
            torch.cuda.set_device(device)
        backend = "nccl" if device.type == "cuda" else "gloo"
        store = PrefixStore(f"group/{self._words}", self._store)
        dist.init_process_group(backend, store=store, rank=self.rank, world_size=self.world)
        try:
            yield
        finally:
            dist.destroy_process_group()

    def _is_first_to_fail(self) -> bool:
        assert self._store is not None
        return bool(self._store.compare_set("failed", "", str(self.rank)) == str(self.rank).encode())


def launch(processes: int, arguments: Sequence[str]) -> int:
    """Run `recsys-moe ARGUMENTS` as a team on this machine. Returns the exit code of the first that fails, or 0.

    They meet through a file and talk over the loopback device, so that no port is open to others, as it would be with
    torchrun's launcher.
    """
    threads = max(1, (os.cpu_count() or 1) // processes)
    command = [sys.executable, "-m", "pipelines.processes", sys.executable, "-m", "pipelines.cli", *arguments]
    with tempfile.TemporaryDirectory() as folder:
        shared = {"OMP_NUM_THREADS": str(threads), **os.environ, "WORLD_SIZE": str(processes)}
        shared |= {_MEET: (Path(folder) / "store").as_uri(), "LOCAL_WORLD_SIZE": str(processes)}
        if sys.platform == "linux":
            shared |= {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
        started: list[subprocess.Popen[bytes]] = []
        try:
            for rank in range(processes):
                own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                started.append(subprocess.Popen(command, env=shared | own))
            return _outcome(started)
        finally:
            _end(started)


def _outcome(team: Sequence[subprocess.Popen[bytes]]) -> int:
    while True:
        codes = [process.poll() for process in team]
        for rank, code in enumerate(codes):
            if code is not None and code < 0:
                print(
                    f"error: process {rank} of {len(team)} was ended by {signal.Signals(-code).name}", file=sys.stderr
                )
                return 1
            if code:
                return code
        if None not in codes:
            return 0
        time.sleep(0.1)


def _end(team: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in team:
        process.terminate()
    for process in team:
        try:
            process.wait(_SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
