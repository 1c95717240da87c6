"""Where files lie: a local folder or S3, both as an Arrow file system and a path inside it.

S3 is set up by the environment, as the AWS tools read it: `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_REGION`,
and `AWS_ENDPOINT_URL` for a server of one's own.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import pyarrow.fs

S3 = "s3://"
_CONNECT_SECONDS, _REQUEST_SECONDS, _ATTEMPTS = 5, 30, 3


def file_system(place: str | Path) -> tuple[pyarrow.fs.FileSystem, str]:
    """The file system of a local path or of one on S3 (`s3://bucket/key`), and the path in it."""
    text = str(place)
    if not text.startswith(S3):
        return pyarrow.fs.LocalFileSystem(), text
    return _s3(s3_endpoint()), text.removeprefix(S3)


def s3_endpoint() -> str | None:
    """The address of a server of one's own, or None for AWS."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")


def join(place: str | Path, *parts: str) -> str:
    """A path below a place."""
    return "/".join([str(place).rstrip("/"), *parts])


@cache
def _s3(endpoint: str | None) -> pyarrow.fs.S3FileSystem:
    return pyarrow.fs.S3FileSystem(
        endpoint_override=endpoint,
        connect_timeout=_CONNECT_SECONDS,
        request_timeout=_REQUEST_SECONDS,
        retry_strategy=pyarrow.fs.AwsStandardS3RetryStrategy(max_attempts=_ATTEMPTS),
    )
