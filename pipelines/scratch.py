"""The folder of a training, search or scoring: kept where it is killed or fails, so that the next try goes on there."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Literal

from pipelines.config import Recommender
from pipelines.errors import TryAgainError
from pipelines.maintain import clear_scratch

Step = Literal["train", "tune", "reproduce", "score"]
"""What has a folder; the first two can be gone on with."""
_WORK: dict[Step, str] = {"train": "training", "tune": "search", "reproduce": "reproduction", "score": "scoring"}
_LOCK = "lock"


@contextmanager
def scratch_of(config: Recommender, step: Step, fingerprint: str, resume: bool) -> Iterator[Path]:
    """The folder of a step's work of this fingerprint, for this process alone; removed when the block succeeds.

    Without `resume` it is empty. Scratch of others that nobody has written to for days is removed.

    Raises:
        TryAgainError: another process is at the same work.
    """
    folder = config.workspace / "scratch" / f"{step}-{fingerprint}"
    taken = f"{folder}: another process is at this very {_WORK[step]}; wait for it"
    with _locked(folder / _LOCK, taken):
        clear_scratch(config)
        if not resume:
            for path in [path for path in folder.iterdir() if path.name != _LOCK]:
                shutil.rmtree(path)
        yield folder
        _remove(folder)


def _remove(folder: Path) -> None:
    """Out of the way at once, then away: who comes meanwhile finds all of it or nothing, and never half a folder."""
    done = tempfile.mkdtemp(dir=folder.parent, prefix="done-")
    shutil.rmtree(folder.rename(done))


def made_once(folder: Path, make: Callable[[Path], None]) -> Path:
    """A folder with what `make` writes; where it stands, it was finished before, and is taken as it is.

    Raises:
        TryAgainError: the disk is full.
    """
    folder.parent.touch()  # somebody is at it: a search may write nothing for days, and then look like left behind
    if not folder.exists():
        unfinished = folder.with_name(f".{folder.name}")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        try:
            make(unfinished)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            shutil.rmtree(unfinished, ignore_errors=True)
            raise TryAgainError(f"{folder.parent}: its disk is full; make room there, then run this again") from None
        unfinished.rename(folder)
    return folder


@contextmanager
def _locked(path: Path, taken: str) -> Iterator[None]:
    """Hold a lock that ends with this process, however it ends."""
    while (file := _try_to_lock(path, taken)) is None:
        pass
    with file:
        yield


def _try_to_lock(path: Path, taken: str) -> IO[str] | None:
    """The locked file, open; None where the process that held it has removed the folder meanwhile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileNotFoundError):
        file = path.open("w")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(path, file):
                return file
        except BlockingIOError:
            file.close()
            raise TryAgainError(taken) from None
        file.close()
    return None


def _is_at(path: Path, file: IO[str]) -> bool:
    return path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat())
