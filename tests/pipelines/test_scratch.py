"""The folder of a training or search: whose it is, when it stays and when it goes."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from pipelines.config import Recommender
from pipelines.errors import TryAgainError
from pipelines.scratch import made_once, scratch_of


@pytest.fixture
def config(tiny: Callable[..., Recommender]) -> Recommender:
    return tiny()


def fail_in(config: Recommender, fingerprint: str = "abc") -> Path:
    """A training that writes something and fails."""
    with suppress(ZeroDivisionError), scratch_of(config, "train", fingerprint, resume=True) as folder:
        (folder / "state").mkdir()
        raise ZeroDivisionError
    return folder


def is_taken(config: Recommender, fingerprint: str = "abc") -> bool:
    """Whether another process is at it."""
    try:
        with scratch_of(config, "train", fingerprint, resume=True):
            return False
    except TryAgainError as error:
        return f"train-{fingerprint}: another process is at this very training" in str(error)


def test_it_stays_where_a_training_fails_and_goes_when_it_succeeds(config: Recommender) -> None:
    fail_in(config)
    with scratch_of(config, "train", "abc", resume=True) as folder:
        assert (folder / "state").is_dir()
    assert not folder.exists()


def test_who_comes_while_it_is_removed_begins_anew(config: Recommender, monkeypatch: pytest.MonkeyPatch) -> None:
    def remove(folder: Path) -> None:
        assert (folder / "state").is_dir()
        with scratch_of(config, "train", "abc", resume=True) as other:
            assert [path.name for path in other.iterdir()] == ["lock"]
            monkeypatch.undo()

    fail_in(config)
    with scratch_of(config, "train", "abc", resume=True):
        monkeypatch.setattr("shutil.rmtree", remove)


def test_without_resume_it_is_empty(config: Recommender) -> None:
    fail_in(config)
    with scratch_of(config, "train", "abc", resume=False) as folder:
        assert not (folder / "state").exists()


def test_one_training_has_one_process(config: Recommender) -> None:
    with scratch_of(config, "train", "abc", resume=True):
        assert is_taken(config)
        assert not is_taken(config, "other")
    assert not is_taken(config)


def test_the_lock_of_a_killed_process_does_not_stand(config: Recommender, project_root: Path) -> None:
    folder = fail_in(config)
    hold = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); print(1, flush=True); input()"
    command = [sys.executable, "-c", hold, str(folder / "lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert is_taken(config)
        process.kill()
    with scratch_of(config, "train", "abc", resume=True) as again:
        assert (again / "state").is_dir()


def test_what_others_left_goes_after_days(config: Recommender) -> None:
    old, new = fail_in(config, "old"), fail_in(config, "new")
    before = time.time() - 3 * 86400
    for path in (old, *old.iterdir()):
        os.utime(path, (before, before))
    with scratch_of(config, "train", "abc", resume=True):
        assert not old.exists()
        assert new.exists()


def test_a_search_that_reads_for_days_keeps_its_folder(config: Recommender) -> None:
    before = time.time() - 3 * 86400
    with scratch_of(config, "tune", "slow", resume=True) as folder:
        for _ in range(2):
            for path in (folder, *folder.iterdir()):
                os.utime(path, (before, before))
            made_once(folder / "read", lambda made: (made / "rows").touch())
            with scratch_of(config, "train", "nightly", resume=True):
                assert (folder / "read" / "rows").exists()


def test_an_old_one_is_gone_on_with(config: Recommender) -> None:
    folder = fail_in(config)
    before = time.time() - 3 * 86400
    for path in (folder, *folder.iterdir()):
        os.utime(path, (before, before))
    with scratch_of(config, "train", "abc", resume=True):
        assert (folder / "state").is_dir()


def test_a_folder_is_made_once_and_never_half(tmp_path: Path) -> None:
    def make(folder: Path) -> None:
        (folder / "a").write_text("whole")

    def fail(folder: Path) -> None:
        (folder / "b").write_text("half")
        raise ZeroDivisionError

    with suppress(ZeroDivisionError):
        made_once(tmp_path / "made", fail)
    assert not (tmp_path / "made").exists()
    for work in (make, fail):
        assert made_once(tmp_path / "made", work) == tmp_path / "made"
    assert [path.name for path in tmp_path.iterdir()] == ["made"]
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["a"]


@pytest.mark.parametrize(("number", "raised"), [(errno.ENOSPC, TryAgainError), (errno.EACCES, PermissionError)])
def test_a_full_disk_is_told_in_a_line_and_left_emptier(tmp_path: Path, number: int, raised: type[Exception]) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").touch()
        raise OSError(number, "says the disk")

    with pytest.raises(raised, match="its disk is full" if raised is TryAgainError else "says the disk"):
        made_once(tmp_path / "made", fail)
    assert [path.name for path in tmp_path.iterdir()] == ([] if raised is TryAgainError else [".made"])
