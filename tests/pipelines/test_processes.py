"""Processes that must end: with the one that started them, or because they are told to."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="prctl and pidfd are Linux's")

ORPHANS = """
import subprocess, sys
from pipelines.processes import adopt_orphans, end_descendants

adopt_orphans()
# A child that leaves a grandchild in a session of its own behind, and one that does not care about SIGTERM.
sleep = "import time; time.sleep(60)"
stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(60)"
start = "import subprocess as s, sys; print(s.Popen(sys.argv[1:], start_new_session=True, stdout=s.DEVNULL).pid)"
left = [sys.executable, "-c", start, sys.executable, "-c", sleep]
orphan = subprocess.run(left, stdout=subprocess.PIPE, text=True).stdout.strip()
child = subprocess.Popen([sys.executable, "-c", stubborn], stdout=subprocess.PIPE)
child.stdout.readline()
end_descendants(patience_seconds=0.5)
print(orphan, child.pid)
"""

# As Airflow does: a task starts a shell in a session of its own, the shell starts the command.
TASK = """
import subprocess, sys, time
subprocess.Popen(["bash", "-c", '"$0" -c "$1" && true', sys.executable, sys.argv[1]], start_new_session=True)
time.sleep(60)
"""
COMMAND = """
import os, time
from pathlib import Path
from pipelines.processes import end_with_parent
end_with_parent()
Path(os.environ["PID_FILE"]).write_text(str(os.getpid()))
time.sleep(60)
"""


def _wait_for(path: Path) -> int:
    until = time.monotonic() + 20
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < until
        time.sleep(0.05)
    return int(path.read_text())


def _ends(pid: int, within_seconds: float) -> bool:
    until = time.monotonic() + within_seconds
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


def test_descendants_end_orphans_and_stubborn_ones_too(project_root: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ORPHANS], cwd=project_root, capture_output=True, text=True, check=True, timeout=60
    )
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) == 2
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_a_step_ends_with_the_task_that_started_it_through_a_shell(project_root: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "RECSYS_MOE_RESULT": "result.json", "PID_FILE": str(tmp_path / "pid")}
    with subprocess.Popen([sys.executable, "-c", TASK, COMMAND], cwd=project_root, env=environment) as task:
        pid = _wait_for(tmp_path / "pid")
        task.kill()
    assert _ends(pid, within_seconds=10)


def test_a_step_that_a_person_started_outlives_the_shell(project_root: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PID_FILE": str(tmp_path / "pid")}
    environment.pop("RECSYS_MOE_RESULT", None)
    with subprocess.Popen([sys.executable, "-c", TASK, COMMAND], cwd=project_root, env=environment) as task:
        pid = _wait_for(tmp_path / "pid")
        task.kill()
    try:
        assert not _ends(pid, within_seconds=1)
    finally:
        shell = psutil.Process(pid).parent()
        psutil.Process(pid).kill()
        assert shell is not None
        shell.wait(timeout=10)


def test_a_service_ends_when_what_started_it_is_killed(project_root: Path, tmp_path: Path) -> None:
    service = f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    start = (
        "import subprocess, sys, time; subprocess.Popen([sys.executable, '-m', 'pipelines.processes', *sys.argv[1:]]);"
    )
    start += "time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", start, sys.executable, "-c", service], cwd=project_root) as starter:
        pid = _wait_for(tmp_path / "pid")
        starter.kill()
    assert _ends(pid, within_seconds=10)
