"""The benchmarks' command: what it lists, what it refuses, what it puts on stdout."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.__main__ import BENCHMARKS, load, main


def test_without_a_name_it_lists_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in BENCHMARKS)


def test_an_unknown_name_exits_2_with_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tasks-corelation", "--json"]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert len(err.splitlines()) == 1
    assert all(name in err for name in ("tasks-corelation", *BENCHMARKS))


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_name_has_its_module(name: str) -> None:
    benchmark = load(name)
    assert all(callable(part) for part in (benchmark.add_options, benchmark.run, benchmark.table))


def test_the_list_needs_no_torch(project_root: Path) -> None:
    look = "import sys; from benchmarks.__main__ import main; main([]); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", look], cwd=project_root, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_what_a_benchmark_prints_is_progress(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def chatty(**options: object) -> dict[str, object]:
        print("half-way")
        return {"repeats": options["repeats"]}

    monkeypatch.setattr("benchmarks.tasks_correlation.run", chatty)
    assert main(["tasks-correlation", "--repeats", "2", "--json"]) == 0
    assert capsys.readouterr() == ('{"repeats": 2}\n', "half-way\n")


def test_what_a_user_gets_wrong_exits_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tasks-correlation", "--repeats", "1"]) == 2
    assert "--repeats must be at least 2" in capsys.readouterr().err
