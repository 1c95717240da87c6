"""Processes that end when they should: helpers over Linux's `prctl` and `pidfd`.

`python -m pipelines.processes COMMAND …` runs a command that gets SIGTERM when the process that started it dies.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys
import threading
from contextlib import suppress

import psutil

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux" and ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def adopt_orphans() -> None:
    """Make this process the parent of descendants whose own parent dies, so that `end_descendants` finds them all."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def end_with_parent() -> None:
    """End this process when the scheduler's task that started it has died, even by SIGKILL.

    Airflow puts a shell between its task and the command, and the shell outlives the task; so both are watched. Does
    nothing where nobody waits for a result (`RECSYS_MOE_RESULT`): a person may start a step and log out.
    """
    if sys.platform != "linux" or "RECSYS_MOE_RESULT" not in os.environ:
        return
    ancestors = psutil.Process().parents()[:2]
    threading.Thread(target=_end_with_any, args=([one.pid for one in ancestors],), daemon=True).start()


def _end_with_any(pids: list[int]) -> None:
    ended = select.poll()
    try:
        for pid in pids:
            ended.register(os.pidfd_open(pid), select.POLLIN)
        ended.poll()
    except ProcessLookupError:
        pass  # it has died already
    os.kill(os.getpid(), signal.SIGTERM)


def die_with_parent() -> None:
    """Have this process killed when the thread that started it ends: for workers, which nobody else would end."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def end_descendants(patience_seconds: float = 15.0) -> None:
    """Terminate every process below this one, then kill what is left; returns when none is."""
    for force in (False, True):
        while alive := psutil.Process().children(recursive=True):
            for process in alive:
                with suppress(psutil.NoSuchProcess):
                    process.kill() if force else process.terminate()
            _, left = psutil.wait_procs(alive, timeout=patience_seconds)
            if left and not force:
                break


def main() -> None:
    """Run the command in `sys.argv` in this process's place, in a process group of its own."""
    parent = os.getppid()
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        sys.exit("the process that started this one has ended already")
    os.setpgid(0, 0)
    os.execvp(sys.argv[1], sys.argv[1:])


if __name__ == "__main__":
    main()
