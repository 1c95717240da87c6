"""How what goes wrong in a step becomes a line and an exit code: what a person must mend, and what is tried again."""

from __future__ import annotations

import errno
import os

import duckdb
import pytest
import typer

from pipelines.calling import guard
from pipelines.errors import TryAgainError
from recsys_moe.errors import UserError


def fails_with(error: Exception, cause: Exception | None = None) -> int:
    """The exit code where a step raises an error."""

    def step() -> None:
        raise error from cause

    with pytest.raises(typer.Exit) as ended:
        guard(False, step)
    return ended.value.exit_code


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("error", "cause", "code"),
    [
        (UserError("x.yaml: name: is missing"), None, 2),
        (UserError("tables/interactions: cannot be written"), PermissionError(errno.EACCES, "Permission denied"), 2),
        (TryAgainError("tables/interactions: the table cannot be reached"), None, 75),
        (UserError("tables/interactions: cannot be written"), FULL, 75),
        (FULL, None, 75),
        (duckdb.IOException("Could not write file: No space left on device"), None, 75),
    ],
    ids=["a user's error", "no right to write", "passes", "full under a table", "full", "full under a spill"],
)
def test_exit_codes(error: Exception, cause: Exception | None, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert fails_with(error, cause) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"error: {error}"


def test_an_error_that_is_its_own_cause_comes_to_an_end() -> None:
    error = UserError("x.yaml: name: is missing")
    assert fails_with(error, error) == 2


def test_a_bug_keeps_its_traceback() -> None:
    def step() -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with pytest.raises(OSError, match="Input/output error"):
        guard(False, step)
