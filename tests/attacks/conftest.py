"""What attacks have in common: a folder to be in, where a file `pwned` would tell that something ran."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipelines import calling
from pipelines.cli import app
from tests.pipelines.conftest import tiny as tiny

Called = Callable[..., str]


@pytest.fixture
def nothing_ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each attack would make a file `pwned` here; none may be there at the end."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    yield
    assert list(folder.iterdir()) == []


@pytest.fixture
def refusal(monkeypatch: pytest.MonkeyPatch) -> Called:
    """Call the command line, see that it ends with exit code 2 and one line, and give that line."""
    monkeypatch.setattr(calling, "_set_up_logging", lambda: None)  # it would outlive the call, whose streams are closed

    def call(*arguments: str) -> str:
        done = CliRunner().invoke(app, list(arguments))
        (line,) = done.stderr.splitlines()
        assert (done.exit_code, done.stdout) == (2, "")
        assert line.startswith("error: ")
        return line

    return call
