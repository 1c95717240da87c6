"""The guard in conftest.py sees what it must: children, and orphans in a session of their own."""

from __future__ import annotations

import time
from pathlib import Path

import psutil
import pytest

LEAVES_A_CHILD = """
import subprocess, sys

def test_leaves_a_child(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    open({pid_file!r}, "w").write(str(child.pid))
"""

LEAVES_AN_ORPHAN = """
import subprocess, sys

START = '''
import subprocess, sys
sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
print(subprocess.Popen(sleep, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).pid)
'''

def test_leaves_an_orphan():
    pid = subprocess.run([sys.executable, "-c", START], capture_output=True, text=True, check=True).stdout
    open({pid_file!r}, "w").write(pid)
"""

ENDS_ITS_CHILD = """
import subprocess, sys

def test_ends_its_child():
    subprocess.run([sys.executable, "-c", ""], check=True)
"""


@pytest.fixture
def guarded(pytester: pytest.Pytester, project_root: Path) -> pytest.Pytester:
    """A session of its own that has this project's conftest.py, with less patience."""
    conftest = (project_root / "tests" / "conftest.py").read_text(encoding="utf-8")
    assert "SECONDS_TO_END = 5\n" in conftest
    pytester.makeconftest(conftest.replace("SECONDS_TO_END = 5\n", "SECONDS_TO_END = 1\n"))
    return pytester


def _ends(pid: int, within_seconds: float = 5) -> bool:
    until = time.monotonic() + within_seconds
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


@pytest.mark.parametrize("source", [LEAVES_A_CHILD, LEAVES_AN_ORPHAN], ids=["child", "orphan"])
def test_a_process_left_behind_fails_the_session_and_is_ended(guarded: pytest.Pytester, source: str) -> None:
    pid_file = guarded.path / "pid"
    guarded.makepyfile(source.format(pid_file=str(pid_file)))

    result = guarded.runpytest_subprocess("-W", "ignore::ResourceWarning")

    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*tests left processes running*"])
    assert _ends(int(pid_file.read_text()))


def test_a_process_that_ended_is_no_problem(guarded: pytest.Pytester) -> None:
    guarded.makepyfile(ENDS_ITS_CHILD)
    guarded.runpytest_subprocess().assert_outcomes(passed=1)
