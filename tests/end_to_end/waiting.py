"""Waiting for a real Airflow."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress

import httpx


def wait_until(is_so: Callable[[], bool], seconds: float) -> None:
    """Wait, and give up after some seconds."""
    deadline = time.monotonic() + seconds
    while True:
        with suppress(httpx.TimeoutException):  # on a busy machine Airflow takes its time over the first task
            if is_so():
                return
        assert time.monotonic() < deadline, f"took more than {seconds} s"
        time.sleep(1)
