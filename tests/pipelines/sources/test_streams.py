"""The bytes of a text file, with Arrow's threads around them."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as StillRunningError

import pytest

from pipelines.sources import streams
from pipelines.sources.files import File
from pipelines.sources.streams import TextStream


def test_a_file_is_closed_only_when_nobody_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the reader would go on with the next file that gets the same descriptor, and take bytes from there."""
    end_to_read, end_to_write = os.pipe()
    monkeypatch.setattr(streams, "_HEAD", 4)
    monkeypatch.setattr(streams, "unpacked", lambda _: os.fdopen(end_to_read, "rb", buffering=0))
    os.write(end_to_write, b"head")
    stream = TextStream(File("log.csv", "log.csv", 10, 0))
    with ThreadPoolExecutor() as threads:
        read = threads.submit(stream.read, 10)
        with pytest.raises(StillRunningError):
            read.result(timeout=0.1)
        closed = threads.submit(stream.close)
        try:
            with pytest.raises(StillRunningError):
                closed.result(timeout=0.1)
        finally:
            os.write(end_to_write, b"second")
        assert read.result(timeout=10) == b"headsecond"
        closed.result(timeout=10)
    os.close(end_to_write)
    assert stream.closed
