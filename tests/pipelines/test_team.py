"""Processes of one training: who leads, what the others hear, and what ends all of them."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines import team
from pipelines.team import Team


def member(monkeypatch: pytest.MonkeyPatch, folder: Path, rank: int) -> Team:
    """One of two, that meet through a file."""
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RECSYS_MOE_MEET", (folder / "store").as_uri())
    return Team()


def test_a_process_alone_has_nobody_to_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    with Team() as alone:
        assert (alone.rank, alone.world) == (0, 1)
        alone.say("fit")


def test_the_others_hear_all_that_the_leader_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with member(monkeypatch, tmp_path, 0) as leader:
        leader.say("choose")
        leader.say("refit")
    with member(monkeypatch, tmp_path, 1) as other:
        assert list(other.words()) == ["choose", "refit"]


def test_the_first_error_alone_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(team, "_SECONDS_TO_END", 0.0)
    with pytest.raises(ValueError, match="the cause"), member(monkeypatch, tmp_path, 1):
        raise ValueError("the cause")
    with pytest.raises(SystemExit), member(monkeypatch, tmp_path, 0):
        raise ConnectionError("the other has gone")


def started(*programs: str) -> list[subprocess.Popen[bytes]]:
    return [subprocess.Popen([sys.executable, "-S", "-c", program]) for program in programs]


@pytest.mark.parametrize(
    ("programs", "code"),
    [
        (("", ""), 0),
        (("import sys; sys.exit(99)", "import time; time.sleep(60)"), 99),
        (("import time; time.sleep(60)", "import os; os.kill(os.getpid(), 9)"), 1),
    ],
)
def test_the_first_that_fails_ends_all(
    programs: tuple[str, str], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    processes = started(*programs)
    try:
        assert team._outcome(processes) == code
    finally:
        team._end(processes)
    assert all(process.returncode is not None for process in processes)
    told = f"error: process 1 of 2 was ended by {signal.Signals.SIGKILL.name}\n" if code == 1 else ""
    assert capsys.readouterr().err == told
