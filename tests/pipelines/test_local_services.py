"""What `up` leaves for other terminals, and who may make MLflow's database meanwhile."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.local.services import _port, exports
from pipelines.tracking import alone_at


def test_a_shell_reads_settings_whatever_characters_they_have(tmp_path: Path) -> None:
    settings = {"A_PASSWORD": 'it\'s $HOME `x` "y"\\ \n.', "B": "http://127.0.0.1:8080"}
    (tmp_path / "environment.sh").write_text(exports(settings), encoding="utf-8")

    said = subprocess.run(
        ["bash", "-c", '. ./environment.sh; printf "%s|%s" "$A_PASSWORD" "$B"'],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        timeout=20,
    ).stdout

    assert said == "|".join(settings.values())


def test_a_port_is_given_to_one_alone_before_its_server_has_bound_it() -> None:
    with _port(0) as first:
        with _port(first) as second, _port(first) as third:
            assert len({first, second, third}) == 3
        with _port(second) as again:
            assert again == second


def test_a_port_that_is_bound_is_not_given() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, _port(server.getsockname()[1]) as port:
        assert port != server.getsockname()[1]


def test_another_process_waits_until_a_local_store_is_made(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow' / 'mlflow.db'}"
    other = (
        "from pipelines.tracking import alone_at\nprint('asks', flush=True)\n"
        f"with alone_at({uri!r}): print('alone', flush=True)"
    )
    with alone_at(uri):
        process = subprocess.Popen([sys.executable, "-c", other], stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.readline() == b"asks\n"
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=0.5)
    with process:
        assert process.communicate(timeout=30)[0] == b"alone\n"


def test_a_server_is_not_waited_for(tmp_path: Path) -> None:
    with alone_at("http://127.0.0.1:5000"), alone_at("http://127.0.0.1:5000"):
        assert not list(tmp_path.iterdir())
