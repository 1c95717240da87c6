"""Files on S3, from a real server: the same rows as here, and one line for whatever the server says."""

from __future__ import annotations

import gzip
import socket
import time
from collections.abc import Iterator
from datetime import date
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest

from pipelines import places, sources
from pipelines.config import Source
from pipelines.places import file_system
from recsys_moe.errors import UserError

DAY = date(2026, 1, 1)
PARQUET_OF_NOTHING = b"PAR1 and no more of it PAR1"


def put(place: str, content: bytes) -> None:
    system, path = file_system(place)
    with system.open_output_stream(path, compression=None) as stream:
        stream.write(content)


def refused(source: Source) -> str:
    """What reading it says, in one line, whichever way it is asked."""
    messages = set()
    for attempt in (lambda: sources.columns_of(source, DAY), lambda: list(sources.read(source, DAY, ["u"]))):
        with pytest.raises(UserError) as caught:
            attempt()
        messages.add(str(caught.value))
    (message,) = messages
    assert "\n" not in message
    assert message.startswith(source.path_for(DAY).partition("*")[0].rstrip("/"))
    return message


def test_a_day_of_files_on_s3(s3: str, read_all: Any) -> None:
    put(f"{s3}/2026-01-01/b.csv.gz", gzip.compress(b"u,i\n2,b\n"))
    put(f"{s3}/2026-01-01/a.csv", b"i,u\na,1\n")
    put(f"{s3}/2026-01-02/c.csv", b"i,u\na,1\n")
    source = Source(path=f"{s3}/{{ds}}/*.csv*")
    assert sources.locate_files(source, DAY) == [f"{s3}/2026-01-01/a.csv", f"{s3}/2026-01-01/b.csv.gz"]
    assert read_all(source)[0] == {"u": ["1", "2"], "i": ["a", "b"], "source_row": [2, 2]}
    assert {chunk.file for chunk in sources.read(source, DAY, ["u"])} == {"a.csv", "b.csv.gz"}
    assert sources.size_of(source, DAY) > 0


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.csv", b"", "is empty"),
        ("cut.csv.gz", gzip.compress(b"u\n" + b"1\n" * 999)[:-5], "Truncated compressed stream"),
        ("latin.csv", b"u\n\xe9\n", r"byte 3 (line 2) is no UTF-8"),
        ("broken.parquet", PARQUET_OF_NOTHING, "cannot be read: "),
    ],
)
def test_a_bad_file_on_s3_is_named(s3: str, name: str, content: bytes, message: str) -> None:
    put(f"{s3}/{name}", content)
    assert message in refused(Source(path=f"{s3}/{name}"))


def test_what_is_not_there_is_named(s3: str) -> None:
    put(f"{s3}/log/a.csv", b"u\n1\n")
    assert "no such file" in refused(Source(path=f"{s3}/log/nowhere.csv"))
    assert "no file matches" in refused(Source(path=f"{s3}/log/*.parquet"))
    assert "is a folder" in refused(Source(path=f"{s3}/log"))


def test_a_bucket_that_is_not_there_is_named(s3: str) -> None:
    assert "no such" in refused(Source(path="s3://no-such-bucket-of-mine/log.csv"))
    assert "no file matches" in refused(Source(path="s3://no-such-bucket-of-mine/*.csv"))


class _Refuses(BaseHTTPRequestHandler):
    """A server that answers everything with one status."""

    status, body = 403, b"<Error><Code>AccessDenied</Code><Message>no</Message></Error>"

    def do_GET(self) -> None:
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    def do_HEAD(self) -> None:
        self.send_response(self.status)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: a test's output is its own."""


@pytest.fixture
def denying(s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An S3 that denies everything."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Refuses) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        yield
        server.shutdown()
        thread.join()


@pytest.mark.usefixtures("denying")
@pytest.mark.parametrize("path", ["s3://bucket/log.csv", "s3://bucket/log.csv.gz", "s3://bucket/*.csv"])
def test_denied_access_is_said_in_one_line(path: str) -> None:
    assert "access is denied (403)" in refused(Source(path=path))


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Timeouts of a second, and one attempt."""
    for name in ("_CONNECT_SECONDS", "_REQUEST_SECONDS", "_ATTEMPTS"):
        monkeypatch.setattr(places, name, 1)


@pytest.mark.usefixtures("s3", "impatient")
def test_a_server_that_is_not_there_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as once:
        port = once.getsockname()[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    assert "the server cannot be reached" in refused(Source(path="s3://bucket/log.csv"))


@pytest.mark.usefixtures("s3", "impatient")
@pytest.mark.parametrize("path", ["s3://bucket/log.csv", "s3://bucket/*.csv"])
def test_a_server_that_never_answers_is_given_up(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        start = time.monotonic()
        assert "the server cannot be reached or does not answer" in refused(Source(path=path))
    assert time.monotonic() - start < 20
