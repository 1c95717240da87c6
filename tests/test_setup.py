"""What scripts/setup.sh says when it cannot go on, and how it tells a finished .venv from an interrupted one."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest


@pytest.fixture
def checkout(tmp_path: Path, project_root: Path) -> Path:
    """A copy of what the set-up reads."""
    (tmp_path / "scripts").mkdir()
    shutil.copy2(project_root / "scripts" / "setup.sh", tmp_path / "scripts")
    shutil.copytree(project_root / "requirements", tmp_path / "requirements")
    shutil.copy2(project_root / "pyproject.toml", tmp_path)
    return tmp_path


def _setup(checkout: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [checkout / "scripts" / "setup.sh"],
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )


def _script(path: Path, body: str) -> str:
    path.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
    path.chmod(0o755)
    return str(path)


def _broken_at_venv(folder: Path) -> str:
    """A Python that fails as it makes the environment."""
    broken = f'case "$*" in *"-m venv"*) echo "disk full" >&2; exit 1;; esac\nexec "{shutil.which("python3")}" "$@"'
    return _script(folder / "broken-python", broken)


def test_an_old_python_is_refused_in_one_line(checkout: Path) -> None:
    done = _setup(checkout, PYTHON=_script(checkout / "old-python", "exit 1"))
    assert done.returncode == 1
    assert "no Python 3.11 or newer" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (checkout / ".venv").exists()


def test_a_python_without_venv_is_told_what_to_install(checkout: Path) -> None:
    """As on Debian and Ubuntu, where the module is a package of its own."""
    python = shutil.which("python3")
    bare = f'case "$2" in *ensurepip*) exit 1;; esac\nexec "{python}" "$@"'
    done = _setup(checkout, PYTHON=_script(checkout / "bare-python", bare))
    assert done.returncode == 1
    assert "-venv" in done.stderr
    assert "apt install python3." in done.stderr
    assert not (checkout / ".venv").exists()


def test_a_failing_step_shows_how_it_ended(checkout: Path) -> None:
    done = _setup(checkout, PYTHON=_broken_at_venv(checkout))
    assert done.returncode == 1
    assert "disk full" in done.stderr
    assert "var/setup.log" in done.stderr
    assert not (checkout / ".venv" / ".ready").exists()


def _finished(checkout: Path) -> None:
    """Put a .venv in place as a set-up that ended leaves it, but with a Python that does nothing."""
    (checkout / ".venv" / "bin").mkdir(parents=True)
    _script(checkout / ".venv" / "bin" / "python", "exit 0")
    inputs = [*sorted((checkout / "requirements").glob("*.txt")), checkout / "pyproject.toml"]
    content = b"".join(path.read_bytes() for path in [*inputs, checkout / "scripts" / "setup.sh"])
    stamp = f"{checkout.resolve()}\n{hashlib.sha256(content).hexdigest()}\n"
    (checkout / ".venv" / ".ready").write_text(stamp, encoding="utf-8")


def test_a_finished_venv_is_left_alone(checkout: Path) -> None:
    _finished(checkout)
    done = _setup(checkout)
    assert done.returncode == 0
    assert done.stdout == "setup: .venv is ready\n"


def test_a_change_of_requirements_is_brought_in_and_an_interruption_starts_anew(checkout: Path) -> None:
    _finished(checkout)
    with (checkout / "requirements" / "base.txt").open("a", encoding="utf-8") as lock:
        lock.write("one-more==1.0\n")

    stopped_halfway = _setup(checkout)  # there is no uv in this .venv, so the second step fails

    assert stopped_halfway.returncode == 1
    assert "the requirements have changed" in stopped_halfway.stdout
    assert "removing .venv" in _setup(checkout, PYTHON=_broken_at_venv(checkout)).stdout


def test_a_venv_that_was_moved_is_made_anew(checkout: Path) -> None:
    """Its scripts name the folder where it was made, and would install there."""
    _finished(checkout)
    moved = checkout / "moved"
    moved.mkdir()
    for name in ("scripts", "requirements", "pyproject.toml", ".venv"):
        shutil.move(checkout / name, moved / name)
    assert "removing .venv" in _setup(moved, PYTHON=_broken_at_venv(moved)).stdout
