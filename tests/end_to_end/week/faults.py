"""Things that go wrong on purpose: a step's process killed at its work, a disk that is full."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import psutil
import pytest

SMALL_DISK_MIB = 128
SECONDS_TO_END = 60


@dataclass(frozen=True)
class Steps:
    """The commands of the CLI that run below a process."""

    pid: int

    def running(self, step: str, day: date) -> psutil.Process | None:
        """The process of a step of a day, or of a plan of that day; None where there is none."""
        for process in psutil.Process(self.pid).children(recursive=True):
            try:
                line = process.cmdline()
            except psutil.Error:
                continue  # it has ended meanwhile
            if step in line and any(part.startswith(str(day)) for part in line):
                return process
        return None

    def at_work(self, step: str, day: date, cpu_seconds: float, patience: float = 900) -> psutil.Process:
        """A step once it has computed for so long: on a busy machine, the same place in its work as on an idle one."""
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            if process := self.running(step, day):
                while _lives(process):
                    if _cpu_seconds(process) >= cpu_seconds:
                        return process
                    time.sleep(0.05)
                raise AssertionError(f"{step} of {day} ended before it had computed for {cpu_seconds} s")
            time.sleep(0.3)
        raise AssertionError(f"{step} of {day} did not begin within {patience:.0f} s")

    def kill(self, step: str, day: date, cpu_seconds: float) -> None:
        """SIGKILL to the step's process: none below it may live on."""
        process = self.at_work(step, day, cpu_seconds)
        below = process.children(recursive=True)
        process.kill()
        _all_end([process, *below])

    def kill_task(self, step: str, day: date, cpu_seconds: float) -> None:
        """SIGKILL to Airflow's process that runs the task: neither the shell nor the command may live on."""
        process = self.at_work(step, day, cpu_seconds)
        shell = process.parent()
        assert shell is not None
        task = shell.parent()
        assert task is not None
        below = task.children(recursive=True)
        task.kill()
        _all_end([task, *below])


def _all_end(processes: list[psutil.Process]) -> None:
    """See that killed processes and those below them end soon; who should take note of it may be late."""
    deadline = time.monotonic() + SECONDS_TO_END
    while left := [process for process in processes if _lives(process)]:
        assert time.monotonic() < deadline, f"a killed task left processes: {left}"
        time.sleep(0.3)


def _cpu_seconds(process: psutil.Process) -> float:
    """How long it has computed; nothing where it has ended."""
    try:
        used = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(used.user + used.system)


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@dataclass(frozen=True)
class SmallDisk:
    """A file system of its own, which can be filled."""

    path: Path

    @contextmanager
    def full(self, but_bytes: int) -> Iterator[None]:
        """Nothing but so many bytes are free, for the length of a `with` block."""
        filler, block = self.path / "filler", bytes(1 << 16)
        with filler.open("wb") as file:
            left = shutil.disk_usage(self.path).free - but_bytes
            while left > 0:
                left -= file.write(block[:left])
        try:
            yield
        finally:
            filler.unlink()


@contextmanager
def small_disk(path: Path) -> Iterator[SmallDisk]:
    """A small disk at a folder, for the length of a `with` block; it needs the right to mount one."""
    path.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK_MIB}m", "tmpfs", str(path)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("a full disk needs a small one, and this user may not mount one: run it as root")
    try:
        yield SmallDisk(path)
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)
