"""What every test may use, and one promise about all of them: no process that a test started outlives the session."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent
SESSION_VARIABLE = "RECSYS_MOE_TEST_SESSION"
SECONDS_TO_END = 5


settings.register_profile("few", max_examples=5)
settings.register_profile("many", max_examples=25)


def pytest_configure(config: pytest.Config) -> None:
    """Properties that say no number of examples are tried on few where slow tests are left out, as in `make test`."""
    settings.load_profile("few" if config.option.markexpr == "not slow" else "many")


@pytest.fixture(scope="session")
def project_root() -> Path:
    """The repository's root."""
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of the real logs; a test that asks for it is skipped where there is none."""
    folder = ROOT.parent / "shared" / "data" / "kuairand-pure"
    if not folder.is_dir():
        pytest.skip("the real logs (../shared/data/kuairand-pure) are not on this machine")
    return folder


def _belongs_to(process: psutil.Process, session: str) -> bool:
    try:
        return process.environ().get(SESSION_VARIABLE) == session
    except psutil.Error:
        return False


def _ends_with_us(process: psutil.Process) -> bool:
    """Python's own tracker of shared memory lives as long as the process that uses it, and ends with it."""
    try:
        return process.ppid() == os.getpid() and "multiprocessing.resource_tracker" in " ".join(process.cmdline())
    except psutil.Error:
        return False


def _left_behind(session: str) -> list[psutil.Process]:
    """Living processes that this session started: its descendants, and those that were orphaned, by environment."""
    found = set(psutil.Process().children(recursive=True))
    found |= {process for process in psutil.process_iter() if _belongs_to(process, session)}
    found.discard(psutil.Process())
    _, alive = psutil.wait_procs([p for p in found if not _ends_with_us(p)], timeout=SECONDS_TO_END)
    return alive


def _describe(process: psutil.Process) -> str:
    try:
        return f"{process.pid}: {' '.join(process.cmdline())[:200]}"
    except psutil.Error:
        return str(process.pid)


@pytest.fixture(scope="session", autouse=True)
def no_process_is_left() -> Iterator[None]:
    """Fail the session, and clean up, if something that a test started still runs when the tests are over."""
    session = uuid.uuid4().hex
    # Children inherit it; a process's own environment, which psutil reads, stays what it was at its start.
    os.environ[SESSION_VARIABLE] = session
    yield
    left = _left_behind(session)
    if left:
        names = "\n".join(_describe(process) for process in left)
        for process in left:
            process.kill()
        pytest.fail(f"tests left processes running (they were killed now):\n{names}")
